"""How a tensor over time lies in memory: rows that an elementwise recursion walks in order."""

from __future__ import annotations

import math

import torch
from torch import Tensor, fx, nn


def as_rows(x: Tensor, like: Tensor) -> Tensor:
    """ "T B C ..." as "T R C N", in the order of memory of `like`: channels last have N = 1."""
    steps, batch, channels = x.shape[:3]
    inner = math.prod(x.shape[3:])
    if is_channels_last(like):
        return x.movedim(2, -1).reshape(steps, batch * inner, channels, 1).contiguous()
    return x.reshape(steps, batch, channels, inner).contiguous()


def from_rows(x: Tensor, like: Tensor) -> Tensor:
    """ "T R C N" in the shape of `like`, "T B C ...", but for its own number of steps."""
    shape = like.shape[1:]
    if is_channels_last(like):
        return x.reshape(len(x), shape[0], *shape[2:], shape[1]).movedim(-1, 2)
    return x.reshape(len(x), *shape)


def beginning_rows(start: Tensor, like: Tensor) -> Tensor:
    """Potentials "C ..." before the first step of "T B C ..." as "C N", or "P C 1" of P places.

    The latter, where `like` has its channels last, is that of one image: see `begun`.
    """
    if is_channels_last(like):
        return start.movedim(0, -1).reshape(-1, len(start), 1).contiguous()
    return start.reshape(len(start), -1).contiguous()


def begun(start: Tensor, row: Tensor) -> Tensor:
    """The first potential of each of "R C N": of a scalar, "C 1", "C N", or "P C 1" an image."""
    if start.ndim < 3:
        return start.expand_as(row)
    return start.repeat(row.shape[0] // start.shape[0], 1, 1)


def laid_for(net: nn.Module, images: Tensor) -> Tensor:
    """Images "B C H W" as a network takes them: contiguous where its own code may need them so.

    That is one which is no graph, and none of whose convolutions has its channels innermost.
    """
    if isinstance(net, fx.GraphModule):
        return images
    weights = (weight for weight in net.parameters() if weight.ndim == 4)
    last = torch.channels_last
    if any(w.is_contiguous(memory_format=last) and not w.is_contiguous() for w in weights):
        return images
    return images.contiguous()


def is_channels_last(x: Tensor) -> bool:
    """Whether the steps of a tensor "T B C ..." have their channels innermost."""
    first = x[0]
    return not first.is_contiguous() and first.movedim(1, -1).is_contiguous()
