"""Accuracy of an ANN, and of a spiking network at several numbers of time steps from one run."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from spikelet.encode import FRAMES, repeat, still
from spikelet.errors import UserError
from spikelet.execute import Execute, bptt
from spikelet.layout import laid_for
from spikelet.neuron import Neuron
from spikelet.processes import total

Batch = tuple[Tensor, Tensor]
Encode = Callable[[Tensor, int], Tensor]


@contextmanager
def evaluating(net: nn.Module) -> Iterator[None]:
    """Eval mode without gradients; every module's own training mode is put back afterwards."""
    modes = {module: module.training for module in net.modules()}
    net.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        for module, mode in modes.items():
            module.training = mode


def answers_over_steps(
    net: nn.Module,
    images: Tensor,
    steps: Sequence[int],
    execute: Execute = bptt,
    encode: Encode = repeat,
) -> dict[int, Tensor]:
    """Logits "B K" after each number of steps: one run of max(steps), mean of its first t logits.

    `images` are normalised, "B C H W"; `encode` makes (images, T) the input "T B ...", by default
    shown unchanged at every step. `execute` runs the
    network: any way over time gives the same answers, `partial(rate, fuse=True)` the fastest.
    One that has no time, as `quantised`, runs once for each number of steps; so does any for frames
    "B F C H W", which are the whole recording however many steps show them, and a network whose
    neurons begin late, as they know how much input there will be.

    Raises:
        UserError: if `steps` is empty or below 1, or the network has no neurons.
    """
    wanted = sorted(set(steps))
    if not wanted or wanted[0] < 1:
        raise UserError(
            f"steps = {list(steps)}", "expected whole numbers of at least 1", "try 1 2 4"
        )
    with evaluating(net):
        whole = images.ndim == FRAMES or late(net)
        if whole or not getattr(execute, "unrolled", True):
            return {t: execute(net, encode(images, t)).mean_logits.float() for t in wanted}
        total = execute(net, encode(images, wanted[-1])).logits.float().cumsum(0)
    return {t: total[t - 1] / t for t in wanted}


def late(net: nn.Module) -> bool:
    """Whether neurons of a network begin later than those before them."""
    return any(isinstance(module, Neuron) and module.delay > 0 for module in net.modules())


def predictions_over_steps(
    net: nn.Module,
    batches: Iterable[Batch],
    steps: Sequence[int],
    execute: Execute = bptt,
    encode: Encode = repeat,
) -> dict[int, Tensor]:
    """Whether each image is answered correctly after each number of steps: bool "N" on the CPU.

    Args:
        net: a spiking network.
        batches: (normalised images, labels), unshuffled where order matters; or `data.Batches`.
        steps: numbers of time steps; all come from one run of the largest.
        execute: how the network runs.
        encode: (images, T) to the input "T B ...".

    Raises:
        UserError: as `answers_over_steps`, or there are no batches.
    """
    found: dict[int, list[Tensor]] = {t: [] for t in sorted(set(steps))}
    for images, labels in _once(batches):
        for t, logits in answers_over_steps(net, images, steps, execute, encode).items():
            found[t].append(logits.argmax(1) == labels)
    return {t: _joined(parts) for t, parts in found.items()}


def accuracy_over_steps(
    net: nn.Module,
    batches: Iterable[Batch],
    steps: Sequence[int],
    execute: Execute = bptt,
    encode: Encode = repeat,
) -> dict[int, float]:
    """Accuracy, 0 to 1, after each number of steps; arguments as `predictions_over_steps`.

    Where several processes train together each gives images of its own: it is that of all.
    """
    hits = predictions_over_steps(net, batches, steps, execute, encode)
    return {t: _share(each) for t, each in hits.items()}


def correct(net: nn.Module, batches: Iterable[Batch]) -> Tensor:
    """Whether an ANN answers each image correctly: bool "N" on the CPU."""
    with evaluating(net):
        shown = ((laid_for(net, still(images)), labels) for images, labels in _once(batches))
        return _joined([net(images).argmax(1) == labels for images, labels in shown])


def accuracy(net: nn.Module, batches: Iterable[Batch]) -> float:
    """Accuracy of an ANN, 0 to 1; of several processes together, over the images of all."""
    return _share(correct(net, batches))


def _once(batches: Any) -> Iterator[Batch]:
    """One pass: the first epoch of `data.Batches`, or the iterable itself."""
    return iter(batches.epoch(0) if callable(getattr(batches, "epoch", None)) else batches)


def _joined(parts: Sequence[Tensor]) -> Tensor:
    if not parts:
        raise UserError("batches", "there are none", "give images to measure on")
    return torch.cat(list(parts)).cpu()


def _share(hits: Tensor) -> float:
    right, count = total(float(hits.sum()), len(hits))
    return right / count
