"""Random numbers as pure functions of a key: equal on every path, uniform, independent."""

from __future__ import annotations

import numpy as np
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from xmodal_dist.randomness import derive_keys, uniform, uniform_like


def _keys(
    count: int, seed: int = 0, epoch: int = 0, shard: int = 0
) -> np.ndarray[tuple[int], np.dtype[np.uint64]]:
    return derive_keys(seed, epoch, np.full(count, shard, np.int64), np.arange(count))


@settings(max_examples=50, deadline=None)
@given(st.integers(0, 2**64 - 1), st.integers(0, 1000), st.integers(1, 20))
def test_host_and_device_give_the_same_numbers(key: int, stream: int, count: int) -> None:
    keys = np.array([key, key ^ 1], np.uint64)
    tensor = uniform_like(torch.from_numpy(keys.view(np.int64)), stream, count).numpy()
    array = uniform(keys, stream, count)
    assert tensor.shape == array.shape == (2, count)
    assert np.abs(tensor - array).max() < 2**-23
    assert (array >= 0).all() and (array < 1).all() and (tensor < 1).all()


def test_a_number_depends_on_key_stream_and_position_only() -> None:
    keys = _keys(100)
    order = np.random.default_rng(0).permutation(100)
    np.testing.assert_array_equal(uniform(keys, 3, 5)[order], uniform(keys[order], 3, 5))
    np.testing.assert_array_equal(uniform(keys, 3, 5), uniform(keys, 3, 9)[:, :5])
    assert not np.isin(uniform(keys, 3, 5), uniform(keys, 4, 5)).any()


def test_keys_differ_by_seed_epoch_shard_and_row() -> None:
    keys = [_keys(500, s, e, h) for s in range(2) for e in range(2) for h in range(3)]
    assert len(np.unique(np.concatenate(keys))) == 12 * 500
    np.testing.assert_array_equal(_keys(5, 1, 2, 3), _keys(9, 1, 2, 3)[:5])


def test_numbers_are_uniform_and_uncorrelated() -> None:
    numbers = uniform(_keys(20_000), 1, 4)
    counts = np.stack([np.histogram(column, 20, (0, 1))[0] for column in numbers.T])
    assert np.abs(counts / 1000 - 1).max() < 0.15
    correlation = np.corrcoef(np.concatenate([numbers, uniform(_keys(20_000), 2, 4)], axis=1).T)
    assert np.abs(correlation - np.eye(8)).max() < 0.03
