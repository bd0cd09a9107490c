"""`spikelet teach`: train an ANN classifier."""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from spikelet.cli.leaves import Leaf, overridden
from spikelet.cli.runs import absolute, data_spec, device_of, fresh, leaves_of, model_spec, require
from spikelet.recipe import Recipe, default_recipe

if TYPE_CHECKING:
    from rich.console import Console


def recipe_of(options: Namespace, leaves: Sequence[Leaf]) -> Recipe:
    """The recipe that the flags and leaves describe."""
    data = data_spec(options)
    model = model_spec(options.model, options.width, data["kind"])
    if options.weights is not None or any(leaf.path.startswith("model.") for leaf in leaves):
        from spikelet.models import default_model

        model = model or model_spec(*default_model(data["kind"]), data["kind"])
    if options.weights is not None and model is not None:
        model["weights"] = absolute(options.weights)
    recipe = default_recipe("teach", data, model=model)
    return overridden(recipe, [*leaves_of(options), *leaves])


def run(options: Namespace, leaves: Sequence[Leaf], console: Console) -> dict[str, Any]:
    """Teach; the object for --json."""
    require(options, "data", "out")
    out = fresh(options.out, "teach")
    recipe = recipe_of(options, leaves)
    device = device_of(options)
    from spikelet.train import job

    return job.teach(recipe, out, console=console, device=device)
