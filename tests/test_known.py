"""What a run knew, its classes and the statistics of its images, held against other data."""

from __future__ import annotations

import dataclasses
import io
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console

from spikelet.cli import measure
from spikelet.cli.arguments import parse
from spikelet.data import Dataset, normalise
from spikelet.data.dataset import fingerprint
from spikelet.errors import UserError
from spikelet.examine.subject import subject
from spikelet.recipe import Recipe, Training, default_recipe
from spikelet.train import load, read_json, write_json
from spikelet.train.job import distill, load_data, teach
from spikelet.train.known import another, other_test_part, require_classes, seen_otherwise
from spikelet.train.load import Loaded

DATA = {"kind": "digits", "train": 100, "validation": 20}
ONE = Training(epochs=1, batch=50)
SMALL = {"kind": "small-cnn", "width": 2}


@pytest.fixture(scope="module")
def dataset() -> Dataset:
    return load_data(default_recipe("teach", DATA))


@pytest.fixture(scope="module")
def taught(tmp_path_factory: pytest.TempPathFactory, dataset: Dataset) -> Path:
    out = tmp_path_factory.mktemp("runs") / "teacher"
    mine = default_recipe("teach", DATA, model=SMALL, training=ONE)
    teach(mine, out, console=Console(quiet=True), device="cpu", dataset=dataset)
    return out


def student(taught: Path, **more: Any) -> Recipe:
    fields = {"teacher": {"run": str(taught)}, "training": ONE, "steps": 1} | more
    return default_recipe("distill", DATA, "none", **fields)


def said(mine: Recipe, out: Path, dataset: Dataset) -> str:
    text = io.StringIO()
    distill(mine, out, console=Console(file=text, width=1000), device="cpu", dataset=dataset)
    return text.getvalue()


def test_classes_of_other_names_or_order_are_refused(
    taught: Path, tmp_path: Path, dataset: Dataset
) -> None:
    """Answers of one would be counted as those of the other, and no number would say so."""
    names = list(dataset.classes)
    for others in ([names[1], names[0], *names[2:]], [*names[1:], "ten"]):
        other = dataclasses.replace(dataset, classes=tuple(others))
        place = next(i for i, (a, b) in enumerate(zip(names, others, strict=True)) if a != b)
        with pytest.raises(UserError, match=rf"class {place} is .{names[place]}., in the data"):
            said(student(taught), tmp_path / "o", other)
        with pytest.raises(UserError, match=rf"ann = {taught}"):
            require_classes(taught, other, "ann")
    assert not (tmp_path / "o").exists() or not any((tmp_path / "o").iterdir())
    require_classes(taught, dataset)
    require_classes(tmp_path, dataset)  # of weights without a card nothing is known


def test_images_of_other_statistics_are_told(
    taught: Path, tmp_path: Path, dataset: Dataset
) -> None:
    assert seen_otherwise(taught, dataset) is None
    assert "trained on images of mean" not in said(student(taught), tmp_path / "same", dataset)
    mean, std = dataset.mean[0], dataset.std[0]
    near = dataclasses.replace(dataset, mean=(mean + 0.05 * std,), std=(1.05 * std,))
    assert seen_otherwise(taught, near) is None
    for far in ({"mean": (mean - 0.2 * std,)}, {"std": (1.2 * std,)}, {"std": (0.8 * std,)}):
        other = dataclasses.replace(dataset, **far)
        told = seen_otherwise(taught, other)
        assert told is not None
        assert f"{mean:.3g}" in told
        assert f"{(other.mean if 'mean' in far else other.std)[0]:.3g}" in told
    assert told in said(student(taught), tmp_path / "other", other)


def test_a_card_without_statistics_says_nothing(tmp_path: Path, dataset: Dataset) -> None:
    for known in ({}, {"mean": "x", "std": None}, {"mean": [0.1, 0.2], "std": [1.0]}):
        write_json(tmp_path / "card.json", {"schema": 1, "data": known})
        assert seen_otherwise(tmp_path, dataset) is None
        require_classes(tmp_path, dataset)


def test_conversion_beside_students_from_scratch_is_the_teachers(
    taught: Path, tmp_path: Path, dataset: Dataset
) -> None:
    """What is stored answers as its row says; it had been a network with fresh weights."""
    other = {"kind": "small-cnn", "width": 3}
    for name, more in (("own", {}), ("other", {"model": other})):
        mine = dataclasses.replace(student(taught, start="scratch", steps=2, **more))
        mine = dataclasses.replace(mine, method="convert")
        out = tmp_path / name
        found = distill(mine, out, console=Console(quiet=True), device="cpu", dataset=dataset)
        wanted = {row["steps"]: row["accuracy"] for row in found["rows"]}[2]
        images = normalise(dataset.test.images, dataset)
        answers = load(out).predict(images, steps=2).argmax(1)
        assert float((answers == dataset.test.labels).double().mean()) == pytest.approx(wanted)
    assert read_json(out / "results.json")["rows"][-1]["method"] == "convert"


def test_a_test_part_that_has_changed_is_told(
    taught: Path, tmp_path: Path, dataset: Dataset
) -> None:
    """What is split by number is split anew where an image comes or goes."""
    assert other_test_part(taught, dataset) is None
    few = dataset.test.at(torch.arange(len(dataset.test) - 1))
    fewer = dataclasses.replace(
        dataset, test=few, hashes={**dataset.hashes, "test": fingerprint(few)}
    )
    told = other_test_part(taught, fewer)
    assert told is not None and str(taught) in told
    assert told in said(student(taught), tmp_path / "other", fewer)
    assert "others than those of the run" not in said(student(taught), tmp_path / "same", dataset)
    assert other_test_part(taught, dataclasses.replace(fewer, name="another")) is None
    other = {**dataset.hashes, "train": "another seed's", "validation": "another seed's"}
    assert other_test_part(taught, dataclasses.replace(dataset, hashes=other)) is None


def test_measuring_looks_at_classes_and_the_test_part(
    taught: Path, tmp_path: Path, dataset: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    names = list(dataset.classes)
    swapped = dataclasses.replace(dataset, classes=(names[1], names[0], *names[2:]))
    with pytest.raises(UserError, match=r"run = .*class 0 is '0', in the data digits it is '1'"):
        subject(load(taught), swapped)
    fewer = dataclasses.replace(dataset, hashes={**dataset.hashes, "test": "another"})
    found = {}
    for name, data in (("same", dataset), ("fewer", fewer)):
        text = io.StringIO()
        monkeypatch.setattr(Loaded, "dataset", lambda self, data=data: data)
        words = ["measure", str(taught), "steps", "--images", "20"]
        measure.run(parse("measure", words[1:]), Console(file=text, width=1000))
        found[name] = text.getvalue()
    assert "note: the test images of digits are others" in found["fewer"]
    assert "note:" not in found["same"]


def test_what_is_frozen_in_the_teacher_trains_and_that_is_told(
    taught: Path, dataset: Dataset
) -> None:
    known = load(taught)
    assert another(known, dataset) == []
    weights = list(known.net.parameters())
    weights[0].requires_grad_(False)
    assert another(known, dataset) == [
        "1 weights that are frozen in the teacher train in the student"
    ]
    known.net.requires_grad_(False)
    assert another(known, dataset) == [], "a network that is frozen whole was made to answer"
