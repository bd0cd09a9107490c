"""Noise on images and on events, in kinds and levels: what a network trained without is shown.

It acts on the image before normalisation, between 0 and 1, and is clipped there again. Level 0 is
the image itself. The distillation paper that reports noise immunity (KDSNN, Xu et al., CVPR 2023)
does not give its kinds and levels: these are ours. Poisson, blur, brightness, contrast and haze
are in the manner of Hendrycks and Dietterich (ICLR 2019).

Noise on events acts on their frames: a value is a number of events, of which some are lost, moved,
or added. As frames are counts, that is the same as with the events themselves, but for frames that
hold equally many events, whose bounds would move, and for pixels that reached white.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Generator, Tensor

from spikelet.errors import UserError, unknown

DARKEST = 0.7  # haze: of its field, which reaches up to 1
FIELD = 3  # haze: its field is interpolated between so many values a side
Change = Callable[[Tensor, float, Generator], Tensor]


@dataclass(frozen=True)
class Corruption:
    """One kind of noise.

    Attributes:
        change: (images "B C H W", level, generator) to the noisy images, not clipped.
        levels: how strong, without 0.
        unit: what a level is.
        drawn: whether it is random, so that several draws make sense.
    """

    change: Change
    levels: tuple[float, ...]
    unit: str
    drawn: bool = True


def gaussian(pixels: Tensor, level: float, generator: Generator) -> Tensor:
    """x + sigma n, n ~ N(0, 1) for each value; the level is sigma."""
    return pixels + level * _drawn(torch.randn, pixels, generator)


def uniform(pixels: Tensor, level: float, generator: Generator) -> Tensor:
    """x + a u, u uniform in -1..1 for each value; the level is a."""
    return pixels + level * (2 * _drawn(torch.rand, pixels, generator) - 1)


def salt_and_pepper(pixels: Tensor, level: float, generator: Generator) -> Tensor:
    """Each pixel, in all channels, becomes 0 or 1 with probability p / 2 each; the level is p."""
    draw = _drawn(torch.rand, pixels[:, :1], generator)
    return torch.where(draw < level, (draw < level / 2).to(pixels), pixels)


def drop(pixels: Tensor, level: float, generator: Generator) -> Tensor:
    """Each pixel, in all channels, becomes 0 with probability p; the level is p."""
    return pixels * (_drawn(torch.rand, pixels[:, :1], generator) >= level)


def speckle(pixels: Tensor, level: float, generator: Generator) -> Tensor:
    """x + sigma x n, n ~ N(0, 1) for each value; the level is sigma."""
    return pixels + level * pixels * _drawn(torch.randn, pixels, generator)


def poisson(pixels: Tensor, level: float, generator: Generator) -> Tensor:
    """k / K with k ~ Poisson(K x) photons; the level is 1 / K, the variance at white."""
    photons = (pixels / level).to(generator.device)
    return (level * torch.poisson(photons, generator)).to(pixels.device)


def blur(pixels: Tensor, level: float, generator: Generator) -> Tensor:
    """Convolved with a Gaussian up to 3 sigma, edges repeated; the level is sigma in pixels."""
    radius = math.ceil(3 * level)
    place = torch.arange(-radius, radius + 1, dtype=pixels.dtype, device=pixels.device)
    kernel = torch.exp(-0.5 * (place / level) ** 2)
    kernel = (kernel / kernel.sum()).expand(pixels.shape[1], 1, 1, -1)
    wide = F.pad(pixels, (radius, radius, 0, 0), mode="replicate")
    wide = F.conv2d(wide, kernel, groups=pixels.shape[1])
    high = F.pad(wide, (0, 0, radius, radius), mode="replicate")
    return F.conv2d(high, kernel.transpose(2, 3), groups=pixels.shape[1])


def brightness(pixels: Tensor, level: float, generator: Generator) -> Tensor:
    """x + b; the level is b."""
    return pixels + level


def contrast(pixels: Tensor, level: float, generator: Generator) -> Tensor:
    """(1 - c) x + c m, m the mean of each channel of the image; the level is c."""
    return torch.lerp(pixels, pixels.mean((2, 3), keepdim=True), level)


def haze(pixels: Tensor, level: float, generator: Generator) -> Tensor:
    """(1 - h) x + h f, f a smooth field between 0.7 and 1, grey in colour; the level is h."""
    coarse = _drawn(torch.rand, pixels[:, :1, :1, :1].expand(-1, -1, FIELD, FIELD), generator)
    size = (pixels.shape[2], pixels.shape[3])
    field = F.interpolate(coarse, size, mode="bilinear", align_corners=True)
    return torch.lerp(pixels, DARKEST + (1 - DARKEST) * field, level)


KINDS: Mapping[str, Corruption] = {
    "gaussian": Corruption(gaussian, (0.02, 0.05, 0.1, 0.2), "standard deviation"),
    "uniform": Corruption(uniform, (0.05, 0.1, 0.2), "largest amplitude"),
    "salt-and-pepper": Corruption(salt_and_pepper, (0.01, 0.05, 0.1), "share of pixels"),
    "pixel-drop": Corruption(drop, (0.01, 0.05, 0.1), "share of pixels"),
    "speckle": Corruption(speckle, (0.1, 0.2, 0.4), "standard deviation, of the value"),
    "poisson": Corruption(poisson, (0.005, 0.02, 0.05), "variance at white"),
    "blur": Corruption(blur, (0.5, 0.75, 1.0), "sigma in pixels", drawn=False),
    "brightness": Corruption(brightness, (0.1, 0.2, 0.3), "added", drawn=False),
    "contrast": Corruption(contrast, (0.25, 0.5, 0.75), "share lost", drawn=False),
    "haze": Corruption(haze, (0.2, 0.4, 0.6), "share of haze"),
}


def _lost(events: Tensor, level: float, generator: Generator) -> Tensor:
    """Each of so many events is lost with probability p; the level is p."""
    return _binomial(events, 1 - level, generator)


def _jittered(events: Tensor, level: float, generator: Generator) -> Tensor:
    """Each event moves with probability p to one of the eight pixels around; the level is p.

    Those that leave the sensor are lost.
    """
    around = [(dy, dx) for dy in (-1, 0, 1) for dx in (-1, 0, 1) if dy or dx]
    left = _binomial(events, level, generator)
    found, (height, width) = events - left, events.shape[-2:]
    for number, (dy, dx) in enumerate(around):
        moved = _binomial(left, 1 / (len(around) - number), generator)
        left = left - moved
        wide = F.pad(moved, (1, 1, 1, 1))
        found = found + wide[..., 1 - dy : 1 - dy + height, 1 - dx : 1 - dx + width]
    return found


def _late(events: Tensor, level: float, generator: Generator) -> Tensor:
    """Each event moves with probability p to the frame before or after; the level is p.

    At the ends of the recording it stays.
    """
    left = _binomial(events, level, generator)
    later = _binomial(left, 0.5, generator)
    earlier, found = left - later, events - left
    ahead = torch.cat([torch.zeros_like(later[:, :1]), later[:, :-1]], 1)
    ahead[:, -1] += later[:, -1]
    back = torch.cat([earlier[:, 1:], torch.zeros_like(earlier[:, :1])], 1)
    back[:, 0] += earlier[:, 0]
    return found + ahead + back


def _hot(events: Tensor, level: float, generator: Generator) -> Tensor:
    """Each pixel is hot with probability p and sends as many events as the busiest one, all the
    time and of both polarities; the level is p.
    """
    drawn = _drawn(torch.rand, events[:, :1, :1], generator)
    most = events.flatten(1).amax(1).reshape(-1, 1, 1, 1, 1)
    return torch.where(drawn < level, most.expand_as(events), events)


def _binomial(events: Tensor, chance: float, generator: Generator) -> Tensor:
    """How many of so many events something happens to; drawn on the generator's device."""
    count = events.to(generator.device)
    return torch.binomial(count, torch.full_like(count, chance), generator).to(events)


EVENT_KINDS: Mapping[str, Corruption] = {
    "event-drop": Corruption(_lost, (0.1, 0.3, 0.5), "share of events"),
    "event-jitter": Corruption(_jittered, (0.1, 0.3, 0.5), "share of events, one pixel away"),
    "event-delay": Corruption(_late, (0.1, 0.3, 0.5), "share of events, one frame away"),
    "hot-pixels": Corruption(_hot, (0.005, 0.02, 0.05), "share of pixels"),
}


def kinds_of(unit: int | None) -> Mapping[str, Corruption]:
    """The kinds of noise for images, or for frames whose events add `unit` levels each."""
    return KINDS if unit is None else EVENT_KINDS


def corrupt(
    pixels: Tensor, kind: str, level: float, generator: Generator, unit: int | None = None
) -> Tensor:
    """Images "B C H W" between 0 and 1 under one kind of noise, between 0 and 1 again.

    Args:
        pixels: the images, not normalised; or frames "B T C H W".
        kind: of `KINDS`; of `EVENT_KINDS` for frames.
        level: how strong, in the unit of its kind; 0 gives the images themselves.
        generator: what is drawn from it does not depend on the device of the images.
        unit: of frames, how many of 255 levels one event adds.

    Raises:
        UserError: for an unknown kind, with the nearest ones, or a level below 0.
    """
    kinds = kinds_of(unit)
    if kind not in kinds:
        raise unknown("kind", kind, kinds)
    if level < 0:
        raise UserError(f"level = {level}", "expected 0 or more", "raise it")
    if level == 0:
        return pixels
    if unit is None:
        return kinds[kind].change(pixels, level, generator).clamp(0, 1)
    events = (pixels * (255 / unit)).round()
    changed = kinds[kind].change(events, level, generator)
    return (changed * unit / 255).clamp(max=1)


def source(*key: object, device: torch.device | str = "cpu") -> Generator:
    """A generator of its own for each key, so that noise can be drawn again.

    What it draws depends on the kind of its device; noise for several networks, or to compare
    across machines, is drawn on the CPU.
    """
    digest = hashlib.blake2b(repr(key).encode(), digest_size=8).digest()
    return Generator(device).manual_seed(int.from_bytes(digest, "big") >> 1)


def _drawn(draw: Callable[..., Tensor], like: Tensor, generator: Generator) -> Tensor:
    """Random values of a shape, drawn on the generator's device."""
    values = draw(like.shape, generator=generator, device=generator.device)
    return values.to(like.device, like.dtype)
