"""Data sets as uint8 tensors in memory, of images or event frames; augmentations and batches.

A loader takes keyword options and returns a `Dataset`; `Batches` feeds a network from one split.
"""

from spikelet.data.augment import (
    AutoAugment,
    Crop,
    Cutout,
    EventDrop,
    Flip,
    RandAugment,
    ResizedCrop,
    Roll,
)
from spikelet.data.batches import Batches, normalise
from spikelet.data.cifar import cifar10, cifar100
from spikelet.data.dataset import Dataset, Split, channel_statistics, fingerprint, hold_out
from spikelet.data.events.sets import cifar10_dvs, dvs_gesture, n_caltech101, nmnist
from spikelet.data.folder import imagefolder
from spikelet.data.handwritten import digits, fashion_mnist, mnist
from spikelet.data.imagenet import imagenet
from spikelet.data.tiny_imagenet import tiny_imagenet

__all__ = [
    "AutoAugment",
    "Batches",
    "Crop",
    "Cutout",
    "Dataset",
    "EventDrop",
    "Flip",
    "RandAugment",
    "ResizedCrop",
    "Roll",
    "Split",
    "channel_statistics",
    "cifar10",
    "cifar10_dvs",
    "cifar100",
    "digits",
    "dvs_gesture",
    "fashion_mnist",
    "fingerprint",
    "hold_out",
    "imagefolder",
    "imagenet",
    "mnist",
    "n_caltech101",
    "nmnist",
    "normalise",
    "tiny_imagenet",
]
