"""Prophesee `.raw` in EVT 2.0 and EVT 3.0: words of 32 and 16 bits with a type in the top four."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from spikelet.data.events.stream import (
    Events,
    Ints,
    decoding,
    events,
    field,
    header,
    latest,
    unwrapped,
    words,
)

SENSORS = {"gen3": (480, 640), "gen31": (480, 640), "gen41": (720, 1280), "imx636": (720, 1280)}
DARKER, BRIGHTER, TIME_HIGH_2 = 0x0, 0x1, 0x8  # types of EVT 2.0
ROW, SINGLE, BASE, TWELVE, EIGHT, TIME_LOW, TIME_HIGH_3 = 0x0, 0x2, 0x3, 0x4, 0x5, 0x6, 0x8
WIDTHS = {SINGLE: 1, TWELVE: 12, EIGHT: 8}  # EVT 3.0: pixels that a word may speak of


def read_evt(path: Path | str) -> Events:
    """The events of a `.raw` file in EVT 2.0 or EVT 3.0; triggers and other words are passed over.

    EVT 2.0: the type (4 bits), for an event the low 6 bits of its time, x (11), y (11); for
    TIME_HIGH the 28 bits above those 6.

    EVT 3.0: a row, then pixels in it, one by one or as masks of 12 or 8 behind a base; the time
    has 12 low and 12 high bits in words of their own. Where low bits wrap and no word for the high
    ones came, the time goes on all the same.

    Raises:
        UserError: if it cannot be decoded, or is in another version.
    """
    path = Path(path)
    with decoding(path):
        text, rest = header(path.read_bytes(), b"%", b"% end")
        version = re.search(r"\bevt[ =]*([\d.]+)", text, re.IGNORECASE)
        if version is None or version[1][:1] not in "23" or version[1] == "2.1":
            raise ValueError(f"EVT 2.0 or 3.0 expected, EVT {version and version[1]} found")
        decode = _evt2 if version[1].startswith("2") else _evt3
        return events(*decode(rest), _sensor(text))


def _sensor(text: str) -> tuple[int, int] | None:
    """Height and width by the header, where it says them or names a known sensor."""
    geometry = re.search(r"geometry[ =:]+(\d+)x(\d+)", text)
    if geometry:
        return int(geometry[2]), int(geometry[1])
    height, width = field(text, "height"), field(text, "width")
    if height and width:
        return height, width
    named = re.search(r"(gen3|gen31|gen41|imx636)(?![0-9])", text)
    return SENSORS[named[1]] if named else None


Decoded = tuple[Ints, Ints, Ints, Ints]


def _evt2(content: bytes) -> Decoded:
    """x, y, t, p of EVT 2.0 words."""
    word = words(content, "<u4").astype(np.int64)
    kind = word >> 28
    high = kind == TIME_HIGH_2
    times = unwrapped(word[high] & 0xFFFFFFF, 2**28)
    place = np.cumsum(high) - 1  # which TIME_HIGH holds
    seen = ((kind == DARKER) | (kind == BRIGHTER)) & (place >= 0)
    w = word[seen]
    t = times[place[seen]] << 6 | w >> 22 & 0x3F
    return w >> 11 & 0x7FF, w & 0x7FF, t, kind[seen]


def _evt3(content: bytes) -> Decoded:
    """x, y, t, p of EVT 3.0 words."""
    word = words(content, "<u2").astype(np.int64)
    kind, value = word >> 12, word & 0xFFF
    row, base = latest(kind == ROW), latest(kind == BASE)
    time = _times(kind, value)
    where, bit = _pixels(kind, value)
    vector = kind[where] != SINGLE
    known = (row[where] >= 0) & (time[where] >= 0) & (~vector | (base[where] >= 0))
    where, bit, vector = where[known], bit[known], vector[known]
    passed = np.cumsum(np.select([kind == TWELVE, kind == EIGHT], [12, 8], 0))
    start = base[where]
    width = np.where(kind[where] == TWELVE, 12, 8)
    offset = passed[where] - width - passed[start] + bit
    x = np.where(vector, (value[start] & 0x7FF) + offset, value[where] & 0x7FF)
    p = np.where(vector, value[start], value[where]) >> 11
    return x, value[row[where]] & 0x7FF, time[where], p


def _times(kind: NDArray[np.int64], value: NDArray[np.int64]) -> Ints:
    """The time at each word, in microseconds; -1 before the first word of low bits.

    The epochs e of the low bits' wraps follow e_i = max(e_{i-1} + [low wraps], H_i) with the high
    bits H; with W wraps so far this is e_i = W_i + max_{j <= i} (H_j - W_j).
    """
    low, high = kind == TIME_LOW, kind == TIME_HIGH_3
    if not low.any():
        return np.full(len(kind), -1)
    lows, count = value[low], np.cumsum(low)
    wraps = (unwrapped(lows, 2**12) - lows) >> 12
    highs = unwrapped(value[high], 2**12)
    holds = np.cumsum(high)[low] - 1
    above = np.where(holds >= 0, highs[np.maximum(holds, 0)], 0) if len(highs) else 0 * lows
    epoch = wraps + np.maximum.accumulate(above - wraps)
    return np.where(count > 0, (epoch << 12 | lows)[count - 1], -1)


def _pixels(kind: NDArray[np.int64], value: NDArray[np.int64]) -> tuple[Ints, Ints]:
    """(word, place within its mask) of each event, in the order they were sent."""
    chosen = np.flatnonzero(np.isin(kind, list(WIDTHS)))
    mask = np.select(
        [kind[chosen] == TWELVE, kind[chosen] == EIGHT],
        [value[chosen], value[chosen] & 0xFF],
        1,
    )
    inside, bit = np.nonzero(mask[:, None] >> np.arange(12) & 1)
    return chosen[inside], bit
