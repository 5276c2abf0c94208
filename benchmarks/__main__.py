"""Command line of the benchmarks: figures as JSON lines on standard output, everything else on standard error."""

from __future__ import annotations

import argparse
import importlib
import os
import sys
import time
from pathlib import Path

from benchmarks.harness import REPOSITORY, Options, machine, say
from benchmarks.table import print_table

BENCHMARKS = {
    "b1": "benchmarks.b1_image_ingest",
    "b2": "benchmarks.b2_cpu_training",
    "b3": "benchmarks.b3_simulated_gpu",
    "b4": "benchmarks.b4_scoring",
    "b5": "benchmarks.b5_framework_tax",
    "b6": "benchmarks.b6_memory",
    "b7": "benchmarks.b7_kills",
    "b8": "benchmarks.b8_search",
    "n": "benchmarks.n_nodes",
    "r": "benchmarks.r_resume",
    "s": "benchmarks.s_scaling",
}


def main(arguments: list[str]) -> int:
    """Run the named benchmarks, or all; 1 if one of them failed, which a missed goal is not."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"of {', '.join(BENCHMARKS)}; none runs all")
    parser.add_argument("--rows", type=int, help="records of the data, instead of the benchmark's own number")
    parser.add_argument("--pairs", type=int, default=5, help="interleaved rounds (default 5)")
    parser.add_argument(
        "--cache", type=Path, default=REPOSITORY / ".bench", help="folder of the generated data"
    )
    parser.add_argument(
        "--peers-python",
        type=Path,
        default=REPOSITORY / ".venv-peers" / "bin" / "python",
        help="interpreter of the peers' environment (make bench makes it)",
    )
    asked = parser.parse_args(arguments)
    unknown = [name for name in asked.names if name not in BENCHMARKS]
    if unknown:
        parser.error(f"unknown benchmark {unknown[0]!r}; there are {', '.join(BENCHMARKS)}")
    # Not resolved: a virtual environment is recognised by the link in it.
    options = Options(asked.cache.resolve(), asked.peers_python.absolute(), asked.pairs, asked.rows)
    failed = False
    for name in asked.names or BENCHMARKS:
        say(f"{name}: {machine()}")
        began_s = time.perf_counter()
        try:
            figures = importlib.import_module(BENCHMARKS[name]).run(options)
        except Exception as error:
            say(f"{name} failed: {error}")
            failed = True
            continue
        for figure in figures:
            print(figure.to_json(), flush=True)
        print_table(name, figures)
        say(f"{name}: {time.perf_counter() - began_s:.0f} s")
    return int(failed)


if __name__ == "__main__":
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    sys.exit(main(sys.argv[1:]))
