"""Batch norm whose statistics are settled."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any, final

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm


@final
class FrozenNorm(nn.Module):
    """Batch norm with fixed statistics and learnable scale and shift, in training too.

    A converted student's thresholds and biases are calibrated for its teacher's statistics. Those
    of its own spiking currents differ: they hold the variance over time as well, so that training
    with them starts from another network than the one that was calibrated.
    """

    running_mean: Tensor
    running_var: Tensor

    def __init__(self, norm: _BatchNorm) -> None:
        super().__init__()
        assert norm.running_mean is not None and norm.running_var is not None
        self.eps = norm.eps
        self.register_buffer("running_mean", norm.running_mean.clone())
        self.register_buffer("running_var", norm.running_var.clone())
        ones = torch.ones_like(norm.running_mean)
        self.weight = nn.Parameter(ones if norm.weight is None else norm.weight.detach().clone())
        self.bias = nn.Parameter(0 * ones if norm.bias is None else norm.bias.detach().clone())

    def forward(self, x: Tensor) -> Tensor:
        return F.batch_norm(
            x, self.running_mean, self.running_var, self.weight, self.bias, False, 0.0, self.eps
        )


def give_affine(norm: _BatchNorm) -> None:
    """Gives a norm that has none a weight of 1 and a bias of 0, to be trained as others are."""
    if norm.running_mean is not None and norm.weight is None:
        norm.weight = nn.Parameter(torch.ones_like(norm.running_mean))
        norm.bias = nn.Parameter(torch.zeros_like(norm.running_mean))
        norm.affine = True


@torch.no_grad()
def settle(norm: _BatchNorm, x: Tensor) -> None:
    """Gives a norm the statistics of its input x "N C ...", and keeps the function it computes.

    With (mu, var) the old statistics and (m, v) those of x: weight grows by sqrt((v + eps) /
    (var + eps)), bias by weight (m - mu) / sqrt(var + eps). Training then starts from the network
    that was calibrated, although it normalises by the batch. A norm without weight and bias gets
    them: without them it cannot compute the same.
    """
    if norm.running_mean is None or norm.running_var is None:
        return
    give_affine(norm)
    mean = x.transpose(0, 1).flatten(1).mean(1)
    variance = x.transpose(0, 1).flatten(1).var(1, unbiased=False)
    old = (norm.running_var + norm.eps).sqrt()
    norm.bias.add_(norm.weight * (mean - norm.running_mean) / old)
    norm.weight.mul_((variance + norm.eps).sqrt() / old)
    norm.running_mean.copy_(mean)
    norm.running_var.copy_(variance)


def settle_norms(net: nn.Module, run: Callable[[], Any]) -> None:
    """Batch norms take the statistics of what they see in a run of `net`, which computes the same.

    Args:
        net: a network in eval mode.
        run: runs it as it is run in training, on such images as it is then shown.
    """
    handles = [
        norm.register_forward_pre_hook(lambda norm, seen: settle(norm, seen[0]))
        for norm in tracking(net)
    ]
    try:
        with torch.no_grad():
            run()
    finally:
        for handle in handles:
            handle.remove()


def freeze_norms(net: nn.Module) -> nn.Module:
    """The network itself, with every batch norm that tracks statistics made a `FrozenNorm`."""
    for path, module in list(net.named_modules()):
        if isinstance(module, _BatchNorm) and module.running_mean is not None:
            net.set_submodule(path, FrozenNorm(module))
    return net


def tracking(net: nn.Module) -> list[_BatchNorm]:
    """The batch norms of a network that keep running statistics."""
    norms = [module for module in net.modules() if isinstance(module, _BatchNorm)]
    return [norm for norm in norms if norm.running_mean is not None]


@torch.no_grad()
def estimate_norms(
    net: nn.Module, batches: Iterable[Tensor], run: Callable[[nn.Module, Tensor], Any]
) -> None:
    """Batch norms take the plain average of the statistics of some batches, in one pass.

    A running average forgets all but the last ten batches. Spikes answer a small shift of their
    currents with another spike, so that estimate is too poor for a spiking network.

    One large batch is better than several small ones: each norm then stands behind others that
    have the very statistics they will have in use. Behind norms that go by small batches, a
    current close to its threshold is above it in some and below in others; the average of both
    suits neither. Images with a uniform background show it: all its neurons share that current.

    Args:
        net: any network; only running statistics change, every mode is put back.
        batches: normalised images "B C H W"; best a single batch.
        run: runs the network on a batch as it is run in training.
    """
    norms = tracking(net)
    if norms:
        with _averaging(net, norms):
            for images in batches:
                run(net, images)


@contextmanager
def _averaging(net: nn.Module, norms: list[_BatchNorm]) -> Iterator[None]:
    """Everything in eval mode but the norms, which average all they see from here on."""
    modes = {module: module.training for module in net.modules()}
    momenta = [norm.momentum for norm in norms]
    net.eval()
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None
        norm.train()
    try:
        yield
    finally:
        for norm, momentum in zip(norms, momenta, strict=True):
            norm.momentum = momentum
        for module, mode in modes.items():
            module.training = mode
