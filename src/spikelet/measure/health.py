"""Health of a spiking network: how often its neurons fire, which never do, which always do."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor, fx, nn

from spikelet.dual import fold, unfold
from spikelet.encode import repeat
from spikelet.graph import capture, plain, walk
from spikelet.measure.accuracy import evaluating
from spikelet.neuron import Neuron, per_channel, scan

SATURATED = 0.95  # share of steps from which a channel counts as always firing


def health(
    net: nn.Module, images: Tensor, steps: int, encode: Callable[[Tensor, int], Tensor] = repeat
) -> dict[str, dict[str, float]]:
    """What the neurons of each layer do on some images, by neuron path, in network order.

    `rate` is the mean |s| per neuron and step, `dead` the share of channels that never fire,
    `saturated` the share of channels that fire at 95 % of the steps or more.

    Args:
        net: a spiking network.
        images: normalised, "B C H W".
        steps: T, the number of time steps to run.
        encode: (images, T) to the input "T B ...".
    """
    graph = net if isinstance(net, fx.GraphModule) else capture(net)
    found: dict[str, Tensor] = {}

    def rule(node: fx.Node, function: Any, args: Any, kwargs: Any) -> Any:
        if not isinstance(function, Neuron):
            return plain(node, function, args, kwargs)
        currents = unfold(args[0], steps)
        spikes = scan(function, currents).spikes
        found[str(node.target)] = _channel_rates(spikes)
        return fold(spikes * per_channel(function.theta, currents[0]).to(spikes))

    with evaluating(graph):
        walk(graph, fold(encode(images, steps)), rule)
    return {path: _summary(rates) for path, rates in found.items()}


def _channel_rates(spikes: Tensor) -> Tensor:
    """Mean |s| per channel "C" of spikes "T B C ..."."""
    return spikes.float().abs().transpose(0, 2).flatten(1).mean(1)


def _summary(rates: Tensor) -> dict[str, float]:
    return {
        "rate": float(rates.mean()),
        "dead": float((rates == 0).float().mean()),
        "saturated": float((rates >= SATURATED).float().mean()),
    }
