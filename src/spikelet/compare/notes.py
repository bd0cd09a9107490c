"""What a reader of a grid's table must know: settings that not every row has."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Iterator
from typing import Any

from spikelet.compare.grid import CONTROLS, Cell, Grid, settings_of
from spikelet.compare.overrides import differences
from spikelet.recipe import completed


def notes(grid: Grid) -> list[str]:
    """Sentences about settings that differ, between methods or from `distill`'s own defaults."""
    about = (_kept_neurons, _other_trainings, _learning_teacher, _unlike_distill)
    return [note for part in about for note in part(grid)]


def _kept_neurons(grid: Grid) -> Iterator[str]:
    """A quantised ANN has no leak, sign, delay or steps: it stays as it is where others change."""
    for method in grid.methods:
        left = [path for path in grid.left_out(method) if path.startswith("neuron.")]
        if left:
            settings = ", ".join(f"{path} = {grid.overrides[path]}" for path in left)
            yield (
                f"{method} stays on integrate-and-fire levels: a quantised ANN has no leak, sign, "
                f"delay or steps, so {settings} is not applied to it."
            )


def _other_trainings(grid: Grid) -> Iterator[str]:
    """A variant that trains longer, or in other batches, differs by more than its losses."""
    usual = grid.recipe(Cell("none", grid.steps[0], 0)).training
    for method in grid.methods:
        mine = grid.recipe(Cell(method, grid.steps[0], 0)).training
        apart = [
            f"{name} = {getattr(mine, name)} (none: {getattr(usual, name)})"
            for name in ("epochs", "least_steps", "batch")
            if getattr(mine, name) != getattr(usual, name)
        ]
        if apart:
            yield f"{method} has a training of its own: {', '.join(apart)}."


def _learning_teacher(grid: Grid) -> Iterator[str]:
    joint = [m for m in grid.methods if grid.recipe(Cell(m, grid.steps[0], 0)).joint]
    if joint:
        yield (
            "The teacher's row is that of the given teacher, before joint training: each method "
            "trains a copy of its own along on the labels (joint)."
        )


def _unlike_distill(grid: Grid) -> Iterator[str]:
    """`distill` chooses some defaults by T and method; in a grid all are trained alike."""
    trained = [m for m in grid.methods if m not in CONTROLS or m == "none"]
    leaves: dict[tuple[str, Any], dict[str, list[int]]] = {}
    for method, steps in itertools.product(trained, grid.steps):
        for leaf in _left_to_distill(grid, method, steps):
            leaves.setdefault(leaf, {}).setdefault(method, []).append(steps)
    said: dict[tuple[str, str], list[tuple[str, str]]] = {}
    for (path, value), where in leaves.items():
        method, found = next(iter(where.items()))  # one that is there for all begins with none
        told = f"{value:g}" if isinstance(value, float) else str(value)
        at = " and ".join(map(str, sorted(found)))
        said.setdefault((method, at), []).append((path, told))
    for (method, at), settings in said.items():
        short = ",".join(f"{path.removeprefix('terms.')}={value}" for path, value in settings)
        own, way = f" for {method}", f"{method}[{short}]"
        if method == "none":
            own, way = "", " ".join(f"--{path} {value}" for path, value in settings)
        yield (
            f"`distill` sets {short}{own} at T = {at} by itself; a grid trains all its methods "
            f"alike, unless told otherwise: {way}."
        )


def _left_to_distill(grid: Grid, method: str, steps: int) -> Iterator[tuple[str, Any]]:
    """The leaves, and their values, that `distill` would set where the grid does not."""
    recipe = grid.recipe(Cell(method, steps, 0))
    chosen = {*grid.overrides, *settings_of(method, recipe)}
    if grid.epochs is not None:
        chosen.add("training.epochs")
    mine, other = (dataclasses.asdict(each) for each in (recipe, completed(recipe, chosen)))
    for path, _, value in differences(mine, other):
        yield path, value
