"""Where the time of a scoring run went, and what set its pace.

A worker's loop is in one stage at a time: it waits for decoded rows, predicts, writes and commits the part. Meanwhile
its threads read and decode. So the loop's stages add up to the workers' time, and reading and decoding lie beside them:
they set the pace where the loop waits for data.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

__all__ = ["goodput_line", "scoring_goodput"]

_LOOP = ("wait_for_data", "predict", "commit", "isolated")
_THREADS = ("read", "decode")

_SENTENCES = {
    "read": "reading the input set the pace: bring the input nearer, or raise score.threads so that more reads overlap",
    "decode": "decoding set the pace: add CPUs, set fields.NAME.decode=fast when training, or store media smaller",
    "wait_for_data": "reading and decoding set the pace: add CPUs, or raise score.threads where cores are idle",
    "predict": "the network set the pace: add workers or accelerators, or train a smaller model",
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
    lanes: int = 1,
) -> dict[str, Any]:
    """Figures of a run, JSON-able; the names are those of a training run's goodput.json.

    Args:
        stages: seconds by stage over all units that this command's workers scored: ``read`` and ``decode`` of their
            threads, all others of their loops (``wait_for_data``, ``predict``, ``commit``, ``isolated``).
        wall_s: seconds of the command.
        rows: records that its workers scored.
        cpu_s: their CPU-seconds.
        cores: CPU cores that they may use together.
        num_workers: how many they were; None counts what their loops did not do as no time at all.
        lanes: loops of a worker.

    Returns:
        ``stages_s`` of the loops, with ``other``, so that they add up to the workers' time; ``threads_s`` of their
        threads; ``cores_busy``, the share of the cores' time that was used: what the run reached of the rate that these
        cores allow at this cost a record; ``binding_stage``, in a sentence.
    """
    threads = {name: round(stages[name], 3) for name in _THREADS if name in stages}
    loop = {name: round(stages[name], 3) for name in sorted(stages.keys() - threads.keys(), key=_place)}
    loop_s = sum(loop.values())
    loop["other"] = round(max(0.0, wall_s * (num_workers or 0) * lanes - loop_s), 3)
    busy = min(1.0, cpu_s / (wall_s * cores)) if wall_s > 0 and cores > 0 else None
    return {
        "wall_s": round(wall_s, 3),
        "stages_s": loop,
        "threads_s": threads,
        "records": rows,
        "records_per_s": round(rows / wall_s, 1) if wall_s > 0 else None,
        "cpu_s_per_record": round(cpu_s / rows, 6) if rows else None,
        "cores": cores,
        "cores_busy": None if busy is None else round(busy, 4),
        "num_workers": num_workers,
        "binding_stage": _sentence(loop, threads),
    }


def goodput_line(goodput: Mapping[str, Any]) -> str:
    """The one line that a command ends with."""
    rate, cost, busy = (goodput[name] for name in ("records_per_s", "cpu_s_per_record", "cores_busy"))
    parts = [f"scored {goodput['records']:,} records in {goodput['wall_s']:.1f} s"]
    if goodput["records"]:
        parts[0] += f": {rate:,.0f}/s"
        parts.append(f"{1000 * cost:.3g} ms of CPU a record")
        parts.append(f"{goodput['cores']:g} cores {busy:.0%} busy")
    return f"{', '.join(parts)}; {goodput['binding_stage']}"


def _place(name: str) -> tuple[int, str]:
    return (_LOOP.index(name) if name in _LOOP else len(_LOOP)), name


def _sentence(loop: Mapping[str, float], threads: Mapping[str, float]) -> str:
    total_s = sum(loop.values())
    if total_s <= 0:
        return "nothing was scored"
    longest = binding = max(loop, key=loop.__getitem__)
    if longest == "wait_for_data" and any(threads.values()):
        binding = max(threads, key=threads.__getitem__)
    advice = _SENTENCES.get(binding, f"{binding.replace('_', ' ')} took most of the time")
    return f"{advice} ({longest}: {loop[longest] / total_s:.0%} of the workers' time)"
