"""What a run folder holds, read back; a damaged file is named, with what to do about it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from spikelet.checkpoint import load_metadata, load_weights
from spikelet.errors import UserError
from spikelet.train.run import digest, read_json, require_schema

RESULTS_FILE = "results.json"
DESCRIPTIONS = ("card.json", "model.json", "teacher.json")
COPY = "resume the run, which restores what its checkpoint holds, or take the file from a copy"
ROW = {"method": str, "steps": int | None, "accuracy": int | float, "n": int, "split": str}
DESCRIPTION = {"kind": str, "classes": int, "channels": int, "size": list}
FREE = {"seed": int | None, "width": int | None, "neuron": dict, "norm": str}


def damaged(file: Path, reason: str, fix: str = COPY) -> UserError:
    """The error about a file of a run that is not what was written there."""
    return UserError(str(file), f"it is damaged ({reason})", fix)


def stored_object(file: Path, fix: str = COPY) -> dict[str, Any]:
    """The JSON object of a file.

    Raises:
        UserError: if it is absent or holds anything else, or a later version has written it.
    """
    try:
        content = read_json(file)
    except UserError as error:
        raise UserError(str(file), error.message, fix) from error
    if not isinstance(content, dict):
        raise damaged(file, "no JSON object", fix)
    require_schema(file, content)
    return content


def stored_rows(run: Path, fix: str) -> list[dict[str, Any]]:
    """The rows of a finished run's results.

    Raises:
        UserError: if the file is absent or damaged.
    """
    file = run / RESULTS_FILE
    rows = stored_object(file, fix).get("rows")
    if not isinstance(rows, list) or not rows:
        raise damaged(file, "it has no rows", fix)
    for row in rows:
        if not isinstance(row, dict):
            raise damaged(file, "a row is no object", fix)
        _require_types(file, row, ROW, fix)
    return rows


def stored_description(file: Path) -> dict[str, Any]:
    """What builds a stored network again.

    Raises:
        UserError: if the file is absent or damaged.
    """
    description = stored_object(file)
    _require_types(file, description, DESCRIPTION)
    _require_types(file, description, {k: v for k, v in FREE.items() if k in description})
    size = description["size"]
    if len(size) != 2 or not all(isinstance(each, int) for each in size):
        raise damaged(file, f"size = {size!r}")
    return description


def stored_weights(file: Path, sha256: str | None) -> dict[str, Tensor]:
    """The tensors of a run's file, which has this digest where one is known.

    Raises:
        UserError: if the file is absent, damaged, or another than the run has written.
    """
    if not file.exists():
        fix = "`--resume` makes it again where there is a checkpoint"
        raise UserError(str(file), "there is no such file", fix)
    weights = load_weights(file)
    if sha256 is not None and digest(file) != sha256:
        raise damaged(file, "it is not what the run has written: its sha256 differs")
    return weights


def stored_accuracy(file: Path) -> float:
    """The validation accuracy that weights were stored with; below any where there are none.

    Raises:
        UserError: if the file is damaged.
    """
    try:
        return float(load_metadata(file)["accuracy"]) if file.exists() else -1.0
    except (KeyError, ValueError) as error:
        reason = error.message if isinstance(error, UserError) else "no accuracy in it"
        raise damaged(file, reason, "delete it and resume the run") from error


def _require_types(
    file: Path, fields: Mapping[str, Any], types: Mapping[str, Any], fix: str = COPY
) -> None:
    for name, kind in types.items():
        if name not in fields:
            raise damaged(file, f"{name} is missing", fix)
        if not isinstance(fields[name], kind):
            raise damaged(file, f"{name} = {fields[name]!r}", fix)
