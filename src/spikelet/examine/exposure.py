"""Showing noise to several networks: the same images to all, each network with noise inside."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, fx, nn

from spikelet.examine.natural import Natural
from spikelet.examine.subject import Seen, Subject
from spikelet.execute import Execute, bptt, rate
from spikelet.measure.corruptions import corrupt, kinds_of, source
from spikelet.measure.immunity import Right
from spikelet.measure.inside import DISTURBANCES, disturbed
from spikelet.measure.vitals import neuron_count
from spikelet.neuron import Neuron
from spikelet.train.running import WORTH

DRAWS = 3
SHARE, LEAST = 2, 200  # of the images one in so many is used at each level, at least so many
AGAIN, LEAST_AGAIN = 5, 50  # of those one in so many for the second and third draw
BATCH, ACCELERATED_BATCH = 100, 1000
IMAGE, FILE, INSIDE = "image", "file", "network"


@dataclass(frozen=True)
class Running:
    """One network as it is run many times without gradients."""

    seen: Seen
    execute: Execute
    steps: int

    def __call__(self, images: Tensor, net: nn.Module | None = None) -> Tensor:
        """Logits "B K" of normalised images "B C H W"; of a copy of the network if there is one."""
        net = self.seen.net if net is None else net
        return self.execute(net, self.seen.encode(images, self.steps)).mean_logits


@dataclass(frozen=True)
class Plan:
    """What is shown to whom.

    Attributes:
        subject: with the images of each level.
        again: how many of them the second and third draw have.
        running: the networks.
    """

    subject: Subject
    again: int
    running: tuple[Running, ...]

    def drawn(self, draw: int) -> Subject:
        """The images of a draw."""
        return self.subject if draw == 0 else self.subject.cut(self.again)

    @property
    def batch(self) -> int:
        """Images at a time; small ones stay in a processor's cache."""
        return BATCH if self.subject.device.type == "cpu" else ACCELERATED_BATCH


def planned(subject: Subject) -> Plan:
    """How many images each level gets, and how the networks are run."""
    every = len(subject.dataset.test)
    count = max(every // SHARE, min(every, LEAST))
    again = max(count // AGAIN, min(count, LEAST_AGAIN))
    few = subject.cut(count)
    example, _ = next(few.batches(2))
    steps = subject.steps
    running = (Running(seen, way(seen, example, steps, count), steps) for seen in subject.networks)
    return Plan(few, again, tuple(running))


def way(seen: Seen, example: Tensor, steps: int, images: int) -> Execute:
    """The fastest executor of a network without gradients: `rate`, compiled where that pays."""
    if seen.execute is not bptt or not isinstance(seen.net, fx.GraphModule):
        return seen.execute
    if not all(m.elementwise for m in seen.net.modules() if isinstance(m, Neuron)):
        return bptt
    values = neuron_count(seen.net, seen.encode(example[:1], 1)[0]) * steps * images
    return functools.partial(rate, fuse=values >= WORTH)


def clean_hits(plan: Plan) -> dict[str, Tensor]:
    """Whether each network answers each clean image rightly, by name."""
    return _hits(plan, plan.subject, lambda pixels, _: pixels)


def _hits(
    plan: Plan, subject: Subject, change: Callable[[Tensor, int], Tensor]
) -> dict[str, Tensor]:
    """Whether each image is answered rightly, bool "N" by network, all shown the same.

    `change` makes what is shown of pixels "B C H W" and the number of the first of them.
    """
    found: dict[str, list[Tensor]] = {each.seen.name: [] for each in plan.running}
    for start, pixels, labels in _numbered(plan, subject):
        images = subject.normalise(change(pixels, start))
        for each in plan.running:
            found[each.seen.name].append((each(images).argmax(1) == labels).cpu())
    return {name: torch.cat(parts) for name, parts in found.items()}


def _numbered(plan: Plan, subject: Subject) -> Iterator[tuple[int, Tensor, Tensor]]:
    """(number of its first image, pixels, labels) of each batch."""
    for index, (pixels, labels) in enumerate(subject.pixels(plan.batch)):
        yield index * plan.batch, pixels, labels


@dataclass(frozen=True)
class Exposure:
    """One kind of noise, ready to be shown.

    Attributes:
        where: "image", "file" or "network".
        unit: what a level is.
        levels: without 0.
        drawn: whether it is random.
        show: gives `Right` by network, without those for which it means nothing.
    """

    where: str
    unit: str
    levels: tuple[float, ...]
    drawn: bool
    show: Callable[[], dict[str, Right]]


def exposures(plan: Plan, clean: Mapping[str, Tensor], files: Natural) -> dict[str, Exposure]:
    """Every kind of noise that there is for a plan, by name.

    Args:
        plan: what is shown to whom.
        clean: whether each network answers each clean image rightly, as `clean_hits` gives it.
        files: corrupted images of the plan's subject.
    """
    found: dict[str, Exposure] = {}
    for kind, noise in kinds_of(plan.subject.dataset.unit).items():
        show = functools.partial(_on_images, plan, clean, kind)
        found[kind] = Exposure(IMAGE, noise.unit, noise.levels, noise.drawn, show)
    for kind, (unit, images) in files.kinds.items():
        show = functools.partial(_from_files, plan, clean, images)
        found[kind] = Exposure(FILE, unit, tuple(range(1, len(images) + 1)), False, show)
    for kind, inner in DISTURBANCES.items():
        show = functools.partial(_inside, plan, clean, kind)
        found[kind] = Exposure(INSIDE, inner.unit, inner.levels, inner.drawn, show)
    return found


def _on_images(plan: Plan, clean: Mapping[str, Tensor], kind: str) -> dict[str, Right]:
    """One kind of noise on the images, the same noise for all networks."""
    noise = kinds_of(plan.subject.dataset.unit)[kind]
    draws = range(DRAWS if noise.drawn else 1)
    hits = [[_corrupted(plan, kind, level, draw) for draw in draws] for level in noise.levels]
    return {
        name: Right.of(clean[name], [[each[name] for each in level] for level in hits])
        for name in clean
    }


def _corrupted(plan: Plan, kind: str, level: float, draw: int) -> dict[str, Tensor]:
    """Whether each network answers each image of a draw rightly under noise."""

    def change(pixels: Tensor, start: int) -> Tensor:
        key = (plan.subject.seed, kind, level, draw, start)
        return corrupt(pixels, kind, level, source(*key), plan.subject.dataset.unit)

    return _hits(plan, plan.drawn(draw), change)


def _from_files(
    plan: Plan, clean: Mapping[str, Tensor], levels: Sequence[Tensor]
) -> dict[str, Right]:
    """Corrupted images that come as files, uint8 "N C H W" at each level."""
    found = []
    for images in levels:

        def change(pixels: Tensor, start: int, images: Tensor = images) -> Tensor:
            return images[start : start + len(pixels)].to(pixels.device).float() / 255

        found.append(_hits(plan, plan.subject, change))
    return {name: Right.of(clean[name], [[level[name]] for level in found]) for name in clean}


def _inside(plan: Plan, clean: Mapping[str, Tensor], kind: str) -> dict[str, Right]:
    """One kind of noise inside each network for which it means something."""
    found = {}
    for each in plan.running:
        noise = DISTURBANCES[kind]
        if noise.needs == "spikes" and not each.seen.spiking:
            continue
        draws = range(DRAWS if noise.drawn else 1)
        levels = [[_spoiled(plan, each, kind, level, d) for d in draws] for level in noise.levels]
        make = Right.of_common if noise.common else Right.of
        found[each.seen.name] = make(clean[each.seen.name], levels)
    return found


def _spoiled(plan: Plan, each: Running, kind: str, level: float, draw: int) -> Tensor:
    """Whether a copy of a network with noise inside answers each image of a draw rightly."""
    subject, key = plan.drawn(draw), (plan.subject.seed, kind, level, draw)
    generator = source(*key, device=subject.device)
    net, hits = None, []
    for _, pixels, labels in _numbered(plan, subject):
        images = subject.normalise(pixels)
        if net is None:
            example = each.seen.encode(images[:1], 1)[0]
            net = disturbed(each.seen.net, kind, level, generator, example)
        hits.append((each(images, net).argmax(1) == labels).cpu())
    return torch.cat(hits)
