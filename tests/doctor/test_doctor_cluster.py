"""The checks of a cluster, on the nodes of a real one and at addresses where there is none."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from xmodal_dist.doctor import cluster
from xmodal_dist.doctor.cluster import examine_cluster
from xmodal_dist.doctor.finding import Finding
from xmodal_dist.doctor.machine import examine_machine
from xmodal_dist.doctor.node import Facts, versions_here
from xmodal_dist.errors import UsageError

_MIB, _GIB = 1 << 20, 1 << 30


@pytest.fixture(scope="module")
def found(ray_session: None, tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, Finding], Path]:
    """All findings of the session's cluster by check, and the folder that was probed."""
    folder = tmp_path_factory.mktemp("store")
    return {f.check: f for f in examine_cluster(path=str(folder))}, folder


def test_a_sound_cluster_is_found_sound(found: tuple[dict[str, Finding], Path]) -> None:
    findings, folder = found
    checks = {
        "ray", "versions on every node", "GPUs", "object store", "clocks", "network (gloo)", "token of nodes",
        "shared memory of nodes", "disk of nodes", "memory of nodes", f"storage {folder} from every node",
    }  # fmt: skip
    assert checks == set(findings)
    assert {f.level for f in findings.values() if "of nodes" not in f.check} == {"ok"}
    assert findings[f"storage {folder} from every node"].seen.endswith("created by 1 of 1")
    assert "MB/s" in findings["network (gloo)"].seen


def test_only_what_is_wrong_has_advice_and_no_probe_stays(found: tuple[dict[str, Finding], Path]) -> None:
    findings, folder = found
    assert all(bool(f.advice) == (f.level != "ok") for f in findings.values())
    assert list(folder.iterdir()) == []


def test_two_processes_meet_and_one_that_is_gone_is_told(ray_session: None, tmp_path: Path) -> None:
    import ray

    (node,) = ray.nodes()
    actors = [cluster._place(node["NodeID"], gpus=0) for _ in range(2)]
    network = cluster._network("gloo", actors)
    assert network.level == "ok" and network.seen.startswith("2 node(s) add up 4 MiB")
    members = [_member(host)._replace(actor=actor) for host, actor in zip("ab", actors, strict=True)]
    shared = cluster._shared(members, str(tmp_path))
    assert shared.level == "ok" and shared.seen.endswith("created by 1 of 2")
    ray.kill(actors[1])
    shared = cluster._shared(members, str(tmp_path))
    assert shared.level == "error" and shared.seen.startswith("b: ")
    assert list(tmp_path.iterdir()) == []
    ray.kill(actors[0])


def test_a_path_that_a_node_cannot_write_is_an_error(ray_session: None, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    levels = {f.check: f.level for f in examine_machine(str(tmp_path / "file" / "below"))}
    assert levels[f"storage {tmp_path / 'file' / 'below'}"] == "error"


@pytest.fixture
def silent_port() -> Iterator[int]:
    """Of a server that takes connections and says what is no gRPC."""
    with socket.create_server(("127.0.0.1", 0)) as server:

        def greet() -> None:
            connection, _ = server.accept()
            with connection:
                connection.sendall(b"HTTP/1.1 400 Bad Request\r\n\r\n")

        thread = threading.Thread(target=greet, daemon=True)
        thread.start()
        yield server.getsockname()[1]
        thread.join(5)


def test_a_port_of_something_else_is_told_at_once(silent_port: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cluster.runtime, "is_connected", lambda: False)
    began_s = time.monotonic()
    (finding,) = examine_cluster(f"127.0.0.1:{silent_port}")
    assert (finding.check, finding.level) == ("ray", "error")
    assert "not the port of a Ray head" in finding.seen
    assert time.monotonic() - began_s < 10


def test_a_head_that_is_not_there_is_told_at_once_and_none_is_started(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(cluster.runtime, "is_connected", lambda: False)
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    (finding,) = examine_cluster(f"127.0.0.1:{port}")
    assert (
        finding.level == "error" and "does not answer" in finding.seen and "submit doctor" in finding.advice
    )


@pytest.mark.parametrize(
    ("address", "words"), [("http://head:8265", "xmodal submit doctor"), ("head", "HOST:PORT")]
)
def test_an_address_of_another_kind_is_refused(address: str, words: str) -> None:
    with pytest.raises(UsageError, match=words):
        list(examine_cluster(address))


def _member(host: str, gpus: int = 0, store: int = _GIB, **changes: object) -> cluster._Member:
    facts = Facts(host, versions_here(), gpus, "12.8", 8 * _GIB, 8 * _GIB, 8 * _GIB, True)
    return cluster._Member(host, None, {"GPU": gpus, "object_store_memory": store}, facts._replace(**changes))


def test_nodes_that_differ_are_named() -> None:
    other = {**versions_here(), "torch": "2.0.0"}
    members = [_member("a"), _member("b", versions=other), _member("c")]
    (finding,) = cluster._versions(members)
    assert finding.check == "torch on every node" and finding.level == "error"
    assert "2.0.0 on b" in finding.seen and "here, a, c" in finding.seen


@pytest.mark.parametrize(
    ("check", "member", "level"),
    [
        (cluster._gpus, _member("b", gpus=2), "ok"),
        (cluster._gpus, _member("b", gpus=2, torch_cuda=None), "error"),
        (cluster._gpus, _member("b", cards=4), "warning"),
        (cluster._object_store, _member("b", store=64 * _MIB), "warning"),
        (cluster._tokens, _member("b"), "ok"),
        (cluster._tokens, _member("b", asks_for_token=False), "error"),
    ],
)
def test_one_bad_node_decides(check: object, member: cluster._Member, level: str) -> None:
    finding = check([_member("a"), member])  # type: ignore[operator]
    assert finding.level == level
    assert level == "ok" or "b" in finding.seen


def test_the_fullest_disk_is_named() -> None:
    members = [_member("a"), _member("b", disk_bytes=3 * _MIB)]
    finding = cluster._least("disk of nodes", members, "disk_bytes", "free some")
    assert finding == Finding("disk of nodes", "warning", "3.0 MiB free at the least, on b", "free some")
