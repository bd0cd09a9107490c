"""The rows of a run: teacher, untrained conversion and student, measured on the test part."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from spikelet.convert import convert
from spikelet.data import Batches, Dataset, Split
from spikelet.distill import freeze
from spikelet.measure import accuracy, accuracy_over_steps
from spikelet.obstacles import reason
from spikelet.processes import processes, rank
from spikelet.recipe import NEURONS, Recipe, build
from spikelet.train.crossed import images_of, sees
from spikelet.train.load import SNN, Loaded
from spikelet.train.running import (
    by_levels,
    encoder,
    kind,
    measurer,
    spiking,
    student_measurer,
    that_fit,
)

EVALUATION_BATCH, ACCELERATED_BATCH = 250, 1000  # of images up to MIDDLING; fewer of larger ones
MIDDLING = 64 * 64  # pixels
GIVEN, LEARNED = "given, before joint training", "after joint training"
BEGUN = "of the student's ANN"
COSTS = ("seconds", "ann_epochs", "ann_epochs_macs", "macs")
EVERY = 8  # T up to which a conversion is measured at each number of steps


def evaluation(split: Split, dataset: Dataset, device: torch.device) -> Iterator[Any]:
    """Batches (images, labels) of a split in its own order.

    Of several processes each has every n-th image; all of them, where there is not one for each.
    """
    count = processes()
    if 1 < count <= len(split):
        split = split.at(torch.arange(rank(), len(split), count))
    batch = EVALUATION_BATCH if device.type == "cpu" else ACCELERATED_BATCH
    batch = max(batch * MIDDLING // max(math.prod(dataset.size), MIDDLING), 1)
    batches = Batches(split, dataset, batch, shuffle=False, device=device)
    return batches.epoch(0)


def row(
    method: str, steps: int | None, value: float, seed: int | None, **more: Any
) -> dict[str, Any]:
    """One line of a result table, of a single run on the test part."""
    common = {"method": method, "steps": steps, "accuracy": value, "std": None, "n": 1}
    return {**common, "seed": seed, "split": "test", **more}


def added(student: Mapping[str, Any], ann: Mapping[str, Any]) -> dict[str, Any]:
    """What a student cost with the ANN that it began as, and how that one answers."""
    both = {**student}
    for name in COSTS:
        each = [row[name] for row in (student, ann) if name in row]
        if each:
            both[name] = None if None in each else sum(each)
    if "peak_mib" in ann:
        both["peak_mib"] = max(ann["peak_mib"], student.get("peak_mib", 0.0))
    return {**both, "accuracy_ann": ann["accuracy"]}


def learning(recipe: Recipe) -> bool:
    """Whether the teacher ends as another than it began."""
    return recipe.joint and recipe.method != "convert"


def apart(last: int) -> list[int]:
    """The T at which conversions stand beside a student of `last` steps, each a run of its own.

    All of them up to 8, then the powers of two and the last: all would cost as its square.
    """
    return [t for t in range(1, last + 1) if t <= EVERY or t == last or t & (t - 1) == 0]


def control_rows(
    recipe: Recipe,
    dataset: Dataset,
    teacher: Loaded,
    steps: list[int],
    images: Tensor,
    note: str | None,
    source: nn.Module | None = None,
) -> list[dict[str, Any]]:
    """Rows of the teacher and, if it is an ANN, its conversion calibrated for each T.

    Args:
        recipe: of the student.
        dataset: its test part is answered.
        teacher: of the student.
        steps: every T of the conversions.
        images: they are calibrated on.
        note: says which teacher it is, where there are two.
        source: the ANN that the student was converted from, where that is not its teacher.
    """
    device, seed = images.device, recipe.seed
    net = teacher.net.to(device)
    images_known = images_of(teacher)
    if images_known is not None:
        return crossed_rows(recipe, dataset, teacher, steps, images, images_known, source)
    kind = f"snn, T = {recipe.steps}" if teacher.kind == SNN else "ann"
    noted = {} if note is None else {"note": note}
    value = teacher_accuracy(recipe, dataset, net, teacher.kind, device)
    rows = [row("teacher", None, value, seed, kind=kind, **noted)]
    if source is not None:
        return rows + _converted(recipe, dataset, source.to(device), steps, images, note=BEGUN)
    if teacher.kind == SNN:
        return rows
    later = {"note": f"of the teacher {note}"} if note == LEARNED else {}
    return rows + _converted(recipe, dataset, net, steps, images, **later)


def _converted(
    recipe: Recipe, dataset: Dataset, net: nn.Module, steps: list[int], images: Tensor, **more: Any
) -> list[dict[str, Any]]:
    """Rows of an ANN's conversion, calibrated for each T; none of one that has no conversion."""
    if reason(net) is not None:
        return []
    encode, rows = encoder(recipe, dataset.mean, dataset.std), []
    for t in steps:
        neuron, fitting = build("neuron", recipe.neuron, NEURONS), that_fit(net, images, t)
        converted = convert(net, neuron, steps=t, calibrate=fitting)
        shown, known = encode(images[:1], 1)[0], t == recipe.steps and not by_levels(recipe)
        way = measurer(recipe, converted, shown, t, len(dataset.test), known)
        batches = evaluation(dataset.test, dataset, images.device)
        value = accuracy_over_steps(converted, batches, [t], way, encode)[t]
        rows.append(row("convert", t, value, recipe.seed, **more))
    return rows


def crossed_rows(
    recipe: Recipe,
    dataset: Dataset,
    teacher: Loaded,
    steps: list[int],
    images: Tensor,
    known: Dataset,
    source: nn.Module | None = None,
) -> list[dict[str, Any]]:
    """Rows of a teacher on the test part of the images it knows, and of its conversion on events.

    There is no such conversion of one whose images have another form than the events' frames; the
    student's `source`, where it has one of its own, has always one.
    """
    value = accuracy(freeze(teacher.net), evaluation(known.test, known, images.device))
    told = {"kind": "ann", "note": f"on the test images of {known.name}"}
    rows = [row("teacher", None, value, recipe.seed, **told)]
    if source is not None:
        net = source.to(images.device)
        return rows + _converted(recipe, dataset, net, steps, images, note=BEGUN)
    if not sees(teacher, dataset):
        return rows
    return rows + _converted(recipe, dataset, teacher.net, steps, images)


def teacher_accuracy(
    recipe: Recipe, dataset: Dataset, net: nn.Module, kind: str, device: torch.device
) -> float:
    """How a teacher answers the test part, 0 to 1; a spiking one in the student's time steps."""
    batches, last = evaluation(dataset.test, dataset, device), recipe.steps
    if kind != SNN:
        return accuracy(freeze(net), batches)
    encode = encoder(recipe, dataset.mean, dataset.std)
    return accuracy_over_steps(net, batches, [last], encode=encode)[last]


def student_rows(
    recipe: Recipe, dataset: Dataset, student: nn.Module, steps: list[int], images: Tensor
) -> list[dict[str, Any]]:
    """Rows of the student at each T; a quantised network has the levels it was trained for."""
    wanted = steps if spiking(recipe) else [recipe.steps]
    batches = evaluation(dataset.test, dataset, images.device)
    encode = encoder(recipe, dataset.mean, dataset.std)
    shown, known = encode(images[:1], 1)[0], not by_levels(recipe)
    way = student_measurer(recipe, student, shown, max(wanted), len(dataset.test), known)
    found = accuracy_over_steps(student, batches, wanted, way, encode)
    return [row(recipe.method, t, found[t], recipe.seed, kind=kind(recipe)) for t in wanted]
