"""One run of a spiking network in which every layer of neurons is looked at."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

from torch import Tensor, fx, nn

from spikelet.dual import fold, unfold
from spikelet.encode import repeat
from spikelet.graph import capture, plain, walk
from spikelet.measure.accuracy import Encode, evaluating
from spikelet.neuron import Neuron, Scan, per_channel, scan

Found = TypeVar("Found")


def at_neurons(
    net: nn.Module,
    images: Tensor,
    steps: int,
    look: Callable[[Neuron, Tensor, Scan], Found],
    encode: Encode = repeat,
) -> dict[str, Found]:
    """What `look` finds at each layer of neurons, by neuron path, in network order.

    Args:
        net: a spiking network.
        images: normalised, "B C H W".
        steps: T, the number of time steps to run.
        look: takes a neuron, its currents "T B ..." and what it did with them.
        encode: (images, T) to the input "T B ...".
    """
    graph = net if isinstance(net, fx.GraphModule) else capture(net)
    found: dict[str, Found] = {}

    def rule(node: fx.Node, function: Callable[..., Any], args: Any, kwargs: Any) -> Any:
        if not isinstance(function, Neuron):
            return plain(node, function, args, kwargs)
        currents = unfold(args[0], steps)
        run = scan(function, currents)
        found[str(node.target)] = look(function, currents, run)
        return fold(run.spikes * per_channel(function.theta, currents[0]).to(run.spikes))

    with evaluating(graph):
        walk(graph, fold(encode(images, steps)), rule)
    return found
