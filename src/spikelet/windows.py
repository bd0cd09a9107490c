"""Windowed rates: how the means of a neuron's windows answer to its currents in each window.

Cut T steps into W windows. d mean_w(theta s) / d shift of the current in window v is a causal W x W
matrix E. All that a window hands to the next is one potential, so E is known from four numbers of
each window, and its product with a vector from one pass over the windows (docs/windows.md):

    E_ww = own_w,    E_wv = read_w kept_{w-1} ... kept_{v+1} written_v  for v < w.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from spikelet.dual import Dual, fold, unfold, window_means
from spikelet.layout import begun, from_rows
from spikelet.neuron import Integrator, Neuron, per_channel
from spikelet.slopes import (
    Affine,
    advance,
    by_jvp,
    compiled,
    current_at,
    integrated,
    scan_arguments,
)


@dataclass(frozen=True)
class Links:
    """The causal slopes between windows, as a map from gradients of means to those of currents.

    Attributes:
        pull: (gradient "W B ...", *slopes) -> sum_w E_wv gradient_w, "W B ...".
        slopes: what it needs, and all that is kept for the backward pass.
    """

    pull: Callable[..., Tensor]
    slopes: tuple[Tensor, ...]


@dataclass(frozen=True)
class Windowed:
    """What a neuron did over T steps in W windows, and the slopes of its window means.

    Attributes:
        output: theta * s, "T B ...".
        means: of the output, "W B ...".
        links: slopes of these means.
        potential: pre-reset potential "T B ...", if asked for.
        potential_links: slopes of its window means, if asked for.
        parameters: for each trained parameter, the slopes "W B ..." of the means of the output
            and, if potentials were asked for, of the potential.
    """

    output: Tensor
    means: Tensor
    links: Links
    potential: Tensor | None = None
    potential_links: Links | None = None
    parameters: dict[str, tuple[Tensor, Tensor | None]] | None = None


def respond_in_windows(
    neuron: Neuron,
    currents: Tensor,
    steps: int,
    windows: int,
    potential: bool = False,
    fuse: bool = False,
    affine: Affine | None = None,
) -> Windowed:
    """`slopes.respond` for several windows of time, W a divisor of the steps.

    IF and LIF have a closed form; trained thresholds and leaks, potentials and other neurons take
    a Jacobian-vector product for each window.
    """
    learned = any(p.requires_grad for p in neuron.parameters())
    with torch.no_grad():
        if isinstance(neuron, Integrator) and not learned and not potential:
            return chained(neuron, currents, steps, windows, fuse, affine)
        return by_products(neuron, integrated(currents, steps, affine), windows, potential)


def by_products(
    neuron: Neuron, currents: Tensor, windows: int, potential: bool = False
) -> Windowed:
    """The slopes of any neuron over currents "T B ...", by a Jacobian-vector product each."""
    found = by_jvp(neuron, currents, potential, windows)
    means, hidden = window_means(found.output, windows), found.potential_slope
    return Windowed(
        found.output,
        means,
        triangle(found.slope),
        found.potential,
        None if hidden is None else triangle(hidden),
        found.parameters,
    )


def chained(
    neuron: Integrator,
    currents: Tensor,
    steps: int,
    windows: int,
    fuse: bool = False,
    affine: Affine | None = None,
) -> Windowed:
    """The closed form for IF and LIF, in one pass over time; `fuse` compiles it into one kernel."""
    run = compiled(chain) if fuse else chain
    arguments = scan_arguments(neuron, currents, steps, fuse, affine)
    output, means, own, read, written, kept = run(windows, *arguments)
    if windows == steps:  # a step reads what it was handed as it reads its own current
        read, kept = own[1:], written[1:]
    slopes = (_shaped(x, currents) for x in (own, read, written, kept))
    found = from_rows(output, currents), from_rows(means, currents)
    return Windowed(*found, Links(through_chain, tuple(slopes)))


def _shaped(values: Tensor, currents: Tensor) -> Tensor:
    """ "W R C N" to "W B ..."; what is the same for all elements keeps a size of 1."""
    if values[0:1].numel() > 1:
        return from_rows(values, currents)
    return values.reshape(len(values), *[1] * (currents.ndim - 1))


def chain(
    windows: int,
    currents: Tensor,
    theta: Tensor,
    start: Tensor,
    steps: int,
    leak: float,
    gain: float,
    rest: float,
    slope_of: Callable[[Tensor], Tensor],
    hard: bool,
    detached: bool,
    signed: bool,
    scale: Tensor | None = None,
    shift: Tensor | None = None,
) -> tuple[Tensor, ...]:
    """Output "T B C N", its window means "W B C N", and own, read, written, kept of the windows.

    All have the currents' precision, the recursion fp32 at least.

    Within a window rho_t = dh_t / d(gain shift of its current) starts at 1, pi_t = dh_t / dh_first
    too; rho_{t+1} = 1 + leak f_t rho_t, pi_{t+1} = leak f_t pi_t with f of `eligibility`. Then
    own = gain mean(rho q), read = gain mean(pi q), and leak f times the last rho is written, times
    the last pi kept. Unread ends are left out: "W", "W-1", "W-1", "W-2".
    """
    v = begun(start, currents[0])
    zero, length = torch.zeros_like(v), steps // windows
    sent, outputs, means = zero, [], []
    own, read, written, kept = ([] for _ in range(4))
    for window in range(windows):
        rho: Tensor | float = 1.0
        pi: Tensor | float = 1.0
        total, moved, handed = zero, zero, zero
        for t in range(window * length, (window + 1) * length):
            current = current_at(currents, t, v.dtype, scale, shift)
            v, sent, s, q, stays = advance(
                v, sent, current, theta, leak, gain, rest, slope_of, hard, detached, signed
            )
            outputs.append((s * theta).to(currents.dtype))
            total = total + outputs[-1]
            rho = rho if t % length == 0 else 1 + rho
            moved, handed = moved + rho * q, handed + pi * q
            rho, pi = leak * stays * rho, leak * stays * pi
        means.append((total / length).to(currents.dtype))
        own.append(moved * (gain / length))
        read.append(handed * (gain / length))
        written.append(rho)
        kept.append(pi)
    if windows == 2 and length > 1:  # one product says it all
        read[1], written[0] = read[1] * written[0], 1.0
    ends = (own, read[1:], written[:-1], kept[1:-1]) if length > 1 else (own, [], written[:-1], [])
    slopes = (_stacked(x, zero).to(currents.dtype) for x in ends)
    return torch.stack(outputs), torch.stack(means), *slopes


def _stacked(values: list[Any], like: Tensor) -> Tensor:
    """ "W B C N"; numbers that are the same for all elements as "W 1 1 1"."""
    if not values:
        return like.new_zeros(0, 1, 1, 1)
    if isinstance(values[0], Tensor):
        return torch.stack(values)
    return torch.stack([like.new_full((1, 1, 1), x) for x in values])


def through_chain(grad: Tensor, own: Tensor, read: Tensor, written: Tensor, kept: Tensor) -> Tensor:
    """sum_w E_wv grad_w from the last window to the first: what is handed on carries the rest."""
    found, carried = own * grad, None
    for window in reversed(range(len(own) - 1)):
        taken = read[window] * grad[window + 1]
        carried = taken if carried is None else taken + kept[window] * carried
        found[window] += written[window] * carried
    return found


def triangle(matrix: Tensor) -> Links:
    """Links of a matrix "W W B ..." that is known entry by entry; its upper half is 0."""
    row, column = torch.tril_indices(len(matrix), len(matrix), device=matrix.device)
    return Links(through_triangle, (matrix[row, column],))


def through_triangle(grad: Tensor, slopes: Tensor) -> Tensor:
    """sum_w E_wv grad_w from the W (W + 1) / 2 slopes with v <= w, row by row."""
    found = torch.zeros_like(grad, dtype=torch.promote_types(grad.dtype, slopes.dtype))
    entries = iter(slopes)
    for late in range(len(grad)):
        for early in range(late + 1):
            found[early] += next(entries) * grad[late]
    return found


class _Linked(torch.autograd.Function):
    """Window means with given slopes towards the currents' window means."""

    @staticmethod
    def forward(  # type: ignore[override]
        ctx: Any, value: Tensor, current: Tensor, windows: int, pull: Any, *slopes: Tensor
    ) -> Tensor:
        ctx.save_for_backward(*slopes)
        ctx.pull, ctx.windows, ctx.dtype = pull, windows, current.dtype
        ctx.once = len(current) < len(value)
        return value.view_as(value)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        slopes = ctx.saved_tensors
        found = ctx.pull(unfold(grad, ctx.windows), *slopes)
        found = (found.sum(0) if ctx.once else fold(found)).to(ctx.dtype)
        return None, found, None, None, *[None] * len(slopes)


def linked(
    neuron: Neuron, x: Dual, response: Windowed, means: Tensor, links: Links, which: int
) -> Tensor:
    """Window means "W B ..." as "(W B) ...", with their slopes to the currents of `x`.

    `which` is 0 for the output, 1 for the potential, as in the slopes of parameters. A current
    that is the same in all windows gets the sum of their gradients.
    """
    windows = len(means)
    values = _Linked.apply(fold(means), x.mean, windows, links.pull, *links.slopes)
    for name, slopes in (response.parameters or {}).items():
        parameter, own = neuron.get_parameter(name), slopes[which]
        assert own is not None
        change = own * per_channel(parameter - parameter.detach(), means[0])
        values = values + fold(change)
    return values
