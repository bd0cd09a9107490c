"""Memory traffic by one simple model: every tensor passes through memory once for each use.

Weights are read once for each pass of their layer, the input of a layer once for each pass, what
a neuron or an activation sends is written once, a potential is read and written at every step.
No pass is tiled and nothing is compressed: a spike is one bit (two if signed) whether it is sent
or not, a level the bits it needs, anything else a full value.
"""

from __future__ import annotations

from dataclasses import dataclass

from spikelet.measure.costs import Precision
from spikelet.measure.counts import Counts
from spikelet.measure.signals import Kind


@dataclass(frozen=True)
class Traffic:
    """Bits that move for one image: weights and biases, potentials, signals between layers."""

    weights: float
    potentials: float
    signals: float

    @property
    def total(self) -> float:
        """All of them."""
        return self.weights + self.potentials + self.signals


def traffic(
    counts: Counts, precision: Precision, levels: int = 1, by_layer: bool = False
) -> Traffic:
    """The bits that one image moves.

    Args:
        counts: of a network of any kind.
        precision: how many bits a weight, a value and a potential have.
        levels: T of a quantised activation with T + 1 levels.
        by_layer: a spiking network runs all steps of a layer before the next, as it can for a
            static image: its weights are read once and its potentials never leave the neuron.
    """
    steps, spiking = counts.steps, counts.way == "spiking"
    signed = any(cell.signed for cell in counts.cells)
    width = {"spikes": 1 + signed, "levels": levels.bit_length()}

    def bits(kind: Kind) -> int:
        return width.get(kind, precision.value)

    weights = sum(
        layer.parameters * (1 if layer.constant or by_layer else steps) for layer in counts.layers
    )
    arriving = sum(
        layer.entries * bits(layer.input) * (1 if layer.constant else steps)
        for layer in counts.layers
    )
    added = sum(each.entries * bits(each.kind) for each in counts.additions) * steps
    sent = sum(cell.count for cell in counts.cells) * bits(_output(counts)) * steps
    held = sum(cell.count for cell in counts.cells) * steps if spiking and not by_layer else 0
    return Traffic(
        float(weights * precision.weight),
        2.0 * held * precision.state,
        float(arriving + added + sent),
    )


def _output(counts: Counts) -> Kind:
    """What the neurons or activations of a network send."""
    sent: dict[str, Kind] = {"spiking": "spikes", "quantised": "levels", "ann": "activation"}
    return sent[counts.way]
