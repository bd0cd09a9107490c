"""What was counted for a network on some images; nothing here knows what an operation costs."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from spikelet.measure.signals import Kind

Way = Literal["spiking", "quantised", "ann"]


@dataclass(frozen=True)
class Layer:
    """What happened at one convolution or linear layer. Tensors are per image, float64 "B".

    Attributes:
        path: its node.
        kind: what it is, such as "Conv2d".
        input: the kind of signal that arrives.
        constant: whether that is the same at every step, so that once is enough.
        parameters: how many weights and biases it has.
        entries, outputs: how many numbers arrive, and leave, at one step.
        dense: multiply-accumulates of one step with padding as input ("FLOPs" in papers).
        inside: the same without what padding multiplies.
        nonzero: how many of the arriving numbers are not zero, over all steps.
        arrivals: the weights that these meet: nonzero entry times its exact fan-out, over all
            steps. For binary spikes, of either sign, these are the accumulates.
        events: the same with every spike of a sum or an average counted by itself, and every set
            bit of a level: the additions of a machine that takes them one by one.
        negative: how many of the arriving numbers are below zero, over all steps.
    """

    path: str
    kind: str
    input: Kind
    constant: bool
    parameters: int
    entries: int
    outputs: int
    dense: int
    inside: float
    nonzero: Tensor
    arrivals: Tensor
    events: Tensor
    negative: Tensor


@dataclass(frozen=True)
class Cells:
    """The neurons or activations of one layer.

    Attributes:
        path: its node.
        count: how many there are.
        spikes: how many spikes left, of both signs, over all steps; of an activation, how many
            are not zero. Per image, float64 "B".
        negative: how many of these were negative.
        leaks: whether the potential is multiplied at every step.
        signed: whether spikes have two signs.
    """

    path: str
    count: int
    spikes: Tensor
    negative: Tensor
    leaks: bool = False
    signed: bool = False


@dataclass(frozen=True)
class Additions:
    """A sum of two signals, or the additions of a pooling.

    Two currents meet in the same accumulator and cost nothing more; a current that goes elsewhere
    too, a spike or an activation costs one addition for each entry (`entries`, per step) that is
    not zero (`arrivals`, over all steps, per image, float64 "B").

    Attributes:
        path: its node.
        kind: the kind of signal that is added.
        entries, arrivals: see above.
        separable: whether a later layer could take spikes, or bits of levels, one by one instead
            (`Layer.events`), so that nothing is added here.
    """

    path: str
    kind: Kind
    entries: int
    arrivals: Tensor
    separable: bool


@dataclass(frozen=True)
class Counts:
    """All that was counted for one network over `steps` steps, in network order.

    `uncounted` names the operations that no count knows.
    """

    way: Way
    steps: int
    layers: tuple[Layer, ...] = ()
    cells: tuple[Cells, ...] = ()
    additions: tuple[Additions, ...] = ()
    uncounted: tuple[str, ...] = ()

    @property
    def rate(self) -> float:
        """Mean |s| per neuron and step, over all images."""
        places = sum(cell.count for cell in self.cells) * self.steps
        return sum(float(cell.spikes.mean()) for cell in self.cells) / max(places, 1)


def joined(parts: Sequence[Counts]) -> Counts:
    """The counts of several batches of images as those of all, in order."""
    first = parts[0]
    groups: dict[str, Any] = {}
    for name in ("layers", "cells", "additions"):
        rows = zip(*(getattr(part, name) for part in parts), strict=True)
        groups[name] = tuple(_together(row) for row in rows)
    return dataclasses.replace(first, **groups)


def _together(rows: Sequence[Any]) -> Any:
    """One row of all images out of the rows of each batch."""
    names = [f.name for f in dataclasses.fields(rows[0])]
    tensors = [name for name in names if isinstance(getattr(rows[0], name), Tensor)]
    return dataclasses.replace(
        rows[0], **{name: torch.cat([getattr(row, name) for row in rows]) for name in tensors}
    )
