"""Weight files: safetensors, npz, and PyTorch files read as weights only."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from spikelet.errors import UserError

SAFETENSORS, NUMPY = (".safetensors",), (".npz",)
TORCH = (".pt", ".pth", ".th", ".bin")
ANOTHER = "choose other weights, saved from a model that answers"
WRAPPERS = ("_orig_mod.", "module.")  # of torch.compile and DataParallel
WRAPPINGS = ("state_dict", "model_state_dict", "model", "net", "weights")


def read_weights(path: Path | str) -> dict[str, Tensor]:
    """The state dict in a weight file; wrapping keys and `module.` prefixes are taken off.

    Raises:
        UserError: no such file, an unknown kind, a damaged file, or no tensors by name in it.
    """
    path = Path(path).expanduser()
    known = SAFETENSORS + NUMPY + TORCH
    if not path.is_file():
        what = "this is a folder" if path.is_dir() else "no such file"
        raise UserError(f"weights={path}", what, f"name a file that ends in {', '.join(known)}")
    if path.suffix.lower() not in known:
        raise UserError(
            f"weights={path}",
            f"weight files end in {', '.join(known)}",
            "convert it, for example with safetensors.torch.save_file(model.state_dict(), FILE)",
        )
    return _state_dict(path, _content(path))


def _content(path: Path) -> Any:
    try:
        if path.suffix.lower() in SAFETENSORS:
            from safetensors.torch import load_file

            return load_file(path)
        if path.suffix.lower() in NUMPY:
            import numpy as np

            with np.load(path, allow_pickle=False) as arrays:
                return {name: torch.from_numpy(arrays[name]) for name in arrays.files}
        return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        reason = type(error).__name__
        raise UserError(
            f"weights={path}",
            f"it cannot be read as plain weights ({reason}): damaged, or a whole pickled model",
            "save the state dict alone with torch.save(model.state_dict(), FILE)",
        ) from error


def _state_dict(path: Path, content: Any) -> dict[str, Tensor]:
    """The innermost mapping of names to tensors."""
    for key in WRAPPINGS:
        if isinstance(content, Mapping) and isinstance(content.get(key), Mapping):
            content = content[key]
    tensors = (
        isinstance(content, Mapping)
        and content
        and all(
            isinstance(name, str) and isinstance(value, Tensor) for name, value in content.items()
        )
    )
    if not tensors:
        raise UserError(
            f"weights={path}",
            "no state dict (names with tensors) in it",
            "save one with torch.save(model.state_dict(), FILE)",
        )
    return dict(content)


def _fitting(found: dict[str, Tensor], wanted: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Weights without the prefixes of wrappers, but for a model that has them itself."""
    for prefix in WRAPPERS:
        own = any(name.startswith(prefix) for name in wanted)
        if not own and all(name.startswith(prefix) for name in found):
            found = {name.removeprefix(prefix): value for name, value in found.items()}
    return found


def load_weights(model: nn.Module, path: Path | str) -> nn.Module:
    """Loads a weight file into `model`, in place.

    Counters of seen batches may be absent; everything else must match by name and shape.

    Raises:
        UserError: as `read_weights`, or names, class count or shapes differ.
    """
    wanted = model.state_dict()
    found = _fitting(read_weights(path), wanted)
    absent = [name for name in wanted if name not in found and not _counter(name)]
    surplus = [name for name in found if name not in wanted and not _counter(name)]
    if absent or surplus:
        raise UserError(
            f"weights={path}",
            "its names do not match the model: " + _differences(absent, surplus),
            "choose the model (and width) these weights were made for",
        )
    _check_shapes(path, model, found, wanted)
    _check_values(path, found, wanted)
    try:
        model.load_state_dict(found, strict=False)
    except RuntimeError as error:
        reason = " ".join(str(error).split())
        raise UserError(f"weights={path}", f"they do not fit ({reason})", ANOTHER) from error
    return model


def _check_values(
    path: Path | str, found: Mapping[str, Tensor], wanted: Mapping[str, Tensor]
) -> None:
    """Plain finite numbers: what torch would convert silently, or never learn from, is refused."""
    for name, value in found.items():
        if _counter(name):
            continue
        exact = value.layout == torch.strided and not value.is_complex() and not value.is_quantized
        floats = value.is_floating_point() == wanted[name].is_floating_point()
        if not exact or not floats or value.device.type != "cpu":
            what = f"{name} is of type {value.dtype}, the model's is {wanted[name].dtype}"
            raise UserError(f"weights={path}", what, ANOTHER)
        if value.is_floating_point() and not bool(torch.isfinite(value.float()).all()):
            what = f"{name} holds values that are not finite"
            raise UserError(f"weights={path}", what, ANOTHER)


def _counter(name: str) -> bool:
    return name.endswith("num_batches_tracked")


def _differences(absent: Sequence[str], surplus: Sequence[str]) -> str:
    parts = []
    for title, names in (("missing", absent), ("unexpected", surplus)):
        if names:
            more = f" and {len(names) - 3} more" if len(names) > 3 else ""
            parts.append(f"{title} {', '.join(names[:3])}{more}")
    return ", ".join(parts)


def _check_shapes(
    path: Path | str, model: nn.Module, found: Mapping[str, Tensor], wanted: Mapping[str, Tensor]
) -> None:
    """Shapes agree; a classifier for another number of classes is named as such."""
    wrong = [name for name in wanted if name in found and found[name].shape != wanted[name].shape]
    if not wrong:
        return
    linear = [name for name, module in model.named_modules() if isinstance(module, nn.Linear)]
    if linear and all(name.rpartition(".")[0] == linear[-1] for name in wrong):
        has, needs = found[wrong[0]].shape[0], wanted[wrong[0]].shape[0]
        if has != needs:
            raise UserError(
                f"weights={path}",
                f"its classifier has {has} classes, the data {needs}",
                "choose weights trained on this data set",
            )
    first = wrong[0]
    raise UserError(
        f"weights={path}",
        f"{first} has shape {tuple(found[first].shape)}, the model's is "
        f"{tuple(wanted[first].shape)} ({len(wrong)} such)",
        "choose the model, width and input channels these weights were made for",
    )
