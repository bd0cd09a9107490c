"""Backpropagation through time of one neuron, written out: nothing but its currents is kept.

Automatic differentiation of `neuron.scan` walks a graph of a dozen nodes a step and keeps the
potential of every step in fp32. `unrolled` takes the same gradient in a pass back over time, for
which it integrates the currents once more.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd import forward_ad
from torch.autograd.function import once_differentiable

from spikelet.compiling import compiled
from spikelet.layout import as_rows, beginning_rows, begun, from_rows
from spikelet.neuron import IF, LIF, PLIF, Integrator, Neuron, arriving


class Form(NamedTuple):
    """What an integrator does at every step; the names are those of `neuron.Integrator`."""

    leak: float
    gain: float
    rest: float
    slope_of: Callable[[Tensor], Tensor]
    hard: bool
    detached: bool
    signed: bool


def usable(neuron: Neuron, currents: Tensor) -> bool:
    """Whether `unrolled` can run a neuron over currents "T B C ...".

    It knows IF, LIF and PLIF, with no parameter to learn but a bias of each step, and no derivative
    in forward mode.
    """
    if not isinstance(neuron, IF | LIF | PLIF) or currents.ndim < 3 or not currents.numel():
        return False
    learned = torch.is_grad_enabled() and any(
        p.requires_grad for p in neuron.parameters() if p is not neuron.step_biases
    )
    return not learned and forward_ad.unpack_dual(currents).tangent is None


def unrolled(neuron: Integrator, currents: Tensor, fuse: bool = False) -> Tensor:
    """theta * s "T B C ..." of currents "T B C ...", in their precision; integrated in fp32.

    Differentiable once, towards the currents and a bias of each step. A step lies in memory as one
    of the currents does. `fuse` compiles each of the two passes into one kernel.
    """
    dtype = currents.dtype
    if neuron.delay:  # sums of currents are part of the integration
        currents = currents.to(torch.promote_types(dtype, torch.float32))
    currents = arriving(neuron, currents)
    form = Form(
        float(neuron.leak),
        float(neuron.gain),
        neuron.v_reset,
        neuron.surrogate.slope,
        neuron.reset == "hard",
        neuron.detached,
        neuron.signed,
    )
    found = _Unrolled.apply(currents, neuron.theta, neuron.beginning(currents[0]), form, fuse)
    return found.to(dtype)


def mean_over(output: Tensor) -> Tensor:
    """The time mean "B ..." of what propagates "T B ...", in fp32 at least."""
    return output.mean(0, dtype=torch.promote_types(output.dtype, torch.float32))


class _Unrolled(torch.autograd.Function):
    """The scan of an integrator with its reverse recursion."""

    @staticmethod
    def forward(  # type: ignore[override]
        currents: Tensor, theta: Tensor, initial: Tensor, form: Form, fuse: bool
    ) -> Tensor:
        theta, start = (column(x, currents, fuse) for x in (theta, initial))
        run = compiled(outputs) if fuse else outputs
        return from_rows(run(as_rows(currents, currents), theta, start, form), currents)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        *tensors, ctx.form, ctx.fuse = inputs
        ctx.save_for_backward(*tensors)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        currents, *tensors = ctx.saved_tensors
        theta, start = (column(x, currents, ctx.fuse) for x in tensors)
        run = compiled(gradients) if ctx.fuse else gradients
        given = as_rows(currents, currents), as_rows(grad, currents)
        return from_rows(run(*given, theta, start, ctx.form), currents), None, None, None, None


# ---- the two passes over time -----------------------------------------------------------------


class Moment(NamedTuple):
    """One step, each "R C N": h, s and, of a signed neuron, where spikes were sent before."""

    potential: Tensor
    spikes: Tensor
    sent: Tensor | None


def moments(currents: Tensor, theta: Tensor, start: Tensor, form: Form) -> Iterator[Moment]:
    """The steps of a scan over currents "T R C N", rounded as `Integrator.step` rounds them."""
    last: Moment | None = None
    total: Tensor | None = None
    for current in currents.unbind(0):
        v = begun(start, current) if last is None else discharged(last, theta, form)
        h = charged(v, current.to(v.dtype), form)
        sent = None if total is None else total > 0
        # h >= theta exactly where the rounded h / theta - 1 is at least 0; in place it gives
        # numbers at once, several times as fast as truth values that are converted
        s = h.clone().ge_(theta)
        s = s if sent is None else s - ((h < 0) & sent).to(h.dtype)
        if form.signed:
            total = s if total is None else total + s
        last = Moment(h, s, sent)
        yield last


def charged(v: Tensor, current: Tensor, form: Form) -> Tensor:
    """h = leak (v - v_reset) + v_reset + gain I; factors of 1 change nothing."""
    if form.rest:
        v = form.rest + form.leak * (v - form.rest)
    elif form.leak != 1:
        v = form.leak * v
    return v + (current if form.gain == 1 else form.gain * current)


def discharged(step: Moment, theta: Tensor, form: Form) -> Tensor:
    """The potential after the reset."""
    h, s, _ = step
    if not form.hard:
        return torch.addcmul(h, theta, s, value=-1)
    return h * (1 - s) + form.rest * s if form.rest else h * (1 - s)


def outputs(currents: Tensor, theta: Tensor, start: Tensor, form: Form) -> Tensor:
    """theta * s of currents, both "T R C N"; theta and start are scalars or "C 1".

    The start may also be what `begun` takes.
    """
    steps = moments(currents, theta, start, form)
    return torch.stack([(theta * step.spikes).to(currents.dtype) for step in steps])


def gradients(currents: Tensor, grads: Tensor, theta: Tensor, start: Tensor, form: Form) -> Tensor:
    """The gradient of the currents given that of the output, all "T R C N".

    With q = theta ds/dh, G the gradient of theta * s and A that of the potential after the reset,
    0 at the last step: dL/dh = A + (G - A) q (soft), A (1 - s) + (G - A (h - v_reset) / theta) q
    (hard); where the reset is detached there is no second A. dL/dI = gain dL/dh, and A of the step
    before is leak dL/dh.
    """
    steps, found, after = list(moments(currents, theta, start, form)), [], None
    for grad, (h, s, sent) in zip(reversed(grads.unbind(0)), reversed(steps), strict=True):
        x = h / theta
        q = form.slope_of(x - 1)
        q = q if sent is None else q + form.slope_of(x) * sent
        total = grad.to(h.dtype)
        if after is None:
            total = total * q
        else:
            if not form.detached:
                total = total - (after * (h - form.rest) / theta if form.hard else after)
            total = torch.addcmul(after * (1 - s) if form.hard else after, total, q)
        found.append((total if form.gain == 1 else form.gain * total).to(currents.dtype))
        after = total if form.leak == 1 else form.leak * total
    return torch.stack(found[::-1])


def column(value: Tensor, currents: Tensor, fuse: bool) -> Tensor:
    """A parameter in the precision of the recursion: "C 1", or a scalar if nothing is compiled."""
    value = value.to(currents.device, torch.promote_types(currents.dtype, torch.float32))
    if value.ndim > 1:
        return beginning_rows(value, currents)
    if not fuse:
        return value.unsqueeze(1) if value.ndim else value
    # a stride of 0 would count as another form, and be compiled anew
    return value.expand(currents.shape[2]).contiguous().unsqueeze(1)
