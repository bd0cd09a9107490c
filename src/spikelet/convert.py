"""Conversion: an ANN's weights and graph, with spiking neurons where its ReLUs were.

Thresholds are those that minimise the squared error of the quantised activation at the number of
steps asked for, per channel; the initial potential is theta / 2; two sweeps then correct each
channel's mean rate through a bias.
"""

from __future__ import annotations

import operator
from numbers import Integral
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.dropout import _DropoutNd

from spikelet.dual import fold, unfold
from spikelet.encode import repeat, still
from spikelet.errors import UserError
from spikelet.given import (
    dtype_of,
    require_batch_axes,
    require_finite,
    require_precise,
    require_same,
)
from spikelet.graph import (
    ACTIVATIONS,
    MAX_POOL_FUNCTIONS,
    MAX_POOLS,
    capture,
    is_activation,
    is_max_pool,
    plain,
    walk,
)
from spikelet.neuron import IF, Neuron, duplicate, per_channel
from spikelet.norm import FrozenNorm
from spikelet.obstacles import obstacles, refusal
from spikelet.trace import batch_axes

CANDIDATES = 25
EXAMPLES = 64
SMALLEST_CANDIDATE = 0.15
VECTORS = 3  # axes of vectors over time, "T B C"
PIECE = 2**24  # values of currents that are scanned at once in calibration: 64 MiB in fp32
ADDITIONS = (operator.add, torch.add, "add")
KEEPING = (
    *(Neuron, *ACTIVATIONS, *MAX_POOLS, FrozenNorm, _DropoutNd, nn.Identity, nn.ZeroPad2d),
    nn.Upsample,
    *(nn.AvgPool1d, nn.AvgPool2d, nn.AdaptiveAvgPool1d, nn.AdaptiveAvgPool2d),
)
KEEPING_CALLS = {
    *(operator.add, operator.sub, operator.mul, operator.truediv, torch.add, torch.sub, torch.mul),
    *(F.avg_pool2d, F.adaptive_avg_pool2d, F.interpolate, *MAX_POOL_FUNCTIONS),
    *("add", "sub", "mul", "contiguous", "float", "to"),
}


def convert(
    model: nn.Module,
    neuron: Neuron | None = None,
    *,
    steps: int = 4,
    calibrate: Tensor | None = None,
    sweeps: int = 2,
) -> fx.GraphModule:
    """The spiking student of an ANN classifier; the model itself is left as it is.

    All weights of the student can be trained, those that were frozen in the model, too.

    Args:
        model: a classifier with ReLU or ReLU6 activations that torch.fx can trace.
        neuron: the neuron to put at each activation, copied; IF by default.
        steps: T, the number of time steps that thresholds are chosen for.
        calibrate: normalised images "B C H W" or frames "B F C H W" (some hundred) that set
            thresholds, initial potentials and biases; without them each neuron keeps its own.
        sweeps: how many times the mean rates are corrected, in network order.

    Raises:
        UserError: for what is no network with logits as its only output, if `steps` is below 1,
            or one that lists every place that cannot convert.
    """
    if not isinstance(steps, Integral) or steps < 1:
        raise UserError(f"steps = {steps!r}", "expected a whole number of at least 1", "raise it")
    if not isinstance(model, nn.Module):
        what = f"expected a network, got {type(model).__name__}"
        raise UserError("model", what, "load its weights into one: net.load_state_dict(weights)")
    if not isinstance(sweeps, Integral) or sweeps < 0:
        raise UserError(f"sweeps = {sweeps!r}", "expected a whole number of 0 or more", "try 2")
    net = capture(model)
    given = net.graph.output_node().args[0]
    if not isinstance(given, fx.Node):
        what = f"it gives a {type(given).__name__}, expected logits alone"
        raise UserError("model", what, "wrap it so that forward returns the logits")
    if calibrate is not None:
        require_precise("model", model)
        require_batch_axes("calibrate", calibrate, batch_axes(net))
        require_same("calibrate", calibrate.dtype, dtype_of(model), "model")
        require_finite("calibrate", calibrate)
        if not len(calibrate):
            raise UserError("calibrate", "it holds no images", "give some hundred")
    found = obstacles(net)
    if found:
        raise refusal(found)
    prototype = _prototype(neuron)
    net.requires_grad_(True)
    modules = dict(net.named_modules())
    for node in list(net.graph.nodes):
        if is_activation(node, modules):
            net.set_submodule(str(node.target), duplicate(prototype).to(_like(net).device))
            _offset(net, node)
    net.graph.lint()
    net.recompile()
    if calibrate is not None:
        _calibrate(capture(model), net, calibrate, steps, sweeps)
        net.meta["example"] = calibrate[:EXAMPLES]
    for module in net.modules():
        if isinstance(module, Neuron) and module.step_bias:
            module.set_step_biases(module.theta.new_zeros(steps, *module.theta.shape))
    return net


def _prototype(neuron: Any) -> Neuron:
    """The neuron to copy; IF by default."""
    if neuron is None:
        return IF()
    if not isinstance(neuron, Neuron):
        raise UserError(
            f"neuron = {neuron!r}", "expected a neuron", "pass an instance of a Neuron such as IF()"
        )
    try:
        return duplicate(neuron)
    except Exception as error:
        raise UserError(
            f"neuron = {type(neuron).__name__}",
            f"it cannot be copied ({error})",
            "write it as a plain class, not as a frozen dataclass",
        ) from error


class Offset(nn.Module):
    """Adds a bias per channel to a current "B C ...", where no layer before has one."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.bias = nn.Parameter(torch.zeros(channels))

    def forward(self, current: Tensor) -> Tensor:
        return current + per_channel(self.bias, current)


class FeatureOffset(Offset):
    """The same behind a linear layer, whose features are the last axis of "B ... C"."""

    def forward(self, current: Tensor) -> Tensor:
        return current + self.bias


def bias_of(node: fx.Node, modules: dict[str, nn.Module]) -> nn.Parameter | None:
    """The parameter whose entries shift the current at a node, one per channel.

    It is a preceding norm's or layer's bias, reached through plain sums and max pooling.
    """
    if len(node.users) > 1:
        return None
    if node.op == "call_module":
        module = modules[str(node.target)]
        if is_max_pool(node, modules):
            return bias_of(node.args[0], modules)  # type: ignore[arg-type]
        if isinstance(module, Offset):
            return module.bias
        own = isinstance(module, (nn.Conv1d, nn.Conv2d, nn.Linear, _BatchNorm))
        return getattr(module, "bias", None) if own else None
    scaled = bool(node.kwargs) or len(node.args) > 2  # x + alpha y: a shift would come scaled
    if is_max_pool(node, modules) or (node.target in ADDITIONS and not scaled):
        for arg in node.args[:2]:
            bias = bias_of(arg, modules) if isinstance(arg, fx.Node) else None
            if bias is not None:
                return bias
    return None


def _offset(net: fx.GraphModule, node: fx.Node) -> None:
    """Puts an `Offset` before a neuron whose current nothing else can shift."""
    modules = dict(net.named_modules())
    before = node.args[0]
    assert isinstance(before, fx.Node)
    if bias_of(before, modules) is not None:
        return
    channels = _channels(before, modules)
    if channels is None:
        return
    linear = isinstance(modules.get(str(before.target)), nn.Linear)
    path = f"{node.target}_offset"
    net.add_submodule(path, (FeatureOffset if linear else Offset)(channels).to(_like(net)))
    with net.graph.inserting_before(node):
        offset = net.graph.call_module(path, (before,))
    offset.meta["paths"] = []
    node.args = (offset,)


def _like(net: nn.Module) -> Tensor:
    """A tensor of the device and type of a network's parameters."""
    return next((p.detach() for p in net.parameters()), torch.empty(0))


def _channels(node: fx.Node, modules: dict[str, nn.Module]) -> int | None:
    """How many channels a node's value has, as far as layers that keep their number say so."""
    if node.op == "call_module":
        module = modules[str(node.target)]
        for name in ("out_channels", "num_features", "out_features"):
            if hasattr(module, name):
                return int(getattr(module, name))
        if not isinstance(module, KEEPING):
            return None
    elif node.target not in KEEPING_CALLS:
        return None
    for arg in node.args:
        channels = _channels(arg, modules) if isinstance(arg, fx.Node) else None
        if channels is not None:
            return channels
    return None


def _calibrate(
    teacher: fx.GraphModule, student: fx.GraphModule, images: Tensor, steps: int, sweeps: int
) -> None:
    modes = {module: module.training for module in student.modules()}
    student.eval()
    with torch.no_grad():
        means = _set_thresholds(teacher.eval(), student, images, steps)
        for _ in range(sweeps):
            correct(student, images, steps, means)
    for module, mode in modes.items():
        module.training = mode


def _set_thresholds(
    teacher: fx.GraphModule, student: fx.GraphModule, images: Tensor, steps: int
) -> dict[str, Tensor]:
    """Sets thresholds and initial potentials; returns the teacher's mean per channel by node."""
    means: dict[str, Tensor] = {}
    modules = dict(teacher.named_modules())

    def rule(node: fx.Node, function: Any, args: Any, kwargs: Any) -> Any:
        value = plain(node, function, args, kwargs)
        if is_activation(node, modules):
            theta = best_threshold(value, steps)
            neuron = student.get_submodule(str(node.target))
            assert isinstance(neuron, Neuron)
            neuron.set_threshold(theta, theta / 2)
            means[node.name] = _channel_mean(value)
        return value

    walk(teacher, still(images), rule)
    return means


def best_threshold(activation: Tensor, steps: int) -> Tensor:
    """Per channel, the theta "C" with the smallest squared quantisation error at T steps.

    Among 25 values from 0.15 to 1 times the channel's maximum, the error of
    clip(floor(a T / theta + 0.5), 0, T) theta / T against the activation a "B C ...". A silent
    channel takes the median of the others.
    """
    a = activation.transpose(0, 1).flatten(1)
    top = a.amax(1)
    alive = top > 1e-6
    spare = top[alive].median() if bool(alive.any()) else top.new_tensor(1.0)
    top = torch.where(alive, top, spare)
    best, least = top.clone(), torch.full_like(top, float("inf"))
    for share in torch.linspace(SMALLEST_CANDIDATE, 1, CANDIDATES).tolist():
        level = (share * top / steps).unsqueeze(1)
        quantised = (a / level + 0.5).floor_().clamp_(0, steps).mul_(level)
        error = quantised.sub_(a).square_().mean(1)
        best = torch.where(error < least, share * top, best)
        least = torch.minimum(error, least)
    return best


def _channel_mean(value: Tensor) -> Tensor:
    return value.transpose(0, 1).flatten(1).mean(1)


def correct(student: fx.GraphModule, images: Tensor, steps: int, means: dict[str, Tensor]) -> None:
    """One sweep in network order: shifts each channel's current by its mean-rate error.

    Behind a linear layer of more than vectors "B C" nothing is shifted: thresholds are those of
    the first axis, its bias is that of the last.
    """
    modules = dict(student.named_modules())
    of_features = (nn.Linear, FeatureOffset)
    features = {id(m.bias) for m in modules.values() if isinstance(m, of_features)}

    def rule(node: fx.Node, function: Any, args: Any, kwargs: Any) -> Any:
        if not isinstance(function, Neuron):
            return plain(node, function, args, kwargs)
        currents = unfold(args[0], steps)
        output = _propagated(function, currents)
        bias = bias_of(node.args[0], modules)  # type: ignore[arg-type]
        if bias is None or (id(bias) in features and currents.ndim > VECTORS):
            return fold(output)
        shift = means[node.name] - _channel_mean(output.mean(0))
        del output
        bias.add_(shift)
        return fold(_propagated(function, currents + per_channel(shift, currents[0])))

    walk(student, _repeated(images, steps), rule)


def _propagated(neuron: Neuron, currents: Tensor) -> Tensor:
    """`neuron(currents)`, some images at a time: potentials and states of all need much room."""
    count = max(1, PIECE * currents.shape[1] // max(currents.numel(), 1))
    parts = currents.split(count, dim=1)
    return neuron(currents) if len(parts) == 1 else torch.cat([neuron(p) for p in parts], dim=1)


def _repeated(images: Tensor, steps: int) -> Tensor:
    return fold(repeat(images, steps))
