"""Corrupted images that come as files beside a data set: CIFAR-10-C, CIFAR-10 as JPEG."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from spikelet.data.dataset import data_root
from spikelet.examine.subject import Subject

OFFICIAL = 10_000  # test images of CIFAR-10, and of each severity of CIFAR-10-C
SEVERITIES = 5
SEVERITY, QUALITY = "severity", "1: encoded again, with loss"


def natural(subject: Subject, images: int) -> dict[str, tuple[str, list[Tensor]]]:
    """The kinds found: name -> (what a level is, uint8 "N C H W" at each level).

    They are CIFAR-10-C (Hendrycks and Dietterich, ICLR 2019) in ROOT/CIFAR-10-C, and the array
    `x_test_jpeg` of ROOT/cifar10.npz. Both are in the order of the official test images, so they
    belong to the first images of that test part, of which the labels must agree.

    Args:
        subject: the run; anything but the test part of CIFAR-10 has none.
        images: how many to give.
    """
    if subject.dataset.name != "cifar10" or subject.split != "test":
        return {}
    root = data_root(subject.loaded.recipe.data.get("root"))
    labels = subject.dataset.test.labels[:images]
    return {**_jpeg(root / "cifar10.npz", labels), **_severities(root / "CIFAR-10-C", labels)}


def _jpeg(file: Path, labels: Tensor) -> dict[str, tuple[str, list[Tensor]]]:
    if not file.is_file():
        return {}
    with np.load(file) as arrays:
        if not {"x_test_jpeg", "y_test_jpeg"} <= set(arrays.files):
            return {}
        if not _agree(arrays["y_test_jpeg"], labels):
            return {}
        return {"jpeg": (QUALITY, [_images(arrays["x_test_jpeg"][: len(labels)])])}


def _severities(folder: Path, labels: Tensor) -> dict[str, tuple[str, list[Tensor]]]:
    """Every kind of CIFAR-10-C, at its five severities."""
    known = folder / "labels.npy"
    if not known.is_file() or not _agree(np.load(known), labels):
        return {}
    found = {}
    for file in sorted(folder.glob("*.npy")):
        pixels = np.load(file, mmap_mode="r")
        if file.name != "labels.npy" and len(pixels) == SEVERITIES * OFFICIAL:
            starts = range(0, SEVERITIES * OFFICIAL, OFFICIAL)
            levels = [_images(pixels[start : start + len(labels)]) for start in starts]
            found[f"c-{file.stem.replace('_', '-')}"] = (SEVERITY, levels)
    return found


def _agree(stored: np.ndarray, labels: Tensor) -> bool:
    """Whether the labels of a file begin with those of the images."""
    first = torch.from_numpy(np.asarray(stored[: len(labels)], dtype=np.int64))
    return len(first) == len(labels) and bool((first == labels.cpu()).all())


def _images(pixels: np.ndarray) -> Tensor:
    """uint8 "N H W C" as "N C H W", copied."""
    return torch.from_numpy(np.array(pixels)).permute(0, 3, 1, 2).contiguous()
