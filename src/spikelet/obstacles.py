"""What of a classifier can become spiking, and what stands in the way."""

from __future__ import annotations

import operator
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import fx, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.dropout import _DropoutNd

from spikelet.errors import UserError
from spikelet.graph import IN_PLACE, capture, is_activation, is_softmax
from spikelet.neuron import Neuron
from spikelet.norm import FrozenNorm

NAMED = 8  # places that are listed
SOFTMAX = "leave it out, unless it is attention: a student answers with logits"
LAYERS = (
    FrozenNorm,
    *(nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.Linear, _BatchNorm, _DropoutNd, nn.Identity, nn.Flatten),
    *(nn.AvgPool1d, nn.AvgPool2d, nn.AdaptiveAvgPool1d, nn.AdaptiveAvgPool2d, nn.Unflatten),
    *(nn.MaxPool1d, nn.MaxPool2d, nn.AdaptiveMaxPool2d, nn.Upsample, nn.PixelShuffle),
    *(nn.ConstantPad1d, nn.ConstantPad2d, nn.ReflectionPad1d, nn.ReflectionPad2d),
    *(nn.ReplicationPad1d, nn.ReplicationPad2d, nn.PixelUnshuffle, nn.ChannelShuffle),
)
FUNCTIONS = {
    *(operator.add, operator.sub, operator.getitem, operator.mul, operator.truediv, getattr),
    *(operator.floordiv, torch.add, torch.sub, torch.mul, torch.cat, torch.flatten, torch.mean),
    *(torch.reshape, torch.transpose, torch.permute, torch.squeeze, torch.unsqueeze, F.pad),
    *(F.avg_pool2d, F.adaptive_avg_pool2d, F.max_pool2d, F.adaptive_max_pool2d, F.interpolate),
    *(F.conv2d, F.linear, torch.max_pool2d, F.max_pool1d, F.pixel_shuffle, F.pixel_unshuffle),
    *(F.conv1d, F.avg_pool1d, F.adaptive_avg_pool1d, torch.stack, torch.chunk, torch.split),
    *(torch.sum, torch.unflatten, torch.swapaxes, torch.movedim),
}
METHODS = {
    *("view", "reshape", "flatten", "size", "mean", "permute", "transpose", "contiguous", "dim"),
    *("squeeze", "unsqueeze", "add", "sub", "mul", "float", "to", "sum", "chunk", "split"),
    *("unflatten", "swapaxes", "movedim"),
}
ARITHMETIC = {
    *(operator.getitem, operator.add, operator.sub),
    *(operator.mul, operator.floordiv, operator.truediv),
}


@dataclass(frozen=True)
class Obstacle:
    """A place that cannot become spiking: its path, what stands there and what to do."""

    path: str
    kind: str
    fix: str


def obstacles(net: fx.GraphModule) -> list[Obstacle]:
    """Everything in a graph in normal form that conversion does not know how to treat."""
    modules = dict(net.named_modules())
    found = []
    for node in net.graph.nodes:
        obstacle = _obstacle(node, modules)
        if obstacle is not None:
            found.append(obstacle)
    if not found and not any(is_activation(n, modules) for n in net.graph.nodes):
        found.append(Obstacle("(model)", "no ReLU", "convert a network with ReLU activations"))
    return found


def reason(model: nn.Module) -> str | None:
    """Why `convert` can make no student of a model; None where it can."""
    try:
        found = obstacles(capture(model))
    except UserError as error:
        return error.message
    return refusal(found).message if found else None


def _obstacle(node: fx.Node, modules: dict[str, nn.Module]) -> Obstacle | None:
    place = node.meta["paths"][-1] if node.meta.get("paths") else node.name
    if node.op == "call_module":
        module = modules[str(node.target)]
        refused = isinstance(module, (nn.AlphaDropout, nn.FeatureAlphaDropout))
        if (isinstance(module, (*LAYERS, Neuron)) and not refused) or is_activation(node, modules):
            return None
        kind = type(module).__name__
        if is_softmax(node, modules):
            return Obstacle(place, kind, SOFTMAX)
        if kind.startswith(("LeakyReLU", "GELU", "SiLU", "Hardswish", "PReLU", "ELU", "Sigmoid")):
            return Obstacle(place, kind, "retrain the ANN with nn.ReLU there")
        return Obstacle(place, kind, "replace it by convolution, batch norm, pooling or ReLU")
    if node.op == "call_function" and node.target not in FUNCTIONS:
        name = getattr(node.target, "__name__", str(node.target))
        fix = "replace it by a ReLU or a linear operation"
        fix = SOFTMAX if is_softmax(node, modules) else fix
        return Obstacle(f"{place} ({node.name})", name, fix)
    if node.op == "call_method" and node.target not in METHODS | set(IN_PLACE.values()):
        return Obstacle(f"{place} ({node.name})", f".{node.target}()", "use a linear operation")
    if node.target in (operator.mul, operator.truediv, torch.mul, "mul") and _two_signals(node):
        return Obstacle(
            f"{place} ({node.name})", "product of two signals", "remove the gate or attention"
        )
    return None


def _two_signals(node: fx.Node) -> bool:
    factors = [arg for arg in node.args if isinstance(arg, fx.Node)]
    return sum(arg.op != "get_attr" and not _number(arg) for arg in factors) > 1


def _number(node: fx.Node) -> bool:
    """Whether a node is a size, or what is computed of sizes: no signal."""
    if node.op == "call_method":
        return node.target in ("size", "dim")
    if node.target is getattr:
        return node.args[1] in ("shape", "ndim")
    sources = [arg for arg in node.args if isinstance(arg, fx.Node)]
    return node.target in ARITHMETIC and bool(sources) and all(map(_number, sources))


def refusal(found: list[Obstacle]) -> UserError:
    """The error about a model that cannot become spiking, with the first few places."""
    count = "1 place" if len(found) == 1 else f"{len(found)} places"
    places = "; ".join(f"{o.path}: {o.kind} ({o.fix})" for o in found[:NAMED])
    more = f"; and {len(found) - NAMED} more" if len(found) > NAMED else ""
    what = f"{count} cannot become spiking: {places}{more}"
    return UserError("model", what, "or give the student another architecture (--model)")
