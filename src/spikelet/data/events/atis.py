"""ATIS `.bin` as of N-MNIST and N-Caltech101: five bytes for each event."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from spikelet.data.events.stream import Events, decoding, events, words

BYTES = 5
OVERFLOW_ROW, OVERFLOW = 240, 2**13  # an entry in this row says: so many microseconds more


def read_bin(path: Path | str, size: tuple[int, int] | None = None) -> Events:
    """The events of a `.bin` file.

    Big-endian: x (8 bits), y (8), polarity (1), time in microseconds (23). Where y is 240 no event
    happened: all later times are 2^13 microseconds later.

    Raises:
        UserError: if it cannot be decoded, or holds events outside a sensor of that `size`.
    """
    path = Path(path)
    with decoding(path):
        content = words(path.read_bytes(), f"V{BYTES}")
        table = np.frombuffer(content.tobytes(), np.uint8).reshape(-1, BYTES).astype(np.int64)
        x, y, high, middle, low = table.T
        t = (high & 0x7F) << 16 | middle << 8 | low
        later = y == OVERFLOW_ROW
        t = t + OVERFLOW * np.cumsum(later)
        kept = ~later
        return events(x[kept], y[kept], t[kept], (high >> 7)[kept], size)
