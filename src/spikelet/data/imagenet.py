"""ImageNet, or any folder in its layout, read from the disk as it is needed."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

from spikelet.data.dataset import Dataset, Split, assemble, data_root
from spikelet.data.disk import OnDisk
from spikelet.data.folder import SUFFIXES
from spikelet.data.tiny_imagenet import class_words
from spikelet.errors import UserError

FOLDERS = ("imagenet", "ILSVRC2012")
STATISTICS = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
LICENCE = "ImageNet terms: non-commercial research and education"
HELD_OUT = 10_000


def imagenet(
    *,
    root: Path | str | None = None,
    size: int = 224,
    crop: float = 0.875,
    train: int | None = None,
    validation: int | None = None,
    workers: int | None = None,
    seed: int = 0,
) -> Dataset:
    """Images of ROOT/train/CLASS and ROOT/val/CLASS (or ROOT/imagenet/...), which stay there.

    `val` is the test. Held out by default: a tenth of the training images, 10,000 at most. Mean and
    deviation are ImageNet's. Training sees random parts of random size, mirrored or not; for the
    rest the central square of `crop` times the shorter side is resized to `size`.

    Args:
        root: the folder.
        size: height and width in pixels.
        crop: 0.875 is 224 of 256 pixels.
        train: keep that many labelled images.
        validation: images held out of training; 0 for none.
        workers: processes that decode during training; by default one for each core, 16 at most.
        seed: of what is held out.
    """
    if size < 1:
        raise UserError(f"size={size}", "images need at least one pixel", "choose 224")
    if not 0 < crop <= 1:
        raise UserError(f"crop={crop}", "expected a share above 0, at most 1", "choose 0.875")
    if workers is not None and workers < 0:
        raise UserError(f"workers={workers}", "expected 0 or more processes", "leave it out")
    folder = _folder(data_root(root))
    classes = _classes(folder / "train")
    labelled, test = (
        _split(folder, part, classes, size, crop, workers) for part in ("train", "val")
    )
    if validation is None:
        validation = min(max((train or len(labelled)) // 10, 1), HELD_OUT)
    return assemble(
        "imagenet",
        labelled,
        test,
        classes=class_words(folder, classes),
        licence=LICENCE,
        validation=validation,
        train=train,
        seed=seed,
        statistics=STATISTICS,
        augment=({"kind": "resized-crop"}, {"kind": "flip"}),
        notes="test: the official validation part",
    )


def _folder(root: Path) -> Path:
    for folder in (*(root / name for name in FOLDERS), root):
        if (folder / "train").is_dir() and (folder / "val").is_dir():
            return folder
    raise UserError(
        f"data_root={root}",
        "no `train` and `val` folders found there",
        "name the folder that holds them with root (--data-root) or SPIKELET_DATA",
    )


def _classes(folder: Path) -> list[str]:
    with os.scandir(folder) as entries:
        found = sorted(e.name for e in entries if e.is_dir() and not e.name.startswith("."))
    if len(found) < 2:
        what = "fewer than two class folders found"
        raise UserError(f"data_root={folder}", what, "put images in train/CLASS and val/CLASS")
    return found


def _split(
    folder: Path, part: str, classes: Sequence[str], size: int, crop: float, workers: int | None
) -> Split:
    """The files of train or val, by class and name."""
    strange = sorted(set(_classes(folder / part)) - set(classes))
    if strange:
        what = f"class folders {', '.join(strange[:3])} are not among the training classes"
        raise UserError(f"data_root={folder / part}", what, "use the same folders in both parts")
    names: list[str] = []
    labels: list[int] = []
    for label, name in enumerate(classes):
        files = _files(folder / part / name)
        if not files:
            where = f"data_root={folder / part / name}"
            raise UserError(where, "no images found there", "add some, or remove the class")
        names += [f"{part}/{name}/{file}" for file in files]
        labels += [label] * len(files)
    stored = np.array([os.fsencode(name) for name in names])
    images = OnDisk(folder, stored, size, crop, workers)
    return Split(images, torch.tensor(labels))  # type: ignore[arg-type]  # it decodes as indexed


def _files(folder: Path) -> list[str]:
    if not folder.is_dir():
        return []
    with os.scandir(folder) as entries:
        return sorted(e.name for e in entries if Path(e.name).suffix.lower() in SUFFIXES)
