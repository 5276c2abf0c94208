"""Figures as a table on standard error."""

from __future__ import annotations

from collections.abc import Sequence

from rich.console import Console
from rich.table import Table

from benchmarks.harness import Figure

__all__ = ["print_table"]


def print_table(title: str, figures: Sequence[Figure]) -> None:
    """One row a figure; a missed goal is red."""
    table = Table(title=title)
    table.add_column("figure")
    for name in ("value", "goal", "ours CPU ms/record", "peer's", "wall s", "peak MiB"):
        table.add_column(name, justify="right")
    for figure in figures:
        style = {True: "green", False: "red", None: ""}[figure.met]
        sign = ">=" if figure.better == "higher" else "<="
        peer = figure.peer_cpu_ms_per_record
        table.add_row(
            figure.name,
            f"{figure.ratio:.2f} {figure.unit}",
            "" if figure.goal is None else f"{sign} {figure.goal:g}",
            f"{figure.cpu_ms_per_record:.3g}",
            "" if peer is None else f"{peer:.3g}",
            f"{figure.wall_s:.2f}",
            f"{figure.peak_memory_bytes / 2**20:.0f}",
            style=style,
        )
    Console(stderr=True, width=150).print(table)
