"""The gradient of a convolution and a fixed batch norm as that of one linear map.

By itself a norm's scale needs the convolution's output for its gradient; here it comes from the
weight's gradient, so that the output is neither kept nor known.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn


@dataclass(frozen=True)
class Waiting:
    """A convolution of x that waits for the norm behind it."""

    conv: nn.Conv1d | nn.Conv2d
    x: Tensor


def folded(value: Tensor, before: Waiting, norm: Any) -> Tensor:
    """`value`, with the gradient of norm(conv(x)); the norm has running statistics."""
    conv, x = before.conv, before.x
    parameters = (conv.weight, conv.bias, norm.weight, norm.bias)
    settled = (norm.running_mean, norm.running_var, norm.eps)
    return _Folded.apply(value, x, *parameters, *settled, conv)


class _Folded(torch.autograd.Function):
    """A known value with the gradient of a convolution and a fixed norm, of which only x is kept.

    y = k (w x + b - mu) + beta with k = gamma / sqrt(var + eps). With G the weight's gradient of a
    convolution alone: dw = k G, dgamma = (sum G w + (b - mu) sum dy) / sqrt(var + eps).
    """

    @staticmethod
    def forward(  # type: ignore[override]
        ctx: Any, value: Tensor, x: Tensor, weight: Tensor, bias: Tensor | None, *norm: Any
    ) -> Tensor:
        gamma, _, mean, variance, ctx.eps, ctx.conv = norm
        ctx.save_for_backward(x, weight, bias, gamma, mean, variance)
        return value.view_as(value)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        x, weight, bias, gamma, mean, variance = ctx.saved_tensors
        conv, need = ctx.conv, ctx.needs_input_grad
        inverse = (variance + ctx.eps).rsqrt()
        scale = inverse if gamma is None else inverse * gamma
        column = (-1, *[1] * (weight.ndim - 1))
        dx, raw, total = torch.ops.aten.convolution_backward(
            grad, x.to(grad.dtype), (weight * scale.view(column)).to(grad.dtype), [len(weight)],
            conv.stride, conv.padding, conv.dilation, False, [0] * len(conv.stride), conv.groups,
            [need[1], need[2] or need[4], True],
        )  # fmt: skip
        raw, total = None if raw is None else raw.to(weight.dtype), total.to(weight.dtype)
        dgamma = None
        if need[4]:
            shift = -mean if bias is None else bias - mean
            dgamma = inverse * ((raw * weight).flatten(1).sum(1) + shift * total)
        return (
            None,
            None if dx is None else dx.to(x.dtype),
            raw * scale.view(column) if need[2] else None,
            total * scale if need[3] else None,
            dgamma,
            total if need[5] else None,
            *[None] * 4,
        )
