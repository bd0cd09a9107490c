"""Corrupted images that come as files beside a data set: CIFAR-10-C, CIFAR-10 as JPEG."""

from __future__ import annotations

import zipfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from spikelet.data.dataset import data_root
from spikelet.examine.subject import Subject

OFFICIAL = 10_000  # test images of CIFAR, and of each severity of CIFAR-10-C
SEVERITIES = 5
SEVERITY, QUALITY = "severity", "1: encoded again, with loss"
FOLDERS = {"cifar10": "CIFAR-10-C", "cifar100": "CIFAR-100-C"}
LABELS = "labels.npy"
UNREADABLE = (OSError, ValueError, EOFError, zipfile.BadZipFile)


@dataclass(frozen=True)
class Natural:
    """Corrupted images, and why some are not used.

    Attributes:
        kinds: name -> (what a level is, uint8 "N C H W" at each level).
        notes: a sentence for each file that is there and does not fit.
    """

    kinds: dict[str, tuple[str, list[Tensor]]] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)


def natural(subject: Subject, images: int) -> Natural:
    """The corrupted images that belong to the first `images` of a test part.

    They are CIFAR-10-C (Hendrycks and Dietterich, ICLR 2019) as it is published: in
    ROOT/CIFAR-10-C one array of 50,000 images for each kind, the 10,000 official test images in
    their order at severity 1, then at severity 2 and so on to 5, and `labels.npy`; CIFAR-100-C
    likewise; and the array `x_test_jpeg` of ROOT/cifar10.npz. So image i of the official test part
    is image i of every level. A test part of other images, as that of the protocol `batch5`, has
    none; nor has one that is JPEG itself.
    """
    found, recipe = Natural(), subject.loaded.recipe
    name = subject.dataset.name
    if name not in FOLDERS or subject.split != "test":
        return found
    root, labels = data_root(recipe.data.get("root")), subject.dataset.test.labels[:images]
    folder, jpeg = root / FOLDERS[name], root / "cifar10.npz"
    there = [str(place) for place in (folder,) if place.is_dir()]
    there += [f"{jpeg} (JPEG)"] * (name == "cifar10" and _has_jpeg(jpeg))
    if other := _other_images(recipe.data):
        found.notes.extend(f"{place} is not used: {other}." for place in there)
        return found
    if name == "cifar10" and _has_jpeg(jpeg):
        _read(_jpeg, jpeg, labels, found)
    if folder.is_dir():
        _read(_severities, folder, labels, found)
    small = subject.dataset.size
    for kind, (unit, levels) in found.kinds.items():
        found.kinds[kind] = unit, [_averaged(level, small) for level in levels]
    return found


def _other_images(data: dict[str, object]) -> str | None:
    """Why a test part has no corrupted images in these files; None where it is the official one."""
    if data.get("protocol", "standard") != "standard":
        return f"the run is tested on other images (protocol {data['protocol']})"
    if data.get("test") == "jpeg":
        return "the run is tested on images that are JPEG already"
    return None


def _read(
    read: Callable[[Path, Tensor, Natural], None], place: Path, labels: Tensor, found: Natural
) -> None:
    """Reads a place; one that is damaged is noted."""
    try:
        read(place, labels, found)
    except UNREADABLE as error:
        found.notes.append(f"{place} is not used: it cannot be read ({type(error).__name__}).")


def _has_jpeg(file: Path) -> bool:
    if not zipfile.is_zipfile(file):
        return False
    with zipfile.ZipFile(file) as archive:
        return {"x_test_jpeg.npy", "y_test_jpeg.npy"} <= set(archive.namelist())


def _jpeg(file: Path, labels: Tensor, found: Natural) -> None:
    with np.load(file) as arrays:
        if not _agree(arrays["y_test_jpeg"], labels):
            found.notes.append(f"{file} (JPEG) is not used: its labels are not those of the test.")
            return
        images = _images(arrays["x_test_jpeg"][: len(labels)])
    found.kinds["jpeg"] = QUALITY, [images]


def _severities(folder: Path, labels: Tensor, found: Natural) -> None:
    """Every kind of CIFAR-10-C, at its five severities."""
    if not (folder / LABELS).is_file():
        found.notes.append(f"{folder} is not used: there is no {LABELS} in it.")
        return
    stored = np.load(folder / LABELS)
    if len(stored) not in (OFFICIAL, SEVERITIES * OFFICIAL) or not _agree(stored, labels):
        what = "its labels are not those of the test images, in their order"
        found.notes.append(f"{folder} is not used: {what}.")
        return
    for file in sorted(folder.glob("*.npy")):
        if file.name != LABELS:
            _read(_kind, file, labels, found)


def _kind(file: Path, labels: Tensor, found: Natural) -> None:
    """One kind: what is there and is no such array is noted."""
    pixels = np.load(file, mmap_mode="r")
    whole = SEVERITIES * OFFICIAL
    if pixels.dtype != np.uint8 or pixels.ndim != 4 or (len(pixels), pixels.shape[3]) != (whole, 3):
        what = f"it holds {pixels.dtype} {pixels.shape}, not {whole} images in colour"
        found.notes.append(f"{file} is not used: {what}.")
        return
    levels = [_images(pixels[start : start + len(labels)]) for start in _starts()]
    found.kinds[f"c-{file.stem.replace('_', '-')}"] = SEVERITY, levels


def _starts() -> Iterator[int]:
    yield from range(0, SEVERITIES * OFFICIAL, OFFICIAL)


def _agree(stored: np.ndarray, labels: Tensor) -> bool:
    """Whether the labels of a file begin with those of the images."""
    first = torch.from_numpy(np.asarray(stored[: len(labels)], dtype=np.int64))
    return len(first) == len(labels) and bool((first == labels.cpu()).all())


def _images(pixels: np.ndarray) -> Tensor:
    """uint8 "N H W C" as "N C H W", copied."""
    return torch.from_numpy(np.array(pixels)).permute(0, 3, 1, 2).contiguous()


def _averaged(images: Tensor, size: tuple[int, int]) -> Tensor:
    """The images as large as those of the data set, whose `size` averages pixels."""
    if tuple(images.shape[-2:]) == size:
        return images
    return F.interpolate(images.float(), size, mode="area").round().to(torch.uint8)
