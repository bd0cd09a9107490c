"""Tuning: as many candidates for every method, chosen on the validation part alone.

A candidate is a multiplier of the distillation terms' weights with a learning rate. A method that
has no such weight besides another term's (`none`) tries as many learning rates instead.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from spikelet.compare.grid import TUNING_SEED, Cell, Grid, folder_name
from spikelet.compare.work import Job, read_rows
from spikelet.recipe import TERMS, Recipe, Spec, build
from spikelet.train import write_json
from spikelet.train.stored import damaged, stored_object

TUNED_FILE = "tuned.json"
REDO = "delete it and resume: the tuning runs that are there decide again"
LABELS_ONLY = "cross-entropy"
UNTRAINED = "convert"


@dataclass(frozen=True)
class Candidate:
    """What tuning tries: a multiplier of the distillation weights, and a learning rate."""

    method: str
    weight: float
    learning_rate: float

    @property
    def name(self) -> str:
        """The candidate's folder under OUT/tune."""
        return f"{folder_name(self.method)}-weight{self.weight:g}-rate{self.learning_rate:g}"


def multipliers(count: int) -> list[float]:
    """The first of 1, 1/3, 3, 1/10, 10, 1/30, 30, ..."""
    sizes = (base * 10**power for power in itertools.count() for base in (3.0, 10.0))
    return list(itertools.islice(_outward(sizes), count))


def learning_rates(rates: Sequence[float], count: int) -> list[float]:
    """The first different ones of the given rates, then of their halves, doubles, quarters, ..."""
    factors = _outward(2.0**power for power in itertools.count(1))
    found: list[float] = []
    for factor in factors:
        new = (float(f"{factor * rate:.6g}") for rate in rates)
        found += [rate for rate in dict.fromkeys(new) if rate not in found]
        if len(found) >= count:
            return found[:count]
    raise AssertionError("factors have no end")


def _outward(sizes: Iterator[float]) -> Iterator[float]:
    """1, then one over and times each size."""
    yield 1.0
    for size in sizes:
        yield from (1 / size, size)


def candidates(grid: Grid, method: str) -> list[Candidate]:
    """What a method tries; as many for each that is trained. None where nothing is tuned."""
    recipe = grid.recipe(Cell(method, grid.steps[0], TUNING_SEED))
    rates = list(grid.tune_rates) or [recipe.training.learning_rate]
    weights = max(grid.tune, 1)
    if weights * len(rates) == 1 or method == UNTRAINED:
        return []
    if not weighted(recipe):
        return [Candidate(method, 1.0, r) for r in learning_rates(rates, weights * len(rates))]
    return [Candidate(method, w, r) for w in multipliers(weights) for r in rates]


def weighted(recipe: Recipe) -> bool:
    """Whether the terms weigh against each other: some distil, some only know the labels."""
    return len({spec["kind"] == LABELS_ONLY for spec in recipe.terms.values()}) > 1


def tuned(recipe: Recipe, choice: Mapping[str, Any] | None) -> Recipe:
    """The recipe with a candidate's learning rate, and its distillation weights multiplied."""
    if choice is None:
        return recipe
    training = dataclasses.replace(recipe.training, learning_rate=choice["learning_rate"])
    terms = {
        name: _scaled(name, spec, choice["weight"]) if spec["kind"] != LABELS_ONLY else spec
        for name, spec in recipe.terms.items()
    }
    return dataclasses.replace(recipe, training=training, terms=terms)


def _scaled(name: str, spec: Spec, multiplier: float) -> Spec:
    if multiplier == 1:
        return spec
    return {**spec, "weight": build(f"terms.{name}", spec, TERMS).weight * multiplier}


def tuning_jobs(grid: Grid, out: Path, teacher: Spec) -> list[Job]:
    """A run for each candidate, on the seed that no cell uses; measured on the validation part."""
    jobs = []
    for method in grid.methods:
        for each in candidates(grid, method):
            recipe = grid.recipe(Cell(method, grid.steps[0], TUNING_SEED), teacher)
            recipe = tuned(recipe, dataclasses.asdict(each))
            if grid.tune_epochs is not None:
                training = dataclasses.replace(
                    recipe.training, epochs=grid.tune_epochs, least_steps=0
                )
                recipe = dataclasses.replace(recipe, training=training)
            jobs.append(Job("tune", each.name, out / "tune" / each.name, recipe))
    return jobs


def chosen(grid: Grid, out: Path, errors: Mapping[str, str]) -> dict[str, Any] | None:
    """What tuning found, also written to OUT/tuned.json; None where nothing is tuned.

    The best validation accuracy of the last epoch wins, the first of equal ones. A method is
    chosen for once each of its candidates is finished or has failed, and keeps that choice.
    """
    tried = {method: candidates(grid, method) for method in grid.methods}
    if not any(tried.values()):
        return None
    path = out / TUNED_FILE
    choices = _decided(path)
    found = {m: [_outcome(out, c, errors) for c in cs] for m, cs in tried.items() if cs}
    for method, outcomes in found.items():
        complete = all(o["accuracy"] is not None or o["error"] is not None for o in outcomes)
        if method not in choices and complete:
            best = max(outcomes, key=lambda o: -1.0 if o["accuracy"] is None else o["accuracy"])
            choices[method] = {key: best[key] for key in ("weight", "learning_rate", "accuracy")}
    content = {
        "seed": TUNING_SEED,
        "steps": grid.steps[0],
        "split": "validation",
        "chosen": choices,
        "tried": found,
    }
    write_json(path, content)
    return content


def _decided(path: Path) -> dict[str, Any]:
    """The choices that were made before."""
    if not path.exists():
        return {}
    choices = stored_object(path, REDO).get("chosen")
    if not isinstance(choices, dict):
        raise damaged(path, "it has no choices", REDO)
    for method, choice in choices.items():
        numbers = [choice.get(k) for k in ("weight", "learning_rate")] if choice else []
        if not numbers or not all(isinstance(each, int | float) for each in numbers):
            raise damaged(path, f"no choice for {method}", REDO)
    return choices


def _outcome(out: Path, candidate: Candidate, errors: Mapping[str, str]) -> dict[str, Any]:
    """What a candidate came to on the validation part."""
    rows = read_rows(out / "tune" / candidate.name)
    accuracy = None if rows is None else rows[-1]["accuracy"]
    fields = {"weight": candidate.weight, "learning_rate": candidate.learning_rate}
    return {**fields, "accuracy": accuracy, "error": errors.get(candidate.name)}
