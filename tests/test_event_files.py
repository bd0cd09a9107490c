"""Readers of event cameras' files: round trips, damaged files, and the real samples."""

from __future__ import annotations

import builtins
import functools
import struct

import numpy as np
import pytest

import event_files as files
from spikelet.data.events import (
    Events,
    read_aedat,
    read_bin,
    read_dat,
    read_events,
    read_evt,
)
from spikelet.errors import UserError

FIELDS = ("x", "y", "t", "p")
DVS = functools.partial(files.random_events, size=(128, 128))
LARGE = functools.partial(files.random_events, size=(480, 640))


def bunched(seed=0):
    """Events of a large sensor of which many share time, row and polarity."""
    noise = np.random.default_rng(seed)
    rows = []
    for t in np.sort(noise.choice(200_000, 60, replace=False)) + 16_700_000:
        y, p = int(noise.integers(720)), int(noise.integers(2))
        xs = np.sort(noise.choice(60, noise.integers(1, 30), replace=False)) + noise.integers(1200)
        rows += [(int(x), y, int(t), p) for x in xs]
    x, y, t, p = np.array(rows).T
    return Events(x, y, t, p, (720, 1280))


# name: ending, events, writer, reader
ROUND_TRIPS = {
    "bin": (".bin", files.random_events, files.write_bin, read_bin),
    "bin, long": (
        ".bin", lambda: files.random_events(50, span=2**23 + 200_000), files.write_bin, read_bin
    ),
    "dat": (".dat", LARGE, files.write_dat, read_dat),
    "dat, old": (".dat", LARGE, functools.partial(files.write_dat, kind=0), read_dat),
    "dat, wrapped": (".dat", lambda: LARGE(start=2**32 - 90_000), files.write_dat, read_dat),
    "evt2": (".raw", LARGE, files.write_evt2, read_evt),
    "evt2, wrapped": (".raw", lambda: LARGE(start=2**34 - 90_000), files.write_evt2, read_evt),
    "evt3": (".raw", bunched, files.write_evt3, read_evt),
    "evt3, masks": (".raw", bunched, functools.partial(files.write_evt3, masks=True), read_evt),
    "aedat2": (".aedat", DVS, files.write_aedat2, read_aedat),
    "aedat2, davis": (
        ".aedat", lambda: files.random_events(size=(180, 240)),
        functools.partial(files.write_aedat2, chip="DAVIS240C"), read_aedat,
    ),
    "aedat3": (".aedat", DVS, files.write_aedat3, read_aedat),
    "aedat3, invalid": (
        ".aedat", DVS, functools.partial(files.write_aedat3, invalid=2), read_aedat
    ),
    "aedat3, late": (
        ".aedat", lambda: DVS(60, start=3 * 2**31 + 5, span=100), files.write_aedat3, read_aedat
    ),
    "aedat4": (".aedat4", LARGE, files.write_aedat4, read_aedat),
    "aedat4, open": (
        ".aedat4", LARGE, functools.partial(files.write_aedat4, closed=False), read_aedat
    ),
}  # fmt: skip


def assert_same(found, wanted, shift=0):
    for name in FIELDS:
        expected = getattr(wanted, name) - (shift if name == "t" else 0)
        np.testing.assert_array_equal(getattr(found, name), expected, err_msg=name)


@pytest.mark.parametrize("name", ROUND_TRIPS)
def test_what_was_written_is_read(tmp_path, name):
    ending, make, write, read = ROUND_TRIPS[name]
    path, events = tmp_path / f"recording{ending}", make()
    write(path, events)
    found = read(path)
    # a counter that wrapped begins at what its bits can hold
    period = {"dat, wrapped": 2**32, "evt2, wrapped": 2**34, "evt3": 2**24, "evt3, masks": 2**24}
    shift = int(events.t[0]) // period.get(name, 2**62) * period.get(name, 0)
    assert_same(found, events, shift)
    if not name.startswith("bin"):
        assert found.size == events.size
    assert len(read_events(path)) == len(events)


@pytest.mark.parametrize(("package", "kind"), [("lz4.frame", 1), ("zstandard", 3)])
def test_compressed_packets(tmp_path, package, kind):
    library = pytest.importorskip(package, reason=f"{package} is not installed (extra `events`)")
    squeeze = library.compress if kind == 1 else library.ZstdCompressor().compress
    path, events = tmp_path / "recording.aedat4", LARGE()
    files.write_aedat4(path, events, compression=kind, squeeze=squeeze)
    assert_same(read_aedat(path), events)


def test_a_missing_decompressor_is_named(tmp_path, monkeypatch):
    path, real = tmp_path / "recording.aedat4", builtins.__import__
    files.write_aedat4(path, LARGE(20), compression=1)

    def refuse(name, *rest, **more):
        if name.startswith("lz4"):
            raise ImportError(name)
        return real(name, *rest, **more)

    monkeypatch.setattr(builtins, "__import__", refuse)
    with pytest.raises(UserError, match=r"LZ4.*lz4 is not installed.*spikelet\[events\]"):
        read_aedat(path)


@pytest.mark.parametrize("name", ROUND_TRIPS)
def test_cut_and_spoiled_files_give_events_or_one_sentence(tmp_path, name):
    """No other exception, no event outside the sensor, never an endless wait for memory."""
    ending, make, write, read = ROUND_TRIPS[name]
    path, noise = tmp_path / f"recording{ending}", np.random.default_rng(1)
    write(path, make())
    whole = path.read_bytes()
    refused = 0
    for trial in range(60):
        content = bytearray(whole)
        if trial % 2:
            content = content[: noise.integers(len(content))]
        else:
            for place in noise.integers(0, len(content), 1 + trial // 4):
                content[place] = noise.integers(256)
        path.write_bytes(content)
        try:
            found = read(path)
        except UserError as error:
            refused += 1
            assert str(path) in error.argument or "data" in error.argument
            continue
        height, width = found.size
        assert len({len(getattr(found, field)) for field in FIELDS}) == 1
        if len(found):
            assert 0 <= found.x.min() <= found.x.max() < width
            assert 0 <= found.y.min() <= found.y.max() < height
            assert (np.diff(found.t) >= 0).all()
            assert set(np.unique(found.p)) <= {0, 1}
    assert refused > 5


def test_random_bytes_and_empty_files(tmp_path):
    noise = np.random.default_rng(2)
    for ending in (".bin", ".dat", ".raw", ".aedat", ".aedat4"):
        for count in (0, 1, 4, 333, 5000):
            path = tmp_path / f"noise{ending}"
            path.write_bytes(noise.bytes(count))
            try:
                assert len(read_events(path)) <= count
            except UserError as error:
                assert str(path) == error.argument
    with pytest.raises(UserError, match="cannot be decoded"):
        read_bin(tmp_path / "nowhere.bin")
    with pytest.raises(UserError, match=r"\.dat"):
        read_events(tmp_path / "noise.daf")


def test_events_outside_the_sensor_are_refused(tmp_path):
    path = tmp_path / "recording.bin"
    files.write_bin(path, files.random_events(size=(40, 40)))
    with pytest.raises(UserError, match="outside the sensor of 34x34"):
        read_bin(path, (34, 34))


def test_times_that_fall_are_sorted_and_equal_ones_keep_their_order(tmp_path):
    path = tmp_path / "recording.bin"
    events = Events(*(np.array(v) for v in ([1, 2, 3, 4], [0] * 4, [5, 3, 5, 3], [1] * 4)), (9, 9))
    files.write_bin(path, events)
    found = read_bin(path)
    assert found.x.tolist() == [2, 4, 1, 3]


# ---- the real samples ---------------------------------------------------------------------


@pytest.fixture
def samples(data_root):
    folder = data_root / "events"
    if not folder.is_dir():
        pytest.skip(f"no samples of event cameras at {folder}")
    return folder


def test_real_bin(samples):
    """Against a decoder of the same bytes with plain integers."""
    content = (samples / "sample_nmnist.bin").read_bytes()
    rows = [content[at : at + 5] for at in range(0, len(content), 5)]
    found = read_bin(samples / "sample_nmnist.bin", (34, 34))
    assert len(found) == len(rows) == 4325
    assert found.x.tolist() == [row[0] for row in rows]
    assert found.y.tolist() == [row[1] for row in rows]
    bits = [int.from_bytes(row[2:], "big") for row in rows]
    assert found.t.tolist() == [each % 2**23 for each in bits]
    assert found.p.tolist() == [each >> 23 for each in bits]
    assert found.t[-1] == 311_175


def test_real_dat(samples):
    found = read_dat(samples / "sample_ncars.dat")
    assert (len(found), found.x.max(), found.y.max()) == (2009, 77, 41)
    assert (found.t[0], found.t[-1]) == (0, 99_952)


def test_real_evt2(samples):
    found = read_evt(samples / "evt2_sample.raw")
    assert (len(found), found.size) == (539_481, (480, 640))
    assert (found.t[0], found.t[-1]) == (1_317_888, 1_367_888)
    assert (found.x.max(), found.y.max()) == (599, 475)


def test_real_evt3_against_the_decode_that_came_with_it(samples):
    """Pixels and polarities agree. That decode adds 4,096 us wherever low bits fall, by however
    little; ours does so at wraps alone, as the words of the high bits, three in number, say."""
    found = read_evt(samples / "evt3_sample.raw")
    with np.load(samples / "evt3_sample_expected.npz") as content:
        (name,) = content.files if len(content.files) == 1 else [None]
        stored = content[name] if name else {key: content[key] for key in FIELDS}
        expected = {key: np.asarray(stored[key]).astype(np.int64) for key in FIELDS}
    for key in "xyp":
        np.testing.assert_array_equal(getattr(found, key), expected[key])
    content = (samples / "evt3_sample.raw").read_bytes()
    words = struct.iter_unpack("<H", content[content.index(b"% system_ID 48\n") + 15 :])
    falls, low, added = 0, 0, []
    highs = set()
    for (word,) in words:
        kind, value = word >> 12, word & 0xFFF
        if kind == 0x8:
            highs.add(value)
        if kind == 0x6:
            falls += value < low
            low = value
        count = {0x2: 1, 0x4: value.bit_count(), 0x5: (value & 0xFF).bit_count()}.get(kind, 0)
        added += [falls] * count
    np.testing.assert_array_equal(expected["t"] - found.t, 4096 * np.array(added))
    assert set(np.unique(found.t >> 12)) == highs
    assert len(highs) == 3


def test_real_aedat4(samples):
    pytest.importorskip("lz4.frame", reason="lz4 is not installed (extra `events`)")
    found = read_aedat(samples / "sample.aedat4")
    assert (len(found), found.size) == (111_954, (240, 320))
    pixels = list(zip(found.x[:3].tolist(), found.y[:3].tolist(), strict=True))
    assert pixels == [(154, 204), (149, 206), (148, 199)]


def test_real_aedat2_header(samples):
    found = read_aedat(samples / "sample_aedat_header.aedat")
    assert (len(found), found.size) == (0, (260, 346))
