"""A record that kills its process: it is found and rejected, and every other record of its unit is scored."""

from __future__ import annotations

import dataclasses
import json
import os
import subprocess
import sys
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.score.bundles import save_tiny_bundle, train_records
from xmodal_dist.errors import CheckpointError
from xmodal_dist.score import ledger
from xmodal_dist.score.isolation import IsolatedScorer
from xmodal_dist.score.job import prepare
from xmodal_dist.score.settings import ScoreSettings
from xmodal_dist.score.source import read_unit
from xmodal_dist.score.verify import verify_scoring

ROWS = 60
POISON = 37

# Every process of the run imports this by itself, children of workers included.
SITECUSTOMIZE = """
import importlib.util, os, signal, sys

class Finder:
    def find_spec(self, name, path=None, target=None):
        if name != "xmodal_dist.score.decoder":
            return None
        sys.meta_path.remove(self)
        spec = importlib.util.find_spec(name)
        execute = spec.loader.exec_module

        def exec_module(module):
            execute(module)
            decode = module.Decoder.decode

            def decode_or_die(self, unit, batch):
                if "poison" in batch.rows.column("id").to_pylist():
                    os.kill(os.getpid(), signal.SIGKILL)
                return decode(self, unit, batch)

            module.Decoder.decode = decode_or_die

        spec.loader.exec_module = exec_module
        return spec

sys.meta_path.insert(0, Finder())
"""

COMMAND = """
import sys
from xmodal_dist import runtime
from xmodal_dist.score.job import score
from xmodal_dist.score.settings import ScoreSettings
settings = ScoreSettings(unit_rows=30, batch_rows=8, max_bad_fraction=0.1, placement=sys.argv[4])
with runtime.connect(num_cpus=1):
    score(sys.argv[1], [sys.argv[2]], sys.argv[3], settings, num_workers=1)
"""


@pytest.mark.slow
@pytest.mark.parametrize("placement", ["local", "ray"])
def test_a_record_that_kills_its_process_is_found_and_the_rest_is_scored(
    placement: str, tiny_dataset: str, tmp_path: Path
) -> None:
    save_tiny_bundle(tiny_dataset, tmp_path / "bundle")
    records = train_records(tiny_dataset).slice(0, ROWS)
    ids = ["poison" if row == POISON else str(row) for row in range(ROWS)]
    records = records.set_column(records.column_names.index("id"), "id", pa.array(ids))
    pq.write_table(records, tmp_path / "in.parquet", row_group_size=30)
    (tmp_path / "hooks").mkdir()
    (tmp_path / "hooks" / "sitecustomize.py").write_text(SITECUSTOMIZE)
    path = os.pathsep.join([str(tmp_path / "hooks"), os.environ.get("PYTHONPATH", "")])
    environment = {k: v for k, v in os.environ.items() if not k.startswith("RAY_ADDRESS")} | {
        "PYTHONPATH": path
    }
    output = str(tmp_path / "out")
    bundle, source = str(tmp_path / "bundle"), str(tmp_path / "in.parquet")
    subprocess.run(
        [sys.executable, "-c", COMMAND, bundle, source, output, placement],
        env=environment,
        check=True,
        timeout=300,
    )
    done = ledger.load_manifest(output)
    assert done is not None
    assert (done.rows_in, done.rows_ok, done.quarantine) == (ROWS, ROWS - 1, {"decoder_crashed": 1})
    files = ledger.load_files(output, done).to_pylist()
    (quarantine,) = (file["path"] for file in files if file["role"] == "quarantine")
    (rejected,) = pq.read_table(Path(output, quarantine)).to_pylist()
    assert (rejected["id"], rejected["row"]) == ("poison", POISON)
    assert ledger.read_predictions(output).column("id").to_pylist() == [i for i in ids if i != "poison"]
    assert verify_scoring(output) == (0, 0, [])
    (log,) = Path(output, "_events").iterdir()
    events = [json.loads(line) for line in log.read_text().splitlines()]
    (safe,) = (e for e in events if e["event"] == "safe_mode")
    # Where tasks decode, the worker lives on, and no attempt at the unit dies.
    assert (safe["unit"], safe["attempts"] > 0) == (1, placement == "local")


def test_a_bundle_replaced_meanwhile_is_no_fault_of_the_records(tiny_dataset: str, tmp_path: Path) -> None:
    bundle = save_tiny_bundle(tiny_dataset, tmp_path / "bundle")
    run = prepare(bundle, [tiny_dataset], str(tmp_path / "out"), ScoreSettings())
    unit = run.plan.unit(0)
    (rows,) = read_unit(unit, run.job.columns, unit.rows)
    with IsolatedScorer(run.job, unit) as scorer:
        (whole,) = scorer.score(rows, unit.start)
    assert (whole.table.num_rows, whole.rejected) == (unit.rows, [])
    replaced = dataclasses.replace(run.job, fingerprint="that of another")
    with (
        IsolatedScorer(replaced, unit) as scorer,
        pytest.raises(CheckpointError, match="was replaced while the run was going on"),
    ):
        scorer.score(rows, unit.start)
