"""A stored run as a network that answers."""

from __future__ import annotations

import inspect
import shlex
from collections.abc import Mapping
from dataclasses import dataclass
from numbers import Integral
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from spikelet.checkpoint import restore
from spikelet.convert import convert
from spikelet.data import Dataset
from spikelet.data.dataset import require_dataset
from spikelet.encode import FRAMES, still
from spikelet.errors import UserError
from spikelet.given import IMAGES, require_finite
from spikelet.layout import laid_for
from spikelet.measure import answers_over_steps
from spikelet.models import build_model, default_model
from spikelet.neuron import Neuron
from spikelet.norm import freeze_norms, give_affine, tracking
from spikelet.recipe import DATA, NEURONS, Recipe, build, resolve
from spikelet.train.run import digest, identity, read_recipe
from spikelet.train.running import encoder, student_measurer
from spikelet.train.stored import (
    DESCRIPTIONS,
    RESULTS_FILE,
    damaged,
    stored_description,
    stored_object,
    stored_weights,
)

ANN = "teacher"
SNN = "student"
MODEL_FILE = "model.safetensors"
TEACHER_FILE = "teacher.safetensors"
ANN_FOLDER = "ann"  # of the run of the ANN that a student of another architecture begins as
COMMON = ("seed", "classes", "channels", "size")  # of a description: what is no model's own


def made(spec: Mapping[str, Any]) -> Dataset:
    """The data set of a spec.

    Raises:
        UserError: for one that cannot be made, or whose parts do not fit each other.
    """
    argument = f"data = {spec.get('kind')}"
    try:
        found = build("data", spec, DATA)
    except UserError:
        raise
    except Exception as error:
        if ":" not in str(spec.get("kind")):
            raise
        what = f"it cannot be made ({type(error).__name__}: {error})"
        raise UserError(argument, what, "mend the function") from error
    require_dataset(argument, found)
    return found


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
        return made(self.recipe.data)

    @torch.no_grad()
    def predict(self, images: Tensor, steps: int | None = None) -> Tensor:
        """Normalised images "B C H W" to logits "B K", after `steps` time steps.

        Args:
            images: normalised as the run's card says, float32.
            steps: T, by default that of the training; an ANN takes none. A student whose layers
                begin late is another network at any other T (docs/delay.md).

        Raises:
            UserError: for images of another type or size, or other channels, than in training,
                for values that are not finite, and for steps of an ANN.
        """
        if not isinstance(images, Tensor) or images.dtype != torch.float32:
            got = images.dtype if isinstance(images, Tensor) else type(images).__name__
            what = f"expected normalised images as a float32 tensor, got {got}"
            raise UserError("images", what, "take spikelet.data.normalise(pixels, run.dataset())")
        wanted = (self.description["channels"], *self.description["size"])
        axes = (IMAGES, FRAMES) if _records(str(self.recipe.data["kind"])) else (IMAGES,)
        if images.ndim not in axes or images.shape[-3:] != wanted:
            what = f"expected a batch of images {wanted}, as the run was trained on"
            raise UserError(f"images {tuple(images.shape)}", what, "bring them to this size")
        require_finite("images", images)
        if self.kind == ANN:
            if steps is not None:
                what = "an ANN answers without time steps"
                raise UserError(f"steps = {steps}", what, "leave it out")
            return self.net(laid_for(self.net, still(images)))
        steps = self.recipe.steps if steps is None else steps
        if not isinstance(steps, Integral):
            raise UserError(f"steps = {steps!r}", "expected a whole number of at least 1", "try 2")
        encode = encoder(self.recipe, *statistics(self.path / "card.json"))
        shown = encode(images[:1], 1)[0]
        way = student_measurer(self.recipe, self.net, shown, steps, len(images))
        return answers_over_steps(self.net, images, [steps], way, encode)[steps]


def _records(kind: str) -> bool:
    """Whether a data set holds recordings, as far as its name tells: one's own may."""
    return ":" in kind or "frames" in inspect.signature(resolve("data", kind, DATA)).parameters


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


def own_architecture(description: Mapping[str, Any]) -> dict[str, Any]:
    """The model spec of a description: what is not of the data or the seed."""
    return {k: v for k, v in architecture(description).items() if k not in COMMON}


def assemble(description: Mapping[str, Any]) -> nn.Module:
    """The model of a description, in train mode."""
    fields = dict(description)
    for other in ("neuron", "norm", "images"):
        fields.pop(other, None)
    fields["size"] = tuple(fields["size"])
    width = fields.get("width")
    if isinstance(width, int) and width < 1:
        raise UserError(f"width = {width}", "expected 1 or more channels", "raise it")
    return build_model(fields.pop("kind"), **fields)


def load(run: Path | str) -> Loaded:
    """A run folder as a network that answers, on the CPU.

    Raises:
        UserError: if the folder is no run, or an unfinished one.
    """
    if not isinstance(run, str | Path):
        what = f"expected a folder, got {type(run).__name__}"
        raise UserError("run", what, "name a run folder")
    path = Path(run)
    if (path / "compare.json").exists():
        fix = f"name one of the runs in {path / 'cells'}"
        raise UserError(f"run = {path}", "this is a comparison of many runs", fix)
    if not (path / "recipe.json").exists():
        what = "there is no run in this folder (no recipe.json)"
        raise UserError(f"run = {path}", what, "name a run folder")
    recipe = read_recipe(path)
    if not (path / MODEL_FILE).exists():
        raise _without_weights(path, recipe.task)
    if not (path / RESULTS_FILE).exists():
        raise UserError(f"run = {path}", "the run is not finished", _continued(path, recipe.task))
    description = stored_description(path / "model.json")
    _require_kept(path, recipe)
    if recipe.task == "distill":
        description = {"norm": recipe.norm_kind, **description}
        if "neuron" not in description:
            raise damaged(path / "model.json", "neuron is missing")
    sums = digests(path / "card.json")
    net = restored(description, path / MODEL_FILE, sums.get("student"))
    return Loaded(recipe, net, ANN if recipe.task == "teach" else SNN, description, path)


def _without_weights(path: Path, task: str) -> UserError:
    """The error about a run that has no weights: it is not finished, or they are gone."""
    finished = (path / RESULTS_FILE).exists()
    what = "its weights are gone" if finished else "the run is not finished"
    return UserError(f"run = {path}", what, _continued(path, task))


def _continued(path: Path, task: str) -> str:
    return f"continue it with `{shlex.join(['spikelet', task, '--resume', str(path)])}`"


def _require_kept(path: Path, recipe: Recipe) -> None:
    """Raises where what describes a run is not what it has written; older ones have no sums."""
    sums = stored_object(path / RESULTS_FILE).get("sums")
    now = identity(recipe, {}, None)
    now |= {name: digest(path / name) for name in DESCRIPTIONS if (path / name).exists()}
    for name, sha256 in (sums if isinstance(sums, dict) else {}).items():
        if name in now and now[name] != sha256:
            file = path / name if name in DESCRIPTIONS else path / "recipe.json"
            what = "it is not what the run has written: its sha256 differs"
            raise damaged(file, what if file.name == name else f"{name} was another")


def statistics(card: Path) -> tuple[list[float], list[float]]:
    """Mean and deviation that a run's images were normalised with."""
    try:
        data = stored_object(card)["data"]
        mean, std = ([float(each) for each in data[name]] for name in ("mean", "std"))
    except (KeyError, TypeError, ValueError) as error:
        if isinstance(error, UserError):
            raise
        raise damaged(card, "data, mean or std is missing") from error
    return mean, std


def digests(card: Path) -> dict[str, str]:
    """The digests of the weights that a run's card holds; older cards have fewer."""
    if not card.exists():
        return {}
    content = stored_object(card)
    of_teacher = content["teacher"] if isinstance(content.get("teacher"), dict) else {}
    found = {"student": content.get("sha256"), "teacher": of_teacher.get("sha256")}
    return {name: value for name, value in found.items() if isinstance(value, str)}


def restored(description: Mapping[str, Any], file: Path, sha256: str | None = None) -> nn.Module:
    """The network of a description with the weights of a file, in eval mode; spiking if it says so.

    Raises:
        UserError: if the file is damaged, or does not fit the description.
    """
    weights, net = stored_weights(file, sha256), assemble(description)
    if "neuron" in description:
        net = convert(net, build("neuron", description["neuron"], NEURONS))
        if description.get("norm") == "frozen":
            freeze_norms(net)
        fit_thresholds(net, weights)
        fit_norms(net, weights)
    restore(net, weights, str(file))
    return net.eval()


def teacher(student: Loaded) -> Loaded:
    """The teacher that a student's run keeps."""
    description = stored_description(student.path / "teacher.json")
    sums = digests(student.path / "card.json")
    net = restored(description, student.path / TEACHER_FILE, sums.get("teacher"))
    kind = SNN if "neuron" in description else ANN
    return Loaded(student.recipe, net, kind, description, student.path)


def begun_as(student: Loaded) -> Loaded | None:
    """The ANN of its own architecture that a student was converted from; None without one.

    Raises:
        UserError: if it is lost or damaged, with the line that makes it again.
    """
    if student.recipe.ann is None:
        return None
    try:
        return load(student.path / ANN_FOLDER)
    except UserError as error:
        what = f"the ANN that it began as is lost or damaged ({error.message})"
        fix = (
            f"`{shlex.join(['spikelet', 'distill', '--resume', str(student.path)])}` makes it anew"
        )
        raise UserError(f"run = {student.path}", what, fix) from error


def fit_norms(net: nn.Module, weights: Mapping[str, Tensor]) -> None:
    """Gives each norm without weight and bias those that are stored: it got them when settled."""
    stored = {norm for path, norm in net.named_modules() if f"{path}.weight" in weights}
    for norm in tracking(net):
        if norm in stored:
            give_affine(norm)


def fit_thresholds(net: nn.Module, weights: Mapping[str, Tensor]) -> None:
    """Gives each neuron thresholds and biases of the stored shape, of the layer or per channel."""
    for path, module in net.named_modules():
        if isinstance(module, Neuron):
            bias = weights.get(f"{path}.step_biases")
            if bias is not None:
                module.set_step_biases(bias)
            stored = [weights.get(f"{path}.{name}") for name in ("threshold", "initial")]
            if stored[0] is not None and stored[1] is not None:
                module.set_threshold(stored[0], stored[1])
