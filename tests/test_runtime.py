from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from xmodal_dist.errors import UsageError
from xmodal_dist.runtime import plan_placement


@given(cpus=st.integers(1, 512), num_workers=st.integers(1, 64))
def test_workers_and_readers_always_share_what_is_there(cpus: int, num_workers: int) -> None:
    if num_workers > cpus * 50:
        return
    placement = plan_placement(cpus, num_workers)
    assert 0 < placement.worker_cpus <= 1
    assert placement.reader_cpus > 0, "readers would starve and training would wait for ever"
    assert (placement.worker_cpus + placement.reader_cpus) * num_workers <= cpus + 1e-9


def test_two_workers_on_two_cores_take_half_of_them() -> None:
    assert plan_placement(2, 2) == (0.5, 0.5)
    assert plan_placement(16, 4) == (1.0, 3.0)


def test_too_many_workers_are_refused() -> None:
    with pytest.raises(UsageError, match="200 workers cannot share 2 CPUs"):
        plan_placement(2, 200)
