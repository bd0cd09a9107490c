"""What a comparison is, as plain data."""

from __future__ import annotations

import dataclasses
import glob
import json
import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from spikelet.compare.overrides import differences, overridden, variant
from spikelet.errors import UserError, unknown
from spikelet.recipe import (
    METHODS,
    TERMS,
    Recipe,
    Spec,
    alike_trained,
    ann_training,
    default_recipe,
    gentler,
    import_path,
    plain,
)
from spikelet.recipe.methods import FIELDS
from spikelet.recipe.specs import validated
from spikelet.train import write_json
from spikelet.train.stored import damaged, stored_object

CONTROLS = ("none", "convert", "qann")
TUNING_SEED = 1000
GRID_FILE = "compare.json"
MAY_GROW = ("methods", "steps", "seeds")


@dataclass(frozen=True)
class Cell:
    """One run of a grid."""

    method: str
    steps: int
    seed: int

    @property
    def name(self) -> str:
        """The cell's folder under OUT/cells."""
        return f"{folder_name(self.method)}-T{self.steps}-seed{self.seed}"


@dataclass(frozen=True)
class Grid:
    """A comparison: methods x steps x seeds under one teacher, with the same training for all.

    Attributes:
        data: spec of the data set.
        methods: names of methods, `a+b` for the terms of both, or an import path
            `package.module:Term` for cross entropy plus a term of one's own; each may be followed
            by settings of its own, `hybrid[hybrid.on=1,training.clip=2]`. `none`, `convert` and
            `qann` are always among them.
        steps: numbers of time steps T; tuning is done at the first.
        seeds: how many, counted from 0. A seed decides calibration images, order of the data and
            the fresh weights.
        teacher: `{"run": folder}` or a model with weights; None trains one within the grid.
        model: what that one is; with a teacher, the architecture of the students, `convert` too,
            which begin as an ANN that is trained first, unless they start from scratch.
        epochs, batch: of every student; the data set's own where None.
        teacher_epochs: of a teacher trained within the grid.
        tune: how many weights of the distillation terms are tried for each method; 0 for none.
        tune_rates: learning rates that are tried for each method, times each weight.
        tune_epochs: of the tuning runs; `epochs` where None.
        overrides: dotted leaf of the recipe -> value, for every student that has such a leaf.
    """

    data: Spec
    methods: tuple[str, ...] = ()
    steps: tuple[int, ...] = (4,)
    seeds: int = 3
    teacher: Spec | None = None
    model: Spec | None = None
    epochs: int | None = None
    batch: int | None = None
    teacher_epochs: int | None = None
    tune: int = 0
    tune_rates: tuple[float, ...] = ()
    tune_epochs: int | None = None
    overrides: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        methods = tuple(dict.fromkeys([*CONTROLS, *self.methods]))
        object.__setattr__(self, "methods", methods)
        object.__setattr__(self, "steps", tuple(dict.fromkeys(self.steps)))
        object.__setattr__(self, "tune_rates", tuple(dict.fromkeys(self.tune_rates)))
        for name in ("data", "teacher", "model", "overrides"):
            object.__setattr__(self, name, plain(name, getattr(self, name)))
        self._check_numbers()
        self._check_overrides()

    def _check_numbers(self) -> None:
        last = TUNING_SEED
        _require(bool(self.steps), "steps", "one or more", self.steps, "give time steps, 2 4")
        _require(all(t >= 1 for t in self.steps), "steps", "1 or more", self.steps, "give 2 4")
        _require(1 <= self.seeds <= last, "seeds", f"1 to {last}", self.seeds, "5 give intervals")
        _require(self.tune >= 0, "tune", "0 or more weights", self.tune, "try 3")
        rates = all(0 < rate < math.inf for rate in self.tune_rates)
        _require(rates, "tune_rates", "numbers above 0", self.tune_rates, "try 0.001 0.003")
        width, held_out = (self.model or {}).get("width"), self.data.get("validation")
        for name, value, least in (("width", width, 1), ("validation", held_out, 0)):
            holds = not isinstance(value, int) or value >= least
            _require(holds, name, f"{least} or more", value, "give a whole number")
        held = self.data.get("validation") != 0 or not (self.tune or self.tune_rates)
        _require(held, "validation", "some images, for tuning", 0, "hold some out")
        for name in ("teacher_epochs", "tune_epochs"):
            value = getattr(self, name)
            _require(value is None or value >= 0, name, "0 or more", value, "give a whole number")

    def _check_overrides(self) -> None:
        """Every method has a recipe, and every override is a leaf of at least one."""
        used = {key for _, keys in self._overridden.values() for key in keys}
        for key in self.overrides:
            if key not in used:
                fix = "leave it out, or add a method that has it"
                raise UserError(f"--{key}", "no method of this grid has such a leaf", fix)

    def cells(self) -> Iterator[Cell]:
        """Every cell; a seed is finished before the next begins, so early tables are paired."""
        for seed in range(self.seeds):
            for steps in self.steps:
                for method in self.methods:
                    yield Cell(method, steps, seed)

    def recipe(self, cell: Cell, teacher: Spec | None = None) -> Recipe:
        """The recipe of a cell, before tuning."""
        recipe = self._overridden[cell.method][0]
        if cell.method == "convert" and recipe.ann is None:  # fresh weights have no conversion
            recipe = dataclasses.replace(recipe, model=None)
        return dataclasses.replace(recipe, steps=cell.steps, seed=cell.seed, teacher=teacher)

    def left_out(self, method: str) -> list[str]:
        """The overrides that a method's recipe has no leaf for, or does not take."""
        return [path for path in self.overrides if path not in self._overridden[method][1]]

    def begun(self, recipe: Recipe) -> Recipe:
        """A student's recipe with its architecture and the ANN that it begins as, if it has one."""
        if self.teacher is None or self.model is None:
            return recipe
        first = ann_training(self.data["kind"]) if recipe.start == "converted" else None
        return dataclasses.replace(recipe, model=self.model, ann=first)

    def teacher_recipe(self) -> Recipe:
        """The recipe of the teacher that is trained within the grid."""
        recipe = default_recipe("teach", self.data, model=self.model)
        return recipe if self.teacher_epochs is None else _longer(recipe, self.teacher_epochs)

    @cached_property
    def _overridden(self) -> dict[str, tuple[Recipe, set[str]]]:
        """Each method's recipe with the overrides that it has a leaf for, and their names."""
        shared = {"training.epochs": self.epochs, "training.batch": self.batch}
        mine = {key: value for key, value in shared.items() if value is not None}
        found = {}
        for method in self.methods:
            recipe = recipe_of(method, self.data)
            own = settings_of(method, recipe)  # they go before the grid's
            given = {k: v for k, v in {**mine, **self.overrides}.items() if k not in own}
            recipe, used = overridden(self.begun(recipe), given)
            chosen = {*given, *own}
            recipe = gentler(alike_trained(recipe, chosen), chosen)
            found[method] = recipe, (used | set(own)) & set(self.overrides)
        return found

    def to_json(self) -> dict[str, Any]:
        """Plain data; `from_json` gives an equal grid back."""
        return plain("grid", dataclasses.asdict(self))

    @staticmethod
    def from_json(fields: dict[str, Any]) -> Grid:
        """The grid of plain data; UserError naming a field that is wrong or unknown."""
        return Grid(**validated("", Grid, fields))


def recipe_of(method: str, data: Spec) -> Recipe:
    """The recipe that a method's name stands for: its terms, or those of several joined by +.

    A variant `method[leaf=value,...]` has these leaves set; one that begins with the name of a
    term of the method's may leave out `terms.`.
    """
    plainly, settings = variant(method)
    recipe = _named(plainly, data)
    if not settings:
        return recipe
    leaves = settings_of(method, recipe)
    try:
        changed, used = overridden(recipe, leaves)
    except UserError as error:
        where = f"--methods {method}: {error.argument.removeprefix('--')}"
        raise UserError(where, error.message, error.fix) from error
    for path in set(leaves) - used:
        what = f"{plainly} does not take {path}: it has none, or needs its own"
        raise UserError(f"--methods {method}", what, "leave it out")
    return dataclasses.replace(changed, method=method)


def settings_of(method: str, recipe: Recipe) -> dict[str, Any]:
    """The leaves that a variant sets, by their whole names."""
    return {_dotted(path, recipe): value for path, value in variant(method)[1].items()}


def _dotted(path: str, recipe: Recipe) -> str:
    if path in ("execute", "neuron", "encode"):
        return f"{path}.kind"
    return f"terms.{path}" if path.split(".")[0] in recipe.terms else path


def _named(method: str, data: Spec) -> Recipe:
    """The recipe of names joined by +."""
    names = method.split("+")
    for name in names:
        if ":" not in name and name not in METHODS:
            raise unknown("--methods", name, METHODS)
        if len(names) > 1 and name in CONTROLS:
            raise UserError(f"--methods {method}", f"{name} is a control", "combine other methods")
    known = [name for name in names if ":" not in name]
    recipes = {name: default_recipe("distill", data, name) for name in known or ["none"]}
    parts = list(recipes.values())
    terms = {key: spec for each in reversed(parts) for key, spec in each.terms.items()}
    for number, name in enumerate(name for name in names if ":" in name):
        terms[f"own{number or ''}"] = {"kind": import_path("--methods", name, TERMS)}
    return dataclasses.replace(parts[0], method=method, terms=terms, **_needed(method, recipes))


def _needed(method: str, recipes: Mapping[str, Recipe]) -> dict[str, Any]:
    """The fields that the parts of a joined method cannot do without, of all parts together.

    Raises:
        UserError: where two parts need different values of one.
    """
    found: dict[str, Any] = {}
    owners: dict[str, str] = {}
    for name, recipe in recipes.items():
        for place in FIELDS.get(name, {}):
            value = getattr(recipe, place)
            if found.setdefault(place, value) != value:
                what = f"{owners[place]} needs {place} = {found[place]}, {name} {value}"
                raise UserError(f"--methods {method}", what, "name them apart")
            owners.setdefault(place, name)
    return found


def folder_name(method: str) -> str:
    """A method's name as part of a folder's."""
    return re.sub(r"[^\w.+-]", ".", method)


def stored_grid(out: Path) -> Grid:
    """The grid of a folder.

    Raises:
        UserError: if the folder holds none.
    """
    if not (out / GRID_FILE).exists():
        fix = "name the folder of a comparison, made by `spikelet compare --out`"
        raise UserError(f"--resume {out}", "there is no comparison in this folder", fix)
    file, fix = out / GRID_FILE, "take it from a copy, or begin the comparison in a new folder"
    fields = stored_object(file, fix).get("grid")
    if not isinstance(fields, dict):
        raise damaged(file, "it holds no grid", fix)
    try:
        return Grid.from_json(fields)
    except UserError as error:
        raise UserError(f"{file}: {error.argument}", error.message, fix) from error


def claimed(out: Path, grid: Grid) -> Grid:
    """Marks a folder as this grid's; a grid that is there already may only grow.

    Raises:
        UserError: if the folder holds anything else, or a grid with other settings.
    """
    require_room(out)
    if (out / GRID_FILE).exists():
        grid = grown(stored_grid(out), grid, out)
    write_json(out / GRID_FILE, {"schema": 1, "grid": grid.to_json()})
    return grid


def require_room(out: Path) -> None:
    """Makes a folder for a comparison.

    Raises:
        UserError: if it cannot be made, or holds anything else.
    """
    try:
        out.mkdir(parents=True, exist_ok=True)
        others = [each for each in out.iterdir() if not each.name.startswith(".")]
    except OSError as error:
        what = f"it cannot be written ({error.strerror})"
        raise UserError(f"--out {out}", what, "name another folder") from error
    if others and not (out / GRID_FILE).exists():
        what = "a run" if (out / "recipe.json").exists() else "something else"
        raise UserError(f"--out {out}", f"it holds {what}, no comparison", "name another folder")


def grown(stored: Grid, asked: Grid, out: Path) -> Grid:
    """The grid to go on with: that of the folder with the further methods, steps and seeds.

    Raises:
        UserError: naming the first setting that differs, or a part that `asked` leaves out.
    """
    for place, then, now in differences(_settings(stored), _settings(asked)):
        shown = place if now is None else f"{place} = {json.dumps(now)}"
        told = "without it" if then is None else f"with {json.dumps(then)}"
        what = f"the comparison in {out} was begun {told}"
        fix = "keep it so, or name another folder"
        raise UserError(shown.removeprefix("overrides."), what, fix)
    known = [method for method in stored.methods if method in asked.methods or _begun(out, method)]
    for name, parts in (("methods", known), ("steps", stored.steps)):
        missing = [each for each in parts if each not in getattr(asked, name)]
        if missing:
            what = f"the comparison in {out} has {missing[0]} too"
            raise UserError(f"--{name}", what, "name it again; a comparison may only grow")
    if asked.seeds < stored.seeds:
        what = f"the comparison in {out} has {stored.seeds}"
        raise UserError(f"--seeds {asked.seeds}", what, "give as many; a comparison may only grow")
    return dataclasses.replace(
        asked,
        methods=(*known, *asked.methods),
        steps=(*stored.steps, *asked.steps),
    )


def _settings(grid: Grid) -> dict[str, Any]:
    """What no further call of a grid may change; a model or teacher that is none has no fields."""
    fields = {name: value for name, value in grid.to_json().items() if name not in MAY_GROW}
    return fields | {name: fields[name] or {} for name in ("model", "teacher")}


def _begun(out: Path, method: str) -> bool:
    """Whether a comparison has a finished cell of a method."""
    return any((out / "cells").glob(f"{glob.escape(folder_name(method))}-T*/results.json"))


def _longer(recipe: Recipe, epochs: int) -> Recipe:
    training = dataclasses.replace(recipe.training, epochs=epochs, least_steps=0)
    return dataclasses.replace(recipe, training=training)


def _require(holds: bool, name: str, expected: str, value: Any, fix: str) -> None:
    """Raise the sentence about a flag unless it holds."""
    if not holds:
        flag = f"--{name.replace('_', '-')}"
        shown = " ".join(map(str, value)) if isinstance(value, tuple) else str(value)
        raise UserError(f"{flag} {shown}".strip(), f"expected {expected}", fix)
