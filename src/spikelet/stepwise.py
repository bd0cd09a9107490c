"""Rate-based backpropagation with time outside: the whole network runs step by step.

A pass over all steps, of which nothing is recorded, carries each neuron's state from one to the
next and leaves each neuron's mean and its slope (`carry`). A second, differentiable pass over means
attaches the gradients, the same as those of the order by layers. No tensor has T times the size of
a batch, so neither what is kept nor the peak depends on T.

Most values of the second pass are nobody's business: a neuron's mean is known, and the gradient of
a linear map does not depend on its value. They are blank, of zero strides, and take neither time
nor memory; those that are read (by a convolution, a tap) come from a forward pass on means.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.dropout import _DropoutNd

from spikelet.anchor import Anchor, Convolve, StraightThrough
from spikelet.carry import Carry, Means, carry
from spikelet.convert import Offset
from spikelet.dual import blank
from spikelet.errors import UserError
from spikelet.folding import Waiting, folded
from spikelet.graph import Rule, walk
from spikelet.neuron import Neuron
from spikelet.norm import FrozenNorm
from spikelet.rate import batch_statistics, is_linear, refuse_biased, refuse_late, refuse_recurrent
from spikelet.trace import Tap

Wanted = Mapping[fx.Node, set[str]]


@dataclass(frozen=True)
class Plan:
    """What each call of a graph is, where time is outside.

    Attributes:
        still: those that give the same at every step: nothing moves before the first neuron.
        handed: those of them that other calls read.
        read: those whose mean has to have its value.
        folded: a fixed norm -> the convolution before it, where nobody reads what is between.
    """

    still: frozenset[fx.Node]
    handed: frozenset[fx.Node]
    read: frozenset[fx.Node]
    folded: Mapping[fx.Node, fx.Node]


@dataclass(frozen=True)
class Notes:
    """What the pass over steps leaves for the pass over means, by call."""

    handed: dict[fx.Node, Any] = field(default_factory=dict)
    neurons: dict[fx.Node, Carry] = field(default_factory=dict)
    masks: dict[fx.Node, Tensor] = field(default_factory=dict)
    sums: dict[fx.Node, Tensor] = field(default_factory=dict)
    blanks: dict[fx.Node, Tensor] = field(default_factory=dict)


def step_by_step(
    net: fx.GraphModule, x: Tensor, wanted: Wanted, windows: int = 1, fuse: bool = False
) -> tuple[Tensor, Tensor, dict[fx.Node, Tap]]:
    """Logits "T B K" of x "T B ...", their differentiable mean "B K", and the means tapped.

    Raises:
        UserError: for several windows, fields of single steps, recurrent neurons, and norms that
            use the statistics of the batch.
    """
    _require_means(wanted, windows)
    require_fixed_norms(net)
    steps, recorded = len(x), torch.is_grad_enabled()
    still = x.stride(0) == 0 or steps == 1
    mean = x[0] if still else x.mean(0)
    plan, notes, each = planned(net, still, wanted), Notes(), []
    with torch.no_grad():
        for t in range(steps):
            rule = _over_step(plan, notes, t, steps, fuse, recorded)
            each.append(walk(net, mean if still else x[t], rule))
        logits = torch.stack(each)
    if not recorded and not wanted:
        return logits, logits.mean(0), {}
    found: dict[fx.Node, Tap] = {}
    means = walk(net, mean, _over_means(plan, notes, steps, wanted, found))
    return logits, means, found


def require_fixed_norms(net: nn.Module, training: bool = False) -> None:
    """Refuses norms that use the statistics of the batch, now or as soon as they are trained."""
    for path, module in net.named_modules():
        if isinstance(module, _BatchNorm) and (training or batch_statistics(module)):
            raise UserError(
                f"norm {path!r}",
                "it uses the statistics of a batch over all steps, which order = 'time' does not "
                "have before the last one",
                "freeze norms (spikelet.norm.freeze_norms, in a recipe norm = 'frozen') or use "
                "order = 'layers'",
            )


def _require_means(wanted: Wanted, windows: int) -> None:
    if windows > 1:
        raise UserError(
            f"windows = {windows}", "order = 'time' has one window", "use order = 'layers'"
        )
    for node, fields in wanted.items():
        single = sorted(fields - {"mean"})
        if single:
            raise UserError(
                f"tap {node.name!r}",
                f"order = 'time' keeps no {', '.join(single)} of single steps",
                "tap its mean or use order = 'layers'",
            )


def planned(net: fx.GraphModule, still_input: bool, wanted: Wanted) -> Plan:
    """What each call of a graph is; `still_input` if that is the same at every step."""
    modules = dict(net.named_modules())
    still: set[fx.Node] = set()
    for node in net.graph.nodes:
        moves = node.op == "output" or isinstance(_function(node, modules), Neuron)
        moves = moves or (node.op == "placeholder" and not still_input)
        if not moves and still.issuperset(node.all_input_nodes):
            still.add(node)
    read, pairs = set(wanted), {}
    for node in reversed(net.graph.nodes):
        if node in still or node.op == "output" or isinstance(_function(node, modules), Neuron):
            continue
        conv = _foldable(node, modules, still)
        if node not in read and conv is not None and conv not in read:
            pairs[node] = conv
        elif node in read or not _is_blind(node, _function(node, modules)):
            read.update(node.all_input_nodes)
    handed = {n for n in still if n in wanted or not still.issuperset(n.users)}
    return Plan(frozenset(still), frozenset(handed), frozenset(read), pairs)


def _function(node: fx.Node, modules: Mapping[str, nn.Module]) -> Any:
    return modules[str(node.target)] if node.op == "call_module" else node.target


def _foldable(
    node: fx.Node, modules: Mapping[str, nn.Module], still: set[fx.Node]
) -> fx.Node | None:
    """The convolution before a norm, if it has no other user."""
    before = node.args[0] if node.args else None
    if not isinstance(_function(node, modules), (FrozenNorm, _BatchNorm)):
        return None
    if not isinstance(before, fx.Node) or before in still or len(before.users) > 1:
        return None
    return before if _is_convolution(_function(before, modules)) else None


def _is_convolution(function: Any) -> bool:
    """Whether it is one whose backward pass `Convolve` knows."""
    if not isinstance(function, (nn.Conv1d, nn.Conv2d)):
        return False
    return not isinstance(function.padding, str) and function.padding_mode == "zeros"


def _is_blind(node: fx.Node, function: Any) -> bool:
    """Whether the gradient of a call does not depend on the value of its input."""
    if isinstance(function, (_DropoutNd, Offset)):
        return True
    weighs = isinstance(function, (FrozenNorm, _BatchNorm, nn.Linear))
    return is_linear(node, function) and not weighs


def _over_step(plan: Plan, notes: Notes, t: int, steps: int, fuse: bool, recorded: bool) -> Rule:
    """What a call does at step t; `recorded` if what is still is part of a backward pass."""

    def rule(node: fx.Node, function: Any, args: Any, kwargs: Any) -> Any:
        if node in plan.still:
            if t:
                return notes.handed.get(node)
            with torch.set_grad_enabled(recorded):
                value = _once(function, args, kwargs)
            if node in plan.handed:
                notes.handed[node] = value
            return value
        if isinstance(function, Neuron):
            if not t:
                refuse_recurrent(function)
                refuse_biased(function, "order = 'time'")
                refuse_late(function, "order = 'time'", "use order = 'layers'")
                notes.neurons[node] = carry(function, args[0], steps, fuse, recorded)
            return notes.neurons[node].step(args[0])
        if isinstance(function, _DropoutNd):
            if not t:
                notes.masks[node] = function(torch.ones_like(args[0]))
            return args[0] * notes.masks[node]
        value = function(*args, **kwargs)
        _note(plan, notes, node, function, value)
        return value

    return rule


def _once(function: Any, args: Any, kwargs: Any) -> Any:
    if isinstance(function, _DropoutNd):
        return args[0] * function(torch.ones_like(args[0]))
    return function(*args, **kwargs)


def _note(plan: Plan, notes: Notes, node: fx.Node, function: Any, value: Any) -> None:
    """Adds to the sum of what is not linear, and notes what a blank value looks like."""
    if not isinstance(value, Tensor) or not value.is_floating_point():
        return
    known = is_linear(node, function) or isinstance(function, (nn.Conv1d, nn.Conv2d))
    if node in plan.read and not known:
        precise = value.to(torch.promote_types(value.dtype, torch.float32), copy=True)
        notes.sums[node] = notes.sums[node].add_(precise) if node in notes.sums else precise
    unread = node not in plan.read and (_is_convolution(function) or node in plan.folded)
    if unread and node not in notes.blanks:
        notes.blanks[node] = blank(value)


def _over_means(
    plan: Plan, notes: Notes, steps: int, wanted: Wanted, found: dict[fx.Node, Tap]
) -> Rule:
    """What a call does to means; taps are found on the way."""
    inside = frozenset(plan.folded.values())

    def rule(node: fx.Node, function: Any, args: Any, kwargs: Any) -> Any:
        value = moved(node, function, args, kwargs)
        if node in wanted:
            found[node] = Tap(value)
        return value

    def moved(node: fx.Node, function: Any, args: Any, kwargs: Any) -> Any:
        if node in plan.still:
            return notes.handed.get(node)
        if isinstance(function, Neuron):
            return _anchored(function, args[0], notes.neurons.pop(node).means())
        if isinstance(function, _DropoutNd):
            return args[0] * notes.masks[node]
        if node in inside:
            return Waiting(function, args[0])
        if node in plan.folded:
            return folded(notes.blanks[node], args[0], function)
        if node in notes.blanks:
            weight, bias = function.weight, function.bias
            return Convolve.apply(notes.blanks[node], args[0], weight, bias, function)
        value = function(*args, **kwargs)
        if node not in notes.sums:
            return value
        return StraightThrough.apply((notes.sums.pop(node) / steps).to(value.dtype), value)

    return rule


def _anchored(neuron: Neuron, x: Tensor, means: Means) -> Tensor:
    """A neuron's known mean with its slopes to the mean current and to trained parameters."""
    inputs = [x, *(neuron.get_parameter(name) for name in means.parameters)]
    return Anchor.apply(means.output, *inputs, means.slope, *means.parameters.values())
