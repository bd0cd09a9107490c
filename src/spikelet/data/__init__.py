"""Data sets as uint8 tensors in memory, their augmentations and batches.

A loader takes keyword options and returns a `Dataset`; `Batches` feeds a network from one split.
"""

from spikelet.data.augment import AutoAugment, Crop, Cutout, Flip, RandAugment
from spikelet.data.batches import Batches, normalise
from spikelet.data.cifar import cifar10, cifar100
from spikelet.data.dataset import Dataset, Split, channel_statistics, fingerprint, hold_out
from spikelet.data.folder import imagefolder
from spikelet.data.handwritten import digits, fashion_mnist, mnist
from spikelet.data.tiny_imagenet import tiny_imagenet

__all__ = [
    "AutoAugment",
    "Batches",
    "Crop",
    "Cutout",
    "Dataset",
    "Flip",
    "RandAugment",
    "Split",
    "channel_statistics",
    "cifar10",
    "cifar100",
    "digits",
    "fashion_mnist",
    "fingerprint",
    "hold_out",
    "imagefolder",
    "mnist",
    "normalise",
    "tiny_imagenet",
]
