"""Early exit: an image is answered as soon as the network is sure enough."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from spikelet.errors import UserError

THRESHOLDS = (0.0, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 0.98, 0.99, 0.999, 1.01)


def early_exit(
    answers: Mapping[int, Tensor], labels: Tensor, thresholds: Sequence[float] = THRESHOLDS
) -> list[dict[str, float]]:
    """For each threshold the mean steps used and the accuracy, 0 to 1.

    An image leaves at the first t where max softmax(mean of the first t logits) >= threshold, at
    the latest after the last t. A threshold above 1 uses all steps, 0 the fewest.

    Args:
        answers: steps t -> mean of the first t logits "N K".
        labels: "N".
        thresholds: of the confidence.

    Raises:
        UserError: if there are no answers.
    """
    if not answers:
        raise UserError("answers", "there are none", "give logits for one number of steps or more")
    taken = sorted(answers)
    sure = torch.stack([answers[t].double().softmax(1).amax(1) for t in taken])
    right = torch.stack([answers[t].argmax(1) == labels for t in taken])
    return [_leaving(sure >= value, right, taken, value) for value in thresholds]


def _leaving(
    enough: Tensor, right: Tensor, taken: Sequence[int], threshold: float
) -> dict[str, float]:
    """One point of the curve, from whether each image could leave, bool "T N"."""
    enough = enough.clone()
    enough[-1] = True
    first = enough.int().argmax(0)
    steps = torch.tensor(taken, dtype=torch.float64, device=first.device)[first]
    hits = right.gather(0, first.unsqueeze(0))[0].double()
    return {
        "threshold": threshold,
        "steps": float(steps.mean()),
        "accuracy": float(hits.mean()),
    }
