"""What a reader of a grid's table must know: settings that not every row has."""

from __future__ import annotations

from collections.abc import Iterator

from spikelet.compare.grid import Cell, Grid


def notes(grid: Grid) -> list[str]:
    """Sentences about settings that a method of the grid does not take, and a learning teacher."""
    return [*_kept_neurons(grid), *_other_trainings(grid), *_learning_teacher(grid)]


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
