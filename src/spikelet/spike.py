"""Spikes and the surrogate derivatives that stand in for their own.

A neuron fires where u = h / theta - 1 >= 0. The derivative of that step is replaced by a
surrogate's slope, a function of u, so that its width follows the threshold.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any, final

import torch
from torch import Tensor


class Surrogate(ABC):
    """A smooth stand-in for the step function: its value `primitive` and derivative `slope`."""

    @abstractmethod
    def primitive(self, u: Tensor) -> Tensor:
        """The smooth step at u, any shape, from 0 to 1."""

    @abstractmethod
    def slope(self, u: Tensor) -> Tensor:
        """The derivative of `primitive` at u, any shape."""


@final
@dataclass(frozen=True)
class Sigmoid(Surrogate):
    """sigma(alpha u), slope alpha sigma (1 - sigma); alpha = 4 in rate-based backpropagation."""

    alpha: float = 4.0

    def primitive(self, u: Tensor) -> Tensor:
        return torch.sigmoid(self.alpha * u)

    def slope(self, u: Tensor) -> Tensor:
        value = torch.sigmoid(self.alpha * u)
        return self.alpha * value * (1 - value)


@final
@dataclass(frozen=True)
class Arctangent(Surrogate):
    """atan(pi alpha u / 2) / pi + 1/2, slope (alpha / 2) / (1 + (pi alpha u / 2)^2)."""

    alpha: float = 2.0

    def primitive(self, u: Tensor) -> Tensor:
        return torch.atan(math.pi / 2 * self.alpha * u) / math.pi + 0.5

    def slope(self, u: Tensor) -> Tensor:
        return self.alpha / 2 / (1 + (math.pi / 2 * self.alpha * u).square())


@final
@dataclass(frozen=True)
class Triangle(Surrogate):
    """Slope max(0, 1 - |u| / width) / width: zero further than `width` from the threshold."""

    width: float = 1.0

    def primitive(self, u: Tensor) -> Tensor:
        x = (u / self.width).clamp(-1, 1)
        return 0.5 + x - x * x.abs() / 2

    def slope(self, u: Tensor) -> Tensor:
        return (1 - u.abs() / self.width).clamp_min(0) / self.width


@final
@dataclass(frozen=True)
class Rectangle(Surrogate):
    """Slope 1 / width within width / 2 of the threshold, zero elsewhere."""

    width: float = 1.0

    def primitive(self, u: Tensor) -> Tensor:
        return (u / self.width + 0.5).clamp(0, 1)

    def slope(self, u: Tensor) -> Tensor:
        return (u.abs() < self.width / 2).to(u.dtype) / self.width


class _Fire(torch.autograd.Function):
    """The step function, with the surrogate's slope in forward and in reverse mode."""

    @staticmethod
    def forward(u: Tensor, surrogate: Surrogate) -> Tensor:  # type: ignore[override]
        return (u >= 0).to(u.dtype)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, Surrogate], output: Tensor) -> None:
        u, ctx.surrogate = inputs
        ctx.save_for_backward(u)
        ctx.save_for_forward(u)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:  # type: ignore[override]
        (u,) = ctx.saved_tensors
        return grad * ctx.surrogate.slope(u), None

    @staticmethod
    def jvp(ctx: Any, tangent: Tensor, _: None) -> Tensor:  # type: ignore[override]
        (u,) = ctx.saved_tensors
        return tangent * ctx.surrogate.slope(u)


def fire(u: Tensor, surrogate: Surrogate) -> Tensor:
    """1 where u >= 0, else 0, any shape; differentiates as `surrogate`."""
    return _Fire.apply(u, surrogate)
