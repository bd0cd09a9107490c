"""A folder of images with one sub-folder per class."""

from __future__ import annotations

import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps

from spikelet.data.dataset import Dataset, Split, assemble, data_root, hold_out
from spikelet.errors import UserError

SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".bmp", ".webp", ".ppm", ".pgm", ".tif", ".tiff"})
PARTS = {"train": ("train",), "validation": ("validation", "valid", "val"), "test": ("test",)}
TEST_SHARE = 0.2
THREADS, CHUNK, NAMED = 8, 64, 5
SIXTEEN_BITS = ("I;16", "I;16L", "I;16B", "I;16N")
SCALED = ("PNG", "PPM")  # files whose whole numbers Pillow gives between 0 and 65535


def imagefolder(
    *,
    root: Path | str | None = None,
    size: int = 64,
    channels: int = 3,
    train: int | None = None,
    validation: int | None = None,
    download: bool = False,
    seed: int = 0,
) -> Dataset:
    """Images of ROOT/train/CLASS and ROOT/test/CLASS, cropped to a square of `size` pixels.

    With `val` but no `test` folder, `val` is the test. With both, `val` is the validation part
    unless `validation` asks for images held out of training. Without sub-folders `train`, a fifth
    of ROOT/CLASS is kept for the test. Held out by default: a tenth of the training images.
    Letters of `Train`, `test` and the like may be capitals; hidden files and folders are left out.
    What is transparent becomes white.
    """
    folder = data_root(root)
    if download:
        raise UserError("download=True", "a folder of images cannot be fetched", "leave it out")
    if channels not in (1, 3):
        raise UserError(f"channels={channels}", "images are grey or RGB", "choose 1 or 3")
    if size < 1:
        raise UserError(f"size={size}", "images need at least one pixel", "choose 32 or more")
    if not folder.is_dir():
        raise UserError(f"data_root={folder}", "no such folder", "name a folder of images")
    labelled, test, held, classes, notes = _parts(folder, size, channels, validation)
    if validation is None:
        validation = max((train or len(labelled)) // 10, 1)
    made = assemble(
        "imagefolder",
        labelled,
        test,
        classes=classes,
        licence="unknown",
        validation=validation if held is None else held,
        train=train,
        seed=seed,
        augment=(
            {"kind": "crop", "padding": max(size // 8, 1)},
            {"kind": "flip"},
        ),
        notes=notes,
    )
    if train is None:
        _require_every_class(folder, made)
    return made


def _require_every_class(folder: Path, dataset: Dataset) -> None:
    """Raise for a class without training images: nothing could learn it."""
    counts = torch.bincount(dataset.train.labels, minlength=len(dataset.classes))
    for name, count in zip(dataset.classes, counts.tolist(), strict=True):
        if not count:
            raise UserError(
                f"data_root={folder}",
                f"class {name} has no image left to train on after those held out",
                "add images to it, remove its folder, or hold out fewer with --validation",
            )


def _parts(
    folder: Path, size: int, channels: int, validation: int | None
) -> tuple[Split, Split, Split | None, list[str], str]:
    """(labelled, test, ready validation part or none, classes, notes) by the folder's layout."""
    found = {part: _first(folder, names) for part, names in PARTS.items()}
    where = found["train"] or folder
    classes = _classes(where)
    if len(classes) < 2:
        what = f"there is one class alone, {classes[0]}"
        fix = "put images of two or more in FOLDER/CLASS/"
        if any(path.is_dir() for path in (where / classes[0]).iterdir()):
            fix += f", or name {where / classes[0]} if its folders are the classes"
        raise UserError(f"data_root={where}", what, fix)
    labelled = _read(where, classes, size, channels)
    if len(labelled) < 3:
        raise UserError(f"data_root={where}", f"only {len(labelled)} images", "add more")
    if found["train"] is None:
        rest, test = hold_out(labelled, max(int(len(labelled) * TEST_SHARE), 1), seed=0)
        return rest, test, None, classes, f"test: {len(test)} images drawn from the folder"
    last = found["test"] or found["validation"]
    if last is None:
        raise UserError(
            f"data_root={folder}",
            "a `train` folder but neither `test` nor `val` found",
            "add one, or name a folder with only class folders in it",
        )
    test = _read(last, classes, size, channels)
    held = None
    if found["test"] is not None and found["validation"] is not None and validation is None:
        held = _read(found["validation"], classes, size, channels)
    return labelled, test, held, classes, "" if found["test"] else f"test: the {last.name} folder"


def _first(folder: Path, names: Sequence[str]) -> Path | None:
    """The sub-folder of the first of these names there is, in whatever letters."""
    there = {path.name.lower(): path for path in sorted(folder.iterdir()) if path.is_dir()}
    return next((there[name] for name in names if name in there), None)


def _classes(folder: Path) -> list[str]:
    names = sorted(p.name for p in folder.iterdir() if p.is_dir() and not p.name.startswith("."))
    if not names:
        raise UserError(
            f"data_root={folder}", "no class folders found", "put images in FOLDER/CLASS/"
        )
    return names


def _read(folder: Path, classes: Sequence[str], size: int, channels: int) -> Split:
    """All images of the class folders, decoded and resized, as one split."""
    strange = sorted(set(_classes(folder)) - set(classes))
    if strange:
        raise UserError(
            f"data_root={folder}",
            f"class folders {', '.join(strange[:3])} are not among the training classes",
            "use the same class folders in every part",
        )
    found: list[Path] = []
    labels: list[int] = []
    for label, name in enumerate(classes):
        files = _images(folder / name)
        if not files and folder.name.lower() not in PARTS["test"] + PARTS["validation"]:
            raise UserError(
                f"data_root={folder / name}",
                "no images found there",
                f"add some ({', '.join(sorted(SUFFIXES)[:4])}, ...) or remove the folder",
            )
        found += files
        labels += [label] * len(files)
    if not found:
        raise UserError(f"data_root={folder}", "no images found there", "put images in it")
    return Split(decode(found, size, channels), torch.tensor(labels))


def _images(folder: Path) -> list[Path]:
    """Image files in a folder and its sub-folders, in order, without what is hidden."""
    found = (p.relative_to(folder) for p in folder.rglob("*") if p.suffix.lower() in SUFFIXES)
    return sorted(folder / p for p in found if not any(name[0] == "." for name in p.parts))


def decode(files: Sequence[Path], size: int, channels: int) -> torch.Tensor:
    """Image files in their order as uint8 "N C H W", read by several threads.

    Raises:
        UserError: for the files that cannot be read: how many there are, and the first few.
    """
    images = torch.empty(len(files), channels, size, size, dtype=torch.uint8)

    def read(start: int) -> list[tuple[Path, UserError]]:
        found = []
        for index in range(start, min(start + CHUNK, len(files))):
            try:
                images[index] = _pixels(files[index], size, channels)
            except UserError as error:
                found.append((files[index], error))
        return found

    pool = ThreadPoolExecutor(min(os.cpu_count() or 1, THREADS))
    try:
        bad = [each for part in pool.map(read, range(0, len(files), CHUNK)) for each in part]
    finally:
        pool.shutdown(cancel_futures=True)
    if bad:
        raise unreadable(bad, len(files))
    return images


def unreadable(bad: Sequence[tuple[Path, UserError]], count: int) -> UserError:
    """The error about some of `count` images: that of the only one, or their number and names."""
    if len(bad) == 1:
        return bad[0][1]
    folder = Path(os.path.commonpath([path.parent for path, _ in bad]))
    shown = ", ".join(str(path.relative_to(folder)) for path, _ in bad[:NAMED])
    more = f" and {len(bad) - NAMED} more" if len(bad) > NAMED else ""
    reasons = {(error.message, error.fix) for _, error in bad}
    why, fix = ("", "repair or remove them") if len(reasons) > 1 else reasons.pop()
    what = f"{len(bad)} of {count} images cannot be read: {shown}{more}"
    return UserError(f"data_root={folder}", f"{what}: {why}" if why else what, fix)


def _pixels(path: Path, size: int, channels: int) -> torch.Tensor:
    """One image, upright, cropped to its middle square and resized: uint8 "C H W"."""
    mode = "L" if channels == 1 else "RGB"
    try:
        with Image.open(path) as opened:
            ImageOps.exif_transpose(opened, in_place=True)
            image = _opaque(_eight_bits(opened))
            image = image if image.mode == mode else image.convert(mode)
            if image.size != (size, size):
                image = ImageOps.fit(image, (size, size), Image.Resampling.BICUBIC)
            pixels = np.array(image)
    except UserError:
        raise
    except Exception as error:
        raise UserError(
            f"data_root={path}",
            f"this image cannot be read ({type(error).__name__})",
            "repair or remove it",
        ) from error
    return torch.from_numpy(pixels.reshape(size, size, channels)).permute(2, 0, 1)


def _opaque(image: Image.Image) -> Image.Image:
    """The image on white, where it is transparent: what lies below has any colour, often black."""
    if "A" not in image.getbands() and "transparency" not in image.info:
        return image
    seen = image.convert("RGBA")
    return Image.alpha_composite(Image.new("RGBA", seen.size, "white"), seen)


def _eight_bits(image: Image.Image) -> Image.Image:
    """The image with 256 levels, where Pillow would cut what is brighter off."""
    sixteen = image.mode == "I" and image.format in SCALED
    if image.mode in SIXTEEN_BITS or sixteen:
        levels = np.array(image).astype(np.float64) / 257
        return Image.fromarray(levels.round().astype(np.uint8))
    if image.mode in ("I", "F"):
        where = f"data_root={getattr(image, 'filename', '')}"
        what = f"the range of its pixels is not known (mode {image.mode})"
        raise UserError(where, what, "store it with 8 or 16 bits, as PNG")
    return image
