"""What the demo shows: its report page, its table and its lines on the console."""

from __future__ import annotations

import json
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

from spikelet.data import Dataset, normalise
from spikelet.demo.outcome import (
    BATCH,
    CONTROLS,
    MEASURED,
    METHODS,
    THREADS,
    Outcome,
    Settings,
    load_digits,
)
from spikelet.measure import answers_over_steps
from spikelet.recipe import Training
from spikelet.recipe.methods import DEFAULT_METHOD
from spikelet.report import Example, hardware, page
from spikelet.report.findings import listed
from spikelet.report.parts import Section
from spikelet.story import close_up
from spikelet.train import env, write_json
from spikelet.train.load import load

LOOKED_AT = 250  # test images among which the shown ones are found


def line(outcome: Outcome, seeds: int) -> str:
    """A finished seed in one line."""
    found, t = outcome.accuracy, MEASURED[-2]
    parts = [f"teacher {100 * found['teacher'][None]:.1f} %"]
    parts += [f"{method} {100 * found[method][t]:.1f} %" for method in METHODS]
    return f"seed {outcome.seed} ({outcome.seed + 1} of {seeds}), T = {t}: {', '.join(parts)}"


def write(
    out: Path,
    result: Mapping[str, Any],
    outcomes: Sequence[Outcome],
    settings: Settings,
    command: str,
) -> None:
    """OUT/demo.json and OUT/report.html."""
    write_json(out / "demo.json", result)
    dataset = load_digits(outcomes[0].seed, settings)
    text = page(
        result["rows"],
        result["differences"],
        {method: _curve(outcomes, method) for method in METHODS[1:]},
        _mean_health(outcomes),
        title="Handwritten digits: an ordinary network and its spiking students",
        lead=f"A small convolutional network (the teacher) learned {len(dataset.train)} labelled "
        "8x8 images. Spiking networks that start from its weights answer the same test images "
        f"in {MEASURED[0]} to {MEASURED[-1]} time steps.",
        findings=result["findings"],
        default=DEFAULT_METHOD,
        examples=_examples(outcomes[0], dataset),
        notes=_notes(dataset, outcomes, settings),
        made=_made(result, dataset, settings, command),
        sections=_closer(outcomes[0]),
    )
    (out / "report.html").write_text(text, encoding="utf-8")


def _closer(outcome: Outcome) -> list[Section]:
    """The chapters about the runs of the first seed."""
    runs = [outcome.runs[name] for name in ("teacher", *METHODS)]
    look = (
        f"The runs of seed {outcome.seed} alone, out of those above. Each has a page of its own "
        "after `spikelet report RUN`, with its recipe and the line that makes it again."
    )
    return close_up(runs, look=look)


def _epochs(outcomes: Sequence[Outcome], method: str) -> list[list[dict[str, Any]]]:
    """What each seed's training stored, epoch by epoch."""
    stored = [(o.runs[method] / "metrics.jsonl").read_text(encoding="utf-8") for o in outcomes]
    return [[json.loads(line) for line in text.splitlines()] for text in stored]


def _curve(outcomes: Sequence[Outcome], method: str) -> list[float]:
    """Validation accuracy by epoch, mean over seeds."""
    curves = [
        [epoch["validation"]["accuracy"] for epoch in each] for each in _epochs(outcomes, method)
    ]
    return [statistics.fmean(values) for values in zip(*curves, strict=True)]


def _duration(outcomes: Sequence[Outcome], method: str) -> str:
    """Seconds of training steps, mean over seeds."""
    each = [sum(e["seconds"] for e in epochs) for epochs in _epochs(outcomes, method)]
    return f"{statistics.fmean(each):.1f} s ({method})"


def _mean_health(outcomes: Sequence[Outcome]) -> dict[str, dict[str, float]]:
    """Layer -> rate, dead, saturated, mean over seeds."""
    return {
        path: {key: statistics.fmean(o.health[path][key] for o in outcomes) for key in layer}
        for path, layer in outcomes[0].health.items()
    }


def _examples(outcome: Outcome, dataset: Dataset) -> dict[str, list[Example]]:
    """The first test image of each class, and the first ten that T = 1 gets wrong."""
    teacher, student = load(outcome.runs["teacher"]).net, load(outcome.runs[DEFAULT_METHOD]).net
    shown = dataset.test.at(torch.arange(LOOKED_AT))
    images, labels = normalise(shown.images, dataset), shown.labels
    with torch.no_grad():
        answers = {"teacher": teacher(images).argmax(1)}
    for t, logits in answers_over_steps(student, images, MEASURED).items():
        answers[f"T = {t}"] = logits.argmax(1)
    first = [int((labels == k).nonzero()[0]) for k in range(len(dataset.classes))]
    wrong = (answers[f"T = {MEASURED[0]}"] != labels).nonzero()[:10, 0].tolist()

    def example(index: int) -> Example:
        named = {k: dataset.classes[int(v[index])] for k, v in answers.items()}
        return Example(shown.images[index], dataset.classes[int(labels[index])], named)

    groups = {"The first test image of each class, not chosen otherwise:": first}
    groups[f"The first {len(wrong)} test images that the student gets wrong at T = 1:"] = wrong
    return {words: [example(i) for i in indices] for words, indices in groups.items() if indices}


def _notes(dataset: Dataset, outcomes: Sequence[Outcome], settings: Settings) -> dict[str, str]:
    """The sentences under the report's charts."""
    seeds, trained = len(outcomes), ("teacher", *METHODS[1:])
    times = listed(_duration(outcomes, method) for method in trained)
    count = len(CONTROLS) * len(MEASURED)
    return {
        "accuracy": f"On {len(dataset.test)} test images; mean"
        + (f" ± standard deviation of {seeds} seeds." if seeds > 1 else " of 1 seed.")
        + f" Students were trained with T = {settings.steps} and answer at every T from one run.",
        "differences": f"Paired by seed over {seeds} seeds, Student's t: each interval covers what "
        "another seed (start, order, held-out part) would change, not another set of test images. "
        f"There are {count} intervals, each at 95 % by itself.",
        "training": f"On {settings.validation} labelled images held out of training, at "
        f"T = {settings.steps}, mean over seeds. Test accuracy above is that of the last epoch. "
        f"One training took {times}.",
        "firing": f"Of the {DEFAULT_METHOD} student at T = {settings.steps}, on the first {BATCH} "
        "test images, mean over seeds. Silent and always on are shares of channels.",
    }


def _reused(result: Mapping[str, Any]) -> str:
    count = result.get("reused")
    return f"; {count} runs were finished before, their time is not in it" if count else ""


def _made(
    result: Mapping[str, Any], dataset: Dataset, settings: Settings, command: str
) -> dict[str, str]:
    """How it was made, in the report's words."""
    facts = env("cpu")
    git = facts["git"]
    seeds = len(result["runs"]["teacher"])
    made = {
        "command": command,
        "data": f"scikit-learn digits, {dataset.notes}; {dataset.licence}",
        "labelled": f"{len(dataset.train)} images for training, {settings.validation} held out",
        "seeds": f"{seeds}, from 0 to {seeds - 1}; n = {seeds} runs per method",
        "teacher": _words(settings.teach),
        **{m: f"{_words(settings.training(m))}; T = {settings.steps}" for m in METHODS[1:]},
        "choices": "optimisers, rates and the trained T were chosen on held-out images, from the "
        "same grid for each method",
        "hardware": f"{hardware()}; {THREADS} thread",
        "versions": ", ".join(f"{name} {version}" for name, version in facts["versions"].items()),
        "time": f"{result['seconds']:.0f} s of wall clock" + _reused(result),
    }
    if git is not None:
        made["commit"] = git["commit"] + (" with changes" if git["changed"] else "")
    return made


def _words(training: Training) -> str:
    clip = "" if training.clip is None else f", gradient norm at most {training.clip:g}"
    return (
        f"{training.epochs} epochs of {training.optimiser}, learning rate "
        f"{training.learning_rate:g} ({training.schedule}), batch {training.batch}{clip}"
    )


def show(console: Console, result: Mapping[str, Any]) -> None:
    """The table, the findings and the files on the console."""
    console.print(_table(result["rows"]))
    for sentence in result["findings"]:
        console.print(f"- {sentence}", highlight=False)
    console.print(f"report: {result['files'][0]}", highlight=False, soft_wrap=True)
    console.print(f"numbers: {result['files'][1]}", highlight=False, soft_wrap=True)
    runs = f"{Path(result['run']).parent.parent}/seed*/{{{','.join(result['runs'])}}}"
    console.print(f"runs: {runs}", highlight=False, markup=False, soft_wrap=True)
    console.print(f"took {result['seconds']:.0f} s", highlight=False)


def _table(rows: Sequence[Mapping[str, Any]]) -> Table:
    count = rows[0]["n"]
    title = f"test accuracy, %: mean ± standard deviation of {count} seeds"
    table = Table("method", title=title if count > 1 else "test accuracy, % (1 seed)")
    for t in MEASURED:
        table.add_column(f"T = {t}", justify="right")
    for method in dict.fromkeys(row["method"] for row in rows):
        cells = [_cell(row) for row in rows if row["method"] == method]
        table.add_row(method, *cells)
    return table


def _cell(row: Mapping[str, Any]) -> str:
    spread = "" if row["std"] is None else f" ± {100 * row['std']:.1f}"
    return f"{100 * row['accuracy']:.1f}{spread}"
