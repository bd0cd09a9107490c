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
from spikelet.errors import UserError
from spikelet.measure import answers_over_steps
from spikelet.models import build_model, default_model
from spikelet.neuron import Neuron
from spikelet.norm import freeze_norms
from spikelet.recipe import DATA, NEURONS, Recipe, build
from spikelet.train.run import read_json, read_recipe
from spikelet.train.running import encoder, runner

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
        steps = self.recipe.steps if steps is None else steps
        data = read_json(self.path / "card.json")["data"]
        encode = encoder(self.recipe, data["mean"], data["std"])
        found = answers_over_steps(self.net, images, [steps], runner(self.recipe), encode)
        return found[steps]


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
    for spiking in ("neuron", "norm"):
        fields.pop(spiking, None)
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
    if recipe.task == "distill":
        description = {"norm": recipe.norm_kind, **description}
    net = restored(description, load_weights(path / MODEL_FILE))
    return Loaded(recipe, net, ANN if recipe.task == "teach" else SNN, description, path)


def restored(description: Mapping[str, Any], weights: Mapping[str, Tensor]) -> nn.Module:
    """The network of a description with stored weights, in eval mode; spiking if it has neurons."""
    net = assemble(description)
    if "neuron" in description:
        net = convert(net, build("neuron", description["neuron"], NEURONS))
        if description.get("norm") == "frozen":
            freeze_norms(net)
        fit_thresholds(net, weights)
    net.load_state_dict(weights)
    return net.eval()


def teacher(student: Loaded) -> Loaded:
    """The teacher that a student's run keeps."""
    description = read_json(student.path / "teacher.json")
    net = restored(description, load_weights(student.path / TEACHER_FILE))
    kind = SNN if "neuron" in description else ANN
    return Loaded(student.recipe, net, kind, description, student.path)


def fit_thresholds(net: nn.Module, weights: Mapping[str, Tensor]) -> None:
    """Gives each neuron thresholds of the stored shape, one for the layer or one per channel."""
    for path, module in net.named_modules():
        if isinstance(module, Neuron):
            module.set_threshold(weights[f"{path}.threshold"], weights[f"{path}.initial"])
