"""The command line that computes a grid."""

from __future__ import annotations

import json
import shlex
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from spikelet.compare.grid import CONTROLS, Grid

NUMBERS = ("epochs", "batch", "teacher_epochs", "tune_epochs")


def line_of(grid: Grid, out: Path) -> str:
    """A line that computes the same grid in a folder, with all its settings as flags."""
    named = [method for method in grid.methods if method not in CONTROLS]
    words = ["spikelet", "compare", "--methods", *(named or ["none"])]
    words += ["--steps", *map(str, grid.steps), "--seeds", str(grid.seeds)]
    words += _parts("data", grid.data, {"root": "--data-root", "validation": "--validation"})
    if grid.teacher is not None:
        words += _parts("teacher", grid.teacher, {"run": "--teacher", "weights": "--weights"})
    if grid.model is not None:
        words += _parts("model", grid.model, {"width": "--width"})
    for name in NUMBERS:
        if getattr(grid, name) is not None:
            words += [f"--{name.replace('_', '-')}", str(getattr(grid, name))]
    if grid.tune:
        words += ["--tune", str(grid.tune)]
    if grid.tune_rates:
        words += ["--tune-rates", *map(str, grid.tune_rates)]
    for path, value in grid.overrides.items():
        words += _augments(value) if path == "augment" else _flag(path, value)
    return shlex.join([*words, "--out", str(out)])


def _parts(name: str, spec: Mapping[str, Any], flags: Mapping[str, str]) -> Iterator[str]:
    """What is chosen, then its fields; those with a flag of their own by that flag."""
    if "kind" in spec:
        yield from (f"--{name}", str(spec["kind"]))
    for key, value in spec.items():
        if key == "download":
            yield from (["--download"] if value else [])
        elif key in flags and value is not None:
            yield from (flags[key], str(value))
        elif key != "kind":
            yield from _flag(f"{name}.{key}", value)


def _augments(specs: Any) -> Iterator[str]:
    """The list of augmentations, and the fields of each."""
    yield from ("--augment", *(str(spec["kind"]) for spec in specs or [{"kind": "none"}]))
    for number, spec in enumerate(specs or ()):
        for key, value in spec.items():
            if key != "kind":
                yield from _flag(f"augment.{number}.{key}", value)


def _flag(path: str, value: Any) -> list[str]:
    """A leaf as it is typed."""
    if value is None:
        return [f"--{path}", "none"]
    text = value if isinstance(value, str) else json.dumps(value)
    return [f"--{path}={text}"] if text.startswith("-") else [f"--{path}", text]
