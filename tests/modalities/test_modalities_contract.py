"""The contract of a modality, over every one that ships with the package."""

from __future__ import annotations

import json
import pickle
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch

from xmodal_dist.batch import Tensors
from xmodal_dist.dataset.quarantine import REASON_CODES
from xmodal_dist.errors import DecodeError, UsageError
from xmodal_dist.modalities import Decoded, FieldSettings, Fitted, Modality, available, load
from xmodal_dist.randomness import derive_keys


@dataclass(frozen=True)
class Case:
    """A modality with its sample, fitted, and a mix of good, missing and broken records."""

    modality: Modality[Any]
    settings: FieldSettings
    fitted: Fitted
    sample: Any
    records: list[tuple[Any, ...]]
    reasons: dict[int, str]

    def decode(self, records: list[tuple[Any, ...]], keys: Any = None) -> Decoded:
        return self.modality.decode(self.settings, self.fitted, self.sample.columns(records), keys)

    def transform(self, decoded: Decoded, keys: Any = None) -> Tensors:
        tensors = {name: torch.from_numpy(array) for name, array in decoded.arrays.items()}
        keys = None if keys is None else torch.from_numpy(keys.view(np.int64))
        return self.modality.transform(self.settings, self.fitted, tensors, keys)


@pytest.fixture(params=available())
def case(request: pytest.FixtureRequest, samples: dict[str, Any]) -> Case:
    if request.param not in samples:
        pytest.skip(f"what makes samples of {request.param} is not installed")
    modality, sample = load(request.param), samples[request.param]
    settings = modality.settings()
    fitted = modality.fit(settings, sample.table(sample.good * 3))
    records, reasons = [], {}
    for values, reason in sample.broken:  # broken records stand between good ones
        reasons[len(records) + 2] = reason
        records += [sample.good[len(reasons) % len(sample.good)], sample.missing, values]
    return Case(modality, settings, fitted, sample, [*records, *sample.good], reasons)


def _keys(count: int, epoch: int = 0) -> np.ndarray[Any, np.dtype[np.uint64]]:
    return derive_keys(7, epoch, np.zeros(count, np.int64), np.arange(count))


def _assert_equal(a: Decoded, b: Decoded) -> None:
    assert a.arrays.keys() == b.arrays.keys()
    for name, array in a.arrays.items():
        np.testing.assert_array_equal(array, b.arrays[name])
    np.testing.assert_array_equal(a.present, b.present)
    assert {r: e.args for r, e in a.errors.items()} == {r: e.args for r, e in b.errors.items()}
    assert a.fallbacks == b.fallbacks


def test_settings_have_defaults_and_name_their_kind(case: Case) -> None:
    assert case.settings.kind == case.modality.kind
    assert type(case.settings).model_validate_json(case.settings.model_dump_json()) == case.settings
    with pytest.raises(ValueError, match="unknown setting"):
        case.modality.settings.model_validate({"kind": case.modality.kind, "no_such_setting": 1})


def test_fitted_survives_json_and_refitting(case: Case) -> None:
    assert json.loads(json.dumps(case.fitted.values)) == case.fitted.values
    assert case.modality.fit(case.settings, case.sample.table(case.sample.good * 3)) == case.fitted


def test_fit_of_nothing_still_decodes(case: Case) -> None:
    for records in ([], [case.sample.missing] * 3):
        fitted = case.modality.fit(case.settings, case.sample.table(records))
        decoded = case.modality.decode(
            case.settings, fitted, case.sample.columns(list(case.sample.good)), None
        )
        assert len(decoded.present) == len(case.sample.good)


def test_rows_stay_aligned_and_bad_ones_are_reported(case: Case) -> None:
    decoded = case.decode(case.records)
    assert {row: error.reason for row, error in decoded.errors.items()} == case.reasons
    assert set(case.reasons.values()) <= REASON_CODES
    missing = [row for row, record in enumerate(case.records) if record == case.sample.missing]
    for row in range(len(case.records)):
        assert decoded.present[row] == (row not in missing and row not in case.reasons)
    for array in decoded.arrays.values():
        assert array.shape[0] == len(case.records)
        assert array.flags.writeable
        assert not array[~decoded.present].any()


def test_check_agrees_with_decode(case: Case) -> None:
    for record in [*case.sample.good, case.sample.missing]:
        case.modality.check(record)
    for record, reason in case.sample.broken:
        if reason != "column_type":  # known only when the column is fitted
            with pytest.raises(DecodeError) as caught:
                case.modality.check(record)
            assert caught.value.reason == reason


@pytest.mark.parametrize("train", [False, True])
def test_decode_is_a_pure_function_of_each_row(case: Case, train: bool) -> None:
    count = len(case.records)
    keys = _keys(count) if train else None
    whole = case.decode(case.records, keys)
    _assert_equal(whole, case.decode(case.records, keys))
    order = np.random.default_rng(0).permutation(count)
    shuffled = case.decode([case.records[i] for i in order], None if keys is None else keys[order])
    expected = Decoded(
        {name: array[order] for name, array in whole.arrays.items()},
        whole.present[order],
        {place: whole.errors[row] for place, row in enumerate(order.tolist()) if row in whole.errors},
    )
    _assert_equal(expected, shuffled)


def test_decode_of_slices_and_of_no_rows(case: Case) -> None:
    whole = case.decode(case.records)
    columns = [column.slice(2, 4) for column in case.sample.columns(case.records)]
    part = case.modality.decode(case.settings, case.fitted, columns, None)
    for name, array in whole.arrays.items():
        np.testing.assert_array_equal(array[2:6], part.arrays[name])
    empty = case.modality.decode(case.settings, case.fitted, [c.slice(0, 0) for c in columns], None)
    assert all(array.shape[0] == 0 for array in empty.arrays.values())


def test_decode_of_any_layout_of_bytes(case: Case) -> None:
    whole = case.decode(case.records)
    if case.sample.types != (pa.binary(),):
        return
    columns = case.sample.columns(case.records)
    for kind in (pa.large_binary(), getattr(pa, "binary_view", pa.large_binary)()):
        other = [column.cast(kind) for column in columns]
        _assert_equal(whole, case.modality.decode(case.settings, case.fitted, other, None))


def test_all_null_columns_of_no_type_are_missing(case: Case) -> None:
    columns = [pa.nulls(3) for _ in case.sample.types]
    decoded = case.modality.decode(case.settings, case.fitted, columns, None)
    assert not decoded.present.any()
    assert not decoded.errors


@pytest.mark.parametrize("train", [False, True])
def test_unpacked_values_decode_to_the_same(case: Case, train: bool) -> None:
    keys = _keys(len(case.records)) if train else None
    whole = case.decode(case.records, keys)
    columns = case.sample.columns(case.records)
    unpacked = case.modality.unpack(case.settings, case.fitted, columns)
    _assert_equal(whole, case.modality.decode(case.settings, case.fitted, unpacked, keys))
    assert [c.null_count for c in unpacked] == [c.null_count for c in columns]
    again = case.modality.unpack(case.settings, case.fitted, unpacked)
    assert [a.equals(b) for a, b in zip(again, unpacked, strict=True)] == [True] * len(columns)
    part = case.modality.unpack(case.settings, case.fitted, [column.slice(2, 4) for column in columns])
    assert [p.equals(u.slice(2, 4)) for p, u in zip(part, unpacked, strict=True)] == [True] * len(columns)
    for kind in columns:  # no rows at all
        assert (
            len(case.modality.unpack(case.settings, case.fitted, [kind.slice(0, 0)] * len(columns))[0]) == 0
        )


def test_what_stands_in_unpacked_media_is_refused_from_outside(case: Case) -> None:
    if not case.modality.is_media:
        return
    column = case.modality.unpack(case.settings, case.fitted, case.sample.columns(case.sample.good))[0]
    changed = [v for v, (good,) in zip(column.to_pylist(), case.sample.good, strict=True) if v != good]
    assert changed
    for value in changed:
        with pytest.raises(DecodeError) as caught:
            case.modality.check([value])
        assert caught.value.reason == "media_unrecognised"
    assert case.modality.infer("c", pa.array(changed)) == 0


def test_a_damaged_unpacked_value_is_an_error_of_its_row(case: Case) -> None:
    if not case.modality.is_media:
        return
    values = case.modality.unpack(case.settings, case.fitted, case.sample.columns(case.sample.good))[
        0
    ].to_pylist()
    for value in values:
        for broken in (value[:-1], value[:9], value[:20] + bytes(12) + value[32:], value + b"x"):
            decoded = case.modality.decode(case.settings, case.fitted, [pa.array([broken])], None)
            assert decoded.present[0] != (0 in decoded.errors)


def test_measures_are_figures_of_each_row_alone(case: Case) -> None:
    decoded = case.decode(case.records)
    whole = case.modality.measures(case.settings, case.fitted, decoded.arrays)
    assert whole
    for name, values in whole.items():
        assert values.dtype == np.float32 and values.shape == (len(case.records),), name
        assert not np.isinf(values).any(), name
        assert np.isfinite(values[decoded.present]).any(), name
    for part in (slice(2, 5), slice(0, 0)):
        arrays = {name: array[part] for name, array in decoded.arrays.items()}
        found = case.modality.measures(case.settings, case.fitted, arrays)
        assert list(found) == list(whole)
        for name, values in found.items():
            np.testing.assert_allclose(values, whole[name][part], rtol=1e-4, atol=1e-3)


def test_measures_tell_records_apart(case: Case) -> None:
    decoded = case.decode(list(case.sample.good))
    found = case.modality.measures(case.settings, case.fitted, decoded.arrays)
    rows = np.stack([values[decoded.present] for values in found.values()])
    assert len({tuple(row) for row in rows.T.tolist()}) > 1


@pytest.mark.parametrize("train", [False, True])
def test_transform_is_a_pure_function_of_each_row(case: Case, train: bool) -> None:
    keys = _keys(len(case.records)) if train else None
    decoded = case.decode(case.records, keys)
    whole, again = case.transform(decoded, keys), case.transform(decoded, keys)
    for name, tensor in whole.items():
        assert torch.equal(tensor, again[name])
        assert tensor.isfinite().all()
    for row in range(len(case.records)):
        one = Decoded(
            {n: a[row : row + 1] for n, a in decoded.arrays.items()}, decoded.present[row : row + 1]
        )
        alone = case.transform(one, None if keys is None else keys[row : row + 1])
        for name, tensor in whole.items():
            torch.testing.assert_close(alone[name][0], tensor[row], rtol=1e-4, atol=1e-4)


def test_transform_leaves_its_input_alone_and_augments_by_key(case: Case) -> None:
    records = list(case.sample.good) * 4
    decoded = case.decode(records)
    before = {name: array.copy() for name, array in decoded.arrays.items()}
    first = case.transform(decoded, _keys(len(records)))
    second = case.transform(decoded, _keys(len(records), epoch=1))
    assert any(not torch.equal(tensor, second[name]) for name, tensor in first.items())
    for name, array in decoded.arrays.items():
        np.testing.assert_array_equal(array, before[name])


def test_encoder_gives_finite_features_and_gradients(case: Case) -> None:
    torch.manual_seed(0)
    encoder = case.modality.encoder(case.settings, case.fitted, 16)
    features = encoder(case.transform(case.decode(case.records)))
    assert features.shape == (len(case.records), 16)
    assert features.isfinite().all()
    features.square().sum().backward()
    gradients = [p.grad for p in encoder.parameters()]
    assert all(g is not None and g.isfinite().all() for g in gradients)


def test_render_is_html_without_foreign_markup(case: Case) -> None:
    hostile = {pa.binary(): b"<script>alert(1)</script>", pa.string(): "<script>alert(1)</script>"}
    records = [r for r, _ in case.sample.broken] + list(case.sample.good) + [case.sample.missing]
    records.append(tuple(hostile.get(kind) for kind in case.sample.types))
    for record in records:
        text = case.modality.render(record)
        assert text
        assert "<script" not in text


def test_infer_prefers_this_kind(case: Case) -> None:
    for column in case.sample.columns(list(case.sample.good) * 8):
        scores = {kind: load(kind).infer("c", column) for kind in available()}
        assert all(0 <= score <= 1 for score in scores.values())
        if len(case.sample.types) == 1:
            assert max(scores, key=lambda kind: scores[kind]) == case.modality.kind


def test_media_kinds_know_their_file_names(case: Case) -> None:
    assert case.modality.is_media == bool(case.modality.suffixes)
    for suffix in case.modality.suffixes:
        assert (
            case.modality.infer("c", pa.array([f"folder/A{suffix.upper()}", f"s3://b/c{suffix}?version=1"]))
            == 1
        )


def test_modality_and_errors_survive_pickling(case: Case) -> None:
    assert type(pickle.loads(pickle.dumps(case.modality))) is type(case.modality)
    for error in case.decode(case.records).errors.values():
        copy = pickle.loads(pickle.dumps(error))
        assert (copy.reason, copy.detail) == (error.reason, error.detail)
        assert error.detail
        assert error.__traceback__ is None


def test_unknown_kinds_are_refused() -> None:
    with pytest.raises(UsageError, match="known kinds: audio, image"):
        load("smell")
    with pytest.raises(UsageError, match="cannot be imported"):
        load("nowhere.lidar")


_AT_REST: dict[str, dict[str, float]] = {
    "text": {"token_dropout": 0},
    "image": {
        "crop_scale_min": 1, "crop_ratio_max": 1, "rotation_deg": 0, "scale": 0, "shift": 0, "colour_jitter": 0,
    },
}  # fmt: skip


@pytest.mark.parametrize("kind", sorted(_AT_REST))
def test_what_is_said_not_to_augment_sees_the_same_in_training(kind: str, samples: dict[str, Any]) -> None:
    modality, sample, values = load(kind), samples[kind], _AT_REST[kind]
    for name in values:
        assert modality.augments(
            modality.settings.model_validate({k: values[k] for k in values if k != name})
        )
    settings = modality.settings.model_validate(values)
    assert not modality.augments(settings)
    records = [*sample.good, sample.missing, *(record for record, _ in sample.broken)]
    fitted = modality.fit(settings, sample.table(sample.good))
    case = Case(modality, settings, fitted, sample, records, {})
    trained, evaluated = case.decode(records, _keys(len(records))), case.decode(records)
    _assert_equal(trained, evaluated)
    tensors = case.transform(trained, _keys(len(records)))
    for name, tensor in case.transform(evaluated).items():
        assert torch.equal(tensors[name], tensor)
