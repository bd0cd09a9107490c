"""Health of a spiking network: how often its neurons fire, which never do, which always do."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from spikelet.encode import repeat
from spikelet.measure.accuracy import Encode
from spikelet.measure.firing import at_neurons
from spikelet.neuron import Neuron, Scan

SATURATED = 0.95  # share of steps from which a channel counts as always firing


def health(
    net: nn.Module, images: Tensor, steps: int, encode: Encode = repeat
) -> dict[str, dict[str, float]]:
    """What the neurons of each layer do on some images, by neuron path, in network order.

    `rate` is the mean |s| per neuron and step, `dead` the share of channels that never fire,
    `saturated` the share of channels that fire at 95 % of the steps or more; `neurons` is how many
    the layer has.

    Args:
        net: a spiking network.
        images: normalised, "B C H W".
        steps: T, the number of time steps to run.
        encode: (images, T) to the input "T B ...".
    """

    def look(_: Neuron, __: Tensor, run: Scan) -> dict[str, float]:
        return {**summary(channel_rates(run.spikes)), "neurons": run.spikes[0, 0].numel()}

    return at_neurons(net, images, steps, look, encode)


def mean_rates(layers: Mapping[str, Mapping[str, Any]]) -> dict[str, float | None]:
    """The two mean firing rates of a network, spikes per neuron and time step.

    `rate_by_layer` counts each layer the same, `rate_by_neuron` each neuron; None where it is not
    known, because there are no layers or it is not said how many neurons they have.

    Args:
        layers: as `health` gives them.
    """
    every = list(layers.values())
    known = bool(every) and all("neurons" in layer for layer in every)
    neurons = sum(layer["neurons"] for layer in every) if known else 0
    fired = sum(layer["rate"] * layer["neurons"] for layer in every) if known else 0.0
    return {
        "rate_by_layer": sum(layer["rate"] for layer in every) / len(every) if every else None,
        "rate_by_neuron": fired / neurons if neurons else None,
    }


def channel_rates(spikes: Tensor) -> Tensor:
    """Mean |s| per channel "C" of spikes "T B C ..."."""
    return spikes.float().abs().transpose(0, 2).flatten(1).mean(1)


def summary(rates: Tensor) -> dict[str, float]:
    """`rate`, `dead` and `saturated` of the rates of a layer's channels "C"."""
    return {
        "rate": float(rates.mean()),
        "dead": float((rates == 0).float().mean()),
        "saturated": float((rates >= SATURATED).float().mean()),
    }
