"""Intervals of paired differences: over seeds, over images, and over both."""

from __future__ import annotations

import math
from collections.abc import Sequence

from torch import Tensor

from spikelet.errors import UserError


def paired_interval(
    a: Sequence[float], b: Sequence[float], level: float = 0.95
) -> tuple[float, float, float]:
    """Mean of a - b with the two ends of its t interval: (mean, low, high).

    Args:
        a, b: measurements that belong together, such as accuracies of two methods by seed.
        level: probability that the interval covers the true mean of normal differences.

    Raises:
        UserError: if the lengths differ or are below 2, or `level` is not between 0 and 1.
    """
    if len(a) != len(b) or len(a) < 2:
        raise UserError(
            "a, b", f"expected two pairs or more, found {len(a)} and {len(b)}", "measure more seeds"
        )
    if not 0 < level < 1:
        raise UserError(f"level = {level}", "expected a share between 0 and 1", "try 0.95")
    n = len(a)
    differences = [x - y for x, y in zip(a, b, strict=True)]
    mean = math.fsum(differences) / n
    variance = math.fsum((d - mean) ** 2 for d in differences) / (n - 1)
    half = t_quantile(level, n - 1) * math.sqrt(variance / n)
    return mean, mean - half, mean + half


def over_images(differences: Tensor, level: float = 0.95) -> tuple[float, float, float]:
    """Mean of differences of shares "N", -1 to 1, with an interval that few images widen.

    m +- t sqrt(v / n) with v = (sum (d - m)^2 + 1) / (n - 1): Student's t but for the 1, half an
    image more in favour of each network, after Agresti and Min (Statistics in Medicine, 2005).
    Plain t has no width where all differences are equal, however few images they are.

    Raises:
        UserError: for fewer than two images.
    """
    return combined(float(differences.double().mean()), [image_part(differences)], level)


def crossed_interval(differences: Tensor, level: float = 0.95) -> tuple[float, float, float]:
    """Mean of differences "R N" with an interval over their rows and columns: (mean, low, high).

    Rows are pairs of trained networks (seeds), columns images: both are samples, so both scatter.
    m = mean of the rows' means; its variance is var(rows' means) / R + var(columns' means) / N, in
    which what rows and columns have in common counts twice: never too small on average (Owen, The
    Pigeonhole Bootstrap, 2007). Degrees of freedom by Welch and Satterthwaite, rounded down.

    Args:
        differences: of shares, -1 to 1; NaN where one is not defined.
        level: probability that the interval covers the mean over all rows and columns there are.

    Raises:
        UserError: for fewer than two rows or columns, or a row of nothing but NaN.
    """
    known = differences[:, ~differences.isnan().all(0)].double()
    rows = known.nanmean(1)
    if len(rows) < 2 or bool(rows.isnan().any()):
        raise UserError("differences", f"{len(rows)} rows, or an empty one", "measure more seeds")
    parts = (float(rows.var()) / len(rows), len(rows) - 1)
    return combined(float(rows.mean()), [parts, image_part(known.nanmean(0))], level)


def combined(
    mean: float, parts: Sequence[tuple[float, int]], level: float = 0.95
) -> tuple[float, float, float]:
    """The interval of a mean whose variance is a sum: parts are (variance, degrees of freedom)."""
    variance = math.fsum(v for v, _ in parts)
    scatter = math.fsum(v * v / freedom for v, freedom in parts)
    freedom = int(variance * variance / scatter) if scatter > 0 else parts[0][1]
    half = t_quantile(level, max(freedom, 1)) * math.sqrt(variance)
    return mean, mean - half, mean + half


def image_part(differences: Tensor) -> tuple[float, int]:
    """(variance of the mean over images "N", its degrees of freedom), as `over_images` takes it."""
    n, values = len(differences), differences.double()
    if n < 2:
        raise UserError("differences", f"{n} images", "measure two or more")
    scatter = float((values - values.mean()).square().sum())
    return (scatter + 1) / (n - 1) / n, n - 1


def t_quantile(level: float, freedom: int) -> float:
    """The t with P(|X| <= t) = level for Student's t of `freedom` degrees, by bisection."""
    low, high = 0.0, math.pi / 2
    for _ in range(60):
        middle = (low + high) / 2
        below = _inside(middle, freedom) < level
        low, high = (middle, high) if below else (low, middle)
    return math.sqrt(freedom) * math.tan(low)


def _inside(angle: float, freedom: int) -> float:
    """P(|X| <= t) with angle = atan(t / sqrt(freedom)); Abramowitz and Stegun 26.7.3, 26.7.4."""
    sine, cosine = math.sin(angle), math.cos(angle)
    odd = freedom % 2
    term = cosine if odd else 1.0
    total = term if freedom > 1 else 0.0
    for k in range(2 + odd, freedom - 1, 2):
        term *= cosine * cosine * (k - 1) / k
        total += term
    if odd:
        return 2 / math.pi * (angle + sine * total)
    return sine * total
