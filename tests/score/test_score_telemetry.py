"""Metrics of scoring and training, read where Prometheus reads them: at the node's own endpoint."""

from __future__ import annotations

import re
import time
import urllib.request

import pytest

from xmodal_dist.dataset.quarantine import REASON_CODES
from xmodal_dist.score.formats import CONFIDENCE_BINS, Footer, Part, Receipt

_TIMEOUT_S = 60
_PREFIX = "xmodal_test_"
"""Of this test alone: workers of other tests have told the same node of theirs."""
_SAMPLE = re.compile(rf"^ray_{_PREFIX}(\w+?)(?:_total)?\{{(.*)\}} (\S+)$")
_OURS = {"reason", "outcome", "stage"}


def _receipt(scored: bool, reasons: dict[str, int]) -> Receipt:
    bad = sum(reasons.values())
    footer = Footer(
        spec="s",
        unit=1,
        attempt="a",
        source="s3://bucket/secret.parquet",
        start=0,
        stop=100,
        rows_in=100,
        rows_ok=100 - bad,
        rows_bad=bad,
        ids="0",
        labels={},
        confidence=(0,) * CONFIDENCE_BINS,
        present={},
        reasons=reasons,
    )
    part = Part(path="data/part-00001.parquet", sha256="0", bytes=1, footer=footer)
    return Receipt(part=part, scored=scored, isolated=scored, seconds={"decode": 2.0, "predict": 0.0})


def _samples(port: int) -> dict[tuple[str, ...], float]:
    """Name and our labels -> value, over all workers."""
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=10) as reply:
        text = reply.read().decode()
    found: dict[tuple[str, ...], float] = {}
    for line in text.splitlines():
        if match := _SAMPLE.match(line):
            labels = dict(re.findall(r'(\w+)="([^"]*)"', match[2]))
            key = (match[1], *(labels[name] for name in sorted(labels.keys() & _OURS)))
            found[key] = found.get(key, 0.0) + float(match[3])
    return found


@pytest.mark.slow
def test_the_metrics_endpoint_shows_what_workers_and_drivers_count(ray_session: None) -> None:
    import ray

    @ray.remote(num_cpus=0)
    class Actor:
        def __init__(self) -> None:
            from xmodal_dist.score import telemetry

            vars(telemetry)["_PREFIX"] = _PREFIX
            self.worker, self.driver = telemetry.WorkerTelemetry(), telemetry.DriverTelemetry()
            from xmodal_dist.train import telemetry as training

            vars(training)["_PREFIX"] = f"{_PREFIX}train_"
            self.train = training.TrainTelemetry()

        def work(self, first: Receipt, second: Receipt, lost: Receipt) -> None:
            self.worker.unit(first, bytes_read=4096)
            self.worker.unit(second, died=2)
            self.worker.unit(lost)
            self.driver.show(workers=2, units_left=7, rows_per_s=12.5)
            self.train.start(workers=3, epochs=9, epoch=1)
            self.train.step(step=40, loss=0.5, learning_rate=0.001, records_per_s=80.0)
            self.train.epoch(epoch=2, records=640, wait_for_data_share=0.25, val_loss=None)

    actor = Actor.remote()  # type: ignore[attr-defined]
    receipts = [
        _receipt(True, {"media_truncated": 3, "text_not_utf8": 2}),
        _receipt(True, {}),
        _receipt(False, {"media_truncated": 9}),
    ]
    ray.get(actor.work.remote(*receipts))
    port = ray.nodes()[0]["MetricsExportPort"]
    expected = {
        ("rows_in",): 200,
        ("rows_ok",): 195,
        ("rows_quarantined", "media_truncated"): 3,
        ("rows_quarantined", "text_not_utf8"): 2,
        ("units", "committed"): 2,
        ("units", "lost_race"): 1,
        ("units_retried",): 1,
        ("units_isolated",): 2,
        ("bytes_read",): 4096,
        ("stage_seconds", "decode"): 6.0,
        ("unit_seconds_count", "decode"): 3,
        ("workers",): 2,
        ("units_left",): 7,
        ("rows_per_second",): 12.5,
        ("train_starts",): 1,
        ("train_records",): 640,
        ("train_workers",): 3,
        ("train_epochs_done",): 2,
        ("train_steps_done",): 40,
        ("train_loss",): 0.5,
        ("train_records_per_second",): 80.0,
        ("train_wait_for_data_share",): 0.25,
    }
    deadline = time.monotonic() + _TIMEOUT_S
    while not expected.items() <= (found := _samples(port)).items():
        assert time.monotonic() < deadline, found
        time.sleep(1)
    ray.kill(actor)
    labels = {label for _, *values in found for label in values}
    assert labels <= REASON_CODES | {"committed", "lost_race", "decode", "predict"}
