"""Data sets of event cameras as frames: N-MNIST, CIFAR10-DVS, DVS128 Gesture, N-Caltech101."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from spikelet.data.cifar import CLASSES as CIFAR_CLASSES
from spikelet.data.dataset import Dataset, Origin, assemble, data_root, missing
from spikelet.data.events import archives
from spikelet.data.events.cache import Source, split_of
from spikelet.data.events.download import fetch_all
from spikelet.data.events.frames import By, Framing, unit_of
from spikelet.data.events.kinds import (
    CIFAR10_DVS,
    DVS_GESTURE,
    GESTURES,
    N_CALTECH101,
    NMNIST,
    Kind,
)
from spikelet.data.events.recordings import caltech, digit, dvs, labelled, numbers, trials
from spikelet.data.handwritten import DIGITS, MNIST_ORDER
from spikelet.errors import UserError

TENTH = 10
RULE = "the recordings whose SHA-256 of CLASS/NAME is a multiple of 10"


@dataclass(frozen=True)
class Asked:
    """What a user asked of a data set."""

    framing: Framing
    root: Path
    train: int | None
    validation: int | None
    download: bool
    seed: int


def nmnist(
    *,
    root: Path | str | None = None,
    frames: int = 4,
    by: By = "time",
    size: int | None = None,
    train: int | None = None,
    validation: int | None = None,
    download: bool = False,
    seed: int = 0,
) -> Dataset:
    """N-MNIST: MNIST's digits before a moving ATIS camera, 34x34, in ROOT/NMNIST/Train and Test.

    `frames` frames of equal duration (`by` "time") or event count ("count"), scaled to `size`
    pixels. Held out by default: a tenth of the training recordings. Which image of MNIST a training
    recording shows is known by its name (`Split.origin`).
    """
    framing = _framing(NMNIST, frames, by, size)
    asked = Asked(framing, data_root(root), train, validation, download, seed)
    folder = _folder(NMNIST, asked, ("Train", "Test"))
    parts = [labelled(folder / part, DIGITS, ".bin", digit) for part in ("Train", "Test")]
    counts = tuple(map(len, parts))
    notes = "" if counts == (60_000, 10_000) else f"{counts[0]} of 60000 and {counts[1]} of 10000"
    shown = Origin(MNIST_ORDER, numbers(parts[0]))
    return _dataset(NMNIST, asked, folder, parts[0], parts[1], DIGITS, notes, shown)


def cifar10_dvs(
    *,
    root: Path | str | None = None,
    frames: int = 4,
    by: By = "time",
    size: int | None = 64,
    train: int | None = None,
    validation: int | None = None,
    download: bool = False,
    seed: int = 0,
) -> Dataset:
    """CIFAR10-DVS: 10,000 recordings of CIFAR-10 images by a DVS128, in ROOT/CIFAR10DVS/CLASS.

    There is no official split. The test part are the recordings whose SHA-256 of CLASS/NAME,
    without the ending, is a multiple of 10: the same ones everywhere, whatever else is there.
    Options as `nmnist`.
    """
    framing = _framing(CIFAR10_DVS, frames, by, size)
    asked = Asked(framing, data_root(root), train, validation, download, seed)
    folder = _folder(CIFAR10_DVS, asked, CIFAR_CLASSES)
    sources = labelled(folder, CIFAR_CLASSES, ".aedat*", dvs)
    return _by_rule(CIFAR10_DVS, asked, folder, sources, CIFAR_CLASSES)


def n_caltech101(
    *,
    root: Path | str | None = None,
    frames: int = 4,
    by: By = "time",
    size: int | None = 60,
    train: int | None = None,
    validation: int | None = None,
    download: bool = False,
    seed: int = 0,
) -> Dataset:
    """N-Caltech101: Caltech101 before a moving ATIS camera, in ROOT/NCaltech101/Caltech101/CLASS.

    `size` is the height of a frame; the width follows from the sensor, 180x240. The test part is
    chosen as in `cifar10_dvs`, options are those of `nmnist`.
    """
    framing = _framing(N_CALTECH101, frames, by, size)
    asked = Asked(framing, data_root(root), train, validation, download, seed)
    folder = _folder(N_CALTECH101, asked, ("Caltech101",)) / "Caltech101"
    classes = sorted(p.name for p in folder.iterdir() if p.is_dir() and p.name[0] != ".")
    sources = labelled(folder, classes, ".bin", caltech)
    return _by_rule(N_CALTECH101, asked, folder, sources, classes)


def dvs_gesture(
    *,
    root: Path | str | None = None,
    frames: int = 4,
    by: By = "time",
    size: int | None = 64,
    train: int | None = None,
    validation: int | None = None,
    download: bool = False,
    seed: int = 0,
) -> Dataset:
    """DVS128 Gesture: 11 gestures of 29 people, in ROOT/DVSGesture/DvsGesture.

    A file `USER.aedat` holds many gestures; its times and classes stand in `USER_labels.csv`. The
    official lists trials_to_train.txt and trials_to_test.txt split by people. Options as `nmnist`.
    """
    framing = _framing(DVS_GESTURE, frames, by, size)
    asked = Asked(framing, data_root(root), train, validation, download, seed)
    folder = _folder(DVS_GESTURE, asked, ("DvsGesture",)) / "DvsGesture"
    parts = [trials(folder, f"trials_to_{part}.txt") for part in ("train", "test")]
    return _dataset(DVS_GESTURE, asked, folder, parts[0], parts[1], GESTURES, "")


def _framing(kind: Kind, frames: int, by: By, size: int | None) -> Framing:
    """The framing of a sensor; `size` is the height, the width keeps the sensor's shape."""
    height, width = kind.sensor
    if size is not None:
        if not 1 <= size <= height:
            raise UserError(f"size={size}", f"expected 1 to {height} pixels", "leave it out")
        height, width = size, max(1, round(width * size / height))
    return Framing(frames, by, (height, width), unit_of(frames, kind.white))


def _folder(kind: Kind, asked: Asked, wanted: Sequence[str]) -> Path:
    """The folder of a data set, fetched where asked for."""
    folder = asked.root / kind.folder
    absent = [name for name in wanted if not (folder / name).is_dir()]
    if absent and asked.download:
        fetch_all(kind.archives, folder)
        absent = [name for name in wanted if not (folder / name).is_dir()]
    if absent:
        partial = len(absent) < len(wanted)
        what = f"{', '.join(absent)} of {kind.folder}" if partial else kind.folder
        raise missing(asked.root, what)
    return folder


def chosen_for_test(name: str) -> bool:
    """Whether a recording CLASS/NAME belongs to the test part where no official split exists."""
    return int(hashlib.sha256(name.encode()).hexdigest(), 16) % TENTH == 0


def names_hash(names: Sequence[str]) -> str:
    """The SHA-256 of recordings' names, sorted: says which split it is."""
    return hashlib.sha256("\n".join(sorted(names)).encode()).hexdigest()


def _by_rule(
    kind: Kind, asked: Asked, folder: Path, sources: Sequence[Source], classes: Sequence[str]
) -> Dataset:
    """A data set whose test part is chosen by name; its notes say by which rule and which it is."""
    named = {f"{each.path.parent.name}/{each.path.stem}": each for each in sources}
    test = [name for name in named if chosen_for_test(name)]
    digest = names_hash(test)
    official = digest == archives.TEST_NAMES[kind.name]
    which = "the whole data set's" if official else f"{len(test)} of an incomplete data set,"
    notes = f"test: {RULE}; {which} names have SHA-256 {digest}"
    rest = [source for name, source in named.items() if name not in set(test)]
    return _dataset(kind, asked, folder, rest, [named[name] for name in test], classes, notes)


def _dataset(
    kind: Kind,
    asked: Asked,
    folder: Path,
    training: Sequence[Source],
    test: Sequence[Source],
    classes: Sequence[str],
    notes: str,
    origin: Origin | None = None,
) -> Dataset:
    """The frames of both parts as a data set; `origin` says which images those of training show."""
    train, held = asked.train, asked.validation
    parts = [
        split_of(f"{kind.name}-{part}", sources, asked.framing, folder)
        for part, sources in (("train", training), ("test", test))
    ]
    parts[0] = replace(parts[0], origin=origin)
    if held is None:
        held = max((len(parts[0]) if train is None else train) // TENTH, 1)
    return assemble(
        kind.name,
        parts[0],
        parts[1],
        classes=classes,
        licence=kind.licence,
        validation=held,
        train=train,
        seed=asked.seed,
        augment=kind.augment,
        notes=notes,
        unit=asked.framing.unit,
    )
