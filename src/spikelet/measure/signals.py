"""What kind of signal arrives at each layer, propagated through the graph, never guessed.

A binary spike costs an accumulate per synapse. A sum or an average of spikes has several values
and is none, even where it happens to hold only zeros and ones; nor is a current.
"""

from __future__ import annotations

import operator
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn
from torch.nn.modules.batchnorm import _BatchNorm

from spikelet.convert import Offset
from spikelet.norm import FrozenNorm
from spikelet.obstacles import FUNCTIONS, LAYERS, METHODS

Kind = Literal["spikes", "levels", "multi-valued", "activation", "image", "current"]
ORDER: tuple[Kind, ...] = ("spikes", "levels", "multi-valued", "activation", "image", "current")
"""From the cheapest to the dearest: what holds several kinds is as dear as its dearest."""
EVENTS: tuple[Kind, ...] = ORDER[:3]
"""What spikes, or set bits, make up."""

NORMS = (_BatchNorm, FrozenNorm, Offset)
ADAPTIVE = (nn.AdaptiveAvgPool1d, nn.AdaptiveAvgPool2d, F.adaptive_avg_pool2d)
REDUCTIONS: tuple[Any, ...] = (torch.mean, torch.sum, "mean", "sum")
SUMS: tuple[Any, ...] = (operator.add, operator.sub, torch.add, torch.sub, "add", "sub")
PRODUCTS: tuple[Any, ...] = (operator.mul, operator.truediv, torch.mul, "mul")


@dataclass(frozen=True)
class Signal:
    """A value "(T B) ..." on its way through the graph.

    Attributes:
        value: what it is, folded over time.
        kind: spikes (theta * s); levels (of a quantised activation); multi-valued (sums and
            averages of these); activation (of an ANN); image; current (what a layer gives).
        constant: whether it is the same at every step.
        events: how many spikes each entry of a sum or average holds, how many bits of a level
            are set; None for one where it is not zero.
    """

    value: Tensor
    kind: Kind
    constant: bool = False
    events: Tensor | None = None

    @property
    def count(self) -> Tensor:
        """How many spikes or set bits each entry holds, float "(T B) ..."."""
        return self.value.ne(0).float() if self.events is None else self.events


def signals_in(tree: Any) -> list[Signal]:
    """Every signal in nested arguments, in order."""
    if isinstance(tree, Signal):
        return [tree]
    if isinstance(tree, dict):
        tree = list(tree.values())
    if isinstance(tree, (tuple, list)):
        return [signal for item in tree for signal in signals_in(item)]
    return []


def opened(tree: Any, change: Callable[[Signal], Any]) -> Any:
    """Nested arguments with every signal changed."""
    if isinstance(tree, Signal):
        return change(tree)
    if isinstance(tree, (tuple, list)):
        return type(tree)(opened(item, change) for item in tree)
    if isinstance(tree, dict):
        return {key: opened(item, change) for key, item in tree.items()}
    return tree


def passed(node: fx.Node, function: Any, args: Any, kwargs: Any) -> Any:
    """The rule for every call but layers with synapses and neurons: its result as signals."""
    given = signals_in((args, kwargs))
    result = _called(function, args, kwargs, lambda signal: signal.value)
    kind, constant = _dearest(given), all(signal.constant for signal in given)
    if isinstance(function, NORMS) or _shifts(node, args, kwargs):
        return Signal(result, "current", constant)
    if not known(node, function, args):
        return _wrapped(result, None, "activation", constant)
    if kind not in EVENTS:
        return _wrapped(result, None, kind, constant)
    if _blends(node, function) and not (is_sum(node) and len(given) == 1):
        events = _blended(node, function, args, kwargs)
        return Signal(result, "multi-valued", constant, events)
    if _scales(node) or all(signal.events is None for signal in given):
        return _wrapped(result, given[0].events, kind, constant)
    events = _called(function, args, kwargs, lambda signal: signal.count)
    return _wrapped(result, events, kind, constant)


def known(node: fx.Node, function: Any, args: Any) -> bool:
    """Whether it is known what a call does to a signal; a product of two signals is not."""
    if node.op == "call_module":
        return isinstance(function, (*LAYERS, Offset))
    if _scales(node) and len(signals_in(args)) > 1:
        return False
    return node.target in (FUNCTIONS if node.op == "call_function" else METHODS)


def _called(function: Any, args: Any, kwargs: Any, change: Callable[[Signal], Any]) -> Any:
    return function(*opened(args, change), **opened(kwargs, change))


def _dearest(given: list[Signal]) -> Kind:
    return max((signal.kind for signal in given), key=ORDER.index)


def _wrapped(result: Any, events: Any, kind: Kind, constant: bool) -> Any:
    """Tensors of a result as signals; what a call says about a shape stays as it is."""
    if isinstance(result, torch.Size) or not isinstance(result, (Tensor, tuple, list)):
        return result
    if isinstance(result, Tensor):
        return Signal(result, kind, constant, events)
    each = [None] * len(result) if events is None else events
    return [_wrapped(r, e, kind, constant) for r, e in zip(result, each, strict=True)]


def _scales(node: fx.Node) -> bool:
    return node.op != "call_module" and node.target in PRODUCTS


def is_sum(node: fx.Node) -> bool:
    """Whether a call adds or subtracts."""
    return node.op != "call_module" and node.target in SUMS


def _shifts(node: fx.Node, args: Any, kwargs: Any) -> bool:
    """Whether a call adds a number other than 0, or a parameter, to one signal."""
    if not is_sum(node) or len(signals_in((args, kwargs))) > 1:
        return False
    numbers = [each for each in args if not isinstance(each, Signal)]
    return any(isinstance(each, Tensor) or each != 0 for each in numbers)


def is_average(node: fx.Node, function: Any) -> bool:
    """Whether a call averages or sums over positions."""
    if node.op == "call_module":
        return isinstance(function, (nn.AvgPool1d, nn.AvgPool2d, *ADAPTIVE[:2]))
    return node.target in (*REDUCTIONS, F.avg_pool2d, F.adaptive_avg_pool2d)


def _blends(node: fx.Node, function: Any) -> bool:
    """Whether a call makes several values out of spikes."""
    return is_sum(node) or is_average(node, function) or _interpolates(node, function)


def _interpolates(node: fx.Node, function: Any) -> bool:
    if isinstance(function, nn.Upsample):
        return function.mode != "nearest"
    return node.target is F.interpolate and node.kwargs.get("mode", "nearest") != "nearest"


def _blended(node: fx.Node, function: Any, args: Any, kwargs: Any) -> Tensor | None:
    """How many spikes each entry of a sum or an average holds; None where that means nothing."""
    given = signals_in((args, kwargs))
    if is_sum(node):
        return sum((signal.count for signal in given[1:]), given[0].count)
    if _interpolates(node, function):
        return None
    return _summed(node, function, given[0].count, args, kwargs).round()


def _summed(node: fx.Node, function: Any, count: Tensor, args: Any, kwargs: Any) -> Tensor:
    """The sum over each window of which a call takes the average."""
    if isinstance(function, nn.AvgPool1d):
        size, stride, padding = (
            tuple(each) if isinstance(each, (tuple, list)) else (each,)
            for each in (function.kernel_size, function.stride, function.padding)
        )
        wide = ((1, *size), (1, *stride), (0, *padding), function.ceil_mode)
        return F.avg_pool2d(count.unsqueeze(-2), *wide, True, 1).squeeze(-2)
    if isinstance(function, nn.AvgPool2d):
        given = (function.kernel_size, function.stride, function.padding, function.ceil_mode)
        return F.avg_pool2d(count, *given, True, 1)
    if node.target is F.avg_pool2d:
        names = ("kernel_size", "stride", "padding", "ceil_mode")
        chosen = {**dict(zip(names, args[1:5], strict=False)), **kwargs}
        plain = {name: chosen[name] for name in names if name in chosen}
        return F.avg_pool2d(count, **plain, divisor_override=1)
    mean = _called(function, (count, *args[1:]), kwargs, lambda signal: count)
    if node.op == "call_module" or node.target is F.adaptive_avg_pool2d:
        return mean * _windows(count.shape[2:], mean.shape[2:]).to(mean)
    return mean if node.target in (torch.sum, "sum") else mean * (count.numel() / mean.numel())


def _windows(size: torch.Size, target: torch.Size) -> Tensor:
    """How many entries each window of adaptive pooling has."""
    found = torch.ones(())
    for length, count in zip(size, target, strict=True):
        place = torch.arange(count)
        width = -((-(place + 1) * length) // count) - (place * length) // count
        found = found.unsqueeze(-1) * width
    return found
