from __future__ import annotations

import importlib
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from benchmarks.__main__ import BENCHMARKS, main
from benchmarks.data import ImageData, digest_folder, generate_images, once, repeat_images, tar_images
from benchmarks.harness import Figure, Measurement, Options, Run, Side, compare, require, run_rounds, run_side

SIDE = """
import subprocess, sys, time
from benchmarks.protocol import finish, measured, request

def burn(seconds):
    end = time.process_time() + seconds
    while time.process_time() < end:
        pass

asked = request()
burn(0.3)
held = None
with measured("own"):
    burn(0.4)
with measured("child"):
    code = "import time\\nwhile time.process_time() < 0.6: pass\\ntime.sleep(1)"
    child = subprocess.Popen([sys.executable, "-c", code])
    time.sleep(asked["wait_s"])
    while child.poll() is None:
        time.sleep(0.1)
with measured("memory"):
    held = bytearray(b"x") * (64 << 20)
    time.sleep(0.3)
print("noise on standard output")
finish({"asked": asked})
"""


@pytest.fixture
def side(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Side:
    (tmp_path / "example_side.py").write_text(SIDE)
    from benchmarks import harness

    path = f"{harness.REPOSITORY}:{tmp_path}"
    monkeypatch.setitem(harness._ENVIRONMENT, "PYTHONPATH", path)
    return Side("example", "example_side", {"wait_s": 0.2})


@pytest.fixture
def options(tmp_path: Path) -> Options:
    return Options(tmp_path / "cache", Path(sys.executable), pairs=2, timeout_s=60)


@pytest.mark.slow
def test_only_measured_regions_count_and_children_count_too(side: Side, options: Options) -> None:
    run = run_side(side, options)
    assert run.result == {"asked": {"wait_s": 0.2}}
    assert run.versions["python"] == sys.version.split()[0]
    own, child, memory = (run.regions[name] for name in ("own", "child", "memory"))
    assert own.cpu_s == pytest.approx(0.4, abs=0.08)
    # The child's last reading is at most one sample older than its end.
    assert 0.5 < child.cpu_s < 1.0
    assert memory.peak_memory_bytes - own.peak_memory_bytes > 60 << 20
    assert memory.wall_s >= 0.3


def test_a_side_that_fails_says_why(options: Options) -> None:
    with pytest.raises(RuntimeError, match="No module named"):
        run_side(Side("broken", "benchmarks.no_such_side", {}), options)


def test_rounds_run_every_side_and_alternate(options: Options, monkeypatch: pytest.MonkeyPatch) -> None:
    order = []
    nothing = Run({}, {}, {})

    def note(side: Side, _: Options) -> Run:
        order.append(side.name)
        return nothing

    monkeypatch.setattr("benchmarks.harness.run_side", note)
    runs = run_rounds([Side("a", "", {}), Side("b", "", {})], options)
    assert order == ["a", "b", "b", "a"]
    assert {name: len(r) for name, r in runs.items()} == {"a": 2, "b": 2}


def _runs(*cpu_s: float) -> list[Run]:
    return [Run({"x": Measurement(c, c / 2, int(c * 100))}, {}, {"python": "3"}) for c in cpu_s]


def test_the_figure_is_the_median_of_ratios_within_rounds() -> None:
    figure = compare("f", (_runs(1.0, 2.0, 4.0), "x"), (_runs(3.0, 4.0, 40.0), "x"), 1000, 2.5, {"note": 1})
    assert figure.ratio == 3.0
    assert figure.cpu_ms_per_record == 2.0 and figure.peer_cpu_ms_per_record == 4.0
    assert figure.met is True and figure.n == {"records": 1000, "pairs": 3}
    line = figure.to_json()
    assert line.startswith("{") and "\n" not in line
    told = json.loads(line)
    assert {"name", "ratio", "goal", "cpu_ms_per_record", "wall_s", "peak_memory_bytes", "n", "load"} <= set(
        told
    )
    assert told["notes"]["max"] == 10.0 and told["notes"]["note"] == 1 and told["versions"]


@pytest.mark.parametrize(("better", "met"), [("higher", False), ("lower", True)])
def test_goals_are_floors_or_ceilings(better: str, met: bool) -> None:
    figure = Figure("f", 2.0, 3.0, 1.0, None, 1.0, 1, {}, {}, better=better)  # type: ignore[arg-type]
    assert figure.met is met


def test_require_stops() -> None:
    require(True, "fine")
    with pytest.raises(AssertionError, match="differ"):
        require(False, "they differ")


def test_data_is_made_once_and_again_when_damaged(tmp_path: Path) -> None:
    images = generate_images(tmp_path, 8, (40, 30))
    assert generate_images(tmp_path, 8, (40, 30)) == images
    victim = Path(images.shards[0])
    victim.write_bytes(victim.read_bytes()[:-1])
    assert generate_images(tmp_path, 8, (40, 30)).digest == images.digest
    assert digest_folder(images.folder) == images.digest


def test_a_changed_recipe_makes_data_anew(tmp_path: Path) -> None:
    made = []

    def make(target: Path) -> None:
        made.append(1)
        (target / "file").write_text(str(len(made)))

    once(tmp_path / "d", {"version": 1}, make)
    once(tmp_path / "d", {"version": 1}, make)
    once(tmp_path / "d", {"version": 2}, make)
    assert len(made) == 2


def test_derived_data_holds_the_same_bytes(tmp_path: Path) -> None:
    import io
    import tarfile

    import pyarrow.parquet as pq
    from PIL import Image

    images = generate_images(tmp_path, 16, (40, 30))
    table = {row["id"]: row for path in images.shards for row in pq.read_table(path).to_pylist()}
    assert len(table) == 16
    assert Image.open(io.BytesIO(table["r0000003"]["image"])).size == (40, 30)
    found = {}
    for path in tar_images(tmp_path, images):
        with tarfile.open(path) as tar:
            found |= {m.name: tar.extractfile(m).read() for m in tar if m.name.endswith(".jpg")}  # type: ignore[union-attr]
    assert found == {f"{name}.jpg": row["image"] for name, row in table.items()}
    three: ImageData = repeat_images(tmp_path, images, 3)
    ids = [i for path in three.shards for i in pq.read_table(path)["id"].to_pylist()]
    assert three.rows == len(set(ids)) == 48


def test_peers_import_nothing_of_this_project() -> None:
    peers = sorted((Path(__file__).parents[2] / "benchmarks" / "peers").glob("*.py"))
    assert len(peers) > 4
    for path in peers:
        text = path.read_text()
        assert "xmodal_dist" not in text, path
        inside = {line.split()[1] for line in text.splitlines() if line.startswith("from benchmarks")}
        assert all(name == "benchmarks.protocol" or ".peers." in name for name in inside), path


def test_the_protocol_is_standard_library_only() -> None:
    code = "import sys, benchmarks.protocol; print([m for m in ('numpy', 'pyarrow', 'torch') if m in sys.modules])"
    ran = subprocess.run(
        [sys.executable, "-S", "-c", code], capture_output=True, text=True, cwd=Path(__file__).parents[2]
    )
    assert ran.stdout.strip() == "[]", ran.stderr


def test_an_unknown_benchmark_is_named(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["b99"])
    told = capsys.readouterr().err
    assert "b99" in told and all(name in told for name in BENCHMARKS)


@pytest.mark.parametrize("module", BENCHMARKS.values())
def test_every_benchmark_can_be_run_by_name(module: str) -> None:
    assert callable(importlib.import_module(module).run)


@pytest.mark.slow
def test_framework_tax_runs_on_little_data(tmp_path: Path) -> None:
    from benchmarks.data import packed_table
    from benchmarks.ours.reading import make_reader

    dataset = packed_table(tmp_path, 3200, 16)
    reader = make_reader(dataset, {}, 128, 256)
    assert sum(s.rows for s in reader.schedule.manifest.shards) == 3200
    side = Side(
        "local",
        "benchmarks.ours.tiny_rows",
        {"dataset": dataset, "placement": "local", "batch_size": 128, "passes": 2, "steps_per_unit": [2, 4]},
    )
    run = run_side(side, Options(tmp_path, Path(sys.executable)))
    assert run.result["rows"] == {"2": 6400, "4": 6400}
    assert set(run.regions) == {"2", "4"}
    assert np.isfinite(run.regions["2"].cpu_s)
