"""The fields of each data set, read from its source: help must not wait for torch."""

from __future__ import annotations

import ast
from importlib.resources import files
from pathlib import Path

from spikelet.recipe import DATA

WIDTH = 17


def data_fields() -> dict[str, list[str]]:
    """Data set -> the names of its fields, as `--data.NAME` sets them."""
    found: dict[str, list[str]] = {}
    for file in sorted(Path(str(files("spikelet") / "data")).rglob("*.py")):
        for node in ast.parse(file.read_text(encoding="utf-8")).body:
            if isinstance(node, ast.FunctionDef):
                every = [*node.args.args, *node.args.kwonlyargs]
                found[node.name] = [each.arg for each in every]
    named = {name: path.partition(":")[2] for name, path in DATA.items()}
    return {name: found[function] for name, function in named.items() if function in found}


def lines() -> list[str]:
    """What help says of them, a line for each data set."""
    told = ["fields of each data set, as --data.FIELD VALUE:"]
    return [*told, *(f"  {name:{WIDTH}}{' '.join(f)}" for name, f in data_fields().items())]
