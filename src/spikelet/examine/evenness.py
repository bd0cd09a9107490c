"""`evenness`: where the accuracy of a spiking network goes, quantisation or uneven spikes."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from typing import Any

from torch import fx

from spikelet.errors import UserError
from spikelet.examine.subject import Subject
from spikelet.examine.table import Tell
from spikelet.execute import rate
from spikelet.measure.accuracy import accuracy_over_steps
from spikelet.measure.evenness import evenness, signed
from spikelet.quantise import quantised

LAYERS = 100  # images on which spikes are counted
WAYS = ("as it is", "signed spikes", "even spikes")


def examine(subject: Subject, tell: Tell) -> dict[str, Any]:
    """The same weights answer in three ways at each T; and each layer's spikes out of place.

    `rows` {"way", "steps", "accuracy"}: as it is; with neurons that take spikes back; and with
    spikes that arrive evenly, which is the ANN with T + 1 levels (methods "qann"). Even minus as it
    is, at the T of the training, is what unevenness costs (`lost`). `layers` by neuron path:
    `measure.evenness`.

    Raises:
        UserError: for a network without spikes, or with neurons that leak or reset to a potential.
    """
    seen = subject.student
    if not seen.spiking or not isinstance(seen.net, fx.GraphModule):
        raise UserError("measure evenness", "the network has no spikes", "measure a student's run")
    images, _ = next(subject.batches(LAYERS))
    tell(0, 1 + len(WAYS), "spikes of each layer")
    layers = evenness(seen.net, images, subject.steps, seen.encode)
    steps = subject.over or tuple(range(1, subject.steps + 1))
    ways = {
        WAYS[0]: (seen.net, seen.execute),
        WAYS[1]: (signed(seen.net), functools.partial(rate, fuse=fuses(seen.execute))),
        WAYS[2]: (seen.net, quantised),
    }
    rows = []
    for number, (way, (net, execute)) in enumerate(ways.items(), 1):
        tell(number, 1 + len(WAYS), way)
        found = accuracy_over_steps(net, subject.batches(), steps, execute, seen.encode)
        rows += [{"way": way, "steps": t, "accuracy": value} for t, value in found.items()]
    count, unevenness = len(subject.dataset.test), lost(rows, subject.steps)
    return {"n": count, "rows": rows, "lost": unevenness, "layers": layers}


def fuses(execute: Any) -> bool:
    """Whether a way of running compiles its neurons."""
    return bool(getattr(execute, "keywords", {}).get("fuse", False))


def lost(rows: list[dict[str, Any]], steps: int) -> float | None:
    """Accuracy with even spikes less that of the network as it is."""
    at = {row["way"]: row["accuracy"] for row in rows if row["steps"] == steps}
    return at[WAYS[2]] - at[WAYS[0]] if at else None


def say(found: Mapping[str, Any]) -> list[str]:
    """What was found, in sentences."""
    lines = [f"on the first {found['n']} images:"]
    for steps in sorted({row["steps"] for row in found["rows"]}):
        parts = [
            f"{row['way']} {100 * row['accuracy']:.1f} %"
            for row in found["rows"]
            if row["steps"] == steps
        ]
        lines.append(f"T = {steps}: {', '.join(parts)}")
    worst = max(found["layers"].items(), key=lambda item: item[1]["surplus"], default=None)
    if worst is not None:
        place, spikes = worst[0], worst[1]
        lines.append(
            f"most spikes too many in {place}: {spikes['surplus']:.3f} of {spikes['spikes']:.3f} "
            "spikes per neuron and image"
        )
    return lines
