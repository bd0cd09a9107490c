"""Whether every method of a comparison can be carried out, before anything trains."""

from __future__ import annotations

import itertools

import torch
from torch import fx, nn

from spikelet.compare.grid import Cell, Grid
from spikelet.distill import match
from spikelet.errors import UserError
from spikelet.graph import capture
from spikelet.obstacles import reason
from spikelet.rate import refuse_biased
from spikelet.recipe import EXECUTES, NEURONS, build
from spikelet.terms.suited import require_suited
from spikelet.train.load import ANN, COMMON, Loaded, assemble, load
from spikelet.train.prepare import build_terms
from spikelet.train.running import encoding

UNKNOWN = (0.0,), (1.0,)  # mean and deviation of images, before there are any


def require_buildable(grid: Grid) -> None:
    """Raise for a method whose recipe cannot be carried out at some T."""
    for method, steps in itertools.product(grid.methods, grid.steps):
        recipe = grid.recipe(Cell(method, steps, 0), grid.teacher)
        try:
            execute = build("execute", recipe.execute, EXECUTES)
            neuron = build("neuron", recipe.neuron, NEURONS)
            if recipe.execute["kind"] == "rate":
                refuse_biased(neuron)
            encode = encoding(recipe, *UNKNOWN, steps)
            require_suited(build_terms(recipe), execute, getattr(encode, "lengths", [steps]))
        except UserError as error:
            at = f" at T = {steps}" if len(grid.steps) > 1 else ""
            where = f"--methods {method}{at}: {error.argument}"
            raise UserError(where, error.message, error.fix) from error


def require_students(grid: Grid) -> None:
    """Raise where the run that teaches can have no students, or not by some method.

    Students of what is not read yet, a teacher of other data or one that is no run, are left to
    their cells.
    """
    spec = grid.teacher or {}
    if "run" not in spec:
        return
    teacher = load(spec["run"])
    if teacher.kind != ANN:
        return
    own = teacher.net
    if grid.model is not None:
        own = assemble({name: teacher.description[name] for name in COMMON} | grid.model)
    why = reason(own)
    if why is not None:
        flag, fix = "--teacher", "name another architecture with --model"
        if grid.model is not None:
            flag, fix = "--model", "name one of convolutions, norms, pooling and ReLUs"
        raise UserError(flag, f"no student can be made of it: {why}", fix)
    if teacher.recipe.data["kind"] == grid.data["kind"]:
        _require_places(grid, own, teacher)


def _require_places(grid: Grid, own: nn.Module, teacher: Loaded) -> None:
    """Raise for a method whose features have no place in the student and its teacher."""
    known = teacher.description
    example = torch.zeros(1, known["channels"], *known["size"])
    pairs = match(_traced(own), _traced(teacher.net), example)
    for method in grid.methods:
        recipe = grid.recipe(Cell(method, grid.steps[0], 0), grid.teacher)
        for term in build_terms(recipe).values():
            try:
                term.taps(pairs)
            except UserError as error:
                where = f"--methods {method}: {error.argument}"
                raise UserError(where, error.message, error.fix) from error
            except Exception:  # a defect, of a term of one's own say, is told by its cells alone
                continue


def _traced(net: nn.Module) -> nn.Module:
    """The network as a graph, or itself where it cannot be read: then it has no stages."""
    try:
        return net if isinstance(net, fx.GraphModule) else capture(net)
    except UserError:
        return net
