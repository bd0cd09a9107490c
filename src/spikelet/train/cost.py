"""What a training cost, in units that mean something on another machine."""

from __future__ import annotations

import copy
import functools
import itertools
import statistics
import time
from collections.abc import Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from spikelet.data import Batches
from spikelet.distill import Distiller
from spikelet.encode import Direct, still
from spikelet.layout import laid_for
from spikelet.recipe import Training
from spikelet.train.schedule import optimiser

WARM, TIMED = 2, 5  # steps of the ANN
COUNTED = 2  # images


def costs(
    distiller: Distiller, teacher: nn.Module, batches: Batches, training: Training, seconds: float
) -> dict[str, float | None]:
    """What a finished training cost; the teacher's forwards are part of all of it.

    `ann_epochs` is its time in training epochs of the teacher: as it took `seconds`, and one such
    epoch would take the median of five steps on the same batches, in the same precision, times
    their number. None where steps were replayed as graphs, which those of the teacher are not.
    `macs` are multiply-accumulates of all convolutions and matrix products, dense, forward and
    backward, and `ann_epochs_macs` the training epochs of the teacher that have as many, which is
    the same on every machine.
    """
    replayed = training.graph and batches.device.type == "cuda"
    epochs, example = training.lasting(len(batches)).epochs, next(iter(batches.epoch(0)))
    each, anns = macs_per_image(distiller, *example), macs_of_ann(teacher, *example)
    return {
        "ann_epochs": None if replayed else seconds / epoch_seconds(teacher, batches, training),
        "ann_epochs_macs": epochs * each / anns if anns else None,
        "macs": epochs * _shown(batches) * each,
    }


def _shown(batches: Batches) -> int:
    """Images of an epoch."""
    return min(len(batches) * batches.batch, len(batches.labels))


def epoch_seconds(teacher: nn.Module, batches: Batches, training: Training) -> float:
    """How long one epoch of training an ANN on its labels takes here, from five of its steps."""
    net = copy.deepcopy(teacher).train().requires_grad_(True)
    steps, taken = optimiser(net, training), []
    for images, labels, begin in itertools.islice(_timed(batches), WARM + TIMED):
        half = training.precision == "bf16"
        with torch.autocast(images.device.type, dtype=torch.bfloat16, enabled=half):
            loss = F.cross_entropy(net(laid_for(net, still(images))).float(), labels)
        steps.zero_grad(set_to_none=True)
        loss.backward()
        if training.clip is not None:
            nn.utils.clip_grad_norm_(net.parameters(), training.clip)
        steps.step()
        taken.append(_now(images.device) - begin)
    return statistics.median(taken[WARM:]) * len(batches)


def _timed(batches: Batches) -> Iterator[tuple[Tensor, Tensor, float]]:
    """Batches over and over, each with the moment at which it was asked for."""
    for epoch in itertools.count():
        drawn = iter(batches.epoch(epoch))
        while True:
            begin = _now(batches.device)
            found = next(drawn, None)
            if found is None:
                break
            yield (*found, begin)


def _now(device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()


def macs_per_image(distiller: Distiller, images: Tensor, labels: Tensor) -> float:
    """Multiply-accumulates of one training step, forward and backward, for one of its images.

    Where the encoder draws how many steps there are, the mean over all that it may draw.
    """
    lengths = getattr(distiller.encode, "lengths", None)
    if lengths:
        each = [distiller_of(distiller, steps) for steps in lengths]
        return statistics.fmean(macs_per_image(one, images, labels) for one in each)
    counted = plainly(distiller).train()
    images, labels = images[:COUNTED], labels[:COUNTED]
    generator = torch.Generator().manual_seed(0)
    with FlopCounterMode(display=False) as counter:
        loss, _ = counted(images, labels, progress=0.0, generator=generator)
        loss.backward()
    return counter.get_total_flops() / 2 / len(images)


def macs_of_ann(teacher: nn.Module, images: Tensor, labels: Tensor) -> float:
    """Multiply-accumulates of training an ANN on its labels, forward and backward, for an image."""
    net, few = copy.deepcopy(teacher).train().requires_grad_(True), images[:COUNTED]
    with torch.enable_grad(), FlopCounterMode(display=False) as counter:
        F.cross_entropy(net(laid_for(net, still(few))).float(), labels[:COUNTED]).backward()
    return counter.get_total_flops() / 2 / len(few)


def distiller_of(distiller: Distiller, steps: int) -> Distiller:
    """A copy that shows images for this many steps."""
    found = copy.deepcopy(distiller)
    found.encode = Direct(steps)
    return found


def plainly(distiller: Distiller) -> Distiller:
    """A copy that compiles nothing: what is counted are calls of torch."""
    found, execute = copy.deepcopy(distiller), distiller.execute
    if isinstance(execute, functools.partial) and execute.keywords.get("fuse"):
        keywords: dict[str, Any] = {**execute.keywords, "fuse": False}
        found.execute = functools.partial(execute.func, *execute.args, **keywords)
    return found
