"""Where accuracy goes: too few steps to count with, or spikes that arrive unevenly."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from spikelet.report.findings import points
from spikelet.report.parts import Block, Chart, Fold, Key, Note, Panels, Rows, Section
from spikelet.report.plots import Line, lines_chart
from spikelet.story.cast import Cast, Chapter
from spikelet.story.numbers import plain, settings_words, share
from spikelet.story.told import Source

LOOK = (
    "Look for the gap between the solid line, the network as it is, and the dashed one, the same "
    "weights if all spikes arrived evenly: that gap is lost to spikes sent too early, which cannot "
    "be taken back. What is missing even on the dashed line is lost to the few levels of T steps."
)
DASHES = {"as it is": "", "signed spikes": "dotted", "even spikes": "dashed"}
KEYS = {
    "as it is": "as it is",
    "signed spikes": "if spikes could be taken back",
    "even spikes": "if spikes arrived evenly",
}


def evenness(cast: Cast) -> Chapter | None:
    """The same weights in three ways over T, and each layer's spikes out of place."""
    found = cast.sources("evenness")
    if not found:
        return None
    charts = [_chart(cast, source, number) for number, source in enumerate(found)]
    keys = [Key(words, 0, DASHES[way]) for way, words in KEYS.items()]
    blocks: list[Block] = [Panels(charts, keys)]
    for source in found:
        blocks += [_table(source), _layers(source)]
    words = "; ".join(f"{source.own}: {settings_words(source.found)}" for source in found)
    blocks.append(Note(f"{words}."))
    said = [words for source in found for words in _findings(source)]
    return Chapter(Section("What uneven spikes cost", LOOK, blocks), said)


def _chart(cast: Cast, source: Source, number: int) -> Chart:
    """One run's accuracy over T in three ways."""
    lines = []
    for way, dashes in DASHES.items():
        rows = [row for row in source.found["rows"] if row["way"] == way]
        values = [100 * row["accuracy"] for row in rows]
        steps = [row["steps"] for row in rows]
        lines.append(Line(steps, values, cast.colour(source.own), dashes))
    drawn = lines_chart(
        f"evenness-{number}", lines, along="time steps T", up="accuracy, %", steps=True
    )
    label = f"Accuracy of {source.own} over time steps, as it is and with even spikes"
    return Chart(drawn, label, source.own)


def _steps(source: Source) -> Sequence[int]:
    return sorted({row["steps"] for row in source.found["rows"]})


def _table(source: Source) -> Rows:
    known = {(row["way"], row["steps"]): row["accuracy"] for row in source.found["rows"]}
    steps = _steps(source)
    body = [[w, *(share(known.get((way, t))) for t in steps)] for way, w in KEYS.items()]
    return Rows([f"{source.own}, accuracy in %", *(f"T = {t}" for t in steps)], body)


def _layers(source: Source) -> Fold:
    body = [
        [path, plain(layer["spikes"]), plain(layer["surplus"]), plain(layer["missing"])]
        for path, layer in source.found["layers"].items()
    ]
    head = ["per neuron and image", "spikes", "too many", "missing"]
    return Fold(f"{source.own}: spikes out of place, layer by layer", [Rows(head, body)])


def _findings(source: Source) -> list[str]:
    lost = source.found.get("lost")
    if lost is None:
        return []
    t = (source.found.get("settings") or {}).get("steps")
    words = f"If its spikes arrived evenly, {source.own} would be"
    if round(100 * lost, 1) == 0:
        return [f"{words} as accurate at T = {t} as it is."]
    size, side = points(abs(lost)).lstrip("+"), "more" if lost > 0 else "less"
    said = f"{words} {size} points {side} accurate at T = {t}"
    count = source.found["n"]
    if abs(lost) < 2 * _error(source.found["rows"], t, count):
        said += f", no more than chance may give on {count:,} images"
    return [f"{said}."]


def _error(rows: Sequence[Mapping[str, Any]], steps: int | None, images: int) -> float:
    """Standard error of a difference to even spikes, as if it were of other images each."""
    compared = ("as it is", "even spikes")
    shares = [row["accuracy"] for row in rows if row["steps"] == steps and row["way"] in compared]
    return math.sqrt(sum(share * (1 - share) / images for share in shares))
