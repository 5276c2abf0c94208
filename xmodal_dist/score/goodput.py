"""Where the time of a scoring run went, and what set its pace.

A worker's loop is in one stage at a time: it waits for decoded rows, predicts, encodes the part, commits it. Meanwhile
its threads read and decode. So the loop's stages add up to the workers' time, and reading and decoding lie beside them:
they set the pace where the loop waits for data.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

__all__ = ["goodput_line", "scoring_goodput"]

_LOOP = ("wait_for_data", "predict", "encode", "commit", "isolated", "other")
_BESIDE = ("read", "decode")

_SENTENCES = {
    "read": "reading the input set the pace: bring the input nearer, or raise score.threads so that more reads overlap",
    "decode": "decoding set the pace: add CPUs, set fields.NAME.decode=fast when training, or store media smaller",
    "wait_for_data": "reading and decoding set the pace: add CPUs, or raise score.threads where cores are idle",
    "predict": "the network set the pace: add workers or accelerators, or train a smaller model",
    "encode": "writing predictions set the pace: ask for fewer columns",
    "commit": "committing set the pace: raise score.unit_rows so that there are fewer files, or use nearer storage",
    "isolated": "records that kill their worker set the pace: see the quarantine, and mend the input",
    "other": "start-up and waiting for units took most of the time: the run is short, or has fewer units than workers",
}


def scoring_goodput(
    stages: Mapping[str, float],
    wall_s: float,
    rows: int,
    cpu_s: float,
    cores: float,
    num_workers: int | None = None,
) -> dict[str, Any]:
    """Figures of a run, JSON-able; the names are those of a training run's goodput.json.

    Args:
        stages: seconds by stage over all units that this command's workers scored: those of a worker's loop
            (``wait_for_data``, ``predict``, ``encode``, ``commit``, ``isolated``) and those of its threads (``read``,
            ``decode``). Others are shown, but never named as what set the pace.
        wall_s: seconds of the command.
        rows: records that its workers scored.
        cpu_s: their CPU-seconds.
        cores: CPU cores that they may use together.
        num_workers: how many they were; None counts what their loops did not do as no time at all.

    Returns:
        ``stages_s`` as given, with ``other`` (the workers' time that no loop stage accounts for); ``cores_busy``, the
        share of the cores' time that was used: what the run reached of the rate that these cores allow at this cost a
        record; ``binding_stage``, in a sentence.
    """
    seconds = {name: round(value, 3) for name, value in stages.items()}
    loop_s = sum(seconds.get(name, 0.0) for name in _LOOP)
    workers_s = max(loop_s, wall_s * (num_workers or 0))
    seconds["other"] = round(workers_s - loop_s, 3)
    busy = min(1.0, cpu_s / (wall_s * cores)) if wall_s > 0 and cores > 0 else None
    return {
        "wall_s": round(wall_s, 3),
        "stages_s": {name: seconds[name] for name in sorted(seconds, key=_place)},
        "records": rows,
        "records_per_s": round(rows / wall_s, 1) if wall_s > 0 else None,
        "cpu_s_per_record": round(cpu_s / rows, 6) if rows else None,
        "cores": cores,
        "cores_busy": None if busy is None else round(busy, 4),
        "num_workers": num_workers,
        "binding_stage": _sentence(seconds, workers_s),
    }


def goodput_line(goodput: Mapping[str, Any]) -> str:
    """The one line that a command ends with."""
    rate, cost, busy = (goodput[name] for name in ("records_per_s", "cpu_s_per_record", "cores_busy"))
    parts = [f"scored {goodput['records']:,} records in {goodput['wall_s']:.1f} s"]
    if goodput["records"]:
        parts[0] += f": {rate:,.0f}/s"
        parts.append(f"{1000 * cost:.3g} ms of CPU a record")
        parts.append(f"{goodput['cores']:g} cores {busy:.0%} busy")
    return f"{', '.join(parts)}. {goodput['binding_stage']}"


def _place(name: str) -> int:
    """Where a stage stands: in the order of the data, unknown ones before what nobody accounts for."""
    order = (*_BESIDE, *_LOOP[:-1])
    return order.index(name) if name in order else len(order) + (name == "other")


def _sentence(seconds: Mapping[str, float], workers_s: float) -> str:
    if workers_s <= 0:
        return "nothing was scored"
    loop = max(_LOOP, key=lambda name: seconds.get(name, 0.0))
    binding = loop
    if loop == "wait_for_data":
        beside = {name: seconds[name] for name in _BESIDE if seconds.get(name)}
        binding = max(beside, key=beside.__getitem__) if beside else loop
    share = f"{loop}: {seconds[loop] / workers_s:.0%} of the workers' time"
    return f"{_SENTENCES[binding]} ({share})"
