"""The synapses of a convolution or a linear layer: how many there are, and who reads what.

Counting needs no convolution: how often an input position is read is a product of one number per
dimension, and the number of output channels that read it is the same everywhere.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
FUNCTIONS: tuple[Any, ...] = (F.conv1d, F.conv2d, F.conv3d, F.linear)
ARGUMENTS = ("input", "weight", "bias", "stride", "padding", "dilation", "groups")

Pads = tuple[tuple[int, int], ...]


@dataclass(frozen=True)
class Synapses:
    """The geometry of one layer; a linear layer has no dimensions.

    Attributes:
        kind: what it is, such as "Conv2d".
        outputs, inputs: channels, or units.
        kernel, stride, dilation: one number per dimension.
        padding: (before, after) per dimension.
        groups: how many groups of channels see only each other.
        mode: what padding holds: "zeros", or copies of the input ("circular", "reflect",
            "replicate").
        parameters: how many weights and biases there are.
    """

    kind: str
    outputs: int
    inputs: int
    kernel: tuple[int, ...] = ()
    stride: tuple[int, ...] = ()
    dilation: tuple[int, ...] = ()
    padding: Pads = ()
    groups: int = 1
    mode: str = "zeros"
    parameters: int = 0

    def fan_out(self, size: Sequence[int]) -> Tensor:
        """How many weights read an input entry at each position: float64 of shape `size`.

        Exact whole numbers: what padding lies outside, and what a stride leaves out, is not read.
        For a linear layer a scalar, its number of outputs.
        """
        reads = torch.tensor(self.outputs / self.groups, dtype=torch.float64)
        for axis, length in enumerate(size):
            reads = reads.unsqueeze(-1) * self._reads(axis, length)
        return reads

    def _reads(self, axis: int, length: int) -> Tensor:
        """How often each of `length` positions along one dimension is read: "L"."""
        place = torch.arange(length, dtype=torch.float64).reshape(1, 1, -1)
        before, after = self.padding[axis]
        if self.mode == "zeros":
            padded = F.pad(place, (before, after), value=-1.0)
        else:
            padded = F.pad(place, (before, after), mode=self.mode)
        reach = self.dilation[axis] * (self.kernel[axis] - 1)
        starts = torch.arange(0, length + before + after - reach, self.stride[axis])
        taps = self.dilation[axis] * torch.arange(self.kernel[axis])
        read = padded.flatten()[starts.unsqueeze(1) + taps].long().flatten()
        return torch.bincount(read[read >= 0], minlength=length).double()

    def dense(self, output: Sequence[int]) -> int:
        """Multiply-accumulates of one pass for output positions `output`, padding included.

        outputs (inputs / groups) prod(kernel) prod(output): what is called FLOPs in papers.
        """
        inside = self.inputs // self.groups * math.prod(self.kernel)
        return self.outputs * inside * math.prod(output)


def synapses_of(function: Callable[..., Any], args: Any, kwargs: Any) -> Synapses | None:
    """The synapses of a call, of a module or a function; None if it is no such layer."""
    if isinstance(function, CONVOLUTIONS):
        return _of_convolution(function)
    if isinstance(function, nn.Linear):
        held = sum(p.numel() for p in function.parameters())
        return Synapses("Linear", function.out_features, function.in_features, parameters=held)
    if function in FUNCTIONS:
        return _of_function(function, dict(zip(ARGUMENTS, args, strict=False)) | kwargs)
    return None


def _of_convolution(conv: nn.Conv1d | nn.Conv2d | nn.Conv3d) -> Synapses:
    dilation = tuple(conv.dilation)
    return Synapses(
        type(conv).__name__,
        conv.out_channels,
        conv.in_channels,
        tuple(conv.kernel_size),
        tuple(conv.stride),
        dilation,
        _pads(conv.padding, tuple(conv.kernel_size), dilation),
        conv.groups,
        conv.padding_mode,
        sum(p.numel() for p in conv.parameters()),
    )


def _of_function(function: Any, given: dict[str, Any]) -> Synapses:
    weight, bias = given["weight"], given.get("bias")
    held = weight.numel() + (0 if bias is None else bias.numel())
    if function is F.linear:
        return Synapses("Linear", weight.shape[0], weight.shape[1], parameters=held)
    kernel = tuple(weight.shape[2:])
    stride, dilation = (_each(given.get(key, 1), len(kernel)) for key in ("stride", "dilation"))
    groups = given.get("groups", 1)
    return Synapses(
        f"Conv{len(kernel)}d",
        weight.shape[0],
        weight.shape[1] * groups,
        kernel,
        stride,
        dilation,
        _pads(given.get("padding", 0), kernel, dilation),
        groups,
        parameters=held,
    )


def _each(value: Any, count: int) -> tuple[int, ...]:
    """One number for each dimension."""
    values = tuple(value) if isinstance(value, (tuple, list)) else (value,)
    return values * count if len(values) == 1 else values


def _pads(padding: Any, kernel: tuple[int, ...], dilation: tuple[int, ...]) -> Pads:
    """Padding before and after along each dimension; "same" puts the odd one after."""
    if padding == "same":
        reach = [d * (k - 1) for d, k in zip(dilation, kernel, strict=True)]
        return tuple((r // 2, r - r // 2) for r in reach)
    if padding == "valid":
        return tuple((0, 0) for _ in kernel)
    return tuple((p, p) for p in _each(padding, len(kernel)))
