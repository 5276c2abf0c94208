"""A lease keeps a second writer away while the first renews it, and no longer."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from xmodal_dist import lease, storage
from xmodal_dist.errors import RunAgainError
from xmodal_dist.lease import Lease


class _Clock:
    """Time that passes when somebody sleeps, and what happens meanwhile."""

    def __init__(self, now_s: float = 0.0, skew_s: float = 0.0) -> None:
        self.now_s, self.skew_s = now_s, skew_s
        self.events: list[tuple[float, Callable[[], None]]] = []

    def time(self) -> float:
        return 1e9 + self.now_s + self.skew_s

    def monotonic(self) -> float:
        return self.now_s

    def sleep(self, seconds: float) -> None:
        end_s = self.now_s + seconds
        while self.events and self.events[0][0] <= end_s:
            self.now_s, event = self.events.pop(0)
            event()
        self.now_s = end_s


@pytest.fixture
def path(tmp_path: Path) -> str:
    return str(tmp_path / "_lease.json")


def test_one_holds_it_and_another_is_told_who_and_until_when(path: str) -> None:
    clock = _Clock()
    first, second = Lease(path, "a", 60, clock=clock), Lease(path, "b", 60, clock=clock)
    first.acquire()
    with pytest.raises(RunAgainError, match=r"a holds this output until 2001-09-09 01:47:40 UTC"):
        second.acquire()
    first.release()
    second.acquire()
    second.renew()


def test_a_writer_that_is_gone_is_replaced_when_its_lease_has_run_out(path: str) -> None:
    clock = _Clock()
    first, second = Lease(path, "a", 60, clock=clock), Lease(path, "b", 60, clock=clock)
    first.acquire()
    clock.sleep(59)
    second.acquire()
    with pytest.raises(RunAgainError, match="could not be renewed within 60 s"):
        first.renew()
    first.release()
    second.renew()
    assert storage.exists(path), "releasing a lost lease does not remove the other's record"


def test_of_two_that_take_it_at_once_one_has_it(path: str) -> None:
    clock = _Clock()
    first, second = Lease(path, "a", 60, clock=clock), Lease(path, "b", 60, clock=clock)

    def take_too() -> None:
        second._write()  # it read before the first wrote

    clock.events = [(0.5, take_too)]
    with pytest.raises(RunAgainError, match="b holds"):
        first.acquire()
    second.renew()


@settings(max_examples=40, deadline=None)
@given(skew_s=st.floats(-1e6, 1e6), ttl_s=st.floats(10, 600))
def test_a_wrong_clock_does_not_let_a_second_in_while_the_first_renews(
    tmp_path_factory: pytest.TempPathFactory, skew_s: float, ttl_s: float
) -> None:
    path = str(tmp_path_factory.mktemp("skew") / "_lease.json")
    clock, wrong = _Clock(), _Clock(skew_s=skew_s)
    first = Lease(path, "a", ttl_s, clock=clock)
    first.acquire()

    def renew() -> None:
        clock.now_s = wrong.now_s
        first.renew()

    wrong.now_s = clock.now_s
    wrong.events = [(wrong.now_s + ttl_s * n / 3, renew) for n in range(1, 10)]
    with pytest.raises(RunAgainError, match="a holds"):
        Lease(path, "b", ttl_s, clock=wrong).acquire()
    first.renew()


def test_a_damaged_record_is_watched_and_then_replaced(path: str) -> None:
    storage.write_bytes(path, b'{"owner": "a", "unt')
    clock = _Clock()
    writer = Lease(path, "b", 60, clock=clock)
    writer.acquire()
    assert clock.now_s >= 30
    writer.renew()


def test_one_whose_record_was_taken_or_removed_is_told_at_its_next_renewal(path: str) -> None:
    clock = _Clock()
    writer = Lease(path, "a", 60, clock=clock)
    writer.acquire()
    storage.delete(path)
    with pytest.raises(RunAgainError, match="somebody removed"):
        writer.renew()


def test_it_is_renewed_while_held_and_gone_afterwards(path: str) -> None:
    with lease.hold(path, ttl_s=0.6, settle_s=0.01):
        time.sleep(1.0)
        with pytest.raises(RunAgainError, match="process .* holds"), lease.hold(path, settle_s=0.01):
            raise AssertionError("two writers")
    assert not Path(path).exists()


def test_whoever_lost_it_is_told_at_the_end_and_leaves_it_to_the_other(path: str) -> None:
    thief = Lease(path, "thief", 60)
    with pytest.raises(RunAgainError, match="thief holds"), lease.hold(path, ttl_s=0.6, settle_s=0.01):
        thief._write()
        time.sleep(0.5)
    thief.renew()
