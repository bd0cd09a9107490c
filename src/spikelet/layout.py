"""How a tensor over time lies in memory: rows that an elementwise recursion walks in order."""

from __future__ import annotations

import math

from torch import Tensor


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


def is_channels_last(x: Tensor) -> bool:
    """Whether the steps of a tensor "T B C ..." have their channels innermost."""
    first = x[0]
    return not first.is_contiguous() and first.movedim(1, -1).is_contiguous()
