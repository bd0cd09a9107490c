"""The run folder: what it was computed with, and what its weights are for."""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
import platform
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from spikelet.checkpoint import replacing
from spikelet.errors import UserError
from spikelet.recipe import Recipe

if TYPE_CHECKING:
    from spikelet.data import Dataset

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
    except ValueError as error:
        what, fix = f"it is damaged: not JSON ({error})", "take it from a copy, or make it again"
        raise UserError(str(path), what, fix) from error


def write_recipe(run: Path | str, recipe: Recipe) -> None:
    """Write run/recipe.json."""
    write_json(Path(run) / "recipe.json", json.loads(recipe.to_json()))


def read_recipe(run: Path | str) -> Recipe:
    """The recipe of a run folder, validated."""
    path = Path(run) / "recipe.json"
    content = read_json(path)
    try:
        return Recipe.from_json(json.dumps(content))
    except UserError as error:
        raise UserError(f"{path}: {error.argument}", error.message, error.fix) from error


def env(
    device: torch.device | str = "cpu", data: Mapping[str, str] | None = None
) -> dict[str, Any]:
    """What a run was computed with; `data` holds the hashes of its splits."""
    device = torch.device(device)
    cuda = device.type == "cuda"
    return {
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
    spiking = recipe.task == "distill"
    what = f"a spiking network for 1 to {recipe.steps} time steps" if spiking else "a network"
    return {
        "schema": 1,
        "intended_use": f"{what} that sorts images into the {len(dataset.classes)} classes of "
        f"{dataset.name}; not checked on anything else",
        "task": recipe.task,
        "method": recipe.method,
        "steps": recipe.steps if spiking else None,
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


def digest(path: Path | str) -> str:
    """The sha256 of a file, for lineage."""
    with Path(path).open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


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
