"""The table of a grid: means over seeds, and differences to `none` paired by seed."""

from __future__ import annotations

import dataclasses
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from spikelet.compare.overrides import differences
from spikelet.compare.work import AGAIN, Job, read_rows
from spikelet.errors import UserError
from spikelet.recipe import Recipe
from spikelet.report import comparison
from spikelet.train import read_recipe
from spikelet.train.running import kind
from spikelet.train.stored import RESULTS_FILE, damaged, stored_object

Row = dict[str, Any]
BASE = "none"
LEVEL = 0.95
RATES = ("rate", "rate_by_layer", "rate_by_neuron")
COSTS = ("seconds", "ann_epochs", "macs", "peak_mib")
FREE_IN_TRAINING = ("checkpoint_minutes", "tensorboard")


def seed_rows(jobs: Sequence[Job]) -> list[Row]:
    """A row for each finished cell, with its difference to `none` of the same seed and T."""
    rows = [_row(job) for job in jobs if job.finished]
    base = {(row["steps"], row["seed"]): row["accuracy"] for row in rows if row["method"] == BASE}
    for row in rows:
        key = (row["steps"], row["seed"])
        if row["method"] != BASE and key in base:
            row["difference"] = row["accuracy"] - base[key]
    return rows


def _row(job: Job) -> Row:
    """What a cell came to at the T that it was trained for."""
    recipe, found = job.recipe, read_rows(job.folder)
    assert found is not None
    wanted = (recipe.method, recipe.steps)
    mine = next((row for row in found if (row["method"], row["steps"]) == wanted), None)
    if mine is None:
        what = f"no row of {recipe.method} at T = {recipe.steps}"
        raise damaged(job.folder / RESULTS_FILE, what, AGAIN)
    kept = ("method", "steps", "accuracy", "std", "n", "seed", "split")
    costs = {key: mine.get(key) for key in (*RATES, *COSTS)}
    none = dict.fromkeys(("difference", "low", "high", "pairs", "verdict"))
    common = {key: mine[key] for key in kept}
    return {**common, "kind": kind(recipe), **none, **costs, "run": str(job.folder)}


def mean_rows(rows: Sequence[Row]) -> list[Row]:
    """A row for each method and T over its seeds, in the order in which they appear."""
    keys = dict.fromkeys((row["method"], row["steps"]) for row in rows)
    return [_mean([r for r in rows if (r["method"], r["steps"]) == key], rows) for key in keys]


def _mean(mine: Sequence[Row], rows: Sequence[Row]) -> Row:
    """Mean, deviation and paired difference; a single seed keeps its row and has no interval."""
    if len(mine) == 1:
        return mine[0]
    first, values = mine[0], [row["accuracy"] for row in mine]
    base = {
        row["seed"]: row["accuracy"]
        for row in rows
        if row["method"] == BASE and row["steps"] == first["steps"]
    }
    pairs = [(row["accuracy"], base[row["seed"]]) for row in mine if row["seed"] in base]
    return {
        **{key: first[key] for key in ("method", "steps", "split", "kind")},
        "accuracy": statistics.fmean(values),
        "std": statistics.stdev(values),
        "n": len(values),
        "seed": None,
        **_difference(first, pairs),
        **{key: _over(statistics.fmean, mine, key) for key in (*RATES, *COSTS[:-1])},
        "peak_mib": _over(max, mine, "peak_mib"),
    }


def _difference(first: Row, pairs: Sequence[tuple[float, float]]) -> Row:
    """The paired difference to `none` with its interval; null where there are too few pairs."""
    none = dict.fromkeys(("difference", "low", "high", "pairs", "verdict"))
    if first["method"] == BASE or not pairs:
        return none
    own, base = [a for a, _ in pairs], [b for _, b in pairs]
    if len(pairs) == 1:
        return none | {"difference": own[0] - base[0], "pairs": 1}
    found = comparison(first["method"], BASE, first["steps"], own, base, LEVEL)
    shown = {key: found[key] for key in ("low", "high", "verdict")}
    return {"difference": found["mean"], "pairs": len(pairs), **shown}


def _over(summary: Any, rows: Sequence[Row], key: str) -> float | None:
    """A summary of what is known of a key."""
    values = [row[key] for row in rows if row[key] is not None]
    return float(summary(values)) if values else None


def teacher_rows(runs: Mapping[Path, str]) -> list[Row]:
    """The teacher's row from the first run that measured it, given each run and what it is there.

    A spiking one has a row for each T, which its `kind` names.
    """
    found: dict[str, Row] = {}
    for run, what in runs.items():
        if what not in found:
            taught = [row for row in read_rows(run) or [] if row["method"] == "teacher"]
            found |= {what: _taught(taught[0], what)} if taught else {}
    return list(found.values())


def _taught(row: Row, what: str) -> Row:
    none = dict.fromkeys(("difference", "low", "high", "pairs", "verdict", *RATES))
    costs = {key: row.get(key) for key in COSTS}
    kept = ("method", "steps", "accuracy", "std", "n", "seed", "split")
    note = {key: row[key] for key in ("note",) if key in row}
    return {**{key: row[key] for key in kept}, "kind": what, **none, **costs, **note}


def require_sound(job: Job) -> None:
    """Raises for a finished cell whose files are damaged."""
    if job.finished:
        _row(job)
        _stored_recipe(job)
        _teacher_of(job)
        _data_of(job)


def require_alike(jobs: Sequence[Job]) -> None:
    """Raise unless all finished, sound cells have this grid's recipe, one teacher and data."""
    teachers: dict[str, str] = {}
    data: dict[str, str] = {}
    for job in jobs:
        if not job.finished:
            continue
        _require_recipe(job)
        for seen, value in ((teachers, _teacher_of(job)), (data, _data_of(job))):
            if value is not None and seen.setdefault("first", value) != value:
                what = f"{job.name} was computed with another {_name(seen is teachers)} than others"
                raise UserError(str(job.folder), what, "delete that folder, or begin another grid")


def _name(teachers: bool) -> str:
    return "teacher" if teachers else "data set"


def _stored_recipe(job: Job) -> Recipe:
    try:
        return read_recipe(job.folder)
    except UserError as error:
        raise UserError(error.argument, error.message, AGAIN) from error


def _require_recipe(job: Job) -> None:
    then_and_now = _comparable(_stored_recipe(job)), _comparable(job.recipe)
    for path, then, now in differences(*then_and_now):
        what = f"{job.name} was computed with {path} = {then!r}, this grid has {now!r}"
        raise UserError(str(job.folder), what, "delete that folder, or begin another grid")


def _comparable(recipe: Recipe) -> dict[str, Any]:
    """What of a recipe decides its results; where data and teacher lie does not."""
    fields = dataclasses.asdict(recipe)
    del fields["teacher"]
    fields["data"] = {k: v for k, v in fields["data"].items() if k not in ("root", "download")}
    for name in FREE_IN_TRAINING:
        del fields["training"][name]
    return fields


def _teacher_of(job: Job) -> str | None:
    """The fingerprint of a cell's teacher, where that was not trained along."""
    card = job.folder / "card.json"
    if job.recipe.joint or not card.exists():
        return None
    lineage = stored_object(card, AGAIN).get("teacher")
    if not isinstance(lineage, dict):
        raise damaged(card, "it names no teacher", AGAIN)
    return lineage.get("sha256")


def _data_of(job: Job) -> str | None:
    path = job.folder / "env.json"
    if not path.exists():
        return None
    data = stored_object(path, AGAIN).get("data")
    if not isinstance(data, dict):
        raise damaged(path, "it names no data", AGAIN)
    return str(sorted(data.items()))
