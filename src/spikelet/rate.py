"""Rate-based backpropagation in one pass: spikes and their mean travel side by side.

A `Dual` carries what flows at each step and its mean over time. Three rules say what a call does
to it: by default the value comes from the spikes and the derivative from the mean; batch norm
takes its statistics' values from the spikes and their gradients from the means; a neuron has the
slope of its mean (arXiv 2410.11488). Only the mean is recorded for the backward pass.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Container
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn
from torch.nn.modules.batchnorm import _BatchNorm

from spikelet.anchor import Anchor, Convolve, Fixed, Normalise, StraightThrough, Sum
from spikelet.compiling import compiled
from spikelet.dual import (
    Dual,
    Summand,
    at_steps,
    blank,
    changed,
    duals_in,
    fold,
    means_at,
    over_time,
    unfold,
    window_means,
)
from spikelet.errors import UserError
from spikelet.layout import as_rows, from_rows
from spikelet.neuron import Neuron, per_channel
from spikelet.norm import FrozenNorm
from spikelet.shared import Shared, SharedNorm, common, moments, normalised, track
from spikelet.slopes import Response, respond
from spikelet.windows import Windowed, linked, respond_in_windows

LINEAR_MODULES = (
    FrozenNorm,
    nn.Identity,
    nn.Linear,
    nn.Flatten,
    nn.AvgPool1d,
    nn.AvgPool2d,
    nn.AdaptiveAvgPool2d,
)
SUMS = {operator.add, torch.add}
LINEAR_FUNCTIONS = {
    *SUMS,
    operator.sub,
    torch.flatten,
    torch.cat,
    F.pad,
    F.avg_pool2d,
    F.adaptive_avg_pool2d,
    operator.getitem,
    "view",
    "reshape",
    "flatten",
    "permute",
}


def default(
    function: Callable[..., Any],
    args: Any,
    kwargs: Any,
    linear: bool,
    total: int = 1,
    windows: int = 1,
) -> Any:
    """The default rule: the value from the spikes, the derivative from the mean.

    A linear call needs no anchor: its value at the mean is already the mean of its values. A size
    that is read from a value carried once is that of all `total` steps where the two differ. What
    moves in time has a mean for each of the `windows`.
    """
    duals = duals_in((args, kwargs))
    if not duals:
        return function(*args, **kwargs)
    steps = max(d.steps for d in duals)
    spikes = _valued(function, args, kwargs, steps)
    if steps < total and _is_size(spikes):
        repeated = _valued(function, args, kwargs, total)
        spikes, steps = (spikes, steps) if repeated == spikes else (repeated, total)
    windows = windows if steps > 1 else 1
    if not torch.is_grad_enabled():
        return Dual(spikes, None, steps, windows=windows)
    a, k = changed((args, kwargs), lambda d: means_at(d, windows))
    mean = function(*a, **k)
    if isinstance(mean, Tensor) and not linear:
        mean = StraightThrough.apply(over_time(spikes, steps, windows), mean)
    return Dual(spikes, mean, steps, windows=windows)


def _valued(function: Callable[..., Any], args: Any, kwargs: Any, steps: int) -> Any:
    with torch.no_grad():
        a, k = changed((args, kwargs), lambda d: at_steps(d, steps))
        return function(*a, **k)


def _is_size(value: Any) -> bool:
    return isinstance(value, (int, torch.Size))


def convolve(conv: Any, x: Dual, fuse: bool = False) -> Dual:
    """Convolution: forward on the spikes only, backward on the mean input only.

    `fuse` compiles the mean of what comes out.
    """
    x = x.settled()
    if isinstance(conv.padding, str) or conv.padding_mode != "zeros":
        return default(conv, (x,), {}, linear=True, windows=x.windows)
    with torch.no_grad():
        spikes = conv(x.spikes)
    if not torch.is_grad_enabled():
        return Dual(spikes, None, x.steps, windows=x.windows)
    value = (averaged if fuse else over_time)(spikes, x.steps, x.windows)
    mean = Convolve.apply(value, x.mean, conv.weight, conv.bias, conv)
    return Dual(spikes, mean, x.steps, windows=x.windows)


def averaged(values: Tensor, steps: int, windows: int) -> Tensor:
    """`over_time` in one pass over half precision on a CPU, where torch's takes three."""
    half = values.dtype.itemsize < 4 and values.device.type == "cpu"
    if steps == windows or not half:
        return over_time(values, steps, windows)
    currents = unfold(values, steps)
    means = compiled(average)(as_rows(currents, currents), windows)
    return fold(from_rows(means, currents))


def average(rows: Tensor, windows: int) -> Tensor:
    """Window means "W R C N" of values "T R C N", summed in fp32, element by element."""
    length, means = len(rows) // windows, []
    for window in rows.split(length):
        total = window[0].float()
        for values in window[1:]:
            total = total + values
        means.append((total / length).to(rows.dtype))
    return torch.stack(means)


def batch_statistics(norm: _BatchNorm) -> bool:
    """Whether a norm uses the statistics of the batch: in training, or if it tracks none."""
    return norm.training or norm.running_mean is None


def normalise(norm: _BatchNorm, x: Dual, steps: int, wait: bool = False) -> Dual:
    """Training batch norm (methods 3.4), with one update of the running statistics.

    The statistics are those of the spikes over T, B and positions together; running variance is
    unbiased with all T B H W of them. With `wait` the values are left for the neuron to compute,
    and that of the mean is left out.
    """
    x = x.settled()
    if isinstance(norm, SharedNorm) and norm.training:
        return _normalise_shared(norm, x, steps, wait)
    affine = None
    with torch.no_grad():
        if wait:
            spikes, (mu, inv) = x.spikes, statistics(x.spikes, norm.eps)
            affine = scale_and_shift(norm, mu, inv)
        else:
            spikes, mu, inv = torch.native_batch_norm(
                x.spikes, norm.weight, norm.bias, None, None, True, 0.0, norm.eps
            )
        variance = inv.to(mu).pow(-2) - norm.eps
        track(norm, mu, variance, _values(x, steps))
    if not torch.is_grad_enabled():
        return Dual(spikes, None, x.steps, affine, x.windows)
    with torch.no_grad():
        # the statistics are one for all steps, so the mean's value is the norm of the mean
        value = blank(x.mean) if wait else normalised(x.mean, mu, variance, norm)
    mean = Normalise.apply(value, x.mean, norm.weight, norm.bias, mu, inv)
    return Dual(spikes, mean, x.steps, affine, x.windows)


def _values(x: Dual, steps: int) -> int:
    """How many values a channel has over all steps."""
    return x.spikes.numel() // x.spikes.shape[1] * (steps if x.steps == 1 else 1)


def _normalise_shared(norm: SharedNorm, x: Dual, steps: int, wait: bool) -> Dual:
    """`normalise` with the statistics of the spikes of all processes."""
    recorded = torch.is_grad_enabled()
    with torch.no_grad():
        mu, variance, count = common(*moments(x.spikes), _values(x, steps))
        inv = (variance + norm.eps).rsqrt()
        affine = scale_and_shift(norm, mu, inv) if wait else None
        spikes = x.spikes if wait else normalised(x.spikes, mu, variance, norm)
        track(norm, mu, variance, count)
        if not recorded:
            return Dual(spikes, None, x.steps, affine, x.windows)
        value = blank(x.mean) if wait else normalised(x.mean, mu, variance, norm)
    means = count * (x.windows / steps)  # how many the mean has
    mean = Shared.apply(value, x.mean, norm.weight, norm.bias, mu, inv, means)
    return Dual(spikes, mean, x.steps, affine, x.windows)


def settle_later(norm: Any, x: Dual) -> Dual:
    """A norm of settled statistics whose values are left for the neuron to compute."""
    x = x.settled()
    with torch.no_grad():
        inv = (norm.running_var + norm.eps).rsqrt()
        affine = scale_and_shift(norm, norm.running_mean, inv)
    if not torch.is_grad_enabled():
        return Dual(x.spikes, None, x.steps, affine, x.windows)
    mean = Fixed.apply(blank(x.mean), x.mean, norm.weight, norm.bias, norm)
    return Dual(x.spikes, mean, x.steps, affine, x.windows)


def add_later(a: Dual, b: Dual) -> Dual | None:
    """A residual sum that is left for the neuron to compute; None where one has to be made now."""
    if a.other is not None or b.other is not None or (a.steps, a.windows) != (b.steps, b.windows):
        return None
    x, y = a.spikes, b.spikes
    if a.windows > 1 or x.shape != y.shape or x.dtype != y.dtype:
        return None
    mean = Sum.apply(a.mean, b.mean) if torch.is_grad_enabled() else None
    return Dual(x, mean, a.steps, a.affine, a.windows, (y, b.affine))


def statistics(x: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """Mean and 1 / sqrt(variance + eps) per channel "C" of "N C ...", in fp32 at least."""
    if x.is_cuda:
        return torch.batch_norm_stats(x, eps)
    precise = torch.promote_types(x.dtype, torch.float32)
    running = [torch.zeros(x.shape[1], dtype=precise, device=x.device) for _ in range(2)]
    mean, variance = torch.ops.aten.batch_norm_update_stats(x, *running, 0.0)
    return mean, (variance + eps).rsqrt()


def scale_and_shift(norm: Any, mu: Tensor, inv: Tensor) -> tuple[Tensor, Tensor]:
    """Batch norm of given statistics as scale * x + shift, each "C"."""
    scale = inv if norm.weight is None else inv * norm.weight
    shift = -mu * scale
    return scale, shift if norm.bias is None else shift + norm.bias


def drop(dropout: nn.Module, x: Dual) -> Dual:
    """Dropout with one mask for all steps."""
    x = x.settled()
    mask = dropout(torch.ones_like(unfold(x.spikes, x.steps)[0]))
    spikes = fold(unfold(x.spikes, x.steps) * mask)
    if not torch.is_grad_enabled():
        return Dual(spikes, None, x.steps, windows=x.windows)
    return Dual(spikes, fold(unfold(x.mean, x.windows) * mask), x.steps, windows=x.windows)


def refuse_recurrent(neuron: Neuron) -> None:
    """Raises for a neuron that has no slope of its own."""
    if not neuron.elementwise:
        raise UserError(
            f"neuron {type(neuron).__name__}",
            "`rate` needs neurons whose spikes depend on their own current alone",
            "use execute=bptt",
        )


def refuse_biased(neuron: Neuron, argument: str = "step_bias = True") -> None:
    """Raises for a neuron with a bias for each step, of which the mean's gradient knows nothing."""
    if neuron.step_bias:
        what = "the bias of each step has its gradient through time"
        raise UserError(argument, what, "use execute=bptt")


def refuse_late(neuron: Neuron, argument: str, fix: str) -> None:
    """Raises for a neuron that begins late where steps are taken as they come."""
    if neuron.delay:
        late = "1 step" if neuron.delay == 1 else f"{neuron.delay} steps"
        what = f"expected neurons that answer at once, those of this network begin {late} late"
        raise UserError(argument, what, fix)


def spike(
    neuron: Neuron, x: Dual, steps: int, potential: bool, fuse: bool = False, windows: int = 1
) -> tuple[Dual, Response | Windowed]:
    """A neuron: runs over the spikes' currents; its means have the slopes of the response."""
    refuse_recurrent(neuron)
    if torch.is_grad_enabled():
        refuse_biased(neuron)
    if windows > 1:
        refuse_late(neuron, f"windows = {windows}", "take one window or execute=bptt")
    if windows > 1 and torch.is_grad_enabled():
        return _in_windows(neuron, x, steps, windows, potential, fuse)
    currents = unfold(x.spikes, x.steps)
    other = _over_time(x.other, x.steps)
    response = respond(neuron, currents, steps, potential, fuse, x.affine, other)
    if not torch.is_grad_enabled():
        return Dual(fold(response.output), None, steps, windows=windows), response
    inputs, slopes = [x.mean], [response.slope]
    for name, (slope, _) in (response.parameters or {}).items():
        inputs.append(neuron.get_parameter(name))
        slopes.append(slope)
    mean = Anchor.apply(response.mean_output, *inputs, *slopes)
    return Dual(fold(response.output), mean, steps), response


def _over_time(other: Summand | None, steps: int) -> Summand | None:
    return None if other is None else (unfold(other[0], steps), other[1])


def _in_windows(
    neuron: Neuron, x: Dual, steps: int, windows: int, potential: bool, fuse: bool
) -> tuple[Dual, Windowed]:
    """`spike` with causal slopes between windows (docs/windows.md)."""
    x = x if x.other is None else x.settled()
    currents = unfold(x.spikes, x.steps)
    response = respond_in_windows(neuron, currents, steps, windows, potential, fuse, x.affine)
    mean = linked(neuron, x, response, response.means, response.links, 0)
    return Dual(fold(response.output), mean, steps, windows=windows), response


def anchored_potential(neuron: Neuron, x: Dual, response: Response | Windowed) -> Tensor:
    """The mean pre-reset potential "(W B) ..." with its own slopes (methods 3.2)."""
    assert response.potential is not None
    if isinstance(response, Windowed):
        assert response.potential_links is not None
        means = window_means(response.potential, len(response.means))
        return linked(neuron, x, response, means, response.potential_links, 1)
    assert response.potential_slope is not None
    inputs, slopes = [x.mean], [response.potential_slope]
    for name, (_, slope) in (response.parameters or {}).items():
        assert slope is not None
        inputs.append(neuron.get_parameter(name))
        slopes.append(slope)
    return Anchor.apply(response.potential.mean(0), *inputs, *slopes)


def per_step(values: Tensor, means: Tensor | None, windows: int = 1) -> Tensor:
    """ "T B ...": the value of each step, the derivative of the mean of its window, if any."""
    if means is None:
        return values
    means = unfold(means, windows).unsqueeze(1)
    means = means.expand(-1, len(values) // windows, *means.shape[2:]).flatten(0, 1)
    return StraightThrough.apply(values, means)


def binary(neuron: Neuron, output: Tensor, means: Tensor | None, windows: int = 1) -> Tensor:
    """A neuron's spikes s "T B ..." from theta * s, with the derivative of their means."""
    theta = per_channel(neuron.theta, output[0]).to(output)
    spikes = (output / theta.detach()).round()
    return per_step(spikes, None if means is None else means / theta, windows)


def into_neurons(net: fx.GraphModule, tapped: Container[fx.Node]) -> set[fx.Node]:
    """Nodes whose only reader is a neuron, or a sum that only a neuron reads; taps read, too."""
    modules = dict(net.named_modules())
    found: set[fx.Node] = set()
    for node in reversed(net.graph.nodes):
        if node in tapped or len(node.users) != 1:
            continue
        (user,) = node.users
        fires = user.op == "call_module" and isinstance(modules[str(user.target)], Neuron)
        if fires or (user in found and is_sum(user) and not is_sum(node)):
            found.add(node)
    return found


def is_sum(node: fx.Node) -> bool:
    """Whether a call adds two values, and nothing else."""
    two = len(node.args) == 2 and all(isinstance(arg, fx.Node) for arg in node.args)
    return node.op == "call_function" and node.target in SUMS and two and not node.kwargs


def is_linear(node: fx.Node, function: Any) -> bool:
    """Whether a call is known to be linear, so that its value at the mean needs no anchor."""
    if node.op == "call_module":
        frozen_norm = isinstance(function, _BatchNorm) and not batch_statistics(function)
        return frozen_norm or isinstance(function, LINEAR_MODULES)
    return node.target in LINEAR_FUNCTIONS
