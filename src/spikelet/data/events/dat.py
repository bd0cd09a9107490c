"""Prophesee `.dat`: a text header, two bytes of type and size, then eight bytes for each event."""

from __future__ import annotations

from pathlib import Path

from spikelet.data.events.stream import Events, decoding, events, field, header, unwrapped, words

TYPES = (0x00, 0x0C)  # plain events, of older and newer cameras
SIZE = 8


def read_dat(path: Path | str) -> Events:
    """The events of a `.dat` file of version 2.

    Little-endian: time in microseconds (32 bits); x (14 bits), y (14), polarity (4).

    Raises:
        UserError: if it cannot be decoded, or holds something else than plain events.
    """
    path = Path(path)
    with decoding(path):
        text, rest = header(path.read_bytes(), b"%")
        version = field(text, "Version")
        if len(rest) < 2 or rest[0] not in TYPES or rest[1] != SIZE or version not in (2, None):
            found = f"version {version}, type and size {rest[:2].hex(' ') or 'missing'}"
            raise ValueError(f"no plain events of 8 bytes, version 2: {found}")
        table = words(rest[2:], "<u4,<u4")
        t, data = unwrapped(table["f0"], 2**32), table["f1"]
        height, width = field(text, "Height"), field(text, "Width")
        size = (height, width) if height and width else None
        return events(data & 0x3FFF, data >> 14 & 0x3FFF, t, data >> 28 & 1, size)
