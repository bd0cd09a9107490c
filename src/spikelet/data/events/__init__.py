"""Event cameras: readers of their files, frames, and data sets.

`read_events` decodes a recording of any format that is known; `framed` counts its events in frames.
"""

from __future__ import annotations

from pathlib import Path

from spikelet.data.events.aedat import read_aedat
from spikelet.data.events.atis import read_bin
from spikelet.data.events.dat import read_dat
from spikelet.data.events.evt import read_evt
from spikelet.data.events.frames import Framing, framed
from spikelet.data.events.stream import Events
from spikelet.errors import unknown

READERS = {
    ".bin": read_bin,
    ".dat": read_dat,
    ".raw": read_evt,
    ".aedat": read_aedat,
    ".aedat4": read_aedat,
}

__all__ = [
    "Events",
    "Framing",
    "framed",
    "read_aedat",
    "read_bin",
    "read_dat",
    "read_events",
    "read_evt",
]


def read_events(path: Path | str) -> Events:
    """The events of a recording, by the ending of its name.

    Raises:
        UserError: for an unknown ending, or a file that cannot be decoded.
    """
    path = Path(path)
    if path.suffix.lower() not in READERS:
        raise unknown(str(path), path.suffix, READERS)
    return READERS[path.suffix.lower()](path)
