"""A stored run as a network that answers."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from spikelet.checkpoint import load_weights
from spikelet.convert import convert
from spikelet.data import Dataset
from spikelet.encode import repeat
from spikelet.errors import UserError
from spikelet.execute import bptt
from spikelet.models import build_model, default_model
from spikelet.neuron import Neuron
from spikelet.norm import freeze_norms
from spikelet.recipe import DATA, NEURONS, Recipe, build
from spikelet.train.run import read_json, read_recipe

ANN = "teacher"
SNN = "student"
MODEL_FILE = "model.safetensors"
TEACHER_FILE = "teacher.safetensors"


@dataclass(frozen=True)
class Loaded:
    """A run that was read back.

    Attributes:
        recipe: how it was made.
        net: the ANN of a `teach` run, the spiking network of a `distill` run, in eval mode.
        kind: "teacher" or "student".
        description: what builds the network's architecture again.
        path: the run folder.
    """

    recipe: Recipe
    net: nn.Module
    kind: str
    description: dict[str, Any]
    path: Path

    def dataset(self) -> Dataset:
        """The data set that the run was made with."""
        return build("data", self.recipe.data, DATA)

    @torch.no_grad()
    def predict(self, images: Tensor, steps: int | None = None) -> Tensor:
        """Normalised images "B C H W" to logits "B K", after `steps` time steps.

        Args:
            images: normalised as the run's card says.
            steps: T, by default that of the training; an ANN takes none.
        """
        if self.kind == ANN:
            return self.net(images)
        x = repeat(images, self.recipe.steps if steps is None else steps)
        return bptt(self.net, x).mean_logits


def describe(spec: Mapping[str, Any] | None, dataset: Dataset, seed: int) -> dict[str, Any]:
    """What `assemble` needs to build a model for a data set; its default model without a spec."""
    if spec is None:
        kind, width = default_model(dataset.name)
        spec = {"kind": kind, "width": width}
    size = list(dataset.size)
    common = {"classes": len(dataset.classes), "channels": dataset.channels, "size": size}
    return {"seed": seed, **common, **spec}


def architecture(description: Mapping[str, Any]) -> dict[str, Any]:
    """A description without where its weights came from."""
    return {k: v for k, v in description.items() if k not in ("weights", "pretrained")}


def assemble(description: Mapping[str, Any]) -> nn.Module:
    """The model of a description, in train mode."""
    fields = dict(description)
    fields.pop("neuron", None)
    fields["size"] = tuple(fields["size"])
    return build_model(fields.pop("kind"), **fields)


def load(run: Path | str) -> Loaded:
    """A run folder as a network that answers, on the CPU.

    Raises:
        UserError: if the folder is no run, or an unfinished one.
    """
    path = Path(run)
    if not (path / "recipe.json").exists():
        raise UserError(f"run = {path}", "there is no run in this folder", "name a run folder")
    recipe = read_recipe(path)
    if not (path / MODEL_FILE).exists():
        raise UserError(
            f"run = {path}",
            "the run is not finished",
            f"continue it with --resume {shlex.quote(str(path))}",
        )
    description = read_json(path / "model.json")
    weights = load_weights(path / MODEL_FILE)
    source = assemble(description)
    if recipe.task == "teach":
        source.load_state_dict(weights)
        return Loaded(recipe, source.eval(), ANN, description, path)
    net = convert(source, build("neuron", description["neuron"], NEURONS), steps=recipe.steps)
    if recipe.norm_kind == "frozen":
        freeze_norms(net)
    fit_thresholds(net, weights)
    net.load_state_dict(weights)
    return Loaded(recipe, net.eval(), SNN, description, path)


def teacher(student: Loaded) -> nn.Module:
    """The teacher that a student's run keeps, in eval mode."""
    net = assemble(read_json(student.path / "teacher.json"))
    net.load_state_dict(load_weights(student.path / TEACHER_FILE))
    return net.eval()


def fit_thresholds(net: nn.Module, weights: Mapping[str, Tensor]) -> None:
    """Gives each neuron thresholds of the stored shape, one for the layer or one per channel."""
    for path, module in net.named_modules():
        if isinstance(module, Neuron):
            module.set_threshold(weights[f"{path}.threshold"], weights[f"{path}.initial"])
