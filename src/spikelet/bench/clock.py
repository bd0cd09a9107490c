"""Seconds between marks: CUDA events on a GPU, else the processor's clock."""

from __future__ import annotations

import time
from collections.abc import Callable
from itertools import pairwise
from typing import Any

import torch

WARM_UP = 2
Mark = Any
Step = Callable[[Callable[[], Mark]], list[Mark]]


def intervals(step: Step, repeats: int, device: torch.device) -> list[list[float]]:
    """Seconds between the marks of each of `repeats` steps, after two that warm up.

    On a GPU the steps are queued one after the other, as in training, and read at the end.

    Args:
        step: runs one step; calls its argument for a mark and returns its marks in order.
        repeats: measured steps.
        device: where the step computes.
    """
    cuda = device.type == "cuda"
    mark = _event if cuda else time.perf_counter
    for _ in range(WARM_UP):
        step(mark)
    if cuda:
        torch.cuda.synchronize(device)
    marks = [step(mark) for _ in range(repeats)]
    if cuda:
        torch.cuda.synchronize(device)
    return [[_between(a, b) for a, b in pairwise(each)] for each in marks]


def first(step: Step, device: torch.device) -> float:
    """Seconds of one step from its beginning to its end on the device, compilation included."""
    begin = time.perf_counter()
    step(time.perf_counter)
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter() - begin


def _event() -> Any:
    event = torch.cuda.Event(enable_timing=True)
    event.record()
    return event


def _between(a: Mark, b: Mark) -> float:
    return b - a if isinstance(a, float) else a.elapsed_time(b) / 1000
