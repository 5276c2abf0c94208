"""Checks of a cluster's nodes, one process on each: versions, GPUs, network, memory, disk, clocks and shared storage.

Where an address is given, no cluster is ever started, and every wait has its end. Nodes are asked side by side.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
import socket
import time
import uuid
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from xmodal_dist import runtime, storage
from xmodal_dist.doctor.finding import LOW_BYTES, ONE_DRIVER, SLOW_BYTES_PER_S, Finding, gib, graded
from xmodal_dist.doctor.node import Facts, Node, Reached, versions_here
from xmodal_dist.errors import UsageError, XmodalError

__all__ = ["examine_cluster"]

_HOST_PORT = re.compile(r"[^/\s]+:\d{1,5}")
_HTTP2_SETTINGS = b"\0\0\0\4\0\0\0\0\0"
_HTTP2_HELLO = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + _HTTP2_SETTINGS
"""What a client of HTTP/2 says first, with settings left at their defaults (RFC 9113, 3.4)."""
_KNOCK_S = 5.0
_START_S = 60.0
_NETWORK_S = 30.0
_ANSWER_S = 15.0
_SMALL_STORE_BYTES = 256 << 20
_PROBE_BYTES = 4 << 20
_SKEW_S, _BAD_SKEW_S = 0.5, 30.0
_CLOCK_ROUNDS = 5


class _Member(NamedTuple):
    """A node that answered: its id, its actor, what Ray counts there, and what its process saw."""

    node_id: str
    actor: Any
    resources: Mapping[str, float]
    facts: Facts

    @property
    def gpus(self) -> int:
        return int(self.resources.get("GPU", 0))


def examine_cluster(address: str | None = None, path: str | None = None) -> Iterator[Finding]:
    """Run the checks on every node.

    Args:
        address: ``HOST:PORT`` of a cluster's head, or ``auto`` for the one that runs on this machine. None takes the
            session of this process or ``RAY_ADDRESS``, else starts Ray here for the length of the checks.
        path: directory or URI that jobs will write to, which every node must reach; None leaves its check out.

    Raises:
        UsageError: the address is of another kind.
    """
    if address is not None:
        _check_form(address)
    named = address or os.environ.get("RAY_ADDRESS", "")
    if not runtime.is_connected() and _HOST_PORT.fullmatch(named) and (unreachable := _knock(named)):
        yield unreachable
        return
    with contextlib.ExitStack() as stack:
        try:
            stack.enter_context(runtime.connect(address=address))
        except Exception as error:  # whatever Ray raises is the finding
            advice = "see the logs under /tmp/ray; is RAY_AUTH_TOKEN that of this cluster?"
            yield Finding("ray", "error", (str(error).splitlines() or [repr(error)])[0], advice)
            return
        yield from _examine(path)


def _check_form(address: str) -> None:
    if address.startswith(("http://", "https://")):
        raise UsageError(
            f"--address {address} is a dashboard: `xmodal submit doctor --address {address}` runs the checks there"
        )
    if address != "auto" and not _HOST_PORT.fullmatch(address):
        raise UsageError(f"--address {address!r}: expected HOST:PORT of the head (port 6379), or auto")


def _knock(address: str) -> Finding | None:
    """Whether a gRPC server answers there; Ray itself would try for minutes."""
    host, _, port = address.rpartition(":")
    advice = "is the head up, and its port 6379 open to this machine? From elsewhere: xmodal submit doctor"
    try:
        with socket.create_connection((host.strip("[]"), int(port)), timeout=_KNOCK_S) as connection:
            if os.environ.get("RAY_USE_TLS", "0") != "0":
                return None
            connection.sendall(_HTTP2_HELLO)
            answer = connection.recv(len(_HTTP2_SETTINGS))
    except OSError as error:
        return Finding("ray", "error", f"{address} does not answer: {error}", advice)
    if answer[3:4] != _HTTP2_SETTINGS[3:4]:
        return Finding("ray", "error", f"{address} is not the port of a Ray head", advice)
    return None


def _examine(path: str | None) -> Iterator[Finding]:
    import ray

    alive = [n for n in ray.nodes() if n["Alive"]]  # type: ignore[no-untyped-call]
    total = ray.cluster_resources()  # type: ignore[no-untyped-call]
    yield Finding(
        "ray",
        "ok",
        f"{len(alive)} node(s), {total.get('CPU', 0):g} CPUs, {total.get('GPU', 0):g} GPUs",
    )
    actors = [_place(n["NodeID"], gpus=0) for n in alive]
    try:
        answers = _answers([actor.facts.remote() for actor in actors], _START_S)
        members = []
        for node, actor, answer in zip(alive, actors, answers, strict=True):
            if isinstance(answer, Facts):
                members.append(_Member(node["NodeID"], actor, node["Resources"], answer))
            else:
                advice = (
                    "look at the node's logs under /tmp/ray/session_latest/logs; is the same package there?"
                )
                where = node["NodeManagerHostname"]
                yield Finding(f"node {where}", "error", f"no process of ours runs there: {answer}", advice)
        if members:
            yield from _of_members(members, path)
    finally:
        for actor in actors:
            ray.kill(actor)


def _of_members(members: Sequence[_Member], path: str | None) -> Iterator[Finding]:
    yield from _versions(members)
    yield _gpus(members)
    yield _object_store(members)
    yield _least(
        "shared memory of nodes", members, "shm_bytes", "start its container with a larger --shm-size"
    )
    yield _least(
        "disk of nodes", members, "disk_bytes", "free some, or set TMPDIR and Ray's --temp-dir elsewhere"
    )
    yield _least(
        "memory of nodes", members, "memory_bytes", "stop other programs there, or take a larger machine"
    )
    yield _tokens(members)
    yield _clocks(members)
    if path is not None:
        yield _shared(members, path)
    yield _network("gloo", [m.actor for m in members])
    if any(m.gpus for m in members):
        yield from _nccl(members)


def _place(node_id: str, gpus: int) -> Any:
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    there = NodeAffinitySchedulingStrategy(node_id, soft=False)
    options: dict[str, Any] = {"num_cpus": 0, "num_gpus": gpus, "scheduling_strategy": there}
    return ray.remote(**options)(Node).remote()


def _answers(references: Sequence[Any], timeout_s: float) -> list[Any]:
    """What each call returned; in place of an answer that did not come, why, in one line."""
    import ray

    ready, _ = ray.wait(list(references), num_returns=len(references), timeout=timeout_s)
    come, answers = set(ready), list[Any]()
    for reference in references:
        if reference not in come:
            answers.append(f"no answer in {timeout_s:g} s")
            continue
        try:
            answers.append(ray.get(reference, timeout=_ANSWER_S))
        except Exception as error:  # of the node, whatever it was
            answers.append(([line for line in str(error).splitlines() if line] or [repr(error)])[-1])
    return answers


def _versions(members: Sequence[_Member]) -> Iterator[Finding]:
    """One finding where all agree, with this machine too; else one for each package that differs."""
    here, differs = versions_here(), False
    for package, mine in here.items():
        hosts = defaultdict(list, {mine: ["here"]})
        for member in members:
            hosts[member.facts.versions.get(package, "none")].append(member.facts.host)
        if len(hosts) > 1:
            differs = True
            seen = "; ".join(f"{version} on {_some(names)}" for version, names in hosts.items())
            yield Finding(
                f"{package} on every node", "error", seen, f"install one version of {package} everywhere"
            )
    if not differs:
        seen = ", ".join(f"{package} {version}" for package, version in here.items())
        yield Finding("versions on every node", "ok", seen)


def _gpus(members: Sequence[_Member]) -> Finding:
    blind = [m.facts.host for m in members if m.gpus and m.facts.torch_cuda is None]
    if blind:
        advice = "install a torch that was built with CUDA"
        return Finding("GPUs", "error", f"torch cannot use those of {_some(blind)}", advice)
    unused = [m.facts.host for m in members if m.facts.cards > m.gpus]
    seen = f"{sum(m.gpus for m in members)} on {sum(m.gpus > 0 for m in members)} node(s)"
    if unused:
        seen += f"; Ray counts fewer than the driver on {_some(unused)}"
    advice = "start Ray there with --num-gpus, and the container with its GPUs"
    return graded("GPUs", seen, advice, warn=bool(unused))


def _object_store(members: Sequence[_Member]) -> Finding:
    sizes = [m.resources.get("object_store_memory", 0) for m in members]
    least = min(range(len(members)), key=sizes.__getitem__)
    seen = f"{gib(sizes[least])} at the least, on {members[least].facts.host}"
    advice = "start Ray there with a larger --object-store-memory: decoded records cross it"
    return graded("object store", seen, advice, warn=sizes[least] < _SMALL_STORE_BYTES)


def _least(check: str, members: Sequence[_Member], attribute: str, advice: str) -> Finding:
    facts = min((m.facts for m in members), key=lambda f: int(getattr(f, attribute)))
    free = int(getattr(facts, attribute))
    seen = f"none on {facts.host}" if free < 0 else f"{gib(free)} free at the least, on {facts.host}"
    return graded(check, seen, advice, warn=free < LOW_BYTES)


def _tokens(members: Sequence[_Member]) -> Finding:
    asking = [m.facts.host for m in members if m.facts.asks_for_token]
    open_to_all = [m.facts.host for m in members if not m.facts.asks_for_token]
    if not open_to_all:
        return Finding("token of nodes", "ok", "every node asks for one")
    seen = f"not asked for by {_some(open_to_all)}"
    advice = "start every node with RAY_AUTH_MODE=token: whoever reaches a port runs code there"
    return graded("token of nodes", seen, advice, warn=len(members) > 1, fail=bool(asking))


def _clocks(members: Sequence[_Member]) -> Finding:
    """Offsets from the driver's clock, as Cristian (1989) measures them: from the shortest of some round trips."""
    import ray

    worst: tuple[float, float, str] = (0.0, 0.0, members[0].facts.host)
    for member in members:
        trips = []
        for _ in range(_CLOCK_ROUNDS):
            sent_s = time.time()
            try:
                there_s = float(ray.get(member.actor.clock.remote(), timeout=_ANSWER_S))
            except ray.exceptions.RayError:
                return Finding(
                    "clocks", "warning", f"{member.facts.host} did not answer", "run the check again"
                )
            back_s = time.time()
            trips.append((back_s - sent_s, there_s - (sent_s + back_s) / 2))
        trip_s, offset_s = min(trips)
        worst = max(worst, (abs(offset_s), trip_s, member.facts.host))
    skew_s, trip_s, host = worst
    seen = f"{skew_s * 1e3:.1f} ms apart at the most, on {host} (round trip {trip_s * 1e3:.1f} ms)"
    advice = "run chrony or another NTP client there: leases and signed requests to stores go by the clock"
    late = skew_s - trip_s / 2
    return graded("clocks", seen, advice, warn=late > _SKEW_S, fail=late > _BAD_SKEW_S)


def _network(backend: str, actors: Sequence[Any]) -> Finding:
    """One all-reduce over the nodes."""
    check = f"network ({backend})"
    (meeting,) = _answers([actors[0].meeting_point.remote()], _NETWORK_S)
    if isinstance(meeting, str):
        advice = "are the GPUs in use? Run the check while no job has them"
        return Finding(check, "warning", f"the first node: {meeting}", advice if backend == "nccl" else "")
    calls = [
        actor.all_reduce.remote(meeting, rank, len(actors), backend, _NETWORK_S)
        for rank, actor in enumerate(actors)
    ]
    answers = _answers(calls, _NETWORK_S + _ANSWER_S)
    failed = [answer for answer in answers if isinstance(answer, str)]
    if failed:
        variable = f"{backend.upper()}_SOCKET_IFNAME"
        advice = f"open all TCP ports between the nodes; with several networks set {variable} on each"
        return Finding(check, "error", f"{len(failed)} of {len(actors)} nodes: {failed[0]}", advice)
    if not all(right for right, _ in answers):
        return Finding(
            check, "error", "sums over the nodes came out wrong", "change the network's driver or cards"
        )
    slowest = min(rate for _, rate in answers)
    return Finding(check, "ok", f"{len(actors)} node(s) add up 4 MiB at {slowest / 1e6:.0f} MB/s")


def _nccl(members: Sequence[_Member]) -> Iterator[Finding]:
    """The same with one GPU of each node that has some."""
    import ray

    actors = [_place(m.node_id, gpus=1) for m in members if m.gpus]
    try:
        yield _network("nccl", actors)
    finally:
        for actor in actors:
            ray.kill(actor)


def _shared(members: Sequence[_Member], path: str) -> Finding:
    """Every node reads what this process writes, and exactly one of them creates a file that all try to create."""
    check, folder = f"storage {path} from every node", storage.absolute(path)
    name, payload = f"_doctor-{uuid.uuid4().hex}", os.urandom(_PROBE_BYTES)
    probe, contested = storage.join(folder, name), storage.join(folder, f"{name}-once")
    advice = "use storage that all nodes reach, by the same path, with the same credentials"
    try:
        storage.write_bytes(probe, payload)
        sha256 = hashlib.sha256(payload).hexdigest()
        answers = _answers([m.actor.reach.remote(probe, sha256, contested) for m in members], _START_S)
    except XmodalError as error:
        return Finding(check, "error", str(error), advice)
    finally:
        with contextlib.suppress(XmodalError):
            storage.delete(probe)
            storage.delete(contested)
    failed = []
    for member, answer in zip(members, answers, strict=True):
        problem = answer.error if isinstance(answer, Reached) else str(answer)
        if problem:
            failed.append(f"{member.facts.host}: {problem}")
    if failed:
        return Finding(check, "error", _some(failed), advice)
    created, slowest = sum(a.created for a in answers), min(a.read_bytes_per_s for a in answers)
    seen = f"read at {slowest / 1e6:.0f} MB/s or more, created by {created} of {len(members)}"
    if created != 1:
        advice = ONE_DRIVER
    return graded(check, seen, advice, warn=created != 1 or slowest < SLOW_BYTES_PER_S)


def _some(names: Sequence[str], most: int = 3) -> str:
    """Names in a line, the first few of many."""
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")
