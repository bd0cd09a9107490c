"""A neuron one step at a time, with all that the slopes of its mean need carried along.

These are the slopes of `slopes.respond`, by the same recursions, with nothing kept of a step that
is over: memory does not depend on the number of steps.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol, final

import torch
from torch import Tensor, nn
from torch.autograd import forward_ad
from torch.func import functional_call
from torch.utils._pytree import tree_flatten, tree_unflatten

from spikelet.compiling import compiled
from spikelet.neuron import Integrator, Neuron, per_channel
from spikelet.slopes import advance


@dataclass(frozen=True)
class Means:
    """What a neuron's steps come to.

    Attributes:
        output: the mean of theta * s, "B ...".
        slope: d mean output / d shift of the current, "B ...".
        parameters: for each trained parameter, the slope of the mean output to it, "B ...".
    """

    output: Tensor
    slope: Tensor
    parameters: dict[str, Tensor]


class Carry(Protocol):
    """A neuron in the middle of its steps."""

    def step(self, current: Tensor) -> Tensor:
        """What leaves at the next step, theta * s "B ...", for its current "B ..."."""

    def means(self) -> Means:
        """The means over all steps, after the last."""


def carry(
    neuron: Neuron, current: Tensor, steps: int, fuse: bool = False, slopes: bool = True
) -> Carry:
    """A neuron before the first of `steps` steps; `current` "B ..." gives precision and device.

    IF and LIF have a closed form, which `fuse` compiles; others, and trained thresholds or leaks,
    take forward-mode derivatives of `step`. Without `slopes` none is taken of parameters.
    """
    trained = slopes and any(p.requires_grad for p in neuron.parameters())
    if isinstance(neuron, Integrator) and not trained:
        return Closed(neuron, current, steps, fuse)
    return Forward(neuron, steps, trained)


def charge(
    state: tuple[Tensor, ...],
    current: Tensor,
    theta: Tensor,
    leak: float,
    gain: float,
    rest: float,
    slope_of: Any,
    hard: bool,
    detached: bool,
    signed: bool,
    telescopes: bool,
) -> tuple[tuple[Tensor, ...], Tensor]:
    """One step of `slopes.eligibility`: the next (v, spikes sent, rho, sum of rho q), and output.

    The state has the precision of the recursion, the output that of the current.
    """
    v, sent, rho, slope = state
    v, _, s, q, kept = advance(
        v, sent, current.to(v.dtype), theta, leak, gain, rest, slope_of, hard, detached, signed
    )
    slope = slope if telescopes else slope + rho * q
    state = (v, sent + s.to(sent.dtype), gain + leak * kept * rho, slope)
    return state, (s * theta).to(current.dtype)


@final
class Closed:
    """IF and LIF: the recursion of `slopes.eligibility`, its outputs as a count of spikes.

    For IF with soft reset in the gradient rho_{t+1} = rho_t + 1 - rho_t q_t, so that the last rho
    says what the sum of all rho_t q_t is.
    """

    def __init__(self, neuron: Integrator, current: Tensor, steps: int, fuse: bool) -> None:
        self.steps, self.dtype = steps, current.dtype
        precise = torch.promote_types(self.dtype, torch.float32)
        theta, start = (
            per_channel(value.detach().to(current.device, precise), current)
            for value in (neuron.theta, neuron.beginning(current))
        )
        self.leak, self.gain = float(neuron.leak), float(neuron.gain)
        kind = (neuron.reset == "hard", neuron.detached, neuron.signed)
        self.telescopes = self.leak == 1 and not kind[0] and not kind[1]
        numbers = (self.leak, self.gain, neuron.v_reset)
        self.rule = (theta, *numbers, neuron.surrogate.slope, *kind, self.telescopes)
        self.run = compiled(charge) if fuse else charge
        nothing, rho = theta.new_zeros(()), theta.new_full((), self.gain)
        count = nothing.to(torch.int16 if steps < 2**15 else torch.int32)
        self.state: tuple[Tensor, ...] = (start, count, rho, nothing)

    def step(self, current: Tensor) -> Tensor:
        self.state, output = self.run(self.state, current, *self.rule)
        return output

    def means(self) -> Means:
        (_, sent, rho, slope), steps = self.state, self.steps
        theta = self.rule[0].to(self.dtype).to(rho.dtype)  # rounded as each output was
        if self.telescopes:
            slope = (steps + 1) * self.gain - rho
        return Means((sent * theta / steps).to(self.dtype), slope / steps, {})


@final
class _Step(nn.Module):
    """One step of a neuron as a module that `functional_call` can give other parameters."""

    def __init__(self, neuron: Neuron) -> None:
        super().__init__()
        self.neuron = neuron

    def forward(self, state: Any, current: Tensor, first: bool) -> tuple[Any, Tensor]:
        state = self.neuron.start(current) if first else state
        state, spikes, _ = self.neuron.step(state, current)
        return state, spikes * per_channel(self.neuron.theta, current).to(spikes)


@final
class Forward:
    """Any neuron: forward-mode derivatives of its steps, whose state has a tangent of each kind.

    One is along a constant shift of the current, one along each trained parameter.
    """

    def __init__(self, neuron: Neuron, steps: int, trained: bool) -> None:
        self.cell, self.steps = _Step(neuron), steps
        named = self.cell.named_parameters() if trained else ()
        self.trained = {name: p.detach() for name, p in named if p.requires_grad}
        self.state: Any = None
        self.tangents: dict[str, list[Any]] = {}
        self.moved: dict[str, Tensor] = {}
        self.total: Tensor | None = None

    def step(self, current: Tensor) -> Tensor:
        current = current.float() if current.dtype.itemsize < 4 else current
        current, ahead, output = current.detach(), self.state, current
        for way in ("", *self.trained):
            ahead, output = self._along(way, current)
        self.state, self.total = ahead, output if self.total is None else self.total + output
        return output

    def _along(self, way: str, current: Tensor) -> tuple[Any, Tensor]:
        """The next state and output; their derivatives along `way` are kept and summed."""
        first = self.total is None
        with forward_ad.dual_level():
            values = {k: _moving(p) if k == way else p for k, p in self.trained.items()}
            state = None if first else _joined(self.state, self.tangents[way])
            given = (state, current if way else _moving(current), first)
            state, output = functional_call(self.cell, values, given)
            output, moved = forward_ad.unpack_dual(output)
            state, self.tangents[way] = _parted(state)
        moved = torch.zeros_like(output) if moved is None else moved
        self.moved[way] = moved if first else self.moved[way] + moved
        return state, output

    def means(self) -> Means:
        assert self.total is not None
        slopes = {k.removeprefix("neuron."): moved / self.steps for k, moved in self.moved.items()}
        return Means(self.total / self.steps, slopes.pop(""), slopes)


def _moving(value: Tensor) -> Tensor:
    return forward_ad.make_dual(value, torch.ones_like(value))


def _joined(state: Any, tangents: list[Any]) -> Any:
    """A state with the tangents of its tensors, where they have one."""
    leaves, form = tree_flatten(state)
    pairs = zip(leaves, tangents, strict=True)
    return tree_unflatten([x if t is None else forward_ad.make_dual(x, t) for x, t in pairs], form)


def _parted(state: Any) -> tuple[Any, list[Any]]:
    """A state without tangents, and its tangents."""
    leaves, form = tree_flatten(state)
    pairs = [forward_ad.unpack_dual(x) if isinstance(x, Tensor) else (x, None) for x in leaves]
    return tree_unflatten([x for x, _ in pairs], form), [t for _, t in pairs]
