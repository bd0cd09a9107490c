"""Tiny-ImageNet, the whole of it or some of its classes."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path

import torch

from spikelet.data.dataset import Dataset, Split, assemble, data_root
from spikelet.data.folder import SUFFIXES, decode
from spikelet.errors import UserError

FOLDERS = ("tiny-imagenet-200", "tiny-imagenet", "tiny-imagenet-30")
CLASS = re.compile(r"n\d{8}")
CLASSES, TRAIN_IMAGES, TEST_IMAGES = 200, 500, 50
LICENCE = "ImageNet terms: non-commercial research and education (Stanford CS231n)"


def tiny_imagenet(
    *,
    root: Path | str | None = None,
    size: int = 64,
    train: int | None = None,
    validation: int | None = None,
    download: bool = False,
    seed: int = 0,
) -> Dataset:
    """Tiny-ImageNet, 64x64 RGB, in ROOT/tiny-imagenet-200, ROOT/tiny-imagenet-30 or ROOT itself.

    Classes are those found in `train`, sorted by WordNet number: all 200 or some of them. The
    official validation part, whose labels are public, is the test; a tenth of the training images
    is held out unless `validation` says how many. Images lie in train/CLASS/images and val/images
    with val/val_annotations.txt, as in the official archive, or in train/CLASS and val/CLASS. Mean
    and deviation are those of the training images found. It is not downloaded.
    """
    if size < 1:
        raise UserError(f"size={size}", "images need at least one pixel", "choose 64")
    folder = _folder(data_root(root), download)
    wnids = _classes(folder)
    parts = _train_files(folder, wnids), _test_files(folder, wnids)
    labelled, test = (_split(files, wnids, size) for files in parts)
    if validation is None:
        validation = max((train or len(labelled)) // 10, 1)
    return assemble(
        "tiny-imagenet",
        labelled,
        test,
        classes=class_words(folder, wnids),
        licence=LICENCE,
        validation=validation,
        train=train,
        seed=seed,
        augment=({"kind": "crop", "padding": max(size // 8, 1)}, {"kind": "flip"}),
        notes=_notes(labelled, test, len(wnids)),
    )


Files = list[tuple[str, Path]]  # (class, file)


def _folder(root: Path, download: bool) -> Path:
    """The first known folder that has a `train` part, or the sentence that there is none."""
    for folder in (*(root / name for name in FOLDERS), root):
        if (folder / "train").is_dir():
            if not (folder / "val").is_dir():
                raise _partial(folder, "a `train` folder but no `val` found")
            return folder
    raise UserError(
        "download=True" if download else f"data_root={root}",
        f"no tiny-imagenet-200 or tiny-imagenet-30 in {root}, and it is not fetched for you",
        f"unpack Stanford's tiny-imagenet-200.zip in {root}, or name the folder that holds it with "
        "root (--data-root) or SPIKELET_DATA",
    )


def _partial(folder: Path, what: str) -> UserError:
    """The error for a folder that is not whole."""
    return UserError(f"data_root={folder}", what, "delete the folder and unpack it again")


def _table(path: Path, separator: str | None) -> list[list[str]]:
    """The fields of each line of a text file; at least two."""
    try:
        rows = [line.split(separator) for line in path.read_text("utf-8").splitlines() if line]
    except (OSError, ValueError) as error:
        raise _partial(path, f"it cannot be read ({type(error).__name__})") from error
    if any(len(row) < 2 for row in rows):
        raise _partial(path, "it is damaged: a line has no second column")
    return rows


def _classes(folder: Path) -> list[str]:
    """The WordNet numbers of the class folders, sorted; all that wnids.txt lists must be there."""
    found = _class_folders(folder / "train")
    if len(found) < 2:
        raise _partial(folder / "train", "no class folders such as n01443537 found")
    listed = folder / "wnids.txt"
    if listed.is_file():
        absent = sorted(set(listed.read_text("utf-8", "replace").split()) - set(found))
        if absent:
            what = f"{len(absent)} classes of wnids.txt have no folder ({', '.join(absent[:3])})"
            raise _partial(folder / "train", what)
    return found


def _class_folders(folder: Path) -> list[str]:
    return sorted(p.name for p in folder.iterdir() if p.is_dir() and CLASS.fullmatch(p.name))


def _images(folder: Path) -> list[Path]:
    """The image files of one class, in its folder or in `images` there, sorted."""
    inner = folder / "images"
    place = inner if inner.is_dir() else folder
    return sorted(p for p in place.iterdir() if p.suffix.lower() in SUFFIXES)


def _train_files(folder: Path, wnids: Sequence[str]) -> Files:
    files = [(wnid, file) for wnid in wnids for file in _images(folder / "train" / wnid)]
    return _every_class(folder / "train", files, wnids)


def _test_files(folder: Path, wnids: Sequence[str]) -> Files:
    """Files of the official validation part, by its annotations or by class folders.

    Images of classes that `train` lacks are left out.
    """
    part, known = folder / "val", set(wnids)
    annotations = part / "val_annotations.txt"
    if not annotations.is_file():
        present = known & set(_class_folders(part))
        files = [(wnid, file) for wnid in sorted(present) for file in _images(part / wnid)]
        return _every_class(part, files, wnids)
    rows = [row[:2] for row in _table(annotations, None)]
    files = sorted((wnid, part / "images" / name) for name, wnid in rows if wnid in known)
    absent = [file.name for _, file in files if not file.is_file()]
    if absent:
        raise _partial(part, f"{len(absent)} images of val_annotations.txt missing ({absent[0]})")
    return _every_class(part, files, wnids)


def _every_class(part: Path, files: Files, wnids: Sequence[str]) -> Files:
    """The files, if each class has one."""
    empty = sorted(set(wnids) - {wnid for wnid, _ in files})
    if empty:
        raise _partial(part, f"{len(empty)} classes without images ({', '.join(empty[:3])})")
    return files


def _split(files: Files, wnids: Sequence[str], size: int) -> Split:
    number = {wnid: label for label, wnid in enumerate(wnids)}
    images = decode([file for _, file in files], size, 3)
    return Split(images, torch.tensor([number[wnid] for wnid, _ in files]))


def class_words(folder: Path, wnids: Sequence[str]) -> list[str]:
    """The first word for each class, from words.txt or classes.tsv; its number where none is."""
    known: dict[str, str] = {}
    for name in ("words.txt", "classes.tsv"):
        if (folder / name).is_file():
            rows = _table(folder / name, "\t")
            known |= {row[-2]: row[-1].partition(",")[0].strip() for row in rows}
    words = [known.get(wnid) or wnid for wnid in wnids]
    twice = {word for word, count in Counter(words).items() if count > 1}
    return [f"{w} ({n})" if w in twice else w for w, n in zip(words, wnids, strict=True)]


def _notes(labelled: Split, test: Split, classes: int) -> str:
    """What deviates from the whole data set, in words."""
    notes = ["test: the official validation part"]
    if classes != CLASSES:
        notes.append(f"{classes} of the {CLASSES} classes")
    parts = (("train", labelled, TRAIN_IMAGES), ("test", test, TEST_IMAGES))
    for name, split, official in parts:
        low, high = _ends(torch.bincount(split.labels, minlength=classes).tolist())
        if (low, high) != (official, official):
            notes.append(f"{name}: {low} to {high} of {official} images per class")
    return "; ".join(notes)


def _ends(counts: Iterable[int]) -> tuple[int, int]:
    counts = list(counts)
    return min(counts), max(counts)
