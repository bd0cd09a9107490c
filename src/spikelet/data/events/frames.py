"""Frames of a recording: events counted by part of the recording, polarity and pixel."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from spikelet.data.events.stream import Events, Ints
from spikelet.errors import UserError, unknown

By = Literal["time", "count"]
CUTS = ("time", "count")
WHITE = 255
MOST = 64  # frames: more are no longer few time steps, and fill the memory


@dataclass(frozen=True)
class Framing:
    """How a recording becomes frames.

    Attributes:
        frames: T, how many.
        by: whether they last equally long ("time") or hold equally many events ("count").
        size: height and width of a frame; pixels of the sensor are put together.
        unit: how many levels one event adds to its pixel, which holds 255 at most.
    """

    frames: int
    by: By
    size: tuple[int, int]
    unit: int

    def __post_init__(self) -> None:
        if not 1 <= self.frames <= MOST:
            raise UserError(f"frames={self.frames}", f"expected 1 to {MOST} frames", "try 4")
        if self.by not in CUTS:
            raise unknown("by", self.by, CUTS)
        if min(self.size) < 1:
            size = "x".join(map(str, self.size))
            raise UserError(f"size={size}", "frames need at least one pixel", "leave it out")


def unit_of(frames: int, white: int) -> int:
    """Levels that one event adds, where `white` events in a whole recording fill a pixel's frames.

    round(255 T / white), at least 1: the mean frame hardly depends on the number of frames.
    """
    return max(1, round(WHITE * frames / white))


def framed(events: Events, framing: Framing) -> NDArray[np.uint8]:
    """The frames "T 2 H W" of a recording; channel 0 counts what became darker, 1 brighter.

    With n events from t_0 to t_1, event i belongs to frame floor(T (t_i - t_0) / (t_1 - t_0 + 1)),
    or floor(T i / n) by count. A recording without events gives black frames.
    """
    height, width = framing.size
    sensor_height, sensor_width = events.size
    row = events.y * height // sensor_height
    column = events.x * width // sensor_width
    place = ((_frame(events, framing) * 2 + (events.p > 0)) * height + row) * width + column
    counts = np.bincount(place, minlength=framing.frames * 2 * height * width)
    levels = np.minimum(counts * framing.unit, WHITE).astype(np.uint8)
    return levels.reshape(framing.frames, 2, height, width)


def _frame(events: Events, framing: Framing) -> Ints:
    """The frame that each event belongs to."""
    if not len(events):
        return events.t
    if framing.by == "count":
        return np.arange(len(events)) * framing.frames // len(events)
    passed = events.t - events.t[0]
    return passed * framing.frames // (passed[-1] + 1)
