"""Who scores and who decodes: the plan for every cluster, and units in several lanes of one worker."""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tests.score.bundles import save_tiny_bundle, train_records
from xmodal_dist.score import ledger
from xmodal_dist.score.job import prepare
from xmodal_dist.score.pool import Cluster, plan_pool
from xmodal_dist.score.predictor import Predictor
from xmodal_dist.score.settings import ScoreSettings
from xmodal_dist.score.tally import Tally
from xmodal_dist.score.verify import verify_scoring
from xmodal_dist.score.worker import UnitScorer

clusters = st.builds(Cluster, cpus=st.integers(1, 512).map(float), gpus=st.integers(0, 64))
all_settings = st.builds(
    ScoreSettings,
    placement=st.sampled_from(["auto", "local", "ray"]),
    threads=st.none() | st.integers(1, 32),
)


@given(all_settings, clusters, st.none() | st.integers(1, 128), st.integers(1, 10_000), st.booleans())
def test_a_pool_fits_its_cluster(
    settings: ScoreSettings, cluster: Cluster, asked: int | None, units: int, is_remote: bool
) -> None:
    if asked is not None and asked > cluster.cpus * 50:
        return
    if asked is None and cluster.gpus > cluster.cpus * 50:
        return
    pool = plan_pool(settings, cluster, asked, units, is_remote=is_remote)
    assert 1 <= pool.workers <= units
    assert pool.lanes >= 1 and (pool.lanes - 1) * pool.workers < units, "no lane without a unit"
    assert pool.workers * pool.worker_gpus <= cluster.gpus + 1e-9
    # Workers never take all CPUs, or their decoders would wait for ever.
    assert pool.workers * pool.worker_cpus + pool.decoder_cpus <= cluster.cpus + 1e-9
    if pool.placement == "ray" and settings.threads is None:
        taken = pool.worker_cpus + pool.decoders * pool.decoder_cpus
        assert pool.workers * taken <= cluster.cpus * (1 + 1e-9)


@pytest.mark.parametrize(
    ("cluster", "is_remote", "expected"),
    [
        (Cluster(2, 0), False, (2, 1, "local", 1)),  # a laptop: a core a worker, one unit at a time
        (Cluster(2, 0), True, (2, 2, "local", 1)),  # the next unit while the store answers
        (Cluster(16, 1), False, (1, 17, "ray", 15)),  # a GPU box
        (Cluster(144, 2), False, (2, 73, "ray", 71)),  # or one beside nodes that have CPUs alone
    ],
)
def test_the_usual_clusters(cluster: Cluster, is_remote: bool, expected: tuple[int, int, str, int]) -> None:
    pool = plan_pool(ScoreSettings(), cluster, None, 10_000, is_remote=is_remote)
    assert (pool.workers, pool.lanes, pool.placement, pool.decoders) == expected


def test_units_in_several_lanes_come_out_as_one_by_one(tiny_dataset: str, tmp_path: Path) -> None:
    bundle = save_tiny_bundle(tiny_dataset, tmp_path / "bundle")
    records = train_records(tiny_dataset)
    pq.write_table(records, tmp_path / "in.parquet", row_group_size=10)
    settings = ScoreSettings(unit_rows=10, probabilities=True, batch_rows=4)
    found = {}
    for lanes in (1, 4):
        output = str(tmp_path / f"out-{lanes}")
        run = prepare(bundle, [str(tmp_path / "in.parquet")], output, settings)
        ledger.open_run(output, run.identity, run.plan)
        scorer = UnitScorer(run.job, Predictor(run.model, torch.device("cpu"), settings))
        began_cpu_s = time.process_time()
        with ThreadPoolExecutor(lanes) as pool:
            receipts = list(pool.map(scorer.score, run.plan))
        spent_s = time.process_time() - began_cpu_s
        assert sum(r.cpu_s for r in receipts) == pytest.approx(spent_s, rel=0.2), "each second told once"
        tally = Tally(run.plan, run.identity.digest)
        for receipt in receipts:
            tally.add(receipt.part)
        ledger.finalise(output, run.identity, tally, run.model.classes, run.job.schema)
        assert verify_scoring(output) == (0, 0, [])
        found[lanes] = ledger.read_predictions(output)
    assert found[1].num_rows == len(records)
    assert found[4].equals(found[1])
