"""The rival of a spiking network: the same network with quantised activations, in one pass."""

from __future__ import annotations

from typing import Any, TypeGuard

import torch
from torch import Tensor, fx, nn

from spikelet.errors import UserError
from spikelet.execute import answer, spiking, wanted_taps
from spikelet.graph import walk
from spikelet.neuron import Integrator, per_channel
from spikelet.trace import Tap, Taps, Trace, fields_of, require_time


def levels(current: Tensor, theta: Tensor, initial: Tensor, steps: int) -> Tensor:
    """The quantised activation clip(floor((T c + v0) / theta), 0, T) theta / T of c "B C ...".

    What an integrate-and-fire neuron with soft reset sends on average over T steps of a constant
    current (QCFS, Bu et al., ICLR 2022, is v0 = theta / 2). Straight-through where it does not
    saturate; theta gets the gradient of the rounding error, as in LSQ (Esser et al., ICLR 2020).
    """
    theta, initial = (per_channel(x, current).to(current) for x in (theta, initial))
    drive = (steps * current + initial) / theta
    inside = (drive - 0.5).clamp(0, steps)
    rounded = drive.detach().floor().clamp(0, steps)
    return (inside + (rounded - inside).detach()) * theta / steps


def quantised(net: nn.Module, x: Tensor, taps: Taps = ()) -> Trace:
    """Runs a converted network as an ANN quantised to T + 1 levels, on the mean of x "T B ...".

    Every neuron is replaced by `levels` with its own threshold and initial potential: the network
    that spikes would compute if they arrived evenly. Logits are the same at every step.

    Raises:
        UserError: if a neuron leaks or resets to a fixed potential.
    """
    net, asked = spiking(net), fields_of(taps)
    require_time(net, x)
    steps, wanted, found = len(x), wanted_taps(net, asked), {}

    def rule(node: fx.Node, function: Any, args: Any, kwargs: Any) -> Any:
        before = None
        if isinstance(function, Integrator):
            _require_integrating(function)
            before = args[0].float() if args[0].dtype.itemsize < 4 else args[0]
            value = levels(before, function.theta, function.given(before, steps), steps)
        else:
            value = function(*args, **kwargs)
        if node in wanted:
            current = before.unsqueeze(0) if before is not None else None
            found[node] = Tap(value, None, current, current)
        return value

    logits = walk(net, x.mean(0) if x.stride(0) else x[0], rule)
    return Trace(logits.unsqueeze(0).expand(steps, *logits.shape), answer(net, asked, found))


quantised.gives = "mean"  # type: ignore[attr-defined]
quantised.unrolled = False  # type: ignore[attr-defined]


def counts_to_a_level(neuron: nn.Module) -> TypeGuard[Integrator]:
    """Whether a neuron stands for `levels`: it does not leak and resets by subtraction."""
    even = isinstance(neuron, Integrator) and neuron.reset == "soft"
    return even and bool((torch.as_tensor(neuron.leak) == 1).all())  # type: ignore[arg-type]


def _require_integrating(neuron: Integrator) -> None:
    if not counts_to_a_level(neuron):
        raise UserError(
            f"neuron {type(neuron).__name__}",
            "a quantised activation stands for integrate-and-fire with soft reset only",
            "use neuron IF for qann",
        )
