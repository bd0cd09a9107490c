"""What a run says besides its epochs: what begins, what was lost, and what came out poor."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from spikelet.data import Dataset
from spikelet.distill import Distiller
from spikelet.measure import accuracy
from spikelet.obstacles import reason
from spikelet.recipe import Recipe
from spikelet.terms.term import ANY
from spikelet.train.load import ANN, Loaded
from spikelet.train.place import CHECKPOINT, Place
from spikelet.train.rows import evaluation
from spikelet.train.run import read_json
from spikelet.train.running import single, spiking

FEW = 100  # training images that tell whether all are grey
NAMED = 5  # classes that are listed
LOOKED_AT = 1000  # training images, where there are none for validation
SMALL = 5_000  # weights of a student below which a teacher was no help at T = 1 (docs/recipe.md)
HARDLY = 1.5  # times chance: a teacher below it has nothing to teach


def announce(
    recipe: Recipe, place: Place, dataset: Dataset, net: nn.Module, per_epoch: int
) -> None:
    """Says what is trained on what, before the first batch that may be slow."""
    if place.console is None or not place.writes:
        return
    stored = read_json(place.out / "model.json")
    values = sum(p.numel() for p in net.parameters())
    shape = "x".join(map(str, dataset.train.images.shape[1:]))
    kind, training = stored.get("kind", "a model"), recipe.training.lasting(per_epoch)
    epochs = "1 epoch" if training.epochs == 1 else f"{training.epochs} epochs"
    words = (
        f"training {kind} ({values:,} parameters) on {len(dataset.train):,} images of {shape}, "
        f"{epochs} in batches of {training.batch}, on {place.device}"
    )
    if training.epochs > recipe.training.epochs:
        words += f"; so many for {training.least_steps} steps (--epochs N sets another number)"
    place.tell(words)
    if recipe.task == "teach" and recipe.data.get("kind") == "imagefolder" and _grey(dataset):
        place.tell("its images are grey: --data.channels 1 keeps one channel instead of three")
    seen = set(dataset.test.labels.unique().tolist())
    unseen = [name for label, name in enumerate(dataset.classes) if label not in seen]
    if unseen:
        more = f" and {len(unseen) - NAMED} more" if len(unseen) > NAMED else ""
        named = ", ".join(unseen[:NAMED]) + more
        place.tell(f"no test image is of {named}: accuracy says nothing about it")


def _grey(dataset: Dataset) -> bool:
    """Whether the first training images have three channels that are the same."""
    few = dataset.train.images[:FEW]
    return dataset.channels > 1 and bool((few == few[:, :1]).all())


def doubt(teacher: Mapping[str, Any], dataset: Dataset, place: Place, who: str = "teacher") -> None:
    """Says so where a teacher, or another ANN, hardly answers better than one who guesses."""
    if teacher["method"] == ANN:
        longer = "train it longer" if who == "teacher" else "train it longer by --ann.epochs"
        _guessing(teacher["accuracy"], "test", dataset, place, f"the {who}", longer)


def untaught(teacher: Loaded, dataset: Dataset, place: Place) -> None:
    """Says so, before its student trains, where a teacher that is no run hardly knows the data.

    That of a run was measured when it was trained, and what its data had other is told by name.
    """
    run = teacher.recipe.task == "teach"
    if run or teacher.kind != ANN or dataset.frames is not None:
        return
    name, part = "validation", dataset.validation
    if part is None:
        name, part = "training", dataset.train.at(torch.arange(min(len(dataset.train), LOOKED_AT)))
    value = accuracy(teacher.net, evaluation(part, dataset, place.device))
    fix = "give its trained weights by --weights FILE"
    kind = (teacher.recipe.teacher or {}).get("kind")
    _guessing(value, name, dataset, place, f"the teacher {kind}", fix)


def _guessing(value: float, part: str, dataset: Dataset, place: Place, who: str, fix: str) -> None:
    """Says so where an accuracy on some part is near to that of one who guesses."""
    chance = 1 / len(dataset.classes)
    if value < HARDLY * chance and place.writes:
        place.tell(
            f"{who} answers {value:.1%} of the {part} images rightly, where "
            f"guessing among {len(dataset.classes)} classes answers {chance:.1%}: {fix}"
        )


def worsened(
    rows: Sequence[Mapping[str, Any]], recipe: Recipe, dataset: Dataset, place: Place
) -> None:
    """Says so where training has made the converted network worse, beyond two standard errors."""
    at = {row["method"]: row["accuracy"] for row in rows if row["steps"] == recipe.steps}
    mine, plain = at.get(recipe.method), at.get("convert")
    if recipe.method == "convert" or mine is None or plain is None or not place.writes:
        return
    error = math.sqrt((mine * (1 - mine) + plain * (1 - plain)) / len(dataset.test))
    fresh = recipe.start == "scratch" or (recipe.model is not None and recipe.ann is None)
    if not fresh and mine < plain - 2 * error:
        place.tell(
            f"the student answers {mine:.1%} of the test images rightly, its conversion without "
            f"training {plain:.1%}: take a lower --learning-rate, or train it longer"
        )


def outgrown(rows: Sequence[Mapping[str, Any]], taught: bool, place: Place) -> None:
    """Says so where a student that is taught began as an ANN no worse than its teacher."""
    own, teacher = rows[-1].get("accuracy_ann"), rows[0]
    if not taught or own is None or teacher["method"] != ANN or not place.writes:
        return
    if own >= teacher["accuracy"]:
        place.tell(
            f"the ANN that the student began as answers {own:.1%} of the test images rightly, its "
            f"teacher {teacher['accuracy']:.1%}: there is little to learn from it, and "
            "--method none may do better"
        )


def cramped(student: nn.Module, steps: int, taught: bool, place: Place) -> None:
    """Says so where a student that is taught is too small to fit more than its labels in a step."""
    weights = sum(p.numel() for p in student.parameters())
    if taught and steps == 1 and weights < SMALL and place.writes:
        place.tell(
            f"with {weights:,} weights at T = 1 a student hardly fits its labels, and a teacher "
            "may cost it more than it gives (0.7 points on MNIST): compare with --method none"
        )


def warn(recipe: Recipe, place: Place) -> None:
    """Says so where a student has no spikes, answers at a single T, or cannot begin so late."""
    if not place.writes or recipe.method == "qann":
        return
    if not spiking(recipe):
        need = max(recipe.steps - 1, 1)
        place.tell(
            "this student has no spikes: `quantised` trains it with the levels that T steps can "
            f"count, and so it answers; --neuron.delay {need} makes it spike as it was trained"
        )
    elif single(recipe):
        place.tell(
            f"its layers begin late: it is trained to answer at T = {recipe.steps}, and at fewer "
            "steps it is another network; --encode mixed trains all of them"
        )
    delay, most = recipe.neuron.get("delay", 0), recipe.steps - 1
    if delay > most:
        place.tell(f"--neuron.delay {delay} at T = {recipe.steps} is a delay of {most}, T - 1")


def unconverted(model: nn.Module, place: Place) -> None:
    """Says so before an ANN is trained of which no student can be made."""
    why = reason(model) if place.writes else None
    if why is not None:
        place.tell(f"it can teach students of other architectures (--model), not its own: {why}")


def unmatched(distiller: Distiller, place: Place) -> None:
    """Says so where a loss on features is left out, as no stages match."""
    idle = [name for name, term in distiller.terms.items() if getattr(term, "on", None) == ANY]
    if place.writes and idle and not distiller.pairs:
        place.tell(
            f"no stage of the student matches one of the teacher's, so {', '.join(idle)} counts "
            f"nothing; --terms.{idle[0]}.on names places, `student=teacher`"
        )


def begin_anew(place: Place, best: Path) -> None:
    """Training from its first epoch; said where a run that had come further lost its checkpoint."""
    best.unlink(missing_ok=True)
    metrics = place.out / "metrics.jsonl"
    if place.resume and metrics.exists():
        where = place.out / CHECKPOINT
        place.tell(f"there is no checkpoint in {where} any more: training begins from its start")
