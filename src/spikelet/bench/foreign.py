"""Other people's neurons in our network: SpikingJelly's multi-step IF, snnTorch's Leaky."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from typing import Any, final

import torch
from torch import Tensor, nn

from spikelet.convert import convert
from spikelet.neuron import Neuron

PACKAGES = {"jelly": "spikingjelly", "snntorch": "snntorch"}


def missing(engine: str) -> str | None:
    """The package that an engine needs and that is not installed."""
    package = PACKAGES.get(engine)
    return package if package and importlib.util.find_spec(package) is None else None


@final
class OverTime(nn.Module):
    """A multi-step neuron "T B ..." to "T B ..." in a network of folded "(T B) ..."."""

    def __init__(self, neuron: nn.Module, steps: int) -> None:
        super().__init__()
        self.neuron, self.steps = neuron, steps

    def forward(self, x: Tensor) -> Tensor:
        return self.neuron(x.reshape(self.steps, -1, *x.shape[1:])).flatten(0, 1)


@final
class Stepwise(nn.Module):
    """A neuron of snnTorch, which runs single steps, over "T B ..."."""

    def __init__(self, neuron: Any) -> None:
        super().__init__()
        self.neuron = neuron

    def forward(self, currents: Tensor) -> Tensor:
        potential, spikes = self.neuron.init_leaky(), []
        for current in currents:
            spike, potential = self.neuron(current, potential)
            spikes.append(spike)
        return torch.stack(spikes)


def jelly_neuron() -> nn.Module:
    """SpikingJelly's IF: threshold 1, soft reset, sigmoid surrogate, multi-step."""
    from spikingjelly.activation_based import neuron, surrogate

    return neuron.IFNode(
        v_reset=None, surrogate_function=surrogate.Sigmoid(alpha=4.0), step_mode="m"
    )


def snntorch_neuron() -> nn.Module:
    """snnTorch's Leaky without leak: its usual delayed reset is IF's soft one, with no gradient."""
    import snntorch
    from snntorch import surrogate

    return Stepwise(snntorch.Leaky(beta=1.0, spike_grad=surrogate.sigmoid(slope=4)))


NEURONS: dict[str, Callable[[], nn.Module]] = {"jelly": jelly_neuron, "snntorch": snntorch_neuron}


def with_foreign_neurons(engine: str, model: nn.Module, steps: int) -> nn.Module:
    """The network that `convert` makes of a model, with an engine's neurons for ours."""
    net: nn.Module = convert(model, steps=steps)
    for path, module in list(net.named_modules()):
        if isinstance(module, Neuron):
            net.set_submodule(path, OverTime(NEURONS[engine](), steps))
    return net


def forget(net: nn.Module) -> None:
    """Drops the state that SpikingJelly's neurons keep between two calls."""
    for module in net.modules():
        reset = getattr(module.neuron, "reset", None) if isinstance(module, OverTime) else None
        if callable(reset):
            reset()


def run_foreign(net: nn.Module, images: Tensor, steps: int) -> Tensor:
    """Logits "T B K", from rest; the image is shown T times, as these packages' users do."""
    forget(net)
    # repeated in memory: a reshape of an expanded view would lose the channels-last layout
    logits = net(images.repeat(steps, *[1] * (images.ndim - 1)))
    return logits.reshape(steps, -1, logits.shape[-1])


def implementation(device: torch.device) -> str | None:
    """Which of SpikingJelly's implementations of IF answers on a GPU, if it tells."""
    if device.type != "cuda":
        return None
    try:
        from spikingjelly._ops.if_ import _selection

        return str(_selection._select(torch.cuda.current_device()).name)
    except Exception:
        return None
