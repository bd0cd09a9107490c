"""Energy out of operation counts: a spiking network beside the ANNs that could do its work.

An estimate by named constants, not a measurement: no machine costs exactly that. Each network is
costed by its parts, so that the reader sees which part decides.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from torch import Tensor

from spikelet.measure.costs import Precision
from spikelet.measure.counts import Additions, Counts, Layer
from spikelet.measure.definitions import analogue, passes
from spikelet.measure.signals import EVENTS
from spikelet.measure.traffic import Traffic, traffic

ACCOUNTINGS = ("synapses", "arithmetic", "arithmetic and SRAM", "arithmetic and DRAM")
"""What is added up: synaptic operations alone; with neurons and additions; with memory traffic."""


@dataclass(frozen=True)
class Part:
    """Picojoules per image: what is the same at every firing rate, and what grows with it."""

    fixed: float = 0.0
    driven: float = 0.0

    @property
    def total(self) -> float:
        """Both."""
        return self.fixed + self.driven

    def __add__(self, other: Part) -> Part:
        return Part(self.fixed + other.fixed, self.driven + other.driven)


@dataclass(frozen=True)
class Energy:
    """What one network costs per image, by part, in picojoules.

    Attributes:
        name: whose, and under which assumption.
        precision: the name of the precision.
        synapses: accumulates and multiply-accumulates of the layers.
        additions: sums of two signals, and what pooling adds.
        neurons: biases, thresholds, leaks and resets; or biases, activations, rescaling.
        sram, dram: all memory traffic, at 100 pJ (1 MB on chip) or 1,300 pJ for 64 bits.
    """

    name: str
    precision: str
    synapses: Part
    additions: Part
    neurons: Part
    sram: Part
    dram: Part

    def sum(self, accounting: str) -> Part:
        """The parts of one of the `ACCOUNTINGS` together."""
        arithmetic = self.synapses + self.additions + self.neurons
        table = {
            "synapses": self.synapses,
            "arithmetic": arithmetic,
            "arithmetic and SRAM": arithmetic + self.sram,
            "arithmetic and DRAM": arithmetic + self.dram,
        }
        return table[accounting]


def of_student(counts: Counts, precision: Precision) -> list[Energy]:
    """A spiking network under three assumptions.

    `strict`: sums and averages of spikes are multiply-accumulates, an input that is constant in
    time is computed once, the network runs step by step. `favourable`: each spike of a sum is an
    accumulate of its own and nothing is added before; all steps of a layer run before the next,
    which spares memory (`traffic`). `recomputed`: as strict, with every layer at every step.
    """
    normal, held = traffic(counts, precision), traffic(counts, precision, by_layer=True)
    spare = [each for each in counts.additions if not each.separable]
    rows = (
        ("strict", _synapses(counts, precision), counts.additions, normal),
        ("favourable", _synapses(counts, precision, separate=True), spare, held),
        ("recomputed", _synapses(counts, precision, again=True), counts.additions, normal),
    )
    return [
        Energy(
            name,
            precision.name,
            synapses,
            _additions(additions, precision, counts.steps),
            _neurons(counts, precision),
            *_memory(moved, precision),
        )
        for name, synapses, additions, moved in rows
    ]


def of_ann(counts: Counts, precision: Precision) -> list[Energy]:
    """An ANN that multiplies everything, and one that skips every zero."""
    dense = sum(layer.inside for layer in counts.layers)
    effective = _mean(layer.arrivals for layer in counts.layers)
    every = float(sum(each.entries for each in counts.additions))
    added = _mean(each.arrivals for each in counts.additions)
    return [
        _still("dense", dense * precision.mac, every, counts, precision, 1),
        _still("zero-skipping", effective * precision.mac, added, counts, precision, 1),
    ]


def of_quantised(counts: Counts, precision: Precision, steps: int) -> list[Energy]:
    """An ANN with T + 1 levels: dense, zero-skipping, and with one addition for each set bit.

    A level is a whole number from 0 to T, so its multiplication is a shift and an addition for
    each of its bits (`Precision.level`). An image takes MACs; so does a sum or an average of
    levels, unless these are taken bit by bit, as a favourable spiking network takes its spikes.
    """
    low = precision.level(steps.bit_length())
    level = [layer for layer in counts.layers if layer.input == "levels"]
    other = [layer for layer in counts.layers if layer.input != "levels"]
    dense = sum(x.inside for x in level) * low + sum(x.inside for x in other) * precision.mac
    skipping = _mean(x.arrivals for x in level) * low
    skipping += _mean(x.arrivals for x in other) * precision.mac
    by_bit = sum(_by_bit(layer, precision) for layer in counts.layers)
    added = _mean(each.arrivals for each in counts.additions)
    left = _mean(each.arrivals for each in counts.additions if not each.separable)
    every = float(sum(each.entries for each in counts.additions))
    return [
        _still("dense", dense, every, counts, precision, steps),
        _still("zero-skipping", skipping, added, counts, precision, steps),
        _still("zero-skipping, bit by bit", by_bit, left, counts, precision, steps),
    ]


def _by_bit(layer: Layer, precision: Precision) -> float:
    if layer.input in EVENTS:
        return float(layer.events.mean()) * precision.add
    return float(layer.arrivals.mean()) * precision.mac


def _still(
    name: str, synapses: float, added: float, counts: Counts, precision: Precision, levels: int
) -> Energy:
    """A network without time; `added` is how many additions sums and pooling take."""
    places = sum(cell.count for cell in counts.cells)
    rescaling = precision.multiply if counts.way == "quantised" else 0.0
    return Energy(
        name,
        precision.name,
        Part(synapses),
        Part(added * precision.add),
        Part(places * (2 * precision.add + rescaling)),
        *_memory(traffic(counts, precision, levels), precision),
    )


def _synapses(
    counts: Counts, precision: Precision, separate: bool = False, again: bool = False
) -> Part:
    """The layers of a spiking network."""
    total = Part()
    for layer in counts.layers:
        if analogue(layer):
            times = counts.steps if again else passes(layer, counts.steps)
            total += Part(layer.inside * times * precision.mac)
        else:
            total += Part(0.0, _driven(layer, precision, separate))
    return total


def _driven(layer: Layer, precision: Precision, separate: bool) -> float:
    if layer.input == "spikes":
        return float(layer.arrivals.mean()) * precision.add
    if separate:
        return float(layer.events.mean()) * precision.add
    return float(layer.arrivals.mean()) * precision.mac


def _additions(additions: Iterable[Additions], precision: Precision, steps: int) -> Part:
    """Additions of spikes grow with the rate; a current has a value at every step."""
    total = Part()
    for each in additions:
        driven = each.kind in EVENTS
        count = float(each.arrivals.mean()) if driven else each.entries * steps
        total += Part(0.0, count * precision.add) if driven else Part(count * precision.add)
    return total


def _neurons(counts: Counts, precision: Precision) -> Part:
    """Per neuron and step the addition of its bias and a comparison with theta; per spike a reset.

    A leak is a multiplication at every step, a second sign a second comparison. Norms are folded
    into biases, weights and thresholds; so is the gain of a current.
    """
    total = Part()
    for cell in counts.cells:
        leak = precision.multiply if cell.leaks else 0.0
        each = (2 + cell.signed) * precision.add + leak
        sent = float(cell.spikes.mean())
        total += Part(cell.count * counts.steps * each, sent * precision.add)
    return total


def _memory(moved: Traffic, precision: Precision) -> tuple[Part, Part]:
    constants = precision.constants
    levels = (constants.access_1mb, constants.access_dram)
    sram, dram = (Part(precision.memory(moved.total, access)) for access in levels)
    return sram, dram


def _mean(tensors: Iterable[Tensor]) -> float:
    return float(sum(float(tensor.mean()) for tensor in tensors))


@dataclass(frozen=True)
class Against:
    """A spiking network against one rival in one accounting, in picojoules per image.

    Attributes:
        assumption: under which the spiking network is costed.
        rival, precision, accounting: which comparison it is.
        student, other: what each of the two costs.
        rate: mean firing rate of the student as it was measured.
        break_even: the rate at which both cost the same if all that spikes cause grows in
            proportion to the rate; None if there is none between 0 and 1.
        why: in words, which of the two is cheaper at which rates.
    """

    assumption: str
    rival: str
    precision: str
    accounting: str
    student: float
    other: float
    rate: float
    break_even: float | None
    why: str

    @property
    def wins(self) -> bool:
        """Whether the student is cheaper as measured."""
        return self.student < self.other


def against(student: Energy, rival: Energy, name: str, accounting: str, rate: float) -> Against:
    """Compares a student at a firing rate with a rival called `name`, by one accounting."""
    mine, other = student.sum(accounting), rival.sum(accounting).total
    break_even, why = crossing(mine, other, rate)
    where = (student.name, name, student.precision, accounting)
    return Against(*where, mine.total, other, rate, break_even, why)


def crossing(mine: Part, other: float, rate: float) -> tuple[float | None, str]:
    """(rate at which fixed + driven r / rate = other, what that means); None outside 0 to 1."""
    if mine.fixed >= other:
        return None, "dearer even when it is silent"
    if mine.driven <= 0 or rate <= 0:
        return None, "cheaper; no spikes were counted"
    found = rate * (other - mine.fixed) / mine.driven
    if found > 1:
        return None, "cheaper at every firing rate"
    return found, f"cheaper below a mean firing rate of {found:.3f}"
