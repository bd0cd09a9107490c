"""What an event camera sends, and the sentence for a file that cannot be decoded."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from spikelet.errors import UserError

Ints = NDArray[np.int64]
LARGEST = 2**14  # no sensor has more pixels a side: a damaged file would ask for all memory


@dataclass(frozen=True)
class Events:
    """Events in order of time, one entry of each array for an event.

    Attributes:
        x, y: pixel, counted from the upper left.
        t: microseconds.
        p: 1 where it became brighter, 0 where darker.
        size: height and width of the sensor in pixels.
    """

    x: Ints
    y: Ints
    t: Ints
    p: Ints
    size: tuple[int, int]

    def __len__(self) -> int:
        return len(self.t)

    def at(self, index: NDArray[np.bool_] | Ints | slice) -> Events:
        """The events chosen by an index or mask."""
        return replace(self, x=self.x[index], y=self.y[index], t=self.t[index], p=self.p[index])

    def between(self, start: int, stop: int) -> Events:
        """The events with start <= t < stop, in microseconds."""
        return self.at((self.t >= start) & (self.t < stop))


def events(
    x: NDArray[np.integer],
    y: NDArray[np.integer],
    t: NDArray[np.integer],
    p: NDArray[np.integer],
    size: tuple[int, int] | None = None,
) -> Events:
    """Events out of decoded arrays, sorted by time where they are not; equal times keep order.

    Args:
        x, y, t, p: as of `Events`.
        size: height and width; None for the smallest that holds all events.

    Raises:
        ValueError: if an event lies outside the sensor.
    """
    x, y, t, p = (np.asarray(values).astype(np.int64) for values in (x, y, t, p))
    found = Events(x, y, t, p, size or _extent(x, y))
    height, width = found.size
    if max(height, width) > LARGEST:
        raise ValueError(f"a sensor of {width}x{height} pixels")
    if len(found) and (
        min(found.x.min(), found.y.min()) < 0 or found.x.max() >= width or found.y.max() >= height
    ):
        raise ValueError(f"an event outside the sensor of {width}x{height} pixels")
    if bool((np.diff(found.t) < 0).any()):
        found = found.at(np.argsort(found.t, kind="stable"))
    return found


def _extent(x: Ints, y: Ints) -> tuple[int, int]:
    return (int(y.max()) + 1, int(x.max()) + 1) if len(x) else (1, 1)


def words(content: bytes, kind: str) -> NDArray[Any]:
    """Content as whole words of a numpy type.

    Raises:
        ValueError: if the last word is cut off.
    """
    size = np.dtype(kind).itemsize
    if len(content) % size:
        raise ValueError(f"it ends within an event: {len(content)} bytes, of {size} each")
    return np.frombuffer(content, kind)


def header(content: bytes, mark: bytes, end: bytes | None = None) -> tuple[str, bytes]:
    """(text, rest) where the text is the lines at the start that begin with `mark`.

    Data may begin with the mark by chance, so a line counts only if it is printable; a line `end`
    closes the header.
    """
    start = 0
    while content.startswith(mark, start):
        stop = content.find(b"\n", start) + 1
        line = content[start : stop or None].rstrip(b"\r\n")
        if not stop or any(byte < 32 or byte > 126 for byte in line.replace(b"\t", b" ")):
            break
        start = stop
        if end is not None and line == end:
            break
    return content[:start].decode("ascii"), content[start:]


def field(text: str, *names: str) -> int | None:
    """The number behind one of some names in a header, or None."""
    for name in names:
        found = re.search(rf"\b{name}\b[ =:]+(\d+)", text, re.IGNORECASE)
        if found:
            return int(found[1])
    return None


def latest(marked: NDArray[np.bool_]) -> Ints:
    """For each place the index of the last marked one up to it; -1 before the first."""
    index = np.where(marked, np.arange(len(marked)), -1)
    return np.maximum.accumulate(index) if len(index) else index


def unwrapped(values: NDArray[np.integer], period: int) -> Ints:
    """A counter that starts again at 0 after `period` - 1, continued; small steps back stay."""
    wide = values.astype(np.int64)
    wraps = np.diff(wide, prepend=wide[:1]) < -period // 2
    return wide + period * np.cumsum(wraps)


@contextmanager
def decoding(path: Path) -> Iterator[None]:
    """Turns whatever a damaged recording does to its reader into one sentence with its path."""
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        reason = f"{error}" if isinstance(error, ValueError) else f"{type(error).__name__}: {error}"
        reason = (reason.splitlines() or ["unknown"])[0][:120].rstrip(".:; ")
        raise UserError(
            str(path), f"this recording cannot be decoded ({reason})", "fetch or record it again"
        ) from error
