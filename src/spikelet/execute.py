"""Ways to run a network over time: `ann`, `bptt`, `rate`.

Each is a function (net, x "T B ...", taps) -> Trace. How the gradient is taken is the function
you pass, never a mode of a layer.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Literal, Protocol, get_args

import torch
from torch import Tensor, fx, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.dropout import _DropoutNd

from spikelet.dual import Dual, at_steps, fold, means_at, over_time, unfold, window_means
from spikelet.errors import UserError, unknown
from spikelet.graph import is_activation, resolve, walk
from spikelet.layout import laid_for
from spikelet.neuron import Integrator, Neuron, per_channel, scan
from spikelet.norm import FrozenNorm
from spikelet.rate import (
    add_later,
    anchored_potential,
    batch_statistics,
    binary,
    convolve,
    default,
    drop,
    into_neurons,
    is_linear,
    is_sum,
    normalise,
    per_step,
    settle_later,
    spike,
)
from spikelet.stepwise import step_by_step
from spikelet.trace import Tap, Taps, Trace, fields_of, require_time
from spikelet.unroll import mean_over, unrolled, usable

Time = Literal["mean", "windows", "steps"]
Order = Literal["layers", "time"]
Wanted = dict[fx.Node, set[str]]


class Execute(Protocol):
    """A way to run a network "T B ..." and to take its gradient."""

    def __call__(self, net: nn.Module, x: Tensor, taps: Taps = ()) -> Trace: ...


def gives(execute: Callable[..., Trace], steps: int | None = None) -> Time:
    """What a term may read when a network runs this way: "mean", "windows" or "steps".

    A way of running that says nothing, by an attribute `gives`, gives every step. Windowed rates
    give windows, and every step where there are as many windows as `steps`.
    """
    function = getattr(execute, "func", execute)
    windows = getattr(execute, "keywords", {}).get("windows", 1)
    if function is rate and windows > 1:
        return "steps" if windows == steps else "windows"
    return getattr(function, "gives", "steps")


def ann(net: nn.Module, x: Tensor, taps: Taps = ()) -> Trace:
    """Runs an ANN once, on the mean of x "T B ..." over time: logits "1 B K".

    At an activation, `current` and `potential` are its pre-activation "1 B ...". A model that is
    no graph runs as it is, with module outputs as taps.
    """
    asked = fields_of(taps)
    image = x.mean(0) if x.stride(0) else x[0]
    if not isinstance(net, fx.GraphModule):
        with _outputs(net, asked) as outputs:
            logits = net(laid_for(net, image))
        if not isinstance(logits, Tensor):
            what = f"its forward gave {type(logits).__name__}, expected logits alone"
            fix = "leave other outputs out, as --model.aux_logits False of torchvision does"
            raise UserError("model", what, fix)
        return Trace(logits.unsqueeze(0), {path: Tap(outputs[path]) for path in asked})
    require_time(net, x)
    wanted, found = wanted_taps(net, asked), {}

    def rule(node: fx.Node, function: Any, args: Any, kwargs: Any) -> Any:
        if isinstance(function, Neuron):
            raise UserError("execute = ann", "this network has neurons", "use rate or bptt")
        value = function(*args, **kwargs)
        if node in wanted:
            before = args[0].unsqueeze(0) if wanted[node] - {"mean"} else None
            found[node] = Tap(value, None, before, before)
        return value

    logits = walk(net, image, rule)
    return Trace(logits.unsqueeze(0), answer(net, asked, found))


def bptt(net: nn.Module, x: Tensor, taps: Taps = (), *, fuse: bool = False) -> Trace:
    """Runs a spiking network unrolled over x "T B ...": exact surrogate gradients, memory ~ T.

    A neuron keeps its currents alone, in their precision; its gradient cannot be differentiated
    again. One with parameters that are learned, or tapped for spikes or potentials, keeps all.

    Args:
        net: a spiking network, as `convert` makes it.
        x: "T B ...".
        taps: path -> fields, or paths.
        fuse: compiles the neurons' two passes over time (some twenty seconds once for each T); the
            same spikes and gradients, in less time.
    """
    net, asked = spiking(net), fields_of(taps)
    require_time(net, x)
    steps, wanted, found = len(x), wanted_taps(net, asked), {}

    def rule(node: fx.Node, function: Any, args: Any, kwargs: Any) -> Any:
        if isinstance(function, Neuron):
            return neuron(node, function, unfold(args[0], steps))
        if isinstance(function, _DropoutNd):
            before = unfold(args[0], steps)
            value = fold(before * function(torch.ones_like(before[0])))
        else:
            value = function(*args, **kwargs)
        if node in wanted:
            found[node] = Tap(mean_over(unfold(value, steps)))
        return value

    def neuron(node: fx.Node, function: Neuron, currents: Tensor) -> Tensor:
        inside = wanted.get(node, set()) & {"spikes", "potential"}
        if isinstance(function, Integrator) and not inside and usable(function, currents):
            output = unrolled(function, currents, fuse)
            if node in wanted:
                found[node] = Tap(mean_over(output), None, currents)
            return fold(output)
        run = scan(function, currents)
        output = run.spikes * per_channel(function.theta, currents[0]).to(run.spikes)
        if node in wanted:
            found[node] = Tap(output.mean(0), run.spikes, currents, run.potential)
        return fold(output)

    logits = walk(net, fold(x), rule)
    return Trace(unfold(logits, steps), answer(net, asked, found))


def rate(
    net: nn.Module,
    x: Tensor,
    taps: Taps = (),
    *,
    divide_by_steps: bool = False,
    fuse: bool = False,
    windows: int = 1,
    order: Order = "layers",
) -> Trace:
    """Runs a spiking network with rate-based backpropagation (arXiv 2410.11488), in one pass.

    Per-step fields have the value of each step and the derivative of the mean. Memory for the
    backward pass does not depend on T, but on the number of windows W.

    Args:
        net: a spiking network, as `convert` makes it.
        x: "T B ...".
        taps: path -> fields, or paths.
        divide_by_steps: scales the gradient by 1/T as the published code does, not the loss.
        fuse: compiles the neurons' scan (some ten seconds once); same spikes, much less time.
        windows: W equal windows of time with a mean of their own each: 1 is rate-based
            backpropagation, W = T is backpropagation through time (docs/windows.md).
        order: "layers" runs each layer over all steps, with tensors "(T B) ..." for as long as
            that takes; "time" runs the whole network step by step, so that the peak of memory
            does not depend on T either. It gives the same, for norms with fixed statistics
            (`freeze_norms`), one window, and taps of means: for many steps or little memory.

    Raises:
        UserError: if the steps do not divide into so many windows, or for what an order of
            "time" cannot run.
    """
    net, asked = spiking(net), fields_of(taps)
    require_time(net, x)
    steps, wanted, found = len(x), wanted_taps(net, asked), {}
    if windows < 1 or steps % windows:
        raise UserError(
            f"windows = {windows}", f"expected a divisor of the {steps} steps", "try 1 or 2"
        )

    if order not in get_args(Order):
        raise unknown("order", order, get_args(Order))
    waiting = into_neurons(net, wanted) if fuse and order == "layers" else set()

    def rule(node: fx.Node, function: Any, args: Any, kwargs: Any) -> Any:
        x = args[0] if args and isinstance(args[0], Dual) else None
        if x is not None and isinstance(function, Neuron):
            return neuron(node, function, x)
        value = None if x is None else known(node, function, args)
        if value is None:
            value = default(function, args, kwargs, is_linear(node, function), steps, windows)
        if node in wanted:
            found[node] = Tap(_whole(value))
        return value

    def known(node: fx.Node, function: Any, args: Any) -> Dual | None:
        x, waits = args[0], node in waiting
        if isinstance(function, (nn.Conv1d, nn.Conv2d)):
            return convolve(function, x, fuse)
        if isinstance(function, _BatchNorm) and batch_statistics(function):
            return normalise(function, x, steps, waits)
        if waits and isinstance(function, (_BatchNorm, FrozenNorm)):
            return settle_later(function, x)
        if waits and is_sum(node) and isinstance(args[1], Dual):
            return add_later(x, args[1])
        return drop(function, x) if isinstance(function, _DropoutNd) else None

    def neuron(node: fx.Node, function: Neuron, x: Dual) -> Dual:
        fields = wanted.get(node, set())
        value, response = spike(function, x, steps, "potential" in fields, fuse, windows)
        if node in wanted:
            found[node] = _neuron_tap(function, x, value, response, fields)
        return value

    if order == "time":
        values, means, found = step_by_step(net, x, wanted, windows, fuse)
    else:
        logits = walk(net, _enter(x, windows), rule)
        values, means = unfold(at_steps(logits, steps), steps), means_at(logits, windows)
    if divide_by_steps and means is not None:
        means = _Scaled.apply(means, 1 / steps)
    return Trace(per_step(values, means, windows), answer(net, asked, found))


rate.gives = "mean"  # type: ignore[attr-defined]


class _Scaled(torch.autograd.Function):
    """The identity, with its gradient scaled."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, factor: float) -> Tensor:  # type: ignore[override]
        ctx.factor = factor
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:  # type: ignore[override]
        return grad * ctx.factor, None


def _enter(x: Tensor, windows: int) -> Dual:
    """The input as a dual; one that repeats an image is carried once."""
    if x.stride(0) == 0 or len(x) == 1:
        return Dual(x[0].detach(), x[0], 1)
    return Dual(fold(x.detach()), fold(window_means(x, windows)), len(x), windows=windows)


def _whole(value: Dual) -> Tensor:
    """The mean over all time "B ..."."""
    if value.mean is None:
        return over_time(at_steps(value, value.steps), value.steps)
    return value.mean if value.windows == 1 else unfold(value.mean, value.windows).mean(0)


def _neuron_tap(neuron: Neuron, x: Dual, value: Dual, response: Any, fields: set[str]) -> Tap:
    output, windows = unfold(value.spikes, value.steps), value.windows
    spikes = binary(neuron, output, value.mean, windows) if "spikes" in fields else None
    current = potential = None
    if "current" in fields:
        currents = unfold(at_steps(x, value.steps), value.steps)
        current = per_step(currents, means_at(x, windows), windows)
    if "potential" in fields:
        means = None if x.mean is None else anchored_potential(neuron, x, response)
        potential = per_step(response.potential, means, windows)
    return Tap(_whole(value), spikes, current, potential)


def spiking(net: nn.Module) -> fx.GraphModule:
    if isinstance(net, fx.GraphModule) and "moved" in net.meta:
        return net
    by_hand = any(isinstance(module, Neuron) for module in net.modules())
    raise UserError(
        f"net {type(net).__name__}",
        "expected a network as `convert` makes it",
        "trace it once with spikelet.graph.capture" if by_hand else "convert it",
    )


def wanted_taps(net: fx.GraphModule, asked: Mapping[str, tuple[str, ...]]) -> Wanted:
    """The nodes behind the taps, with all fields asked of each."""
    modules = dict(net.named_modules())
    wanted: Wanted = {}
    for path, fields in asked.items():
        node = resolve(net, path)
        if not node.op.startswith("call"):
            raise UserError(f"tap {path!r}", "it is no layer's output", "tap a layer")
        fires = node.op == "call_module" and isinstance(modules[str(node.target)], Neuron)
        extra = set(fields) - {"mean"}
        if extra and not fires and (not is_activation(node, modules) or "spikes" in extra):
            raise UserError(
                f"tap {path!r}",
                f"{sorted(extra)} exist at neurons only",
                "tap a neuron or its mean",
            )
        wanted.setdefault(node, set()).update(fields)
    return wanted


def answer(net: fx.GraphModule, asked: Mapping[str, Any], found: Mapping[fx.Node, Tap]) -> Any:
    """Each asked path with the fields asked for."""
    taps = {}
    for path, fields in asked.items():
        tap = found[resolve(net, path)]
        taps[path] = Tap(tap.mean, **{f: getattr(tap, f) for f in fields if f != "mean"})
    return taps


@contextmanager
def _outputs(net: nn.Module, asked: Mapping[str, Any]) -> Iterator[dict[str, Tensor]]:
    """Module outputs of a model that is no graph, by hooks that are gone afterwards."""
    outputs: dict[str, Tensor] = {}
    handles = []
    modules = dict(net.named_modules())
    try:
        for path, fields in asked.items():
            if path not in modules:
                raise unknown("tap", path, modules)
            if set(fields) - {"mean"}:
                hidden = sorted(set(fields) - {"mean"})
                raise UserError(
                    f"tap {path!r}",
                    f"{hidden} of a model that torch.fx cannot trace are hidden",
                    "tap the mean",
                )
            module = modules[path]
            handles.append(
                module.register_forward_hook(
                    lambda _m, _a, output, path=path: outputs.__setitem__(path, output)
                )
            )
        yield outputs
    finally:
        for handle in handles:
            handle.remove()
