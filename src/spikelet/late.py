"""Currents of neurons that begin later than the layer before them (docs/delay.md)."""

from __future__ import annotations

import torch
from torch import Tensor


def collected(currents: Tensor, delay: int) -> Tensor:
    """What a neuron that begins `delay` steps late integrates at its own T steps, "T B ...".

    At its first step it has the currents of delay + 1 steps, then one more at each, and none once
    they are over. Their sum stays the same. A delay of T - 1 or more gives all at the first step.
    """
    delay = min(delay, len(currents) - 1)
    if not delay:
        return currents
    first = currents[: delay + 1].sum(0, keepdim=True)
    return torch.cat([first, currents[delay + 1 :], torch.zeros_like(currents[:delay])])
