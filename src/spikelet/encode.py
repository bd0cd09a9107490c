"""Encoders: images, or the frames of an event camera, to what the network sees at each time step.

Images arrive normalised, (intensity - mean) / std per channel. Direct encoding shows them as they
are; the others undo that first, since spikes stand for intensities between 0 and 1. Frames
"B F C H W" are shown in their order, one after the other; an ANN sees their mean.
"""

from __future__ import annotations

from dataclasses import dataclass
from numbers import Integral
from typing import ClassVar, Literal, final

import torch
import torch.nn.functional as F
from torch import Generator, Tensor

from spikelet.errors import UserError, require_numbers, unknown

Channels = tuple[float, ...]
BLACK = 0.5 / 255  # half a level of 8 bits: what rounding leaves of black is less
FRAMES = 5  # dimensions of frames "B F C H W", one more than an image has


def repeat(images: Tensor, steps: int) -> Tensor:
    """The images "B ..." shown unchanged at each step: a view "T B ..." (direct encoding).

    Frames "B F C H W" are shown in their order instead, as `over_steps` says.

    Raises:
        UserError: if `steps` is below 1.
    """
    _check_steps(steps)
    if images.ndim == FRAMES:
        return over_steps(images, steps)
    return images.unsqueeze(0).expand(steps, *images.shape)


def still(images: Tensor) -> Tensor:
    """What an ANN sees: the mean frame "B C H W" of frames "B F C H W", an image as it is."""
    return images.mean(1) if images.ndim == FRAMES else images


def over_steps(frames: Tensor, steps: int) -> Tensor:
    """Frames "B F C H W" over the steps "T B C H W"; the mean over time is that of the frames.

    The recording is cut into T equal parts. Step t shows the mean over its part,
    x_t = T / F sum_f |[t F / T, (t + 1) F / T) and [f, f + 1)| x_f: each frame where T = F.
    """
    count = frames.shape[1]
    if count == steps:
        return frames.transpose(0, 1)
    begin = torch.arange(steps, dtype=torch.float64)[:, None] * count / steps
    frame = torch.arange(count, dtype=torch.float64)
    overlap = torch.minimum(begin + count / steps, frame + 1) - torch.maximum(begin, frame)
    shares = (overlap.clamp_min(0) * steps / count).to(frames)
    return torch.einsum("tf,bfchw->tbchw", shares, frames)


def fitted(images: Tensor, channels: int, size: tuple[int, int]) -> Tensor:
    """Images "B C H W" in other channels and another size, interpolated or averaged.

    Other channels than there are all hold the mean over channels.
    """
    if images.shape[1] != channels:
        images = images.mean(1, keepdim=True).expand(-1, channels, -1, -1)
    if tuple(images.shape[2:]) == tuple(size):
        return images
    if size[0] <= images.shape[2] and size[1] <= images.shape[3]:
        return F.interpolate(images, size, mode="area")
    return F.interpolate(images, size, mode="bilinear")


def slid(x: Tensor, images: Tensor, share: float, drawn: Tensor) -> Tensor:
    """Input "T B ..." whose first steps show the images "B ..." instead: a share of all steps.

    Sample b shows its image at the first floor(share T + u_b) steps, u_b in 0..1 as `drawn` "B",
    so that the mean over many samples is that share exactly, of as few steps as there may be.
    """
    steps, batch = x.shape[:2]
    number = (share * steps + drawn).floor()
    replaced = torch.arange(steps, device=x.device)[:, None] < number
    return torch.where(replaced.reshape(steps, batch, *[1] * images[0].ndim), images, x)


def _check_steps(steps: int) -> None:
    if not isinstance(steps, Integral) or steps < 1:
        raise UserError(f"steps = {steps!r}", "expected a whole number of at least 1", "raise it")


@final
@dataclass(frozen=True)
class Direct:
    """Direct encoding: the normalised image, or the next frame, at each of the time steps.

    Args:
        steps: T.
        sliding: the share of the training during which paired images of the teacher give way to
            the events, step by step; only where a teacher of images teaches events.
    """

    steps: int = 4
    sliding: float = 0.0

    def __post_init__(self) -> None:
        require_numbers(self)
        _check_steps(self.steps)
        if not 0 <= self.sliding <= 1:
            what = "expected a share of the training, 0 to 1"
            raise UserError(f"sliding = {self.sliding}", what, "try 0.5")

    def __call__(self, images: Tensor) -> Tensor:
        """Images "B ..." to a view "T B ...", frames "B F C H W" to "T B C H W"."""
        return repeat(images, self.steps)

    def images_left(self, progress: float) -> float:
        """The share of steps that show an image when this much of the training is done."""
        return max(0.0, 1 - progress / self.sliding) if self.sliding else 0.0


@final
@dataclass(frozen=True)
class Mixed:
    """Direct encoding of as many steps as are drawn for each batch, so that one student serves all.

    Mixed time-step training (Du et al., ICLR 2025, arXiv 2503.17394) with one T for the whole
    network, uniform in `least` to `steps`, where the paper draws one for each of its stages.
    Without a generator, as in an evaluation, there are always `steps`; a Distiller in training mode
    brings one.

    Args:
        steps: the largest T.
        least: the smallest T that is drawn.
    """

    steps: int = 4
    least: int = 1
    common: ClassVar[bool] = True
    """Whether processes that share a batch must draw the same."""

    def __post_init__(self) -> None:
        require_numbers(self)
        _check_steps(self.steps)
        if self.least < 1:
            raise UserError(f"least = {self.least}", "expected at least 1 step", "raise it")

    @property
    def lengths(self) -> range:
        """Every T that may be drawn.

        Raises:
            UserError: if `least` is more than `steps`.
        """
        if self.least > self.steps:
            what = f"expected no more than the {self.steps} steps of the student"
            raise UserError(f"least = {self.least}", what, "lower it, or raise the steps")
        return range(self.least, self.steps + 1)

    def __call__(self, images: Tensor, generator: Generator | None = None) -> Tensor:
        """Images "B ..." to a view "T B ...", frames "B F C H W" to "T B C H W"."""
        if generator is None:
            return repeat(images, self.steps)
        lengths, device = self.lengths, generator.device
        drawn = torch.randint(len(lengths), (), generator=generator, device=device)
        return repeat(images, lengths[int(drawn)])


def intensity(images: Tensor, mean: Channels, std: Channels, gain: float = 1.0) -> Tensor:
    """clip(gain (x std + mean), 0, 1) of normalised images x "B C ...": what spikes stand for.

    Raises:
        UserError: if `mean` or `std` have neither one value nor one per channel.
    """
    if images.ndim == FRAMES:
        raise UserError("encode", "spikes cannot be made of event frames", "use --encode direct")
    scale, shift = (_per_channel(name, v, images) for name, v in (("std", std), ("mean", mean)))
    return (gain * (images * scale + shift)).clamp(0, 1)


def _per_channel(name: str, values: Channels, images: Tensor) -> Tensor:
    """One value, or one for each channel, shaped to broadcast against images "B C ..."."""
    if len(values) not in (1, images.shape[1]):
        raise UserError(
            f"{name} = {tuple(values)}",
            f"the images have {images.shape[1]} channels",
            "give one value, or one per channel",
        )
    return images.new_tensor(values).reshape(-1, *[1] * (images.ndim - 2))


@final
@dataclass(frozen=True)
class Poisson:
    """Rate coding: at each step a spike with the probability of the intensity (Bernoulli draws).

    P(s_t = 1) = clip(gain (x std + mean), 0, 1), independent in time, so that the mean over T
    approaches the intensity as 1 / sqrt(T).

    Args:
        steps: T.
        gain: factor of the intensity.
        seed: what is drawn where a call brings no generator: then the same in every call, so that
            an evaluation can be repeated. In training pass a generator.
        mean, std: per channel, what the images were normalised with; by default not at all.
        normalised: show (s - mean) / std instead of s, whose expectation is the normalised image
            itself (where gain is 1): for a network whose weights expect that.
    """

    steps: int = 4
    gain: float = 1.0
    seed: int = 0
    mean: Channels = (0.0,)
    std: Channels = (1.0,)
    normalised: bool = False

    def __post_init__(self) -> None:
        require_numbers(self)
        _check_steps(self.steps)
        _check_gain(self.gain)

    def __call__(self, images: Tensor, generator: Generator | None = None) -> Tensor:
        """Normalised images "B C ..." to spikes "T B C ...", drawn on the generator's device."""
        probability = intensity(images, self.mean, self.std, self.gain)
        source = Generator().manual_seed(self.seed) if generator is None else generator
        shape = (self.steps, *images.shape)
        drawn = torch.rand(shape, generator=source, device=source.device).to(images.device)
        spikes = (drawn < probability).to(images.dtype)
        if not self.normalised:
            return spikes
        shift, scale = (_per_channel("", v, images) for v in (self.mean, self.std))
        return (spikes - shift) / scale


@final
@dataclass(frozen=True)
class Latency:
    """Time to first spike: one spike per pixel, the earlier the brighter; black never fires.

    Black is an intensity below half a level of 8 bits, 0.5 / 255.

    Of intensity p, at step t = round((T - 1)(1 - p)) (linear), or t = round((T - 1) - ln(alpha p
    + 1)) with alpha = e^(T - 1) - 1 (log), counted from 0.

    Args:
        steps: T.
        mapping: from intensity to time, "linear" or "log".
        gain: factor of the intensity.
        mean, std: per channel, what the images were normalised with; by default not at all.
    """

    steps: int = 4
    mapping: Literal["linear", "log"] = "linear"
    gain: float = 1.0
    mean: Channels = (0.0,)
    std: Channels = (1.0,)

    def __post_init__(self) -> None:
        require_numbers(self)
        _check_steps(self.steps)
        _check_gain(self.gain)
        if self.mapping not in ("linear", "log"):
            raise unknown("mapping", self.mapping, ("linear", "log"))

    def __call__(self, images: Tensor) -> Tensor:
        """Normalised images "B C ..." to spikes "T B C ..."."""
        p = intensity(images, self.mean, self.std, self.gain)
        last = torch.tensor(self.steps - 1, dtype=torch.float64, device=images.device)
        if self.mapping == "linear":
            time = (last * (1 - p)).round()
        else:  # ln(alpha p + 1) without alpha itself, which overflows for many steps
            growth = last + torch.log1p(-torch.exp(-last)) + p.double().log()
            time = (last - torch.logaddexp(growth, torch.zeros_like(growth))).round()
        step = torch.arange(self.steps, device=images.device).reshape(-1, *[1] * images.ndim)
        return ((time == step) & (p > self.gain * BLACK)).to(images.dtype)


def _check_gain(gain: float) -> None:
    if gain <= 0:
        raise UserError(f"gain = {gain}", "expected more than 0", "raise it")
