"""The counts that other tools and papers would report for the same run, under their names."""

from __future__ import annotations

from typing import Any

from spikelet.measure.costs import FP32
from spikelet.measure.counts import Counts, Layer


def definitions(counts: Counts) -> list[dict[str, Any]]:
    """What one run of a spiking network counts by each definition, means per image.

    `accumulates` and `macs` are operations, `picojoules` 0.9 and 4.6 pJ for each (45 nm, fp32),
    `what` says what is counted.
    """
    found = (*exact(counts), neurobench(counts), spikingjelly(counts), *papers(counts))
    dense = sum(layer.dense for layer in counts.layers)
    passes = f"all {counts.steps} steps, every position of every layer, padding included"
    return [*found, _row("dense", 0.0, float(dense * counts.steps), passes)]


def _row(name: str, accumulates: float, macs: float, what: str) -> dict[str, Any]:
    picojoules = FP32.add * accumulates + FP32.mac * macs
    return {
        "name": name,
        "accumulates": accumulates,
        "macs": macs,
        "picojoules": picojoules,
        "what": what,
    }


def analogue(layer: Layer) -> bool:
    """Whether what arrives at a layer has nothing to do with spikes: an image or a current."""
    return layer.input in ("image", "current", "activation")


def passes(layer: Layer, steps: int) -> int:
    """How often a layer must be computed: once if its input is constant in time."""
    return 1 if layer.constant else steps


def exact(counts: Counts) -> list[dict[str, Any]]:
    """Each arriving number that is not zero times its exact fan-out, by kind of signal."""
    binary = _sum(layer.arrivals for layer in counts.layers if layer.input == "spikes")
    mixed = [layer for layer in counts.layers if layer.input == "multi-valued"]
    several, separate = (
        _sum(layer.arrivals for layer in mixed),
        _sum(layer.events for layer in mixed),
    )
    others = [layer for layer in counts.layers if analogue(layer)]
    once = sum(layer.inside * passes(layer, counts.steps) for layer in others)
    again = sum(layer.inside * counts.steps for layer in others)
    first = "analogue input dense without padding, once where it is constant"
    return [
        _row("exact", binary, once + several, f"multi-valued input as MACs; {first}"),
        _row("exact, spikes one by one", binary + separate, once, f"sums as spikes; {first}"),
        _row("exact, recomputed", binary, again + several, "as exact, all layers at every step"),
    ]


def neurobench(counts: Counts) -> dict[str, Any]:
    """NeuroBench's effective ACs and MACs (`SynapticOperations`, 2.3): non-zero times fan-out.

    Of both signs, at every step, of a network whose thresholds are folded into its weights.
    NeuroBench looks at the values of each call, so that a sum of spikes which holds only 0 and 1
    is an AC there; and it leaves out weights that are exactly zero.
    """
    binary = _sum(layer.arrivals for layer in counts.layers if layer.input == "spikes")
    rest = _sum(layer.arrivals for layer in counts.layers if layer.input != "spikes")
    dense = sum(layer.inside for layer in counts.layers) * counts.steps
    what = "effective ACs and MACs, non-zero inputs at every step, padding respected"
    return _row("NeuroBench", binary, rest, what) | {"dense": dense}


def spikingjelly(counts: Counts) -> dict[str, Any]:
    """SpikingJelly's `SynOpCounter` and `MACCounter` (2.0): only inputs of 0 and 1 are SynOps.

    Thresholds folded into the weights. What holds a negative spike, or a sum, is dense MACs at
    every step, padding included. SpikingJelly, too, looks at values.
    """

    def sure(layer: Layer) -> bool:
        return layer.input == "spikes" and not bool(layer.negative.any())

    dense = sum(layer.dense for layer in counts.layers if not sure(layer))
    what = "SynOps of inputs that are 0 or 1; all else dense MACs at every step"
    found = _sum(layer.arrivals for layer in counts.layers if sure(layer))
    return _row("SpikingJelly", found, float(dense * counts.steps), what)


def papers(counts: Counts) -> list[dict[str, Any]]:
    """The formula of most papers: 0.9 pJ fr T FLOPs for each layer but the first, 4.6 pJ FLOPs.

    fr is the share of a layer's input entries that are not zero, as if padding fired, too; FLOPs
    are dense multiply-accumulates. The first layer counts once, or once for each step.
    """
    first, rest = counts.layers[:1], counts.layers[1:]
    operations = sum(float(layer.nonzero.mean()) / layer.entries * layer.dense for layer in rest)
    dense = float(sum(layer.dense for layer in first))
    rule = "0.9 pJ x firing rate x T x FLOPs, 4.6 pJ x FLOPs of the first layer"
    return [
        _row("papers' formula, first layer once", operations, dense, f"{rule}, once"),
        _row("papers' formula", operations, dense * counts.steps, f"{rule}, at every step"),
    ]


def _sum(tensors: Any) -> float:
    """The mean per image of a sum of counts "B"."""
    return float(sum(float(tensor.mean()) for tensor in tensors))
