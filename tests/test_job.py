"""Whole runs on digits: what a recipe's fields do to them."""

from __future__ import annotations

import copy
import dataclasses
import io
import itertools
import json
import math
import resource
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from rich.console import Console
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from spikelet.checkpoint import load_weights
from spikelet.data import Dataset, Split, normalise
from spikelet.encode import Poisson
from spikelet.errors import UserError
from spikelet.execute import bptt, rate
from spikelet.heap import RESET
from spikelet.measure import answers_over_steps, evaluating
from spikelet.norm import estimate_norms
from spikelet.quantise import quantised
from spikelet.recipe import Recipe, Training, default_recipe
from spikelet.train import load, loop, prepare, read_json, running
from spikelet.train.job import distill, load_data, teach
from spikelet.train.load import teacher
from spikelet.train.place import place_of
from spikelet.train.prepare import (
    ESTIMATING,
    calibration,
    estimated,
    make_student,
    training_batches,
)
from spikelet.train.rows import LEARNED, apart, control_rows, evaluation
from spikelet.train.running import WORTH, encoder, encoding, measurer, that_fit
from spikelet.train.told import untaught

DATA = {"kind": "digits", "train": 200, "validation": 40}
QUIET = Console(quiet=True)


def recipe(method: str = "none", **fields: Any) -> Recipe:
    training = Training(epochs=2, batch=50, optimiser="adamw", learning_rate=2e-3, clip=1.0)
    return default_recipe("distill", DATA, method, **({"training": training, "steps": 2} | fields))


@pytest.fixture(scope="module")
def dataset() -> Dataset:
    return load_data(recipe())


@pytest.fixture(scope="module")
def taught(tmp_path_factory: pytest.TempPathFactory, dataset: Dataset) -> Path:
    out = tmp_path_factory.mktemp("runs") / "teacher"
    training = Training(epochs=8, batch=50, learning_rate=0.1, clip=1.0)
    model = {"kind": "small-cnn", "width": 4}
    teach(
        default_recipe("teach", DATA, model=model, training=training),
        out, console=QUIET, device="cpu", dataset=dataset,
    )  # fmt: skip
    return out


def run(taught: Path, out: Path, dataset: Dataset, mine: Recipe, **more: Any) -> dict[str, Any]:
    mine = dataclasses.replace(mine, teacher={"run": str(taught)})
    return distill(mine, out, console=QUIET, device="cpu", dataset=dataset, **more)


def test_statistics_are_those_of_the_final_weights(
    taught: Path, tmp_path: Path, dataset: Dataset
) -> None:
    """Estimating again, by the slow executor, changes nothing."""
    run(taught, tmp_path / "run", dataset, recipe(estimate=100))
    net = load(tmp_path / "run").net
    before = copy.deepcopy(net.state_dict())
    drawn = training_batches(recipe(), dataset, torch.device("cpu")).epoch(ESTIMATING)
    images = [torch.cat([x for x, _ in drawn][:2])]
    estimate_norms(net, images, lambda n, x: bptt(n, x.expand(2, *x.shape)))
    for name, value in net.state_dict().items():
        torch.testing.assert_close(value, before[name], rtol=1e-4, atol=1e-5, msg=name)


def test_where_there_is_no_room_statistics_are_those_of_one_batch(
    taught: Path, tmp_path: Path, dataset: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(running, "ROOM", 1)
    run(taught, tmp_path / "run", dataset, recipe(estimate=100))
    net = load(tmp_path / "run").net
    before = copy.deepcopy(net.state_dict())
    images, _ = next(training_batches(recipe(), dataset, torch.device("cpu")).epoch(ESTIMATING))
    estimate_norms(net, [images], lambda n, x: bptt(n, x.expand(2, *x.shape)))
    for name, value in net.state_dict().items():
        torch.testing.assert_close(value, before[name], rtol=1e-4, atol=1e-5, msg=name)


def test_without_estimate_statistics_are_the_running_average(
    taught: Path, tmp_path: Path, dataset: Dataset
) -> None:
    for images in (0, 100):
        run(taught, tmp_path / str(images), dataset, recipe(estimate=images))
    nets = [load(tmp_path / str(images)).net for images in (0, 100)]
    for ours, theirs in zip(nets[0].parameters(), nets[1].parameters(), strict=True):
        assert torch.equal(ours, theirs)  # what is estimated does not reach the training
    norms = [[m for m in net.modules() if isinstance(m, _BatchNorm)] for net in nets]
    for ours, theirs in zip(*norms, strict=True):
        assert not torch.equal(ours.running_mean, theirs.running_mean)


def test_conversions_beside_many_steps() -> None:
    assert apart(4) == [1, 2, 3, 4]
    assert apart(12) == [*range(1, 9), 12]
    assert apart(32) == [*range(1, 9), 16, 32]


@pytest.mark.parametrize(("worth", "expected"), [(2**26, [False, True]), (1, [True, True])])
def test_little_is_not_compiled_for_another_number_of_steps(
    taught: Path,
    tmp_path: Path,
    dataset: Dataset,
    monkeypatch: pytest.MonkeyPatch,
    worth: int,
    expected: list[bool],
) -> None:
    asked: list[bool] = []
    monkeypatch.setattr(running, "WORTH", worth)
    monkeypatch.setattr(running, "spiking_runner", lambda _, fuse: (asked.append(fuse), bptt)[1])
    made = run(taught, tmp_path / "run", dataset, recipe("convert"))["rows"]
    assert [each["steps"] for each in made] == [None, 1, 2] and asked == expected


@pytest.mark.parametrize("kind", ["rate", "bptt"])
def test_few_images_are_not_worth_compiling(taught: Path, dataset: Dataset, kind: str) -> None:
    mine = recipe(execute={"kind": kind, "fuse": True})
    images = calibration(dataset, 64, 0, torch.device("cpu"))
    student, _ = make_student(mine, dataset, load(taught), images)
    few, many, again = (
        measurer(mine, student, images[:1], 2, *more) for more in ((1,), (WORTH,), (1, True))
    )
    assert few is bptt and many.keywords == again.keywords == {"fuse": True}
    answers = [answers_over_steps(student, images, [2], way)[2] for way in (few, many)]
    torch.testing.assert_close(*answers, rtol=1e-4, atol=1e-4)


def test_seconds_leave_compilation_out(
    taught: Path, tmp_path: Path, dataset: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    spent = itertools.count()
    monkeypatch.setattr(loop, "seconds_compiling", lambda: next(spent) * 1e-4)
    row = run(taught, tmp_path / "run", dataset, recipe("logits"))["rows"][-1]
    lines = (tmp_path / "run/metrics.jsonl").read_text().splitlines()
    epochs = [json.loads(line) for line in lines]
    assert all(each["seconds_compiling"] > 0 for each in epochs)
    own = sum(each["seconds"] - each["seconds_compiling"] for each in epochs)
    assert row["seconds"] == pytest.approx(own, abs=1e-6)


def test_rows(taught: Path, tmp_path: Path, dataset: Dataset) -> None:
    rows = run(taught, tmp_path / "run", dataset, recipe("logits"))["rows"]
    names = [(row["method"], row["steps"]) for row in rows]
    untrained = [("convert", 1), ("convert", 2)]
    assert names == [("teacher", None), *untrained, ("logits", 1), ("logits", 2)]
    assert rows[0]["kind"] == "ann" and not any("note" in row for row in rows)
    last = rows[-1]
    assert last["seconds"] > 0
    assert last["ann_epochs"] > 0 and last["macs"] > 0
    assert "accuracy_teacher" not in last
    assert last["peak_mib"] > 0
    assert 0 < last["rate"] < 1
    assert 0 <= last["accuracy_validation"] <= 1


@pytest.mark.parametrize("method", ["none", "convert", "qann"])
def test_rows_without_controls(method: str, taught: Path, tmp_path: Path, dataset: Dataset) -> None:
    whole = run(taught, tmp_path / "whole", dataset, recipe(method))["rows"]
    alone = run(taught, tmp_path / "alone", dataset, recipe(method), controls=False)["rows"]
    steps = [2] if method == "qann" else [1, 2]
    assert [(row["method"], row["steps"]) for row in alone] == [(method, t) for t in steps]
    accuracy = {(row["method"], row["steps"]): row["accuracy"] for row in whole}
    assert alone[-1]["accuracy"] == accuracy[method, 2]
    assert (alone[-1]["rate"] is None) == (method == "qann")


def test_a_quantised_network_is_measured_quantised(
    taught: Path, tmp_path: Path, dataset: Dataset
) -> None:
    rows = run(taught, tmp_path / "run", dataset, recipe("qann"))["rows"]
    loaded = load(tmp_path / "run")
    images = calibration(dataset, 30, 1, torch.device("cpu"))
    quantised, spiking = loaded.predict(images), bptt(loaded.net, images.expand(2, *images.shape))
    assert not torch.allclose(quantised, spiking.mean_logits)
    assert rows[-1]["steps"] == 2
    stored = (tmp_path / "run/metrics.jsonl").read_text().splitlines()
    epochs = [json.loads(line) for line in stored]
    assert epochs and {epoch["rate"] for epoch in epochs} == {None}  # nothing that fires


def test_a_spiking_teacher_needs_a_student_of_its_own(
    taught: Path, tmp_path: Path, dataset: Dataset
) -> None:
    """Spiking teacher -> smaller spiking student, by `distilling-spikes`."""
    run(taught, tmp_path / "assistant", dataset, recipe())
    with pytest.raises(UserError, match="architecture of its own"):
        run(tmp_path / "assistant", tmp_path / "no", dataset, recipe("distilling-spikes"))
    mine = recipe("distilling-spikes", model={"kind": "small-cnn", "width": 2})
    rows = run(tmp_path / "assistant", tmp_path / "run", dataset, mine)["rows"]
    assert [(row["method"], row["steps"]) for row in rows] == [
        ("teacher", None),
        ("convert", 1),
        ("convert", 2),
        ("distilling-spikes", 1),
        ("distilling-spikes", 2),
    ]
    assert rows[0]["kind"] == "snn, T = 2" and "note" not in rows[0]
    assistant = load(tmp_path / "assistant").recipe
    assert assistant.method == "none"


def test_a_joint_teacher_learns(taught: Path, tmp_path: Path, dataset: Dataset) -> None:
    rows = run(taught, tmp_path / "run", dataset, recipe("logits", joint=True))["rows"]
    before, after = load(taught).net, load(tmp_path / "run")
    kept = teacher(after).net.state_dict()
    changed = [n for n, v in before.state_dict().items() if not torch.equal(v, kept[n])]
    assert any(name.endswith("weight") for name in changed)
    both = [accuracy_of(net, dataset) for net in (before, teacher(after).net)]
    assert (rows[0]["accuracy"], rows[-1]["accuracy_teacher"]) == tuple(both)
    assert both[0] != both[1]
    assert rows[0]["note"] == "given, before joint training"
    images = calibration(dataset, 32, 0, torch.device("cpu"))
    found = control_rows(after.recipe, dataset, teacher(after), [2], images, LEARNED)
    assert [(row["method"], row.get("note")) for row in found] == [
        ("teacher", "after joint training"),
        ("convert", "of the teacher after joint training"),
    ]
    assert found[0]["accuracy"] == both[1]


def accuracy_of(net: torch.nn.Module, dataset: Dataset) -> float:
    """The share of test images that an ANN answers correctly, in one batch."""
    images, labels = normalise(dataset.test.images, dataset), dataset.test.labels
    with torch.no_grad():
        return float((net(images).argmax(1) == labels).double().mean())


@pytest.mark.parametrize("kind", ["poisson", "latency"])
def test_encoders_of_a_recipe(kind: str, taught: Path, tmp_path: Path, dataset: Dataset) -> None:
    mine = recipe("logits", encode={"kind": kind}, execute={"kind": "rate"})
    rows = run(taught, tmp_path / "run", dataset, mine)["rows"]
    assert len(rows) == 5
    loaded = load(tmp_path / "run")
    images = calibration(dataset, 20, 1, torch.device("cpu"))
    x = encoding(mine, dataset.mean, dataset.std, 2)(images)
    assert x.shape == (2, *images.shape)
    torch.testing.assert_close(loaded.predict(images), bptt(loaded.net, x).mean_logits)


def test_an_encoder_is_told_how_images_were_normalised(dataset: Dataset) -> None:
    mine = recipe(encode={"kind": "poisson", "normalised": True})
    made = encoding(mine, dataset.mean, dataset.std, 400)
    assert isinstance(made, Poisson)
    assert (made.steps, made.mean) == (400, dataset.mean)
    images = calibration(dataset, 8, 1, torch.device("cpu"))
    mean = encoder(mine, dataset.mean, dataset.std)(images, 400).mean(0)
    assert (mean - images).abs().mean() < 0.1


def test_no_graph_without_a_gpu(taught: Path, tmp_path: Path, dataset: Dataset) -> None:
    mine = recipe(training=Training(epochs=1, batch=50, graph=True))
    with pytest.raises(UserError, match="no CUDA GPU"):
        run(taught, tmp_path / "run", dataset, mine)


def test_a_finished_run_without_weights_is_resumed(
    taught: Path, tmp_path: Path, dataset: Dataset
) -> None:
    out = tmp_path / "run"
    run(taught, out, dataset, recipe())
    (out / "model.safetensors").unlink()
    run(taught, out, dataset, recipe(), resume=True)
    assert load(out).kind == "student"


def told(taught: Path, out: Path, dataset: Dataset, mine: Recipe) -> str:
    """What a run says while it is made."""
    said = io.StringIO()
    mine = dataclasses.replace(mine, teacher={"run": str(taught)})
    distill(mine, out, console=Console(file=said, width=1000), device="cpu", dataset=dataset)
    return said.getvalue()


def test_a_class_without_test_images_is_told(
    taught: Path, tmp_path: Path, dataset: Dataset
) -> None:
    assert "no test image" not in told(taught, tmp_path / "a", dataset, recipe())
    kept = dataset.test.labels != 7
    test = Split(dataset.test.images[kept], dataset.test.labels[kept])
    some = dataclasses.replace(dataset, test=test)
    said = told(taught, tmp_path / "b", some, recipe())
    assert f"no test image is of {dataset.classes[7]}: accuracy says" in said


def test_a_student_without_spikes_or_with_late_ones_is_told(
    taught: Path, tmp_path: Path, dataset: Dataset
) -> None:
    levels, late = {"kind": "quantised"}, {"kind": "IF", "delay": 1}
    plain = told(taught, tmp_path / "a", dataset, recipe(execute=levels))
    assert "this student has no spikes" in plain and "--neuron.delay 1" in plain
    mine = recipe(execute=levels, neuron=late)
    said = told(taught, tmp_path / "b", dataset, mine)
    assert "has no spikes" not in said and "trained to answer at T = 2" in said
    mine = dataclasses.replace(mine, encode={"kind": "mixed"})
    assert "begin late" not in told(taught, tmp_path / "c", dataset, mine)
    assert "no spikes" not in told(taught, tmp_path / "d", dataset, recipe("qann"))
    mine = recipe(execute=levels, neuron=late | {"delay": 7})
    said = told(taught, tmp_path / "e", dataset, mine)
    assert "--neuron.delay 7 at T = 2 is a delay of 1" in said


class Branches(nn.Module):
    """Two convolutions side by side: nothing in between through which everything flows."""

    def __init__(self, classes: int, channels: int) -> None:
        super().__init__()
        self.one, self.two = nn.Conv2d(channels, 4, 3), nn.Conv2d(channels, 4, 5, padding=1)
        self.out = nn.Linear(8, classes)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        parts = [torch.relu(self.one(x)).mean((2, 3)), torch.relu(self.two(x)).mean((2, 3))]
        return self.out(torch.cat(parts, 1))


def test_the_default_does_without_features_where_no_stages_match(
    tmp_path: Path, dataset: Dataset
) -> None:
    training = Training(epochs=1, batch=50, learning_rate=0.1)
    mine = default_recipe("teach", DATA, model={"kind": "test_job:Branches"}, training=training)
    teach(mine, tmp_path / "teacher", console=QUIET, device="cpu", dataset=dataset)
    said = told(tmp_path / "teacher", tmp_path / "run", dataset, recipe("fading"))
    assert "no stage of the student matches one of the teacher's, so feature counts nothing" in said
    rows = read_json(tmp_path / "run/results.json")["rows"]
    assert {row["method"] for row in rows} == {"teacher", "convert", "fading"}
    with pytest.raises(UserError, match=r"feature.on = 'all'.*or choose a method without features"):
        told(tmp_path / "teacher", tmp_path / "no", dataset, recipe("kdsnn-feature"))


def curved(classes: int, channels: int) -> nn.Module:
    """A classifier that has no conversion."""
    return nn.Sequential(
        nn.Conv2d(channels, 4, 3), nn.GELU(), nn.Flatten(), nn.Linear(144, classes)
    )


def test_a_teacher_without_a_conversion_teaches_another_student(
    tmp_path: Path, dataset: Dataset
) -> None:
    training = Training(epochs=1, batch=50, learning_rate=0.1)
    mine = default_recipe("teach", DATA, model={"kind": "test_job:curved"}, training=training)
    said = io.StringIO()
    console = Console(file=said, width=1000)
    teach(mine, tmp_path / "teacher", console=console, device="cpu", dataset=dataset)
    assert "not its own: 1 place " in said.getvalue().split("epoch 1")[0]
    with pytest.raises(UserError, match="another architecture"):
        told(tmp_path / "teacher", tmp_path / "no", dataset, recipe("fading"))
    other = recipe("fading", model={"kind": "small-cnn", "width": 4}, start="scratch")
    assert "feature counts nothing" in told(tmp_path / "teacher", tmp_path / "run", dataset, other)
    rows = read_json(tmp_path / "run/results.json")["rows"]
    assert [row["method"] for row in rows] == ["teacher", "fading", "fading"]


def test_a_training_that_spoils_the_conversion_is_told(
    taught: Path, tmp_path: Path, dataset: Dataset
) -> None:
    """At a rate far too high it ends where it would by guessing."""
    training = Training(epochs=1, batch=50, optimiser="sgd", learning_rate=100.0)
    spoilt = told(taught, tmp_path / "a", dataset, recipe(training=training))
    assert "its conversion without training" in spoilt and "--learning-rate" in spoilt
    training = dataclasses.replace(training, learning_rate=1e-9)
    mine = recipe(training=training, norm="settled")
    assert "its conversion" not in told(taught, tmp_path / "b", dataset, mine)


@pytest.mark.parametrize("execute", ["rate", "quantised"])
def test_norms_settle_where_training_would_spoil_the_conversion(
    taught: Path, tmp_path: Path, dataset: Dataset, monkeypatch: pytest.MonkeyPatch, execute: str
) -> None:
    """Told what is spoilt, it keeps the converted function in training, or goes by the batch."""
    mine = recipe(execute={"kind": execute}, teacher={"run": str(taught)}, estimate=300)
    teacher, images = load(taught), calibration(dataset, 300, 0, torch.device("cpu"))
    start, _ = make_student(dataclasses.replace(mine, norm="train"), dataset, teacher, images)
    x = images[:100].expand(2, *images[:100].shape)
    run = quantised if execute == "quantised" else rate
    values = dict(start.eval().state_dict())
    for spoilt, norm in ((math.inf, "train"), (0.0, "settled")):
        monkeypatch.setattr(prepare, "SPOILT", spoilt)
        student, description = make_student(mine, dataset, teacher, images)
        assert description["norm"] == norm
        same = all(torch.equal(value, values[n]) for n, value in student.state_dict().items())
        assert same == (norm == "train")
        expected = run(start, x).mean_logits
        torch.testing.assert_close(run(student.eval(), x).mean_logits, expected, atol=1e-4, rtol=0)
        estimated(mine, dataset, student)(training_batches(mine, dataset, torch.device("cpu")))
        gap = (run(student.eval(), x).mean_logits - expected).abs().mean()
        assert gap < 2e-3 if norm == "settled" else gap > 2e-2
    scratch = dataclasses.replace(mine, start="scratch")
    assert make_student(scratch, dataset, teacher, images)[1]["norm"] == "train"


def test_a_teacher_that_guesses_is_told(tmp_path: Path, dataset: Dataset) -> None:
    said = io.StringIO()
    training = Training(epochs=1, batch=50, learning_rate=1e-6)
    model = {"kind": "small-cnn", "width": 2}
    teach(
        default_recipe("teach", DATA, model=model, training=training),
        tmp_path / "run", console=Console(file=said), device="cpu", dataset=dataset,
    )  # fmt: skip
    row = json.loads((tmp_path / "run" / "results.json").read_text())["rows"][0]
    guessed = row["accuracy"] < 1.5 / len(dataset.classes)
    assert ("train it longer" in said.getvalue()) == guessed
    assert guessed


def test_the_teacher_of_a_run_is_not_looked_at_again(
    taught: Path, tmp_path: Path, dataset: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It was measured when it was trained; one that is no run is, and is told at chance."""
    looked: list[object] = []

    def guessing(*given: object) -> float:
        looked.append(given)
        return 0.1

    monkeypatch.setattr("spikelet.train.told.accuracy", guessing)
    said = io.StringIO()
    place = place_of(tmp_path / "run", False, "cpu", Console(file=said, width=1000))
    known = load(taught)
    others = dataclasses.replace(dataset, hashes={**dataset.hashes, "train": "of others"})
    for data in (dataset, others):  # another seed holds other images out of training
        untaught(known, data, place)
    assert not looked and not said.getvalue()
    mine = dataclasses.replace(recipe(), teacher={"kind": "resnet20"})
    untaught(dataclasses.replace(known, recipe=mine), dataset, place)
    assert len(looked) == 1
    assert "the teacher resnet20 answers 10.0%" in said.getvalue()
    assert "--weights FILE" in said.getvalue()


def test_a_current_learned_for_each_step_is_stored(
    taught: Path, tmp_path: Path, dataset: Dataset
) -> None:
    neuron = {"kind": "IF", "step_bias": True, "dither": 0.125}
    run(taught, tmp_path / "run", dataset, recipe(execute={"kind": "bptt"}, neuron=neuron))
    made, weights = load(tmp_path / "run"), load_weights(tmp_path / "run" / "model.safetensors")
    biases = {name: value for name, value in weights.items() if name.endswith(".step_biases")}
    assert len(biases) == 3 and all(len(b) == 2 and bool(b.ne(0).all()) for b in biases.values())
    assert all(torch.equal(made.net.get_parameter(name), b) for name, b in biases.items())


def test_layers_that_begin_late_spike_as_the_levels_they_were_trained_by(
    taught: Path, tmp_path: Path, dataset: Dataset
) -> None:
    """Trained with quantised activations, measured with spikes: the same answers."""
    by_levels = {"kind": "quantised"}
    neuron = {"kind": "IF", "delay": 1, "dither": 0.125}
    found = run(taught, tmp_path / "late", dataset, recipe(execute=by_levels, neuron=neuron))
    plain = run(taught, tmp_path / "levels", dataset, recipe("qann"))
    mine, rival = (
        {row["steps"]: row for row in each["rows"] if row["method"] in ("none", "qann")}
        for each in (found, plain)
    )
    assert set(mine) == {1, 2} and set(rival) == {2}  # spikes for any number of steps
    untrained = run(taught, tmp_path / "untrained", dataset, recipe("convert"))
    first, second = (
        [row["accuracy"] for row in each["rows"] if row["method"] == "convert"]
        for each in (untrained, plain)
    )
    assert first == second and len(first) == 2  # a rival without spikes changes no control
    assert 0 < mine[2]["rate"] < 1 and rival[2]["rate"] is None
    made = load(tmp_path / "late")
    x = normalise(dataset.test.images[:50], dataset)
    with evaluating(made.net):
        levels = quantised(made.net, x.expand(2, *x.shape)).mean_logits
    torch.testing.assert_close(made.predict(x), levels, rtol=1e-4, atol=1e-4)
    few, many = (measurer(made.recipe, made.net, x[:1], 2, count) for count in (50, WORTH))
    assert few is bptt and many.func is rate and many.keywords == {"fuse": True}
    slow, fast = (answers_over_steps(made.net, x, [1, 2], way) for way in (few, many))
    for t in (1, 2):
        torch.testing.assert_close(fast[t], slow[t], rtol=1e-4, atol=1e-4)
    for strange in (dataset.test.images[:5], x.double(), x.numpy()):
        with pytest.raises(UserError, match="expected normalised images"):
            made.predict(strange)
    for strange in (x[0], x[..., 1:], x.repeat(1, 3, 1, 1)):
        with pytest.raises(UserError, match=r"expected a batch of images \(1, 8, 8\)"):
            made.predict(strange)


@pytest.mark.parametrize(("channels", "told_so"), [(3, True), (1, False)])
def test_grey_images_in_three_channels_are_told(
    tmp_path: Path, channels: int, told_so: bool
) -> None:
    for number in range(20):
        folder = tmp_path / "data" / f"class{number % 2}"
        folder.mkdir(parents=True, exist_ok=True)
        Image.new("L", (8, 8), 10 * number).save(folder / f"{number}.png")
    spec = {"kind": "imagefolder", "root": str(tmp_path / "data"), "size": 8, "channels": channels}
    training, model = Training(epochs=1, batch=8), {"kind": "small-cnn", "width": 4}
    mine, said = default_recipe("teach", spec, model=model, training=training), io.StringIO()
    teach(mine, tmp_path / "run", console=Console(file=said, width=300), device="cpu")
    assert ("--data.channels 1" in said.getvalue()) == told_so


class Changed(nn.Module):
    """A network that torch cannot train: it overwrites what its gradient needs, or has none."""

    def __init__(self, detach: bool) -> None:
        super().__init__()
        self.conv, self.detach = nn.Conv2d(1, 4, 3), detach

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = torch.relu(self.conv(x))
        return (y.detach() if self.detach else y.mul_(0.5)).mean((2, 3))


@pytest.mark.parametrize("detach", [True, False])
def test_a_network_without_a_gradient_is_refused(detach: bool) -> None:
    with pytest.raises(UserError, match="its gradient cannot be taken"):
        prepare.require_logits(Changed(detach), torch.rand(2, 1, 8, 8))


class Aided(Branches):
    """A network with another output while it trains."""

    def forward(self, x: torch.Tensor) -> Any:
        logits = super().forward(x)
        return (logits, logits) if self.training else logits


def test_more_outputs_in_training_are_refused_before_the_run(
    tmp_path: Path, dataset: Dataset
) -> None:
    mine = default_recipe("teach", DATA, model={"kind": "test_job:Aided"})
    with pytest.raises(UserError, match="its forward gave tuple, expected logits"):
        teach(mine, tmp_path / "run", console=QUIET, device="cpu", dataset=dataset)
    assert not (tmp_path / "run").exists()


def test_calibration_takes_as_many_images_as_there_is_room_for(
    taught: Path, dataset: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Room is that of the largest tensor of one pass; two images are always taken."""
    net = load(taught).net
    images = calibration(dataset, 60, 0, torch.device("cpu"))
    largest = 4 * 8 * 8  # a feature map of the first stage
    assert len(that_fit(net, images, 4)) == len(images)
    monkeypatch.setattr(running, "ROOM", 20 * largest * 4 + 3)
    assert [len(that_fit(net, images, t)) for t in (1, 2, 4, 8)] == [60, 40, 20, 10]
    monkeypatch.setattr(running, "ROOM", 1)
    assert torch.equal(that_fit(net, images, 4), images[:2])
    assert len(that_fit(nn.Sequential(nn.GELU(), nn.Flatten()), images, 4)) == 60, "no conversion"
    mine = dataclasses.replace(recipe(), teacher={"run": str(taught)})
    few, many = (
        make_student(mine, dataset, load(taught), each)[0] for each in (images[:2], images)
    )
    for name, value in few.state_dict().items():
        torch.testing.assert_close(many.state_dict()[name], value, msg=name)


def test_large_images_are_answered_in_smaller_batches(dataset: Dataset) -> None:
    for side, wanted in ((8, 250), (64, 250), (128, 62), (224, 20), (1024, 1)):
        shape = (1, dataset.channels, side, side)
        images = torch.zeros(shape, dtype=torch.uint8).expand(300, -1, -1, -1)
        part = Split(images, torch.zeros(300).long())
        large = dataclasses.replace(dataset, train=part)
        batches = evaluation(part, large, torch.device("cpu"))
        assert len(next(batches)[1]) == wanted


@pytest.mark.skipif(not RESET.exists(), reason="only Linux counts a process's peak anew")
def test_the_peak_is_that_of_training(taught: Path, tmp_path: Path, dataset: Dataset) -> None:
    """What came before, as calibration on many images, is no part of it."""
    before = torch.ones(2**28)  # 1 GiB
    del before
    highest = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10
    peak = run(taught, tmp_path / "run", dataset, recipe("logits"))["rows"][-1]["peak_mib"]
    assert 0 < peak < highest - 512
    held = torch.ones(2**28)
    more = run(taught, tmp_path / "other", dataset, recipe("logits"))["rows"][-1]["peak_mib"]
    assert more > peak + 512
    assert len(held)
