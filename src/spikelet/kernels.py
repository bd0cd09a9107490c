"""A neuron's scan over time as one GPU kernel: spikes, their mean and its slope in one pass.

The same recursion as `slopes.eligibility`, the slower twin it is tested against, in fp32 for
currents of any precision. A step is seen as a matrix in memory order whose rows or columns are the
channels, so that contiguous and channels-last tensors are read as they lie. Triton compiles it;
CPU builds of torch come without Triton: `usable` then says no.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from spikelet.neuron import Integrator
from spikelet.spike import Arctangent, Rectangle, Sigmoid, Surrogate, Triangle

try:
    import triton
    import triton.language as tl
except ImportError:
    triton = None  # type: ignore[assignment]

MOST_UNROLLED = 32
TILE, WARPS = 1024, 4
DTYPES = (torch.float32, torch.bfloat16, torch.float16)


def usable(neuron: Integrator, currents: Tensor) -> bool:
    """Whether `scan` can run a neuron over currents "T B C ...": Triton, a GPU, a known slope."""
    known = isinstance(neuron.surrogate, Sigmoid | Arctangent | Triangle | Rectangle)
    return triton is not None and currents.is_cuda and known and currents.dtype in DTYPES


def scan(
    currents: Tensor,
    theta: Tensor,
    start: Tensor,
    steps: int,
    *,
    leak: float,
    gain: float,
    rest: float,
    surrogate: Surrogate,
    hard: bool,
    detached: bool,
    signed: bool,
    scale: Tensor | None = None,
    shift: Tensor | None = None,
    other: Tensor | None = None,
    other_scale: Tensor | None = None,
    other_shift: Tensor | None = None,
    dtype: torch.dtype | None = None,
    slope_dtype: torch.dtype = torch.float32,
    need_slope: bool = True,
    tile: int = TILE,
    warps: int = WARPS,
) -> tuple[Tensor, Tensor, Tensor | None]:
    """Output theta * s "T B C ...", its mean over time "B C ..." and the slope of that mean.

    All three lie in memory as a step of the currents does. Spikes and slopes are those of
    `slopes.eligibility` in fp32. The slope is with respect to a shift of what is integrated, that
    is of scale * current + shift + other_scale * other + other_shift where these are given.

    Args:
        currents: "T B C ...", or "1 B C ..." (or a T of stride 0) where each step is the same; of
            `DTYPES`. Copied if a step is neither contiguous nor channels-last.
        theta: threshold, a scalar or "C".
        start: potential before the first step, a scalar, "C" or "C ...".
        steps: T.
        scale, shift: "C", the affine map of a batch norm before the neuron.
        other: "T B C ...", a second current that is added, with an affine map of its own.
        dtype, slope_dtype: of output and mean, that of the currents unless given; of the slope.
            The mean is that of the rounded values; all sums are in fp32.
        need_slope: without it the third answer is None and the work is saved.
        tile, warps: elements and warps of one program.
    """
    assert (scale is None) == (shift is None)
    currents, inner = _dense(currents)
    second = currents if other is None else _laid_out(other, currents)
    dtype = dtype or currents.dtype
    output, mean = _empty(steps, currents[0], dtype), _empty(0, currents[0], dtype)
    slope = _empty(0, currents[0], slope_dtype) if need_slope else mean
    placed = start.ndim > 1
    values = _values(theta, start, [scale, shift, other_scale, other_shift], currents)
    along, rows, columns = _matrix(currents[0], inner, values[0].numel() > 1)
    name, width = _named(surrogate)
    leaky = leak != 1 or gain != 1  # then products decide spikes, so that each is to be rounded
    wide = min(triton.next_power_of_2(columns), tile)
    grid = (triton.cdiv(rows, tile // wide) * triton.cdiv(columns, wide),)
    if not mean.numel():
        return output, mean, slope if need_slope else None
    with torch.cuda.device(mean.device) if mean.is_cuda else contextlib.nullcontext():
        _scan[grid](
            currents, second, output, mean, slope, *values,
            rows, columns, mean.numel(), mean.shape[1], mean[0].numel(),
            leak, gain, rest, width, STEPS=steps, UNROLL=steps if steps <= MOST_UNROLLED else 1,
            STATIC=len(currents) == 1, ALONG=along, AFFINE=scale is not None,
            SUMMED=other is not None, MAPPED=other_scale is not None, SURROGATE=name,
            LEAKY=leaky, HARD=hard, DETACHED=detached, SIGNED=signed, SLOPED=need_slope,
            PLACED=placed, ROWS=tile // wide, COLUMNS=wide, num_warps=warps,
            enable_fp_fusion=not leaky,
        )  # fmt: skip
    return output, mean, slope if need_slope else None


def _empty(steps: int, like: Tensor, dtype: torch.dtype) -> Tensor:
    """Room for `steps` steps that lie as one step of the currents does, or for one without T."""
    shape, strides = like.shape, like.stride()
    if steps:
        shape, strides = torch.Size((steps, *shape)), (like.numel(), *strides)
    return torch.empty_strided(shape, strides, dtype=dtype, device=like.device)


def _dense(currents: Tensor) -> tuple[Tensor, int]:
    """Currents whose steps follow each other in memory, and a channel's run of neighbours there."""
    if currents.stride(0) == 0:
        currents = currents[:1]
    if len(currents) > 1 and currents.stride(0) != currents[0].numel():
        currents = currents.contiguous()
    first = currents[0]
    if not first.is_contiguous():
        if first.movedim(1, -1).is_contiguous():
            return currents, 1
        currents = currents.contiguous()
    return currents, math.prod(first.shape[2:])


def _laid_out(other: Tensor, currents: Tensor) -> Tensor:
    """A second current with the shape, precision and layout of the first."""
    assert other.shape == currents.shape
    if other.stride() == currents.stride() and other.dtype == currents.dtype:
        return other
    return torch.empty_like(currents).copy_(other)


def _matrix(first: Tensor, inner: int, per_channel: bool) -> tuple[str, int, int]:
    """A step as a matrix in memory order: where its channels run, its rows, its columns."""
    size = first.numel()
    if not per_channel:
        return "none", 1, size
    if inner == 1:
        return "columns", size // first.shape[1], first.shape[1]
    return "rows", size // max(inner, 1), inner


def _values(
    theta: Tensor, start: Tensor, maps: Sequence[Tensor | None], like: Tensor
) -> list[Tensor]:
    """Threshold, start and affine maps in fp32 on the current's device, each one value or "C".

    A start "C ..." lies as one image of the currents does.
    """
    given = [theta if x is None else x.detach() for x in (theta, None, *maps)]
    given[1] = start.detach() if start.ndim < 2 else theta
    count = max(x.numel() for x in given)
    values = [x.to(like.device, torch.float32).expand(count).contiguous() for x in given]
    if start.ndim > 1:
        values[1] = torch.empty_strided(start.shape, like.stride()[2:], device=like.device)
        values[1].copy_(start.detach())
    return values


def _named(surrogate: Surrogate) -> tuple[str, float]:
    """A surrogate's name in the kernel, and its alpha or width."""
    if isinstance(surrogate, Sigmoid | Arctangent):
        return type(surrogate).__name__.lower(), surrogate.alpha
    assert isinstance(surrogate, Triangle | Rectangle), f"no kernel for {surrogate}"
    return type(surrogate).__name__.lower(), surrogate.width


def _compiled(function: Callable[..., Any]) -> Any:
    """Triton's compiled form, or the function as it is where there is no Triton."""
    return function if triton is None else triton.jit(function)


@_compiled
def _slope_of(u: tl.tensor, width: tl.tensor, SURROGATE: tl.constexpr) -> tl.tensor:
    """The surrogate's slope at u; `width` is its alpha or its width."""
    if SURROGATE == "sigmoid":
        # alpha e / (1 + e)^2 with e = exp(-alpha |u|), as 2 to a power: nothing overflows
        e = tl.exp2(tl.abs(u) * (-1.4426950408889634 * width))
        part = 1 / (1 + e)
        slope = (width * e) * (part * part)
    elif SURROGATE == "arctangent":
        x = (1.5707963267948966 * width) * u
        slope = (width * 0.5) / (1 + x * x)
    elif SURROGATE == "triangle":
        slope = tl.maximum(1 - tl.abs(u) * (1 / width), 0.0) * (1 / width)
    else:
        slope = tl.where(tl.abs(u) < width * 0.5, 1 / width, 0.0)
    return slope


@_compiled
def _advance(
    x: tl.tensor, v: tl.tensor, rho: tl.tensor, count: tl.tensor, theta: tl.tensor,
    inverse: tl.tensor, leak: tl.tensor, gain: tl.tensor, rest: tl.tensor, width: tl.tensor,
    SURROGATE: tl.constexpr, LEAKY: tl.constexpr, HARD: tl.constexpr,
    DETACHED: tl.constexpr, SIGNED: tl.constexpr, SLOPED: tl.constexpr,
) -> tl.tensor:  # fmt: skip
    """One step: the next v, rho and sum of spikes; the spike s; the step's share of the slope."""
    h = (gain * x + (rest + leak * (v - rest))) if LEAKY else v + x
    # h >= theta exactly where the rounded h / theta is at least 1: no division decides a spike
    s = tl.where(h >= theta, 1.0, 0.0)
    q = s * 0
    if SLOPED:
        # a rectangle jumps at its edges, so there the quotient must be the rounded one
        u = tl.div_rn(h, theta + q) - 1 if SURROGATE == "rectangle" else h * inverse - 1
        q = _slope_of(u, width, SURROGATE)
        if SIGNED:
            q += tl.where(count > 0, _slope_of(u + 1, width, SURROGATE), 0.0)
    if SIGNED:
        s -= tl.where((h < 0) & (count > 0), 1.0, 0.0)
    if HARD:
        v = h * (1 - s) + rest * s
        kept = 1 - s if DETACHED else (1 - s) - (h - rest) * q * inverse
    else:
        v = h - s * theta
        kept = s * 0 + 1 if DETACHED else 1 - q
    share = rho * q
    rho = gain + leak * (kept * rho) if LEAKY else 1 + kept * rho
    return v, rho, count + s, s, share


@_compiled
def _taken(
    source: tl.tensor, inside: tl.tensor, scale: tl.tensor, shift: tl.tensor, AFFINE: tl.constexpr
) -> tl.tensor:
    """The currents of one step in fp32, after the affine map."""
    x = tl.load(source, mask=inside, other=0.0).to(tl.float32)
    if AFFINE:
        x = x * scale + shift
    return x


@_compiled
def _summed(
    source: tl.tensor, second: tl.tensor, inside: tl.tensor, scale: tl.tensor, shift: tl.tensor,
    other_scale: tl.tensor, other_shift: tl.tensor,
    AFFINE: tl.constexpr, SUMMED: tl.constexpr, MAPPED: tl.constexpr,
) -> tl.tensor:  # fmt: skip
    """What is integrated at one step: the currents, and the second ones where there are some."""
    x = _taken(source, inside, scale, shift, AFFINE)
    if SUMMED:
        x += _taken(second, inside, other_scale, other_shift, MAPPED)
    return x


@_compiled
def _scan(
    currents: tl.tensor, second: tl.tensor, output: tl.tensor, mean: tl.tensor, slope: tl.tensor,
    theta: tl.tensor, start: tl.tensor, scale: tl.tensor, shift: tl.tensor,
    other_scale: tl.tensor, other_shift: tl.tensor,
    rows: tl.tensor, columns: tl.tensor, size: tl.tensor, channels: tl.tensor, image: tl.tensor,
    leak: tl.tensor, gain: tl.tensor, rest: tl.tensor, width: tl.tensor,
    STEPS: tl.constexpr, UNROLL: tl.constexpr, STATIC: tl.constexpr, ALONG: tl.constexpr,
    AFFINE: tl.constexpr, SUMMED: tl.constexpr, MAPPED: tl.constexpr,
    SURROGATE: tl.constexpr, LEAKY: tl.constexpr, HARD: tl.constexpr,
    DETACHED: tl.constexpr, SIGNED: tl.constexpr, SLOPED: tl.constexpr, PLACED: tl.constexpr,
    ROWS: tl.constexpr, COLUMNS: tl.constexpr,
) -> None:  # fmt: skip
    """One tile of ROWS x COLUMNS elements through all steps."""
    across = (columns + COLUMNS - 1) // COLUMNS
    top = tl.program_id(0) // across * ROWS
    left = tl.program_id(0) % across * COLUMNS
    row, column = top + tl.arange(0, ROWS), left + tl.arange(0, COLUMNS)
    inside = (row < rows)[:, None] & (column < columns)[None, :]
    # only a tile's first element may lie beyond 32 bits, and `size` is added to it T times
    place = top.to(tl.int64) * columns + left
    local = tl.arange(0, ROWS)[:, None] * columns + tl.arange(0, COLUMNS)[None, :]
    channel, there = (row % channels)[:, None], (row < rows)[:, None]
    if ALONG == "columns":
        channel, there = column[None, :], (column < columns)[None, :]
    elif ALONG == "none":
        channel = channel * 0
    theta = tl.load(theta + channel, mask=there, other=1.0)
    sent, withdrawn = theta.to(output.dtype.element_ty), (-theta).to(output.dtype.element_ty)
    inverse = 1 / theta
    if AFFINE:
        scale = tl.load(scale + channel, mask=there, other=0.0)
        shift = tl.load(shift + channel, mask=there, other=0.0)
    if MAPPED:
        other_scale = tl.load(other_scale + channel, mask=there, other=0.0)
        other_shift = tl.load(other_shift + channel, mask=there, other=0.0)
    zero = tl.full([ROWS, COLUMNS], 0.0, tl.float32)
    if PLACED:
        v = tl.load(start + (place + local) % image, mask=inside, other=0.0)
    else:
        v = tl.load(start + channel, mask=there, other=0.0) + zero
    count, slopes, rho, none = zero, zero, zero + gain, zero.to(sent.dtype)
    source, target = currents + place + local, output + place + local
    added = second + place + local
    following = _summed(
        source, added, inside, scale, shift, other_scale, other_shift, AFFINE, SUMMED, MAPPED
    )
    for t in tl.range(0, STEPS, loop_unroll_factor=UNROLL):
        x = following
        if not STATIC:
            # the next step is asked for before this one is written: two loads stay in flight
            source += size
            added += size
            following = _summed(
                source, added, inside & (t + 1 < STEPS), scale, shift, other_scale, other_shift,
                AFFINE, SUMMED, MAPPED,
            )  # fmt: skip
        v, rho, count, s, share = _advance(
            x, v, rho, count, theta, inverse, leak, gain, rest, width,
            SURROGATE, LEAKY, HARD, DETACHED, SIGNED, SLOPED,
        )  # fmt: skip
        y = tl.where(s > 0, sent, none)
        if SIGNED:
            y = tl.where(s < 0, withdrawn, y)
        tl.store(target, y, mask=inside)
        target += size
        slopes += share
    average = count * (sent.to(tl.float32) / STEPS)
    tl.store(mean + place + local, average.to(mean.dtype.element_ty), mask=inside)
    if SLOPED:
        slopes = (slopes / STEPS).to(slope.dtype.element_ty)
        tl.store(slope + place + local, slopes, mask=inside)
