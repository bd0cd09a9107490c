"""What `teach` and `distill` share: data specs, leaves behind flags, run folders, resuming."""

from __future__ import annotations

import inspect
import os
import shlex
from argparse import Namespace
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from spikelet.cli import many
from spikelet.cli.leaves import Leaf
from spikelet.errors import UserError
from spikelet.folder import require_free
from spikelet.recipe import DATA, METHODS, MODELS, Recipe, Spec, resolve

if TYPE_CHECKING:
    from rich.console import Console

PLACES = {
    "epochs": "training.epochs",
    "batch": "training.batch",
    "accumulate": "training.accumulate",
    "processes": "training.processes",
    "learning_rate": "training.learning_rate",
    "precision": "training.precision",
    "seed": "seed",
    "steps": "steps",
    "start": "start",
    "calibrate": "calibrate",
    "norm": "norm",
    "estimate": "estimate",
    "joint": "joint",
    "encode": "encode.kind",
    "neuron": "neuron.kind",
    "execute": "execute.kind",
}
FREE = {"resume", "json", "quiet", "device", "processes"}


def leaves_of(options: Namespace) -> list[Leaf]:
    """The fixed flags that stand for a leaf of the recipe."""
    given = {name: getattr(options, name, None) for name in PLACES}
    return [
        Leaf(PLACES[name], (str(value),), f"--{name.replace('_', '-')}")
        for name, value in given.items()
        if value is not None
    ]


def data_spec(options: Namespace, known: Spec | None = None) -> Spec:
    """The data that the flags name; those of `known` where they name the same, or none."""
    kind = options.data or (known or {}).get("kind")
    if kind is None:
        raise UserError("--data", "it is missing", f"name {NEEDED['data']}")
    spec: Spec = dict(known) if known is not None and known["kind"] == kind else {"kind": kind}
    takes = inspect.signature(resolve("--data", kind, DATA)).parameters
    if options.validation is not None:
        if "validation" not in takes and ":" in kind:
            what = f"{kind} takes no argument of this name"
            raise UserError("--validation", what, "add it to the function, or leave the flag out")
        spec["validation"] = options.validation
    if options.data_root is not None and "root" in takes:
        spec["root"] = absolute(options.data_root)
    if options.download and "download" in takes:
        spec["download"] = True
    return spec


def with_frames(data: Spec, steps: int) -> Spec:
    """Data of an event camera with a frame for each step; fewer steps than usual share them."""
    takes = inspect.signature(resolve("--data", data["kind"], DATA)).parameters
    usual = takes["frames"].default if "frames" in takes else None
    few = not isinstance(usual, int) or steps <= usual
    return data if few or "frames" in data else {**data, "frames": steps}


def model_spec(name: str | None, width: int | None, data: str) -> Spec | None:
    """A model by name and width; a data set's own default where one or both are not given."""
    from spikelet.models import default_model

    if name is None and width is None:
        return None
    kind, usual = default_model(data)
    kind, usual_width = (name, usual if name == kind else None) if name else (kind, usual)
    resolve_model("--model", kind)
    chosen = width if width is not None else usual_width
    return {"kind": kind} if chosen is None else {"kind": kind, "width": chosen}


def resolve_model(flag: str, kind: str) -> None:
    """Raise for a name that is none of ours and no import path."""
    if not kind.startswith(("timm:", "torchvision:")):
        resolve(flag, kind, MODELS)


def absolute(place: str) -> str:
    """A path that still holds when the run is resumed from another folder."""
    return str(Path(place).expanduser().resolve())


def holds_run(folder: Path) -> bool:
    """Whether a run was begun in a folder."""
    return (folder / "recipe.json").exists() or (folder / "results.json").exists()


NEEDED = {
    "teacher": "a run folder or a model with --weights as --teacher",
    "methods": f"some of {', '.join(METHODS)} as --methods",
    "data": f"one of {', '.join(DATA)} as --data",
    "out": "the folder to write as --out runs/NAME",
}


def require(options: Namespace, *names: str) -> None:
    """Raise one sentence about all flags that a command cannot do without and was not given.

    Raises:
        UserError: naming each of them, and what it is for.
    """
    missing = [name for name in names if getattr(options, name) is None]
    if missing:
        flags = " and ".join(f"--{name}" for name in missing)
        what = "it is missing" if len(missing) == 1 else "they are missing"
        raise UserError(flags, what, f"name {', and '.join(NEEDED[name] for name in missing)}")


def fresh(out: str, verb: str) -> Path:
    """The folder to write a new run to."""
    folder = Path(out)
    if many.number():  # the first process looks, and may have begun to write
        return folder
    nearest = next(place for place in (folder, *folder.absolute().parents) if place.exists())
    if not nearest.is_dir() or not os.access(nearest, os.W_OK):
        what = "is not writable" if nearest.is_dir() else "is a file"
        raise UserError(f"--out {out}", f"{nearest} {what}", "name another folder")
    require_free(folder, f"--out {out}")
    if holds_run(folder):
        line = ["spikelet", verb, "--resume", out]
        raise UserError(
            f"--out {out}",
            "it holds a run already",
            f"continue it with `{shlex.join(line)}` or name another folder",
        )
    return folder


def resumed(
    task: str,
    options: Namespace,
    leaves: Sequence[Leaf],
    defaults: Mapping[str, Any],
    console: Console,
) -> dict[str, Any]:
    """Continue a run by its own recipe; the results of a finished one are given again.

    Raises:
        UserError: if there is no run, or a flag would change its recipe.
    """
    from spikelet.train import job, read_json, read_recipe
    from spikelet.train.place import intact
    from spikelet.train.stored import stored_rows

    run = Path(options.resume)
    if not holds_run(run):
        raise UserError(f"--resume {run}", "there is no run in this folder", "name a run folder")
    changed = [f"--{k.replace('_', '-')}" for k, v in vars(options).items() if v != defaults[k]]
    changed = [flag for flag in changed if flag.removeprefix("--") not in FREE]
    for flag in [*changed, *(leaf.flag for leaf in leaves)]:
        raise UserError(flag, "a resumed run keeps its recipe", "leave the flag out")
    recipe: Recipe = read_recipe(run)
    if recipe.task != task:
        fix = f"use `spikelet {recipe.task} --resume {run}`"
        raise UserError(f"--resume {run}", f"this is a run of `{recipe.task}`", fix)
    finished = (run / "results.json").exists()
    if finished and intact(run):
        rows = stored_rows(run, "delete it and resume the run to measure again")
        console.print(f"{run} is finished", markup=False, highlight=False, soft_wrap=True)
        stored = {**read_json(run / "results.json"), "rows": rows}
        return {**stored, "run": str(run), "finished": True}
    if finished:
        lost = f"{run} is finished, but has lost files: they are made again from its checkpoint"
        console.print(lost, markup=False, highlight=False, soft_wrap=True)
    start = job.teach if recipe.task == "teach" else job.distill
    return start(recipe, run, resume=True, console=console, device=device_of(options))


def device_of(options: Namespace) -> str | None:
    """The device asked for, if it is there."""
    if options.device is None:
        return None
    import torch

    try:
        torch.empty(0, device=options.device)
    except (RuntimeError, AssertionError) as error:
        known = ", ".join(["cpu", *(f"cuda:{n}" for n in range(torch.cuda.device_count()))])
        what = f"this torch cannot compute on it; what it has here is {known}"
        raise UserError(f"--device {options.device}", what, "use cpu or leave it out") from error
    return str(options.device)
