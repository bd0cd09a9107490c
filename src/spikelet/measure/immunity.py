"""Summaries of accuracy under noise, and what of a gain clean accuracy does not explain."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Generator, Tensor

from spikelet.errors import UserError
from spikelet.measure.interval import combined, crossed_interval, image_part, over_images

RESAMPLES = 2000
LEVEL = 0.95
NOTHING: dict[str, float | None] = {"mean": None, "low": None, "high": None}


@dataclass(frozen=True)
class Right:
    """How one network stands one kind of noise.

    Attributes:
        right: "L N", the share of draws under which each image is answered rightly; row 0 is level
            0, the clean images, and holds only 0 and 1.
        deviation: over draws of the accuracy at each level, on the images that all draws have; None
            where there is one draw only.
        common: "D M", the share of levels at which each image that all draws have is answered
            rightly, where a draw is one and the same for all images; None where each image has
            noise of its own.
    """

    right: Tensor
    deviation: tuple[float | None, ...]
    common: Tensor | None = None

    @staticmethod
    def of(clean: Tensor, levels: Sequence[Sequence[Tensor]]) -> Right:
        """From whether each image is answered rightly: clean "N", and for each level its draws.

        The first draw has all images, "N", the others may have the first of them, "M".
        """
        rows = [clean.double().cpu(), *(mean_right(draws) for draws in levels)]
        return Right(torch.stack(rows), (None, *(deviation(draws) for draws in levels)))

    @staticmethod
    def of_common(clean: Tensor, levels: Sequence[Sequence[Tensor]]) -> Right:
        """The same of noise that is drawn once for all images, as that of weights."""
        shared = min(len(hits) for draws in levels for hits in draws)
        each = [torch.stack([h[:shared].double().cpu() for h in draws]) for draws in levels]
        return replace(Right.of(clean, levels), common=torch.stack(each).mean(0))


def mean_right(draws: Sequence[Tensor]) -> Tensor:
    """The share of draws that were right for each image, "N"; later draws may have fewer images."""
    count = torch.zeros(len(draws[0]), dtype=torch.float64)
    total = torch.zeros_like(count)
    for hits in draws:
        count[: len(hits)] += 1
        total[: len(hits)] += hits.double().cpu()
    return total / count


def deviation(draws: Sequence[Tensor]) -> float | None:
    """Standard deviation over draws of the accuracy on the images that all of them have."""
    if len(draws) < 2:
        return None
    shared = min(len(hits) for hits in draws)
    return float(torch.stack([hits[:shared].double().mean() for hits in draws]).std())


def over_kinds(kinds: Sequence[Right]) -> Right:
    """Several kinds as one: row 0 is clean, each further row the mean over the levels of a kind."""
    means = [each.right[1:].mean(0) for each in kinds]
    return Right(torch.stack([kinds[0].right[0], *means]), (None,) * (len(kinds) + 1))


def summary(found: Right) -> dict[str, Any]:
    """`accuracy` and `deviation` by level, clean first, `area` and `drop`.

    area = mean accuracy over the levels, the clean one included;
    drop = 1 - (mean accuracy over the noisy levels) / (clean accuracy), None where that is 0.
    """
    accuracy = found.right.mean(1)
    clean, noisy = float(accuracy[0]), float(accuracy[1:].mean())
    return {
        "accuracy": accuracy.tolist(),
        "deviation": list(found.deviation),
        "area": float(accuracy.mean()),
        "drop": 1 - noisy / clean if clean else None,
    }


def against(mine: Right, other: Right, seed: int = 0) -> dict[str, Any]:
    """How a network stands noise beside another, paired over images, each with its 95 % interval.

    With c clean and b = mean over noisy levels for each image, of `mine` (1) and `other` (2):

    - `clean`: mean(c1 - c2); `noisy`: mean(b1 - b2), what clean accuracy helps to as well;
    - `drop`: (1 - mean b1 / mean c1) - (1 - mean b2 / mean c2), below 0 where `mine` loses less;
    - `kept`: mean(b1 - b2) over the images that both answer rightly when clean. There both
      start from 100 %, so this part of the gain is not explained by clean accuracy.

    Intervals are those of `over_images`; that of `drop`, a ratio, is the percentile bootstrap over
    images with 2,000 resamples. `covers` says what they are over: images alone where each has noise
    of its own, else images and draws of the noise. None of them is over trainings: they are about
    these two networks.

    Args:
        mine, other: the same levels and images.
        seed: of the resamples.
    """
    clean = mine.right[0], other.right[0]
    noisy = mine.right[1:].mean(0), other.right[1:].mean(0)
    both = both_right(mine, other)
    every = torch.ones_like(both)
    return {
        "clean": paired(*clean),
        "noisy": _under_noise(mine, other, every),
        "drop": _drops(clean, noisy, seed),
        "kept": _under_noise(mine, other, both),
        "covers": "images" if mine.common is None else "images and draws",
        "images": len(both),
        "images_both_right": int(both.sum()),
    }


def both_right(mine: Right, other: Right) -> Tensor:
    """Which images both answer rightly when clean: bool "N"."""
    return (mine.right[0] == 1) & (other.right[0] == 1)


def paired(a: Tensor, b: Tensor) -> dict[str, float | None]:
    """Mean of a - b over images "N" with its interval; null below two images."""
    return dict(NOTHING) if len(a) < 2 else _named(over_images(a - b, LEVEL))


def over_seeds(pairs: Sequence[tuple[Right, Right]]) -> dict[str, Any]:
    """`clean`, `noisy` and `kept` of `against` as means over pairs of trained networks.

    Their intervals are over pairs and images both, by `crossed_interval`: what another seed of the
    training and other images would change.

    Args:
        pairs: (one, the other) of each seed, all on the same images.
    """
    noisy = torch.stack([one.right[1:].mean(0) - two.right[1:].mean(0) for one, two in pairs])
    clean = torch.stack([one.right[0] - two.right[0] for one, two in pairs])
    both = torch.stack([both_right(one, two) for one, two in pairs])
    kept = noisy.masked_fill(~both, torch.nan)
    return {"clean": crossed(clean), "noisy": crossed(noisy), "kept": crossed(kept)}


def crossed(differences: Tensor) -> dict[str, float | None]:
    """Mean of differences "R N" with the interval of `crossed_interval`; null where it has none."""
    try:
        return _named(crossed_interval(differences, LEVEL))
    except UserError:
        return dict(NOTHING)


def _named(interval: tuple[float, float, float]) -> dict[str, float | None]:
    """By name, cut where a difference of two shares ends."""
    mean, low, high = interval
    return {"mean": mean, "low": max(low, -1.0), "high": min(high, 1.0)}


def _under_noise(mine: Right, other: Right, chosen: Tensor) -> dict[str, float | None]:
    """Mean difference over noisy levels of the images `chosen` "N"."""
    differences = mine.right[1:, chosen].mean(0) - other.right[1:, chosen].mean(0)
    if len(differences) < 2:
        return dict(NOTHING)
    if mine.common is None or other.common is None:
        return _named(over_images(differences, LEVEL))
    drawn = _draw_part(mine.common - other.common, chosen)
    if drawn is None:
        return dict(NOTHING)
    parts = [image_part(differences), drawn]
    return _named(combined(float(differences.mean()), parts, LEVEL))


def _draw_part(drawn: Tensor, chosen: Tensor) -> tuple[float, int] | None:
    """(variance that the draws give a mean over images, its degrees of freedom).

    Var = s^2 sum_k w_k^2, s^2 that of the draws' means, w_k the weight of draw k in the mean: the
    first draw is the only one of most images.

    Args:
        drawn: differences "D M", of the images that all draws have.
        chosen: the images that count, bool "N".
    """
    draws, shared = drawn.shape
    few = chosen[:shared]
    if not bool(few.any()) or draws < 2:
        return None
    weights = torch.full((draws,), float(few.sum()) / draws, dtype=torch.float64)
    weights[0] += float(chosen[shared:].sum())
    weights /= float(chosen.sum())
    return float(drawn[:, few].mean(1).var() * weights.square().sum()), draws - 1


def _drops(
    clean: tuple[Tensor, Tensor], noisy: tuple[Tensor, Tensor], seed: int
) -> dict[str, float | None]:
    """The difference of two relative drops with its bootstrap interval."""
    stacked = torch.stack([*clean, *noisy]).double()
    weights = _resamples(stacked.shape[1], seed)
    ones = torch.ones(1, stacked.shape[1], dtype=torch.float64)
    value, resampled = (_difference(w @ stacked.T) for w in (ones, weights))
    if not bool(value.isfinite().all()) or not bool(resampled.isfinite().all()):
        return dict(NOTHING)
    ends = torch.tensor([(1 - LEVEL) / 2, (1 + LEVEL) / 2], dtype=torch.float64)
    low, high = resampled.quantile(ends).tolist()
    return {"mean": float(value), "low": low, "high": high}


def _difference(sums: Tensor) -> Tensor:
    """Drop 1 minus drop 2 out of sums "R 4" of (c1, c2, b1, b2)."""
    return sums[:, 3] / sums[:, 1] - sums[:, 2] / sums[:, 0]


def _resamples(images: int, seed: int) -> Tensor:
    """How often each image is drawn, "R N"."""
    generator: Generator = Generator().manual_seed(seed)
    drawn = torch.randint(images, (RESAMPLES, images), generator=generator)
    counts = torch.zeros(RESAMPLES, images, dtype=torch.float64)
    return counts.scatter_add_(1, drawn, torch.ones_like(drawn, dtype=torch.float64))
