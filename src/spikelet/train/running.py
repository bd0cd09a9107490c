"""How the network of a recipe runs over time: its encoder, and the executor that measures it."""

from __future__ import annotations

import functools
import inspect
import math
from collections.abc import Callable, Sequence
from typing import Any

from torch import Tensor, fx, nn

from spikelet.encode import still
from spikelet.execute import Execute, bptt, rate
from spikelet.graph import capture, shapes
from spikelet.measure.accuracy import Encode
from spikelet.measure.vitals import neuron_count
from spikelet.obstacles import reason
from spikelet.quantise import quantised
from spikelet.recipe import ENCODERS, Recipe, build, resolve

WORTH = 2**26  # neurons times steps times images from which it pays to compile the scan
ROOM = 2**27  # values of the largest tensor in one pass over many images: 512 MiB in fp32


def encoding(
    recipe: Recipe, mean: Sequence[float], std: Sequence[float], steps: int
) -> Callable[..., Tensor]:
    """The encoder of a recipe for T steps, told what images were normalised with if it asks."""
    takes = inspect.signature(resolve("encode", recipe.encode["kind"], ENCODERS)).parameters
    known = {"steps": steps, "mean": tuple(mean), "std": tuple(std)}
    extra = {name: value for name, value in known.items() if name in takes}
    return build("encode", recipe.encode, ENCODERS, **extra)


def encoder(recipe: Recipe, mean: Sequence[float], std: Sequence[float]) -> Encode:
    """The encoder of a recipe as a function of (images, T)."""
    made = functools.cache(functools.partial(encoding, recipe, mean, std))
    return lambda images, steps: made(steps)(images)


def runner(recipe: Recipe) -> Execute:
    """How a student answers: quantised, fused or step by step if trained so, else unrolled."""
    return spiking_runner(recipe, fuse=not by_levels(recipe)) if spiking(recipe) else quantised


def student_measurer(recipe: Recipe, *asked: Any) -> Execute:
    """How the student of a recipe answers; as `measurer`, but that it may have no spikes."""
    return measurer(recipe, *asked) if spiking(recipe) else quantised


def measurer(
    recipe: Recipe, net: nn.Module, shown: Tensor, steps: int, count: int, known: bool = False
) -> Execute:
    """How a spiking network answers `count` images in T steps, compiled where that pays.

    Args:
        recipe: of the student.
        net: the student, or a conversion beside it.
        shown: what it sees of an image at a step, "1 C H W".
        steps: T.
        count: how many images there are.
        known: whether its neurons were compiled for as many steps before.
    """
    size = 0 if known else neuron_count(net, shown)
    return spiking_runner(recipe, fuse=known or size * steps * count >= WORTH)


def roomy(net: nn.Module, example: Tensor) -> int:
    """How many images one pass may hold; `example` "T 1 ..." is one of them, encoded."""
    if not isinstance(net, fx.GraphModule):
        return 0
    largest = max(math.prod(shape) for shape in shapes(net, example[0]).values())
    return ROOM // (largest * len(example))


def that_fit(net: nn.Module, images: Tensor, steps: int) -> Tensor:
    """As many of the images "B ..." as one pass of T steps through an ANN may hold, 2 at least."""
    if reason(net) is not None:
        return images  # it cannot be converted, which conversion itself says best
    return images[: max(roomy(capture(net), still(images[:1]).expand(steps, *[-1] * 4)), 2)]


def trainer(recipe: Recipe) -> Execute:
    """How a student runs where it is to be as in training, so that norms see the same currents."""
    return quantised if by_levels(recipe) else spiking_runner(recipe)


def by_levels(recipe: Recipe) -> bool:
    """Whether a student is trained as the quantised network."""
    return recipe.execute.get("kind") == "quantised"


def spiking(recipe: Recipe) -> bool:
    """Whether what a recipe trains has spikes; `qann`, the rival, has none.

    Neurons that know their whole input before they fire send exactly the levels, so that a network
    may be trained by these and still spike (docs/delay.md).
    """
    waits = recipe.neuron.get("delay", 0) >= max(recipe.steps - 1, 1)
    return not by_levels(recipe) or (waits and recipe.method != "qann")


def single(recipe: Recipe) -> bool:
    """Whether a student is another network at fewer steps than its own: where layers begin late.

    Trained with the encoder `mixed` it answers at every T.
    """
    late = bool(recipe.neuron.get("delay")) and recipe.steps > 1
    return late and spiking(recipe) and recipe.encode.get("kind") != "mixed"


def kind(recipe: Recipe) -> str:
    """What a recipe's student is: "snn" or "quantised ann" (it has no spikes).

    Before "snn" stands "signed" if spikes may be negative, "delayed" if layers begin late.
    """
    if not spiking(recipe):
        return "quantised ann"
    words = {"delayed": recipe.neuron.get("delay"), "signed": recipe.neuron.get("signed")}
    return " ".join([*(word for word, said in words.items() if said), "snn"])


def spiking_runner(recipe: Recipe, fuse: bool = True) -> Execute:
    """How a spiking network of a recipe is measured; without `fuse` nothing is compiled for it.

    One that was trained as the quantised network answers by fused rates, the fastest way in time.
    """
    ways: dict[str | None, Execute] = {"rate": rate, "bptt": bptt, "quantised": rate}
    fused = by_levels(recipe) or recipe.execute.get("fuse")
    chosen: dict[str, Any] = {"fuse": True} if fuse and fused else {}
    if recipe.execute.get("order") == "time":
        chosen["order"] = "time"
    way = ways.get(recipe.execute.get("kind")) if chosen else None
    return bptt if way is None else functools.partial(way, **chosen)
