"""Where a captured graph may be cut in two, the stages between, and the parts."""

from __future__ import annotations

import math
import operator
from collections.abc import Iterator

import torch
from torch import Tensor, fx, nn

from spikelet.errors import UserError
from spikelet.graph import ACTIVATIONS, resolve, shapes
from spikelet.neuron import Neuron


def _alive(net: fx.GraphModule) -> Iterator[tuple[fx.Node, list[fx.Node]]]:
    """Each node with the earlier values (attributes aside) that later nodes still need."""
    order = {node: i for i, node in enumerate(net.graph.nodes)}
    last = {node: max((order[u] for u in node.users), default=-1) for node in order}
    for node, i in order.items():
        before = [n for n in order if order[n] < i and last[n] > i and n.op != "get_attr"]
        yield node, before


def cuts(net: fx.GraphModule) -> list[fx.Node]:
    """The nodes through which everything after them flows."""
    return [
        node
        for node, others in _alive(net)
        if not others and node.users and node.op.startswith("call")
    ]


def after(net: fx.GraphModule, path: str) -> fx.GraphModule:
    """What follows a cut, as a graph that shares this one's modules: features "B ..." to logits.

    Raises:
        UserError: if an edge goes around the cut (a cut inside a residual block).
    """
    cut = resolve(net, path)
    around = next(others for node, others in _alive(net) if node is cut)
    if around:
        raise UserError(
            f"cut {path!r}",
            f"the edge {around[0].name} -> {_late_user(around[0], cut).name} goes around it",
            "cut at the output of a whole block",
        )
    graph = fx.Graph()
    value: dict[fx.Node, fx.Node] = {cut: graph.placeholder("features")}
    reached = False
    for node in net.graph.nodes:
        if reached or node.op == "get_attr":
            value[node] = graph.node_copy(node, lambda n: value[n])
        reached = reached or node is cut
    return _part(net, graph)


def until(net: fx.GraphModule, path: str) -> fx.GraphModule:
    """What comes before a cut and the cut itself, as a graph that shares this one's modules."""
    cut = resolve(net, path)
    graph = fx.Graph()
    value: dict[fx.Node, fx.Node] = {}
    for node in net.graph.nodes:
        value[node] = graph.node_copy(node, lambda n: value[n])
        if node is cut:
            break
    graph.output(value[cut])
    return _part(net, graph)


def _part(net: fx.GraphModule, graph: fx.Graph) -> fx.GraphModule:
    part = fx.GraphModule(net, graph)
    part.graph.eliminate_dead_code()
    part.recompile()
    part.meta.update(net.meta)
    return part


def _late_user(node: fx.Node, cut: fx.Node) -> fx.Node:
    order = {n: i for i, n in enumerate(node.graph.nodes)}
    return next(user for user in node.users if order[user] > order[cut])


def stages(net: fx.GraphModule, example: Tensor) -> dict[int, str]:
    """The last cut of each spatial resolution: number of positions -> node name, in order.

    Only activations and sums count. A network without feature maps has one stage per activation,
    numbered -1, -2, ...: no number of positions.
    """
    size = shapes(net, example)
    modules = dict(net.named_modules())
    found: dict[int, str] = {}
    flat: list[str] = []
    for node in cuts(net):
        if not _is_feature(node, modules):
            continue
        shape = size.get(node.name, ())
        if len(shape) > 2:
            found[math.prod(shape[2:])] = node.name
        else:
            flat.append(node.name)
    return found or {-number: name for number, name in enumerate(flat, 1)}


def _is_feature(node: fx.Node, modules: dict[str, nn.Module]) -> bool:
    if node.op == "call_module":
        return isinstance(modules[str(node.target)], (Neuron, *ACTIVATIONS))
    return node.target in (operator.add, torch.add, "add")
