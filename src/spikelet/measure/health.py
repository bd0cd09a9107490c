"""Health of a spiking network: how often its neurons fire, which never do, which always do."""

from __future__ import annotations

from torch import Tensor, nn

from spikelet.encode import repeat
from spikelet.measure.accuracy import Encode
from spikelet.measure.firing import at_neurons

SATURATED = 0.95  # share of steps from which a channel counts as always firing


def health(
    net: nn.Module, images: Tensor, steps: int, encode: Encode = repeat
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
    return at_neurons(
        net, images, steps, lambda _, __, run: summary(channel_rates(run.spikes)), encode
    )


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
