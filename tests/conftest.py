"""What several rooms' tests share: the development data, and one Ray for the whole session."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parent.parent


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
