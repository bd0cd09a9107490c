"""Exact operation counts of a network on given images, layer by layer and image by image.

`operations` runs a network once and counts; nothing here knows what an operation costs.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor, fx, nn
from torch.nn.modules.dropout import _DropoutNd

from spikelet.dual import fold, unfold
from spikelet.errors import UserError
from spikelet.graph import ACTIVATIONS, capture, walk
from spikelet.measure.accuracy import evaluating
from spikelet.measure.counts import Additions, Cells, Counts, Layer, Way
from spikelet.measure.signals import (
    EVENTS,
    Signal,
    is_average,
    is_sum,
    known,
    opened,
    passed,
    signals_in,
)
from spikelet.measure.synapses import FUNCTIONS, Synapses, synapses_of
from spikelet.neuron import Integrator, Neuron, per_channel, scan
from spikelet.quantise import counts_to_a_level, levels

HANDED_ON = (nn.Identity, nn.Flatten, nn.ZeroPad2d, _DropoutNd)


def operations(
    net: nn.Module, x: Tensor, way: Way = "spiking", shown: Literal["image", "spikes"] = "image"
) -> Counts:
    """Counts what a network does with an input over time, for each image.

    Args:
        net: a classifier; with neurons for the ways "spiking" and "quantised".
        x: "T B ...", what the network sees; a view that repeats images (`encode.repeat`) counts
            as constant. An ANN sees the mean over T, once.
        way: as it is, as the ANN with T + 1 levels that its neurons stand for
            (`quantise.quantised`), or an ANN.
        shown: whether a spiking network's input is an image or the spikes of an encoder.

    Raises:
        UserError: if torch.fx cannot trace the network, or, for "quantised", a neuron leaks or
            resets to a fixed potential.
    """
    graph = net if isinstance(net, fx.GraphModule) and "moved" in net.meta else capture(net)
    constant, steps = x.stride(0) == 0, len(x)
    if way != "spiking":
        x, constant = (x[:1] if constant else x.mean(0, keepdim=True)), True
    count = _Count(way, len(x), steps)
    with evaluating(graph):
        walk(graph, Signal(fold(x), shown if way == "spiking" else "image", constant), count.rule)
    layers, cells, additions = tuple(count.layers), tuple(count.cells), tuple(count.additions)
    return Counts(way, len(x), layers, cells, additions, tuple(dict.fromkeys(count.uncounted)))


@dataclass(frozen=True)
class _Count:
    """One run under way: what a call costs is noted, and its result handed on."""

    way: Way
    steps: int
    levels: int
    layers: list[Layer] = field(default_factory=list)
    cells: list[Cells] = field(default_factory=list)
    additions: list[Additions] = field(default_factory=list)
    uncounted: list[str] = field(default_factory=list)

    def rule(self, node: fx.Node, function: Any, args: Any, kwargs: Any) -> Any:
        given = signals_in((args, kwargs))
        if not given:
            return function(*args, **kwargs)
        if isinstance(function, Neuron):
            return self._neurons(node, function, given[0])
        if isinstance(function, ACTIVATIONS):
            return self._activation(node, function, given[0])
        synapses = synapses_of(function, args, kwargs)
        if synapses is not None:
            return self._layer(node, function, synapses, args, kwargs)
        if is_sum(node) or is_average(node, function):
            self._adds(node, given)
        elif not known(node, function, args):
            self.uncounted.append(getattr(function, "__name__", type(function).__name__))
        return passed(node, function, args, kwargs)

    def _neurons(self, node: fx.Node, neuron: Neuron, x: Signal) -> Signal:
        if self.way == "quantised":
            return self._quantised(node, neuron, x)
        currents = unfold(x.value, self.steps)
        spikes = scan(neuron, currents).spikes
        sent, negative = self._per_image(spikes.ne(0)), self._per_image(spikes.lt(0))
        leaks = not bool((torch.as_tensor(getattr(neuron, "leak", 1.0)) == 1).all())
        signed = bool(getattr(neuron, "signed", False))
        size = currents[0, 0].numel()
        self.cells.append(Cells(node.name, size, sent, negative, leaks, signed))
        value = spikes * per_channel(neuron.theta, currents[0]).to(spikes)
        return Signal(fold(value), "spikes")

    def _quantised(self, node: fx.Node, neuron: Neuron, x: Signal) -> Signal:
        even = _require_levels(neuron)
        value = levels(x.value, even.theta, even.given(x.value, self.levels), self.levels)
        theta = per_channel(neuron.theta, value).to(value)
        self._cell(node, value)
        bits = set_bits((value * self.levels / theta).round(), self.levels)
        return Signal(value, "levels", True, bits)

    def _activation(self, node: fx.Node, function: Any, x: Signal) -> Signal:
        value = function(x.value)
        self._cell(node, value)
        return Signal(value, "activation", x.constant)

    def _cell(self, node: fx.Node, value: Tensor) -> None:
        sent = self._per_image(unfold(value, self.steps).ne(0))
        self.cells.append(Cells(node.name, value[0].numel(), sent, 0 * sent))

    def _layer(
        self, node: fx.Node, function: Any, synapses: Synapses, args: Any, kwargs: Any
    ) -> Signal:
        x = signals_in((args, kwargs))[0]
        plain = [opened(each, lambda signal: signal.value) for each in (args, kwargs)]
        value = function(*plain[0], **plain[1])
        at = 2 if synapses.kernel else x.value.ndim
        size = x.value.shape[at:]
        fan = synapses.fan_out(size).to(x.value.device)
        positions = value.shape[2:] if synapses.kernel else value.shape[1:-1]
        mask = x.value.ne(0)
        met = self._met(mask, fan)
        self.layers.append(
            Layer(
                node.name,
                synapses.kind,
                x.kind,
                x.constant,
                synapses.parameters,
                x.value[0].numel(),
                value[0].numel(),
                synapses.dense(positions),
                float(fan.sum()) * (x.value[0].numel() // max(fan.numel(), 1)),
                self._per_image(unfold(mask, self.steps)),
                met,
                met if x.events is None else self._met(x.events, fan),
                self._per_image(unfold(x.value.lt(0), self.steps)),
            )
        )
        return Signal(value, "current", x.constant)

    def _met(self, amount: Tensor, fan: Tensor) -> Tensor:
        """Each image's sum of an amount "(T B) ..." times the fan-out of its place, "B"."""
        if not fan.ndim:
            return self._per_image(unfold(amount, self.steps)) * fan
        by_place = amount.sum(1, dtype=torch.float32).flatten(1).double()
        return unfold(by_place @ fan.flatten(), self.steps).sum(0)

    def _adds(self, node: fx.Node, given: list[Signal]) -> None:
        arriving = given if len(given) == 1 else _costly(node, given)
        if len(given) == 1 and is_sum(node):
            return  # a number is added: a bias
        for x in arriving:
            arrivals = self._per_image(unfold(x.value.ne(0), self.steps))
            separable = all(each.kind in EVENTS for each in given)
            size = x.value[0].numel()
            self.additions.append(Additions(node.name, x.kind, size, arrivals, separable))

    def _per_image(self, amount: Tensor) -> Tensor:
        """Each image's sum of an amount "T B ...", float64 "B"."""
        return amount.flatten(2).sum(2, dtype=torch.float32).double().sum(0)


def _require_levels(neuron: Neuron) -> Integrator:
    """The neuron; raises for one that sums up to no level."""
    if not counts_to_a_level(neuron):
        what = "it leaks or resets to a fixed potential, so that it stands for no level"
        raise UserError(f"neuron {type(neuron).__name__}", what, "count it as it is, with spikes")
    return neuron


def _costly(node: fx.Node, given: Sequence[Signal]) -> list[Signal]:
    """The summands that cost additions: all but currents of their own, and all but one."""
    operands = (*node.args, *node.kwargs.values())
    nodes = [operand for operand in operands if isinstance(operand, fx.Node)]
    free = [
        signal.kind == "current" and _goes_nowhere_else(source)
        for signal, source in zip(given, nodes, strict=True)
    ]
    if not any(free):
        free[0] = True
    return [signal for signal, nothing in zip(given, free, strict=True) if not nothing]


def _goes_nowhere_else(node: fx.Node) -> bool:
    """Whether the current of a node has one use, seen back through what only hands it on."""
    while len(node.users) == 1:
        if not _hands_on(node):
            return True
        node = node.all_input_nodes[0]
    return False


def _hands_on(node: fx.Node) -> bool:
    """Whether a node gives the values it was given, as a reshape does, and makes none."""
    if node.op == "call_module":
        assert node.graph.owning_module is not None
        return isinstance(node.graph.owning_module.get_submodule(str(node.target)), HANDED_ON)
    makes = is_sum(node) or is_average(node, None) or node.target in FUNCTIONS
    return node.op in ("call_function", "call_method") and not makes


def set_bits(level: Tensor, most: int) -> Tensor:
    """How many bits of each whole number from 0 to `most` are set: 3 has two."""
    whole = level.long()
    return sum(((whole >> bit) & 1 for bit in range(most.bit_length())), 0 * whole).float()
