"""Grey images of one object: scikit-learn's digits, MNIST, Fashion-MNIST."""

from __future__ import annotations

import warnings
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from spikelet.data.dataset import (
    Dataset,
    Origin,
    Split,
    assemble,
    data_root,
    fetch,
    held_out,
    hold_out,
    missing,
    reading,
)
from spikelet.encode import fitted
from spikelet.errors import UserError
from spikelet.vision import torchvision

DIGITS = tuple("0123456789")
CLOTHES = (
    "T-shirt/top",
    "Trouser",
    "Pullover",
    "Dress",
    "Coat",
    "Sandal",
    "Shirt",
    "Sneaker",
    "Bag",
    "Ankle boot",
)
CROP = {"kind": "crop", "padding": 2}
FLIP = {"kind": "flip"}
PIXELS, LARGEST, HELD_OUT = 28, 256, 5000
MNIST_ORDER = "MNIST train"  # what a number of an image of its training part counts in


def digits(*, train: int = 400, validation: int | None = None, seed: int = 0) -> Dataset:
    """Scikit-learn's handwritten digits, 8x8 grey: a small labelled part, the rest is the test.

    Of 1,797 images `train` are labelled (stratified, the same for every seed), 1,397 by default
    remain for the test; `validation` of the labelled ones, by default a fifth, at most 80, are held
    out by `seed`.
    """
    try:
        from sklearn.datasets import load_digits
    except ImportError as error:
        raise UserError(
            "data=digits", "scikit-learn is not installed", "run `pip install 'spikelet[demo]'`"
        ) from error
    table = load_digits()
    levels = np.rint(table.images * (255 / 16)).astype(np.uint8)
    everything = Split(torch.from_numpy(levels)[:, None], torch.from_numpy(table.target).long())
    if not 0 < train < len(everything):
        raise UserError(
            f"train={train}",
            f"digits has {len(everything)} images for training and test together",
            f"choose between 1 and {len(everything) - 1}",
        )
    test, labelled = hold_out(everything, train, seed=0)
    return assemble(
        "digits",
        labelled,
        test,
        classes=DIGITS,
        licence="CC BY 4.0 (UCI Optical Recognition of Handwritten Digits)",
        validation=held_out(validation, train, usual=80, share=5),
        train=None,
        seed=seed,
        augment=({**CROP, "padding": 1},),
        notes=f"{train} labelled images drawn from 1797, the other {len(test)} are the test",
    )


def mnist(
    *,
    root: Path | str | None = None,
    size: int = PIXELS,
    channels: int = 1,
    train: int | None = None,
    validation: int | None = None,
    download: bool = False,
    seed: int = 0,
) -> Dataset:
    """MNIST, 28x28 grey digits, 60,000 train and 10,000 test images in ROOT/MNIST/raw.

    With `size` 34 and two `channels`, all grey, they have the form of N-MNIST's frames, so that a
    teacher of images can be the start of a student of events. `train` keeps that many labelled
    images, of which `validation` are held out: 5,000, or a tenth of a smaller number.
    """
    labelled, test = (
        _fitted(part, size, channels) for part in _idx("MNIST", data_root(root), download)
    )
    labelled = replace(labelled, origin=Origin(MNIST_ORDER, torch.arange(len(labelled))))
    return assemble(
        "mnist",
        labelled,
        test,
        classes=DIGITS,
        licence="CC BY-SA 3.0 (Y. LeCun, C. Cortes, C. Burges)",
        validation=held_out(validation, train, HELD_OUT),
        train=train,
        seed=seed,
        augment=(CROP,),
    )


def fashion_mnist(
    *,
    root: Path | str | None = None,
    train: int | None = None,
    validation: int | None = None,
    download: bool = False,
    seed: int = 0,
) -> Dataset:
    """Fashion-MNIST, 28x28 grey clothes, 60,000 train and 10,000 test in ROOT/FashionMNIST/raw."""
    labelled, test = _idx("FashionMNIST", data_root(root), download)
    return assemble(
        "fashion-mnist",
        labelled,
        test,
        classes=CLOTHES,
        licence="MIT (Zalando SE)",
        validation=held_out(validation, train, HELD_OUT),
        train=train,
        seed=seed,
        augment=(CROP, FLIP),
    )


def _fitted(split: Split, size: int, channels: int) -> Split:
    """A split of grey images in another size and number of channels."""
    if not 1 <= size <= LARGEST:
        raise UserError(f"size={size}", f"expected 1 to {LARGEST} pixels", "leave it out")
    if not 1 <= channels <= 4:
        raise UserError(f"channels={channels}", "expected 1 to 4 channels", "leave it out")
    if (size, channels) == (PIXELS, 1):
        return split
    parts = split.images.split(10_000)
    sized = [fitted(part.float(), 1, (size, size)).round().to(torch.uint8) for part in parts]
    return replace(split, images=torch.cat(sized).expand(-1, channels, -1, -1).contiguous())


def _idx(name: str, root: Path, download: bool) -> tuple[Split, Split]:
    """(train, test) of a data set in MNIST's file format, read by torchvision."""
    raw, reader = root / name / "raw", getattr(torchvision().datasets, name)
    kinds = ("images-idx3", "labels-idx1")
    files = [raw / f"{part}-{kind}-ubyte" for part in ("train", "t10k") for kind in kinds]
    absent = [file.name for file in files if not file.is_file()]
    if absent:
        if not download:
            partial = len(absent) < len(files)
            raise missing(root, f"{', '.join(absent)} of {name}/raw" if partial else f"{name}/raw")
        fetch(root, lambda: reader(str(root), download=True))
    with reading(raw), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        parts = [reader(str(root), train=train, download=False) for train in (True, False)]
        for part in parts:
            if part.data.ndim != 3 or len(part.data) != len(part.targets) or not len(part.targets):
                raise ValueError(f"images of shape {tuple(part.data.shape)}")
    train, test = (Split(part.data[:, None].contiguous(), part.targets.long()) for part in parts)
    return train, test
