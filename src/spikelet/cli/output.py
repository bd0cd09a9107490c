"""What the command line prints: one JSON object or a table, and one sentence for an error."""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, TextIO

from spikelet.errors import UserError

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

SCHEMA = 1
COLUMNS = 7  # numbers of steps that a table shows in full, on 80 columns
Row = Mapping[str, Any]
TRAINED: Mapping[str, Mapping[str, Any]] = {  # fields of a row that are another ANN's accuracy
    "accuracy_teacher": {"note": "after joint training"},
    "accuracy_ann": {"method": "the student's ANN", "note": None},
}


def progress_console(quiet: bool) -> Console:
    """Where progress and logs go: standard error, or nowhere."""
    from rich.console import Console

    return Console(stderr=True, quiet=quiet)


def output_console(stream: TextIO) -> Console:
    """Where tables go without --json."""
    from rich.console import Console

    return Console(file=stream)


def write_object(content: Mapping[str, Any], stream: TextIO) -> None:
    """Write one JSON object with its schema; what is not a number becomes null."""
    text = json.dumps(_finite({"schema": SCHEMA, **content}), allow_nan=False, default=str)
    stream.write(text + "\n")
    stream.flush()


def _finite(value: Any) -> Any:
    """The same data without infinities and NaN, which JSON does not have."""
    if isinstance(value, Mapping):
        return {str(key): _finite(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(each) for each in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value


def write_error(error: UserError, as_json: bool, stream: TextIO) -> None:
    """One sentence on standard error, and with --json the object on `stream`."""
    print(sentence(error), file=sys.stderr)
    if as_json:
        parts = {"argument": error.argument, "message": error.message, "fix": error.fix}
        write_object({"error": parts}, stream)


def sentence(error: UserError) -> str:
    """An error in one line."""
    return " ".join(f"spikelet: {error}".split())


def accuracy_table(rows: Sequence[Row]) -> Table:
    """Rows of accuracy as one line a method and one column a number of time steps.

    A teacher that was trained along has a line more, for what it became, and so has the ANN that a
    student of another architecture began as.
    """
    from rich.table import Table

    from spikelet.report.names import named, spiking_steps

    rows = _with_learned(rows)
    splits = sorted({str(row["split"]) for row in rows})
    steps = _shown(sorted({row["steps"] for row in rows if row["steps"] is not None}))
    table = Table()
    table.add_column("method", overflow="fold")
    columns = [None, *steps] if any(row["steps"] is None for row in rows) else list(steps)
    still = "ANN" if all(spiking_steps(row) is None for row in rows) else "teacher"
    for column in columns:
        head = still if column is None else f"T={column}"
        table.add_column(head, justify="right", no_wrap=True)
    for key in dict.fromkeys((named(row), row["seed"], row["split"]) for row in rows):
        mine = {r["steps"]: r for r in rows if (named(r), r["seed"], r["split"]) == key}
        name = key[0] + (f" ({key[2]})" if len(splits) > 1 else "")
        table.add_row(name, *(_percent(mine.get(column)) for column in columns))
    return table


def _shown(steps: Sequence[int]) -> list[int]:
    """All numbers of steps, or of too many for a line the powers of two and the last."""
    few = len(steps) <= COLUMNS
    return [t for t in steps if few or t == steps[-1] or t & (t - 1) == 0]


def _with_learned(rows: Sequence[Row]) -> list[Row]:
    """The rows, and behind the teacher's as given those of ANNs that were trained on the way."""
    more = [
        {"accuracy": row[name], **what}
        for name, what in TRAINED.items()
        for row in rows
        if row.get(name) is not None
    ]
    found: list[Row] = []
    for row in rows:
        found.append(row)
        if row["method"] == "teacher":
            found += [{**row, **each} for each in more]
    return found


def _percent(row: Row | None) -> str:
    """A row's accuracy in per cent, with its deviation over seeds where there is one."""
    if row is None:
        return ""
    value = f"{100 * row['accuracy']:.2f}"
    return value if row.get("std") is None else f"{value} ± {100 * row['std']:.2f}"


def priced(row: Row) -> str:
    """What a row's training took, in seconds and in epochs of its teacher; "" where unknown.

    Epochs are those with as many multiply-accumulates: by time they differ from run to run.
    """
    seconds, epochs = row.get("seconds"), row.get("ann_epochs_macs")
    if seconds is None or epochs is None:
        return ""
    price = f"the price of {epochs:,.1f} epochs of training the teacher"
    return f"{seconds:,.0f} s, by multiply-accumulates {price}"


def show(console: Console, result: Mapping[str, Any]) -> None:
    """The table of a result and where its files are."""
    if result.get("rows"):
        splits = sorted({str(row["split"]) for row in result["rows"]})
        few, whole = result.get("counts") or (0, 0)
        part = f"the first {few} of {whole} " if few < whole else ""
        console.print(f"accuracy on {part}{' and '.join(splits)} images, %", highlight=False)
        console.print(accuracy_table(result["rows"]))
        if priced(result["rows"][-1]):
            console.print(f"training took {priced(result['rows'][-1])}", highlight=False)
    for name in ("run", "files"):
        for place in _listed(result.get(name)):
            console.print(place, markup=False, highlight=False, soft_wrap=True)


def _listed(value: Any) -> list[str]:
    if value is None:
        return []
    return [str(value)] if isinstance(value, str) else [str(each) for each in value]
