"""Rate-based backpropagation in one pass: spikes and their mean travel side by side.

A `Dual` carries what flows at each step and its mean over time. Three rules say what a call does
to it: by default the value comes from the spikes and the derivative from the mean; batch norm
takes its statistics' values from the spikes and their gradients from the means; a neuron has the
slope of its mean (arXiv 2410.11488). Only the mean is recorded for the backward pass.
"""

from __future__ import annotations

import operator
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn
from torch.nn.modules.batchnorm import _BatchNorm

from spikelet.errors import UserError
from spikelet.neuron import Neuron, per_channel
from spikelet.norm import FrozenNorm
from spikelet.slopes import Response, respond

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


@dataclass(frozen=True)
class Dual:
    """A value over time and its mean.

    Attributes:
        spikes: "(T B) ..." in folded form, or "B ..." while it is the same at every step; not
            recorded for the backward pass.
        mean: "B ...", differentiable; its value is the time mean of `spikes`.
        steps: T, or 1 while the value is the same at every step.
        affine: (scale, shift), each "C", if the value is scale * spikes + shift: a batch norm that
            waits for the neuron behind it, to save a pass over all steps.
    """

    spikes: Any
    mean: Any
    steps: int
    affine: tuple[Tensor, Tensor] | None = None

    def settled(self) -> Dual:
        """The same dual with nothing waiting."""
        if self.affine is None:
            return self
        with torch.no_grad():
            scale, shift = (per_channel(x, self.spikes).to(self.spikes) for x in self.affine)
            return Dual(torch.addcmul(shift, self.spikes, scale), self.mean, self.steps)


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


def fold(x: Tensor) -> Tensor:
    """ "T B ..." to "(T B) ..."."""
    return x.reshape(-1, *x.shape[2:])


def unfold(x: Tensor, steps: int) -> Tensor:
    """ "(T B) ..." to "T B ..."."""
    return x.reshape(steps, -1, *x.shape[1:])


def over_time(dual: Dual) -> Tensor:
    """The time mean "B ..." of a dual's spikes."""
    return dual.spikes if dual.steps == 1 else unfold(dual.spikes, dual.steps).mean(0)


def default(
    function: Callable[..., Any], args: Any, kwargs: Any, linear: bool, total: int = 1
) -> Any:
    """The default rule: the value from the spikes, the derivative from the mean.

    A linear call needs no anchor: its value at the mean is already the mean of its values. A size
    that is read from a value carried once is that of all `total` steps where the two differ.
    """
    duals = _duals((args, kwargs))
    if not duals:
        return function(*args, **kwargs)
    steps = max(d.steps for d in duals)
    spikes = _valued(function, args, kwargs, steps)
    if steps < total and _is_size(spikes):
        repeated = _valued(function, args, kwargs, total)
        spikes, steps = (spikes, steps) if repeated == spikes else (repeated, total)
    a, k = _map((args, kwargs), lambda d: d.mean)
    mean = function(*a, **k)
    if isinstance(mean, Tensor) and not linear:
        mean = _StraightThrough.apply(over_time(Dual(spikes, mean, steps)), mean)
    return Dual(spikes, mean, steps)


def _valued(function: Callable[..., Any], args: Any, kwargs: Any, steps: int) -> Any:
    with torch.no_grad():
        a, k = _map((args, kwargs), lambda d: at_steps(d, steps))
        return function(*a, **k)


def _is_size(value: Any) -> bool:
    return isinstance(value, (int, torch.Size))


def at_steps(dual: Dual, steps: int) -> Any:
    """A dual's value "(T B) ...", repeated if it is the same at every step."""
    dual = dual.settled()
    if dual.steps == steps or not isinstance(dual.spikes, Tensor):
        return dual.spikes
    return fold(dual.spikes.unsqueeze(0).expand(steps, *dual.spikes.shape))


def _duals(tree: Any) -> list[Dual]:
    if isinstance(tree, Dual):
        return [tree]
    if isinstance(tree, (tuple, list)):
        return [d for item in tree for d in _duals(item)]
    if isinstance(tree, dict):
        return _duals(list(tree.values()))
    return []


def _map(tree: Any, change: Callable[[Dual], Any]) -> Any:
    if isinstance(tree, Dual):
        return change(tree)
    if isinstance(tree, (tuple, list)):
        return type(tree)(_map(item, change) for item in tree)
    if isinstance(tree, dict):
        return {key: _map(item, change) for key, item in tree.items()}
    return tree


def convolve(conv: Any, x: Dual) -> Dual:
    """Convolution: forward on the spikes only, backward on the mean input only."""
    x = x.settled()
    if isinstance(conv.padding, str) or conv.padding_mode != "zeros":
        return default(conv, (x,), {}, linear=True)
    with torch.no_grad():
        spikes = conv(x.spikes)
    value = over_time(Dual(spikes, None, x.steps))
    mean = _Convolve.apply(value, x.mean, conv.weight, conv.bias, conv)
    return Dual(spikes, mean, x.steps)


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
    return Dual(spikes, mean, x.steps, affine)


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
    x, mask = x.settled(), dropout(torch.ones_like(x.mean))
    spikes = x.spikes * mask if x.steps == 1 else fold(unfold(x.spikes, x.steps) * mask)
    return Dual(spikes, x.mean * mask, x.steps)


def spike(
    neuron: Neuron, x: Dual, steps: int, potential: bool, fuse: bool = False
) -> tuple[Dual, Response]:
    """A neuron: runs over the spikes' currents; its mean has the slopes of the response."""
    if not neuron.elementwise:
        raise UserError(
            f"neuron {type(neuron).__name__}",
            "`rate` needs neurons whose spikes depend on their own current alone",
            "use execute=bptt",
        )
    response = respond(neuron, unfold(x.spikes, x.steps), steps, potential, fuse, x.affine)
    inputs, slopes = [x.mean], [response.slope]
    for name, (slope, _) in (response.parameters or {}).items():
        inputs.append(neuron.get_parameter(name))
        slopes.append(slope)
    mean = _Anchor.apply(response.mean_output, *inputs, *slopes)
    return Dual(fold(response.output), mean, steps), response


def anchored_potential(neuron: Neuron, x: Dual, response: Response) -> Tensor:
    """The mean pre-reset potential "B ..." with its own slopes (methods 3.2)."""
    assert response.potential is not None and response.potential_slope is not None
    inputs, slopes = [x.mean], [response.potential_slope]
    for name, (_, slope) in (response.parameters or {}).items():
        assert slope is not None
        inputs.append(neuron.get_parameter(name))
        slopes.append(slope)
    return _Anchor.apply(response.potential.mean(0), *inputs, *slopes)


def per_step(values: Tensor, mean: Tensor) -> Tensor:
    """ "T B ...": the value of each step, the derivative of the mean."""
    return _StraightThrough.apply(values, mean.unsqueeze(0).expand_as(values))


def binary(neuron: Neuron, output: Tensor, mean: Tensor) -> Tensor:
    """A neuron's spikes s "T B ..." from theta * s, with the derivative of their mean."""
    theta = per_channel(neuron.theta, mean).to(mean)
    return per_step((output / theta.detach()).round(), mean / theta)


def is_linear(node: fx.Node, function: Any) -> bool:
    """Whether a call is known to be linear, so that its value at the mean needs no anchor."""
    if node.op == "call_module":
        frozen_norm = isinstance(function, _BatchNorm) and not batch_statistics(function)
        return frozen_norm or isinstance(function, LINEAR_MODULES)
    return node.target in LINEAR_FUNCTIONS
