"""Training curves: validation accuracy, the loss, and each of its parts, of all runs together."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from spikelet.report.findings import listed
from spikelet.report.parts import Block, Chart, Note, Panels, Rows, Section
from spikelet.report.plots import Line, lines_chart
from spikelet.story.cast import CONVERT, Cast, Chapter
from spikelet.story.numbers import counted, plain
from spikelet.story.told import Row, Told

LOOK = (
    "Look for curves that have levelled off, and for validation accuracy that does not fall while "
    "the loss still does: that would be learning by heart."
)
ONE = "One pass through the training images: there is no curve, only where it ended."
UNRECORDED = "no curve, as its record of the training (metrics.jsonl) is lost or damaged."
PARTS = {
    "ce": "cross entropy: the labels",
    "logits": "logits: the teacher's answers",
    "hybrid": "hybrid: the teacher's later layers",
    "feature": "feature: the teacher's features",
    "relation": "relation: likeness between images",
    "affine": "affine: features, mapped",
}
PRICES = {"ann_epochs": "by time", "ann_epochs_macs": "by multiply-accumulates"}
Read = Callable[[Row], float | None]


def training(cast: Cast) -> Chapter | None:
    """The curves of the runs that were trained; None where none was."""
    runs = [run for run in cast.runs if run.epochs]
    lost = [run for run in cast.runs if not run.epochs and run.recipe.method != CONVERT]
    notes = [Note(f"{run.label}: {UNRECORDED}") for run in lost]
    if not runs:
        return Chapter(Section("Training", "", [*notes])) if notes else None
    parts = dict.fromkeys(part for run in runs for part in run.epochs[-1].get("parts", {}))
    shown: list[tuple[str, str, str, Read]] = [
        ("validation", "validation accuracy", "%", lambda row: _percent(row)),
        ("loss", "loss that is minimised", "loss", lambda row: row["loss"]),
        *(
            (f"part-{number}", PARTS.get(part, part), "loss", _part(part))
            for number, part in enumerate(parts)
        ),
    ]
    if all(len(run.epochs) == 1 for run in runs):
        return Chapter(Section("Training", ONE, [_only(runs, shown), Note(_words(runs)), *notes]))
    charts = [
        Chart(_drawn(f"training-{name}", up, read, runs, cast), f"{title} over epochs", title)
        for name, title, up, read in shown
        if any(read(row) is not None for run in runs for row in run.epochs)
    ]
    blocks: list[Block] = [Panels(charts, cast.keys([run.label for run in runs]))]
    return Chapter(Section("Training", LOOK, [*blocks, Note(_words(runs)), *notes]))


def _only(runs: Sequence[Told], shown: Sequence[tuple[str, str, str, Read]]) -> Rows:
    """What the only epoch of each run came to."""
    body = [
        [
            f"{title}, %" if up == "%" else title,
            *(plain(read(run.epochs[0]), 1 if up == "%" else 3) for run in runs),
        ]
        for _, title, up, read in shown
        if any(read(run.epochs[0]) is not None for run in runs)
    ]
    return Rows(["after one epoch", *(run.label for run in runs)], body)


def _percent(row: Row) -> float | None:
    value = (row.get("validation") or {}).get("accuracy")
    return None if value is None else 100 * value


def _part(name: str) -> Read:
    return lambda row: (row.get("parts") or {}).get(name)


def _drawn(name: str, up: str, read: Read, runs: Sequence[Told], cast: Cast) -> str:
    """A line for each run that has this."""
    lines = [
        Line(
            [row["epoch"] for row in run.epochs],
            [read(row) for row in run.epochs],
            cast.colour(run.label),
            cast.line(run.label),
            marked=len(run.epochs) == 1,
        )
        for run in runs
        if any(read(row) is not None for row in run.epochs)
    ]
    return lines_chart(name, lines, along="epoch", up=up, whole=True)


def _words(runs: Sequence[Told]) -> str:
    """What training took, and what validation would have chosen."""
    said = ["Parts of the loss are shown without their weights."]
    for run in runs:
        last = run.rows[-1]
        seconds = last.get("seconds") or sum(row.get("seconds", 0.0) for row in run.epochs)
        words = f"{run.label}: {counted(len(run.epochs), 'epoch')}, "
        words += f"{seconds:.1f} s of training steps"
        prices = [f"{last[k]:.1f} {how}" for k, how in PRICES.items() if last.get(k) is not None]
        if prices:
            words += f", in epochs of training the teacher {listed(prices)}"
        if last.get("accuracy_selected") is not None:
            words += (
                f"; the epoch that validation would choose ({last['epoch_selected']}) has "
                f"{100 * last['accuracy_selected']:.1f} % on the test part"
            )
        said.append(words + ".")
    return " ".join(said)
