"""What the data sets of event cameras differ in: sensor, folder, licence, augmentations."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from spikelet.data.events import archives
from spikelet.data.events.download import Archive

GESTURES = (
    "hand clapping",
    "right hand wave",
    "left hand wave",
    "right arm clockwise",
    "right arm counter clockwise",
    "left arm clockwise",
    "left arm counter clockwise",
    "arm roll",
    "air drums",
    "air guitar",
    "other gestures",
)


@dataclass(frozen=True)
class Kind:
    """What loaders of recordings differ in.

    Attributes:
        name: of the data set.
        folder: below the root.
        sensor: height and width.
        white: events of a recording that fill one pixel's frames.
        licence: of the recordings.
        augment: the specs of its usual augmentations.
        archives: where it comes from.
    """

    name: str
    folder: str
    sensor: tuple[int, int]
    white: int
    licence: str
    augment: tuple[Mapping[str, Any], ...]
    archives: tuple[Archive, ...]


FLIP = {"kind": "flip"}
ROLL = {"kind": "roll", "pixels": 4}
NMNIST = Kind(
    "nmnist",
    "NMNIST",
    (34, 34),
    32,
    "CC BY-SA 4.0 (G. Orchard et al., 2015)",
    ({"kind": "crop", "padding": 2},),
    archives.NMNIST,
)
CIFAR10_DVS = Kind(
    "cifar10-dvs",
    "CIFAR10DVS",
    (128, 128),
    256,
    "CC BY 4.0 (H. Li et al., 2017)",
    (FLIP, ROLL),
    archives.CIFAR10_DVS,
)
DVS_GESTURE = Kind(
    "dvs-gesture",
    "DVSGesture",
    (128, 128),
    256,
    "CC BY 4.0 (A. Amir et al., 2017)",
    (ROLL,),  # mirrored, a left hand would be a right one
    archives.DVS_GESTURE,
)
N_CALTECH101 = Kind(
    "n-caltech101",
    "NCaltech101",
    (180, 240),
    128,
    "CC BY 4.0 (G. Orchard et al., 2015)",
    (FLIP, ROLL),
    archives.N_CALTECH101,
)
