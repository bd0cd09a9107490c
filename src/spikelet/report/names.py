"""What tables call a row, and which teacher belongs to a number of time steps."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

Row = Mapping[str, Any]
SPIKING = "snn, T = "


def named(row: Row) -> str:
    """A row's method, and of a teacher that spikes or learns along what it is."""
    return " ".join([str(row["method"]), *(f"({words})" for words in [_aside(row)] if words)])


def _aside(row: Row) -> str:
    """What stands in brackets behind a row's method."""
    steps = spiking_steps(row)
    parts = [] if steps is None else [f"spiking, T = {steps}"]
    return ", ".join([*parts, *(note for note in [row.get("note")] if note)])


def spiking_steps(row: Row) -> int | None:
    """T of a spiking teacher's row; None of any other."""
    kind = str(row.get("kind") or "")
    spiking = row["method"] == "teacher" and kind.startswith(SPIKING)
    return int(kind.removeprefix(SPIKING)) if spiking else None


def at(steps: int, rows: Sequence[Row]) -> list[Row]:
    """The rows of one T, with the teacher as it answers there."""
    return [
        row
        for row in rows
        if row["steps"] == steps or (row["steps"] is None and spiking_steps(row) in (None, steps))
    ]
