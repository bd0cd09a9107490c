"""Ordered dither: a fixed pattern by which neighbouring neurons start apart from each other.

Where an image is uniform, all neurons of a channel get one current, and they all fire or none
does: a small change of weights or statistics flips the whole area. With initial potentials that
differ from place to place a share of them fires that grows smoothly with the current, as grey is
printed with black dots. Patterns are lattices of generalised golden ratios (M. Roberts, "The
unreasonable effectiveness of quasirandom sequences", 2018), which leave no clusters.
"""

from __future__ import annotations

import functools
import math

import torch
from torch import Tensor

GOLDEN = (1 + math.sqrt(5)) / 2


def pattern(current: Tensor) -> Tensor:
    """A number in (-1, 1) for each neuron of a current "B C ...", "C ...", mean 0 in each channel.

    Nearly uniform over an interval of length 1. It depends on the shape alone, lies in memory as
    one image of the current does, and is 0 where channels have one neuron.
    """
    last = current.ndim > 2 and not current.is_contiguous()
    last = last and current.movedim(1, -1).is_contiguous()
    with torch.inference_mode(False):
        return _pattern(tuple(current.shape[1:]), current.device, last)


@functools.lru_cache(maxsize=256)
def _pattern(shape: tuple[int, ...], device: torch.device, last: bool) -> Tensor:
    """The pattern of "C ...", with channels innermost in memory or not."""
    channels, space = shape[0], shape[1:]
    ratio = _ratio(len(space))
    value = torch.arange(channels, dtype=torch.float64) / GOLDEN
    for axis, size in enumerate(space):
        step = torch.arange(size, dtype=torch.float64) / ratio ** (axis + 1)
        value = value.unsqueeze(-1) + step
    value = value % 1
    flat = value.reshape(channels, -1)
    even = (flat - flat.mean(1, keepdim=True)).reshape(shape).float()
    even = even.movedim(0, -1).contiguous().movedim(-1, 0) if last else even
    return even.to(device)


def _ratio(dimensions: int) -> float:
    """The root above 1 of g^(d + 1) = g + 1: the golden ratio for one dimension."""
    root = 2.0
    for _ in range(64):
        root = (1 + root) ** (1 / (dimensions + 1))
    return root
