"""Whole runs: from a recipe to a folder with weights, card and results."""

from __future__ import annotations

import functools
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from torch import Tensor, nn

from spikelet.checkpoint import load_metadata, load_weights, save_weights
from spikelet.convert import convert, settle_norms
from spikelet.data import Batches, Dataset, Split, normalise
from spikelet.distill import Distiller, freeze
from spikelet.encode import Direct
from spikelet.errors import UserError
from spikelet.execute import Execute, bptt, rate
from spikelet.measure import accuracy, accuracy_over_steps, health
from spikelet.norm import freeze_norms
from spikelet.recipe import (
    AUGMENTS,
    DATA,
    EXECUTES,
    NEURONS,
    TERMS,
    Recipe,
    build,
)
from spikelet.terms import Term
from spikelet.train.fit import fit
from spikelet.train.load import (
    ANN,
    MODEL_FILE,
    TEACHER_FILE,
    Loaded,
    architecture,
    assemble,
    describe,
    load,
)
from spikelet.train.run import card, digest, env, read_json, write_json, write_recipe

EVALUATION_BATCH = 250
HEALTH_IMAGES = 250
ZOO_CLASSES = 1000
BEST_FILE = "selected.safetensors"


def load_data(recipe: Recipe) -> Dataset:
    """The data set of a recipe."""
    return build("data", recipe.data, DATA)


def evaluation(split: Split, dataset: Dataset, device: torch.device) -> Iterator[Any]:
    """Batches (images, labels) of a split in its own order."""
    batches = Batches(split, dataset, EVALUATION_BATCH, shuffle=False, device=device)
    return batches.epoch(0)


def calibration(dataset: Dataset, count: int, seed: int, device: torch.device) -> Tensor:
    """Normalised training images "B C H W" drawn by the seed."""
    generator = torch.Generator().manual_seed(seed)
    chosen = torch.randperm(len(dataset.train), generator=generator)[: max(count, 2)]
    return normalise(dataset.train.images[chosen], dataset).to(device)


def row(
    method: str, steps: int | None, value: float, seed: int | None, **more: Any
) -> dict[str, Any]:
    """One line of a result table, of a single run on the test part."""
    common = {"method": method, "steps": steps, "accuracy": value, "std": None, "n": 1}
    return {**common, "seed": seed, "split": "test", **more}


@dataclass(frozen=True)
class Place:
    """Where a run happens: its folder, device and console."""

    out: Path
    device: torch.device
    console: Console | None
    resume: bool


def _place(out: Path | str, resume: bool, device: str | None, console: Console | None) -> Place:
    name = device or ("cuda" if torch.cuda.is_available() else "cpu")
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
    description = describe(recipe.model, dataset, recipe.seed)
    model = assemble(description).to(place.device)
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
    rows = [row(ANN, None, score(dataset.test), recipe.seed, **selected)]
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
) -> dict[str, Any]:
    """Distils a spiking student from a trained ANN and measures both: `{"run", "rows"}`.

    Rows hold the teacher, the untrained conversion calibrated for each T, and the student at
    T = 1 ... steps from one run.

    Raises:
        UserError: if teacher and data have different classes, or anything in the recipe is wrong.
    """
    place = _place(out, resume, device, console)
    done = _finished(place)
    if done is not None:
        return done
    dataset = load_data(recipe) if dataset is None else dataset
    teacher = teacher_of(recipe, place, dataset) if teacher is None else teacher
    images = calibration(dataset, recipe.calibrate, recipe.seed, place.device)
    ann = teacher.net.to(place.device)
    student, description = make_student(recipe, dataset, teacher, images)
    student.to(place.device)
    distiller = bind(recipe, student, ann, images)
    _open(recipe, place, dataset)
    write_json(place.out / "model.json", description)
    write_json(place.out / "teacher.json", teacher.description)
    save_weights(place.out / TEACHER_FILE, ann)
    steps = list(range(1, recipe.steps + 1))

    def score(split: Split) -> float:
        batches = evaluation(split, dataset, place.device)
        return accuracy_over_steps(student, batches, steps[-1:], runner(recipe))[steps[-1]]

    def layers() -> Mapping[str, Mapping[str, float]]:
        return health(student, images[:HEALTH_IMAGES], recipe.steps)

    selected = {}
    if recipe.method != "convert":
        selected = _train(recipe, place, dataset, distiller, score, layers)
    rows = compare(recipe, dataset, ann, student, steps, images)
    rows[-1].update(selected)
    lineage = {**teacher.description, "sha256": digest(place.out / TEACHER_FILE)}
    return _close(recipe, place, dataset, student, rows, lineage)


def teacher_of(recipe: Recipe, place: Place, dataset: Dataset) -> Loaded:
    """The teacher that a recipe names, a run folder or a model with weights."""
    spec = recipe.teacher
    if spec is None:
        raise UserError("teacher = None", "a student needs a teacher", "name a run or a model")
    if "run" in spec:
        loaded = load(spec["run"])
        if loaded.kind != ANN:
            raise UserError(
                f"teacher = {spec['run']}", "it holds a student", "name the run of an ANN"
            )
    else:
        description = describe(spec, dataset, recipe.seed)
        own = ":" in spec["kind"] and not spec["kind"].startswith(("timm:", "torchvision:"))
        if description.get("pretrained") and len(dataset.classes) != ZOO_CLASSES:
            raise UserError(
                f"teacher = {spec['kind']}",
                f"its published weights know {ZOO_CLASSES} classes, the data {dataset.name} has "
                f"{len(dataset.classes)}",
                "fine-tune it first with `spikelet teach` and name that run",
            )
        if not own and not description.get("weights") and not description.get("pretrained"):
            raise UserError(
                f"teacher = {spec['kind']}", "it has no weights", "add weights or name a run"
            )
        net = assemble(description)
        loaded = Loaded(recipe, net.eval(), ANN, architecture(description), place.out)
    classes = loaded.description["classes"]
    if classes != len(dataset.classes):
        raise UserError(
            "teacher",
            f"it knows {classes} classes, the data {dataset.name} has {len(dataset.classes)}",
            "use a teacher that was trained on these classes",
        )
    return loaded


def runner(recipe: Recipe) -> Execute:
    """How a student is measured: fused if it was trained so, else unrolled."""
    fused = recipe.execute.get("kind") == "rate" and recipe.execute.get("fuse")
    return functools.partial(rate, fuse=True) if fused else bptt


def make_student(
    recipe: Recipe, dataset: Dataset, teacher: Loaded, images: Tensor
) -> tuple[nn.Module, dict[str, Any]]:
    """The student before training, and what is needed to build its network again.

    It is the converted teacher, or another architecture whose weights start fresh; from scratch
    thresholds are not calibrated.
    """
    neuron = build("neuron", recipe.neuron, NEURONS)
    source, description = teacher.net, dict(teacher.description)
    if recipe.model is not None:
        description = describe(recipe.model, dataset, recipe.seed)
        source = assemble(description).to(images.device)
    elif recipe.start == "scratch":
        source = assemble(description | {"seed": recipe.seed}).to(images.device)
    calibrate = images if recipe.start == "converted" else None
    student = convert(source, neuron, steps=recipe.steps, calibrate=calibrate)
    if recipe.norm_kind == "frozen":
        freeze_norms(student)
    elif recipe.norm_kind == "settled":
        settle_norms(student.eval(), images, recipe.steps)
    return student, description | {"neuron": recipe.neuron}


def build_terms(recipe: Recipe) -> dict[str, Term]:
    """The losses of a recipe, by name."""
    return {name: build(f"terms.{name}", spec, TERMS) for name, spec in recipe.terms.items()}


def bind(recipe: Recipe, student: nn.Module, teacher: nn.Module, images: Tensor) -> Distiller:
    """The distiller of a recipe."""
    terms = build_terms(recipe)
    needed = any(term.taught for term in terms.values())
    return Distiller(
        student,
        teacher if needed else None,
        terms=terms,
        execute=build("execute", recipe.execute, EXECUTES),
        encode=Direct(recipe.steps),
        example=images[:64],
    )


def compare(
    recipe: Recipe,
    dataset: Dataset,
    teacher: nn.Module,
    student: nn.Module,
    steps: list[int],
    images: Tensor,
) -> list[dict[str, Any]]:
    """Rows of the teacher, the conversion calibrated for each T, and the student, on the test."""
    device = images.device
    neuron = functools.partial(build, "neuron", recipe.neuron, NEURONS)

    def batches() -> Iterator[Any]:
        return evaluation(dataset.test, dataset, device)

    rows = [row("teacher", None, accuracy(freeze(teacher), batches()), recipe.seed)]
    for t in steps:
        converted = convert(teacher, neuron(), steps=t, calibrate=images)
        value = accuracy_over_steps(converted, batches(), [t], runner(recipe))[t]
        rows.append(row("convert", t, value, recipe.seed))
    if recipe.method != "convert":
        found = accuracy_over_steps(student, batches(), steps, runner(recipe))
        rows += [row(recipe.method, t, found[t], recipe.seed) for t in steps]
    return rows


def _finished(place: Place) -> dict[str, Any] | None:
    results = place.out / "results.json"
    if results.exists():
        if place.resume:
            return read_json(results)
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
    recipe: Recipe, place: Place, dataset: Dataset, distiller: Distiller, score: Any, layers: Any
) -> dict[str, Any]:
    """Trains; returns the test accuracy at the epoch that validation would have chosen."""
    specs = [dict(spec) for spec in dataset.augment] if recipe.augment is None else recipe.augment
    augment = [build(f"augment.{i}", spec, AUGMENTS) for i, spec in enumerate(specs)]
    batches = Batches(
        dataset.train, dataset, recipe.training.batch, augment, recipe.seed, place.device
    )
    held, best = dataset.validation, place.out / BEST_FILE

    def evaluate() -> dict[str, float]:
        assert held is not None
        value = score(held)
        if value > _best(best):
            save_weights(best, distiller.student, {"accuracy": repr(value)})
        return {"accuracy": value}

    resumable = place.resume and (place.out / "checkpoint").exists()
    torch.manual_seed(recipe.seed)
    history = fit(
        distiller,
        batches,
        training=recipe.training,
        seed=recipe.seed,
        run=place.out,
        evaluate=None if held is None else evaluate,
        health=layers,
        resume=resumable,
        console=place.console,
    )
    if held is None or not best.exists():
        return {}
    last = {k: v.detach().clone() for k, v in distiller.student.state_dict().items()}
    distiller.student.load_state_dict(load_weights(best))
    value = score(dataset.test)
    distiller.student.load_state_dict(last)
    scores = [h["validation"]["accuracy"] for h in history]
    return {"accuracy_selected": value, "epoch_selected": 1 + scores.index(max(scores))}


def _best(path: Path) -> float:
    return float(load_metadata(path)["accuracy"]) if path.exists() else -1.0


def _close(
    recipe: Recipe,
    place: Place,
    dataset: Dataset,
    net: nn.Module,
    rows: list[dict[str, Any]],
    lineage: Mapping[str, Any] | None,
) -> dict[str, Any]:
    save_weights(place.out / MODEL_FILE, net)
    write_json(place.out / "card.json", card(recipe, dataset, lineage))
    results = {"run": str(place.out), "rows": rows}
    write_json(place.out / "results.json", results)
    return results
