"""Rate-based backpropagation in one pass: spikes and their mean travel side by side.

A `Dual` carries what flows at each step and its mean over time. Three rules say what a call does
to it: by default the value comes from the spikes and the derivative from the mean; batch norm
takes its statistics' values from the spikes and their gradients from the means; a neuron has the
slope of its mean (arXiv 2410.11488). Only the mean is recorded for the backward pass.
"""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn
from torch.nn.modules.batchnorm import _BatchNorm

from spikelet.dual import (
    Dual,
    at_steps,
    changed,
    duals_in,
    fold,
    means_at,
    over_time,
    unfold,
    window_means,
)
from spikelet.errors import UserError
from spikelet.neuron import Neuron, per_channel
from spikelet.norm import FrozenNorm
from spikelet.slopes import Response, by_jvp, respond

LINEAR_MODULES = (
    FrozenNorm,
    nn.Identity,
    nn.Linear,
    nn.Flatten,
    nn.AvgPool1d,
    nn.AvgPool2d,
    nn.AdaptiveAvgPool2d,
)
LINEAR_FUNCTIONS = {
    operator.add,
    operator.sub,
    torch.add,
    torch.flatten,
    torch.cat,
    F.pad,
    F.avg_pool2d,
    F.adaptive_avg_pool2d,
    operator.getitem,
    "view",
    "reshape",
    "flatten",
    "permute",
}


class _Anchor(torch.autograd.Function):
    """A value with given slopes towards its inputs: value + sum_i slope_i (x_i - stop(x_i))."""

    @staticmethod
    def forward(ctx: Any, value: Tensor, *pairs: Tensor) -> Tensor:  # type: ignore[override]
        half = len(pairs) // 2
        ctx.shapes = [x.shape for x in pairs[:half]]
        ctx.dtypes = [x.dtype for x in pairs[:half]]
        ctx.save_for_backward(*pairs[half:])
        return value.view_as(value)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        slopes = ctx.saved_tensors
        grads = [
            _sum_to((grad * slope), shape).to(dtype)
            for slope, shape, dtype in zip(slopes, ctx.shapes, ctx.dtypes, strict=True)
        ]
        return (None, *grads, *[None] * len(slopes))


def _sum_to(grad: Tensor, shape: torch.Size) -> Tensor:
    """Sums a gradient "B C ..." to a scalar or to "C"; leaves an equal shape alone."""
    if grad.shape == shape:
        return grad
    if not shape:
        return grad.sum()
    total = grad.sum([d for d in range(grad.ndim) if d != 1])
    return (total if total.numel() == shape.numel() else total.sum()).reshape(shape)


class _StraightThrough(torch.autograd.Function):
    """The value of one tensor with the gradient of another."""

    @staticmethod
    def forward(ctx: Any, value: Tensor, like: Tensor) -> Tensor:  # type: ignore[override]
        ctx.dtype = like.dtype
        return value.view_as(value)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[None, Tensor]:  # type: ignore[override]
        return None, grad.to(ctx.dtype)


class _Convolve(torch.autograd.Function):
    """A convolution whose value is known; its backward uses the mean input, no second forward."""

    @staticmethod
    def forward(  # type: ignore[override]
        ctx: Any, value: Tensor, mean: Tensor, weight: Tensor, bias: Tensor | None, conv: Any
    ) -> Tensor:
        ctx.save_for_backward(mean, weight)
        ctx.conv, ctx.bias = conv, bias
        return value.view_as(value)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        mean, weight = ctx.saved_tensors
        conv, dims = ctx.conv, weight.ndim - 2
        x, w = mean.to(grad.dtype), weight.to(grad.dtype)
        need = [ctx.needs_input_grad[i] for i in (1, 2, 3)]
        zero = [0] * dims
        dx, dw, db = torch.ops.aten.convolution_backward(
            grad, x, w, [len(weight)] if ctx.bias is not None else None,
            conv.stride, conv.padding, conv.dilation, False, zero, conv.groups, need,
        )  # fmt: skip
        dx = dx.to(mean.dtype) if dx is not None else None
        dw = dw.to(weight.dtype) if dw is not None else None
        db = db.to(weight.dtype) if db is not None else None
        return None, dx, dw, db, None


class _Normalise(torch.autograd.Function):
    """Batch norm of the mean with the spikes' statistics: value known, gradients of methods 3.4."""

    @staticmethod
    def forward(  # type: ignore[override]
        ctx: Any, value: Tensor, mean: Tensor, weight: Any, bias: Any, mu: Tensor, inv: Tensor
    ) -> Tensor:
        ctx.save_for_backward(mean, weight, mu, inv)
        return value.view_as(value)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        mean, weight, mu, inv = ctx.saved_tensors
        mask = [bool(need) for need in ctx.needs_input_grad[1:4]]
        dx, dw, db = torch.ops.aten.native_batch_norm_backward(
            grad.to(mean.dtype), mean, weight, None, None, mu, inv, True, 0.0, mask
        )
        return None, dx, dw, db, None, None


def default(
    function: Callable[..., Any],
    args: Any,
    kwargs: Any,
    linear: bool,
    total: int = 1,
    windows: int = 1,
) -> Any:
    """The default rule: the value from the spikes, the derivative from the mean.

    A linear call needs no anchor: its value at the mean is already the mean of its values. A size
    that is read from a value carried once is that of all `total` steps where the two differ. What
    moves in time has a mean for each of the `windows`.
    """
    duals = duals_in((args, kwargs))
    if not duals:
        return function(*args, **kwargs)
    steps = max(d.steps for d in duals)
    spikes = _valued(function, args, kwargs, steps)
    if steps < total and _is_size(spikes):
        repeated = _valued(function, args, kwargs, total)
        spikes, steps = (spikes, steps) if repeated == spikes else (repeated, total)
    windows = windows if steps > 1 else 1
    a, k = changed((args, kwargs), lambda d: means_at(d, windows))
    mean = function(*a, **k)
    if isinstance(mean, Tensor) and not linear:
        mean = _StraightThrough.apply(over_time(spikes, steps, windows), mean)
    return Dual(spikes, mean, steps, windows=windows)


def _valued(function: Callable[..., Any], args: Any, kwargs: Any, steps: int) -> Any:
    with torch.no_grad():
        a, k = changed((args, kwargs), lambda d: at_steps(d, steps))
        return function(*a, **k)


def _is_size(value: Any) -> bool:
    return isinstance(value, (int, torch.Size))


def convolve(conv: Any, x: Dual) -> Dual:
    """Convolution: forward on the spikes only, backward on the mean input only."""
    x = x.settled()
    if isinstance(conv.padding, str) or conv.padding_mode != "zeros":
        return default(conv, (x,), {}, linear=True, windows=x.windows)
    with torch.no_grad():
        spikes = conv(x.spikes)
    value = over_time(spikes, x.steps, x.windows)
    mean = _Convolve.apply(value, x.mean, conv.weight, conv.bias, conv)
    return Dual(spikes, mean, x.steps, windows=x.windows)


def batch_statistics(norm: _BatchNorm) -> bool:
    """Whether a norm uses the statistics of the batch: in training, or if it tracks none."""
    return norm.training or norm.running_mean is None


def normalise(norm: _BatchNorm, x: Dual, steps: int, wait: bool = False) -> Dual:
    """Training batch norm (methods 3.4), with one update of the running statistics.

    The statistics are those of the spikes over T, B and positions together; running variance is
    unbiased with all T B H W of them. With `wait` the values are left for the neuron to compute.
    """
    x = x.settled()
    affine = None
    with torch.no_grad():
        if wait:
            spikes, (mu, inv) = x.spikes, statistics(x.spikes, norm.eps)
            affine = scale_and_shift(norm, mu, inv)
        else:
            spikes, mu, inv = torch.native_batch_norm(
                x.spikes, norm.weight, norm.bias, None, None, True, 0.0, norm.eps
            )
        count = x.spikes.numel() // x.spikes.shape[1] * (steps if x.steps == 1 else 1)
        variance = inv.to(mu).pow(-2) - norm.eps
        _track(norm, mu, variance, count)
        # the statistics are one for all steps, so the mean's value is the norm of the mean
        value = F.batch_norm(
            x.mean.detach(), mu, variance, norm.weight, norm.bias, False, 0.0, norm.eps
        )
    mean = _Normalise.apply(value, x.mean, norm.weight, norm.bias, mu, inv)
    return Dual(spikes, mean, x.steps, affine, x.windows)


def statistics(x: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """Mean and 1 / sqrt(variance + eps) per channel "C" of "N C ...", in fp32 at least."""
    if x.is_cuda:
        return torch.batch_norm_stats(x, eps)
    precise = torch.promote_types(x.dtype, torch.float32)
    running = [torch.zeros(x.shape[1], dtype=precise, device=x.device) for _ in range(2)]
    mean, variance = torch.ops.aten.batch_norm_update_stats(x, *running, 0.0)
    return mean, (variance + eps).rsqrt()


def scale_and_shift(norm: _BatchNorm, mu: Tensor, inv: Tensor) -> tuple[Tensor, Tensor]:
    """Batch norm of given statistics as scale * x + shift, each "C"."""
    scale = inv if norm.weight is None else inv * norm.weight
    shift = -mu * scale
    return scale, shift if norm.bias is None else shift + norm.bias


def _track(norm: _BatchNorm, mean: Tensor, variance: Tensor, count: int) -> None:
    if norm.running_mean is None or norm.running_var is None:
        return
    assert norm.num_batches_tracked is not None
    norm.num_batches_tracked += 1
    share = norm.momentum if norm.momentum is not None else 1 / float(norm.num_batches_tracked)
    norm.running_mean.lerp_(mean.to(norm.running_mean), share)
    unbiased = variance.clamp_min(0) * (count / max(count - 1, 1))
    norm.running_var.lerp_(unbiased.to(norm.running_var), share)


def drop(dropout: nn.Module, x: Dual) -> Dual:
    """Dropout with one mask for all steps."""
    x = x.settled()
    mask = dropout(torch.ones_like(unfold(x.mean, x.windows)[0]))
    spikes = fold(unfold(x.spikes, x.steps) * mask)
    return Dual(spikes, fold(unfold(x.mean, x.windows) * mask), x.steps, windows=x.windows)


def spike(
    neuron: Neuron, x: Dual, steps: int, potential: bool, fuse: bool = False, windows: int = 1
) -> tuple[Dual, Response]:
    """A neuron: runs over the spikes' currents; its means have the slopes of the response."""
    if not neuron.elementwise:
        raise UserError(
            f"neuron {type(neuron).__name__}",
            "`rate` needs neurons whose spikes depend on their own current alone",
            "use execute=bptt",
        )
    if windows > 1:
        return _in_windows(neuron, x.settled(), steps, windows)
    response = respond(neuron, unfold(x.spikes, x.steps), steps, potential, fuse, x.affine)
    inputs, slopes = [x.mean], [response.slope]
    for name, (slope, _) in (response.parameters or {}).items():
        inputs.append(neuron.get_parameter(name))
        slopes.append(slope)
    mean = _Anchor.apply(response.mean_output, *inputs, *slopes)
    return Dual(fold(response.output), mean, steps), response


def _in_windows(neuron: Neuron, x: Dual, steps: int, windows: int) -> tuple[Dual, Response]:
    """`spike` with a causal matrix of slopes between windows (methods 3.9)."""
    with torch.no_grad():
        currents = unfold(at_steps(x, steps), steps)
        currents = currents.float() if currents.dtype.itemsize < 4 else currents
        response = by_jvp(neuron, currents, potential=True, windows=windows)
    mean = _linked(neuron, x, response, response.output, response.slope, 0)
    return Dual(fold(response.output), mean, steps, windows=windows), response


def _linked(
    neuron: Neuron, x: Dual, response: Response, values: Tensor, slope: Tensor, which: int
) -> Tensor:
    """Window means "(W B) ..." of values "T B ...", with slopes "W W B ..." to the currents'.

    `which` is 0 for the output, 1 for the potential, as in the slopes of parameters.
    """
    windows = len(slope)
    current = unfold(means_at(x, windows), windows)
    change = torch.einsum("wv...,v...->w...", slope, (current - current.detach()).to(slope))
    mean = window_means(values, windows) + change.to(values)
    for name, slopes in (response.parameters or {}).items():
        parameter, own = neuron.get_parameter(name), slopes[which]
        assert own is not None
        mean = mean + own * per_channel(parameter - parameter.detach(), values[0])
    return fold(mean)


def anchored_potential(neuron: Neuron, x: Dual, response: Response, windows: int = 1) -> Tensor:
    """The mean pre-reset potential "(W B) ..." with its own slopes (methods 3.2)."""
    assert response.potential is not None and response.potential_slope is not None
    if windows > 1:
        values, matrix = response.potential, response.potential_slope
        return _linked(neuron, x.settled(), response, values, matrix, 1)
    inputs, slopes = [x.mean], [response.potential_slope]
    for name, (_, slope) in (response.parameters or {}).items():
        assert slope is not None
        inputs.append(neuron.get_parameter(name))
        slopes.append(slope)
    return _Anchor.apply(response.potential.mean(0), *inputs, *slopes)


def per_step(values: Tensor, means: Tensor, windows: int = 1) -> Tensor:
    """ "T B ...": the value of each step, the derivative of the mean of its window."""
    means = unfold(means, windows).unsqueeze(1)
    means = means.expand(-1, len(values) // windows, *means.shape[2:]).flatten(0, 1)
    return _StraightThrough.apply(values, means)


def binary(neuron: Neuron, output: Tensor, means: Tensor, windows: int = 1) -> Tensor:
    """A neuron's spikes s "T B ..." from theta * s, with the derivative of their means."""
    theta = per_channel(neuron.theta, means).to(means)
    return per_step((output / theta.detach()).round(), means / theta, windows)


def is_linear(node: fx.Node, function: Any) -> bool:
    """Whether a call is known to be linear, so that its value at the mean needs no anchor."""
    if node.op == "call_module":
        frozen_norm = isinstance(function, _BatchNorm) and not batch_statistics(function)
        return frozen_norm or isinstance(function, LINEAR_MODULES)
    return node.target in LINEAR_FUNCTIONS
