"""Every data set passes one table; batches, augmentations, and folders that are not right."""

from __future__ import annotations

import copy
import pickle
import shutil
import struct
import time

import numpy as np
import pytest
import torch
from PIL import Image

from spikelet import data
from spikelet.data import Batches
from spikelet.data.dataset import held_out
from spikelet.data.folder import decode
from spikelet.data.tiny_imagenet import FOLDERS
from spikelet.errors import UserError
from spikelet.recipe import AUGMENTS, DATA, build
from test_event_data import TABLE as EVENTS

COLOURS = {"blue": (0, 0, 255), "green": (0, 255, 0), "red": (255, 0, 0)}


def write_idx(root, name, part, images, labels):
    raw = root / name / "raw"
    raw.mkdir(parents=True, exist_ok=True)
    header = struct.pack(">IIII", 0x803, *images.shape)
    (raw / f"{part}-images-idx3-ubyte").write_bytes(header + images.tobytes())
    header = struct.pack(">II", 0x801, len(labels))
    (raw / f"{part}-labels-idx1-ubyte").write_bytes(header + labels.astype(np.uint8).tobytes())


def write_cifar(root, test=9):
    folder = root / "cifar-10-batches-py"
    folder.mkdir(parents=True)
    noise = np.random.default_rng(0)
    for name in [*(f"data_batch_{number}" for number in range(1, 6)), "test_batch"]:
        count = test if name == "test_batch" else 20
        pixels = noise.integers(0, 256, (count, 3072), np.uint8)
        record = {"data": pixels, "labels": [index % 10 for index in range(count)]}
        (folder / name).write_bytes(pickle.dumps(record, protocol=2))
    return folder


def write_cifar100(root):
    folder = root / "cifar-100-python"
    folder.mkdir(parents=True)
    noise = np.random.default_rng(1)
    for name, count in (("train", 200), ("test", 100)):
        pixels = noise.integers(0, 256, (count, 3072), np.uint8)
        record = {"data": pixels, "fine_labels": [index % 100 for index in range(count)]}
        (folder / name).write_bytes(pickle.dumps(record, protocol=2))
    meta = {"fine_label_names": [f"class {index}" for index in range(100)]}
    (folder / "meta").write_bytes(pickle.dumps(meta, protocol=2))


def write_folder(root, parts=("train", "test"), count=10):
    for part in parts:
        for name, colour in COLOURS.items():
            place = root / part / name if part else root / name
            place.mkdir(parents=True)
            for index in range(count):
                Image.new("RGB", (12 + index, 20), colour).save(place / f"{index}.png")
    return root


TINY = {"n02000000": "crane, a bird", "n01000000": "goldfish, a fish", "n03000000": "crane, a lift"}


def write_tiny(folder, official=True, train=10, test=4):
    """Tiny-ImageNet's layout, of the official archive or with plain class folders, as noise."""
    noise = np.random.default_rng(3)

    def save(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        pixels = noise.integers(0, 256, (64, 64, 3), np.uint8)
        Image.fromarray(pixels).save(path, format="JPEG", quality=95)

    lines = []
    for number, wnid in enumerate(TINY):
        inner = "images/" if official else ""
        for index in range(train):
            save(folder / f"train/{wnid}/{inner}{wnid}_{index}.JPEG")
        for index in range(number, 3 * test, 3):
            save(folder / f"val/{'images' if official else wnid}/val_{index}.JPEG")
            lines.append(f"val_{index}.JPEG\t{wnid}\t0\t32\t44\t62\n")
    if official:
        (folder / "wnids.txt").write_text("\n".join(TINY) + "\n")
        (folder / "val/val_annotations.txt").write_text("".join(lines))
        (folder / "test/images").mkdir(parents=True)
        words = {"n00000001": "entity", **TINY}
        (folder / "words.txt").write_text("".join(f"{n}\t{w}\n" for n, w in words.items()))
    else:
        rows = (f"{k}\t{n}\t{w}\n" for k, (n, w) in enumerate(sorted(TINY.items())))
        (folder / "classes.tsv").write_text("".join(rows))
    return folder


@pytest.fixture
def folders(tmp_path):
    """Tiny synthetic copies of everything that is read from a folder."""
    noise = np.random.default_rng(2)
    for name in ("MNIST", "FashionMNIST"):
        for part, count in (("train", 60), ("t10k", 20)):
            images = noise.integers(0, 256, (count, 28, 28), np.uint8)
            write_idx(tmp_path, name, part, images, np.arange(count) % 10)
    write_cifar(tmp_path)
    write_cifar100(tmp_path)
    write_folder(tmp_path / "images")
    write_tiny(tmp_path / "tiny-imagenet-200")
    write_tiny(tmp_path / "some" / "tiny-imagenet-30", official=False)
    return tmp_path


# name, options, where in the folders, (train, validation, test), (channels, size), classes
TABLE = [
    ("digits", {}, None, (320, 80, 1397), (1, 8), 10),
    ("digits", {"train": 100, "validation": 0}, None, (100, 0, 1697), (1, 8), 10),
    ("mnist", {"validation": 10}, "", (50, 10, 20), (1, 28), 10),
    ("fashion-mnist", {"validation": 15, "train": 40}, "", (25, 15, 20), (1, 28), 10),
    ("cifar10", {"validation": 10}, "", (90, 10, 9), (3, 32), 10),
    ("cifar10", {"validation": 10, "protocol": "batch5"}, "", (70, 10, 20), (3, 32), 10),
    ("cifar100", {"validation": 100}, "", (100, 100, 100), (3, 32), 100),
    ("tiny-imagenet", {}, "", (27, 3, 12), (3, 64), 3),
    ("tiny-imagenet", {"validation": 0, "train": 15}, "some", (15, 0, 12), (3, 64), 3),
    ("tiny-imagenet", {"size": 32, "validation": 6}, "tiny-imagenet-200", (24, 6, 12), (3, 32), 3),
    ("imagefolder", {"size": 16}, "images", (27, 3, 30), (3, 16), 3),
    ("imagefolder", {"size": 9, "channels": 1, "validation": 0}, "images", (30, 0, 30), (1, 9), 3),
]


def loaded(name, options, where, folders, **extra):
    place = {} if where is None else {"root": str(folders / where)}
    return build("data", {"kind": name, **options, **place, **extra}, DATA)


def rows(split):
    pixels = split.images.flatten(1).numpy()
    return {row.tobytes() for row in pixels}


def test_the_table_covers_every_data_set():
    covered = {row[0] for row in (*TABLE, *EVENTS)}
    assert covered == set(DATA) - {"imagenet"}  # that one: test_disk.py


@pytest.mark.parametrize(("name", "options", "where", "sizes", "shape", "classes"), TABLE)
def test_every_data_set(folders, name, options, where, sizes, shape, classes):
    found = loaded(name, options, where, folders)
    assert found.name == name
    assert tuple(found.sizes.values()) == sizes
    assert (found.channels, found.size) == (shape[0], (shape[1], shape[1]))
    assert len(found.classes) == classes
    assert found.licence
    assert len(found.mean) == len(found.std) == shape[0]
    splits = [split for split in (found.train, found.validation, found.test) if split is not None]
    for split in splits:
        assert split.images.dtype == torch.uint8
        assert split.images.shape[1:] == (shape[0], shape[1], shape[1])
        assert split.images.is_contiguous()
        assert split.labels.dtype == torch.int64
        assert split.labels.shape == (len(split),)
        assert 0 <= int(split.labels.min()) <= int(split.labels.max()) < classes

    again, other = (
        loaded(name, options, where, folders),
        loaded(name, options, where, folders, seed=5),
    )
    assert again.hashes == found.hashes
    assert other.hashes["test"] == found.hashes["test"]
    if found.validation is not None:
        assert set(found.hashes) == {"train", "validation", "test"}
        if name != "imagefolder":
            assert other.hashes["validation"] != found.hashes["validation"]
            assert not rows(found.train) & rows(found.validation)
        counts = torch.bincount(found.validation.labels, minlength=classes)
        everything = torch.bincount(
            torch.cat([found.train.labels, found.validation.labels]), minlength=classes
        )
        share = everything * len(found.validation) / int(everything.sum())
        assert float((counts - share).abs().max()) < 1
    assert torch.equal(copy.deepcopy(found).train.images, found.train.images)

    augment = [build("augment", spec, AUGMENTS) for spec in found.augment]
    images, labels = next(Batches(found.train, found, 8, augment).epoch(0))
    assert images.shape == (8, shape[0], shape[1], shape[1])
    assert images.dtype == torch.float32
    assert images.isfinite().all()
    assert labels.shape == (8,)


def test_held_out_part_keeps_the_labels_with_their_images():
    whole = data.digits(train=400, validation=0).train
    split = data.digits(train=400, validation=60, seed=3)
    by_pixels = {
        row.tobytes(): int(k) for row, k in zip(whole.images.numpy(), whole.labels, strict=True)
    }
    for part in (split.train, split.validation):
        for row, label in zip(part.images.numpy(), part.labels, strict=True):
            assert by_pixels[row.tobytes()] == int(label)


def test_the_part_held_out_by_default_follows_the_images_that_are_kept(tmp_path):
    """One in ten (of digits in five) of few images; as many as usual where none are named."""
    noise = np.random.default_rng(0)
    for part, count in (("train", 40), ("t10k", 10)):
        images = noise.integers(0, 256, (count, 28, 28)).astype(np.uint8)
        write_idx(tmp_path, "MNIST", part, images, np.arange(count) % 10)
    assert data.mnist(root=tmp_path, train=30).sizes == {"train": 27, "validation": 3, "test": 10}
    assert data.mnist(root=tmp_path, train=30, validation=0).sizes["train"] == 30
    with pytest.raises(UserError, match="validation=5000"):
        data.mnist(root=tmp_path)
    for train, held in ((400, 80), (1000, 80), (50, 10)):
        assert data.digits(train=train).sizes["validation"] == held
    usual = [held_out(None, train, 5000) for train in (None, 60_000, 20_000, 3)]
    assert usual == [5000, 5000, 2000, 1]


def test_statistics_by_hand():
    images = torch.randint(0, 256, (7, 3, 5, 4), dtype=torch.uint8)
    mean, std = data.channel_statistics(images)
    for channel in range(3):
        values = images[:, channel].double() / 255
        assert mean[channel] == pytest.approx(float(values.mean()), abs=1e-6)
        assert std[channel] == pytest.approx(float(values.std(correction=0)), abs=1e-6)


# ---------------------------------------------------------------- batches


@pytest.fixture(scope="module")
def digits():
    return data.digits()


def test_skipping_is_exact_and_everything_depends_on_seed_and_epoch_only(digits):
    augment = (data.Crop(1), data.Flip(), data.Cutout(3))
    batches = Batches(digits.train, digits, 48, augment, seed=4)
    whole = list(batches.epoch(2))
    assert len(whole) == len(batches) == 7
    for skip in (0, 3, 7):
        rest = list(Batches(digits.train, digits, 48, augment, seed=4).epoch(2, skip=skip))
        assert len(rest) == 7 - skip
        for (images, labels), (one, two) in zip(rest, whole[skip:], strict=True):
            assert torch.equal(images, one)
            assert torch.equal(labels, two)
    for other in (batches.epoch(3), Batches(digits.train, digits, 48, augment, seed=5).epoch(2)):
        assert not torch.equal(next(other)[0], whole[0][0])


def test_an_epoch_is_a_permutation_normalised(digits):
    batches = Batches(digits.train, digits, 50, seed=1)
    images = torch.cat([images for images, _ in batches.epoch(0)])
    labels = torch.cat([labels for _, labels in batches.epoch(0)])
    expected = (digits.train.images.double() / 255 - digits.mean[0]) / digits.std[0]
    order = images.flatten(1).double() @ torch.arange(1.0, 65.0, dtype=torch.float64)
    wanted = expected.flatten(1) @ torch.arange(1.0, 65.0, dtype=torch.float64)
    torch.testing.assert_close(order.sort().values, wanted.sort().values, atol=1e-3, rtol=0)
    assert torch.equal(labels.bincount(), digits.train.labels.bincount())
    ordered = Batches(digits.test, digits, 500, shuffle=False)
    images, labels = next(ordered.epoch(9))
    assert torch.equal(labels, digits.test.labels[:500])
    torch.testing.assert_close(images, data.normalise(digits.test.images[:500], digits))


def test_shards_together_are_the_batch_of_one_process(digits):
    augment = (data.Crop(1), data.Cutout(3))
    alone = Batches(digits.train, digits, 64, augment, seed=2)
    shards = [Batches(digits.train, digits, 64, augment, 2, shard=(rank, 2)) for rank in (0, 1)]
    for (images, labels), one, two in zip(
        alone.epoch(1), shards[0].epoch(1), shards[1].epoch(1), strict=True
    ):
        assert torch.equal(torch.stack([one[0], two[0]], 1).flatten(0, 1), images)
        assert torch.equal(torch.stack([one[1], two[1]], 1).flatten(), labels)


@pytest.mark.parametrize(
    ("count", "batch", "shuffle", "expected"),
    [(65, 32, True, 2), (65, 32, False, 3), (66, 32, True, 3), (1, 32, True, 1), (5, 1, True, 4)],
)
def test_a_lonely_last_image_is_dropped_in_training(digits, count, batch, shuffle, expected):
    part = digits.train.at(torch.arange(count))
    if batch == 1:
        expected = count
    batches = Batches(part, digits, batch, shuffle=shuffle)
    assert len(batches) == len(list(batches.epoch(0))) == expected


def test_an_epoch_of_sixty_thousand_takes_seconds(digits):
    images = torch.zeros(60_000, 1, 28, 28, dtype=torch.uint8)
    split = data.Split(images, torch.zeros(60_000, dtype=torch.int64))
    batches = Batches(split, digits, 128, (data.Crop(4), data.Flip()))
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        start = time.thread_time()
        assert sum(len(labels) for _, labels in batches.epoch(0)) == 60_000
        assert time.thread_time() - start < 5
    finally:
        torch.set_num_threads(threads)


# ---------------------------------------------------------------- augmentations

AUGMENTATIONS = [
    data.Crop(2),
    data.Flip(),
    data.Cutout(4),
    data.AutoAugment(),
    data.RandAugment(),
]


@pytest.mark.parametrize("augment", AUGMENTATIONS, ids=lambda one: type(one).__name__)
@pytest.mark.parametrize("channels", [1, 3])
def test_every_augmentation(augment, channels):
    images = torch.randint(0, 256, (16, channels, 12, 10), dtype=torch.uint8)
    untouched, state = images.clone(), torch.get_rng_state()
    first, second, other = (
        augment(images, torch.Generator().manual_seed(seed)) for seed in (1, 1, 2)
    )
    assert first.shape == images.shape
    assert first.dtype == torch.uint8
    assert torch.equal(first, second)
    assert not torch.equal(first, other)
    assert torch.equal(images, untouched)
    assert torch.equal(torch.get_rng_state(), state)


def test_crop_is_a_shift_with_black_border(generator):
    images = torch.randint(1, 256, (64, 2, 6, 5), dtype=torch.uint8)
    seen = set()
    for before, after in zip(images, data.Crop(2)(images, generator), strict=True):
        padded = torch.zeros(2, 10, 9, dtype=torch.uint8)
        padded[:, 2:8, 2:7] = before
        places = [
            (top, left)
            for top in range(5)
            for left in range(5)
            if torch.equal(padded[:, top : top + 6, left : left + 5], after)
        ]
        assert len(places) == 1
        seen.add(places[0])
    assert {0, 4} <= {top for top, _ in seen}
    assert {0, 4} <= {left for _, left in seen}


def test_flip_mirrors_about_half(generator):
    images = torch.randint(0, 256, (200, 3, 4, 5), dtype=torch.uint8)
    after = data.Flip()(images, generator)
    kept = (after == images).flatten(1).all(1)
    mirrored = (after == images.flip(3)).flatten(1).all(1)
    assert (kept | mirrored).all()
    assert 60 < int(mirrored.sum()) < 140


def test_cutout_covers_one_square_that_becomes_zero(generator):
    images = torch.zeros(50, 3, 9, 9, dtype=torch.uint8)
    after = data.Cutout(4, fill=(10, 20, 30))(images, generator)
    covered = after[:, 0] == 10
    for one, mask in zip(after, covered, strict=True):
        assert set(one[1].unique().tolist()) <= {0, 20}
        rows, columns = mask.any(1).sum(), mask.any(0).sum()
        assert int(mask.sum()) == int(rows * columns)
        assert 2 <= int(rows) <= 4
    assert (covered.sum((1, 2)) == 16).any()
    assert (covered.sum((1, 2)) < 16).any()

    grey = data.digits(train=64, validation=0)
    images, _ = next(Batches(grey.train, grey, 64, (data.Cutout(20),)).epoch(0))
    assert float(images.abs().max()) < 0.5 / 255 / grey.std[0] + 1e-6


def test_unknown_policy_names_the_known(generator):
    with pytest.raises(UserError, match="cifar10"):
        data.AutoAugment("cifar11")(torch.zeros(1, 3, 8, 8, dtype=torch.uint8), generator)


# ---------------------------------------------------------------- folders that are not right


def sentence(caught):
    text = str(caught.value)
    assert "\n" not in text
    assert text.endswith(".")
    assert not text.endswith("..")
    return text


@pytest.mark.parametrize("name", sorted({row[0] for row in TABLE} - {"digits"}))
def test_a_missing_folder(tmp_path, monkeypatch, name):
    monkeypatch.setenv("SPIKELET_DATA", str(tmp_path / "nowhere"))
    with pytest.raises(UserError) as caught:
        build("data", {"kind": name}, DATA)
    assert str(tmp_path / "nowhere") in sentence(caught)
    if name not in ("imagefolder", "tiny-imagenet"):
        assert "--download" in sentence(caught)


def test_a_partial_folder_names_what_is_missing(folders):
    (folders / "cifar-10-batches-py" / "data_batch_3").unlink()
    with pytest.raises(UserError, match="data_batch_3 of cifar-10-batches-py") as caught:
        data.cifar10(root=folders)
    assert str(folders) in sentence(caught)
    (folders / "MNIST" / "raw" / "t10k-labels-idx1-ubyte").unlink()
    with pytest.raises(UserError, match="t10k-labels-idx1-ubyte of MNIST/raw") as caught:
        data.mnist(root=folders)
    assert str(folders) in sentence(caught)


def shorten(path):
    path.write_bytes(path.read_bytes()[:-100])


@pytest.mark.parametrize(
    ("path", "load"),
    [
        ("cifar-10-batches-py/data_batch_2", "cifar10"),
        ("cifar-100-python/train", "cifar100"),
        ("cifar-100-python/meta", "cifar100"),
        ("MNIST/raw/train-images-idx3-ubyte", "mnist"),
        ("FashionMNIST/raw/t10k-images-idx3-ubyte", "fashion_mnist"),
    ],
)
def test_a_damaged_file(folders, path, load):
    shorten(folders / path)
    with pytest.raises(UserError, match="damaged") as caught:
        getattr(data, load)(root=folders, validation=5)
    assert str(folders) in sentence(caught)


def test_labels_beyond_the_classes(folders):
    images = np.zeros((20, 28, 28), np.uint8)
    write_idx(folders, "MNIST", "t10k", images, np.full(20, 11))
    with pytest.raises(UserError, match="label 11") as caught:
        data.mnist(root=folders, validation=5)
    sentence(caught)


def test_a_batch_file_cannot_run_code(folders):
    class Evil:
        def __reduce__(self):
            return (exec, (f"open({str(folders / 'ran')!r}, 'w')",))

    (folders / "cifar-10-batches-py" / "data_batch_1").write_bytes(pickle.dumps(Evil(), 2))
    with pytest.raises(UserError, match="refused to load"):
        data.cifar10(root=folders)
    assert not (folders / "ran").exists()


def test_a_refused_download(tmp_path, monkeypatch):
    from spikelet.vision import torchvision

    def refuse(*_, **__):
        raise OSError("<urlopen error no route to host>\nand more")

    for name in ("CIFAR10", "CIFAR100", "MNIST", "FashionMNIST"):
        monkeypatch.setattr(getattr(torchvision().datasets, name), "download", refuse)
    for load in (data.cifar10, data.cifar100, data.mnist, data.fashion_mnist):
        with pytest.raises(UserError, match="no route to host") as caught:
            load(root=tmp_path / "new", download=True)
        assert str(tmp_path / "new") in sentence(caught)


def test_download_is_not_asked_when_the_files_are_there(folders, monkeypatch):
    from spikelet.vision import torchvision

    monkeypatch.setattr(torchvision().datasets.CIFAR10, "download", None)
    assert len(data.cifar10(root=folders, validation=5, download=True).test) == 9


def test_incomplete_test_batch_is_said_and_can_be_refused(folders):
    assert (
        data.cifar10(root=folders, validation=5).notes == "test: first 9 of the 10000 test images"
    )
    with pytest.raises(UserError, match="holds 9 of the 10000") as caught:
        data.cifar10(root=folders, validation=5, test="official")
    sentence(caught)
    with pytest.raises(UserError, match="test_batch_jpeg") as caught:
        data.cifar10(root=folders, validation=5, test="jpeg")
    sentence(caught)
    with pytest.raises(UserError, match="batch5"):
        loaded("cifar10", {"protocol": "batch6"}, "", folders)
    inside = data.cifar10(root=folders / "cifar-10-batches-py", validation=5)
    assert inside.hashes == data.cifar10(root=folders, validation=5).hashes


@pytest.mark.parametrize("count", [-1, 60, 61])
def test_held_out_part_must_leave_something(folders, count):
    with pytest.raises(UserError, match=f"validation={count}") as caught:
        data.mnist(root=folders, validation=count)
    assert "between 1 and 59" in sentence(caught)
    with pytest.raises(UserError, match="train=1797"):
        data.digits(train=1797)


# ---------------------------------------------------------------- folders of images


def test_one_class_is_none(tmp_path):
    (tmp_path / "only").mkdir()
    with pytest.raises(UserError, match="one class alone, only; put images of two or more"):
        data.imagefolder(root=tmp_path)
    (tmp_path / "only/red").mkdir()
    with pytest.raises(UserError, match="only if its folders are the classes"):
        data.imagefolder(root=tmp_path)


def test_labels_colours_and_crop_of_a_folder(tmp_path):
    found = data.imagefolder(root=write_folder(tmp_path), size=8)
    assert found.classes == ("blue", "green", "red")
    for image, label in zip(found.test.images, found.test.labels, strict=True):
        wanted = torch.tensor(COLOURS[found.classes[label]], dtype=torch.uint8)
        assert torch.equal(image, wanted[:, None, None].expand(3, 8, 8))


def test_orientation_and_middle_of_an_image(tmp_path):
    write_folder(tmp_path)
    pixels = np.zeros((8, 16, 3), np.uint8)
    pixels[:4, 4:8], pixels[:, :4], pixels[:, 12:] = 255, 90, 90
    Image.fromarray(pixels).save(tmp_path / "test" / "blue" / "0.png")
    image = data.imagefolder(root=tmp_path, size=8).test.images[0, 0]
    assert (image[:4, :4] == 255).all()
    assert (image[4:] == 0).all()
    assert (image[:, 4:] == 0).all()


@pytest.mark.parametrize(
    ("parts", "options", "sizes", "notes"),
    [
        (("train", "test"), {}, (27, 3, 30), ""),
        (("train", "val"), {}, (27, 3, 30), "test: the val folder"),
        (("train", "val", "test"), {}, (30, 30, 30), ""),
        (("train", "val", "test"), {"validation": 6}, (24, 6, 30), ""),
        (("",), {}, (22, 2, 6), "test: 6 images drawn from the folder"),
        (("train", "test"), {"train": 20}, (18, 2, 30), ""),
        (("Train", "TEST"), {}, (27, 3, 30), ""),
        (("Train", "Val"), {}, (27, 3, 30), "test: the Val folder"),
    ],
)
def test_layouts_of_a_folder(tmp_path, parts, options, sizes, notes):
    found = data.imagefolder(root=write_folder(tmp_path, parts), size=8, **options)
    assert tuple(found.sizes.values()) == sizes
    assert found.notes == notes


def test_the_stored_orientation_of_a_photograph_is_obeyed(tmp_path):
    write_folder(tmp_path)
    pixels = np.zeros((16, 16, 3), np.uint8)
    pixels[:, :8] = 255
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(pixels).save(tmp_path / "test" / "blue" / "0.png", exif=exif)
    image = data.imagefolder(root=tmp_path, size=16).test.images[0, 0]
    assert (image[:8] == 255).all()
    assert (image[8:] == 0).all()


def test_grey_and_transparent_images_are_read(tmp_path):
    write_folder(tmp_path)
    Image.new("L", (9, 9), 7).save(tmp_path / "train" / "red" / "grey.png")
    Image.new("RGBA", (9, 9), (1, 2, 3, 4)).save(tmp_path / "train" / "red" / "clear.png")
    Image.new("P", (9, 9)).save(tmp_path / "train" / "red" / "palette.png")
    (tmp_path / "train" / "red" / "notes.txt").write_text("not an image")
    assert data.imagefolder(root=tmp_path, size=8, validation=0).sizes["train"] == 33


@pytest.mark.parametrize("mode", ["RGBA", "LA", "P", "RGB"])
def test_what_is_transparent_is_white(tmp_path, mode):
    write_folder(tmp_path)
    alpha = np.zeros((8, 8), np.uint8)
    alpha[:, :4] = 255  # a black shape on what cannot be seen, black as well
    image = Image.fromarray(np.dstack([np.zeros((8, 8, 3), np.uint8), alpha]))
    more = {}
    if mode in ("P", "RGB"):
        image, more = Image.fromarray(alpha // 255), {"transparency": 0}
        image.putpalette([0] * 768)
    if mode == "RGB":
        image, more = Image.fromarray(np.dstack([alpha] * 3)), {"transparency": (0, 0, 0)}
    image = image.convert(mode) if mode == "LA" else image
    image.save(tmp_path / "test" / "blue" / "0.png", **more)
    found = data.imagefolder(root=tmp_path, size=8).test.images[0]
    assert (found[:, :, 4:] == 255).all()
    assert (found[:, :, :4] == (255 if mode == "RGB" else 0)).all()


def test_hidden_files_are_no_images(tmp_path):
    write_folder(tmp_path)
    seen = data.imagefolder(root=tmp_path, size=8).sizes
    (tmp_path / "train/red/.ipynb_checkpoints").mkdir()
    for name in (".ipynb_checkpoints/0-checkpoint.png", "._0.png"):
        shutil.copy(tmp_path / "train/red/0.png", tmp_path / "train/red" / name)
    assert data.imagefolder(root=tmp_path, size=8).sizes == seen


def test_folders_of_images_that_are_not_right(tmp_path):
    def refused(message, path, **options):
        with pytest.raises(UserError, match=message) as caught:
            data.imagefolder(root=tmp_path / path, **{"size": 8, **options})
        return sentence(caught)

    (tmp_path / "empty").mkdir()
    assert str(tmp_path / "empty") in refused("no class folders", "empty")
    write_folder(tmp_path / "hollow")
    shutil.rmtree(tmp_path / "hollow/train/red")
    (tmp_path / "hollow/train/red").mkdir()
    assert str(tmp_path / "hollow/train/red") in refused("no images", "hollow")
    write_folder(tmp_path / "broken")
    shorten(tmp_path / "broken/test/green/3.png")
    (tmp_path / "broken/test/green/3.png").write_bytes(b"\x89PNG not really")
    assert str(tmp_path / "broken/test/green/3.png") in refused("cannot be read", "broken")
    for number in (4, 5):
        (tmp_path / f"broken/test/green/{number}.png").write_bytes(b"")
    said = refused("3 of 30 images cannot be read", "broken")
    assert "green`: 3 of" in said and "3.png, 4.png, 5.png" in said
    for number in (3, 4, 5):
        deep = Image.new("I", (9, 9), 70_000)
        deep.save(tmp_path / f"broken/test/green/{number}.tif")
        (tmp_path / f"broken/test/green/{number}.png").unlink()
    said = refused("the range of its pixels is not known", "broken")
    assert "3.tif, 4.tif, 5.tif" in said and "store it with 8 or 16 bits" in said
    write_folder(tmp_path / "alone", ("train",))
    refused("neither `test` nor `val`", "alone")
    write_folder(tmp_path / "strange")
    (tmp_path / "strange/test/violet").mkdir()
    refused("class folders violet", "strange")
    refused("cannot be fetched", "strange", download=True)
    refused("grey or RGB", "strange", channels=4)
    refused("one pixel", "strange", size=0)


# ---------------------------------------------------------------- Tiny-ImageNet


@pytest.mark.parametrize("official", [True, False])
def test_tiny_imagenet_file_by_file(tmp_path, official):
    """Every image with the label of its sorted WordNet number, in the order of the file names."""
    folder = write_tiny(tmp_path / "tiny-imagenet", official)
    found = data.tiny_imagenet(root=tmp_path, validation=0)
    assert found.classes == ("goldfish", "crane (n02000000)", "crane (n03000000)")
    number = {wnid: label for label, wnid in enumerate(sorted(TINY))}

    def check(split, files):
        for image, label, (wnid, file) in zip(split.images, split.labels, files, strict=True):
            pixels = np.asarray(Image.open(file).convert("RGB"))
            assert torch.equal(image, torch.tensor(pixels).permute(2, 0, 1))
            assert int(label) == number[wnid]

    check(
        found.train, [(n, f) for n in number for f in sorted((folder / "train" / n).rglob("*_*"))]
    )
    if official:
        rows = [row.split("\t") for row in (folder / "val/val_annotations.txt").open()]
        check(found.test, sorted((row[1], folder / "val/images" / row[0]) for row in rows))
    else:
        check(found.test, [(n, f) for n in number for f in sorted((folder / "val" / n).iterdir())])
    assert (found.mean, found.std) == data.channel_statistics(found.train.images)
    wanted = "test: the official validation part; 3 of the 200 classes; "
    wanted += "train: 10 to 10 of 500 images per class; test: 4 to 4 of 50 images per class"
    assert found.notes == wanted
    assert [spec.get("padding") for spec in found.augment] == [8, None]


def test_tiny_imagenet_of_fewer_classes_takes_their_test_images_only(tmp_path):
    folder = write_tiny(tmp_path / "tiny-imagenet")
    shutil.rmtree(folder / "train" / "n02000000")
    (folder / "wnids.txt").unlink()
    (folder / "words.txt").unlink()
    found = data.tiny_imagenet(root=tmp_path)
    assert found.classes == ("n01000000", "n03000000")
    assert found.test.labels.tolist() == [0] * 4 + [1] * 4
    assert data.tiny_imagenet(root=tmp_path).hashes == found.hashes


def remove(path):
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink()


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda f: remove(f / "val"), "a `train` folder but no `val`"),
        (lambda f: remove(f / "train"), "no tiny-imagenet-200"),
        (lambda f: remove(f / "train/n02000000"), "1 classes of wnids.txt .*n02000000"),
        (lambda f: [remove(f / "train" / n) for n in TINY], "no class folders such as n01443537"),
        (lambda f: remove(f / "train/n02000000/images"), r"classes without images \(n02000000\)"),
        (lambda f: remove(f / "val/images/val_4.JPEG"), r"1 images .* missing \(val_4.JPEG\)"),
        (lambda f: remove(f / "val/val_annotations.txt"), "3 classes without images"),
        (lambda f: (f / "val/val_annotations.txt").write_text("val_0.JPEG\n"), "damaged"),
        (lambda f: (f / "val/val_annotations.txt").write_bytes(b"\xff\xfe\xfa"), "cannot be read"),
        (lambda f: shorten(f / "train/n02000000/images/n02000000_3.JPEG"), "_3.JPEG.*cannot be"),
        (lambda f: (f / "val/images/val_5.JPEG").write_bytes(b""), "val_5.JPEG.*cannot be read"),
    ],
)
def test_tiny_imagenet_that_is_not_whole(tmp_path, spoil, message):
    spoil(write_tiny(tmp_path / "tiny-imagenet"))
    with pytest.raises(UserError, match=message) as caught:
        data.tiny_imagenet(root=tmp_path)
    assert str(tmp_path) in sentence(caught)


def test_tiny_imagenet_is_not_fetched(tmp_path):
    with pytest.raises(UserError, match=r"download=True.*tiny-imagenet-200\.zip") as caught:
        data.tiny_imagenet(root=tmp_path, download=True)
    sentence(caught)
    with pytest.raises(UserError, match="size=0"):
        data.tiny_imagenet(root=tmp_path, size=0)


def test_many_files_are_decoded_in_their_order(tmp_path):
    colours = torch.randint(0, 256, (150, 3), dtype=torch.uint8)
    files = [tmp_path / f"{number}.png" for number in range(len(colours))]
    for file, colour in zip(files, colours.tolist(), strict=True):
        Image.new("RGB", (9, 9), tuple(colour)).save(file)
    assert torch.equal(decode(files, 9, 3), colours[:, :, None, None].expand(-1, -1, 9, 9))
    for number in (140, 70):
        files[number].write_bytes(b"not an image")
    with pytest.raises(UserError, match=r"70\.png"):
        decode(files, 9, 3)


# ---------------------------------------------------------------- real data


def need(data_root, name):
    if not (data_root / name).is_dir():
        pytest.skip(f"no {name} in {data_root}")


def test_real_cifar10(data_root):
    need(data_root, "cifar-10-batches-py")
    found = data.cifar10(root=data_root)
    assert (found.sizes["train"], found.sizes["validation"]) == (45_000, 5_000)
    assert found.train.labels.bincount().tolist() == [4500] * 10
    assert found.sizes["test"] == 10_000 or "first 1017" in found.notes
    assert [found.classes[k] for k in found.test.labels[:4]] == ["cat", "ship", "ship", "airplane"]
    mean, std = data.channel_statistics(found.train.images)
    assert mean == pytest.approx(found.mean, abs=2e-3)
    assert std == pytest.approx(found.std, abs=2e-3)


@pytest.mark.parametrize(
    ("name", "folder"), [("mnist", "MNIST"), ("fashion_mnist", "FashionMNIST")]
)
def test_real_grey_images(data_root, name, folder):
    need(data_root, folder)
    found = getattr(data, name)(root=data_root)
    assert tuple(found.sizes.values()) == (55_000, 5_000, 10_000)
    expected = {"mnist": (0.1307, 0.3081), "fashion_mnist": (0.2860, 0.3530)}[name]
    assert (found.mean[0], found.std[0]) == pytest.approx(expected, abs=5e-4)


def test_real_tiny_imagenet(data_root, tmp_path):
    """Three real classes, in the layout they lie in; all of them take seconds to decode."""
    name = next((n for n in FOLDERS if (data_root / n).is_dir()), FOLDERS[0])
    need(data_root, name)
    wnids = sorted(p.name for p in (data_root / name / "train").iterdir() if p.is_dir())
    for wnid in wnids[:3]:
        (tmp_path / name / "train").mkdir(parents=True, exist_ok=True)
        (tmp_path / name / "train" / wnid).symlink_to(data_root / name / "train" / wnid)
    for path in (data_root / name).iterdir():
        if path.name not in ("train", "wnids.txt"):
            (tmp_path / name / path.name).symlink_to(path)
    found = data.tiny_imagenet(root=tmp_path)
    assert tuple(found.sizes.values()) == (1350, 150, 150)
    assert found.train.labels.bincount().tolist() == [450] * 3
    assert found.test.labels.bincount().tolist() == [50] * 3
    assert found.classes[0] == "goldfish"
    assert found.notes == "test: the official validation part; 3 of the 200 classes"
    assert found.mean == pytest.approx((0.48, 0.45, 0.40), abs=0.08)
    assert found.std == pytest.approx((0.28, 0.27, 0.28), abs=0.05)


def test_smaller_cifar_averages_pixels(tmp_path):
    write_cifar(tmp_path)
    options = {"root": tmp_path, "protocol": "batch5", "validation": 20}
    whole, half = data.cifar10(**options), data.cifar10(size=16, **options)
    assert half.size == (16, 16) and half.sizes == whole.sizes
    assert torch.equal(half.train.labels, whole.train.labels)
    assert half.augment == ({"kind": "crop", "padding": 2}, {"kind": "flip"})
    assert whole.augment == ({"kind": "crop", "padding": 4}, {"kind": "flip"})
    image, small = whole.test.images[3].numpy().astype(float), half.test.images[3].numpy()
    for row, column in ((0, 0), (5, 9), (15, 15)):
        covered = image[:, 2 * row : 2 * row + 2, 2 * column : 2 * column + 2]
        expected = covered.reshape(3, 4).mean(1)
        assert abs(small[:, row, column] - expected).max() <= 0.5
    for size in (0, 33):
        with pytest.raises(UserError, match="size"):
            data.cifar10(size=size, **options)
