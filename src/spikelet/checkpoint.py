"""Weights and training state on disk, in safetensors and JSON only: nothing is ever unpickled.

A state folder holds the newest states, each as `state-N.json` and the tensor file it names. A new
one is written beside the others and takes effect with a single rename, so a crash at any moment
leaves whole states; sha256 sums tell a damaged one, and the one before is taken instead.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import safetensors
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from spikelet.errors import UserError
from spikelet.folder import digest, replacing, sweep
from spikelet.nested import put_together, taken_apart

FORMAT = "spikelet.state"
VERSION = 2  # the first had one `state.json` without sums
KEPT = 2
FIRST = "state.json"
NUMBERED = re.compile(r"(state|tensors)-(\d{6,})\.(json|safetensors)")
SYSTEM_ERROR = re.compile(r"\(os error (\d+)\)")


class Damaged(UserError):
    """A stored state that is not what was written; `path` is its document."""

    def __init__(self, path: Path, message: str) -> None:
        super().__init__(f"checkpoint = {path}", message, _mended("checkpoint", path))
        self.path = path


def save_weights(
    path: Path | str,
    weights: nn.Module | Mapping[str, Tensor],
    metadata: Mapping[str, str] | None = None,
) -> None:
    """Write a module's state, or a state dict, to one safetensors file in one rename."""
    state = weights.state_dict() if isinstance(weights, nn.Module) else weights
    with replacing(Path(path)) as temporary:
        _write(state, temporary, {k: str(v) for k, v in (metadata or {}).items()})


def load_weights(path: Path | str) -> dict[str, Tensor]:
    """The tensors of a safetensors file, on the CPU."""
    return _load_tensors(Path(path), "weights")


def load_metadata(path: Path | str) -> dict[str, str]:
    """The strings stored beside the tensors of a safetensors file."""
    _require_file(Path(path), "weights")
    try:
        with safetensors.safe_open(path, "pt") as file:
            return dict(file.metadata() or {})
    except Exception as error:
        raise _unreadable(Path(path), "weights", error) from error


def restore(module: nn.Module, state: Mapping[str, Any], source: str) -> None:
    """Load `state` into `module`; one sentence naming `source` where the two do not fit."""
    own = module.state_dict()
    missing, extra = sorted(own.keys() - state.keys()), sorted(state.keys() - own.keys())
    shapes = [
        f"{name} is {tuple(state[name].shape)}, not {tuple(own[name].shape)}"
        for name in own.keys() & state.keys()
        if isinstance(own[name], Tensor) and own[name].shape != state[name].shape
    ]
    complaints = [f"{name} is missing" for name in missing]
    complaints += [f"{name} is not in the model" for name in extra] + sorted(shapes)
    if complaints:
        more = f" and {len(complaints) - 3} more" if len(complaints) > 3 else ""
        message = f"it does not fit the model: {', '.join(complaints[:3])}{more}"
        raise UserError(source, message, "build the model it was saved from")
    module.load_state_dict(state)


def save_state(folder: Path | str, state: Mapping[str, Any], kept: int = KEPT) -> None:
    """Add a state of nested containers of tensors, numbers, strings and None; keep the newest.

    States before stay valid until the new one is complete. Generators are stored as their state.

    Raises:
        OSError: if it cannot be written; every state before is still there.
    """
    folder, tensors = Path(folder), dict[str, Tensor]()
    encoded = taken_apart(state, "", tensors)
    number = 1 + max((found for found, _ in _files(folder)), default=0)
    path, beside = _state_file(folder, number), _tensor_file(folder, number)
    try:
        with replacing(beside) as temporary:
            _write(tensors, temporary)
        document = {"format": FORMAT, "version": VERSION, "tensors": beside.name}
        document |= {"sha256": digest(beside), "state": encoded}
        document["check"] = _check(document)
        with replacing(path) as temporary:
            temporary.write_text(json.dumps(document), encoding="utf-8")
    except OSError:
        if not path.exists():
            with suppress(OSError):
                beside.unlink()  # it would only take room
        raise
    _prune(folder, kept)


def load_state(folder: Path | str) -> dict[str, Any]:
    """The newest whole state of a folder, tensors on the CPU."""
    return newest_state(folder)[0]


def newest_state(folder: Path | str) -> tuple[dict[str, Any], list[Damaged]]:
    """The newest whole state of a folder, tensors on the CPU, and the damaged ones after it.

    Raises:
        UserError: if there is none, none is whole, or a later version has written it.
    """
    damaged: list[Damaged] = []
    for number in sorted(_numbers(Path(folder)), reverse=True):
        try:
            return _stored(Path(folder), number), damaged
        except Damaged as error:
            damaged.append(error)
    if damaged:
        raise damaged[0]
    raise UserError(f"checkpoint = {folder}", "none is stored there", "give a run that has begun")


def holds_state(folder: Path) -> bool:
    """Whether a state was ever completed in a folder, whole or damaged by now."""
    return bool(_numbers(folder))


def set_aside(damaged: Damaged) -> None:
    """Take a damaged state out of the count, so that whole ones are kept; its document stays."""
    with suppress(OSError):
        damaged.path.rename(damaged.path.with_name(f"{damaged.path.name}.damaged"))


def _stored(folder: Path, number: int) -> dict[str, Any]:
    """One state by its number."""
    path = _state_file(folder, number)
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, OSError, RecursionError) as error:
        raise Damaged(path, _unlike(error)) from error
    if not isinstance(document, dict) or document.get("format") != FORMAT:
        raise Damaged(path, "this is no checkpoint of spikelet")
    if number and document.get("check") != _check(document):
        raise Damaged(path, "it is damaged: its sum differs")
    if number and document.get("version") != VERSION:
        what = f"it is of version {document.get('version')}, this spikelet knows {VERSION}"
        raise UserError(f"checkpoint = {path}", what, "continue it with the spikelet that wrote it")
    try:
        beside = folder / Path(document["tensors"]).name
        if not beside.is_file():
            raise Damaged(path, f"there is no such file as {beside.name}, which it needs")
        if number and digest(beside) != document["sha256"]:
            raise Damaged(path, f"{beside.name} is damaged: its sha256 differs")
        state = put_together(document["state"], _load_tensors(beside, "checkpoint"))
    except UserError as error:
        raise error if isinstance(error, Damaged) else Damaged(path, error.message) from error
    except (KeyError, TypeError, ValueError, OSError, RecursionError) as error:
        raise Damaged(path, _unlike(error)) from error
    if not isinstance(state, dict):
        raise Damaged(path, _unlike(TypeError("its state is no object")))
    return state


def _check(document: Mapping[str, Any]) -> str:
    """The sha256 of a document without its sum."""
    others = {key: value for key, value in document.items() if key != "check"}
    return hashlib.sha256(json.dumps(others, sort_keys=True).encode()).hexdigest()


def _files(folder: Path) -> list[tuple[int, Path]]:
    """Every numbered file of a folder with its number."""
    names = [(NUMBERED.fullmatch(path.name), path) for path in folder.glob("*-*.*")]
    return [(int(name[2]), path) for name, path in names if name is not None]


def _numbers(folder: Path) -> list[int]:
    """Numbers of the states in a folder; 0 is the one of the first version."""
    found = [number for number, path in _files(folder) if path == _state_file(folder, number)]
    return found + [0] * (folder / FIRST).is_file()


def _state_file(folder: Path, number: int) -> Path:
    return folder / (f"state-{number:06}.json" if number else FIRST)


def _tensor_file(folder: Path, number: int) -> Path:
    return folder / f"tensors-{number:06}.safetensors"


def _prune(folder: Path, kept: int) -> None:
    """Delete all but the newest states, and what belongs to none."""
    stay = sorted(_numbers(folder), reverse=True)[:kept]
    old = [path for number, path in _files(folder) if number not in stay]
    if 0 not in stay:
        old += [folder / FIRST, *folder.glob("tensors-?.safetensors")]
    for path in sorted(old):  # documents before the tensors that they name
        with suppress(OSError):
            path.unlink(missing_ok=True)
    sweep(folder)


def generator_states(generators: Mapping[str, torch.Generator]) -> dict[str, Tensor]:
    """uint8 states of torch's global generators and of explicit ones, by name."""
    states = {"global cpu": torch.get_rng_state()}
    if torch.cuda.is_available() and torch.cuda.is_initialized():
        states |= {f"global cuda:{i}": s for i, s in enumerate(torch.cuda.get_rng_state_all())}
    return states | {name: each.get_state() for name, each in generators.items()}


def restore_generators(
    states: Mapping[str, Tensor], generators: Mapping[str, torch.Generator]
) -> None:
    """Set torch's global generators and the explicit ones; devices not present are passed over."""
    torch.set_rng_state(states["global cpu"])
    if torch.cuda.is_available():
        for index in range(torch.cuda.device_count()):
            if f"global cuda:{index}" in states:
                torch.cuda.set_rng_state(states[f"global cuda:{index}"], index)
    for name, generator in generators.items():
        generator.set_state(states[name])


def _write(
    tensors: Mapping[str, Tensor], path: Path, metadata: dict[str, str] | None = None
) -> None:
    """Write a tensor file; the library's own error of a full disk becomes the system's."""
    try:
        save_file(_separate(tensors), path, metadata)
    except safetensors.SafetensorError as error:
        found = SYSTEM_ERROR.search(str(error))
        if found is None:
            raise
        raise OSError(int(found[1]), os.strerror(int(found[1])), str(path)) from error


def _separate(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Contiguous tensors on the CPU, each alone in its storage, as the format asks for."""
    separate, seen = {}, set()
    for name, tensor in tensors.items():
        copy = tensor.detach().cpu().contiguous()
        storage = copy.untyped_storage()
        if storage.data_ptr() in seen or storage.nbytes() != copy.nbytes:
            copy = copy.clone()
        seen.add(copy.untyped_storage().data_ptr())
        separate[name] = copy
    return separate


def _load_tensors(path: Path, argument: str) -> dict[str, Tensor]:
    """The tensors of a file; `argument` is what the user calls it."""
    _require_file(path, argument)
    try:
        return load_file(path)
    except Exception as error:
        raise _unreadable(path, argument, error) from error


def _require_file(path: Path, argument: str) -> None:
    if not path.is_file():
        fix = "check the path" if argument != "checkpoint" else _mended(argument, path)
        raise UserError(f"{argument} = {path}", "there is no such file", fix)


def _unreadable(path: Path, argument: str, error: Exception) -> UserError:
    return UserError(f"{argument} = {path}", _unlike(error), _mended(argument, path))


def _unlike(error: Exception) -> str:
    reason = " ".join(str(error).split()) or type(error).__name__
    return f"the file is damaged or foreign ({reason})"


def _mended(argument: str, path: Path) -> str:
    """What to do about a file that cannot be read."""
    if argument == "checkpoint":
        again = f"delete the folder {path.parent} and resume to train from the start"
        return f"{again}, or begin a new run in another folder"
    return "take it from a copy, or make it again"
