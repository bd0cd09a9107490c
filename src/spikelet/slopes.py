"""Mean slopes of a neuron: how a constant shift of its current moves its mean output.

Rate-based backpropagation (arXiv 2410.11488, section 4) replaces a neuron by a linear map whose
value is the mean of what it sent and whose slope is e = d mean(theta s) / d shift, the forward
derivative of the scan. `by_jvp` takes it for any neuron; `closed_form` is the same recursion
written out for IF and LIF.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call, jvp

from spikelet import kernels
from spikelet.compiling import compiled
from spikelet.dual import Affine, Summand, window_means
from spikelet.layout import as_rows, beginning_rows, begun, from_rows
from spikelet.neuron import Integrator, Neuron, Scan, per_channel, scan


@dataclass(frozen=True)
class Response:
    """What a neuron did over T steps, and the slopes of its means.

    Attributes:
        output: theta * s, "T B ...".
        potential: pre-reset potential "T B ...", if asked for.
        slope: d mean output / d shift of the current, "B ...".
        potential_slope: d mean potential / d shift, "B ...", if asked for.
        parameters: for each trained parameter, the slope of the mean output and, if potentials
            were asked for, of the mean potential with respect to it, "B ...".
        mean: of the output over time, "B ...", where it was taken along.
    """

    output: Tensor
    slope: Tensor
    potential: Tensor | None = None
    potential_slope: Tensor | None = None
    parameters: dict[str, tuple[Tensor, Tensor | None]] | None = None
    mean: Tensor | None = None

    @property
    def mean_output(self) -> Tensor:
        """The time mean of the output, "B ..."."""
        return self.output.mean(0) if self.mean is None else self.mean


def respond(
    neuron: Neuron,
    currents: Tensor,
    steps: int,
    potential: bool = False,
    fuse: bool = False,
    affine: Affine | None = None,
    other: Summand | None = None,
) -> Response:
    """Runs a neuron over `steps` steps of currents "T B ...", T = steps or 1 if they are constant.

    Nothing is recorded for automatic differentiation. `fuse` runs the closed form as one kernel,
    in the precision of the currents. `affine` holds (scale, shift), each "C": the neuron
    integrates scale * current + shift, as behind a batch norm. `other` is a second current as large
    as the first that is added to it, as behind a residual sum. Where gradients are off, the slope
    is a zero.
    """
    wanted = torch.is_grad_enabled()
    with torch.no_grad():
        learned = wanted and any(p.requires_grad for p in neuron.parameters())
        if neuron.step_biases is not None and not wanted:
            return _sent(neuron, integrated(currents, steps, affine, other))
        if isinstance(neuron, Integrator) and not learned and not potential:
            if fuse and not neuron.delay and kernels.usable(neuron, currents):
                return in_one_kernel(neuron, currents, steps, wanted, affine, other)
            return closed_form(neuron, currents, steps, fuse, affine, other, wanted)
        return by_jvp(neuron, integrated(currents, steps, affine, other), potential)


def _sent(neuron: Neuron, currents: Tensor) -> Response:
    """What a neuron does with currents "T B ...", without slopes."""
    run = scan(neuron, currents)
    output = run.spikes * per_channel(neuron.theta, currents[0]).to(run.spikes)
    return Response(output, currents.new_zeros(()), run.potential)


def integrated(
    currents: Tensor, steps: int, affine: Affine | None, other: Summand | None = None
) -> Tensor:
    """What a neuron integrates, "T B ...", in fp32 at least."""
    currents = currents.float() if currents.dtype.itemsize < 4 else currents
    if affine is not None:
        scale, shift = (per_channel(x, currents[0]) for x in affine)
        currents = currents * scale + shift
    if other is not None:
        currents = currents + integrated(other[0], steps, other[1])
    return currents.expand(steps, *currents.shape[1:])


def closed_form(
    neuron: Integrator,
    currents: Tensor,
    steps: int,
    fuse: bool = False,
    affine: Affine | None = None,
    other: Summand | None = None,
    sloped: bool = True,
) -> Response:
    """The eligibility recursion for IF and LIF (methods 3.2, in general form).

    With q_t = theta ds/dh: rho_0 = gain, rho_{t+1} = gain + leak f_t rho_t, e = mean_t rho_t q_t,
    where f_t is 1 (soft, detached), 1 - q_t (soft), 1 - s_t (hard, detached) or
    (1 - s_t) - (h_t - v_reset) q_t / theta (hard). Of a neuron that begins late each gain is
    times the number of currents that come at that step. `fuse` compiles it into one kernel.
    """
    run = fused() if fuse else eligibility
    arguments = scan_arguments(neuron, currents, steps, fuse, affine)
    waiting: dict[str, Any] = {"sloped": sloped}
    if other is not None:
        waiting |= _second(as_rows(other[0], currents), other[1], fuse)
    if neuron.delay and steps > 1:
        waiting["delay"] = min(neuron.delay, steps - 1)
    output, slope, mean = run(*arguments, **waiting)
    output, mean = from_rows(output, currents), from_rows(mean[None], currents)[0]
    return Response(output, from_rows(slope[None], currents)[0] if sloped else slope, mean=mean)


def _second(other: Tensor, affine: Affine | None, fuse: bool) -> dict[str, Any]:
    """A second current "T R C N" as `eligibility` takes it."""
    if affine is None and fuse:
        affine = (other.new_ones(1), other.new_zeros(1))
    columns = () if affine is None else (_column(x, other) for x in affine)
    return {"other": other} | dict(zip(("other_scale", "other_shift"), columns, strict=False))


def _column(value: Tensor, folded: Tensor) -> Tensor:
    """A scalar or "C" as "C 1", in the precision of the recursion."""
    precise = torch.promote_types(folded.dtype, torch.float32)
    return value.flatten().to(folded.device, precise).expand(folded.shape[2]).reshape(-1, 1)


def scan_arguments(
    neuron: Integrator, currents: Tensor, steps: int, fuse: bool, affine: Affine | None
) -> tuple[Any, ...]:
    """What `eligibility` takes for a neuron and its currents "T B C ..."."""
    folded = as_rows(currents, currents)
    theta, start = _column(neuron.theta, folded), neuron.beginning(currents[0])
    start = beginning_rows(start.to(theta), currents) if start.ndim > 1 else _column(start, folded)
    if fuse and affine is None:  # one compiled form for both
        affine = (torch.ones_like(theta), torch.zeros_like(theta))
    waiting = () if affine is None else tuple(_column(x, folded) for x in affine)
    kind = (neuron.reset == "hard", neuron.detached, neuron.signed)
    numbers = (float(neuron.leak), float(neuron.gain), neuron.v_reset)
    return folded, theta, start, steps, *numbers, neuron.surrogate.slope, *kind, *waiting


def in_one_kernel(
    neuron: Integrator,
    currents: Tensor,
    steps: int,
    slopes: bool = True,
    affine: Affine | None = None,
    other: Summand | None = None,
) -> Response:
    """`closed_form` on a GPU, in the precision of the currents; the slope is 0 if unwanted."""
    scale, shift = (None, None) if affine is None else affine
    second, (more, extra) = (None, (None, None))
    if other is not None:
        second, (more, extra) = other[0], other[1] or (None, None)
    output, mean, slope = kernels.scan(
        currents,
        neuron.theta,
        neuron.beginning(currents[0]),
        steps,
        leak=float(neuron.leak),
        gain=float(neuron.gain),
        rest=neuron.v_reset,
        surrogate=neuron.surrogate,
        hard=neuron.reset == "hard",
        detached=neuron.detached,
        signed=neuron.signed,
        scale=scale,
        shift=shift,
        other=second,
        other_scale=more,
        other_shift=extra,
        slope_dtype=currents.dtype,
        need_slope=slopes,
    )
    return Response(output, output.new_zeros(()) if slope is None else slope, mean=mean)


def eligibility(
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
    other: Tensor | None = None,
    other_scale: Tensor | None = None,
    other_shift: Tensor | None = None,
    sloped: bool = True,
    delay: int = 0,
) -> tuple[Tensor, Tensor, Tensor]:
    """Output theta * s "T B C N", slope of its mean "B C N", that mean "B C N".

    Currents are "T B C N", or "1 B C N" where each step is the same; theta, scale and shift "C 1",
    start that or as `begun` takes it; `other`, which is added, likewise. All answers have the
    currents' precision, the recursion fp32 at least. The slope is a zero if it is not wanted.
    With a `delay` below T the currents are those of `late.collected`.
    """
    v = begun(start, currents[0])
    rho: Tensor | float = gain * (delay + 1)
    slope, sent, total, outputs = *(torch.zeros_like(v) for _ in range(3)), []
    for t in range(steps):
        current: Tensor | None = None
        for i in range(t + delay if t else 0, min(t + delay + 1, steps)):
            arrived = current_at(currents, i, v.dtype, scale, shift)
            if other is not None:
                arrived = arrived + current_at(other, i, v.dtype, other_scale, other_shift)
            current = arrived if current is None else current + arrived
        current = torch.zeros_like(v) if current is None else current
        v, sent, s, q, kept = advance(
            v, sent, current, theta, leak, gain, rest, slope_of, hard, detached, signed
        )
        outputs.append((s * theta).to(currents.dtype))
        total = total + outputs[-1]
        if sloped:
            more = gain if t + 1 + delay < steps else 0.0
            slope, rho = slope + rho * q, more + leak * kept * rho
    found = (slope / steps).to(currents.dtype) if sloped else v.new_zeros(())
    return torch.stack(outputs), found, (total / steps).to(currents.dtype)


def current_at(
    currents: Tensor, t: int, dtype: torch.dtype, scale: Tensor | None, shift: Tensor | None
) -> Tensor:
    """The current of one step "B C N", after the affine map."""
    current = (currents[t] if len(currents) > 1 else currents[0]).to(dtype)
    return current if scale is None or shift is None else current * scale + shift


def advance(
    v: Tensor,
    sent: Tensor,
    current: Tensor,
    theta: Tensor,
    leak: float,
    gain: float,
    rest: float,
    slope_of: Callable[[Tensor], Tensor],
    hard: bool,
    detached: bool,
    signed: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor | float]:
    """One step of IF or LIF: the next v, the spikes sent, s, q = theta ds/dh and f = dv/dh."""
    h = (v if leak == 1 else rest + leak * (v - rest)) + (current if gain == 1 else gain * current)
    u = h / theta - 1
    s, q = (u >= 0).to(h.dtype), slope_of(u)
    if signed:
        positive = (sent > 0).to(h.dtype)
        q = q + slope_of(u + 1) * positive
        s = s - (h < 0).to(h.dtype) * positive
        sent = sent + s
    if hard:
        kept: Tensor | float = 1 - s if detached else (1 - s) - (h - rest) * q / theta
        return h * (1 - s) + rest * s, sent, s, q, kept
    return h - s * theta, sent, s, q, 1.0 if detached else 1 - q


def fused() -> Callable[..., tuple[Tensor, Tensor, Tensor]]:
    """`eligibility` compiled for any shape."""
    return compiled(eligibility)


class _Means(nn.Module):
    """The window means of a scan, as a function that `functional_call` can differentiate."""

    def __init__(self, neuron: Neuron) -> None:
        super().__init__()
        self.neuron = neuron

    def forward(self, currents: Tensor, shift: Tensor) -> tuple[tuple[Tensor, Tensor], Scan]:
        """Currents "T B ...", a shift for each window "W B ..."; means "W B ..."."""
        windows, first = len(shift), currents[0]
        moved = (currents.unflatten(0, (windows, -1)) + shift.unsqueeze(1)).flatten(0, 1)
        run = scan(self.neuron, moved)
        output = run.spikes * per_channel(self.neuron.theta, first).to(run.spikes)
        found = window_means(output, windows), window_means(run.potential, windows)
        return found, Scan(output, run.potential)


def by_jvp(neuron: Neuron, currents: Tensor, potential: bool = False, windows: int = 1) -> Response:
    """A Jacobian-vector product through the scan for each window's current and each parameter.

    With several windows slopes have two more dimensions, "W W B ...": how a shift of the current
    in the second window moves the mean of the first; those of parameters have one, "W B ...".
    """
    means = _Means(neuron)
    shift = currents.new_zeros(windows, *currents.shape[1:])
    trained = {n: p.detach() for n, p in means.named_parameters() if p.requires_grad}

    def along(name: str | None, window: int = 0) -> tuple[tuple[Tensor, Tensor], Scan]:
        def run(value: Tensor) -> tuple[tuple[Tensor, Tensor], Scan]:
            values = {**trained, **({name: value} if name else {})}
            return functional_call(means, values, (currents, shift if name else value))

        point = trained[name] if name else shift
        way = torch.zeros_like(point)
        (way if name else way[window]).fill_(1)
        result: Any = jvp(run, (point,), (way,), has_aux=True)
        return result[1], result[2]

    def shaped(columns: list[Tensor]) -> Tensor:
        return columns[0].squeeze(0) if windows == 1 else torch.stack(columns, 1)

    every = [along(None, window) for window in range(windows)]
    values = every[0][1]
    parameters = {}
    for name in trained:
        (own, own_potential), _ = along(name)
        if windows == 1:
            own, own_potential = own.squeeze(0), own_potential.squeeze(0)
        parameters[name.removeprefix("neuron.")] = (own, own_potential if potential else None)
    return Response(
        values.spikes,
        shaped([moved[0] for moved, _ in every]),
        values.potential if potential else None,
        shaped([moved[1] for moved, _ in every]) if potential else None,
        parameters,
    )
