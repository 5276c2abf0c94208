"""A bundle that knows the tiny dataset, trained once."""

from __future__ import annotations

import pytest

from tests.explain.models import trained_bundle
from xmodal_dist.bundle import Bundle


@pytest.fixture(scope="session")
def trained(tiny_dataset: str) -> Bundle:
    return trained_bundle(tiny_dataset)
