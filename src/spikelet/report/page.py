"""The page: a comparison as one HTML file that needs nothing else."""

from __future__ import annotations

import base64
import struct
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.resources import files
from typing import Any

import torch
from jaxtyping import UInt8
from torch import Tensor

from spikelet.errors import UserError
from spikelet.report.charts import accuracy_chart, curve_chart, difference_chart, series_of
from spikelet.report.findings import percent, points
from spikelet.report.names import named, spiking_steps
from spikelet.report.parts import Section

Row = Mapping[str, Any]
SHOWN = 6  # findings that are not folded away
METHODS = {
    "teacher": "the ordinary network (ANN) that the others start from",
    "convert": "an ANN's weights, the teacher's or the student's own, with spiking neurons, "
    "calibrated for each T, not trained",
    "none": "the same start, trained on the labels alone, without the teacher",
    "logits": "trained on the labels and the teacher's softened answers",
    "hybrid": "trained on labels, the teacher's softened answers, and through the teacher's own "
    "later layers attached behind each stage",
    "affine": "trained on labels and features mapped to the teacher's",
    "supersnn": "trained on labels and relations between images, as the teacher sees them",
    "kdsnn-response": "trained on the teacher's softened answers, and a little on the labels",
    "kdsnn-feature": "trained on labels and the teacher's features",
    "fading": "trained on labels, and on the teacher's features and softened answers, which count "
    "less and less until the labels alone decide",
    "heterogeneous-temperature": "trained on labels and the teacher's answers, each side softened "
    "by a temperature of its own",
    "twkd": "trained on labels, the teacher's answers and the student's mean answer at every step",
    "distilling-spikes": "trained on labels and the number of spikes within windows of time",
    "qann": "no spiking network: the teacher with its activations quantised to T + 1 levels, "
    "trained like logits",
}


WORDS = {
    "ordinary network (ANN)": "its neurons pass on numbers; every number is multiplied by weights",
    "spiking network (SNN)": "its neurons pass on spikes, ones and zeros, at each of T time steps; "
    "the answer is the mean over the steps; a neuron that is silent costs nothing further on",
    "teacher and student": "the student usually starts from the teacher's weights and is trained "
    "to answer like it (distillation)",
    "accuracy": "the share of test images, never seen in training, that are sorted rightly",
    "T": "how many time steps the spiking network takes for an image; 1 is the fastest",
    "interval": "where the true value is expected in 95 of 100 such measurements; what was "
    "measured again, other seeds or other images, is said beside it",
    "firing rate": "spikes per neuron and time step; by layer: the mean in which each layer counts "
    "the same; by neuron: in which each neuron does",
}
LOOKS = {
    "accuracy": "Look for how few time steps come close to the dashed line, the teacher: every "
    "step costs time and energy.",
    "differences": "Look for bars that do not touch the line at 0: only these show a difference; "
    "above it the trained method is better, below it worse.",
    "training": "Look for curves that have levelled off: there is little left to gain by training "
    "longer.",
    "firing": "Look for short bars: only spikes cost work in the next layer. Silent channels never "
    "fire, always on fire at every step: both say nothing.",
    "answers": "Look for answers that become right with more time steps, and for those that even "
    "the teacher gets wrong.",
}


@dataclass(frozen=True)
class Example:
    """One image uint8 "C H W", its label, and what each network answers, by column title."""

    image: UInt8[Tensor, "C H W"]
    label: str
    answers: Mapping[str, str]


SPIKING_TEACHER = "the spiking network that teaches; students have an architecture of their own"


def described(rows: Sequence[Row]) -> dict[str, str]:
    """A sentence about each method among the rows that is one of ours."""
    methods = dict.fromkeys(row["method"] for row in rows)
    found = {method: METHODS[method] for method in methods if method in METHODS}
    if any(spiking_steps(row) is not None for row in rows):
        found["teacher"] = SPIKING_TEACHER
    return found


def page(
    rows: Sequence[Row],
    comparisons: Sequence[Row] = (),
    curves: Mapping[str, Sequence[float]] | None = None,
    health: Mapping[str, Mapping[str, float]] | None = None,
    *,
    title: str,
    lead: str = "",
    findings: Sequence[str] = (),
    default: str | None = None,
    examples: Mapping[str, Sequence[Example]] | None = None,
    notes: Mapping[str, str] | None = None,
    made: Mapping[str, str] | None = None,
    sections: Sequence[Section] = (),
) -> str:
    """One self-contained HTML page: no script, no request, light and dark.

    Args:
        rows: accuracies as the command line's JSON has them.
        comparisons: paired differences, from `comparison`.
        curves: method -> validation accuracy, 0 to 1, by epoch.
        health: layer -> rate, dead, saturated, from `measure.health`.
        title, lead: headline, and what was done in a sentence.
        findings: sentences, from `sentences`.
        default: the method to put first.
        examples: caption -> images with their answers.
        notes: section ("accuracy", "differences", "training", "firing") -> a sentence under it.
        made: how it was made: command, versions, seeds, hardware.
        sections: further ones, about single runs.

    Raises:
        UserError: if jinja2 or matplotlib is missing.
    """
    series, spiking = series_of(rows), [row for row in rows if row["steps"] is not None]
    steps = sorted({row["steps"] for row in spiking})
    return template("page.html.j2").render(
        title=title,
        lead=lead,
        findings=findings,
        shown=SHOWN,
        tiles=_tiles(rows, default, steps),
        steps=steps,
        table=_table(rows, series, steps),
        accuracy=accuracy_chart(rows, series) if spiking else "",
        comparisons=comparisons,
        differences=difference_chart(comparisons, series) if comparisons else "",
        curves=curve_chart(curves, series) if curves else "",
        health=health or {},
        default=default,
        examples=examples or {},
        notes=notes or {},
        made=made or {},
        words={**WORDS, **described(rows)},
        looks=LOOKS,
        sections=sections,
    )


def template(name: str) -> Any:
    """A template of this package.

    Raises:
        UserError: if jinja2 is missing.
    """
    try:
        from jinja2 import Environment, FunctionLoader, StrictUndefined
    except ImportError as error:
        raise UserError(
            "report", "jinja2 is not installed", "run `pip install 'spikelet[report]'`"
        ) from error
    environment = Environment(
        loader=FunctionLoader(_source),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=StrictUndefined,
    )
    environment.filters |= {"percent": percent, "points": points, "picture": picture}
    environment.filters["unbroken"] = unbroken
    return environment.get_template(name)


def _source(name: str) -> str:
    return files("spikelet.report").joinpath(name).read_text(encoding="utf-8")


def unbroken(words: str) -> str:
    """Keeps "T = 4" and "95 %" on one line."""
    return words.replace(" = ", "\N{NO-BREAK SPACE}=\N{NO-BREAK SPACE}").replace(
        " %", "\N{NO-BREAK SPACE}%"
    )


def _methods(rows: Sequence[Row]) -> list[str]:
    return list(dict.fromkeys(row["method"] for row in rows))


def _tiles(rows: Sequence[Row], default: str | None, steps: Sequence[int]) -> list[dict[str, Any]]:
    """The headline numbers: the teacher, and the default method at each T."""
    chosen = [row for row in rows if row["method"] in ("teacher", default)]
    return [
        {
            "name": named(row) if row["steps"] is None else f"{default}, T = {row['steps']}",
            "value": row["accuracy"],
        }
        for row in chosen
    ]


def _table(
    rows: Sequence[Row], series: Mapping[str, int], steps: Sequence[int]
) -> list[dict[str, Any]]:
    """A line per method: its colour (0 for the teacher) and its rows by T."""
    lines = []
    for method in _methods(rows):
        mine = {row["steps"]: row for row in rows if row["method"] == method}
        cells = [mine.get(t) for t in steps]
        colour = series[method] + 1 if method in series else 0
        one = mine.get(None)
        line = {"method": method, "colour": colour, "cells": cells, "one": one}
        line["name"] = method if one is None else named(one)
        line["timeless"] = one is not None and spiking_steps(one) is None
        lines.append(line)
    return lines


def picture(image: UInt8[Tensor, "C H W"]) -> str:
    """An image of one (grey) or three channels as a PNG in a data address."""
    image = image.cpu()
    if image.dtype != torch.uint8 or image.shape[0] not in (1, 3):
        raise UserError(
            f"image {tuple(image.shape)}", "expected uint8 with 1 or 3 channels", "convert it"
        )
    channels, height, width = image.shape
    lines = image.permute(1, 2, 0).reshape(height, width * channels)
    raw = b"".join(b"\0" + bytes(line.tolist()) for line in lines)
    header = struct.pack(">IIBBBBB", width, height, 8, 0 if channels == 1 else 2, 0, 0, 0)
    parts = ((b"IHDR", header), (b"IDAT", zlib.compress(raw, 9)), (b"IEND", b""))
    data = b"\x89PNG\r\n\x1a\n" + b"".join(_chunk(kind, content) for kind, content in parts)
    return "data:image/png;base64," + base64.b64encode(data).decode()


def _chunk(kind: bytes, content: bytes) -> bytes:
    """A PNG chunk: length, kind, content, checksum."""
    checksum = zlib.crc32(kind + content)
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", checksum)
