"""`spikelet compare`: methods x steps x seeds under one teacher, one table."""

from __future__ import annotations

import dataclasses
from argparse import Namespace
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from spikelet.cli.distill import data_of, require_images, require_weights, teacher_spec
from spikelet.cli.leaves import Leaf, overridden
from spikelet.cli.runs import (
    data_spec,
    device_of,
    fresh,
    holds_run,
    leaves_of,
    model_spec,
    require,
    with_frames,
)
from spikelet.errors import UserError
from spikelet.recipe import Recipe, default_recipe

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

    from spikelet.compare import Grid

FREE = {"resume", "json", "quiet", "device", "jobs", "budget_minutes"}
GRIDS_OWN = ("data", "model", "teacher")
DEFECT, MENDABLE = 1, 2
WIDE = 142  # columns for accuracy and cost side by side
ACCURACY = ("method", "accuracy %", "std", "n", "to none", "95 % interval", "finding")
COST = ("rate by layer", "seconds", "ANN epochs", "peak MiB")


def grid_of(options: Namespace, leaves: Sequence[Leaf]) -> Grid:
    """The grid that the flags and leaves describe."""
    from spikelet.compare import Grid

    require(options, "methods")
    base = _shared(options, [leaf for leaf in leaves if _head(leaf) in GRIDS_OWN])
    fields = {
        "steps": tuple(options.steps or (4,)),
        "seeds": options.seeds,
        "epochs": options.epochs,
        "batch": options.batch,
        "teacher_epochs": options.teacher_epochs,
        "tune": options.tune,
        "tune_rates": tuple(options.tune_rates or ()),
        "tune_epochs": options.tune_epochs,
    }
    flags = Namespace(**vars(options) | dict.fromkeys(("steps", "epochs", "batch")))
    others = [leaf for leaf in leaves if _head(leaf) not in GRIDS_OWN]
    shared: dict[str, Any] = {"teacher": base.teacher, "model": base.model}
    data = with_frames(base.data, max(fields["steps"]))
    grid = Grid(data, tuple(options.methods), **shared, **fields)
    values = overrides_of([*leaves_of(flags), *others], grid)
    require_images(values.get("calibrate", Recipe.calibrate))
    return dataclasses.replace(grid, overrides=values)


def _head(leaf: Leaf) -> str:
    return leaf.path.partition(".")[0]


def _shared(options: Namespace, leaves: Sequence[Leaf]) -> Recipe:
    """A recipe with the data, the teacher and the model that the cells share."""
    teacher = None if options.teacher is None else teacher_spec(options)
    if teacher is None and options.weights is not None:
        raise UserError("--weights", "they belong to a teacher", "add --teacher, a model's name")
    data = data_spec(options, None if teacher is None else data_of(teacher))
    width = options.width
    if teacher is not None and options.model is None:
        if width is not None and "run" in teacher:
            fix = "add --model"
            raise UserError("--width", "the students are made from the teacher's run", fix)
        width = None
    model = model_spec(options.model, width, data["kind"])
    if model is None and teacher is None and any(_head(leaf) == "model" for leaf in leaves):
        from spikelet.models import default_model

        model = model_spec(*default_model(data["kind"]), data["kind"])
    recipe = default_recipe("distill", data, "none", teacher=teacher, model=model)
    recipe = overridden(recipe, leaves)
    if recipe.teacher is not None:
        require_weights(recipe.teacher)
    return recipe


def overrides_of(leaves: Sequence[Leaf], grid: Grid) -> dict[str, Any]:
    """Dotted leaf -> value, each read as the type that a method with such a leaf declares."""
    from spikelet.compare.grid import recipe_of

    recipes = [grid.begun(recipe_of(method, grid.data)) for method in grid.methods]
    groups: dict[str, list[Leaf]] = {}
    for leaf in leaves:
        groups.setdefault(_group(leaf.path), []).append(leaf)
    values: dict[str, Any] = {}
    for group, members in groups.items():
        fields = dataclasses.asdict(overridden(_with(group, recipes), members))
        values |= {leaf.path: _at(fields, leaf.path.split(".")) for leaf in members}
    return values


def _group(path: str) -> str:
    """Leaves that depend on each other: those of one term, or of one field of the recipe."""
    head, *rest = path.split(".")
    return ".".join([head, *rest[:1]]) if head == "terms" else head


def _with(group: str, recipes: Sequence[Recipe]) -> Recipe:
    """The first recipe that such leaves apply to; one with every term where there is none."""
    head, _, name = group.partition(".")
    if head == "terms":
        every = {key: spec for each in recipes for key, spec in each.terms.items()}
        named = (r for r in recipes if name in {key.replace("-", "_") for key in r.terms})
        return next(named, dataclasses.replace(recipes[0], terms=every))
    if head == "execute":
        return next((r for r in recipes if r.execute["kind"] == "rate"), recipes[0])
    return recipes[0]


def _at(fields: Any, path: Sequence[str]) -> Any:
    """The value at a dotted place."""
    for key in path:
        fields = fields[int(key)] if isinstance(fields, list) else fields[key]
    return fields


def run(
    options: Namespace, leaves: Sequence[Leaf], defaults: Mapping[str, Any], console: Console
) -> dict[str, Any]:
    """Compare, or go on with a comparison; the object for --json."""
    if options.resume is not None:
        out, grid = Path(options.resume), _resumed(options, leaves, defaults)
    else:
        require(options, "methods", *(["data"] if options.teacher is None else []), "out")
        if not holds_run(Path(options.out)):
            fresh(options.out, "compare")
        out, grid = Path(options.out), grid_of(options, leaves)
    devices = [device_of(Namespace(device=each)) for each in options.device or ()]
    from spikelet.compare import compare

    return compare(
        grid,
        out,
        jobs=max(len(devices), 1) if options.jobs is None else options.jobs,
        devices=[each for each in devices if each is not None] or None,
        budget_minutes=options.budget_minutes,
        console=console,
    )


def _resumed(options: Namespace, leaves: Sequence[Leaf], defaults: Mapping[str, Any]) -> Grid:
    """The grid of a folder, which no flag changes."""
    from spikelet.compare.grid import stored_grid

    grid = stored_grid(Path(options.resume))
    changed = [name for name, value in vars(options).items() if value != defaults[name]]
    flags = [f"--{name.replace('_', '-')}" for name in changed if name not in FREE]
    for flag in [*flags, *(leaf.flag for leaf in leaves)]:
        fix = "leave the flag out; --out with all flags adds methods, steps or seeds"
        raise UserError(flag, "a resumed comparison keeps its settings", fix)
    return grid


def status(result: Mapping[str, Any]) -> int:
    """The exit status: 0, or why a cell failed."""
    failed = result["failed"]
    if any(each["defect"] for each in failed):
        return DEFECT
    return MENDABLE if failed else 0


def show(console: Console, result: Mapping[str, Any]) -> None:
    """The table, what it shows, what is missing, and where the files are."""
    from spikelet.compare.write import over_seeds
    from spikelet.report import at

    if not console.is_terminal:
        console.width = max(console.width, WIDE)
    rows = over_seeds(result["rows"])
    for steps in sorted({row["steps"] for row in rows if row["steps"] is not None}):
        mine = at(steps, rows)
        if console.width >= WIDE:
            console.print(_table(f"T = {steps}", mine, [*ACCURACY, *COST], fold=False))
        else:
            console.print(_table(f"T = {steps}", mine, ACCURACY))
            console.print(_table(f"T = {steps}, what it costs", mine, [ACCURACY[0], *COST]))
    _say(console, (f"- {sentence}" for sentence in result["findings"]))
    _say(console, (f"note: {sentence}" for sentence in result["notes"]))
    _say(console, _missing(result))
    _say(console, result["files"][:1])


def _table(
    title: str, rows: Sequence[Mapping[str, Any]], heads: Sequence[str], fold: bool = True
) -> Table:
    from rich.box import SIMPLE_HEAD
    from rich.table import Table
    from rich.text import Text

    from spikelet.compare.write import cells

    table = Table(title=title, box=SIMPLE_HEAD, title_justify="left")
    for head in heads:
        justify: Any = "left" if head in ("method", "finding") else "right"
        folds = head == "method" or (fold and head == "finding")
        table.add_column(head, justify=justify, no_wrap=not folds, overflow="fold")
    for row in rows:
        words = cells(row)
        table.add_row(*(Text(words[head]) for head in heads))
    return table


def _say(console: Console, lines: Iterable[str]) -> None:
    for line in lines:
        console.print(line, markup=False, highlight=False, soft_wrap=True)


def _missing(result: Mapping[str, Any]) -> Iterable[str]:
    """What failed and what is left, with the line that goes on."""
    from spikelet.compare.write import failures

    yield from failures(result)
    if result["remaining"]:
        yield f"{len(result['remaining'])} cells remain: {', '.join(result['remaining'])}"
    if result["resume"]:
        yield f"continue with: {result['resume']}"
