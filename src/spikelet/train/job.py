"""Whole runs: from a recipe to a folder with weights, card and results."""

from __future__ import annotations

import copy
import resource
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from torch import nn

from spikelet.checkpoint import load_weights, save_weights
from spikelet.data import Batches, Dataset, Split
from spikelet.distill import Distiller
from spikelet.encode import Direct
from spikelet.measure import accuracy, accuracy_over_steps, health, mean_rates
from spikelet.processes import alike, first
from spikelet.recipe import DATA, EXECUTES, Recipe, build
from spikelet.train.cost import costs
from spikelet.train.crossed import paired, sees
from spikelet.train.fit import fit
from spikelet.train.load import (
    ANN,
    MODEL_FILE,
    TEACHER_FILE,
    Loaded,
    architecture,
    assemble,
    describe,
)
from spikelet.train.place import CHECKPOINT, Place, finished, opened, place_of
from spikelet.train.prepare import (
    bind,
    build_terms,
    calibration,
    estimated,
    make_student,
    placed,
    teacher_of,
    training_batches,
)
from spikelet.train.rows import (
    GIVEN,
    control_rows,
    evaluation,
    learning,
    row,
    student_rows,
    teacher_accuracy,
)
from spikelet.train.run import SCHEMA, card, digest, identity, read_json, write_json
from spikelet.train.running import encoder, runner, spiking
from spikelet.train.stored import DESCRIPTIONS, RESULTS_FILE, stored_accuracy

HEALTH_IMAGES = 250
HARDLY = 1.5  # times chance: a teacher below it has nothing to teach
BEST_FILE = "selected.safetensors"


def load_data(recipe: Recipe) -> Dataset:
    """The data set of a recipe."""
    return build("data", recipe.data, DATA)


def teach(
    recipe: Recipe,
    out: Path | str,
    *,
    resume: bool = False,
    console: Console | None = None,
    device: str | None = None,
    dataset: Dataset | None = None,
) -> dict[str, Any]:
    """Trains an ANN classifier and measures it on the test part: `{"run", "rows"}`.

    A finished run that is resumed gives its results again.
    """
    place = place_of(out, resume, device, console)
    done = finished(place)
    if done is not None:
        return done
    dataset = load_data(recipe) if dataset is None else dataset
    torch.manual_seed(recipe.seed)
    description = describe(recipe.model, dataset, recipe.seed)
    model = placed(assemble(description), place.device)
    distiller = Distiller(
        model,
        terms=build_terms(recipe),
        execute=build("execute", recipe.execute, EXECUTES),
        encode=Direct(1),
        example=calibration(dataset, 2, recipe.seed, place.device),
    )

    def score(split: Split) -> float:
        return accuracy(model, evaluation(split, dataset, place.device))

    with opened(recipe, place, dataset):
        if place.writes:
            write_json(place.out / "model.json", architecture(description))
        selected = _train(recipe, place, dataset, distiller, score, None)
        value = score(dataset.test)
        rows = [row(ANN, None, value, recipe.seed, kind="ann", **selected)]
        _doubt(rows[0], dataset, place)
        return _close(recipe, place, dataset, model, rows, None)


def distill(
    recipe: Recipe,
    out: Path | str,
    *,
    resume: bool = False,
    console: Console | None = None,
    device: str | None = None,
    dataset: Dataset | None = None,
    teacher: Loaded | None = None,
    controls: bool = True,
) -> dict[str, Any]:
    """Distils a spiking student from a trained classifier and measures both: `{"run", "rows"}`.

    Rows hold the teacher, the untrained conversion calibrated for each T, and the student at
    T = 1 ... steps from one run; without `controls` the student alone. With `joint` the teacher's
    row is that of the given one; `accuracy_teacher` in the last row is what it became.

    Raises:
        UserError: if teacher and data have different classes, or anything in the recipe is wrong.
    """
    place = place_of(out, resume, device, console)
    done = finished(place)
    if done is not None:
        return done
    dataset = load_data(recipe) if dataset is None else dataset
    teacher = teacher_of(recipe, place.out, dataset) if teacher is None else teacher
    torch.manual_seed(recipe.seed)
    images = calibration(dataset, recipe.calibrate, recipe.seed, place.device)
    taught = placed(copy.deepcopy(teacher.net) if recipe.joint else teacher.net, place.device)
    student, description = make_student(recipe, dataset, teacher, images)
    placed(student, place.device)
    shown = paired(teacher, dataset, place.device)
    distiller = bind(recipe, dataset, student, taught, images, shown)
    encode, last = encoder(recipe, dataset.mean, dataset.std), recipe.steps

    def score(split: Split) -> float:
        batches = evaluation(split, dataset, place.device)
        found = accuracy_over_steps(student, batches, [last], runner(recipe), encode)
        return found[last]

    def layers() -> Mapping[str, Mapping[str, float]]:
        return health(student, images[:HEALTH_IMAGES], last, encode)

    with opened(recipe, place, dataset, teacher.net):
        if place.writes:
            write_json(place.out / "model.json", description)
            write_json(place.out / "teacher.json", teacher.description)
        more: dict[str, Any] = {}
        if recipe.method != "convert":
            estimate = estimated(recipe, dataset, student)
            more = _train(recipe, place, dataset, distiller, score, layers, estimate)
            if teacher.kind == ANN and sees(teacher, dataset):
                batches = training_batches(recipe, dataset, place.device)
                more |= costs(distiller, taught, batches, recipe.training, more["seconds"])
        if place.writes:
            save_weights(place.out / TEACHER_FILE, taught)
        if learning(recipe):
            value = teacher_accuracy(recipe, dataset, taught, teacher.kind, place.device)
            more["accuracy_teacher"] = value
        rates = mean_rates(layers() if spiking(recipe) else {})
        more |= {"rate": rates["rate_by_layer"], **rates}
        steps = list(range(1, recipe.steps + 1))
        note = GIVEN if learning(recipe) else None
        rows = control_rows(recipe, dataset, teacher, steps, images, note) if controls else []
        if recipe.method != "convert" or not controls:
            rows += student_rows(recipe, dataset, student, steps, place.device)
        rows[-1].update(more)
        _doubt(rows[0], dataset, place)
        lineage = dict(teacher.description)
        if place.writes:
            lineage["sha256"] = digest(place.out / TEACHER_FILE)
        return _close(recipe, place, dataset, student, rows, lineage)


def _train(
    recipe: Recipe,
    place: Place,
    dataset: Dataset,
    distiller: Distiller,
    score: Callable[[Split], float],
    layers: Any,
    estimate: Callable[[Batches], None] = lambda _: None,
) -> dict[str, Any]:
    """Trains; returns what that cost, and the test accuracy where validation was best."""
    batches = training_batches(recipe, dataset, place.device)
    held, best = dataset.validation, place.out / BEST_FILE

    def evaluate() -> dict[str, float]:
        estimate(batches)
        if held is None:
            return {}
        value = score(held)
        if place.writes and value > stored_accuracy(best):
            save_weights(best, distiller.student, {"accuracy": repr(value)})
        return {"accuracy": value}

    resumable = place.resumable
    if not resumable and place.writes:
        _begin_anew(place, best)
    _announce(recipe, place, dataset, distiller.student)
    if place.device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(place.device)
    history = fit(
        distiller,
        batches,
        training=recipe.training,
        seed=recipe.seed,
        run=place.out,
        evaluate=evaluate,
        health=layers,
        resume=resumable,
        console=place.console,
    )
    cost = {"seconds": sum(h["seconds"] for h in history), "peak_mib": _peak(place.device)}
    scores = [h["validation"]["accuracy"] for h in history] if held is not None else []
    if not scores:
        return cost
    found = {**cost, "accuracy_validation": scores[-1]}
    if first(stored_accuracy(best) != max(scores)):  # those weights were lost
        return found
    last = {k: v.detach().clone() for k, v in distiller.student.state_dict().items()}
    if place.writes:
        distiller.student.load_state_dict(load_weights(best))
    alike(distiller.student)
    value = score(dataset.test)
    distiller.student.load_state_dict(last)
    chosen = {"accuracy_selected": value, "epoch_selected": 1 + scores.index(max(scores))}
    return {**found, **chosen}


def _announce(recipe: Recipe, place: Place, dataset: Dataset, net: nn.Module) -> None:
    """Says what is trained on what, before the first batch that may be slow."""
    if place.console is None or not place.writes:
        return
    stored = read_json(place.out / "model.json")
    values = sum(p.numel() for p in net.parameters())
    shape = "x".join(map(str, dataset.train.images.shape[1:]))
    kind, training = stored.get("kind", "a model"), recipe.training
    training = training.lasting(max(len(dataset.train) // training.batch, 1))
    words = (
        f"training {kind} ({values:,} parameters) on {len(dataset.train):,} images of {shape}, "
        f"{training.epochs} epochs in batches of {training.batch}, on {place.device}"
    )
    if training.epochs > recipe.training.epochs:
        words += f"; so many for {training.least_steps} steps (--epochs N sets another number)"
    place.console.print(words, markup=False, highlight=False, soft_wrap=True)


def _peak(device: torch.device) -> float:
    """Largest memory so far in MiB: torch's own on a GPU, else the whole process's."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**20
    unit = 2**20 if sys.platform == "darwin" else 2**10
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / unit


def _doubt(teacher: Mapping[str, Any], dataset: Dataset, place: Place) -> None:
    """Says so where a teacher hardly answers better than one who guesses."""
    chance = 1 / len(dataset.classes)
    if teacher["method"] == ANN and teacher["accuracy"] < HARDLY * chance and place.writes:
        place.tell(
            f"the teacher answers {teacher['accuracy']:.1%} of the test images rightly, where "
            f"guessing among {len(dataset.classes)} classes answers {chance:.1%}: train it longer"
        )


def _begin_anew(place: Place, best: Path) -> None:
    """Training from its first epoch; said where a run that had come further lost its checkpoint."""
    best.unlink(missing_ok=True)
    metrics = place.out / "metrics.jsonl"
    if place.resume and metrics.exists():
        where = place.out / CHECKPOINT
        place.tell(f"there is no checkpoint in {where} any more: training begins from its start")


def _close(
    recipe: Recipe,
    place: Place,
    dataset: Dataset,
    net: nn.Module,
    rows: list[dict[str, Any]],
    lineage: Mapping[str, Any] | None,
) -> dict[str, Any]:
    results = {"run": str(place.out), "rows": rows}
    if not place.writes:
        return results
    save_weights(place.out / MODEL_FILE, net)
    made = {**card(recipe, dataset, lineage), "sha256": digest(place.out / MODEL_FILE)}
    write_json(place.out / "card.json", made)
    files = [name for name in DESCRIPTIONS if (place.out / name).exists()]
    sums = {name: digest(place.out / name) for name in files} | identity(recipe, {}, None)
    write_json(place.out / RESULTS_FILE, {"schema": SCHEMA, **results, "sums": sums})
    return results
