"""B7: the scoring job's driver, or one of its two workers, dies by SIGKILL after 10 to 90 % of the units.

What was committed stays: only units that were under way may be scored again, one a worker at the most. Nothing may be
lost or doubled. The processor time of the whole job, with the second start of Ray where the driver died, is beside it.
"""

from __future__ import annotations

import tempfile

from benchmarks.data import generate_images
from benchmarks.harness import Figure, Options, Run, Side, figure_of, require, run_side, say
from benchmarks.scoring_data import make_scoring_data

__all__ = ["run"]

_ROWS = 512
_SHARES = (0.1, 0.25, 0.5, 0.75, 0.9)
_WORKERS = 2
_SETTINGS = {"unit_rows": 64}


def run(options: Options) -> list[Figure]:
    """Units scored again, for every kill."""
    rows = options.rows or _ROWS
    data = make_scoring_data(options.cache, generate_images(options.cache, rows))
    figures = []
    with tempfile.TemporaryDirectory(dir=options.cache) as folder:

        def once(name: str, victim: str | None, share: float) -> Run:
            asked = {"bundle": data.bundle, "inputs": data.many, "folder": folder, "settings": _SETTINGS}
            side = Side(
                name, "benchmarks.ours.killed_scoring", {**asked, "victim": victim, "share": share},
                sample_every_s=1.0,
            )  # fmt: skip
            done = run_side(side, options)
            found = {what: done.result[what] for what in ("lost", "duplicated", "failed_checks")}
            require(not any(found.values()), f"{name}: {found}")
            say(f"  {name}: CPU-s {done.regions['job'].cpu_s:.1f}, begun again {done.result['begun_again']}")
            return done

        clean = once("undisturbed", None, 0.0)
        for victim in ("driver", "worker"):
            for share in _SHARES:
                done = once(f"{victim} killed at {share:.0%}", victim, share)
                extra = done.regions["job"].cpu_s / clean.regions["job"].cpu_s - 1
                figures.append(
                    figure_of(
                        f"b7/{victim} killed at {share:.0%}: units scored again", ([done], "job"),
                        [float(done.result["begun_again"])], float(_WORKERS),
                        rows=rows * data.copies, unit="units", better="lower",
                        notes={"units": done.result["units"], "extra_cpu_with_restart": round(extra, 4)},
                    )
                )  # fmt: skip
    return figures
