"""Whether a network is as sure as it is right, and whether it agrees with another."""

from __future__ import annotations

from collections.abc import Mapping

import torch.nn.functional as F
from torch import Tensor

BINS = 15
WITHIN = 0.005  # of the best accuracy: the knee


def calibration_error(logits: Tensor, labels: Tensor, bins: int = BINS) -> float:
    """Expected calibration error (Guo et al., ICML 2017, eq. 3), 0 to 1.

    sum over bins of (images in it / N) |accuracy in it - mean confidence in it|, with equally wide
    bins ((m - 1) / M, m / M] of the confidence, the largest softmax probability.

    Args:
        logits: "N K".
        labels: "N".
        bins: M.
    """
    confidence, predicted = logits.double().softmax(1).max(1)
    place = (confidence * bins).ceil().long().clamp(1, bins) - 1
    gap = (predicted == labels).double() - confidence
    sums = gap.new_zeros(bins).index_add_(0, place, gap)
    return float(sums.abs().sum()) / len(gap)


def negative_log_likelihood(logits: Tensor, labels: Tensor) -> float:
    """Mean of -log softmax(z)_y over images, in nats."""
    return float(F.cross_entropy(logits.double(), labels))


def agreement(logits: Tensor, others: Tensor, labels: Tensor) -> tuple[float, float | None]:
    """Share of equal answers of two networks: of all images, and where the other is right.

    The second is None where the other is never right.
    """
    mine, theirs = logits.argmax(1), others.argmax(1)
    equal, right = mine == theirs, theirs == labels
    among = float(equal[right].double().mean()) if bool(right.any()) else None
    return float(equal.double().mean()), among


def knee(accuracies: Mapping[int, float], within: float = WITHIN) -> int:
    """The smallest number of steps whose accuracy is at most `within` below the best of all."""
    best = max(accuracies.values())
    return min(t for t, value in accuracies.items() if value >= best - within - 1e-12)
