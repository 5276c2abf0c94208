"""The cross-modal classifier: encoders -> stand-ins for what is missing -> fusion -> logits.

Legend of tensor shapes: B rows, M fields in field order, D width, C classes.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal, NamedTuple, cast

import torch
from pydantic import Field
from torch import nn

from xmodal_dist.batch import Tensors
from xmodal_dist.encoders import Evidence
from xmodal_dist.encoders.dropout import RecordDropout
from xmodal_dist.model.fusion import FUSIONS, FusionKind, FusionSizes, LateFusion
from xmodal_dist.model.mixup import Shares, mix_features
from xmodal_dist.randomness import uniform_like
from xmodal_dist.settings import Settings

__all__ = ["CrossModalClassifier", "ModelSettings", "Output", "encoded_rows"]

_HEAD_DROPOUT_STREAM = 0x_C1_01
_MODALITY_DROPOUT_STREAM = 0x_C1_02


class ModelSettings(Settings):
    """What sits above the encoders."""

    fusion: FusionKind = "late"
    """How fields are joined: ``late`` averages logits; ``concat``, ``gated``, ``lowrank`` and ``attention`` join
    features."""
    fusion_rank: int = Field(default=4, ge=1)
    """Rank of ``lowrank``: how many products of the fields' projections are averaged."""
    bottleneck_tokens: int = Field(default=4, ge=1)
    """Tokens of ``attention`` through which fields exchange what they know."""
    fusion_layers: int = Field(default=2, ge=2)
    """Layers of ``attention``: the bottleneck gathers in one and gives in the next."""
    width: int = Field(default=128, ge=8)
    """Features per field."""
    dropout: float = Field(default=0.5, ge=0.0, lt=1.0)
    """Share of features dropped before each classifier head in training."""
    modality_dropout: float = Field(default=0.2, ge=0.0, lt=1.0)
    """Chance of each present field to be hidden from the fusion in training; never all of a record's."""
    absence_informs: bool = True
    """Learn what it says about the class that a record lacks a field; turn it off where what is missing at scoring is
    missing for other reasons than in training."""
    aux_weight: float = Field(default=0.5, ge=0.0)
    """Weight of each field's own classification loss beside the fused one."""
    balance: Literal["none", "ogm"] = "none"
    """``ogm`` slows the encoders of fields that are far ahead of the others, so that these are not drowned."""
    balance_alpha: float = Field(default=1.0, gt=0)
    """How strongly ``ogm`` slows them."""


def encoded_rows(present: torch.Tensor) -> torch.Tensor:
    """Positions of the rows that a field's encoder sees, of ``present`` [B] bool: those that have the field.

    The first row where none has it, or the encoder's parameters would be without a gradient in that step.
    """
    rows = present.nonzero().squeeze(1)
    return rows if len(rows) else rows.new_zeros(1)


class Output(NamedTuple):
    """Logits of one batch.

    Attributes:
        fused: [B, C] from all present fields.
        field_logits: [B, M, C] from each field alone; meaningless where the field is absent.
        shares: whose labels the targets are; None where rows were not mixed.
    """

    fused: torch.Tensor
    field_logits: torch.Tensor
    shares: Shares | None = None


class CrossModalClassifier(nn.Module):
    """Encoders, one a field, under one fusion.

    Every parameter receives a gradient at every step whatever is missing from the batch, so DDP needs no search for
    unused ones; and no row's output depends on another row, but for its partner's where mixup is asked for.

    Args:
        encoders: field name -> module from the field's transformed tensors to [B, width]; their order is the order of
            the columns of ``present``.
        num_classes: C.
        settings: sizes and dropout; ``width`` must be the encoders'.
    """

    def __init__(self, encoders: Mapping[str, nn.Module], num_classes: int, settings: ModelSettings) -> None:
        super().__init__()
        self.fields = tuple(encoders)
        self.settings = settings
        self._encoders = nn.ModuleList(encoders.values())
        self.norms = nn.ModuleList(
            nn.Identity() if isinstance(encoder, Evidence) else nn.LayerNorm(settings.width)
            for encoder in encoders.values()
        )
        self.stand_ins = nn.Parameter(torch.randn(len(self.fields), settings.width) * 0.1)
        self.dropout = RecordDropout(settings.dropout, _HEAD_DROPOUT_STREAM)
        self.heads = nn.ModuleList(nn.Linear(settings.width, num_classes) for _ in self.fields)
        sizes = FusionSizes(
            len(self.fields), num_classes, settings.width, settings.dropout,
            settings.fusion_rank, settings.bottleneck_tokens, settings.fusion_layers,
        )  # fmt: skip
        self.fusion = FUSIONS[settings.fusion](sizes)
        self.absence = (
            nn.Linear(len(self.fields), num_classes, bias=False) if settings.absence_informs else None
        )
        if self.absence is not None:
            nn.init.zeros_(self.absence.weight)

    @property
    def encoders(self) -> dict[str, nn.Module]:
        """Each field's encoder by name."""
        return dict(zip(self.fields, self._encoders, strict=True))

    def forward(
        self,
        inputs: Mapping[str, Tensors],
        present: torch.Tensor,
        keys: torch.Tensor | None = None,
        mixup_share: torch.Tensor | None = None,
    ) -> Output:
        """Logits of a batch; fields hidden by modality dropout still get their own logits.

        Args:
            inputs: per field, its transformed tensors, rows of missing values included (finite, usually zeros).
            present: [B, M] bool.
            keys: [B] int64 record keys for dropout in training; None for none.
            mixup_share: [B], how much each row keeps of its features when it is mixed with its partner
                (:mod:`xmodal_dist.model.mixup`); None does not mix.
        """
        features, shares = self.encode(inputs, present), None
        shown = self.drop_modalities(present, keys)
        if mixup_share is not None:
            features, shares = mix_features(features, present, shown, mixup_share)
        field_logits = self.field_logits(features, keys)
        fused = self.fuse(features, shown, keys, field_logits, missing=~present)
        return Output(fused, field_logits, shares)

    def encode(self, inputs: Mapping[str, Tensors], present: torch.Tensor) -> torch.Tensor:
        """Features [B, M, D]; a missing value's are the field's learned stand-in, and cost its encoder nothing."""
        everywhere = present.all(dim=0).tolist()  # one wait for the device, not one a field
        encoded = [
            self._features(m, inputs[name]) if everywhere[m] else self._encode(m, inputs[name], present[:, m])
            for m, name in enumerate(self.fields)
        ]
        return self._fill(torch.stack(encoded, dim=1), present)

    def _encode(self, m: int, tensors: Tensors, present: torch.Tensor) -> torch.Tensor:
        """Features [B, D] of one field where it is present [B]; what stands elsewhere is to be filled."""
        rows = encoded_rows(present)
        shown = self._features(m, {name: tensor[rows] for name, tensor in tensors.items()})
        return self.stand_ins[m].detach().to(shown.dtype).expand(len(present), -1).index_copy(0, rows, shown)

    def _features(self, m: int, tensors: Tensors) -> torch.Tensor:
        features: torch.Tensor = self.norms[m](self._encoders[m](tensors))
        return features

    def field_logits(self, features: torch.Tensor, keys: torch.Tensor | None = None) -> torch.Tensor:
        """Each field's own logits [B, M, C]."""
        features = self.dropout(features, keys)
        return torch.stack([head(features[:, m]) for m, head in enumerate(self.heads)], dim=1)

    def fuse(
        self,
        features: torch.Tensor,
        present: torch.Tensor,
        keys: torch.Tensor | None = None,
        field_logits: torch.Tensor | None = None,
        missing: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Logits [B, C] from the fields in ``present``; pass a smaller mask to leave fields out.

        Args:
            features: [B, M, D] from :meth:`encode`.
            present: [B, M] bool; a row may have none, and still gets finite logits.
            keys: [B] int64 for dropout in training.
            field_logits: [B, M, C] if already computed.
            missing: [B, M] bool, which fields the records themselves lack, which may inform; what is merely left out
                does not. None for none.
        """
        features = self._fill(features, present)
        if field_logits is None:
            field_logits = self.field_logits(features, keys)
        # A hidden field's logits are those of its stand-in, or a row with nothing to show would show what is hidden.
        unseen = torch.stack([head(self.stand_ins[m]) for m, head in enumerate(self.heads)])
        field_logits = torch.where(present.unsqueeze(-1), field_logits, unseen.to(field_logits.dtype))
        logits: torch.Tensor = self.fusion(features, field_logits, present, keys)
        if self.absence is not None and missing is not None:
            logits = logits + self.absence(missing.to(logits.dtype))
        return logits

    def embed(self, features: torch.Tensor, present: torch.Tensor) -> torch.Tensor:
        """What the fused logits of :meth:`fuse` are made from: features [B, ``fusion.embedding_width``], no dropout.

        Args:
            features: [B, M, D] from :meth:`encode`.
            present: [B, M] bool.
        """
        embedding: torch.Tensor = self.fusion.embed(self._fill(features, present), present, None)
        return embedding

    def start_from(self, logits: torch.Tensor) -> None:
        """Let an untrained model say about ``logits`` [C] of every record: the biases of all heads are set to them.

        With rare classes answered one by one, the first epochs go into learning that they are rare otherwise (Lin et
        al. 2017, arXiv:1708.02002, section 3.3).
        """
        fused = self.fusion.prior if isinstance(self.fusion, LateFusion) else self.fusion.output.bias
        with torch.no_grad():
            for bias in (fused, *(head.bias for head in self.heads)):
                cast(nn.Parameter, bias).copy_(logits)

    def encoder_parameters(self) -> list[list[nn.Parameter]]:
        """Of each field, the parameters that make its features from its inputs and are trained."""
        return [
            [p for module in (encoder, norm) for p in module.parameters() if p.requires_grad]
            for encoder, norm in zip(self._encoders, self.norms, strict=True)
        ]

    def compile_encoders(self) -> None:
        """Compile the encoders in place, for batches of any number of rows; each is compiled when it is next called."""
        for encoder in self._encoders:
            encoder.compile(dynamic=True)

    def drop_modalities(self, present: torch.Tensor, keys: torch.Tensor | None) -> torch.Tensor:
        """``present`` with fields hidden at random in training, a pure function of the keys; each row keeps one."""
        if keys is None or not self.training or self.settings.modality_dropout == 0.0:
            return present
        draws = uniform_like(keys, _MODALITY_DROPOUT_STREAM, present.shape[1])
        luckiest = draws.masked_fill(~present, -1.0)
        kept = (draws >= self.settings.modality_dropout) | (luckiest == luckiest.amax(dim=1, keepdim=True))
        return present & kept

    def _fill(self, features: torch.Tensor, present: torch.Tensor) -> torch.Tensor:
        return torch.where(present.unsqueeze(-1), features, self.stand_ins.to(features.dtype))
