"""The recordings of a data set's folder: what each file holds, and which image it shows."""

from __future__ import annotations

import csv
import re
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from torch import Tensor

from spikelet.data.events.aedat import read_aedat
from spikelet.data.events.atis import read_bin
from spikelet.data.events.cache import Source
from spikelet.data.events.kinds import CIFAR10_DVS, GESTURES, N_CALTECH101, NMNIST
from spikelet.data.events.stream import Events, decoding

NUMBER = re.compile("[0-9]{1,9}")


def labelled(
    folder: Path, classes: Sequence[str], suffix: str, read: Callable[[Path], Events]
) -> list[Source]:
    """A source for each file of each class folder, in order of class and name."""
    found = []
    for label, name in enumerate(classes):

        def one(path: Path, label: int = label) -> list[tuple[Events, int]]:
            return [(read(path), label)]

        files = sorted(path for path in (folder / name).glob(f"*{suffix}") if path.is_file())
        found += [Source(path, one) for path in files]
    return found


def digit(path: Path) -> Events:
    """A recording of N-MNIST."""
    return read_bin(path, NMNIST.sensor)


def numbers(sources: Sequence[Source]) -> Tensor:
    """The number of the image that each file shows, from 0, -1 where its name is none: int64 "N".

    N-MNIST's files are called by the place of their image in MNIST, counted from 1.
    """
    names = (source.path.stem for source in sources)
    return torch.tensor([int(n) - 1 if NUMBER.fullmatch(n) else -1 for n in names])


def caltech(path: Path) -> Events:
    """A recording of N-Caltech101."""
    return read_bin(path, N_CALTECH101.sensor)


def dvs(path: Path) -> Events:
    """A recording of CIFAR10-DVS; files of its publisher are AEDAT 2.0 of a DVS128."""
    found = read_aedat(path)
    with decoding(path):
        if found.size != CIFAR10_DVS.sensor:
            raise ValueError(f"a sensor of {found.size} where 128x128 was expected")
    return found


def trials(folder: Path, name: str) -> list[Source]:
    """A source for each recording that one of the official lists names and that is there."""
    with decoding(folder / name):
        named = (folder / name).read_text(encoding="utf-8").split()
    paths = [folder / each for each in named]
    labels = [path.with_name(f"{path.stem}_labels.csv") for path in paths]
    return [
        Source(path, _gestures, (table,))
        for path, table in zip(paths, labels, strict=True)
        if path.is_file() and table.is_file()
    ]


def _gestures(path: Path) -> list[tuple[Events, int]]:
    """The gestures of one recording, cut out by the table beside it: class, start, end."""
    whole, table = read_aedat(path), path.with_name(f"{path.stem}_labels.csv")
    with decoding(table):
        rows = list(csv.reader(table.read_text(encoding="utf-8").splitlines()))[1:]
        cuts = [(int(row[0]) - 1, int(row[1]), int(row[2])) for row in rows if row]
        if any(not 0 <= label < len(GESTURES) for label, _, _ in cuts):
            raise ValueError(f"classes 1 to {len(GESTURES)} expected")
    return [(whole.between(start, stop), label) for label, start, stop in cuts]
