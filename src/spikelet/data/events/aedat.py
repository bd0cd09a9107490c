"""AEDAT 2.0 and 3.1: recordings of DVS128 and DAVIS cameras."""

from __future__ import annotations

import struct
from pathlib import Path

import numpy as np

from spikelet.data.events.aedat4 import read_aedat4
from spikelet.data.events.stream import Events, Ints, decoding, events, header, unwrapped, words

DVS128 = (128, 128)
CHIPS = {
    "dvs128": DVS128,
    "davis128": DVS128,
    "davis208": (192, 208),
    "davis240": (180, 240),
    "davis346": (260, 346),
    "davis640": (480, 640),
}
PACKET = struct.Struct("<hhiiiiii")  # of AEDAT 3: type, source, size, ... capacity, number, valid
POLARITY, WORD = 1, 8
END = b"#!END-HEADER"


def read_aedat(path: Path | str) -> Events:
    """The events of an `.aedat` or `.aedat4` file, by the version in its first line.

    Raises:
        UserError: if it cannot be decoded or is of another version, or needs a library.
    """
    path = Path(path)
    with decoding(path):
        content = path.read_bytes()
        first = content.partition(b"\n")[0].strip()
        if first.startswith(b"#!AER-DAT4"):
            return read_aedat4(content)
        if first.startswith(b"#!AER-DAT3"):
            return _aedat3(content)
        if first.startswith(b"#!AER-DAT2"):
            return _aedat2(content)
        raise ValueError(f"AEDAT 2.0, 3.1 or 4 expected, {first[:20]!r} found")


def _chip(text: str) -> tuple[str, tuple[int, int]]:
    """The camera that a header names, and its height and width; a DVS128 where it names none."""
    low = text.lower()
    return next(((name, size) for name, size in CHIPS.items() if name in low), ("dvs128", DVS128))


def _aedat2(content: bytes) -> Events:
    """Big-endian: an address (32 bits), a time in microseconds (32).

    DVS128: polarity inverted (bit 0), x (7 bits from 1), y (7 from 8). DAVIS: polarity (bit 11),
    x (10 from 12), y (9 from 22); words with bit 31 are no events. x is mirrored and y counted
    from below in these files.
    """
    text, rest = header(content, b"#")
    chip, (height, width) = _chip(text)
    table = words(rest, ">u4,>i4")
    address, t = table["f0"].astype(np.int64), _continued(table["f1"])
    if chip == "dvs128":
        x, y, p = address >> 1 & 0x7F, address >> 8 & 0x7F, 1 - (address & 1)
    else:
        kept = (address >> 31 == 0) & (address >> 10 & 1 == 0)  # no samples, no external events
        address, t = address[kept], t[kept]
        x, y, p = address >> 12 & 0x3FF, address >> 22 & 0x1FF, address >> 11 & 1
    return events(width - 1 - x, height - 1 - y, t, p, (height, width))


def _continued(t: np.ndarray) -> Ints:
    """Times of 32 bits that go on after 2^31."""
    return unwrapped(t.astype(np.int64) & 0xFFFFFFFF, 2**32)


def _aedat3(content: bytes) -> Events:
    """Packets of 28 bytes of header and events of a kind; a polarity event has 8 bytes.

    Little-endian: valid (bit 0), polarity (1), y (15 bits from 2), x (15 from 17); then the time
    in microseconds (31 bits), to which the packet's overflow count adds 2^31 each.
    """
    text, rest = header(content, b"#", END)
    _, size = _chip(text)
    found, start = [np.empty((0, 2), np.int64)], 0
    while start < len(rest):
        if start + PACKET.size > len(rest):
            raise ValueError("it ends within the header of a packet")
        kind, _, width, _, overflow, _, number, _ = PACKET.unpack_from(rest, start)
        start += PACKET.size
        if width < 1 or number < 0 or start + width * number > len(rest):
            raise ValueError(f"it ends within a packet of {number} events of {width} bytes")
        if kind == POLARITY:
            if width != WORD:
                raise ValueError(f"polarity events of {width} bytes")
            table = np.frombuffer(rest, "<u4", 2 * number, start).reshape(-1, 2).astype(np.int64)
            table[:, 1] += overflow << 31
            found.append(table[table[:, 0] & 1 == 1])
        start += width * number
    data, t = np.concatenate(found).T
    return events(data >> 17 & 0x7FFF, data >> 2 & 0x7FFF, t, data >> 1 & 1, size)
