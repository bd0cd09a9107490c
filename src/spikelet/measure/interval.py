"""Student's t interval of a paired difference."""

from __future__ import annotations

import math
from collections.abc import Sequence

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
