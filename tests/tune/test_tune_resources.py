"""How many trials a cluster holds, and what is said where it holds none."""

from __future__ import annotations

import pytest

from xmodal_dist.errors import UsageError
from xmodal_dist.pipeline.stream import PipelineSettings
from xmodal_dist.tune.resources import TOKEN, plan_needs
from xmodal_dist.tune.settings import SearchSettings

LOCAL, RAY = PipelineSettings(placement="local"), PipelineSettings(placement="ray")
LAPTOP = [{"CPU": 2.0}]
GPUS = [{"CPU": 16.0, "GPU": 4.0}, {"CPU": 16.0, "GPU": 4.0}]


@pytest.mark.parametrize(
    ("settings", "pipeline", "workers", "nodes", "concurrent"),
    [
        ({}, LOCAL, 1, LAPTOP, 2),
        ({}, LOCAL, 2, LAPTOP, 1),
        ({}, RAY, 1, LAPTOP, 1),
        ({"cpus_per_worker": 0.5}, LOCAL, 1, LAPTOP, 4),
        ({"max_concurrent": 1}, LOCAL, 1, LAPTOP, 1),
        ({}, LOCAL, 1, GPUS, 8),
        ({"gpus_per_worker": 0.25}, LOCAL, 1, GPUS, 32),
        ({"cpus_per_worker": 8}, LOCAL, 1, GPUS, 4),
        ({}, LOCAL, 4, GPUS, 2),
        ({"cpus_per_worker": 3}, RAY, 2, GPUS, 4),
    ],
)
def test_trials_at_once(
    settings: dict[str, float],
    pipeline: PipelineSettings,
    workers: int,
    nodes: list[dict[str, float]],
    concurrent: int,
) -> None:
    needs = plan_needs(SearchSettings.model_validate(settings), pipeline, workers, nodes)
    assert needs.concurrent == concurrent
    for resource in ("CPU", "GPU"):
        held = concurrent * workers * (needs.cpus + needs.reader_cpus if resource == "CPU" else needs.gpus)
        assert held <= sum(node.get(resource, 0.0) for node in nodes)
    # One more than there may be has no share of the token left; those that there may be have, and a little remains.
    shares = [bundle[TOKEN] for bundle in needs.bundles if TOKEN in bundle]
    assert all(concurrent * share < 1 < (concurrent + 1) * share for share in shares)
    assert bool(shares) == (workers > 1 or "max_concurrent" in settings)


@pytest.mark.parametrize(
    ("settings", "pipeline", "workers", "nodes", "said"),
    [
        ({}, LOCAL, 3, LAPTOP, "3 x 1 CPU, but the cluster has 2 CPU"),
        ({}, RAY, 2, LAPTOP, "1 for its readers"),
        ({"gpus_per_worker": 1}, LOCAL, 1, LAPTOP, "1 x 1 GPU, but the cluster has 0 GPU"),
        ({"cpus_per_worker": 17}, LOCAL, 1, GPUS, "17 CPU"),
        ({"gpus_per_worker": 0.5}, LOCAL, 2, GPUS, "cannot share a GPU"),
    ],
)
def test_what_cannot_be_placed_names_the_resource(
    settings: dict[str, float],
    pipeline: PipelineSettings,
    workers: int,
    nodes: list[dict[str, float]],
    said: str,
) -> None:
    with pytest.raises(UsageError, match="cannot|trial") as caught:
        plan_needs(SearchSettings.model_validate(settings), pipeline, workers, nodes)
    assert said in str(caught.value)
