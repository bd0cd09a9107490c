"""What one run of a network leaves behind."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from torch import Tensor, fx, nn

from spikelet.errors import UserError

FIELDS = ("mean", "spikes", "current", "potential")
Taps = Mapping[str, tuple[str, ...]] | Iterable[str]
BATCH_AXES = {nn.Conv2d: 4, nn.BatchNorm2d: 4, nn.MaxPool2d: 4, nn.AvgPool2d: 4, nn.Conv1d: 3}


@dataclass(frozen=True)
class Tap:
    """The values at one place of the network.

    Attributes:
        mean: "B ...", the mean over time of what propagates from here (theta * s for a neuron).
        spikes: "T B ...", binary (or signed) spikes, if asked for.
        current: "T B ...", the neuron's input current, or an ANN's pre-activation.
        potential: "T B ...", the pre-reset potential, or an ANN's pre-activation.
    """

    mean: Tensor
    spikes: Tensor | None = None
    current: Tensor | None = None
    potential: Tensor | None = None


@dataclass(frozen=True)
class Trace:
    """One run: logits "T B K" and the taps asked for, by the path they were asked by."""

    logits: Tensor
    taps: Mapping[str, Tap] = field(default_factory=dict)

    @property
    def mean_logits(self) -> Tensor:
        """The time-averaged logits "B K": what the network answers."""
        return self.logits.mean(0)


def fields_of(taps: Taps) -> dict[str, tuple[str, ...]]:
    """Taps as path -> fields; a plain list of paths asks for the mean of each.

    Raises:
        UserError: for a field that does not exist.
    """
    asked = dict(taps) if isinstance(taps, Mapping) else dict.fromkeys(taps, ("mean",))
    for path, names in asked.items():
        for name in names:
            if name not in FIELDS:
                raise UserError(
                    f"taps[{path!r}]", f"field {name!r} is not known", f"use {', '.join(FIELDS)}"
                )
    return asked


def batch_axes(net: nn.Module) -> int | None:
    """How many axes a batch has: by the network's first layer, or the images of its calibration.

    None where neither tells.
    """
    if not isinstance(net, fx.GraphModule):
        return None
    entry = next((node for node in net.graph.nodes if node.op == "placeholder"), None)
    first = None if entry is None else next(iter(entry.users), None)
    example = net.meta.get("example")
    known = None if example is None or example.dim() > 4 else example.dim()  # not frames over time
    return BATCH_AXES.get(type(_called(net, first)), known)


def require_time(net: fx.GraphModule, x: Tensor) -> None:
    """Raise unless x has the axis of time before those of a batch, where `batch_axes` tells."""
    axes = batch_axes(net)
    if axes is not None and x.dim() != axes + 1:
        shown = "T B C H W" if axes == 4 else f"time, then the {axes} axes of a batch"
        raise UserError(
            f"x {tuple(x.shape)}",
            f"expected time first: {shown}; it has {x.dim()} axes instead of {axes + 1}",
            "give spikelet.repeat(images, steps=4), or images.unsqueeze(0) for one step, "
            "of a batch of images",
        )


def _called(net: fx.GraphModule, node: fx.Node | None) -> nn.Module | None:
    if node is None or node.op != "call_module":
        return None
    return net.get_submodule(str(node.target))
