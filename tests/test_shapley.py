"""Shapley values: the axioms that define them, agreement with their definition, and rows that stand alone."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from xmodal_dist.errors import UsageError
from xmodal_dist.shapley import MAX_FIELDS, coalition_masks, coalition_values, shapley_values

games = st.builds(
    lambda players, rows, seed: np.random.default_rng(seed).random((rows, 1 << players), dtype=np.float32),
    st.integers(1, 6),
    st.integers(1, 5),
    st.integers(0, 10_000),
)


def _by_definition(values: np.ndarray) -> np.ndarray:
    """Mean gain over all orders of joining."""
    players = values.shape[1].bit_length() - 1
    gains = np.zeros((len(values), players))
    orders = list(itertools.permutations(range(players)))
    for order in orders:
        there = 0
        for player in order:
            gains[:, player] += values[:, there | 1 << player].astype(float) - values[:, there]
            there |= 1 << player
    return gains / len(orders)


@given(games)
def test_they_are_the_mean_gain_over_all_orders(values: np.ndarray) -> None:
    assert np.allclose(shapley_values(values), _by_definition(values), atol=1e-12)


@given(games)
def test_efficiency_a_row_adds_up_to_all_less_none(values: np.ndarray) -> None:
    total = values[:, -1].astype(float) - values[:, 0]
    assert np.allclose(shapley_values(values).sum(axis=1), total, atol=1e-12)


@given(games, st.data())
def test_null_player_who_changes_nothing_gets_exactly_nothing(
    values: np.ndarray, data: st.DataObject
) -> None:
    player = data.draw(st.integers(0, values.shape[1].bit_length() - 2))
    idle = values[:, np.arange(values.shape[1]) & ~(1 << player)]
    assert (shapley_values(idle)[:, player] == 0).all()


@given(games, st.data())
def test_symmetry_players_who_change_the_same_get_the_same(values: np.ndarray, data: st.DataObject) -> None:
    players = values.shape[1].bit_length() - 1
    one, other = data.draw(st.tuples(st.integers(0, players - 1), st.integers(0, players - 1)))
    names = np.arange(values.shape[1])
    bits = (names >> one & 1, names >> other & 1)
    swapped = names & ~(1 << one) & ~(1 << other) | bits[1] << one | bits[0] << other
    assert np.allclose(
        shapley_values(values)[:, one], shapley_values(values[:, swapped])[:, other], atol=1e-12
    )
    found = shapley_values(values + values[:, swapped])
    assert np.allclose(found[:, one], found[:, other], atol=1e-6)


@given(games)
def test_a_row_is_the_same_to_the_bit_whatever_stands_beside_it(values: np.ndarray) -> None:
    together = shapley_values(values)
    for row in range(len(values)):
        assert (shapley_values(values[row : row + 1])[0] == together[row]).all()


def test_no_power_of_two_is_refused() -> None:
    with pytest.raises(ValueError, match="5 coalitions"):
        shapley_values(np.zeros((1, 5)))


def test_coalitions_are_all_masks_and_too_many_fields_are_refused() -> None:
    masks = list(coalition_masks(3).values())
    assert masks[0] == [False] * 3 and masks[-1] == [True] * 3 and masks[5] == [True, False, True]
    assert len({tuple(mask) for mask in masks}) == 8
    with pytest.raises(UsageError, match="the model has 11 fields"):
        coalition_masks(MAX_FIELDS + 1)


def test_values_are_those_of_the_first_most_probable_class_in_the_order_of_coalitions() -> None:
    names = list(coalition_masks(2))
    shown = {name: torch.tensor([[0.0, place / 4, 1 - place / 4]]) for place, name in enumerate(names)}
    tied = {"": torch.tensor([[0.2, 0.4, 0.4]])}
    found = coalition_values(tied | dict(reversed(shown.items())))
    assert found.tolist() == [[0.0, 0.25, 0.5, 0.75]]
