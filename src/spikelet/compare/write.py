"""What a comparison leaves: results.json, table.csv, table.md, report.html."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from spikelet.checkpoint import replacing
from spikelet.compare.closer import closer
from spikelet.compare.grid import Grid
from spikelet.compare.tune import UNTRAINED
from spikelet.compare.work import AGAIN, Job
from spikelet.errors import UserError
from spikelet.report import NOT_SHOWN, grid_page, hardware, named, spiking_steps
from spikelet.report.findings import listed, percent, points, signed
from spikelet.train import env, write_json
from spikelet.train.stored import stored_object

Row = Mapping[str, Any]
COLUMNS = (
    *("method", "kind", "steps", "accuracy", "std", "n", "seed", "split"),
    *("difference", "low", "high", "pairs", "verdict", "rate"),
    *("seconds", "ann_epochs", "macs", "peak_mib"),
    *("rate_by_layer", "rate_by_neuron"),
)
HEADS = (
    *("method", "T", "accuracy %", "std", "n", "to none", "95 % interval", "finding"),
    *("rate by layer", "seconds", "ANN epochs", "peak MiB"),
)
NUMBERS = (
    ("std", "std", 100, ".2f"),
    ("rate by layer", "rate", 1, ".3f"),
    ("seconds", "seconds", 1, ".1f"),
    ("ANN epochs", "ann_epochs", 1, ".1f"),
    ("peak MiB", "peak_mib", 1, ".0f"),
)


def write_tables(out: Path, result: Mapping[str, Any]) -> list[str]:
    """OUT/results.json, table.csv and table.md; their paths."""
    write_json(out / "results.json", {"schema": 1, **result})
    file = io.StringIO()
    writer = csv.DictWriter(file, COLUMNS, extrasaction="ignore", lineterminator="\n")
    writer.writeheader()
    writer.writerows(result["rows"])
    _write(out / "table.csv", file.getvalue())
    _write(out / "table.md", markdown(result))
    return [str(out / name) for name in ("results.json", "table.csv", "table.md")]


def write(out: Path, grid: Grid, result: Mapping[str, Any], jobs: Sequence[Job]) -> list[str]:
    """All files, the page among them where its packages are installed; their paths."""
    files = write_tables(out, result)
    summary = over_seeds(result["rows"])
    try:
        text = grid_page(
            summary,
            [row for row in result["rows"] if "run" in row],
            title=f"{len(grid.methods)} methods on {grid.data['kind']}",
            lead=_lead(grid),
            findings=result["findings"],
            notes=result["notes"],
            tuned=result["tuned"],
            failed=result["failed"],
            remaining=result["remaining"],
            made=_made(grid, result, jobs),
            sections=closer(out, grid, jobs),
        )
    except UserError as error:
        if error.argument != "report":
            raise
        return files
    _write(out / "report.html", text)
    return [str(out / "report.html"), *files]


def _write(path: Path, text: str) -> None:
    with replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def over_seeds(rows: Sequence[Row]) -> list[Row]:
    """The rows of the table: one for each method and T, which is the first."""
    first: dict[tuple[str, int | None], Row] = {}
    for row in rows:
        first.setdefault((row["method"], row["steps"] or spiking_steps(row)), row)
    return list(first.values())


def markdown(result: Mapping[str, Any]) -> str:
    """The table of means as text."""
    lines = [_line(HEADS), "|" + "---|" * len(HEADS)]
    for row in over_seeds(result["rows"]):
        words = cells(row)
        lines.append(_line(words[head] for head in HEADS))
    said = [*result["findings"], *result["notes"], *_unfinished(result)]
    return "\n".join([*lines, "", *(f"- {sentence}" for sentence in said), ""])


def _line(words: Iterable[str]) -> str:
    return "| " + " | ".join(words) + " |"


def cells(row: Row) -> dict[str, str]:
    """A row of the table in words, by column."""
    low, high = row["low"], row["high"]
    plain = row["kind"] in ("snn", "ann") or row["method"] == "teacher"
    marked = named(row) if plain else f"{row['method']} ({row['kind']})"
    words = {
        "method": marked,
        "T": str(row["steps"] or spiking_steps(row) or ""),
        "accuracy %": f"{100 * row['accuracy']:.2f}",
        "n": str(row["n"]),
        "to none": "" if row["difference"] is None else signed(100 * row["difference"]),
        "95 % interval": "" if low is None else f"{signed(100 * low)} to {signed(100 * high)}",
        "finding": _finding(row),
    }
    for head, key, scale, form in NUMBERS:
        words[head] = "" if row[key] is None else format(scale * row[key], form)
    return words


def _finding(row: Row) -> str:
    if row["verdict"] is not None:
        return str(row["verdict"])
    return "one seed: no interval" if row["difference"] is not None else ""


def failures(result: Mapping[str, Any]) -> Iterator[str]:
    """A sentence for each cell that failed."""
    for each in result["failed"]:
        name = f"{each['method']}, T = {each['steps']}, seed {each['seed']}"
        yield f"failed: {name}: `{each['argument']}`: {each['message']}; {each['fix']}."


def _unfinished(result: Mapping[str, Any]) -> Iterator[str]:
    yield from failures(result)
    if result["remaining"]:
        yield f"not computed yet: {', '.join(result['remaining'])}."


def findings(rows: Sequence[Row]) -> list[str]:
    """What the table shows, in sentences, for each T."""
    summary = over_seeds(rows)
    found = [_teacher(row) for row in summary if row["method"] == "teacher"]
    for steps in sorted({row["steps"] for row in summary if row["steps"] is not None}):
        found += _at(steps, [row for row in summary if row["steps"] == steps])
    return found


def _teacher(row: Row) -> str:
    """How the teacher answers, and which teacher where there are two or it needs a T."""
    steps, note = spiking_steps(row), row.get("note")
    what = "The teacher" if steps is None else f"The spiking teacher at T = {steps}"
    what = f"{what} ({note})" if note else what
    return f"{what} answers {percent(row['accuracy'])} of the {row['split']} images correctly."


def _at(steps: int, rows: Sequence[Row]) -> Iterator[str]:
    """The sentences of one T."""
    base = [row for row in rows if row["method"] == "none"]
    if base:
        share = percent(base[0]["accuracy"])
        yield f"At T = {steps} the same student without distillation (none) reaches {share}."
    for verdict in ("better", "worse"):
        mine = [row for row in rows if row["verdict"] == verdict]
        if mine:
            each = listed(_interval(row) for row in mine)
            yield f"At T = {steps}, {verdict} than none: {each}."
    for pairs in sorted({row["pairs"] for row in rows if row["verdict"] == NOT_SHOWN}):
        same = [r for r in rows if r["verdict"] == NOT_SHOWN and r["pairs"] == pairs]
        names = listed(row["method"] for row in same)
        yield f"At T = {steps}, {NOT_SHOWN} to none over {pairs} seeds: {names}."
    alone = [r["method"] for r in rows if r["difference"] is not None and r["low"] is None]
    if alone:
        yield f"At T = {steps}, one seed, so no interval and no claim: {listed(alone)}."
    yield from _cost(steps, [row for row in rows if row["seconds"] is not None])


def _interval(row: Row) -> str:
    kind = "" if row["kind"] == "snn" else f"{row['kind']}, "
    ends = f"{points(row['low'])} to {points(row['high'])}, {row['pairs']} seeds"
    return f"{row['method']} ({kind}{points(row['difference'])} points, 95 % interval {ends})"


def _cost(steps: int, rows: Sequence[Row]) -> Iterator[str]:
    """Which method took longest to train."""
    base = next((row["seconds"] for row in rows if row["method"] == "none"), None)
    most = max(rows, key=lambda row: row["seconds"], default=None)
    if most is not None and base and most["method"] != "none":
        ratio = f"{most['seconds'] / base:.1f} times none"
        yield f"At T = {steps}, {most['method']} took longest: {most['seconds']:.1f} s, {ratio}."


def commits(jobs: Sequence[Job]) -> list[str]:
    """The commits that the finished cells were computed with."""
    found: dict[str, None] = {}
    for job in jobs:
        path = job.folder / "env.json"
        git = stored_object(path, AGAIN).get("git") if job.finished and path.exists() else None
        if isinstance(git, dict) and "commit" in git:
            found[f"{git['commit']}{' with changes' * bool(git.get('changed'))}"] = None
    return list(found)


def _lead(grid: Grid) -> str:
    """What was done, in a sentence."""
    steps = listed(f"{t}" for t in sorted(grid.steps))
    seeds = f"{grid.seeds} seeds" if grid.seeds > 1 else "1 seed"
    return (
        f"Every method got the same teacher, data, order of the data, initial student, epochs and "
        f"tuning: {len(grid.methods)} methods, T = {steps}, {seeds}."
    )


def _made(grid: Grid, result: Mapping[str, Any], jobs: Sequence[Job]) -> dict[str, str]:
    """How it was made, in the report's words."""
    trained = [job for job in jobs if job.finished and job.recipe.method != UNTRAINED]
    training = trained[0].recipe.training if trained else None
    settings = (f"{key} {value}" for key, value in grid.data.items() if key != "kind")
    made = {"data": ", ".join([grid.data["kind"], *settings])}
    if training is not None:
        made["training"] = (
            f"{training.epochs} epochs of {training.optimiser}, batch {training.batch}"
        )
    if grid.overrides:
        made["settings"] = ", ".join(f"{k} = {v}" for k, v in grid.overrides.items())
    versions = env("cpu")["versions"].items()
    made["hardware"] = hardware()
    made["versions"] = ", ".join(f"{name} {version}" for name, version in versions)
    if result["commits"]:
        made["commit"] = ", ".join(result["commits"])
    return made
