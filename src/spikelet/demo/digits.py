"""The demo on scikit-learn's digits: each seed taught, distilled and measured."""

from __future__ import annotations

import contextlib
import dataclasses
import shlex
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from torch import Tensor, nn

from spikelet.convert import convert
from spikelet.data import Batches, Dataset, normalise
from spikelet.demo.outcome import (
    BATCH,
    CLOSER,
    MEASURED,
    METHODS,
    THREADS,
    Outcome,
    Settings,
    data_spec,
    load_digits,
    result_of,
)
from spikelet.demo.present import line, show, write
from spikelet.errors import UserError, unknown
from spikelet.examine import MEASURES, Tell
from spikelet.examine.subject import subject
from spikelet.examine.work import file_of, work
from spikelet.measure import accuracy, accuracy_over_steps, health
from spikelet.neuron import IF
from spikelet.recipe import DITHER, Recipe
from spikelet.recipe.methods import DEFAULT_METHOD, completed, default_recipe
from spikelet.train import Interrupted, read_json, write_json
from spikelet.train.job import calibration, distill, teach
from spikelet.train.load import Loaded, load


def run(
    out: Path | str, seeds: int = 5, console: Console | None = None, **overrides: Any
) -> dict[str, Any]:
    """Teaches, distils and measures on digits for each seed; writes OUT/report.html.

    Runs that OUT holds already are kept, so an interrupted demo continues and more seeds add up.

    Args:
        out: folder for the runs, demo.json and report.html.
        seeds: how many, counted from 0.
        console: where progress and the table go; standard error by default.
        overrides: fields of `Settings` that replace its defaults.

    Returns:
        `rows`, `differences`, `runs` by method, `default`, `run`, `files`, `findings`, `seconds`.

    Raises:
        UserError: for bad settings, or a folder that holds a demo with other settings.
        Interrupted: after Ctrl-C or SIGTERM; the same call continues.
    """
    began, out = time.monotonic(), Path(out)
    console = Console(stderr=True) if console is None else console
    settings = _settings(seeds, overrides)
    _claim(out, settings)
    command = f"spikelet demo --out {shlex.quote(str(out))} --seeds {seeds}"
    outcomes = []
    reused = len(list(out.rglob("results.json")))
    try:
        with _few_threads():
            for seed in range(seeds):
                outcomes.append(_seed(out, seed, settings, console))
                console.print(line(outcomes[-1], seeds), highlight=False, soft_wrap=True)
    except Interrupted as stop:
        raise Interrupted(command, stop.code) from stop
    with console.status("looking closer at seed 0"):
        _look_closer(outcomes[0], settings)
    result = result_of(out, outcomes, settings)
    result["seconds"] = round(time.monotonic() - began, 1)
    result["reused"] = reused
    write(out, result, outcomes, settings, command)
    show(console, result)
    return result


def _look_closer(outcome: Outcome, settings: Settings) -> None:
    """Every measure of the default method's run beside the plain student's, if not there yet.

    Few images keep it short; what fails is missing on the page.
    """
    run, plain = outcome.runs[DEFAULT_METHOD], str(outcome.runs["none"])
    left = [name for name in MEASURES if not file_of(run, name).exists()]
    if not left:
        return
    dataset = load_digits(outcome.seed, settings)
    mine = subject(load(run), dataset, [plain], over=MEASURED)
    for names, images in ((["steps"], None), ([n for n in left if n != "steps"], CLOSER)):
        work(mine, [name for name in names if name in left], images, _silent)


@contextlib.contextmanager
def _silent(name: str) -> Iterator[Tell]:
    """Takes the progress of a measure and tells nobody."""
    yield lambda done, total, words: None


def _settings(seeds: int, overrides: Mapping[str, Any]) -> Settings:
    known = [each.name for each in dataclasses.fields(Settings)]
    for name in overrides:
        if name not in known:
            raise unknown(name, name, known)
    if seeds < 1:
        raise UserError(f"seeds = {seeds}", "expected 1 or more", "raise it; 5 give intervals")
    return Settings(**overrides)


def _claim(out: Path, settings: Settings) -> None:
    """Marks the folder as a demo with these settings; refuses one with others."""
    stored, mine = out / "settings.json", dataclasses.asdict(settings)
    if stored.exists():
        if read_json(stored) != mine:
            raise UserError(
                f"out = {out}", "it holds a demo with other settings", "name another folder"
            )
    elif out.exists() and any(out.iterdir()):
        raise UserError(f"out = {out}", "it is not empty and holds no demo", "name another folder")
    out.mkdir(parents=True, exist_ok=True)
    write_json(stored, mine)


@contextlib.contextmanager
def _few_threads() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(min(THREADS, before))
    try:
        yield
    finally:
        torch.set_num_threads(before)


# ---- one seed -----------------------------------------------------------------------------


def _seed(out: Path, seed: int, settings: Settings, console: Console) -> Outcome:
    """The teacher and every method of one seed, trained and measured."""
    dataset = load_digits(seed, settings)
    folder, quiet = out / f"seed{seed}", Console(quiet=True)
    runs = {method: folder / method for method in ("teacher", *METHODS)}
    with console.status(f"seed {seed}: teacher"):
        recipe = _recipe("teach", seed, settings)
        teach(recipe, runs["teacher"], resume=True, console=quiet, device="cpu", dataset=dataset)
    teacher = load(runs["teacher"])
    for method in METHODS:
        with console.status(f"seed {seed}: {method}"):
            recipe = _recipe("distill", seed, settings, method, runs["teacher"])
            distill(
                recipe,
                runs[method],
                resume=True,
                console=quiet,
                device="cpu",
                dataset=dataset,
                teacher=teacher,
            )
    with console.status(f"seed {seed}: measuring"):
        found = _measured(teacher, runs, dataset, recipe)
        images = normalise(dataset.test.images[:BATCH], dataset)
        layers = health(load(runs[DEFAULT_METHOD]).net, images, settings.steps)
    return Outcome(seed, found, runs, layers)


def _recipe(
    task: str, seed: int, settings: Settings, method: str = "none", teacher: Path | None = None
) -> Recipe:
    fields: dict[str, Any] = {"seed": seed, "training": settings.teach}
    if task == "teach":
        fields["model"] = {"kind": "small-cnn", "width": settings.width}
    else:
        fields |= {"training": settings.training(method), "teacher": {"run": str(teacher)}}
        fields |= {"steps": settings.steps}
    recipe = default_recipe(task, data_spec(seed, settings), method, **fields)
    return recipe if task == "teach" else completed(recipe, ("training.epochs",))


def _measured(
    teacher: Loaded, runs: Mapping[str, Path], dataset: Dataset, recipe: Recipe
) -> dict[str, dict[int | None, float]]:
    """Accuracy on the test part by method and T; `convert` is calibrated for each T."""
    test = list(Batches(dataset.test, dataset, BATCH, shuffle=False).epoch())
    found: dict[str, dict[int | None, float]] = {"teacher": {None: accuracy(teacher.net, test)}}
    images = calibration(dataset, recipe.calibrate, recipe.seed, torch.device("cpu"))
    found["convert"] = {t: _converted(teacher.net, images, test, t) for t in MEASURED}
    for method in METHODS[1:]:
        net = load(runs[method]).net
        found[method] = dict(accuracy_over_steps(net, test, MEASURED).items())
    return found


def _converted(teacher: nn.Module, images: Tensor, test: Any, steps: int) -> float:
    net = convert(teacher, IF(dither=DITHER), steps=steps, calibrate=images)
    return accuracy_over_steps(net, test, [steps])[steps]
