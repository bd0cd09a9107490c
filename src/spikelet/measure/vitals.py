"""What the neurons of a spiking network do, layer by layer and channel by channel."""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from spikelet.encode import repeat
from spikelet.execute import bptt, spiking
from spikelet.graph import shapes
from spikelet.measure.accuracy import Encode
from spikelet.measure.firing import at_neurons
from spikelet.measure.health import channel_rates, summary
from spikelet.neuron import Neuron, Scan, per_channel


def vitals(
    net: nn.Module, images: Tensor, steps: int, encode: Encode = repeat
) -> dict[str, dict[str, Any]]:
    """The firing, thresholds and potentials of each layer, by neuron path, in network order.

    Beside what `health` says, with rates as mean |s| per neuron and step:

    - `channels`: the rate of each channel;
    - `over_steps`: the layer's rate at each step, `drift`: that of the last step less the first;
    - `threshold`: min, mean and max over channels, in the unit of the potential;
    - `potential`: mean and deviation of the potential before the reset, over all, in thresholds.

    Args:
        net: a spiking network.
        images: normalised, "B C H W".
        steps: T, the number of time steps to run.
        encode: (images, T) to the input "T B ...".
    """
    return at_neurons(net, images, steps, _layer, encode)


def _layer(neuron: Neuron, currents: Tensor, run: Scan) -> dict[str, Any]:
    """What one layer did with its currents "T B C ..."."""
    channels = channel_rates(run.spikes)
    steps = run.spikes.float().abs().flatten(1).mean(1)
    theta = neuron.theta
    potential = run.potential / per_channel(theta, currents[0]).to(run.potential)
    return {
        **summary(channels),
        "neurons": run.spikes[0, 0].numel(),
        "channels": channels.tolist(),
        "over_steps": steps.tolist(),
        "drift": float(steps[-1] - steps[0]),
        "threshold": {
            "min": float(theta.min()),
            "mean": float(theta.mean()),
            "max": float(theta.max()),
        },
        "potential": {
            "mean": float(potential.mean()),
            "deviation": float(potential.std(correction=0)),
        },
    }


def neuron_count(net: nn.Module, example: Tensor) -> int:
    """How many neurons an image of a spiking network meets; of nodes, so shared ones count anew.

    Args:
        net: a spiking network, as `convert` makes it.
        example: what it sees at one step, "B C H W".
    """
    graph = spiking(net)
    modules, size = dict(graph.named_modules()), shapes(graph, example[:1])
    called = (node for node in graph.graph.nodes if node.op == "call_module")
    return sum(
        math.prod(size[node.name])
        for node in called
        if isinstance(modules[str(node.target)], Neuron)
    )


def gradient_norms(
    net: nn.Module,
    images: Tensor,
    labels: Tensor,
    steps: int,
    encode: Encode = repeat,
) -> dict[str, dict[str, float | None]]:
    """Norms of the gradient of cross entropy with respect to each layer's weights, by path.

    One pass forward and back by `bptt` in eval mode; `gradient` is the Euclidean norm over all
    parameters of the layer, `weight` theirs, `ratio` the first over the second. Nothing is left in
    the network.

    Args:
        net: a spiking network, in eval mode.
        images, labels: one batch, images normalised, "B C H W".
        steps: T.
        encode: (images, T) to the input "T B ...".
    """
    named = {name: p for name, p in net.named_parameters() if p.requires_grad}
    if not named:
        return {}
    with torch.enable_grad():
        logits = bptt(net, encode(images, steps)).mean_logits
        loss = F.cross_entropy(logits, labels)
        gradients = torch.autograd.grad(loss, list(named.values()), allow_unused=True)
    layers: dict[str, list[tuple[Tensor, Tensor]]] = {}
    for (name, weight), gradient in zip(named.items(), gradients, strict=True):
        path = name.rpartition(".")[0] or name
        known = torch.zeros_like(weight) if gradient is None else gradient
        layers.setdefault(path, []).append((known, weight.detach()))
    return {path: _norms(pairs) for path, pairs in layers.items()}


def _norms(pairs: list[tuple[Tensor, Tensor]]) -> dict[str, float | None]:
    gradient, weight = (
        float(torch.cat([each.double().flatten() for each in group]).norm())
        for group in zip(*pairs, strict=True)
    )
    return {
        "gradient": gradient,
        "weight": weight,
        "ratio": gradient / weight if weight else None,
    }
