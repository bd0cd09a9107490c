"""The run folder: what it was computed with, and what its weights are for."""

from __future__ import annotations

import dataclasses
import hashlib
import importlib.metadata
import json
import platform
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from spikelet.errors import UserError
from spikelet.folder import digest, replacing
from spikelet.recipe import MISSING, Recipe
from spikelet.train.running import single, spiking

if TYPE_CHECKING:
    from spikelet.data import Dataset

__all__ = [
    "card",
    "digest",
    "env",
    "fingerprint",
    "identity",
    "read_json",
    "read_recipe",
    "require_schema",
    "stored_identity",
    "write_json",
    "write_recipe",
]
SCHEMA = 1  # of a run folder's JSON; a file without the field is of the first
ENV_FILE = "env.json"
FREE = ("checkpoint_minutes", "tensorboard")  # may change on resume without changing the weights
PACKAGES = ("spikelet", "torch", "torchvision", "timm", "numpy", "safetensors", "scikit-learn")


def write_json(path: Path | str, content: Any) -> None:
    """Write readable JSON in one rename."""
    with replacing(Path(path)) as temporary:
        temporary.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


def read_json(path: Path | str) -> Any:
    """The content of a JSON file; UserError where it is absent or not JSON."""
    try:
        return json.loads(Path(path).read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise UserError(str(path), "there is no such file", "give a run folder") from error
    except (ValueError, RecursionError) as error:
        what, fix = f"it is damaged: not JSON ({error})", "take it from a copy, or make it again"
        raise UserError(str(path), what, fix) from error


def require_schema(path: Path | str, content: Any) -> None:
    """Raise for a JSON object that a later version has written, or none of ours."""
    schema = content.get("schema", SCHEMA) if isinstance(content, dict) else SCHEMA
    if schema != SCHEMA or isinstance(schema, bool):
        what = f"it has the schema {schema!r}, this spikelet knows {SCHEMA}"
        raise UserError(str(path), what, "read it with the version of spikelet that wrote it")


def write_recipe(run: Path | str, recipe: Recipe) -> None:
    """Write run/recipe.json."""
    content = {"schema": SCHEMA, **json.loads(recipe.to_json())}
    write_json(Path(run) / "recipe.json", content)


def read_recipe(run: Path | str) -> Recipe:
    """The recipe of a run folder, validated."""
    path = Path(run) / "recipe.json"
    content = read_json(path)
    require_schema(path, content)
    if isinstance(content, dict):
        content.pop("schema", None)
    try:
        return Recipe.from_json(json.dumps(content))
    except UserError as error:
        fix = error.fix if error.message != MISSING else "take the file from a copy"
        raise UserError(f"{path}: {error.argument}", error.message, fix) from error


def env(
    device: torch.device | str = "cpu", data: Mapping[str, str] | None = None
) -> dict[str, Any]:
    """What a run was computed with; `data` holds the hashes of its splits."""
    device = torch.device(device)
    cuda = device.type == "cuda"
    return {
        "schema": SCHEMA,
        "versions": {"python": platform.python_version()} | _versions(),
        "platform": f"{platform.system()} {platform.machine()}",
        "device": torch.cuda.get_device_name(device) if cuda else device.type,
        "cuda": torch.version.cuda if cuda else None,
        "threads": torch.get_num_threads(),
        "data": dict(data or {}),
        "git": _git(),
    }


def card(
    recipe: Recipe, dataset: Dataset, teacher: Mapping[str, Any] | None = None
) -> dict[str, Any]:
    """What the weights are for and where they come from; `teacher` is what is known of it."""
    student = recipe.task == "distill"
    return {
        "schema": 1,
        "intended_use": f"{_use(recipe)} that sorts images into the "
        f"{len(dataset.classes)} classes of {dataset.name}; not checked on anything else",
        "task": recipe.task,
        "method": recipe.method,
        "steps": recipe.steps if student else None,
        "model": recipe.model,
        "teacher": None if teacher is None else dict(teacher),
        "data": {
            "name": dataset.name,
            "licence": dataset.licence,
            "classes": list(dataset.classes),
            "mean": list(dataset.mean),
            "std": list(dataset.std),
            "hashes": dict(dataset.hashes),
        },
        "seed": recipe.seed,
    }


def _use(recipe: Recipe) -> str:
    """What network a recipe makes, and for how many steps."""
    if recipe.task == "teach":
        return "a network"
    if not spiking(recipe):
        return f"a network of {recipe.steps + 1} levels an activation, without spikes,"
    mixed, last = recipe.encode["kind"] == "mixed", recipe.steps
    least = recipe.encode.get("least", 1) if mixed else 1
    words = f"a spiking network for {f'{least} to ' if mixed and least < last else ''}{last} "
    words += "time step" if last == 1 else "time steps"
    early = not (mixed or single(recipe) or last == 1)
    return words + (", less accurate after fewer," if early else "")


def identity(
    recipe: Recipe, hashes: Mapping[str, str], teacher: nn.Module | None
) -> dict[str, str]:
    """Sums of all that decides a run's result: settings without places, images, teacher's weights.

    Each setting has its own, so that a later version, which knows more of them, can compare.
    """
    fields = dataclasses.asdict(recipe)
    training = {f"training.{k}": v for k, v in fields.pop("training").items() if k not in FREE}
    del fields["teacher"]
    if "run" in (fields["ann"] or {}):  # it is copied into the run
        fields["ann"] = "a run"
    for part, places in (("data", ("root", "download", "workers")), ("model", ("weights",))):
        fields[part] = {k: v for k, v in (fields[part] or {}).items() if k not in places}
    found = {f"recipe's {name}": _sum(value) for name, value in (fields | training).items()}
    found |= {f"{part} images": value for part, value in hashes.items()}
    return found if teacher is None else {**found, "teacher": fingerprint(teacher)}


def _sum(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:16]


def stored_identity(run: Path) -> dict[str, str]:
    """What a run was begun with, as far as its folder knows; older versions knew the images.

    Raises:
        UserError: if run/env.json is damaged, or of a later version.
    """
    if not (run / ENV_FILE).exists():
        return {}
    content = read_json(run / ENV_FILE)
    require_schema(run / ENV_FILE, content)
    known = content.get("identity") if isinstance(content, dict) else None
    images = content.get("data") if isinstance(content, dict) else None
    if isinstance(known, dict):
        return known
    images = images if isinstance(images, dict) else {}
    return {f"{part} images": each for part, each in images.items()}


def fingerprint(net: nn.Module) -> str:
    """The sha256 of a network's state: names, shapes and values."""
    total = hashlib.sha256()
    for name, value in net.state_dict().items():
        total.update(f"{name} {value.dtype} {tuple(value.shape)} ".encode())
        total.update(value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy())
    return total.hexdigest()


def _versions() -> dict[str, str]:
    """The version of each package that is installed."""
    versions = {}
    for name in PACKAGES:
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return versions


def _git() -> dict[str, Any] | None:
    """Commit of the current directory and whether files differ from it; None outside of git."""
    commit, changes = _ask_git("rev-parse", "HEAD"), _ask_git("status", "--porcelain")
    if commit is None or changes is None:
        return None
    return {"commit": commit.strip(), "changed": bool(changes.strip())}


def _ask_git(*arguments: str) -> str | None:
    """What git prints, None where it fails or is not installed."""
    command = ["git", "--no-optional-locks", *arguments]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=10, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout
