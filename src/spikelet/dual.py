"""What travels in a rate pass: values over time beside their window means.

With one window this is rate-based backpropagation, with as many windows as steps it is
backpropagation through time.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from spikelet.layout import as_rows, from_rows
from spikelet.neuron import per_channel

Affine = tuple[Tensor, Tensor]
Summand = tuple[Tensor, Affine | None]


@dataclass(frozen=True)
class Dual:
    """A value over time and its mean.

    Attributes:
        spikes: "(T B) ..." in folded form, or "B ..." while it is the same at every step; not
            recorded for the backward pass.
        mean: "(W B) ...", differentiable; its value is the mean of `spikes` over each window. It is
            blank where only its gradient is read, and None where no gradient is recorded.
        steps: T, or 1 while the value is the same at every step.
        affine: (scale, shift), each "C", if the value is scale * spikes + shift: a batch norm that
            waits for the neuron behind it, to save a pass over all steps.
        windows: W, or 1 while the value is the same at every step.
        other: a second summand "(T B) ..." that waits in the same way, with its own affine map.
    """

    spikes: Any
    mean: Any
    steps: int
    affine: Affine | None = None
    windows: int = 1
    other: Summand | None = None

    def settled(self) -> Dual:
        """The same dual with nothing waiting."""
        if self.affine is None and self.other is None:
            return self
        with torch.no_grad():
            value = mapped(self.spikes, self.affine)
            value = value if self.other is None else value + mapped(*self.other)
            return Dual(value, self.mean, self.steps, None, self.windows)


def mapped(x: Tensor, affine: Affine | None) -> Tensor:
    """scale * x + shift per channel, in the precision of x "N C ..."."""
    if affine is None:
        return x
    scale, shift = (per_channel(value, x).to(x) for value in affine)
    return torch.addcmul(shift, x, scale)


def blank(like: Tensor) -> Tensor:
    """Zeros of that shape that take no memory, for a value that nobody reads."""
    return like.new_zeros(()).expand(like.shape)


def fold(x: Tensor) -> Tensor:
    """ "T B ..." to "(T B) ..."."""
    return x.reshape(-1, *x.shape[2:])


def unfold(x: Tensor, steps: int) -> Tensor:
    """ "(T B) ..." to "T B ..."."""
    return x.reshape(steps, -1, *x.shape[1:])


def over_time(values: Tensor, steps: int, windows: int = 1) -> Tensor:
    """Window means "(W B) ..." of values "(T B) ..."; those that are carried once are their own."""
    if steps == windows:
        return values
    return fold(window_means(unfold(values, steps), windows))


def window_means(values: Tensor, windows: int) -> Tensor:
    """ "T B ..." to "W B ...": the means over windows of equal length."""
    if values.ndim < 3:
        return values.unflatten(0, (windows, -1)).mean(1)
    # as they lie in memory: across strides torch takes several times longer
    rows = as_rows(values, values)
    return from_rows(rows.unflatten(0, (windows, -1)).mean(1), values)


def at_steps(dual: Dual, steps: int) -> Any:
    """A dual's value "(T B) ...", repeated if it is the same at every step."""
    dual = dual.settled()
    if dual.steps == steps or not isinstance(dual.spikes, Tensor):
        return dual.spikes
    return fold(dual.spikes.unsqueeze(0).expand(steps, *dual.spikes.shape))


def means_at(dual: Dual, windows: int) -> Any:
    """A dual's means "(W B) ...", repeated if there is one for all windows."""
    if dual.windows == windows or not isinstance(dual.mean, Tensor):
        return dual.mean
    return fold(dual.mean.unsqueeze(0).expand(windows, *dual.mean.shape))


def duals_in(tree: Any) -> list[Dual]:
    """Every dual in nested arguments."""
    if isinstance(tree, Dual):
        return [tree]
    if isinstance(tree, (tuple, list)):
        return [d for item in tree for d in duals_in(item)]
    if isinstance(tree, dict):
        return duals_in(list(tree.values()))
    return []


def changed(tree: Any, change: Callable[[Dual], Any]) -> Any:
    """Nested arguments with every dual changed."""
    if isinstance(tree, Dual):
        return change(tree)
    if isinstance(tree, (tuple, list)):
        return type(tree)(changed(item, change) for item in tree)
    if isinstance(tree, dict):
        return {key: changed(item, change) for key, item in tree.items()}
    return tree
