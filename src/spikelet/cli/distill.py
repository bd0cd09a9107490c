"""`spikelet distill`: make a spiking student of a teacher."""

from __future__ import annotations

import dataclasses
from argparse import Namespace
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from spikelet.cli.leaves import Leaf, overridden
from spikelet.cli.runs import (
    NEEDED,
    absolute,
    data_spec,
    device_of,
    fresh,
    holds_run,
    leaves_of,
    model_spec,
    require,
    resolve_model,
    with_frames,
)
from spikelet.errors import UserError, unknown
from spikelet.recipe import METHODS, MODELS, Recipe, Spec, completed, default_recipe, terms_of

if TYPE_CHECKING:
    from rich.console import Console

LENGTH = {"epochs": "--epochs", "learning_rate": "--learning-rate", "accumulate": "--accumulate"}


def teacher_spec(options: Namespace) -> Spec:
    """The run folder, or the model with its weights, that teaches.

    Raises:
        UserError: if there is neither.
    """
    name = options.teacher
    if name is None:
        raise UserError("--teacher", "it is missing", f"name {NEEDED['teacher']}")
    if holds_run(Path(name)):
        if options.weights is not None:
            raise UserError("--weights", "a run folder brings its own", "leave the flag out")
        return {"run": absolute(name)}
    if ":" not in name and name not in MODELS:
        if "/" in name or Path(name).exists():
            fix = "make one with `spikelet teach --out`, or name a model with --weights FILE"
            raise UserError(f"--teacher {name}", "there is no run in this folder", fix)
        raise unknown("--teacher", name, [*MODELS, "timm:NAME", "torchvision:NAME"])
    resolve_model("--teacher", name)
    spec: Spec = {"kind": name}
    if options.weights is not None:
        spec["weights"] = absolute(options.weights)
    if options.width is not None and options.model is None:
        spec["width"] = options.width
    return spec


def recipe_of(options: Namespace, leaves: Sequence[Leaf]) -> Recipe:
    """The recipe that the flags and leaves describe."""
    plainly, _, settings = options.method.partition("[")
    if plainly in METHODS and settings:
        fix = "give its settings as flags, such as --terms.logits.weight 2 or --training.clip 1"
        raise UserError("--method", f"here it is a name alone, {plainly}", fix)
    if options.method not in METHODS:
        raise unknown("--method", options.method, METHODS)
    if options.method == "convert" and options.start == "scratch":
        what = "convert is the teacher's conversion, from its weights, and trains nothing"
        raise UserError("--start scratch", what, "leave the flag out")
    teacher = teacher_spec(options)
    data = data_spec(options, data_of(teacher))
    model, begun = None, ann_of(options)
    if begun is not None:
        model = begun[1]
    elif options.model is not None:
        model = model_spec(options.model, options.width, data["kind"])
    elif options.width is not None and "run" in teacher:
        what = "without --model the student has the width of its teacher's run"
        raise UserError("--width", what, "add --model small-cnn or another, or leave it out")
    given = [*leaves_of(options), *leaves]
    own = {} if begun is None else {"ann": begun[0]}
    recipe = default_recipe("distill", data, options.method, teacher=teacher, model=model, **own)
    size = size_of(teacher, data["kind"])
    recipe = completed(overridden(recipe, given), {leaf.path for leaf in given}, size)
    recipe = dataclasses.replace(recipe, data=with_frames(recipe.data, recipe.steps))
    added = [name for name in recipe.terms if name not in terms_of(options.method)]
    if added:  # not the method any more, least of all the control `none`
        recipe = dataclasses.replace(recipe, method="+".join([options.method, *added]))
    require_weights(recipe.teacher or {})
    require_images(recipe.calibrate)
    return recipe


def ann_of(options: Namespace) -> tuple[Spec, Spec] | None:
    """The run of an ANN that the student begins as, and its architecture; None without --ann.

    Raises:
        UserError: if there is none, it is a student's, or a flag says otherwise.
    """
    if options.ann is None:
        return None
    for name, why in (("model", "has its architecture"), ("width", "has its width")):
        if getattr(options, name) is not None:
            raise UserError(f"--{name}", f"the run of --ann {why}", "leave the flag out")
    if options.start == "scratch":
        raise UserError("--ann", "a student from scratch begins as none", "leave --start out")
    if not holds_run(Path(options.ann)):
        fix = "make one with `spikelet teach --model NAME --out RUN`"
        raise UserError(f"--ann {options.ann}", "there is no run in this folder", fix)
    from spikelet.train.load import ANN, load, own_architecture

    found = load(options.ann)
    if found.kind != ANN:
        fix = "name the run of a `teach`"
        raise UserError(f"--ann {options.ann}", "it is a student's run", fix)
    return {"run": absolute(options.ann)}, own_architecture(found.description)


def data_of(teacher: Spec) -> Spec | None:
    """The data that a teacher's run was trained on."""
    if "run" not in teacher:
        return None
    from spikelet.train import read_recipe

    return read_recipe(teacher["run"]).data


def size_of(teacher: Spec, kind: str) -> list[int] | None:
    """Height and width of the images that a teacher's run was trained on, if the student sees such.

    A damaged description tells none here: reading the teacher says what is wrong with it.
    """
    known = data_of(teacher)
    if known is None or known["kind"] != kind:
        return None
    from spikelet.train.stored import stored_object

    try:
        found = stored_object(Path(teacher["run"]) / "model.json").get("size")
    except UserError:
        return None
    sizes = found if isinstance(found, list) else []
    return sizes if sizes and all(isinstance(each, int) for each in sizes) else None


def require_weights(teacher: Spec) -> None:
    """A model of ours or of a zoo knows nothing without weights; a function may bring its own."""
    kind = teacher.get("kind", "")
    known = kind in MODELS or kind.startswith(("timm:", "torchvision:"))
    if known and not teacher.get("weights") and not teacher.get("pretrained"):
        raise UserError(f"--teacher {kind}", "it is not trained", "add --weights FILE")


def require_images(calibrate: int) -> None:
    """Thresholds are calibrated on two images at least; fewer are not taken for them silently."""
    if 0 <= calibrate < 2:
        what = "expected 2 or more images to calibrate thresholds on"
        raise UserError(f"calibrate = {calibrate}", what, "try 512")


def run(options: Namespace, leaves: Sequence[Leaf], console: Console) -> dict[str, Any]:
    """Distil; the object for --json."""
    require(options, "teacher", "out")
    out = fresh(options.out, "distill")
    recipe = recipe_of(options, leaves)
    device = device_of(options)
    unused = [flag for name, flag in LENGTH.items() if getattr(options, name) is not None]
    if recipe.method == "convert" and unused and recipe.ann is None:
        words = f"convert trains nothing and leaves {' and '.join(unused)} aside"
        console.print(words, markup=False, highlight=False, soft_wrap=True)
    from spikelet.train import job

    return job.distill(recipe, out, console=console, device=device)
