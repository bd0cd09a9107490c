"""Noise inside a network: lost and false spikes, inexact thresholds and weights.

Each function gives a noisy copy and leaves the network as it is. A copy is run like the network
itself.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Literal, final

import torch
from torch import Generator, Tensor, fx, nn

from spikelet.errors import UserError
from spikelet.execute import spiking
from spikelet.graph import shapes
from spikelet.neuron import SMALLEST_THRESHOLD, Neuron, per_channel

WEIGHTED = (nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.Linear)
Spoil = Callable[[nn.Module, float, Generator, Tensor], nn.Module]


@dataclass(frozen=True)
class Disturbance:
    """One kind of noise inside a network.

    Attributes:
        copy: (network, level, generator, example "B C H W") to its noisy copy.
        levels: how strong.
        unit: what a level is.
        drawn: whether it is random.
        needs: "spikes" where it means something for a spiking network only, else "weights".
        common: whether what is drawn is the same for all images.
    """

    copy: Spoil
    levels: tuple[float, ...]
    unit: str
    drawn: bool = True
    needs: Literal["spikes", "weights"] = "weights"
    common: bool = False


@final
class Unreliable(nn.Module):
    """Loses spikes and makes false ones: what a neuron sends, "N C ...", in units of theta.

    Each spike is lost with probability `lost`; at each place and step that is silent a spike of
    theta appears with probability `false`. What is drawn comes from a generator of its own.
    """

    def __init__(self, theta: Tensor, lost: float, false: float, generator: Generator) -> None:
        super().__init__()
        self.register_buffer("theta", theta.detach().clone(), persistent=False)
        self.lost, self.false, self.generator = lost, false, generator

    def forward(self, sent: Tensor) -> Tensor:
        heard = sent.masked_fill(self._drawn(sent) < self.lost, 0) if self.lost else sent
        if not self.false:
            return heard
        theta = per_channel(self.get_buffer("theta"), sent).to(sent)
        return torch.where((sent == 0) & (self._drawn(sent) < self.false), theta, heard)

    def _drawn(self, like: Tensor) -> Tensor:
        """Uniform random values of a shape, of the generator's device."""
        source = self.generator
        return torch.rand(like.shape, generator=source, device=source.device).to(like.device)


def unreliable(
    net: nn.Module, generator: Generator, lost: float = 0.0, false: float = 0.0
) -> fx.GraphModule:
    """A copy whose spikes are lost, and whose silent neurons fire, with these probabilities.

    Args:
        net: a spiking network, as `convert` makes it.
        generator: for what is drawn at each run; it is advanced, not copied.
        lost: probability that a spike does not arrive.
        false: probability that a silent neuron seems to fire, at each step.

    Raises:
        UserError: for a probability outside of 0 to 1, or a network that is not spiking.
    """
    for name, value in (("lost", lost), ("false", false)):
        if not 0 <= value <= 1:
            raise UserError(f"{name} = {value}", "expected a probability", "choose 0 to 1")
    noisy = copy.deepcopy(spiking(net))
    modules = dict(noisy.named_modules())
    for node in list(noisy.graph.nodes):
        neuron = modules.get(str(node.target)) if node.op == "call_module" else None
        if isinstance(neuron, Neuron):
            _follow(noisy, node, Unreliable(neuron.theta, lost, false, generator))
    noisy.recompile()
    return noisy


def _follow(net: fx.GraphModule, node: fx.Node, module: nn.Module) -> None:
    """Puts a module behind a node, for all its readers."""
    path = f"{node.name}_heard"
    net.add_submodule(path, module)
    with net.graph.inserting_after(node):
        heard = net.graph.call_module(path, (node,))
    heard.meta["paths"] = []
    node.replace_all_uses_with(heard)
    heard.args = (node,)


def jittered(net: nn.Module, level: float, generator: Generator, example: Tensor) -> fx.GraphModule:
    """A copy with thresholds theta (1 + level n), n ~ N(0, 1) for each channel, above 0.001.

    Args:
        net: a spiking network, as `convert` makes it.
        level: the relative standard deviation.
        generator: for n.
        example: a few images "B C H W", for the number of channels of each layer.
    """
    noisy = copy.deepcopy(spiking(net))
    modules, size = dict(noisy.named_modules()), shapes(noisy, example[:1])
    for node in noisy.graph.nodes:
        neuron = modules.get(str(node.target)) if node.op == "call_module" else None
        if isinstance(neuron, Neuron):
            theta = neuron.theta.detach().expand(size[node.name][1])
            change = 1 + level * _normal(theta, generator)
            new = (theta * change).clamp_min(SMALLEST_THRESHOLD)
            neuron.set_threshold(new, neuron.initial.expand(len(theta)))
            neuron.to(theta.dtype)
    return noisy


def quantised_weights(net: nn.Module, bits: int) -> nn.Module:
    """A copy with the weights of convolutions and linear layers in so many bits.

    w -> s round(w / s), s = max |w| / (2^(bits - 1) - 1) for each output channel: symmetric,
    rounded to nearest. Biases and norms keep their precision.

    Raises:
        UserError: for fewer than 2 bits.
    """
    if bits < 2:
        raise UserError(f"bits = {bits}", "expected 2 or more", "raise it")
    coarse = copy.deepcopy(net)
    with torch.no_grad():
        for weight in _weights(coarse):
            rows = weight.flatten(1)
            largest = rows.abs().amax(1, keepdim=True)
            unit = largest.clamp_min(torch.finfo(weight.dtype).tiny) / (2 ** (bits - 1) - 1)
            weight.copy_(((rows / unit).round() * unit).view_as(weight))
    return coarse


def noisy_weights(net: nn.Module, level: float, generator: Generator) -> nn.Module:
    """A copy with weights w + level std(w) n, n ~ N(0, 1), std over each weight tensor."""
    noisy = copy.deepcopy(net)
    with torch.no_grad():
        for weight in _weights(noisy):
            weight.add_(level * weight.std(correction=0) * _normal(weight, generator))
    return noisy


def _weights(net: nn.Module) -> Iterator[Tensor]:
    """The weight of each convolution and linear layer, each once."""
    seen: set[int] = set()
    for module in net.modules():
        if isinstance(module, WEIGHTED) and id(module.weight) not in seen:
            seen.add(id(module.weight))
            yield module.weight


def _normal(like: Tensor, generator: Generator) -> Tensor:
    values = torch.randn(like.shape, generator=generator, device=generator.device)
    return values.to(like.device, like.dtype)


DISTURBANCES: Mapping[str, Disturbance] = {
    "spike-drop": Disturbance(
        lambda net, p, draw, _: unreliable(net, draw, lost=p),
        (0.05, 0.1, 0.2),
        "share of spikes lost",
        needs="spikes",
    ),
    "spike-insertion": Disturbance(
        lambda net, p, draw, _: unreliable(net, draw, false=p),
        (0.01, 0.02, 0.05),
        "share of silent steps that fire",
        needs="spikes",
    ),
    "threshold-jitter": Disturbance(
        jittered, (0.05, 0.1, 0.2), "relative standard deviation", needs="spikes", common=True
    ),
    "weight-noise": Disturbance(
        lambda net, level, draw, _: noisy_weights(net, level, draw),
        (0.05, 0.1, 0.2),
        "standard deviation, of that of the weights",
        common=True,
    ),
    "weight-bits": Disturbance(
        lambda net, bits, _, __: quantised_weights(net, int(bits)), (8, 6, 4, 3), "bits", False
    ),
}


def disturbed(
    net: nn.Module, kind: str, level: float, generator: Generator, example: Tensor
) -> nn.Module:
    """A copy of a network under one kind of noise; the network itself at level 0.

    Args:
        net: a spiking network, or for noise of the weights any.
        kind: of `DISTURBANCES`.
        level: how strong, in the unit of its kind.
        generator: for what is drawn.
        example: a few normalised images "B C H W".
    """
    return net if level == 0 else DISTURBANCES[kind].copy(net, level, generator, example).eval()
