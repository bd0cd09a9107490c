"""Runs as their folders tell them: results, epochs, card and measures; and what to call each."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from spikelet.errors import UserError
from spikelet.examine import MEASURES
from spikelet.examine.work import FOLDER, LEFT_OUT, left_out
from spikelet.recipe import Recipe
from spikelet.train import read_recipe
from spikelet.train.running import single, spiking
from spikelet.train.stored import damaged, stored_object, stored_rows

Row = Mapping[str, Any]
Found = Mapping[str, Any]
TEACHER = "teacher"
AGAIN = "measure the run again"


@dataclass(frozen=True)
class Told:
    """One finished run.

    Attributes:
        path: its folder.
        recipe: how it was made.
        rows: of its results.
        epochs: of its training, as metrics.jsonl has them.
        card, env: what its weights are for, and what they were made with.
        measures: name -> what `spikelet measure` stored.
        left_out: measures that do not suit the run -> why.
        model: what model.json says of the architecture.
        label: what the page calls its network.
        teacher: what the page calls its teacher; None for the run of an ANN.
    """

    path: Path
    recipe: Recipe
    rows: Sequence[Row]
    epochs: Sequence[Row]
    card: Found
    env: Found
    measures: Mapping[str, Found]
    label: str
    teacher: str | None
    left_out: Mapping[str, str] = field(default_factory=dict)
    model: Found = field(default_factory=dict)

    @property
    def taught(self) -> bool:
        """Whether it is a student's."""
        return self.recipe.task == "distill"

    @property
    def spikes(self) -> bool:
        """Whether its network has spikes."""
        return self.taught and spiking(self.recipe)

    @property
    def traits(self) -> str:
        """What sets it apart from a default student, in a few words; nothing for one of those."""
        if not self.spikes:
            return "no spikes" if self.taught and self.own != "qann" else ""
        encode = self.recipe.encode
        neuron = self.recipe.neuron
        kind = neuron["kind"]
        late = min(neuron.get("delay", 0), self.recipe.steps - 1)  # more is as much
        words = [kind.rpartition(":")[2]] if kind != "IF" else []
        words += ["spikes of both signs"] if neuron.get("signed") else []
        steps = "1 step" if late == 1 else f"{late} steps"
        words += [f"layers {steps} late"] if late else []
        words += ["a bias for each step"] if neuron.get("step_bias") else []
        drawn = f"trained for T = {encode.get('least', 1)} to {self.recipe.steps}"
        return ", ".join([*words, *([drawn] if encode["kind"] == "mixed" else [])])

    @property
    def single(self) -> bool:
        """Whether its network is another one at fewer steps than those it was trained for."""
        return self.taught and single(self.recipe)

    @property
    def own(self) -> str:
        """What its results and measures call its network."""
        return self.recipe.method if self.taught else TEACHER

    def row(self, method: str, steps: int | None) -> Row | None:
        """The row of its results for a method at T."""
        found = (r for r in self.rows if r["method"] == method and r["steps"] == steps)
        return next(found, None)

    @property
    def accuracy(self) -> float | None:
        """Of its network at the T of its training, on the test part."""
        row = self.row(self.own, self.recipe.steps if self.taught else None)
        return None if row is None else float(row["accuracy"])


def read(paths: Sequence[Path]) -> list[Told]:
    """The runs of these folders, each with a name of its own.

    Raises:
        UserError: if one is no run, unfinished, damaged, or named twice.
    """
    seen: set[Path] = set()
    for path in paths:
        if path.resolve() in seen:
            raise UserError(f"run = {path}", "it is named twice", "name each run once")
        seen.add(path.resolve())
    return called([one(path) for path in paths])


def one(path: Path) -> Told:
    """The run of a folder, before it has a name among others.

    Raises:
        UserError: if it is no run, unfinished or damaged.
    """
    if (path / "compare.json").exists():
        fix = f"look at {path / 'report.html'}, or name runs in {path / 'cells'}"
        raise UserError(f"run = {path}", "this is a comparison, which has its own page", fix)
    if not (path / "recipe.json").exists():
        what = "there is no run in this folder (no recipe.json)"
        raise UserError(f"run = {path}", what, "name a run folder")
    recipe = read_recipe(path)
    if not (path / "results.json").exists():
        fix = f"continue it with `spikelet {recipe.task} --resume {path}`"
        raise UserError(f"run = {path}", "the run is not finished", fix)
    rows = stored_rows(path, "delete it and resume the run to measure again")
    card, env, model = (_object(path / f"{name}.json") for name in ("card", "env", "model"))
    epochs, measures = _epochs(path / "metrics.jsonl"), _measures(path / FOLDER)
    known = (rows, epochs, card, env, measures)
    return Told(path, recipe, *known, "", None, left_out(path), model)


def _object(file: Path) -> Found:
    """The object of a file; an older run may lack it."""
    return stored_object(file) if file.exists() else {}


def _epochs(file: Path) -> list[Row]:
    """What each epoch came to; nothing for a run without training, or with a damaged record."""
    try:
        rows = [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]
    except (OSError, ValueError):
        return []
    return rows if all(isinstance(row, dict) and "epoch" in row for row in rows) else []


def _measures(folder: Path) -> dict[str, Found]:
    """What was measured, in the order of the table of measures, a user's own after them."""
    found = {}
    for file in sorted(each for each in folder.glob("*.json") if each.name != LEFT_OUT):
        content = stored_object(file, AGAIN)
        name = str(content.get("measure", file.stem))
        if name in MEASURES and not isinstance(content.get("settings"), dict):
            raise damaged(file, "settings is missing", AGAIN)
        found[name] = content
    return {name: found[name] for name in sorted(found, key=_place)}


def _place(name: str) -> tuple[int, str]:
    known = list(MEASURES)
    return (known.index(name) if name in known else len(known), name)


def called(runs: Sequence[Told]) -> list[Told]:
    """The runs with names: the method, told apart by T, by folder or by number where need be.

    Teachers are the same if their weights are: one alone is called "teacher", and so is the run
    of that ANN.
    """
    known = dict.fromkeys(_guide(run) for run in runs)
    numbered = {sha: f"{TEACHER} ({number})" for number, sha in enumerate(known, 1)}
    guides = dict.fromkeys(known, TEACHER) if len(known) == 1 else numbered
    students = [run for run in runs if run.taught]
    labels = {run.path: _free(run, students) for run in students}
    return [
        replace(run, label=labels[run.path], teacher=guides[_guide(run)])
        if run.taught
        else replace(run, label=guides[_guide(run)])
        for run in runs
    ]


def _free(run: Told, students: Sequence[Told]) -> str:
    """The shortest name that no other student has."""
    mine, others = _ways(run), [_ways(other) for other in students if other is not run]
    free = (name for n, name in enumerate(mine) if all(other[n] != name for other in others))
    return next(free, f"{run.own} ({1 + students.index(run)})")


def _ways(run: Told) -> tuple[str, ...]:
    """Names of a run, the shortest first: those that tell more only where that is needed."""
    steps, folder = f"T = {run.recipe.steps}", run.path.resolve().name
    both = f"{run.traits}, {steps}" if run.traits else steps
    more = (run.traits, steps, both, folder)
    return run.own, *(f"{run.own} ({each})" if each else run.own for each in more)


def _guide(run: Told) -> str | None:
    """The digest of the teacher's weights; of an ANN's run, of its own."""
    card = (run.card.get("teacher") or {}) if run.taught else run.card
    return card.get("sha256")


@dataclass(frozen=True)
class Source:
    """One measure of one run, and what the page calls the networks in it.

    Attributes:
        run: the run.
        found: what was measured.
        names: name in the measure -> name on the page.
    """

    run: Told
    found: Found
    names: Mapping[str, str]

    def label(self, name: str) -> str:
        """A network's name on the page, also of one with words behind the name."""
        if name in self.names:
            return self.names[name]
        ends = (" with ", " (")
        fitting = [k for k in self.names if name.startswith(tuple(k + end for end in ends))]
        longest = max(fitting, key=len, default=None)
        return name if longest is None else self.names[longest] + name[len(longest) :]

    @property
    def own(self) -> str:
        """The name on the page of the run's network."""
        return self.run.label

    @property
    def over_seeds(self) -> Sequence[Row]:
        """What was measured over several seeds; nothing by an older version."""
        return self.found.get("over_seeds") or ()

    @property
    def repeated(self) -> set[str]:
        """Networks in the measure that an interval over seeds is about."""
        return {name for row in self.over_seeds for pair in row["networks"] for name in pair}

    @property
    def later(self) -> set[str]:
        """Those of them that are the run's and its rival's again, with another seed."""
        pairs = [pair for row in self.over_seeds for pair in row["networks"]]
        first = {name for pair in pairs if self.run.own in pair for name in pair}
        return self.repeated - first


def sources(runs: Sequence[Told], measure: str) -> list[Source]:
    """The runs' measures of one kind, for the runs that have it."""
    return [
        Source(run, run.measures[measure], _names(run, run.measures[measure], runs))
        for run in runs
        if measure in run.measures
    ]


def _names(run: Told, found: Found, runs: Sequence[Told]) -> dict[str, str]:
    """Names in a measure -> on the page: the run, its teacher, and those it was compared with.

    One that the page does not show, but whose name it gives to another, says that it is beside.
    """
    names = {} if run.teacher is None else {TEACHER: run.teacher}
    names[run.own] = run.label
    taken = {label for each in runs for label in (each.label, each.teacher) if label}
    for name, folder in ((found.get("settings") or {}).get("versus") or {}).items():
        shown = next((r for r in runs if _same(r.path, str(folder))), None)
        free = name if name not in taken else f"{name} (beside {run.label})"
        names[str(name)] = free if shown is None else shown.label
    return names


def _same(path: Path, folder: str) -> bool:
    """Whether a folder as it was named when measuring, from wherever that was, is that of a run."""
    named, whole = Path(folder), path.resolve()
    if named.is_absolute():
        return named.resolve() == whole
    tail = tuple(part for part in named.parts if part not in (".", ".."))
    return bool(tail) and whole.parts[-len(tail) :] == tail


def colours(runs: Sequence[Told], more: Sequence[str] = ()) -> dict[str, int]:
    """The colour of each network on the page, 1 to 6 in turn; teachers and ANNs have ink, 0."""
    guides = {run.teacher if run.taught else run.label for run in runs}
    names = dict.fromkeys([*(run.label for run in runs), *more])
    students = [name for name in names if name not in guides]
    found = {name: 1 + number % 6 for number, name in enumerate(students)}
    return {**{str(guide): 0 for guide in guides}, **found}
