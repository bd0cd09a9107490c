"""CIFAR-10 and CIFAR-100 from their Python folders, also incomplete or rebuilt ones."""

from __future__ import annotations

import pickle
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from spikelet.data.dataset import (
    Dataset,
    Split,
    assemble,
    data_root,
    fetch,
    held_out,
    missing,
    reading,
)
from spikelet.errors import UserError, unknown
from spikelet.vision import torchvision

CLASSES = (
    "airplane",
    "automobile",
    "bird",
    "cat",
    "deer",
    "dog",
    "frog",
    "horse",
    "ship",
    "truck",
)
STATISTICS = {
    "cifar10": ((0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)),
    "cifar100": ((0.5071, 0.4866, 0.4409), (0.2673, 0.2564, 0.2762)),
    "imagenet": ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
}
LICENCE = "none named; research use, cite A. Krizhevsky, 2009"
PIXELS = 32
HELD_OUT = 5000
TEN, HUNDRED = "cifar-10-batches-py", "cifar-100-python"


def cifar10(
    *,
    root: Path | str | None = None,
    protocol: Literal["standard", "batch5"] = "standard",
    test: Literal["available", "official", "jpeg"] = "available",
    normalise: Literal["cifar10", "cifar100", "imagenet"] = "cifar10",
    size: int = PIXELS,
    train: int | None = None,
    validation: int | None = None,
    download: bool = False,
    seed: int = 0,
) -> Dataset:
    """CIFAR-10, 32x32 RGB, in ROOT/cifar-10-batches-py.

    `protocol` "standard" trains on batches 1-5 and tests on `test`; "batch5" trains on batches 1-4
    and tests on batch 5. `test` "available" takes what test_batch holds (said in `notes` when
    fewer than 10,000), "official" insists on all 10,000, "jpeg" takes the recompressed
    test_batch_jpeg. `normalise` names whose mean and deviation the network is fed with. A `size`
    below 32 averages pixels, for quick studies: 16 is a quarter of the work. `train` keeps that
    many labelled images, of which `validation` are held out: 5,000, or a tenth of a smaller number.
    """
    _choice("protocol", protocol, ("standard", "batch5"))
    _choice("test", test, ("available", "official", "jpeg"))
    _choice("normalise", normalise, STATISTICS)
    _require_size(size)
    names = [f"data_batch_{number}" for number in range(1, 6)]
    last = "test_batch_jpeg" if test == "jpeg" else "test_batch"
    wanted = [*names, last] if protocol == "standard" else names
    folder = _folder(data_root(root), TEN, wanted, "CIFAR10", download)
    parts = [_batch(folder / name, "labels", size) for name in wanted]
    notes = "train: batches 1-4, test: batch 5 of the official training set"
    if protocol == "standard":
        notes = _test_notes(folder, parts[-1], test)
    return assemble(
        "cifar10",
        _joined(parts[:-1]),
        parts[-1],
        classes=CLASSES,
        licence=LICENCE,
        validation=held_out(validation, train, HELD_OUT),
        train=train,
        seed=seed,
        statistics=STATISTICS[normalise],
        augment=_augment(size),
        notes=notes,
    )


def cifar100(
    *,
    root: Path | str | None = None,
    normalise: Literal["cifar10", "cifar100", "imagenet"] = "cifar100",
    size: int = PIXELS,
    train: int | None = None,
    validation: int | None = None,
    download: bool = False,
    seed: int = 0,
) -> Dataset:
    """CIFAR-100, 32x32 RGB, 100 fine classes, in ROOT/cifar-100-python; options as `cifar10`."""
    _choice("normalise", normalise, STATISTICS)
    _require_size(size)
    folder = _folder(data_root(root), HUNDRED, ("train", "test", "meta"), "CIFAR100", download)
    with reading(folder / "meta"):
        classes = [str(name) for name in _unpickled(folder / "meta")["fine_label_names"]]
    return assemble(
        "cifar100",
        _batch(folder / "train", "fine_labels", size),
        _batch(folder / "test", "fine_labels", size),
        classes=classes,
        licence=LICENCE,
        validation=held_out(validation, train, HELD_OUT),
        train=train,
        seed=seed,
        statistics=STATISTICS[normalise],
        augment=_augment(size),
    )


def _choice(argument: str, value: str, known: Sequence[str] | dict[str, Any]) -> None:
    if value not in known:
        raise unknown(argument, value, known)


def _require_size(size: int) -> None:
    if not 1 <= size <= PIXELS:
        raise UserError(f"size={size}", f"expected 1 to {PIXELS} pixels", "leave it out")


def _augment(size: int) -> tuple[dict[str, Any], ...]:
    """Crops out of an eighth more on each side, and flips."""
    return ({"kind": "crop", "padding": max(size // 8, 1)}, {"kind": "flip"})


def _test_notes(folder: Path, split: Split, test: str) -> str:
    """What deviates from the official test set, in words."""
    if test == "jpeg":
        return f"test: {len(split)} images recompressed as JPEG, not the CIFAR-10 test set"
    if len(split) == 10_000:
        return ""
    if test == "official":
        raise UserError(
            f"test={test}",
            f"{folder / 'test_batch'} holds {len(split)} of the 10000 test images",
            "fetch the official archive, or pass test=available",
        )
    return f"test: first {len(split)} of the 10000 test images"


def _folder(root: Path, name: str, files: Sequence[str], reader: str, download: bool) -> Path:
    """The folder with all `files`, downloaded through torchvision where they are missing."""
    for folder in (root / name, root):
        absent = [file for file in files if not (folder / file).is_file()]
        if not absent:
            return folder
    absent = [file for file in files if not (root / name / file).is_file()]
    if not download:
        partial = len(absent) < len(files)
        what = f"{', '.join(absent)} of {name}" if partial else f"{name} ({reader})"
        raise missing(root, what)
    fetch(root, lambda: getattr(torchvision().datasets, reader)(str(root), download=True))
    absent = [file for file in files if not (root / name / file).is_file()]
    if absent:
        raise missing(root, f"after the download {', '.join(absent)} of {name}")
    return root / name


def _batch(path: Path, key: str, size: int = PIXELS) -> Split:
    """One pickled batch as a split of images of that size."""
    with reading(path):
        record = _unpickled(path)
        pixels = np.asarray(record["data"])
        labels = torch.as_tensor(record[key], dtype=torch.int64)
        if pixels.dtype != np.uint8 or pixels.shape != (len(labels), 3 * 32 * 32):
            raise ValueError(f"data of shape {pixels.shape} with {len(labels)} labels")
        images = torch.tensor(pixels).view(-1, 3, PIXELS, PIXELS)
        return Split(images if size == PIXELS else _smaller(images, size), labels)


def _smaller(images: Tensor, size: int) -> Tensor:
    """Images uint8 whose pixels are the averages of those that they cover."""
    parts = images.split(10_000)
    found = [F.interpolate(part.float(), (size, size), mode="area") for part in parts]
    return torch.cat([part.round().to(torch.uint8) for part in found])


def _joined(parts: Sequence[Split]) -> Split:
    return Split(torch.cat([p.images for p in parts]), torch.cat([p.labels for p in parts]))


class _Arrays(pickle.Unpickler):
    """Reads numpy arrays and plain containers only: a batch file cannot run code."""

    ALLOWED = frozenset(
        {
            ("numpy", "ndarray"),
            ("numpy", "dtype"),
            ("numpy.core.multiarray", "_reconstruct"),
            ("numpy._core.multiarray", "_reconstruct"),
            ("_codecs", "encode"),
        }
    )

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in self.ALLOWED:
            raise pickle.UnpicklingError(f"refused to load {module}.{name}")
        return super().find_class(module.replace("numpy.core", "numpy._core"), name)


def _unpickled(path: Path) -> dict[str, Any]:
    with path.open("rb") as file:
        record: dict[str, Any] = _Arrays(file, encoding="latin1").load()
    return record
