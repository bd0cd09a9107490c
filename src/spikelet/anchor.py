"""Values that are known, with gradients of their own.

In a rate pass the values come from the spikes and the gradients from the means: each function here
takes a value as it is and says where its gradient goes.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from spikelet.dual import blank


class Anchor(torch.autograd.Function):
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


class StraightThrough(torch.autograd.Function):
    """The value of one tensor with the gradient of another."""

    @staticmethod
    def forward(ctx: Any, value: Tensor, like: Tensor) -> Tensor:  # type: ignore[override]
        ctx.dtype = like.dtype
        return value.view_as(value)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[None, Tensor]:  # type: ignore[override]
        return None, grad.to(ctx.dtype)


class Convolve(torch.autograd.Function):
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


class Normalise(torch.autograd.Function):
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
            laid_as(grad, mean), mean, weight, None, None, mu, inv, True, 0.0, mask
        )
        return None, dx, dw, db, None, None


def laid_as(grad: Tensor, like: Tensor) -> Tensor:
    """A gradient "B C ..." in the precision and order of memory of a tensor of its shape.

    torch's backward of batch norm is ten times slower on a CPU where the two orders differ.
    """
    return torch.empty_like(like).copy_(grad) if grad.stride() != like.stride() else grad.to(like)


class Fixed(torch.autograd.Function):
    """Batch norm of the mean with settled statistics; its value is known."""

    @staticmethod
    def forward(  # type: ignore[override]
        ctx: Any, value: Tensor, mean: Tensor, weight: Any, bias: Any, norm: Any
    ) -> Tensor:
        ctx.save_for_backward(mean, weight, norm.running_mean, norm.running_var)
        ctx.eps = norm.eps
        return value.view_as(value)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        mean, weight, mu, variance = ctx.saved_tensors
        mask = [bool(need) for need in ctx.needs_input_grad[1:4]]
        dx, dw, db = torch.ops.aten.native_batch_norm_backward(
            laid_as(grad, mean), mean, weight, mu, variance, None, None, False, ctx.eps, mask
        )
        return None, dx, dw, db, None


class Sum(torch.autograd.Function):
    """A sum whose value nobody reads."""

    @staticmethod
    def forward(ctx: Any, a: Tensor, b: Tensor) -> Tensor:  # type: ignore[override]
        ctx.dtypes = a.dtype, b.dtype
        return blank(a)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor]:  # type: ignore[override]
        return grad.to(ctx.dtypes[0]), grad.to(ctx.dtypes[1])
