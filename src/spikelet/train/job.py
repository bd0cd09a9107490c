"""Whole runs: from a recipe to a folder with weights, card and results."""

from __future__ import annotations

import copy
import resource
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from torch import nn

from spikelet.checkpoint import load_weights, save_weights
from spikelet.data import Batches, Dataset, Split
from spikelet.distill import Distiller
from spikelet.encode import Direct
from spikelet.errors import UserError
from spikelet.heap import keep_freed_memory
from spikelet.measure import accuracy, accuracy_over_steps, health
from spikelet.recipe import DATA, EXECUTES, Recipe, build
from spikelet.train.cost import costs
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
from spikelet.train.run import card, digest, env, read_json, write_json, write_recipe
from spikelet.train.running import encoder, runner, spiking
from spikelet.train.stored import stored_accuracy, stored_rows

HEALTH_IMAGES = 250
BEST_FILE = "selected.safetensors"


def load_data(recipe: Recipe) -> Dataset:
    """The data set of a recipe."""
    return build("data", recipe.data, DATA)


@dataclass(frozen=True)
class Place:
    """Where a run happens: its folder, device and console."""

    out: Path
    device: torch.device
    console: Console | None
    resume: bool


def _place(out: Path | str, resume: bool, device: str | None, console: Console | None) -> Place:
    name = device or ("cuda" if torch.cuda.is_available() else "cpu")
    if name == "cpu":
        keep_freed_memory()
    return Place(Path(out), torch.device(name), console, resume)


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
    place = _place(out, resume, device, console)
    done = _finished(place)
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
    _open(recipe, place, dataset)
    write_json(place.out / "model.json", architecture(description))

    def score(split: Split) -> float:
        return accuracy(model, evaluation(split, dataset, place.device))

    selected = _train(recipe, place, dataset, distiller, score, None)
    value = score(dataset.test)
    rows = [row(ANN, None, value, recipe.seed, kind="ann", **selected)]
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
    place = _place(out, resume, device, console)
    done = _finished(place)
    if done is not None:
        return done
    dataset = load_data(recipe) if dataset is None else dataset
    teacher = teacher_of(recipe, place.out, dataset) if teacher is None else teacher
    torch.manual_seed(recipe.seed)
    images = calibration(dataset, recipe.calibrate, recipe.seed, place.device)
    taught = placed(copy.deepcopy(teacher.net) if recipe.joint else teacher.net, place.device)
    student, description = make_student(recipe, dataset, teacher, images)
    placed(student, place.device)
    distiller = bind(recipe, dataset, student, taught, images)
    _open(recipe, place, dataset)
    write_json(place.out / "model.json", description)
    write_json(place.out / "teacher.json", teacher.description)

    encode, last = encoder(recipe, dataset.mean, dataset.std), recipe.steps

    def score(split: Split) -> float:
        batches = evaluation(split, dataset, place.device)
        found = accuracy_over_steps(student, batches, [last], runner(recipe), encode)
        return found[last]

    def layers() -> Mapping[str, Mapping[str, float]]:
        return health(student, images[:HEALTH_IMAGES], last, encode)

    more: dict[str, Any] = {}
    if recipe.method != "convert":
        estimate = estimated(recipe, dataset, student)
        more = _train(recipe, place, dataset, distiller, score, layers, estimate)
        if teacher.kind == ANN:
            batches = training_batches(recipe, dataset, place.device)
            more |= costs(distiller, taught, batches, recipe.training, more["seconds"])
    save_weights(place.out / TEACHER_FILE, taught)
    if learning(recipe):
        value = teacher_accuracy(recipe, dataset, taught, teacher.kind, place.device)
        more["accuracy_teacher"] = value
    more["rate"] = _mean_rate(layers()) if spiking(recipe) else None
    steps = list(range(1, recipe.steps + 1))
    note = GIVEN if learning(recipe) else None
    rows = control_rows(recipe, dataset, teacher, steps, images, note) if controls else []
    if recipe.method != "convert" or not controls:
        rows += student_rows(recipe, dataset, student, steps, place.device)
    rows[-1].update(more)
    lineage = {**teacher.description, "sha256": digest(place.out / TEACHER_FILE)}
    return _close(recipe, place, dataset, student, rows, lineage)


def _finished(place: Place) -> dict[str, Any] | None:
    results = place.out / "results.json"
    if results.exists():
        if place.resume:
            rows = stored_rows(place.out, "delete it and resume the run to measure again")
            return {**read_json(results), "rows": rows}
        raise UserError(f"out = {place.out}", "it holds a finished run", "name another folder")
    if (place.out / "recipe.json").exists() and not place.resume:
        raise UserError(
            f"out = {place.out}", "it holds an unfinished run", "resume it or name another folder"
        )
    return None


def _open(recipe: Recipe, place: Place, dataset: Dataset) -> None:
    try:
        place.out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(
            f"out = {place.out}", f"it cannot be made ({error.strerror})", "name another folder"
        ) from error
    write_recipe(place.out, recipe)
    write_json(place.out / "env.json", env(place.device, dataset.hashes))


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
        if value > stored_accuracy(best):
            save_weights(best, distiller.student, {"accuracy": repr(value)})
        return {"accuracy": value}

    resumable = place.resume and (place.out / "checkpoint" / "state.json").exists()
    if not resumable:
        _begin_anew(place, best)
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
    if stored_accuracy(best) != max(scores):  # those weights were lost
        return found
    last = {k: v.detach().clone() for k, v in distiller.student.state_dict().items()}
    distiller.student.load_state_dict(load_weights(best))
    value = score(dataset.test)
    distiller.student.load_state_dict(last)
    chosen = {"accuracy_selected": value, "epoch_selected": 1 + scores.index(max(scores))}
    return {**found, **chosen}


def _mean_rate(layers: Mapping[str, Mapping[str, float]]) -> float:
    return sum(layer["rate"] for layer in layers.values()) / max(len(layers), 1)


def _peak(device: torch.device) -> float:
    """Largest memory so far in MiB: torch's own on a GPU, else the whole process's."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**20
    unit = 2**20 if sys.platform == "darwin" else 2**10
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / unit


def _begin_anew(place: Place, best: Path) -> None:
    """Training from its first epoch; said where a run that had come further lost its checkpoint."""
    best.unlink(missing_ok=True)
    metrics = place.out / "metrics.jsonl"
    if place.resume and place.console is not None and metrics.exists():
        where = place.out / "checkpoint"
        words = f"there is no checkpoint in {where} any more: training begins from its start"
        place.console.print(words, markup=False, highlight=False, soft_wrap=True)


def _close(
    recipe: Recipe,
    place: Place,
    dataset: Dataset,
    net: nn.Module,
    rows: list[dict[str, Any]],
    lineage: Mapping[str, Any] | None,
) -> dict[str, Any]:
    save_weights(place.out / MODEL_FILE, net)
    made = {**card(recipe, dataset, lineage), "sha256": digest(place.out / MODEL_FILE)}
    write_json(place.out / "card.json", made)
    results = {"run": str(place.out), "rows": rows}
    write_json(place.out / "results.json", results)
    return results
