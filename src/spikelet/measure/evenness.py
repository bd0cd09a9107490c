"""What the uneven arrival of spikes costs: spikes sent too early, spikes that come too late.

An integrate-and-fire neuron with soft reset stands for a quantised activation of its mean current
(`quantise.levels`): that many spikes it sends if its current is the same at every step. Currents
made of spikes are not, and a spike that was sent cannot be taken back.
"""

from __future__ import annotations

import copy

from torch import Tensor, fx, nn

from spikelet.encode import repeat
from spikelet.errors import UserError
from spikelet.execute import spiking
from spikelet.measure.accuracy import Encode
from spikelet.measure.firing import at_neurons
from spikelet.neuron import Integrator, Neuron, Scan, per_channel
from spikelet.quantise import counts_to_a_level, levels


def evenness(
    net: nn.Module, images: Tensor, steps: int, encode: Encode = repeat
) -> dict[str, dict[str, float]]:
    """How many spikes each layer sends beside what its mean currents stand for, by neuron path.

    With n the spikes that a neuron sends to one image (those taken back subtracted) and
    m = clip(floor((T c + v0) / theta), 0, T) of its own mean current c:

    - `spikes`: the mean of n over neurons and images;
    - `surplus`: the mean of max(n - m, 0), spikes that the whole current does not justify;
    - `missing`: the mean of max(m - n, 0), spikes that came too late to be sent.

    Args:
        net: a spiking network.
        images: normalised, "B C H W".
        steps: T.
        encode: (images, T) to the input "T B ...".

    Raises:
        UserError: if a neuron leaks or does not reset by subtraction: it stands for no such level.
    """
    return at_neurons(spiking(net), images, steps, _counts, encode)


def _counts(neuron: Neuron, currents: Tensor, run: Scan) -> dict[str, float]:
    """Spikes per neuron and image of one layer with currents "T B ..."."""
    even, steps = require_even(neuron), len(run.spikes)
    mean, sent = currents.float().mean(0), run.spikes.float().sum(0)
    theta = per_channel(even.theta, mean).to(mean)
    meant = levels(mean, even.theta, even.given(mean, steps), steps) * (steps / theta)
    excess = sent - meant.round()
    return {
        "spikes": float(sent.mean()),
        "surplus": float(excess.clamp_min(0).mean()),
        "missing": float((-excess).clamp_min(0).mean()),
    }


def require_even(neuron: Neuron) -> Integrator:
    """The neuron, if it is one that counts to a level.

    Raises:
        UserError: if it leaks or does not reset by subtraction.
    """
    if not counts_to_a_level(neuron):
        raise UserError(
            f"neuron {type(neuron).__name__}",
            "it leaks or resets to a fixed potential, so that no number of spikes is the even one",
            "measure a student of IF neurons with soft reset",
        )
    assert isinstance(neuron, Integrator)
    return neuron


def signed(net: nn.Module) -> fx.GraphModule:
    """A copy of a spiking network whose neurons may take spikes back.

    Raises:
        UserError: as `evenness`.
    """
    found = copy.deepcopy(spiking(net))
    for module in found.modules():
        if isinstance(module, Neuron):
            require_even(module).signed = True
    return found
