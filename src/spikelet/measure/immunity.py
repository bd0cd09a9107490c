"""Summaries of accuracy under noise, and what of a gain clean accuracy does not explain."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Generator, Tensor

from spikelet.measure.interval import paired_interval

RESAMPLES = 2000
LEVEL = 0.95


@dataclass(frozen=True)
class Right:
    """How one network stands one kind of noise.

    Attributes:
        right: "L N", the share of draws under which each image is answered rightly; row 0 is level
            0, the clean images, and holds only 0 and 1.
        deviation: over draws of the accuracy at each level, on the images that all draws have; None
            where there is one draw only.
    """

    right: Tensor
    deviation: tuple[float | None, ...]

    @staticmethod
    def of(clean: Tensor, levels: Sequence[Sequence[Tensor]]) -> Right:
        """From whether each image is answered rightly: clean "N", and for each level its draws.

        The first draw has all images, "N", the others may have the first of them, "M".
        """
        rows = [clean.double().cpu(), *(mean_right(draws) for draws in levels)]
        return Right(torch.stack(rows), (None, *(deviation(draws) for draws in levels)))


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

    Intervals are Student's t of the paired differences; that of `drop`, a ratio, is the
    percentile bootstrap over images with 2,000 resamples.

    Args:
        mine, other: the same levels and images.
        seed: of the resamples.
    """
    clean = mine.right[0], other.right[0]
    noisy = mine.right[1:].mean(0), other.right[1:].mean(0)
    both = (clean[0] == 1) & (clean[1] == 1)
    return {
        "clean": paired(*clean),
        "noisy": paired(*noisy),
        "drop": _drops(clean, noisy, seed),
        "kept": paired(noisy[0][both], noisy[1][both]),
        "images": len(both),
        "images_both_right": int(both.sum()),
    }


def paired(a: Tensor, b: Tensor) -> dict[str, float | None]:
    """Mean of a - b over images "N" with its 95 % t interval; null below two images."""
    if len(a) < 2:
        return {"mean": None, "low": None, "high": None}
    mean, low, high = paired_interval(a.tolist(), b.tolist(), LEVEL)
    return {"mean": mean, "low": low, "high": high}


def _drops(
    clean: tuple[Tensor, Tensor], noisy: tuple[Tensor, Tensor], seed: int
) -> dict[str, float | None]:
    """The difference of two relative drops with its bootstrap interval."""
    stacked = torch.stack([*clean, *noisy]).double()
    weights = _resamples(stacked.shape[1], seed)
    ones = torch.ones(1, stacked.shape[1], dtype=torch.float64)
    value, resampled = (_difference(w @ stacked.T) for w in (ones, weights))
    if not bool(value.isfinite().all()) or not bool(resampled.isfinite().all()):
        return {"mean": None, "low": None, "high": None}
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
