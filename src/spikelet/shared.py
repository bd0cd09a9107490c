"""Batch norm whose statistics are those of the images of all processes, on any device.

torch's own needs a GPU, and knows one way to take the gradient; a rate pass has another.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, final

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from spikelet.anchor import laid_as
from spikelet.processes import from_each, processes, summed


@final
class SharedNorm(_BatchNorm):
    """A batch norm that takes the statistics of all processes while it trains.

    It has the parameters and buffers of the norm it stands for, and their names.
    """

    def __init__(self, norm: _BatchNorm) -> None:
        nn.Module.__init__(self)
        self.__dict__.update({k: v for k, v in vars(norm).items() if not k.startswith("_")})
        self._parameters.update(norm._parameters)
        self._buffers.update(norm._buffers)

    def _check_input_dim(self, input: Tensor) -> None:
        pass

    def forward(self, input: Tensor) -> Tensor:
        if not self.training:
            return super().forward(input)
        mean, variance, count = common(*moments(input), input.numel() // input.shape[1])
        track(self, mean, variance, count)
        inv = (variance + self.eps).rsqrt()
        return Shared.apply(None, input, self.weight, self.bias, mean, inv, count)


@contextmanager
def sharing(module: nn.Module) -> Iterator[None]:
    """Batch norms of a module share their statistics inside; without other processes, nothing."""
    found = [
        (path, norm)
        for path, norm in module.named_modules(remove_duplicate=False)
        if isinstance(norm, _BatchNorm) and processes() > 1
    ]
    shared = {norm: SharedNorm(norm) for _, norm in found}
    for path, norm in found:
        module.set_submodule(path, shared[norm])
    try:
        yield
    finally:
        for path, norm in found:
            norm._buffers.update(shared[norm]._buffers)
            norm.training = shared[norm].training
            module.set_submodule(path, norm)


@torch.no_grad()
def moments(x: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and variance per channel "C" of "N C ...", in fp32 at least."""
    if x.is_cuda:
        mean, inv = torch.batch_norm_stats(x, 0.0)
        return mean, inv.pow(-2)
    precise = torch.promote_types(x.dtype, torch.float32)
    running = [torch.zeros(x.shape[1], dtype=precise, device=x.device) for _ in range(2)]
    mean, variance = torch.ops.aten.batch_norm_update_stats(x, *running, 0.0)
    return mean, variance


@torch.no_grad()
def common(mean: Tensor, variance: Tensor, count: int) -> tuple[Tensor, Tensor, Tensor]:
    """Mean, variance and number of the values of all processes, from those of each.

    With n_p values of mean m_p and variance v_p: m = sum n_p m_p / n and
    v = sum n_p (v_p + (m_p - m)^2) / n (Chan, Golub, LeVeque 1983): no difference of large squares.
    """
    each = from_each(torch.cat([mean, variance, mean.new_tensor([count])]))
    means, variances, counts = each.split([len(mean), len(mean), 1], 1)
    number = counts.sum()
    weights = counts / number
    mean = (weights * means).sum(0)
    variance = (weights * (variances + (means - mean).square())).sum(0)
    return mean, variance, number


@torch.no_grad()
def track(norm: _BatchNorm, mean: Tensor, variance: Tensor, count: int | Tensor) -> None:
    """One update of the running statistics from `count` values, whose variance becomes unbiased."""
    if norm.running_mean is None or norm.running_var is None:
        return
    assert norm.num_batches_tracked is not None
    norm.num_batches_tracked += 1
    share = norm.momentum if norm.momentum is not None else 1 / float(norm.num_batches_tracked)
    norm.running_mean.lerp_(mean.to(norm.running_mean), share)
    fewer = count - 1 if isinstance(count, Tensor) else max(count - 1, 1)
    unbiased = variance.clamp_min(0) * (count / fewer)
    norm.running_var.lerp_(unbiased.to(norm.running_var), share)


def normalised(x: Tensor, mean: Tensor, variance: Tensor, norm: _BatchNorm) -> Tensor:
    """Batch norm of "N C ..." with given statistics."""
    return F.batch_norm(x, mean, variance, norm.weight, norm.bias, False, 0.0, norm.eps)


class Shared(torch.autograd.Function):
    """The value and gradient of a batch norm whose statistics all processes share.

    A value that is known, as that of a mean in a rate pass, is taken as it is.

    With x^ = (x - mu) inv, sums over all n values of all processes and dy the gradient:
    dx = gamma inv (dy - sum dy / n - x^ sum (dy x^) / n). Those of gamma and beta are this
    process's own, as every parameter's are.
    """

    @staticmethod
    def forward(  # type: ignore[override]
        ctx: Any, value: Tensor | None, x: Tensor, weight: Any, bias: Any, *common: Tensor
    ) -> Tensor:
        mu, inv, ctx.count = common
        ctx.save_for_backward(x, weight, mu, inv)
        if value is None:  # a tensor of its own: a ReLU behind it may work in place
            return F.batch_norm(x, mu, inv.pow(-2), weight, bias, False, 0.0, 0.0)
        return value.view_as(value)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        x, weight, mu, inv = ctx.saved_tensors
        need, grad = ctx.needs_input_grad, laid_as(grad, x)
        ones = torch.ones_like(inv) if weight is None else weight
        _, dw, db = torch.ops.aten.native_batch_norm_backward(
            grad, x, ones, None, None, mu, inv, True, 0.0, [False, True, True]
        )
        dx = None
        if need[1]:
            of_dot, of_sum = (summed(torch.cat([dw, db])) / ctx.count).split(len(dw))
            scale = ones.to(inv) * inv
            slope = -scale * inv * of_dot
            shift = -scale * of_sum - slope * mu
            view = (1, -1, *[1] * (x.ndim - 2))
            a, b, c = (each.to(x).view(view) for each in (scale, slope, shift))
            dx = torch.addcmul(torch.addcmul(c, b, x), a, grad)
        return (None, dx, dw if need[2] else None, db if need[3] else None, None, None, None)
