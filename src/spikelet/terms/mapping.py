"""Mappings from the student's features to the teacher's."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor, nn

from spikelet.neuron import per_channel
from spikelet.norm import settle
from spikelet.terms.term import Pair

Mapping = Literal["auto", "affine", "conv", "conv-norm-relu", "identity"]
RIDGE = 1e-3


class Places(nn.ModuleList):
    """One module for each pair of places (a term's own part)."""

    def __init__(self, pairs: Sequence[Pair], modules: Sequence[nn.Module]) -> None:
        super().__init__(modules)
        self.pairs = tuple(pairs)


class PerChannel(nn.Module):
    """scale_c x_c + shift_c on features "B C ...", starting at the identity."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(channels))
        self.shift = nn.Parameter(torch.zeros(channels))

    def forward(self, x: Tensor) -> Tensor:
        return x * per_channel(self.scale, x) + per_channel(self.shift, x)


class Pointwise(nn.Module):
    """A linear map over channels, at each position of "B C ..." (a 1x1 convolution).

    Args:
        weight: "D C".
        bias: "D", or None for a map without.
        rank: if set, the map is the product of two, through this many channels.
    """

    def __init__(self, weight: Tensor, bias: Tensor | None, rank: int | None = None) -> None:
        super().__init__()
        self.bias = None if bias is None else nn.Parameter(bias.clone())
        if rank is None:
            factors = [weight.clone()]
        else:
            u, s, v = torch.linalg.svd(weight, full_matrices=False)
            root = s[:rank].sqrt()
            factors = [root[:, None] * v[:rank], u[:, :rank] * root]
        self.factors = nn.ParameterList([nn.Parameter(f.contiguous()) for f in factors])

    def forward(self, x: Tensor) -> Tensor:
        y = x.flatten(2) if x.ndim > 2 else x.unsqueeze(2)
        for factor in self.factors:
            y = factor @ y
        if self.bias is not None:
            y = y + self.bias[:, None]
        return y.reshape(len(x), -1, *x.shape[2:])


def ridge(source: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
    """The ridge fit of target "B D ..." by source "B C ...": weight "D C" and bias "D".

    It minimises mean |W f + b - g|^2 + r |W|^2, r = 0.001 of the mean feature variance.
    """
    f = source.transpose(0, 1).flatten(1).double()
    g = target.transpose(0, 1).flatten(1).double()
    f_mean, g_mean = f.mean(1, keepdim=True), g.mean(1, keepdim=True)
    covariance = (f - f_mean) @ (f - f_mean).T / f.shape[1]
    cross = (g - g_mean) @ (f - f_mean).T / f.shape[1]
    strength = RIDGE * covariance.diagonal().mean().clamp_min(1e-12)
    eye = torch.eye(len(f), dtype=f.dtype, device=f.device)
    weight = torch.linalg.solve(covariance + strength * eye, cross.T).T
    bias = (g_mean - weight @ f_mean).squeeze(1)
    return weight.to(source.dtype), bias.to(source.dtype)


def normalised(source: Tensor, target: Tensor) -> nn.Sequential:
    """A 1x1 convolution without bias, then batch norm, from features "B C ..." to "B D ...".

    Both start at the ridge fit, in training and in evaluation: the norm has the statistics of the
    convolution's output and undoes them.
    """
    weight, bias = ridge(source, target)
    convolution = Pointwise(weight, None)
    norm = (nn.BatchNorm2d if source.ndim == 4 else nn.BatchNorm1d)(len(weight)).to(source)
    with torch.no_grad():
        settle(norm, convolution(source))
        norm.bias.add_(bias)
    return nn.Sequential(convolution, norm)


def fitted(kind: Mapping, source: Tensor, target: Tensor) -> nn.Module:
    """A mapping from features like source "B C ..." to ones like target "B D ...".

    "affine" is per channel at the identity; "conv" a ridge-fitted 1x1 convolution, followed by a
    ReLU where the target is never negative; "conv-norm-relu" the same fit with a batch norm and
    always a ReLU; "auto" is "affine" for equal widths, else "conv".
    """
    if kind == "auto":
        kind = "affine" if source.shape[1] == target.shape[1] else "conv"
    if kind == "identity":
        return nn.Identity()
    if kind == "affine":
        return PerChannel(source.shape[1])
    if kind == "conv-norm-relu":
        return nn.Sequential(*normalised(source, target), nn.ReLU())
    follow = nn.ReLU() if bool((target >= 0).all()) else nn.Identity()
    return nn.Sequential(Pointwise(*ridge(source, target)), follow)
