"""Small models to explain: a trained bundle of the tiny dataset, and classifiers over any encoders."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import nn

from tests.score.bundles import tiny_bundle, train_records
from xmodal_dist.bundle import Bundle
from xmodal_dist.explain.sample import Seen, predict
from xmodal_dist.modalities.fields import transform
from xmodal_dist.model.classifier import CrossModalClassifier, ModelSettings
from xmodal_dist.model.fusion import FusionKind

__all__ = ["CPU", "bundle_of", "classifier", "train_sample", "trained_bundle"]

CPU = torch.device("cpu")


def classifier(encoders: Mapping[str, nn.Module], width: int, num_classes: int = 3) -> CrossModalClassifier:
    torch.manual_seed(1)
    return CrossModalClassifier(encoders, num_classes, ModelSettings(width=width)).eval()


def bundle_of(model: CrossModalClassifier) -> Bundle:
    """A bundle of nothing but a model."""
    return Bundle((), tuple("abc"), ModelSettings(), model, {}, {})


def train_sample(bundle: Bundle, dataset: str, rows: int = 120) -> Seen:
    """The first records of the train split, predicted."""
    seen, rejected = predict(bundle, train_records(dataset).slice(0, rows), dataset, CPU)
    assert seen is not None and not rejected
    return seen


def trained_bundle(dataset: str, fusion: FusionKind = "late") -> Bundle:
    """A bundle that has learned the train split nearly by heart."""
    bundle = tiny_bundle(dataset, fusion)
    batch = transform(bundle.specs, train_sample(bundle, dataset).batch, augment=False)
    labels = train_records(dataset).column("label").to_pylist()
    truth = torch.tensor([bundle.classes.index(label) for label in labels])
    optimizer = torch.optim.AdamW(bundle.model.parameters(), lr=0.01)
    bundle.model.train()
    for _ in range(40):
        optimizer.zero_grad()
        output = bundle.model(batch.inputs, batch.present)
        own = output.field_logits.transpose(1, 2)
        spread = nn.functional.cross_entropy(own, truth[:, None].expand(-1, own.shape[2]))
        (nn.functional.cross_entropy(output.fused, truth) + 0.3 * spread).backward()
        optimizer.step()
    bundle.model.eval()
    return bundle
