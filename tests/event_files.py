"""Writers of event cameras' files, event by event: the formats once more, the other way round."""

from __future__ import annotations

import struct

import numpy as np

from spikelet.data.events import Events


def random_events(count=200, size=(34, 34), span=300_000, seed=0, start=0):
    """Events in order of time, each at another microsecond."""
    noise = np.random.default_rng(seed)
    t = start + np.sort(noise.choice(span, count, replace=False))
    height, width = size
    x, y = noise.integers(0, width, count), noise.integers(0, height, count)
    return Events(x, y, t, noise.integers(0, 2, count), size)


def each(events):
    """(x, y, t, p) of every event as plain numbers."""
    columns = (events.x, events.y, events.t, events.p)
    return zip(*(map(int, column) for column in columns), strict=True)


def write_bin(path, events):
    """ATIS: an entry in row 240 before each 2^13 microseconds that 23 bits cannot hold."""
    content, offset = bytearray(), 0
    for x, y, t, p in each(events):
        while t - offset >= 2**23:
            content += bytes([0, 240, 0, 0, 0])
            offset += 2**13
        content += bytes([x, y]) + (p << 23 | t - offset).to_bytes(3, "big")
    path.write_bytes(content)


def write_dat(path, events, sized=True, kind=0x0C):
    lines = ["% Data file", "% Version 2"]
    if sized:
        lines += [f"% Height {events.size[0]}", f"% Width {events.size[1]}"]
    content = bytearray("\n".join([*lines, ""]).encode()) + bytes([kind, 8])
    for x, y, t, p in each(events):
        content += struct.pack("<II", t % 2**32, p << 28 | y << 14 | x)
    path.write_bytes(content)


def write_evt2(path, events):
    content, high = bytearray(b"% evt 2.0\n% geometry 640x480\n% end\n"), None
    for x, y, t, p in each(events):
        if t >> 6 != high:
            high = t >> 6
            content += struct.pack("<I", 0x8 << 28 | high % 2**28)
            content += struct.pack("<I", 0xA << 28 | 5)  # a trigger, to be passed over
        content += struct.pack("<I", p << 28 | t % 64 << 22 | x << 11 | y)
    path.write_bytes(content)


def write_evt3(path, events, masks=False):
    """With masks, events of equal time, row and polarity go as one word behind a base."""
    content = bytearray(b"% evt 3.0\n% geometry 1280x720\n")
    known = {"high": None, "low": None, "y": None}

    def say(kind, value):
        content.extend(struct.pack("<H", kind << 12 | value))

    for xs, y, t, p in grouped(events):
        if t >> 12 != known["high"]:
            known["high"] = t >> 12
            say(0x8, known["high"] % 2**12)
            known["low"] = None
        if t % 4096 != known["low"]:
            known["low"] = t % 4096
            say(0x6, known["low"])
        if y != known["y"]:
            known["y"] = y
            say(0x0, y)
        if masks and len(xs) > 1:
            spread(xs, p, say)
        else:
            for x in xs:
                say(0x2, p << 11 | x)
    path.write_bytes(content)


def grouped(events):
    """Events of equal y, t and p that follow each other with rising x, together."""
    groups = []
    for x, y, t, p in each(events):
        if groups and groups[-1][1:] == [y, t, p] and x > groups[-1][0][-1]:
            groups[-1][0].append(x)
        else:
            groups.append([[x], y, t, p])
    return groups


def spread(xs, p, say):
    """A base and as many masks, of 12 and of 8 in turn, as reach the last of the pixels."""
    base, width = xs[0], 12
    say(0x3, p << 11 | base)
    while base <= xs[-1]:
        mask = sum(1 << x - base for x in xs if base <= x < base + width)
        say(0x4 if width == 12 else 0x5, mask)
        base, width = base + width, 20 - width


def write_aedat2(path, events, chip="DVS128"):
    height, width = events.size
    content = bytearray(f"#!AER-DAT2.0\r\n# AEChip: {chip}\r\n".encode())
    for x, y, t, p in each(events):
        x, y = width - 1 - x, height - 1 - y
        address = y << 8 | x << 1 | 1 - p if chip == "DVS128" else y << 22 | x << 12 | p << 11
        content += struct.pack(">II", address, t)
        if chip != "DVS128":
            content += struct.pack(">II", 1 << 31 | 77, t)  # a sample of the picture
    path.write_bytes(content)


def write_aedat3(path, events, invalid=0):
    """Packets of up to 50 events, one of another kind in front; some events marked as invalid."""
    content = bytearray(b"#!AER-DAT3.1\r\n#Source 0: DVS128\r\n#!END-HEADER\r\n")
    content += struct.pack("<hhiiiiii", 0, 0, 8, 4, 0, 1, 1, 1) + bytes(8)
    rows = list(each(events))
    for start in range(0, len(rows), 50):
        part = rows[start : start + 50]
        overflow = part[0][2] >> 31
        body = [struct.pack("<II", 9 << 17 | 3 << 2, part[0][2] % 2**31)] * invalid
        for x, y, t, p in part:
            body.append(struct.pack("<II", x << 17 | y << 2 | p << 1 | 1, t - (overflow << 31)))
        count = len(body)
        content += struct.pack("<hhiiiiii", 1, 0, 8, 4, overflow, count, count, len(part))
        content += b"".join(body)
    path.write_bytes(content)


XML = (
    '<dv version="2.0"><node name="outInfo" path="/"><node name="0" path="/0/">'
    '<attr key="typeIdentifier" type="string">FRME</attr></node>'
    '<node name="1" path="/1/"><attr key="typeIdentifier" type="string">EVTS</attr>'
    '<node name="info" path="/1/info/"><attr key="sizeX" type="int">{1}</attr>'
    '<attr key="sizeY" type="int">{0}</attr></node></node></node></dv>'
)


def write_aedat4(path, events, compression=0, squeeze=bytes, closed=True):
    """Packets of up to 80 events in stream 1, others in stream 0 between them."""
    text = XML.format(*events.size).encode()
    packets = bytearray()
    rows = list(each(events))
    for start in range(0, len(rows), 80):
        body = squeeze(event_packet(rows[start : start + 80]))
        packets += struct.pack("<ii", 0, 3) + b"abc" + struct.pack("<ii", 1, len(body)) + body
    first = len(b"#!AER-DAT4.0\r\n") + len(io_header(text, compression, 0))
    end = first + len(packets) if closed else -1
    head = io_header(text, compression, end)
    path.write_bytes(b"#!AER-DAT4.0\r\n" + head + packets + b"(table)" * closed)


def event_packet(rows):
    """Length; root, name, directory of one field, table, vector of 16-byte events."""
    structs = b"".join(struct.pack("<qhhBxxx", t, x, y, p) for x, y, t, p in rows)
    directory = struct.pack("<HHH", 6, 8, 4) + b"\0\0"
    table = struct.pack("<iI", 8, 8)  # directory 8 before; vector 8 after the field
    vector = struct.pack("<II", 0, len(rows)) + structs
    body = struct.pack("<I4s", 16, b"EVTS") + directory + table + vector
    return struct.pack("<I", len(body)) + body


def io_header(text, compression, end):
    """Fields compression (at 4), place of the table (8), text (16)."""
    directory = struct.pack("<HHHHH", 10, 20, 4, 8, 16) + b"\0\0"
    table = struct.pack("<iiqI", 12, compression, end, 4)
    body = struct.pack("<I4s", 20, b"IOHE") + directory + table
    body += struct.pack("<I", len(text)) + text
    return struct.pack("<I", len(body)) + body
