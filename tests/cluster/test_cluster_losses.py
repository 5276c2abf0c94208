"""Jobs submitted to hosts of which some die, the head too: no record is lost or there twice, no weight differs."""

from __future__ import annotations

import json
import os
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
import pytest

from tests.cluster.nodes import Nodes, nodes, wait_until
from tests.conftest import WORDS
from xmodal_dist.bundle import load_bundle
from xmodal_dist.dataset.schema import parse_field
from xmodal_dist.ingest.pack import PackSettings, pack
from xmodal_dist.train.log import read_metrics
from xmodal_dist.tune.ledger import read_ledger

pytestmark = [
    pytest.mark.cluster, pytest.mark.slow, pytest.mark.soak, pytest.mark.timeout(1500),
    pytest.mark.skipif(os.geteuid() != 0 or not shutil.which("ip"), reason="hosts are network namespaces of root"),
]  # fmt: skip

_RECORDS, _STEPS = 7500, 1000
_ALONE_S = 40.0  # until Ray has missed a host, and its workers have ended
_ELASTIC = ("--set", "train.min_workers=1", "--set", "train.resize_interval_s=2")
_TRAIN_SET_NUMBER = (
    "--num-workers", "4", "--set", "train.epochs=1", "--set", "train.batch_size=6", "--set", "train.lanes=6",
    "--set", "model.width=16", "--set", "train.log_every_steps=1", "--set", "train.checkpoint_every_steps=20",
)  # fmt: skip
_TRAIN = (*_TRAIN_SET_NUMBER, *_ELASTIC)


@pytest.fixture(scope="module")
def hosts() -> Iterator[Nodes]:
    with nodes(4) as cluster:
        yield cluster


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Records of words and numbers, 6,000 of them to train on."""
    root = tmp_path_factory.mktemp("losses")
    rng = np.random.default_rng(7)
    records = []
    for index in range(_RECORDS):
        label = sorted(WORDS)[index % 3]
        caption = " ".join(rng.permutation(WORDS[label].split())) if rng.random() > 0.15 else None
        height = float(index % 3 * 2 + rng.normal())
        records.append({"id": f"r{index}", "label": label, "caption": caption, "height": height})
    table = root / "records.jsonl"
    table.write_text("".join(json.dumps(r) + "\n" for r in records))
    fields = [parse_field(f) for f in ("caption=text", "size=tabular:height")]
    pack(str(table), str(root / "dataset"), fields=fields, settings=PackSettings(rows_per_row_group=10))
    return str(root / "dataset")


@pytest.fixture(scope="module")
def undisturbed(hosts: Nodes, dataset: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of one worker, whose host stays."""
    run = tmp_path_factory.mktemp("undisturbed") / "run"
    ended = hosts.run("train", "--data", dataset, "--output", str(run), *_TRAIN, "--num-workers", "1")
    assert ended.code == 0, ended.text
    return run


def _steps(run: Path) -> list[int]:
    return [line["step"] for line in read_metrics(str(run)) if line["event"] == "step"]


def _workers(run: Path) -> list[list[str]]:
    """Hosts of each attempt's workers."""
    lines = read_metrics(str(run))
    return [[worker["host"] for worker in line["workers"]] for line in lines if line["event"] == "start"]


def _difference(run: Path, undisturbed: Path) -> float:
    """The largest of a weight, after every step was taken once."""
    assert _steps(run) == list(range(1, _STEPS + 1))
    ours, theirs = (load_bundle(str(r / "bundle")).model.state_dict() for r in (run, undisturbed))
    assert ours.keys() == theirs.keys()
    return max(float((tensor - theirs[name]).abs().max()) for name, tensor in ours.items())


def test_workers_go_from_4_to_2_to_3_in_an_epoch_as_hosts_die_and_join(
    hosts: Nodes, dataset: str, undisturbed: Path, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    with hosts.submit("train", "--data", dataset, "--output", str(run), *_TRAIN) as end:
        lost_s = wait_until(lambda: len(_steps(run)) >= 60)
        hosts.script("kill", 2)
        hosts.script("kill", 3)
        went_on_s = wait_until(lambda: len(_workers(run)) > 1)
        print(f"two hosts lost: {went_on_s - lost_s:.0f} s until training went on")
        hosts.script("start", 2)
        joined_s = time.time()
        print(f"one joined: {wait_until(lambda: len(_workers(run)) > 2) - joined_s:.0f} s until it trained")
        ended = end()
    hosts.script("start", 3)
    assert ended.code == 0, ended.text
    assert [len(workers) for workers in _workers(run)] == [4, 2, 3]
    assert _difference(run, undisturbed) == 0


def test_a_run_whose_head_dies_says_to_give_the_command_again_and_goes_on_exactly(
    hosts: Nodes, dataset: str, undisturbed: Path, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    command = ("train", "--data", dataset, "--output", str(run), *_TRAIN)
    with hosts.submit(*command) as end:
        lost_s = wait_until(lambda: len(_steps(run)) >= 60)
        hosts.script("kill", 0)
        ended = end()
    print(f"head lost: told after {time.time() - lost_s:.0f} s:", ended.text.splitlines()[-1])
    assert ended.code == 75 and "same command" in ended.text, ended.text
    hosts.renew(range(4))
    again_s = time.time()
    with hosts.submit(*command) as end:
        print(
            f"went on {wait_until(lambda: len(_workers(run)) > 1) - again_s:.0f} s after it was submitted again"
        )
        ended = end()
    assert ended.code == 0, ended.text
    assert _difference(run, undisturbed) == 0


def test_a_run_of_a_set_number_of_workers_waits_for_a_host_and_goes_on_exactly(
    hosts: Nodes, dataset: str, undisturbed: Path, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    with hosts.submit("train", "--data", dataset, "--output", str(run), *_TRAIN_SET_NUMBER) as end:
        wait_until(lambda: len(_steps(run)) >= 60)
        hosts.script("kill", 3)
        time.sleep(_ALONE_S)
        assert len(_workers(run)) == 1
        started_s = time.time()
        hosts.script("start", 3)
        print(f"one started: {wait_until(lambda: len(_workers(run)) > 1) - started_s:.0f} s until it trained")
        ended = end()
    assert ended.code == 0, ended.text
    assert [len(workers) for workers in _workers(run)] == [4, 4]
    assert _difference(run, undisturbed) == 0


def _lose_the_head(hosts: Nodes, command: Sequence[str], when: Callable[[], bool]) -> None:
    """Submit a command and kill the head; the job asks for the same command, and all hosts are started anew."""
    with hosts.submit(*command) as end:
        wait_until(when)
        hosts.script("kill", 0)
        ended = end()
    assert ended.code == 75 and "same command" in ended.text, ended.text
    hosts.renew(range(4))


def _score(dataset: str, run: Path, output: Path) -> tuple[str, ...]:
    bundle = str(run / "bundle")
    small = ("--set", "score.unit_rows=5", "--num-workers", "4")
    return ("score", "--bundle", bundle, "--input", dataset, "--output", str(output), *small)


def _parts(output: Path) -> int:
    return sum(1 for _ in output.glob("data/*.parquet"))


def _assert_whole(hosts: Nodes, output: Path) -> None:
    ended = hosts.run("verify", str(output))
    assert ended.code == 0 and "lost=0 duplicated=0 failed_checks=0" in ended.text, ended.text
    assert json.loads((output / "_manifest.json").read_text())["rows_in"] == _RECORDS


def test_scoring_that_loses_a_host_goes_on_by_itself(
    hosts: Nodes, dataset: str, undisturbed: Path, tmp_path: Path
) -> None:
    output = tmp_path / "scored"
    with hosts.submit(*_score(dataset, undisturbed, output)) as end:
        wait_until(lambda: _parts(output) >= 100)
        hosts.script("kill", 2)
        ended = end()
    hosts.script("start", 2)
    assert ended.code == 0, ended.text
    _assert_whole(hosts, output)


def test_scoring_whose_head_dies_is_continued_by_the_same_command(
    hosts: Nodes, dataset: str, undisturbed: Path, tmp_path: Path
) -> None:
    output = tmp_path / "scored"
    command = _score(dataset, undisturbed, output)
    _lose_the_head(hosts, command, lambda: _parts(output) >= 100)
    done = _parts(output)
    ended = hosts.run(*command)
    assert done >= 100 and ended.code == 0, ended.text
    _assert_whole(hosts, output)


def test_a_search_runs_on_several_hosts(hosts: Nodes, dataset: str, tmp_path: Path) -> None:
    search = tmp_path / "search"
    few = ("--trials", "3", "--set", "train.epochs=4")
    ended = hosts.run("tune", "--data", dataset, "--output", str(search), *few)
    assert ended.code == 0 and (search / "bundle").is_dir(), ended.text
    trials = sorted(search.glob("trials/*"))
    assert len(trials) == 3 and len({_workers(trial)[0][0] for trial in trials}) > 1


def test_a_search_whose_head_dies_is_continued_by_the_same_command(
    hosts: Nodes, dataset: str, tmp_path: Path
) -> None:
    search = tmp_path / "search"
    command = ("tune", "--data", dataset, "--output", str(search), "--trials", "6", "--set", "train.epochs=4")
    _lose_the_head(hosts, command, lambda: len(read_ledger(str(search))) >= 2)
    before = read_ledger(str(search))
    ended = hosts.run(*command)
    assert ended.code == 0 and (search / "bundle").is_dir(), ended.text
    after = read_ledger(str(search))
    assert {number: after[number] for number in before} == before
    lines = [json.loads(line)["trial"] for line in (search / "trials.jsonl").read_text().splitlines()]
    assert sorted(lines) == list(range(6))


def test_the_checks_see_every_host(hosts: Nodes, tmp_path: Path) -> None:
    ended = hosts.run("doctor", "--path", str(tmp_path))
    assert ended.code == 0 and "4 node(s) add up 4 MiB" in ended.text, ended.text


def test_hosts_that_vanish_without_closing_a_connection_are_missed(
    hosts: Nodes, dataset: str, tmp_path: Path
) -> None:
    """The last test: it leaves a cluster in two parts."""
    run = tmp_path / "run"
    with hosts.submit("train", "--data", dataset, "--output", str(run), *_TRAIN) as end:
        cut_s = wait_until(lambda: len(_steps(run)) >= 60)
        hosts.script("cut", 3)
        went_on_s = wait_until(lambda: len(_workers(run)) > 1)
        print(f"a host's network cut: {went_on_s - cut_s:.0f} s until training went on")
        assert "xmodal-3" not in _workers(run)[1]
        cut_s = time.time()
        hosts.script("cut", 0)
        ended = end()
    print(f"the head's network cut: told after {time.time() - cut_s:.0f} s:", ended.text.splitlines()[-1])
    assert ended.code == 75 and "same command" in ended.text, ended.text
