"""What several rooms' tests share: the development data, a tiny dataset, and one Ray for the whole session."""

from __future__ import annotations

import io
import json
import os
from collections.abc import Iterator
from pathlib import Path

import hypothesis
import numpy as np
import pytest
import torch
from PIL import Image

# How long an example takes says more of the machine than of the code.
hypothesis.settings.register_profile("unhurried", deadline=None)
hypothesis.settings.load_profile("unhurried")

REPOSITORY = Path(__file__).resolve().parent.parent
WORDS = {"red": "warm sunset apple", "green": "leaf forest grass", "blue": "ocean sky winter"}
os.environ.setdefault("PYTHONPATH", str(REPOSITORY))


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder that holds ``digits_av`` and ``emoji_groups`` in their raw form."""
    folder = Path(os.environ.get("XMODAL_TEST_DATA", REPOSITORY.parent / "shared" / "data"))
    if not folder.is_dir():
        pytest.skip("needs the development data: set XMODAL_TEST_DATA to its folder")
    return folder


@pytest.fixture(scope="session")
def ray_session() -> Iterator[None]:
    """A local Ray with four logical CPUs, so that two train workers leave room for Ray Data."""
    from xmodal_dist import runtime

    with runtime.connect(num_cpus=4):
        yield


@pytest.fixture(scope="session")
def tiny_source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A JSONL of 150 records of 3 classes: a 16 px image, a sentence, two numbers; some of each missing."""
    root = tmp_path_factory.mktemp("tiny_source")
    rng = np.random.default_rng(7)
    records = []
    for index in range(150):
        label = sorted(WORDS)[index % 3]
        channel = ("red", "green", "blue").index(label)
        pixels = rng.integers(0, 90, (16, 16, 3), dtype=np.uint8)
        pixels[..., channel] += 120
        name = f"{index:03d}.png"
        buffer = io.BytesIO()
        Image.fromarray(pixels).save(buffer, "PNG")
        (root / name).write_bytes(buffer.getvalue())
        record = {
            "id": f"r{index:03d}",
            "label": label,
            "picture": name if rng.random() > 0.15 else None,
            "caption": " ".join(rng.permutation(WORDS[label].split())) if rng.random() > 0.15 else None,
            "height": float(channel * 2 + rng.normal()) if rng.random() > 0.1 else None,
            "kind_of_day": str(rng.choice(["wet", "dry"])),
        }
        records.append(record)
    table = root / "records.jsonl"
    table.write_text("".join(json.dumps(r) + "\n" for r in records))
    return table


TINY_FIELDS = ("picture=image", "caption=text", "weather=tabular:height,kind_of_day")


@pytest.fixture(scope="session")
def tiny_dataset(tiny_source: Path, tmp_path_factory: pytest.TempPathFactory) -> str:
    """The tiny source packed, in row groups of 8 rows so that lanes and windows cross them."""
    from xmodal_dist.dataset.schema import parse_field
    from xmodal_dist.ingest.pack import PackSettings, pack

    target = str(tmp_path_factory.mktemp("tiny") / "dataset")
    settings = PackSettings(rows_per_row_group=8, shard_bytes=20_000)
    pack(str(tiny_source), target, fields=[parse_field(f) for f in TINY_FIELDS], settings=settings)
    return target


@pytest.fixture(scope="session")
def tiny_bert(tiny_source: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a BERT of 2 layers and 32 features with a tokenizer of the tiny source's captions."""
    transformers = pytest.importorskip("transformers")
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors, trainers

    records = [json.loads(line) for line in tiny_source.read_text().splitlines()]
    captions = [record["caption"] for record in records if record["caption"]]
    tokenizer = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer()
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    marks = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    trainer = trainers.WordPieceTrainer(vocab_size=120, special_tokens=marks, show_progress=False)
    tokenizer.train_from_iterator(captions, trainer)
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]",
        pair="[CLS] $A [SEP] $B:1 [SEP]:1",
        special_tokens=[("[CLS]", 2), ("[SEP]", 3)],
    )
    names = {"pad_token": "[PAD]", "unk_token": "[UNK]", "cls_token": "[CLS]", "sep_token": "[SEP]"}
    loaded = transformers.PreTrainedTokenizerFast(tokenizer_object=tokenizer, model_max_length=24, **names)
    config = transformers.BertConfig(
        vocab_size=tokenizer.get_vocab_size(), hidden_size=32, intermediate_size=48, num_hidden_layers=2,
        num_attention_heads=4, max_position_embeddings=32,
    )  # fmt: skip
    folder = tmp_path_factory.mktemp("bert") / "tiny"
    torch.manual_seed(3)
    transformers.BertModel(config).save_pretrained(folder)
    loaded.save_pretrained(folder)
    return folder
