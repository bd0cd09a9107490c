"""Augmentations of a batch of uint8 images "B C H W" before normalisation.

Each is a frozen dataclass called with the images and a CPU generator, which alone makes every
random choice: the same ones on every device.
"""

from __future__ import annotations

import importlib
from dataclasses import dataclass
from types import ModuleType
from typing import Any

import torch
from jaxtyping import UInt8
from torch import Generator, Tensor
from torch.nn import functional

from spikelet.errors import UserError, unknown
from spikelet.vision import torchvision

Images = UInt8[Tensor, "B C H W"]


def _integers(low: int, high: int, count: int, generator: Generator, like: Tensor) -> Tensor:
    return torch.randint(low, high, (count,), generator=generator).to(like.device)


@dataclass(frozen=True)
class Crop:
    """Pads by `padding` black pixels and cuts the original size out at a random place."""

    padding: int = 4

    def __post_init__(self) -> None:
        if self.padding < 0:
            raise UserError(f"padding={self.padding}", "must not be negative", "choose 0 or more")

    def __call__(self, images: Images, generator: Generator) -> Images:
        count, _, height, width = images.shape
        top = _integers(0, 2 * self.padding + 1, count, generator, images)
        left = _integers(0, 2 * self.padding + 1, count, generator, images)
        padded = functional.pad(images, [self.padding] * 4)
        windows = padded.unfold(2, height, 1).unfold(3, width, 1)
        return windows[torch.arange(count, device=images.device), :, top, left]


@dataclass(frozen=True)
class Flip:
    """Mirrors left and right with the given probability."""

    probability: float = 0.5

    def __call__(self, images: Images, generator: Generator) -> Images:
        chosen = torch.rand(len(images), generator=generator) < self.probability
        chosen = chosen.to(images.device)[:, None, None, None]
        return torch.where(chosen, images.flip(3), images)


@dataclass(frozen=True)
class Cutout:
    """Covers a square of `size` pixels with the mean colour (DeVries & Taylor, 2017).

    The centre is anywhere in the image, so the square may stick out. `fill` is the colour per
    channel, 0..255; none means the data set's mean inside `Batches`, else that of the batch.
    """

    size: int = 16
    fill: tuple[int, ...] | None = None

    def __post_init__(self) -> None:
        if self.size < 1:
            raise UserError(f"size={self.size}", "the square needs a pixel", "choose 1 or more")

    def __call__(self, images: Images, generator: Generator) -> Images:
        count, _, height, width = images.shape
        top = _integers(0, height, count, generator, images) - self.size // 2
        left = _integers(0, width, count, generator, images) - self.size // 2
        rows = torch.arange(height, device=images.device) - top[:, None]
        columns = torch.arange(width, device=images.device) - left[:, None]
        inside_rows = (rows >= 0) & (rows < self.size)
        inside_columns = (columns >= 0) & (columns < self.size)
        covered = inside_rows[:, None, :, None] & inside_columns[:, None, None, :]
        return torch.where(covered, self._colour(images), images)

    def _colour(self, images: Tensor) -> Tensor:
        if self.fill is None:
            return images.float().mean(dim=(0, 2, 3), keepdim=True).round().to(torch.uint8)
        return torch.tensor(self.fill, dtype=torch.uint8, device=images.device).view(1, -1, 1, 1)


@dataclass(frozen=True)
class AutoAugment:
    """Learned policies of Cubuk et al., 2019, through torchvision.

    One is drawn for every `share` images: on a GPU single images are slow, and a shuffled batch
    may well share some draws.
    """

    policy: str = "cifar10"
    share: int = 1

    def __post_init__(self) -> None:
        _check_share(self.share)

    def __call__(self, images: Images, generator: Generator) -> Images:
        v2, enumeration = _transforms(), torchvision().transforms.AutoAugmentPolicy
        policies = {policy.value: policy for policy in enumeration}
        if self.policy not in policies:
            raise unknown("policy", self.policy, policies)
        return _each(v2.AutoAugment(policies[self.policy]), images, generator, self.share)


@dataclass(frozen=True)
class RandAugment:
    """`operations` random changes of the given magnitude (Cubuk et al., 2020).

    They are drawn for every `share` images, as in `AutoAugment`.
    """

    operations: int = 2
    magnitude: int = 9
    share: int = 1

    def __post_init__(self) -> None:
        _check_share(self.share)

    def __call__(self, images: Images, generator: Generator) -> Images:
        change = _transforms().RandAugment(self.operations, self.magnitude)
        return _each(change, images, generator, self.share)


def _transforms() -> ModuleType:
    torchvision()
    return importlib.import_module("torchvision.transforms.v2")


def _check_share(share: int) -> None:
    if share < 1:
        raise UserError(f"share={share}", "expected 1 image or more", "choose 1")


def _each(transform: Any, images: Tensor, generator: Generator, share: int) -> Tensor:
    """Applies a torchvision transform to `share` images at a time, drawn from `generator`.

    Torchvision draws from torch's global CPU generator: it is seeded inside and restored after.
    """
    seed = int(torch.randint(2**62, (), generator=generator))
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        return torch.cat([transform(part) for part in images.split(share)])
