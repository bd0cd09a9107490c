"""Images on the disk: decoded as they are needed, alike for any number of loaders and processes."""

from __future__ import annotations

import dataclasses
import os
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from rich.console import Console

from many import terms
from spikelet import data
from spikelet.data import Batches, Dataset, Flip, ResizedCrop
from spikelet.data.disk import AHEAD, OnDisk, decoded, loaders
from spikelet.distill import Distiller
from spikelet.encode import Direct
from spikelet.errors import UserError
from spikelet.execute import ann
from spikelet.models import small_cnn
from spikelet.recipe import Training, default_recipe
from spikelet.train import fit, load
from spikelet.train.job import distill, load_data, teach
from spikelet.train.log import waiting_warnings
from spikelet.train.prepare import calibration

CLASSES, EACH, HELD = ("n01", "n02", "n03"), 12, 4
AUGMENT = (ResizedCrop(), Flip())
QUIET = Console(quiet=True)


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Noise in ImageNet's layout: JPEG of several sizes, one of them grey, one PNG."""
    folder, noise = tmp_path_factory.mktemp("imagenet"), np.random.default_rng(0)
    for label, name in enumerate(CLASSES):
        for part, count in (("train", EACH), ("val", HELD)):
            place = folder / part / name
            place.mkdir(parents=True)
            for number in range(count):
                coarse = noise.integers(0, 256, (4, 5, 3), np.uint8)
                image = Image.fromarray(coarse).resize((40 + 3 * number, 50 - label), 2)
                image = image.convert("L") if number == 1 else image
                image.save(place / f"{name}_{number}.{'png' if number == 2 else 'JPEG'}")
    return folder


def dataset(root: Path, **options: object) -> Dataset:
    return data.imagenet(**{"root": root, "size": 16, "workers": 0, **options})


def test_what_is_found(root: Path) -> None:
    found = dataset(root, seed=1)
    assert found.sizes == {"train": 33, "validation": 3, "test": 12}
    assert (found.classes, found.channels, found.size) == (CLASSES, 3, (16, 16))
    assert found.frames is None
    assert torch.equal(found.test.labels, torch.arange(3).repeat_interleave(HELD))
    assert dataset(root, seed=1).hashes == found.hashes
    assert dataset(root, seed=2).hashes["validation"] != found.hashes["validation"]
    names = [set(split.images.names.tolist()) for split in (found.train, found.validation)]
    assert not names[0] & names[1]


def test_files_behave_as_the_tensor_of_their_images(root: Path) -> None:
    images = dataset(root).test.images
    assert isinstance(images, OnDisk)
    each = [decoded(images.path(name), 16, images.middle) for name in images.names]
    whole = torch.stack(each)
    assert images.shape == whole.shape
    assert (images.ndim, len(images)) == (4, 12)
    for index in (3, slice(2, 7), torch.tensor([5, 0, 5]), slice(0, 0)):
        assert torch.equal(images[index], whole[index])
    index = torch.tensor([4, 1])
    assert torch.equal(images.part(index)[:], whole[index])
    split = dataset(root).test.at(index)
    assert isinstance(split.images, OnDisk)
    assert torch.equal(split.images[:], whole[index])


def test_the_middle_is_cropped_and_resized(root: Path) -> None:
    """By hand with Pillow, of a file that is not decoded at a fraction of its size."""
    images = dataset(root, crop=0.5).test.images
    path = root / "val" / "n01" / "n01_3.JPEG"
    with Image.open(path) as opened:
        width, height = opened.size
        side = 0.5 * min(width, height)
        box = ((width - side) / 2, (height - side) / 2, (width + side) / 2, (height + side) / 2)
        expected = opened.resize((16, 16), Image.Resampling.BILINEAR, box=box)
    assert torch.equal(images[3].permute(1, 2, 0), torch.from_numpy(np.array(expected)))


def test_a_large_file_is_decoded_smaller_and_looks_the_same(tmp_path: Path) -> None:
    noise = np.random.default_rng(1).integers(0, 256, (6, 8, 3), np.uint8)
    large = Image.fromarray(noise).resize((800, 600), Image.Resampling.BICUBIC)
    large.save(tmp_path / "a.jpg", quality=95)
    part = (100.0, 50.0, 700.0, 550.0)
    ours = decoded(tmp_path / "a.jpg", 32, lambda width, height: part).float()
    whole = np.array(large.resize((32, 32), Image.Resampling.BILINEAR, box=part))
    assert float((ours - torch.from_numpy(whole).permute(2, 0, 1)).abs().mean()) < 2


@pytest.mark.parametrize("workers", [1, 2])
def test_any_number_of_loaders_gives_the_same(root: Path, workers: int) -> None:
    plain, other = dataset(root), dataset(root, workers=workers)
    ours = list(Batches(plain.train, plain, 8, AUGMENT, seed=4).epoch(2))
    theirs = Batches(other.train, other, 8, AUGMENT, seed=4)
    for (x, y), (u, v) in zip(ours, theirs.epoch(2), strict=True):
        assert torch.equal(x, u)
        assert torch.equal(y, v)
    for (x, _), (u, _) in zip(ours[3:], theirs.epoch(2, skip=3), strict=True):
        assert torch.equal(x, u)


@dataclasses.dataclass(frozen=True)
class Marked:
    """Changes nothing; writes down which process has prepared an image."""

    place: Path

    def __call__(self, images: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
        with self.place.open("a") as file:
            file.write(f"{os.getpid()}\n")
        return images


def prepared(place: Path, least: int = 0) -> list[str]:
    """The processes that have prepared images by now; waits for so many of these."""
    until = time.monotonic() + 60
    while True:
        found = place.read_text().split() if place.exists() else []
        if len(found) >= least or time.monotonic() > until:
            return found
        time.sleep(0.02)


def test_images_are_decoded_while_a_step_is_taken(root: Path, tmp_path: Path) -> None:
    """Nobody asks for another batch meanwhile, and yet other processes prepare some: not all."""
    batch, place = 1, tmp_path / "marks"
    found = dataset(root, workers=2)
    batches = Batches(found.train, found, batch, (Marked(place),)).epoch(0)
    taken = [next(batches)]
    ahead = AHEAD * 2 * batch
    assert len(prepared(place, ahead)) >= ahead, "nothing is decoded ahead"
    time.sleep(0.3)
    own = prepared(place)
    assert len(own) <= ahead + 2 * batch, "memory would fill"
    assert len(set(own)) == 2 and str(os.getpid()) not in own
    taken += [next(batches) for _ in range(5)]
    assert len(prepared(place, ahead + 5)) >= ahead + 5
    assert len(taken) + len(list(batches)) == len(found.train)


def test_without_loaders_images_wait_for_the_step(root: Path, tmp_path: Path) -> None:
    found = dataset(root, workers=0)
    batches = Batches(found.train, found, 3, (Marked(tmp_path / "marks"),)).epoch(0)
    next(batches)
    assert prepared(tmp_path / "marks") == [str(os.getpid())] * 3


@dataclasses.dataclass(frozen=True)
class Sleepy:
    """Takes its time for each image."""

    seconds: float

    def __call__(self, images: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
        time.sleep(self.seconds)
        return images


def test_a_step_does_not_wait_for_what_two_loaders_can_decode_meanwhile(root: Path) -> None:
    """Steps of 0.15 s, images of 0.12 s for each: waiting would be all of these."""
    found = dataset(root, workers=2)
    batches = Batches(found.train, found, 6, (Sleepy(0.12 / 6),)).epoch(0)
    next(batches)  # the loaders have started
    waited = 0.0
    for _ in range(5):
        time.sleep(0.15)
        begin = time.monotonic()
        next(batches)
        waited += time.monotonic() - begin
    assert waited < 5 * 0.12 / 2


def test_waiting_for_images_is_measured(root: Path) -> None:
    found = dataset(root, workers=0)
    images = data.normalise(found.test.images[:2], found)
    net = Distiller(
        small_cnn(3, 3, width=2), terms={"ce": terms("none")["ce"]}, execute=ann, encode=Direct(1),
        example=images,
    )  # fmt: skip
    batches = Batches(found.train, found, 11, (Sleepy(0.005),))
    (row,) = fit(net, batches, training=Training(epochs=1), console=QUIET)
    assert len(found.train) * 0.005 <= row["seconds_waiting"] < row["seconds"]


@pytest.mark.parametrize("count", [2, 3])
def test_processes_decode_what_one_would(root: Path, count: int) -> None:
    found = dataset(root)
    whole = list(Batches(found.train, found, 9, AUGMENT, seed=1).epoch(1))
    parts = [
        list(Batches(found.train, found, 9, AUGMENT, seed=1, shard=(r, count)).epoch(1))
        for r in range(count)
    ]
    for index in range(len(parts[0])):
        for number, part in enumerate(parts):
            x, y = part[index]
            assert torch.equal(x, whole[index][0][number::count])
            assert torch.equal(y, whole[index][1][number::count])


def test_an_image_is_changed_anew_each_epoch(root: Path) -> None:
    found = dataset(root)
    batches = Batches(found.train, found, 33, AUGMENT, seed=1)
    (a, y), (b, z) = (next(iter(batches.epoch(epoch))) for epoch in (0, 1))
    a, b = a[y.argsort(stable=True)], b[z.argsort(stable=True)]
    assert not torch.equal(a, b)
    plain = Batches(found.test, found, 12, shuffle=False)
    (x, _), (again, _) = (next(iter(plain.epoch(epoch))) for epoch in (0, 1))
    assert torch.equal(x, again)
    assert torch.equal(x, data.normalise(found.test.images[:], found))


def test_random_parts_lie_inside_and_have_the_sizes_asked_for() -> None:
    crop, generator = ResizedCrop(smallest=0.3, aspect=1.5), torch.Generator().manual_seed(0)
    for width, height in ((60, 60), (50, 80), (400, 10)):
        boxes = torch.tensor([crop.box(width, height, generator) for _ in range(400)])
        left, top, right, bottom = boxes.unbind(1)
        assert bool((left >= 0).all() and (top >= 0).all())
        assert bool((right <= width).all() and (bottom <= height).all())
        share = (right - left) * (bottom - top) / (width * height)
        ratio = (right - left) / (bottom - top)
        if width < 400:  # else ten draws may all stick out
            assert float(share.min()) >= 0.27 and float(share.max()) <= 1
        assert float(ratio.min()) >= 1 / 1.6 and float(ratio.max()) <= 1.6
    images = torch.randint(0, 256, (3, 2, 9, 7), dtype=torch.uint8)
    one, two = (crop(images, torch.Generator().manual_seed(3)) for _ in range(2))
    assert one.shape == images.shape
    assert one.dtype == torch.uint8
    assert torch.equal(one, two)
    flat = torch.full((2, 3, 8, 8), 77, dtype=torch.uint8)
    assert torch.equal(crop(flat, generator), flat)


@pytest.mark.parametrize("workers", [0, 1])
def test_a_damaged_file_is_named(root: Path, tmp_path: Path, workers: int) -> None:
    import shutil

    shutil.copytree(root, tmp_path / "data")
    bad = tmp_path / "data" / "train" / "n02" / "n02_5.JPEG"
    bad.write_bytes(b"\xff\xd8 no image")
    found = dataset(tmp_path / "data", workers=workers, validation=0)
    with pytest.raises(UserError, match=r"n02_5\.JPEG.*cannot be read"):
        list(Batches(found.train, found, 8, AUGMENT).epoch(0))
    with pytest.raises(UserError, match=r"n02_5\.JPEG.*cannot be read"):
        found.train.images[:]


def test_damaged_files_of_a_batch_are_counted(root: Path, tmp_path: Path) -> None:
    import shutil

    shutil.copytree(root, tmp_path / "data")
    for number in (3, 5, 7):
        (tmp_path / "data" / "train" / "n01" / f"n01_{number}.JPEG").unlink()
        (tmp_path / "data" / "train" / "n01" / f"n01_{number}.JPEG").touch()
    found = dataset(tmp_path / "data", validation=0)
    with pytest.raises(UserError, match="3 images of one batch cannot be read") as told:
        next(Batches(found.train, found, 36, AUGMENT).epoch(0))
    assert all(f"n01_{number}.JPEG" in told.value.fix for number in (3, 5, 7))


def test_folders_that_are_not_right(root: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no `train` and `val` folders"):
        dataset(tmp_path)
    for part in ("train/a", "train/b", "val/a", "val/c"):
        (tmp_path / part).mkdir(parents=True)
        Image.new("RGB", (9, 9)).save(tmp_path / part / "0.png")
    with pytest.raises(UserError, match="class folders c are not among the training classes"):
        dataset(tmp_path)
    (tmp_path / "val" / "c" / "0.png").unlink()
    (tmp_path / "val" / "c").rename(tmp_path / "val" / "b")
    with pytest.raises(UserError, match=r"val/b.*no images found"):
        dataset(tmp_path)
    for wrong in ({"size": 0}, {"crop": 1.5}, {"workers": -1}):
        with pytest.raises(UserError, match=next(iter(wrong))):
            dataset(root, **wrong)


def test_loaders_share_the_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.sched_getaffinity", lambda _: range(12), raising=False)
    assert loaders() == 12
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "4")
    assert loaders() == 3
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "40")
    assert loaders() == 1


def test_waiting_is_told() -> None:
    assert waiting_warnings({"seconds": 100.0, "seconds_waiting": 5.0}) == []
    assert waiting_warnings({"seconds": 2.0, "seconds_waiting": 1.0}) == []
    (told,) = waiting_warnings({"seconds": 100.0, "seconds_waiting": 30.0})
    assert "30 %" in told


def test_a_whole_run_on_the_disk(root: Path, tmp_path: Path) -> None:
    """teach and distil, through every place that looks at images."""
    spec = {"kind": "imagenet", "root": str(root), "size": 16, "validation": 6, "workers": 0}
    training = Training(epochs=1, batch=15)
    model = {"kind": "small-cnn", "width": 4}
    made = default_recipe("teach", spec, model=model, training=training)
    teach(made, tmp_path / "teacher", console=QUIET, device="cpu")
    recipe = default_recipe(
        "distill", spec, "hybrid", teacher={"run": str(tmp_path / "teacher")}, training=training,
        steps=2, calibrate=8, estimate=8, execute={"kind": "rate"},
    )  # fmt: skip
    rows = distill(recipe, tmp_path / "student", console=QUIET, device="cpu")["rows"]
    assert {row["method"] for row in rows} == {"teacher", "convert", "hybrid"}
    found = load_data(recipe)
    images = calibration(found, 4, 0, torch.device("cpu"))
    assert load(tmp_path / "student").predict(images).shape == (4, 3)


def test_published_hyper_parameters() -> None:
    """On 8 processes: 512 images a step at a rate of 0.2, 100 epochs; teachers 256 at 0.1, 90."""
    student = default_recipe("distill", {"kind": "imagenet"}).training
    taught = default_recipe("teach", {"kind": "imagenet"}).training
    for training, images, rate, epochs, decay in (
        (student, 512, 0.2, 100, 2e-5), (taught, 256, 0.1, 90, 1e-4),
    ):  # fmt: skip
        eight = Training(**{**vars(training), "processes": 8})
        assert eight.batch * 8 == images
        assert eight.peak == pytest.approx(rate)
        assert (eight.epochs, eight.weight_decay, eight.optimiser) == (epochs, decay, "sgd")


def test_a_run_on_the_disk_resumes_within_an_epoch(root: Path, tmp_path: Path) -> None:
    found = dataset(root, workers=1)

    def learner() -> Distiller:
        torch.manual_seed(0)
        return Distiller(
            small_cnn(3, 3, width=2), terms={"ce": terms("none")["ce"]},
            execute=ann, encode=Direct(1),
            example=data.normalise(found.test.images[:2], found),
        )  # fmt: skip

    def states(name: str, stops: tuple[int, ...]) -> dict[str, torch.Tensor]:
        for number, stop in enumerate((*stops, None)):
            whole = learner()
            fit(
                whole, Batches(found.train, found, 8, AUGMENT), training=Training(epochs=2),
                run=tmp_path / name, resume=number > 0, stop_after=stop, console=QUIET,
            )  # fmt: skip
        return whole.state_dict()

    one, two = states("one", ()), states("two", (3, 2))
    assert all(torch.equal(one[name], two[name]) for name in one)
