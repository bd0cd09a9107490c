"""Augmentations of a batch of uint8 images "B C H W" before normalisation.

Each is a frozen dataclass called with the images and a CPU generator, which alone makes every
random choice: the same ones on every device. All frames of a recording are changed alike; a class
with `frames` is made for "B T C H W" itself.
"""

from __future__ import annotations

import importlib
from dataclasses import dataclass
from types import ModuleType
from typing import Any, ClassVar

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
class ResizedCrop:
    """A random part of an image, resized to the whole (Szegedy et al., 2015; "Inception crop").

    Its area is a share between `smallest` and 1 of the image's, its width over its height is
    between 1 / `aspect` and `aspect`, uniform in the logarithm. Of images on the disk nothing else
    is decoded.
    """

    smallest: float = 0.08
    aspect: float = 4 / 3

    def __post_init__(self) -> None:
        if not 0 < self.smallest <= 1:
            raise UserError(f"smallest={self.smallest}", "expected a share of 1", "choose 0.08")
        if not self.aspect >= 1:
            raise UserError(f"aspect={self.aspect}", "expected 1 or more", "choose 1.333")

    def box(
        self, width: int, height: int, generator: Generator
    ) -> tuple[float, float, float, float]:
        """(left, top, right, bottom) in pixels; after ten parts that stick out the middle one."""
        draws = torch.rand(10, 4, generator=generator, dtype=torch.float64).tolist()
        for area, shape, x, y in draws:
            size = width * height * (self.smallest + (1 - self.smallest) * area)
            ratio = self.aspect ** (2 * shape - 1)
            w, h = round((size * ratio) ** 0.5), round((size / ratio) ** 0.5)
            if 0 < w <= width and 0 < h <= height:
                left, top = int(x * (width - w + 1)), int(y * (height - h + 1))
                return left, top, left + w, top + h
        w, h = min(width, height * self.aspect), min(height, width * self.aspect)
        return (width - w) / 2, (height - h) / 2, (width + w) / 2, (height + h) / 2

    def __call__(self, images: Images, generator: Generator) -> Images:
        height, width = images.shape[-2:]
        found = []
        for image in images:
            left, top, right, bottom = map(int, self.box(width, height, generator))
            part = image[None, :, top:bottom, left:right].float()
            resized = functional.interpolate(part, (height, width), mode="bilinear", antialias=True)
            found.append(resized.round().clamp(0, 255).to(torch.uint8))
        return torch.cat(found)


@dataclass(frozen=True)
class Flip:
    """Mirrors left and right with the given probability."""

    probability: float = 0.5

    def __call__(self, images: Images, generator: Generator) -> Images:
        chosen = torch.rand(len(images), generator=generator) < self.probability
        chosen = chosen.to(images.device)[:, None, None, None]
        return torch.where(chosen, images.flip(3), images)


@dataclass(frozen=True)
class Roll:
    """Shifts by up to `pixels` each way; what leaves on one side comes back on the other."""

    pixels: int = 4

    def __post_init__(self) -> None:
        if self.pixels < 0:
            raise UserError(f"pixels={self.pixels}", "must not be negative", "choose 0 or more")

    def __call__(self, images: Images, generator: Generator) -> Images:
        count, _, height, width = images.shape
        reach = 2 * self.pixels + 1
        down = _integers(0, reach, count, generator, images) - self.pixels
        right = _integers(0, reach, count, generator, images) - self.pixels
        rows = (torch.arange(height, device=images.device) - down[:, None]) % height
        columns = (torch.arange(width, device=images.device) - right[:, None]) % width
        sample = torch.arange(count, device=images.device)[:, None, None]
        moved = images.permute(0, 2, 3, 1)[sample, rows[:, :, None], columns[:, None, :]]
        return moved.permute(0, 3, 1, 2).contiguous()


@dataclass(frozen=True)
class EventDrop:
    """Events lost at random, for a time, or in an area (EventDrop, Gu et al., IJCAI 2021).

    For each recording one of four is drawn: nothing; each event with a probability drawn below
    `share`; all events of consecutive frames, up to `share` of them; all events in a box whose
    sides are up to sqrt(share) of the frame's.

    Args:
        share: above 0 and at most 1.
        unit: levels of one event; None means the data set's inside `Batches`, else 1.
    """

    share: float = 0.5
    unit: int | None = None
    frames: ClassVar[bool] = True

    def __post_init__(self) -> None:
        if not 0 < self.share <= 1:
            raise UserError(f"share={self.share}", "expected a share of the events", "try 0.5")

    def __call__(self, images: Tensor, generator: Generator) -> Tensor:
        """Frames uint8 "B T C H W" to frames with fewer events."""
        count, steps, _, *size = images.shape
        kind = torch.randint(0, 4, (count,), generator=generator)
        amount = torch.rand(count, generator=generator) * self.share
        lost = torch.ones(count, steps, 1, *size, dtype=torch.bool)
        lost &= (
            _stretch(steps, amount, generator)[:, :, None, None, None]
            | (kind != 2)[:, None, None, None, None]
        )
        boxes = [_stretch(side, amount.sqrt(), generator) for side in size]
        box = boxes[0][:, :, None] & boxes[1][:, None, :]
        lost &= box[:, None, None] | (kind != 3)[:, None, None, None, None]
        lost &= (kind > 1)[:, None, None, None, None]
        kept = images.masked_fill(lost.to(images.device), 0)
        chance = torch.where(kind == 1, amount, 0.0).view(-1, 1, 1, 1, 1)
        return thinned(kept, chance, self.unit or 1, generator)


def _stretch(length: int, share: Tensor, generator: Generator) -> Tensor:
    """Consecutive places up to a share "B" of a length, anywhere within it: bool "B length"."""
    number = (share * length).round()
    start = (torch.rand(len(share), generator=generator) * (length - number + 1)).floor()
    place = torch.arange(length)
    return (place >= start[:, None]) & (place < (start + number)[:, None])


def thinned(frames: Tensor, chance: Tensor, unit: int, generator: Generator) -> Tensor:
    """Frames uint8 that lost each event with a probability that broadcasts against them.

    A value of v levels stands for v / unit events, of which Binomial(v / unit, 1 - p) stay.
    """
    lossy = (chance > 0).expand(len(frames), *[1] * (frames.ndim - 1)).flatten()
    result, some = frames.clone(), lossy.nonzero()[:, 0].to(frames.device)
    if len(some):
        events = (frames[some].cpu().float() / unit).round()
        kept = torch.binomial(events, (1 - chance[lossy]).expand(events.shape), generator)
        result[some] = (kept * unit).clamp(max=255).to(torch.uint8).to(frames.device)
    return result


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
