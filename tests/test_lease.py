"""A lease keeps a second writer away while the first renews it, and no longer."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from xmodal_dist import lease
from xmodal_dist.errors import RunAgainError


def test_one_holds_it_and_another_is_told_for_how_long(tmp_path: Path) -> None:
    path = str(tmp_path / "_lease.json")
    lease.take(path, "a", 60, now_s=1000)
    lease.take(path, "a", 60, now_s=1030)
    with pytest.raises(RunAgainError, match=r"another writer \(a\) holds the output for 50 s more"):
        lease.take(path, "b", 60, now_s=1040)
    lease.take(path, "b", 60, now_s=1091)
    with pytest.raises(RunAgainError, match="another writer"):
        lease.take(path, "a", 60, now_s=1100)


def test_it_is_renewed_while_held_and_gone_afterwards(tmp_path: Path) -> None:
    path = str(tmp_path / "_lease.json")
    with lease.hold(path, length_s=0.3, settle_s=0.01):
        time.sleep(0.8)
        with pytest.raises(RunAgainError, match="another writer"), lease.hold(path, settle_s=0.01):
            raise AssertionError("two writers")
    assert not Path(path).exists()


def test_whoever_lost_it_is_told_at_the_end(tmp_path: Path) -> None:
    path = str(tmp_path / "_lease.json")
    with pytest.raises(RunAgainError, match="another writer"), lease.hold(path, length_s=0.3, settle_s=0.01):
        lease.take(path, "thief", 60, now_s=time.time() + 60)
        time.sleep(0.3)
