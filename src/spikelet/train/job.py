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
from spikelet.heap import forget_peak
from spikelet.measure import accuracy, accuracy_over_steps, health, mean_rates
from spikelet.processes import alike, first, meet
from spikelet.recipe import Recipe, Training
from spikelet.train.cost import costs
from spikelet.train.crossed import beside, paired, sees, summed
from spikelet.train.examples import store_examples
from spikelet.train.fit import fit
from spikelet.train.known import another
from spikelet.train.load import (
    ANN,
    MODEL_FILE,
    TEACHER_FILE,
    Loaded,
    architecture,
    assemble,
    describe,
    load,
    made,
)
from spikelet.train.place import Place, copy_run, finished, opened, place_of, place_within
from spikelet.train.prepare import (
    ann_recipe,
    bind,
    calibration,
    estimated,
    make_student,
    placed,
    require_ann,
    require_logits,
    teacher_of,
    training_batches,
)
from spikelet.train.rows import (
    GIVEN,
    added,
    apart,
    control_rows,
    evaluation,
    learning,
    row,
    student_rows,
    teacher_accuracy,
)
from spikelet.train.run import SCHEMA, card, digest, identity, write_json
from spikelet.train.running import by_levels, encoder, spiking, student_measurer
from spikelet.train.stored import DESCRIPTIONS, RESULTS_FILE, stored_accuracy
from spikelet.train.told import (
    announce,
    begin_anew,
    cramped,
    doubt,
    outgrown,
    unconverted,
    unmatched,
    untaught,
    warn,
    worsened,
)

HEALTH_IMAGES = 250
BEST_FILE = "selected.safetensors"


def load_data(recipe: Recipe) -> Dataset:
    """The data set of a recipe."""
    return made(recipe.data)


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
    teacher = None if recipe.teacher is None else teacher_of(recipe, place.out, dataset)
    return _ann(recipe, place, dataset, teacher)


def _ann(recipe: Recipe, place: Place, dataset: Dataset, teacher: Loaded | None) -> dict[str, Any]:
    """An ANN's run, on labels alone or under a teacher."""
    torch.manual_seed(recipe.seed)
    description = describe(recipe.model, dataset, recipe.seed)
    model = placed(assemble(description), place.device)
    images = calibration(dataset, 2, recipe.seed, place.device)
    require_logits(model, images)
    taught = shown = None
    if teacher is not None:
        taught = placed(teacher.net, place.device)
        shown = paired(teacher, dataset, place.device)
    distiller = bind(recipe, dataset, model, taught, images, shown)

    def score(split: Split) -> float:
        return accuracy(model, evaluation(split, dataset, place.device))

    with opened(recipe, place, summed(dataset, shown), taught):
        if place.writes:
            write_json(place.out / "model.json", architecture(description))
        unconverted(model, place)
        cost = _train(recipe, place, dataset, distiller, score, None)
        if teacher is not None:
            cost |= _costs(recipe, place, dataset, distiller, teacher, cost["seconds"])
        value = score(dataset.test)
        rows = [row(ANN, None, value, recipe.seed, kind="ann", **cost)]
        who = "teacher" if recipe.teacher is None else "student's ANN"
        doubt(rows[0], dataset, place, who)
        lineage = None if teacher is None else teacher.description
        return _close(recipe, place, dataset, model, rows, lineage)


def _costs(
    recipe: Recipe,
    place: Place,
    dataset: Dataset,
    distiller: Distiller,
    teacher: Loaded,
    seconds: float,
) -> dict[str, float | None]:
    """What a training cost in units of its teacher; nothing where that one sees other images."""
    if teacher.kind != ANN or not sees(teacher, dataset):
        return {}
    batches = training_batches(recipe, dataset, place.device)
    net = distiller.teacher if distiller.joint is not None else teacher.net
    assert net is not None
    return costs(distiller, net, batches, recipe.training, seconds)


def _given_ann(recipe: Recipe, place: Place) -> Path | None:
    """The run of a trained ANN that a recipe names, as long as it is not copied yet."""
    copied = (place_within(place).out / RESULTS_FILE).exists()
    return Path(recipe.ann["run"]) if isinstance(recipe.ann, dict) and not copied else None


def _own_ann(
    recipe: Recipe, place: Place, dataset: Dataset, teacher: Loaded
) -> tuple[nn.Module, dict[str, Any]]:
    """The ANN that a student of another architecture begins as, and the row of its own run.

    Of one that was trained before, which is copied, the row tells the accuracy alone: it cost
    nothing here.
    """
    within, given = place_within(place), _given_ann(recipe, place)
    if given is not None and place.writes:
        copy_run(given, within.out)
    meet()  # the first process may have copied it
    done = finished(within)
    if done is None:
        mine = ann_recipe(recipe, teacher)
        if place.writes:
            place.tell("first the ANN that the student begins as (--start scratch leaves it out)")
        done = _ann(mine, within, dataset, teacher)
    meet()  # another process may have written it
    own = done["rows"][0]
    told = own if isinstance(recipe.ann, Training) else {"accuracy": own["accuracy"]}
    return load(within.out).net, told


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
    row is that of the given one; `accuracy_teacher` in the last row is what it became. A student
    of another architecture begins as an ANN, a run in `out`/ann (`Recipe.ann`): the conversions are
    its own, the price is that of both, and `accuracy_ann` in the last row is how it answers.

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
    given = _given_ann(recipe, place)
    if given is not None:
        require_ann(load(given), recipe, dataset)
    few = images if recipe.ann is None else images[:2]  # to see that it can be made and bound
    student, description = make_student(recipe, dataset, teacher, few)
    placed(student, place.device)
    shown = paired(teacher, dataset, place.device)
    distiller = bind(recipe, dataset, student, taught, images, shown)
    encode, last = encoder(recipe, dataset.mean, dataset.std), recipe.steps

    def score(split: Split) -> float:
        batches = evaluation(split, dataset, place.device)
        known = not by_levels(recipe)
        way = student_measurer(recipe, student, encode(images[:1], 1)[0], last, len(split), known)
        return accuracy_over_steps(student, batches, [last], way, encode)[last]

    def layers() -> Mapping[str, Mapping[str, float]]:
        return health(student, images[:HEALTH_IMAGES], last, encode)

    with opened(recipe, place, summed(dataset, shown), teacher.net):
        source: nn.Module | None = None
        begun: dict[str, Any] = {}
        if recipe.ann is not None:
            source, begun = _own_ann(recipe, place, dataset, teacher)
            torch.manual_seed(recipe.seed)
            student, description = make_student(recipe, dataset, teacher, images, source)
            placed(student, place.device)
            distiller = bind(recipe, dataset, student, taught, images, shown)
        if place.writes:
            write_json(place.out / "model.json", description)
            write_json(place.out / "teacher.json", teacher.description)
        more: dict[str, Any] = {}
        if recipe.method != "convert":
            warn(recipe, place)
            untaught(teacher, dataset, place)
            unmatched(distiller, place)
            for told in another(teacher, dataset) if shown is None and place.writes else []:
                place.tell(told)
            estimate = estimated(recipe, dataset, student)
            firing = layers if spiking(recipe) else None
            more = _train(recipe, place, dataset, distiller, score, firing, estimate)
            more |= _costs(recipe, place, dataset, distiller, teacher, more["seconds"])
        if begun:
            more = added(more, begun)
        if place.writes:
            save_weights(place.out / TEACHER_FILE, taught)
        if learning(recipe):
            value = teacher_accuracy(recipe, dataset, taught, teacher.kind, place.device)
            more["accuracy_teacher"] = value
        if place.writes:
            place.tell(f"measuring on {len(dataset.test):,} test images")
        rates = mean_rates(layers() if spiking(recipe) else {})
        more |= {"rate": rates["rate_by_layer"], **rates}
        steps = list(range(1, recipe.steps + 1))
        note = GIVEN if learning(recipe) else None
        rows = []
        if controls:
            plain = apart(recipe.steps)
            rows = control_rows(recipe, dataset, teacher, plain, images, note, source)
        if recipe.method != "convert" or not controls:
            rows += student_rows(recipe, dataset, student, steps, images)
        rows[-1].update(more)
        doubt(rows[0], dataset, place)
        worsened(rows, recipe, dataset, place)
        guided = distiller.teacher is not None
        outgrown(rows, guided, place)
        cramped(student, recipe.steps, guided, place)
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
        begin_anew(place, best)
    announce(recipe, place, dataset, distiller.student, len(batches))
    if place.device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(place.device)
    else:
        forget_peak()
    history = fit(
        distiller,
        beside(distiller, batches),
        training=recipe.training,
        seed=recipe.seed,
        run=place.out,
        evaluate=evaluate,
        health=layers,
        resume=resumable,
        console=place.console,
    )
    seconds = sum(h["seconds"] - h.get("seconds_compiling", 0.0) for h in history)
    cost = {"seconds": seconds, "peak_mib": _peak(place.device)}
    judged = {h["epoch"]: h["validation"]["accuracy"] for h in history if h["validation"]}
    if not judged:
        return cost
    scores = list(judged.values())
    found = {**cost, "accuracy_validation": scores[-1]}
    if first(stored_accuracy(best) != max(scores)):  # those weights were lost
        return found
    last = {k: v.detach().clone() for k, v in distiller.student.state_dict().items()}
    if place.writes:
        distiller.student.load_state_dict(load_weights(best))
    alike(distiller.student)
    value = score(dataset.test)
    distiller.student.load_state_dict(last)
    chosen = {"accuracy_selected": value, "epoch_selected": max(judged, key=judged.__getitem__)}
    return {**found, **chosen}


def _peak(device: torch.device) -> float:
    """Largest memory since training began in MiB: torch's own on a GPU, else the whole process's.

    Where the system cannot count it anew (macOS), it is that of the process's whole life.
    """
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**20
    unit = 2**20 if sys.platform == "darwin" else 2**10
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / unit


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
    store_examples(place.out, dataset)
    files = [name for name in DESCRIPTIONS if (place.out / name).exists()]
    sums = {name: digest(place.out / name) for name in files} | identity(recipe, {}, None)
    write_json(place.out / RESULTS_FILE, {"schema": SCHEMA, **results, "sums": sums})
    return results
