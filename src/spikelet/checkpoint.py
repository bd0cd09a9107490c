"""Weights and training state on disk, in safetensors and JSON only: nothing is ever unpickled.

A state folder holds `state.json` and the tensor file it names. A new state is written beside the
old one and takes effect with a single rename of `state.json`, so a crash leaves the old or the new.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import safetensors
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from spikelet.errors import UserError

FORMAT = "spikelet.state"
TAG = "$"


def save_weights(
    path: Path | str,
    weights: nn.Module | Mapping[str, Tensor],
    metadata: Mapping[str, str] | None = None,
) -> None:
    """Write a module's state, or a state dict, to one safetensors file in one rename."""
    state = weights.state_dict() if isinstance(weights, nn.Module) else weights
    with replacing(Path(path)) as temporary:
        save_file(_separate(state), temporary, {k: str(v) for k, v in (metadata or {}).items()})


def load_weights(path: Path | str) -> dict[str, Tensor]:
    """The tensors of a safetensors file, on the CPU."""
    return _load_tensors(Path(path), "weights")


def load_metadata(path: Path | str) -> dict[str, str]:
    """The strings stored beside the tensors of a safetensors file."""
    _require_file(Path(path), "weights")
    try:
        with safetensors.safe_open(path, "pt") as file:
            return dict(file.metadata() or {})
    except (safetensors.SafetensorError, OSError, ValueError) as error:
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


def save_state(folder: Path | str, state: Mapping[str, Any]) -> None:
    """Replace the state in `folder` by nested containers of tensors, numbers, strings and None.

    The old state stays valid until the new one is complete. Generators are stored as their state.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    current, tensors = _current_file(folder), dict[str, Tensor]()
    first, second = "tensors-0.safetensors", "tensors-1.safetensors"
    name = second if current == first else first
    document = {"format": FORMAT, "tensors": name, "state": _encode(state, "", tensors)}
    with replacing(folder / name) as temporary:
        save_file(_separate(tensors), temporary)
    with replacing(folder / "state.json") as temporary:
        temporary.write_text(json.dumps(document), encoding="utf-8")
    if current is not None:
        (folder / current).unlink(missing_ok=True)


def load_state(folder: Path | str) -> dict[str, Any]:
    """The nested state of a folder, tensors on the CPU; UserError if it is absent or damaged."""
    path = Path(folder) / "state.json"
    if not path.is_file():
        raise UserError(
            f"checkpoint = {folder}", "none is stored there", "give a run that has begun"
        )
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise _unreadable(path, "checkpoint", error) from error
    if not isinstance(document, dict) or document.get("format") != FORMAT:
        raise UserError(
            f"checkpoint = {path}", "this is no checkpoint of spikelet", _mended("checkpoint", path)
        )
    try:
        tensors = _load_tensors(Path(folder) / document["tensors"], "checkpoint")
        state = _decode(document["state"], tensors)
    except (KeyError, TypeError) as error:
        raise _unreadable(path, "checkpoint", error) from error
    if not isinstance(state, dict):
        raise _unreadable(path, "checkpoint", TypeError("its state is no object"))
    return state


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


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A temporary sibling to write to, which takes the place of `path` once on the disk."""
    temporary = path.with_name(f".{path.name}.new")
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        yield temporary
        _flush(temporary)
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
    _flush(path.parent)


def _flush(path: Path) -> None:
    """Wait until a file or the names in a folder are on the disk."""
    try:
        descriptor = os.open(path, os.O_RDONLY)
    except PermissionError:  # folders cannot be opened on Windows
        return
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


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


def _encode(value: Any, name: str, tensors: dict[str, Tensor]) -> Any:
    """`value` for JSON; its tensors are moved to `tensors` under their path."""
    if isinstance(value, torch.Generator):
        value = value.get_state()
    if isinstance(value, Tensor):
        while name in tensors:
            name += "'"
        tensors[name] = value
        return {TAG: "tensor", "name": name}
    if isinstance(value, Mapping):
        items = [(key, _encode(each, f"{name}/{key}", tensors)) for key, each in value.items()]
        if all(isinstance(key, str) and key != TAG for key in value):
            return dict(items)
        return {TAG: "dict", "items": [list(item) for item in items]}
    if isinstance(value, list | tuple):
        each = [_encode(item, f"{name}/{i}", tensors) for i, item in enumerate(value)]
        return each if isinstance(value, list) else {TAG: "tuple", "items": each}
    if value is None or isinstance(value, bool | int | float | str):
        return value
    raise TypeError(f"{name}: a {type(value).__name__} cannot be stored")


def _decode(value: Any, tensors: Mapping[str, Tensor]) -> Any:
    """The inverse of `_encode`."""
    if isinstance(value, list):
        return [_decode(each, tensors) for each in value]
    if not isinstance(value, dict):
        return value
    match value.get(TAG):
        case "tensor":
            return tensors[value["name"]]
        case "tuple":
            return tuple(_decode(each, tensors) for each in value["items"])
        case "dict":
            return {key: _decode(each, tensors) for key, each in value["items"]}
    return {key: _decode(each, tensors) for key, each in value.items()}


def _load_tensors(path: Path, argument: str) -> dict[str, Tensor]:
    """The tensors of a file; `argument` is what the user calls it."""
    _require_file(path, argument)
    try:
        return load_file(path)
    except (safetensors.SafetensorError, OSError, ValueError) as error:
        raise _unreadable(path, argument, error) from error


def _current_file(folder: Path) -> str | None:
    """The tensor file that the state in `folder` names, if there is a readable one."""
    try:
        return str(json.loads((folder / "state.json").read_text(encoding="utf-8"))["tensors"])
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _require_file(path: Path, argument: str) -> None:
    if not path.is_file():
        fix = "check the path" if argument != "checkpoint" else _mended(argument, path)
        raise UserError(f"{argument} = {path}", "there is no such file", fix)


def _unreadable(path: Path, argument: str, error: Exception) -> UserError:
    return UserError(
        f"{argument} = {path}", f"the file is damaged or foreign ({error})", _mended(argument, path)
    )


def _mended(argument: str, path: Path) -> str:
    """What to do about a file that cannot be read."""
    if argument == "checkpoint":
        again = f"delete the folder {path.parent} and resume to train from the start"
        return f"{again}, or begin a new run in another folder"
    return "take it from a copy, or make it again"
