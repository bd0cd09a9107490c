"""What the processes of one training share: sums, rows and numbers, with exact gradients.

The state is torch.distributed's default group; without one, or with one process, everything here
is the identity. Gradients assume that every process goes backward from its share of one objective,
the sum over processes.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn


class Alone(RuntimeError):
    """Another process of the training has ended: nothing can be shared any more."""


def processes() -> int:
    """How many processes train together."""
    return dist.get_world_size() if _grouped() else 1


def rank() -> int:
    """The number of this process, counted from 0; process 0 is the one that writes."""
    return dist.get_rank() if _grouped() else 0


def _grouped() -> bool:
    return dist.is_available() and dist.is_initialized()


def summed(x: Tensor) -> Tensor:
    """The sum of x over processes; its gradient is the sum of the gradients."""
    return _Summed.apply(x) if processes() > 1 else x


def gathered(x: Tensor, dim: int = 0) -> Tensor:
    """x of all processes, one behind the other along `dim`, where their lengths may differ.

    Gradients come back to the rows' own process, summed over all.
    """
    if processes() == 1:
        return x
    return _Gathered.apply(x.movedim(dim, 0)).movedim(0, dim)


def from_each(x: Tensor) -> Tensor:
    """x of every process "P ...", of one shape in all of them, no gradient."""
    if processes() == 1:
        return x.detach().unsqueeze(0)
    found = [torch.empty_like(x) for _ in range(processes())]
    with _together():
        dist.all_gather(found, x.detach())
    return torch.stack(found)


def averaged(x: Tensor, count: int) -> Tensor:
    """The mean of x over processes, each with the weight of its `count` images, no gradient."""
    if processes() == 1:
        return x
    both = torch.stack([x.detach() * count, torch.full_like(x, count)])
    _reduce(both)
    return both[0] / both[1]


def total(*numbers: float) -> tuple[float, ...]:
    """The sum of each number over processes."""
    if processes() == 1:
        return numbers
    sums = torch.tensor(numbers, dtype=torch.float64, device=_device())
    _reduce(sums)
    return tuple(sums.tolist())


def smallest(number: int) -> int:
    """The smallest value of a number over processes."""
    if processes() == 1:
        return number
    values = torch.tensor(number, device=_device())
    _reduce(values, dist.ReduceOp.MIN)
    return int(values)


def first(value: Any) -> Any:
    """The value, which JSON could hold, that process 0 has."""
    if processes() == 1:
        return value
    box = [value]
    with _together():
        dist.broadcast_object_list(box, src=0, device=_device())
    return box[0]


def alike(module: nn.Module) -> None:
    """Gives every process the parameters and buffers of process 0."""
    if processes() > 1:
        with torch.no_grad(), _together():
            for tensor in [*module.parameters(), *module.buffers()]:
                value = tensor.contiguous()
                dist.broadcast(value, src=0)
                tensor.copy_(value)


def meet() -> None:
    """Waits until every process is here."""
    total(0.0)


@torch.no_grad()
def share_gradients(
    parameters: Sequence[nn.Parameter], images: int, numbers: Sequence[Tensor]
) -> tuple[Tensor, Tensor]:
    """Sums gradients over processes and divides them by the images of all, in one message.

    Args:
        parameters: their gradients are those of a sum over this process's images.
        images: how many these are.
        numbers: scalars, means over this process's images, that are to be averaged as well.

    Returns:
        The number of images, and the numbers' means, over all processes.
    """
    kept = [p.grad for p in parameters if p.grad is not None]
    precise = kept[0].dtype if kept and kept[0].dtype.itemsize > 4 else torch.float32
    place = kept[0].device if kept else _device()
    own = torch.stack([torch.as_tensor(n, device=place).to(precise) for n in numbers])
    count = own.new_tensor([images])
    pieces = [g.reshape(-1).to(precise) for g in kept]
    flat = torch.cat([*pieces, own * images, count])
    _reduce(flat)
    flat[:-1] /= flat[-1]
    sizes = [g.numel() for g in kept]
    *means, tail = flat.split([*sizes, len(own) + 1])
    for gradient, mean in zip(kept, means, strict=True):
        gradient.copy_(mean.view_as(gradient))
    return tail[-1], tail[:-1]


class _Summed(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:  # type: ignore[override]
        return _reduce(x.detach().clone(memory_format=torch.contiguous_format))

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:  # type: ignore[override]
        return _reduce(grad.clone(memory_format=torch.contiguous_format))


class _Gathered(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:  # type: ignore[override]
        lengths = ctx.lengths = from_each(torch.tensor(len(x), device=x.device)).tolist()
        padded = x.new_zeros(max(lengths), *x.shape[1:])
        padded[: len(x)] = x.detach()
        return torch.cat([rows[:n] for rows, n in zip(from_each(padded), lengths, strict=True)])

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:  # type: ignore[override]
        grads = _reduce(grad.clone(memory_format=torch.contiguous_format))
        return grads.split(ctx.lengths)[rank()]


def _reduce(x: Tensor, how: Any = None) -> Tensor:
    """The tensor itself, reduced over processes in place, by default to the sum."""
    with _together():
        dist.all_reduce(x, dist.ReduceOp.SUM if how is None else how)
    return x


@contextmanager
def _together() -> Iterator[None]:
    """What fails inside fails because another process is not there any more."""
    try:
        yield
    except RuntimeError as error:
        raise Alone(str(error)) from error


def _device() -> torch.device:
    """Where the group's tensors lie: on the GPU of this process, or the CPU."""
    if dist.get_backend() == "nccl":
        return torch.device("cuda", torch.cuda.current_device())
    return torch.device("cpu")
