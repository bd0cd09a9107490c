"""AEDAT 4: flatbuffers in packets, plain or compressed with LZ4 or Zstandard."""

from __future__ import annotations

import re
import struct
from collections.abc import Callable, Iterator

import numpy as np

from spikelet.data.events.stream import Events, events
from spikelet.errors import UserError

MAGIC = b"#!AER-DAT4.0\r\n"
EVENT = np.dtype(
    {
        "names": ["t", "x", "y", "on"],
        "formats": ["<i8", "<i2", "<i2", "u1"],
        "offsets": [0, 8, 10, 12],
        "itemsize": 16,
    }
)
PLAIN, LZ4, ZSTD = (0,), (1, 2), (3, 4)  # the header's numbers of a compression, fast and high
COMPRESSION, TABLE_AT, NODE = 0, 1, 2  # fields of its header
ELEMENTS = 0  # the field of a packet of events


def read_aedat4(content: bytes) -> Events:
    """The events of the first event stream of a file.

    Behind the first line: a header with its length in front (compression, where the closing table
    begins, XML about the streams), then packets: stream (32 bits), length (32), content.

    Raises:
        UserError: if a decompressor is not installed.
        ValueError: if it is damaged.
    """
    if not content.startswith(MAGIC):
        raise ValueError(f"{MAGIC[:-2].decode()} expected, {content[:12]!r} found")
    start = len(MAGIC)
    table, root = _root(content[start:], b"IOHE")
    length = _number(content, "<I", start)
    compression = _scalar(table, root, COMPRESSION, "<i", 0)
    end = _scalar(table, root, TABLE_AT, "<q", -1)
    text = _text(table, root, NODE)
    unpack = _decompressor(compression)
    stream, size = _stream(text)
    parts = [np.empty(0, EVENT)]
    for number, body in _packets(content, start + 4 + length, end):
        if number == stream:
            parts.append(_elements(unpack(body)))
    found = np.concatenate(parts)
    return events(found["x"], found["y"], found["t"], found["on"] != 0, size)


def _packets(content: bytes, start: int, end: int) -> Iterator[tuple[int, bytes]]:
    """(stream, content) of each packet up to the closing table; to the end where there is none."""
    end = len(content) if end < 0 else end
    if end > len(content):
        raise ValueError(f"it ends after {len(content)} bytes, before its closing table at {end}")
    while start < end:
        number, size = struct.unpack_from("<ii", content, start)
        start += 8
        if size < 0 or start + size > end:
            raise ValueError("it ends within a packet")
        yield number, content[start : start + size]
        start += size


def _elements(body: bytes) -> np.ndarray:
    """The events of one packet."""
    table, root = _root(body, b"EVTS")
    place = _field(table, root, ELEMENTS)
    if place is None:
        return np.empty(0, EVENT)
    vector = place + _number(table, "<I", place)
    count = _number(table, "<I", vector)
    if vector + 4 + count * EVENT.itemsize > len(table):
        raise ValueError(f"a packet is too short for its {count} events")
    return np.frombuffer(table, EVENT, count, vector + 4)


def _stream(text: str) -> tuple[int, tuple[int, int] | None]:
    """Number of the first stream of events in the header's XML, with its height and width."""
    blocks = re.split(r'<node name="(?=\d+")', text)[1:]
    for block in blocks:
        if re.search(r'key="typeIdentifier"[^>]*>EVTS<', block):
            sides = [re.search(rf'key="size{side}"[^>]*>(\d+)<', block) for side in "YX"]
            size = (int(sides[0][1]), int(sides[1][1])) if sides[0] and sides[1] else None
            return int(block.partition('"')[0]), size
    raise ValueError("it has no stream of events")


def _decompressor(kind: int) -> Callable[[bytes], bytes]:
    """What undoes a compression."""
    if kind in PLAIN:
        return lambda body: body
    name, package = ("LZ4", "lz4") if kind in LZ4 else ("Zstandard", "zstandard")
    if kind not in (*LZ4, *ZSTD):
        raise ValueError(f"compression {kind} is not known")
    try:
        if kind in LZ4:
            import lz4.frame

            return lambda body: bytes(lz4.frame.decompress(body))
        import zstandard

        return lambda body: zstandard.ZstdDecompressor().decompressobj().decompress(body)
    except ImportError as error:
        raise UserError(
            "data",
            f"this recording is compressed with {name}, and the package {package} is not installed",
            "run `pip install 'spikelet[events]'`",
        ) from error


def _root(buffer: bytes, identifier: bytes) -> tuple[bytes, int]:
    """(flatbuffer, place of its root table) of a flatbuffer with its length in front."""
    length = _number(buffer, "<I", 0)
    table = buffer[4 : 4 + length]
    if len(table) < length or table[4:8] != identifier:
        raise ValueError(f"{identifier.decode()} expected, {table[4:8]!r} found")
    return table, _number(table, "<I", 0)


def _field(table: bytes, root: int, number: int) -> int | None:
    """The place of a field of a table, None where it has its default."""
    directory = root - _number(table, "<i", root)
    if directory < 0 or 4 + 2 * number >= _number(table, "<H", directory):
        return None
    offset = _number(table, "<H", directory + 4 + 2 * number)
    return root + offset if offset else None


def _scalar(table: bytes, root: int, number: int, kind: str, default: int) -> int:
    place = _field(table, root, number)
    return default if place is None else _number(table, kind, place)


def _text(table: bytes, root: int, number: int) -> str:
    place = _field(table, root, number)
    if place is None:
        return ""
    start = place + _number(table, "<I", place)
    length = _number(table, "<I", start)
    return table[start + 4 : start + 4 + length].decode("utf-8", "replace")


def _number(buffer: bytes, kind: str, place: int) -> int:
    if place < 0:
        raise ValueError("an offset points before the file")
    value: int = struct.unpack_from(kind, buffer, place)[0]
    return value
