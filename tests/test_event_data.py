"""Data sets of event cameras: frames, cache, splits, downloads, augmentation, noise."""

from __future__ import annotations

import copy
import dataclasses
import hashlib
import http.server
import io
import threading
import time
import zipfile

import numpy as np
import pytest
import torch

import event_files as files
from spikelet.data import Batches, Crop, EventDrop, Flip, Roll
from spikelet.data.augment import thinned
from spikelet.data.cifar import CLASSES
from spikelet.data.events import Events, Framing, archives, cache, framed, read_bin, sets
from spikelet.data.events.download import Archive, fetch, fetch_all
from spikelet.data.events.frames import unit_of
from spikelet.errors import UserError
from spikelet.measure.corruptions import EVENT_KINDS, corrupt, source
from spikelet.recipe import AUGMENTS, DATA, build

SEED = torch.Generator


# ---- frames -------------------------------------------------------------------------------


def slowly(events, framing):
    """Frames by a loop over events."""
    height, width = framing.size
    count = np.zeros((framing.frames, 2, height, width), int)
    first, last = int(events.t[0]), int(events.t[-1])
    for number, (x, y, t, p) in enumerate(files.each(events)):
        if framing.by == "time":
            frame = int(framing.frames * (t - first) / (last - first + 1))
        else:
            frame = int(framing.frames * number / len(events))
        count[frame, p, int(y * height / events.size[0]), int(x * width / events.size[1])] += 1
    return np.minimum(count * framing.unit, 255)


@pytest.mark.parametrize("by", ["time", "count"])
@pytest.mark.parametrize(("frames", "size"), [(1, (34, 34)), (4, (17, 17)), (5, (10, 13))])
def test_frames_by_a_loop(by, frames, size):
    events = files.random_events(3000, span=4000)
    framing = Framing(frames, by, size, unit=9)
    found = framed(events, framing)
    assert found.dtype == np.uint8
    np.testing.assert_array_equal(found, slowly(events, framing))


def test_frames_of_equal_count_share_the_events_evenly():
    found = framed(files.random_events(103), Framing(4, "count", (34, 34), 1)).sum((1, 2, 3))
    assert found.sum() == 103
    assert found.max() - found.min() <= 1


def test_a_recording_without_events_is_black():
    nothing = Events(*(np.empty(0, np.int64),) * 4, (34, 34))
    for by in ("time", "count"):
        assert not framed(nothing, Framing(3, by, (34, 34), 5)).any()


def test_the_mean_frame_hardly_depends_on_the_number_of_frames():
    events = files.random_events(500)
    means = [
        framed(events, Framing(n, "time", (34, 34), unit_of(n, 16))).mean((0, 1)) for n in (1, 4)
    ]
    np.testing.assert_allclose(means[0], means[1], rtol=0.01, atol=1)


@pytest.mark.parametrize(
    ("fields", "message"),
    [({"frames": 0}, "1 to 64 frames"), ({"by": "tim"}, "'time'|time"), ({"size": 99}, "1 to 34")],
)
def test_settings_that_make_no_frames(recordings, fields, message):
    with pytest.raises(UserError, match=message):
        build("data", {"kind": "nmnist", "root": str(recordings), **fields}, DATA)


# ---- data sets ----------------------------------------------------------------------------


def write_nmnist(folder, train=6, test=2):
    for part, count in (("Train", train), ("Test", test)):
        for digit in range(10):
            place = folder / "NMNIST" / part / str(digit)
            place.mkdir(parents=True)
            for index in range(count):
                seed = 1000 * len(part) + 20 * digit + index
                files.write_bin(place / f"{index:05d}.bin", files.random_events(60, seed=seed))


def write_gestures(folder):
    place = folder / "DVSGesture" / "DvsGesture"
    place.mkdir(parents=True)
    for name, users in (("train", (1, 2)), ("test", (3,))):
        lists = [f"user{user:02d}_led.aedat" for user in users]
        (place / f"trials_to_{name}.txt").write_text("\n".join([*lists, "user99_gone.aedat", ""]))
        for user, listed in zip(users, lists, strict=True):
            events = files.random_events(600, (128, 128), 11_000, seed=user)
            files.write_aedat3(place / listed, events)
            rows = [f"{k + 1},{1000 * k},{1000 * k + 900}" for k in range(11)]
            table = "\n".join(["class,startTime_usec,endTime_usec", *rows])
            (place / f"user{user:02d}_led_labels.csv").write_text(table)


@pytest.fixture
def recordings(tmp_path):
    """Tiny copies of every data set, with random events."""
    write_nmnist(tmp_path)
    for name in CLASSES:
        place = tmp_path / "CIFAR10DVS" / name
        place.mkdir(parents=True)
        for index in range(20):
            events = files.random_events(80, (128, 128), seed=index)
            files.write_aedat2(place / f"cifar10_{name}_{index}.aedat", events)
    for number, name in enumerate(("accordion", "airplanes", "anchor")):
        place = tmp_path / "NCaltech101" / "Caltech101" / name
        place.mkdir(parents=True)
        for index in range(1, 25):
            events = files.random_events(80, (180, 240), seed=100 * number + index)
            files.write_bin(place / f"image_{index:04d}.bin", events)
    write_gestures(tmp_path)
    return tmp_path


# name, options, recordings for training and validation together, shape "T C H W", classes
TABLE = [
    ("nmnist", {}, 60, (4, 2, 34, 34), 10),
    ("nmnist", {"frames": 2, "by": "count", "size": 17, "train": 40}, 40, (2, 2, 17, 17), 10),
    ("cifar10-dvs", {"size": 32}, None, (4, 2, 32, 32), 10),
    ("dvs-gesture", {"frames": 3, "size": 32}, 22, (3, 2, 32, 32), 11),
    ("n-caltech101", {"validation": 5}, None, (4, 2, 60, 80), 3),
]


@pytest.mark.parametrize(("name", "options", "labelled", "shape", "classes"), TABLE)
def test_every_data_set(recordings, name, options, labelled, shape, classes):
    spec = {"kind": name, "root": str(recordings), **options}
    found = build("data", spec, DATA)
    assert found.name == name
    assert (found.frames, found.channels, *found.size) == shape
    assert len(found.classes) == classes
    assert found.licence
    assert found.unit == unit_of(shape[0], {"nmnist": 32, "n-caltech101": 128}.get(name, 256))
    assert len(found.mean) == len(found.std) == 2
    parts = [found.train, found.validation, found.test]
    assert labelled is None or len(parts[0]) + len(parts[1]) == labelled
    for part in parts:
        assert part.images.shape == (len(part), *shape)
        assert part.images.dtype == torch.uint8
        assert int(part.labels.max()) < classes
    again, other = (build("data", spec | more, DATA) for more in ({}, {"seed": 3}))
    assert again.hashes == found.hashes
    assert other.hashes["test"] == found.hashes["test"] != other.hashes["validation"]
    assert torch.equal(copy.deepcopy(found).train.images, found.train.images)
    augment = [build("augment", spec, AUGMENTS) for spec in found.augment]
    images, labels = next(Batches(found.train, found, 8, augment).epoch(0))
    assert images.shape == (8, *shape)
    assert images.dtype == torch.float32
    assert images.isfinite().all()
    assert labels.shape == (8,)
    whole, _ = next(Batches(found.train, found, len(found.train), shuffle=False).epoch(0))
    assert whole.mean().abs() < 0.2


def test_labels_and_frames_belong_to_their_files(recordings):
    found = build("data", {"kind": "nmnist", "root": str(recordings), "validation": 1}, DATA)
    framing = Framing(4, "time", (34, 34), found.unit)
    place = recordings / "NMNIST" / "Test"
    paths = [path for digit in range(10) for path in sorted((place / str(digit)).iterdir())]
    for path, image, label in zip(paths, found.test.images, found.test.labels, strict=True):
        assert int(label) == int(path.parent.name)
        np.testing.assert_array_equal(image.numpy(), framed(read_bin(path, (34, 34)), framing))


def test_gestures_are_cut_at_their_times(recordings):
    found = build("data", {"kind": "dvs-gesture", "root": str(recordings), "frames": 1}, DATA)
    assert found.test.labels.tolist() == list(range(11))
    events = files.random_events(600, (128, 128), 11_000, seed=3)
    counts = [int(((events.t >= 1000 * k) & (events.t < 1000 * k + 900)).sum()) for k in range(11)]
    shown = found.test.images.sum((1, 2, 3, 4)) / found.unit
    assert shown.tolist() == counts


def test_splits_by_rule_are_the_same_everywhere(recordings):
    """Complete sets have the shipped split; one with fewer recordings has a part of it."""
    names = [f"{name}/cifar10_{name}_{index}" for name in CLASSES for index in range(1000)]
    test = [name for name in names if sets.chosen_for_test(name)]
    assert 900 < len(test) < 1100
    assert sets.names_hash(test) == archives.TEST_NAMES["cifar10-dvs"]
    found = build("data", {"kind": "cifar10-dvs", "root": str(recordings), "size": 16}, DATA)
    few = [name for name in test if int(name.rpartition("_")[2]) < 20]
    assert len(found.test) == len(few)
    assert f"{len(few)} of an incomplete" in found.notes
    assert sets.names_hash(few) in found.notes
    by_hand = [
        n for n in names if int.from_bytes(hashlib.sha256(n.encode()).digest(), "big") % 10 == 0
    ]
    assert by_hand == test


def test_a_damaged_recording_and_missing_folders(recordings, tmp_path):
    broken = recordings / "NMNIST" / "Train" / "3" / "00002.bin"
    broken.write_bytes(broken.read_bytes()[:-2])
    with pytest.raises(UserError, match=r"ends within an event") as caught:
        build("data", {"kind": "nmnist", "root": str(recordings)}, DATA)
    assert str(broken) == caught.value.argument
    for name in ("nmnist", "cifar10-dvs", "dvs-gesture", "n-caltech101"):
        with pytest.raises(UserError, match="not found there"):
            build("data", {"kind": name, "root": str(tmp_path / "nowhere")}, DATA)


# ---- the cache ----------------------------------------------------------------------------


def test_frames_are_built_once_and_again_when_anything_changes(recordings, monkeypatch):
    spec, built = {"kind": "nmnist", "root": str(recordings)}, []
    real = cache._built
    monkeypatch.setattr(cache, "_built", lambda *given: built.append(1) or real(*given))
    first = build("data", spec, DATA)
    assert len(built) == 2  # train and test
    assert build("data", {**spec, "seed": 4, "train": 30}, DATA).hashes["test"]
    assert len(built) == 2
    build("data", {**spec, "frames": 2}, DATA)
    assert len(built) == 4
    files.write_bin(recordings / "NMNIST" / "Test" / "0" / "00000.bin", files.random_events(9))
    changed = build("data", spec, DATA)
    assert len(built) == 5
    assert changed.hashes["test"] != first.hashes["test"]
    for stored in (recordings / "NMNIST" / ".frames").iterdir():
        stored.write_bytes(stored.read_bytes()[:-100])
    assert build("data", spec, DATA).hashes == changed.hashes
    assert len(built) == 7
    assert not list((recordings / "NMNIST" / ".frames").glob("*.part"))


def test_frames_are_built_by_one_of_several(recordings, monkeypatch):
    """The second waits for the first, and reads what that has built."""
    spec, built = {"kind": "nmnist", "root": str(recordings)}, []
    real, begun = cache._built, threading.Event()

    def slow(*given):
        built.append(threading.get_ident())
        begun.set()
        time.sleep(0.3)
        return real(*given)

    monkeypatch.setattr(cache, "_built", slow)
    found = []
    first = threading.Thread(target=lambda: found.append(build("data", spec, DATA).hashes))
    first.start()
    assert begun.wait(30)
    found.append(build("data", spec, DATA).hashes)
    first.join()
    assert len(built) == 2  # train and test, once each
    assert found[0] == found[1]


# ---- downloads ----------------------------------------------------------------------------


@pytest.fixture
def host():
    """A local web server: `files` by path, with ranges unless `whole`; `asked` keeps requests."""

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            server = self.server
            server.asked.append((self.path, self.headers.get("Range")))
            content = server.files.get(self.path)
            if content is None:
                self.send_error(404)
                return
            start = 0
            if self.headers.get("Range") and not server.whole:
                start = int(self.headers["Range"].removeprefix("bytes=").rstrip("-"))
                if start >= len(content):
                    self.send_error(416)
                    return
                self.send_response(206)
            else:
                self.send_response(200)
            self.send_header("Content-Length", str(len(content) - start))
            self.end_headers()
            self.wfile.write(content[start : server.breaks or None])
            server.breaks = None

        def log_message(self, *_):
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.files, server.asked, server.whole, server.breaks = {}, [], False, None
    server.url = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield server
    server.shutdown()
    server.server_close()
    thread.join()


def zipped(**members):
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w") as archive:
        for name, content in members.items():
            archive.writestr(name.replace("__", "/"), content)
    return stream.getvalue()


def archive_of(host, content, name="Train.zip", where="/a"):
    host.files[where] = content
    return Archive(name, hashlib.md5(content).hexdigest(), (host.url + where,), "https://page")


@pytest.mark.parametrize("whole", [False, True])
def test_a_broken_download_goes_on(tmp_path, host, whole):
    """From where it stopped; from the beginning with a host that cannot do that."""
    content = np.random.default_rng(0).bytes(300_000)
    archive = archive_of(host, content)
    host.breaks = 100_000
    with pytest.raises(UserError, match=r"ended after 100000 of 300000|IncompleteRead"):
        fetch(archive, tmp_path)
    assert (tmp_path / "Train.zip.part").stat().st_size == 100_000
    host.whole = whole
    fetch(archive, tmp_path)
    assert (tmp_path / "Train.zip").read_bytes() == content
    assert [asked for _, asked in host.asked] == [None, "bytes=100000-"]
    fetch(archive, tmp_path)
    assert len(host.asked) == 2  # what is there is only checked
    (tmp_path / "Train.zip").rename(tmp_path / "Train.zip.part")
    fetch(archive, tmp_path)
    assert (tmp_path / "Train.zip").read_bytes() == content


def test_what_a_host_sends_instead_is_not_taken(tmp_path, host):
    """A page that asks for a browser has another MD5; the next address is tried, then a person."""
    good = archive_of(host, zipped(a="1"), where="/good")
    host.files["/challenge"] = b""
    urls = tuple(host.url + where for where in ("/challenge", "/absent", "/good"))
    fetch(Archive(good.name, good.md5, urls, good.page), tmp_path)
    assert [where for where, _ in host.asked] == ["/challenge", "/absent", "/good"]
    bad = Archive("Test.zip", good.md5, urls[:2], "https://page")
    with pytest.raises(UserError, match=r"MD5 differs.*404.*browser from https://page") as caught:
        fetch(bad, tmp_path)
    assert str(tmp_path) in caught.value.fix
    assert not (tmp_path / "Test.zip.part").exists()
    (tmp_path / "Test.zip").write_bytes(b"other")
    with pytest.raises(UserError, match="another file"):
        fetch(bad, tmp_path)
    assert (tmp_path / "Test.zip").read_bytes() == b"other"


def test_archives_are_unpacked_and_those_within(tmp_path, host):
    inner = zipped(Caltech101__anchor__image_0001="x")
    archive = archive_of(host, zipped(deep__Caltech101=b"", **{"Caltech101.zip": inner}))
    fetch_all([archive], tmp_path / "new")
    found = tmp_path / "new" / "Caltech101" / "anchor" / "image_0001"
    assert found.read_text() == "x"
    broken = archive_of(host, b"PK no zip", "Test.zip", "/b")
    with pytest.raises(UserError, match="cannot be unpacked"):
        fetch_all([broken], tmp_path / "new")


def test_download_of_a_data_set(tmp_path, host, monkeypatch):
    write_nmnist(tmp_path / "origin", train=2, test=1)
    archived = []
    for part in ("Train", "Test"):
        stream = io.BytesIO()
        with zipfile.ZipFile(stream, "w") as archive:
            for path in sorted((tmp_path / "origin" / "NMNIST" / part).rglob("*.bin")):
                archive.write(path, path.relative_to(tmp_path / "origin" / "NMNIST"))
        archived.append(archive_of(host, stream.getvalue(), f"{part}.zip", f"/{part}"))
    kind = dataclasses.replace(sets.NMNIST, archives=tuple(archived))
    monkeypatch.setattr(sets, "NMNIST", kind)
    spec = {"kind": "nmnist", "root": str(tmp_path / "new"), "download": True}
    assert build("data", spec, DATA).sizes == {"train": 18, "validation": 2, "test": 10}
    build("data", spec, DATA)
    assert len(host.asked) == 2


def test_a_data_set_that_no_program_can_fetch_says_how(tmp_path):
    spec = {"kind": "dvs-gesture", "root": str(tmp_path), "download": True}
    with pytest.raises(UserError, match=r"DvsGesture\.tar\.gz.*browser from https://ibm"):
        build("data", spec, DATA)


# ---- augmentation -------------------------------------------------------------------------


def frames_of(count=6, steps=4, size=12, unit=10, seed=0):
    noise = np.random.default_rng(seed)
    shape = (count, steps, 2, size, size)
    return torch.from_numpy((noise.poisson(1.5, shape) * unit).astype(np.uint8))


class Small:
    """What `Batches` wants of a data set."""

    mean, std, unit, frames = (0.0, 0.0), (1 / 255, 1 / 255), 10, 4


@pytest.mark.parametrize("change", [Flip(1.0), Crop(2), Roll(3)])
def test_all_frames_of_a_recording_move_alike(change):
    frames = frames_of()
    frames[:] = frames[:, :1]  # every frame the same
    split = sets_split(frames)
    (found, _), *_ = Batches(split, Small, 6, [change], shuffle=False).epoch(0)
    torch.testing.assert_close(found, found[:, :1].expand_as(found))
    assert not torch.equal(found, frames.float())


def sets_split(frames):
    from spikelet.data import Split

    return Split(frames, torch.zeros(len(frames), dtype=torch.int64))


def test_roll_by_hand(generator):
    images = torch.arange(2 * 1 * 5 * 5, dtype=torch.uint8).reshape(2, 1, 5, 5)
    found = Roll(2)(images, generator)
    shifts = [
        [
            (down, right)
            for down in range(-2, 3)
            for right in range(-2, 3)
            if torch.equal(torch.roll(image, (down, right), (1, 2)), moved)
        ]
        for image, moved in zip(images, found, strict=True)
    ]
    assert all(len(each) == 1 for each in shifts)
    for wrong in (lambda: Roll(-1), lambda: EventDrop(0.0), lambda: EventDrop(1.5)):
        with pytest.raises(UserError):
            wrong()


def test_event_drop_takes_whole_events_and_each_way_happens():
    frames = frames_of(400)
    drop = EventDrop(0.6, unit=10)
    found = drop(frames, SEED().manual_seed(1))
    assert torch.equal(found, drop(frames, SEED().manual_seed(1)))
    assert bool((found <= frames).all())
    assert bool((found % 10 == 0).all())
    lost = (frames - found) > 0
    untouched = ~lost.flatten(1).any(1)
    in_time = found.flatten(2).amax(2).eq(0).any(1)
    spread = lost.flatten(3).any(3).all(2).all(1) & ~in_time
    assert 0.15 < float(untouched.float().mean()) < 0.45
    assert 0.1 < float(in_time.float().mean()) < 0.35
    assert 0.2 < float(spread.float().mean()) < 0.7
    kept = float(found.sum() / frames.sum())
    assert 0.7 < kept < 0.95


def test_thinning_keeps_the_expected_share():
    frames = frames_of(200)
    chance = torch.full((200, 1, 1, 1, 1), 0.3)
    found = thinned(frames, chance, 10, SEED().manual_seed(0))
    share = float(found.sum() / frames.sum())
    assert abs(share - 0.7) < 0.01
    assert torch.equal(thinned(frames, torch.zeros(200, 1, 1, 1, 1), 10, SEED()), frames)


# ---- noise --------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", EVENT_KINDS)
def test_event_noise_counts_events(kind):
    pixels, noise = frames_of().float() / 255, EVENT_KINDS[kind]
    assert torch.equal(corrupt(pixels, kind, 0, source(0), 10), pixels)
    strengths = []
    for level in noise.levels:
        found = corrupt(pixels, kind, level, source(1, level), 10)
        again = corrupt(pixels, kind, level, source(1, level), 10)
        assert torch.equal(found, again)
        assert 0 <= float(found.min()) <= float(found.max()) <= 1
        events = found * 25.5
        torch.testing.assert_close(events, events.round(), atol=1e-4, rtol=0)
        strengths.append(float((found - pixels).abs().mean()))
    assert strengths == sorted(strengths)


def test_lost_and_moved_events_by_their_shares():
    pixels = frames_of(300).float() / 255
    total = float(pixels.sum())
    dropped = corrupt(pixels, "event-drop", 0.3, source(2), 10)
    assert abs(float(dropped.sum()) / total - 0.7) < 0.01
    assert bool((dropped <= pixels + 1e-6).all())
    delayed = corrupt(pixels, "event-delay", 0.5, source(3), 10)
    torch.testing.assert_close(delayed.sum(1), pixels.sum(1))  # only time changed
    moved = corrupt(pixels, "event-jitter", 0.4, source(4), 10)
    left = 0.4 * (1 - outcomes_inside(12) / (8 * 12**2))
    assert abs(float(moved.sum()) / total - (1 - left)) < 0.01
    assert float((moved.sum((1, 2)) - pixels.sum((1, 2))).abs().max()) > 0


def outcomes_inside(size):
    """Of all pixels and their eight neighbours, how many neighbours are on the sensor."""
    places = range(size)
    steps = [(a, b) for a in (-1, 0, 1) for b in (-1, 0, 1) if a or b]
    pixels = [(y, x) for y in places for x in places]
    return sum(y + a in places and x + b in places for y, x in pixels for a, b in steps)


def test_a_single_event_moves_to_each_of_eight_neighbours_alike():
    pixels = torch.zeros(4000, 1, 1, 5, 5)
    pixels[..., 2, 2] = 10 / 255
    found = (corrupt(pixels, "event-jitter", 1.0, source(5), 10) * 25.5).sum((0, 1, 2))
    assert float(found[2, 2]) == 0
    around = found[1:4, 1:4].flatten()[[0, 1, 2, 3, 5, 6, 7, 8]]
    assert float(around.sum()) == pytest.approx(4000)
    assert 400 < float(around.min()) <= float(around.max()) < 600


def test_hot_pixels_are_hot_in_every_frame_and_polarity():
    pixels = frames_of().float() / 255
    found = corrupt(pixels, "hot-pixels", 0.05, source(6), 10)
    changed = (found != pixels).any(2).any(1)
    hottest = pixels.flatten(1).amax(1)
    for image, mask, top in zip(found, changed, hottest, strict=True):
        assert bool((image[..., mask] == top).all())
    assert 0.02 < float(changed.float().mean()) < 0.09


def test_image_noise_is_not_for_frames():
    with pytest.raises(UserError, match="hot-pixels"):
        corrupt(frames_of().float() / 255, "hot-pixel", 0.1, source(0), 10)
    with pytest.raises(UserError, match="gaussian"):
        corrupt(frames_of().float() / 255, "gaussian", 0.1, source(0), 10)


# ---- the real recordings ------------------------------------------------------------------


def test_real_nmnist(data_root):
    if not (data_root / "NMNIST").is_dir():
        pytest.skip(f"no N-MNIST at {data_root}")
    found = build("data", {"kind": "nmnist", "root": str(data_root)}, DATA)
    total = found.sizes["train"] + found.sizes["validation"]
    assert (total, found.sizes["test"]) in {(1000, 100), (60_000, 10_000)}
    if total == 1000:
        together = torch.cat([found.train.labels, found.validation.labels])
        expected = [97, 116, 99, 93, 105, 92, 94, 117, 87, 100]
        assert torch.bincount(together).tolist() == expected
        assert found.notes == "1000 of 60000 and 100 of 10000"
    brightest = int(found.train.images.max())
    assert brightest == 255 or brightest > 5 * found.unit
