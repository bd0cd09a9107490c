"""What a data set is: splits of uint8 images or event frames, statistics, and their source."""

from __future__ import annotations

import hashlib
import math
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Int64, UInt8
from torch import Tensor

from spikelet.errors import UserError


@dataclass(frozen=True)
class Origin:
    """Which still image each sample is or shows.

    Attributes:
        name: of the images that are counted, such as "MNIST train".
        numbers: int64 "N", from 0 in their own order; -1 where it is not known.
    """

    name: str
    numbers: Int64[Tensor, "N"]

    def at(self, index: Tensor) -> Origin:
        """That of the samples at `index` "M"."""
        return Origin(self.name, self.numbers[index])


@dataclass(frozen=True)
class Split:
    """Images uint8 "N C H W", or event frames "N T C H W", and labels int64 "N".

    `origin` says which still images they are or show, where that is known.
    """

    images: UInt8[Tensor, "N *T C H W"]
    labels: Int64[Tensor, "N"]
    origin: Origin | None = None

    def __len__(self) -> int:
        return len(self.labels)

    def at(self, index: Tensor) -> Split:
        """The images and labels at `index` "M", copied."""
        part = getattr(self.images, "part", None)  # of files that are not decoded for that
        images = self.images[index] if part is None else part(index)
        origin = None if self.origin is None else self.origin.at(index)
        return Split(images, self.labels[index], origin)


@dataclass(frozen=True)
class Dataset:
    """Three splits of labelled images and what a card says about them.

    `mean` and `std` are per channel, of images / 255. `hashes` are SHA-256 sums per split.
    `augment` holds the specs of the default training augmentations, `notes` what deviates from
    the official split. Of frames, `unit` is how many of the 255 levels one event adds.
    """

    name: str
    train: Split
    validation: Split | None
    test: Split
    classes: tuple[str, ...]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    licence: str
    hashes: Mapping[str, str]
    augment: tuple[Mapping[str, Any], ...] = ()
    notes: str = ""
    unit: int | None = None

    @property
    def channels(self) -> int:
        """Channels of an image or frame."""
        return self.train.images.shape[-3]

    @property
    def size(self) -> tuple[int, int]:
        """Height and width of an image in pixels."""
        return self.train.images.shape[-2], self.train.images.shape[-1]

    @property
    def frames(self) -> int | None:
        """Frames of a recording; None for still images."""
        return self.train.images.shape[1] if self.train.images.ndim == 5 else None

    @property
    def sizes(self) -> dict[str, int]:
        """Images per split."""
        return {name: 0 if split is None else len(split) for name, split in _splits(self)}


def _splits(dataset: Dataset) -> Iterator[tuple[str, Split | None]]:
    yield from (
        ("train", dataset.train),
        ("validation", dataset.validation),
        ("test", dataset.test),
    )


def require_dataset(argument: str, found: Any) -> None:
    """Raises for what is no `Dataset`, or one whose parts do not fit each other.

    Shapes, types and labels are looked at, never the images: they may lie on a disk.
    """
    if not isinstance(found, Dataset):
        what = f"expected a spikelet.data.Dataset, got {type(found).__name__}"
        raise UserError(argument, what, "return one, as examples/own_data.py does")
    if len(found.classes) < 2:
        what = f"expected two or more classes, it has {len(found.classes)}"
        raise UserError(argument, what, "name every class in `classes`")
    for name, split in _splits(found):
        if split is not None or name != "validation":
            _require_split(f"{argument}: {name}", split, found)
    for name, least in (("mean", -math.inf), ("std", 0.0)):
        values = getattr(found, name)
        sound = all(math.isfinite(value) and value > least for value in values)
        if not sound or len(values) != found.channels:
            kind = "positive numbers" if name == "std" else "finite numbers"
            what = f"expected {found.channels} {kind}, one per channel, got {values}"
            raise UserError(f"{argument}: {name}", what, "take those of the training images / 255")


def _require_split(argument: str, split: Any, dataset: Dataset) -> None:
    """Raises for a part that is empty, of another form than the training part, or mislabelled."""
    if not isinstance(split, Split):
        what = f"expected a spikelet.data.Split, got {type(split).__name__}"
        raise UserError(argument, what, "give Split(images, labels)")
    images, labels = split.images, split.labels
    stored = hasattr(images, "part")
    for name, value in (("images", images), ("labels", labels)):
        if not isinstance(value, Tensor) and not (stored and name == "images"):
            what = f"expected a tensor, got {type(value).__name__}"
            raise UserError(f"{argument}.{name}", what, "take torch.as_tensor")
    kind = getattr(images, "dtype", torch.uint8)  # of files that are decoded when they are needed
    if kind != torch.uint8 or images.ndim not in (4, 5):
        what = f'expected uint8 images "N C H W", got {kind} of shape {tuple(images.shape)}'
        fix = "give pixels of 0 to 255; they are normalised where they are used"
        raise UserError(f"{argument}.images", what, fix)
    if images.shape[1:] != dataset.train.images.shape[1:]:
        wanted = tuple(dataset.train.images.shape[1:])
        what = f"expected images of {wanted}, as in training, got {tuple(images.shape[1:])}"
        raise UserError(f"{argument}.images", what, "bring all to one size and number of channels")
    fix, last = "give one int64 class index per image", len(dataset.classes) - 1
    if labels.dtype != torch.int64 or labels.shape != images.shape[:1]:
        what = f"{tuple(labels.shape)} of {labels.dtype} for {len(images)} images"
        raise UserError(f"{argument}.labels", what, fix)
    if not len(labels):
        raise UserError(argument, "it holds no images", "give it some, or split the data otherwise")
    if int(labels.min()) < 0 or int(labels.max()) > last:
        what = f"expected classes 0 to {last}, found {int(labels.min())} to {int(labels.max())}"
        raise UserError(
            f"{argument}.labels", what, "number the classes from 0, in `classes`' order"
        )


def assemble(
    name: str,
    labelled: Split,
    test: Split,
    *,
    classes: Sequence[str],
    licence: str,
    validation: int | Split,
    train: int | None,
    seed: int,
    statistics: tuple[tuple[float, ...], tuple[float, ...]] | None = None,
    augment: Sequence[Mapping[str, Any]] = (),
    notes: str = "",
    unit: int | None = None,
) -> Dataset:
    """A data set out of its labelled and its test part.

    `train` keeps that many labelled images (stratified, the same ones for every seed) before
    `validation` of them are held out (stratified, drawn by `seed`); a ready validation split is
    taken as it is. Statistics are those of the labelled part unless given.
    """
    if train is not None:
        labelled = _drawn("train", labelled, train, seed=0)[1]
    mean, std = statistics or channel_statistics(labelled.images)
    held: Split | None = validation if isinstance(validation, Split) else None
    if isinstance(validation, int) and validation != 0:
        labelled, held = _drawn("validation", labelled, validation, seed)
    splits = {"train": labelled, "validation": held, "test": test}
    for split in (labelled, held, test):
        if split is not None and len(split) and int(split.labels.max()) >= len(classes):
            raise UserError(
                f"data={name}",
                f"label {int(split.labels.max())} found where {len(classes)} classes are known",
                "the files are damaged, fetch them again",
            )
    return Dataset(
        name=name,
        train=labelled,
        validation=held,
        test=test,
        classes=tuple(classes),
        mean=mean,
        std=std,
        licence=licence,
        hashes={key: fingerprint(split) for key, split in splits.items() if split is not None},
        augment=tuple(augment),
        notes=notes,
        unit=unit,
    )


def _drawn(argument: str, split: Split, count: int, seed: int) -> tuple[Split, Split]:
    """(rest, drawn) with the limits checked in the user's words."""
    if argument == "train" and count == len(split):
        return split.at(torch.arange(0)), split
    if len(split) < 2:
        what = f"there is {len(split)} labelled training image, and some have to stay for training"
        raise UserError(f"{argument}={count}", what, "take more images, or hold out none")
    if not 0 < count < len(split):
        raise UserError(
            f"{argument}={count}",
            f"there are {len(split)} labelled training images to draw from",
            f"choose between 1 and {len(split) - 1}",
        )
    return hold_out(split, count, seed)


def held_out(validation: int | None, train: int | None, usual: int, share: int = 10) -> int:
    """Images to hold out where none are named: the usual ones, or one in `share` of a few kept."""
    if validation is not None:
        return validation
    return usual if train is None else min(usual, max(train // share, 1))


def hold_out(split: Split, count: int, seed: int) -> tuple[Split, Split]:
    """(rest, held out) with `count` images held out, in proportion per class, by `seed`.

    Both keep the order of `split`. What rounding leaves over goes to the classes with the largest
    remainder.
    """
    order = torch.randperm(len(split), generator=torch.Generator().manual_seed(seed))
    shuffled = split.labels[order]
    sizes = torch.bincount(split.labels)
    share = sizes.double() * count / len(split)
    quota = share.floor().long()
    largest = (share - quota).argsort(descending=True, stable=True)
    quota[largest[: count - int(quota.sum())]] += 1
    held = torch.zeros(len(split), dtype=torch.bool)
    for label, number in enumerate(quota.tolist()):
        held[order[shuffled == label][:number]] = True
    return split.at((~held).nonzero()[:, 0]), split.at(held.nonzero()[:, 0])


def channel_statistics(
    images: UInt8[Tensor, "N *T C H W"],
) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and standard deviation per channel of images / 255, exact from the histograms."""
    levels = torch.arange(256, dtype=torch.float64) / 255
    mean, std = [], []
    for channel in range(images.shape[-3]):
        counts = torch.bincount(images[..., channel, :, :].flatten(), minlength=256).double()
        weights = counts / counts.sum().clamp(min=1)
        middle = (weights * levels).sum()
        variance = (weights * (levels - middle) ** 2).sum()
        mean.append(round(float(middle), 6))
        std.append(round(max(float(variance) ** 0.5, 1e-3), 6))
    return tuple(mean), tuple(std)


def fingerprint(split: Split) -> str:
    """SHA-256 of shapes, images and labels."""
    own = getattr(split.images, "fingerprint", None)
    if own is not None:
        return str(own(split.labels))
    digest = hashlib.sha256(repr(tuple(split.images.shape)).encode())
    for tensor in (split.images, split.labels):
        content: Any = tensor.contiguous().numpy()
        digest.update(content)
    return digest.hexdigest()


def data_root(root: Path | str | None) -> Path:
    """`root`, else the environment's SPIKELET_DATA, else ~/.cache/spikelet."""
    chosen = root or os.environ.get("SPIKELET_DATA") or Path("~/.cache/spikelet")
    return Path(chosen).expanduser()


@contextmanager
def reading(path: Path) -> Iterator[None]:
    """Turns whatever a damaged file does to its reader into one sentence with its path."""
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        reason = f"{type(error).__name__}: {error}".splitlines()[0][:120].rstrip(".:; ")
        raise UserError(
            f"data_root={path}",
            f"the files there are damaged or not readable ({reason})",
            "delete them and fetch them again, for example with download (--download)",
        ) from error


def fetch(root: Path, download: Callable[[], object]) -> None:
    """Runs a download; a refusal becomes one sentence."""
    try:
        root.mkdir(parents=True, exist_ok=True)
        download()
    except Exception as error:
        reason = f"{type(error).__name__}: {error}".splitlines()[0][:120].rstrip(".:; ")
        raise UserError(
            "download=True",
            f"the download to {root} failed ({reason})",
            f"check the network and the folder's permissions, or copy the files to {root} by hand",
        ) from error


def missing(root: Path, what: str) -> UserError:
    """The error for files that are not there."""
    return UserError(
        f"data_root={root}",
        f"{what} not found there",
        "name the folder that holds it with root (--data-root) or SPIKELET_DATA, "
        "or fetch it with download (--download)",
    )
