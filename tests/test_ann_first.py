"""A student of another architecture begins as an ANN, trained first and then converted."""

from __future__ import annotations

import dataclasses
import html
import io
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console
from torch import nn

from spikelet.cli import main
from spikelet.cli.again import command_of
from spikelet.cli.distill import recipe_of
from spikelet.convert import convert
from spikelet.data import Dataset
from spikelet.errors import UserError
from spikelet.measure import accuracy, accuracy_over_steps
from spikelet.neuron import Neuron
from spikelet.recipe import (
    NEURONS,
    Recipe,
    Training,
    ann_training,
    build,
    completed,
    default_recipe,
)
from spikelet.train import job, load, read_json, read_recipe
from spikelet.train.interrupt import Interrupted, resume_line
from spikelet.train.load import begun_as
from spikelet.train.place import Place
from spikelet.train.prepare import ann_recipe, calibration, make_student, require_ann
from spikelet.train.rows import evaluation
from spikelet.train.running import encoder
from spikelet.train.told import cramped, outgrown

DATA = {"kind": "digits", "train": 200, "validation": 40}
QUIET = Console(quiet=True)
CPU = torch.device("cpu")
FAST = Training(epochs=2, batch=50, optimiser="adamw", learning_rate=5e-3, clip=1.0)
OTHER = {"kind": "small-cnn", "width": 6}
LONGER = dataclasses.replace(FAST, epochs=20, learning_rate=2e-2)


def recipe(method: str = "logits", **fields: Any) -> Recipe:
    values = {"training": FAST, "ann": FAST, "steps": 2, "model": OTHER, "calibrate": 64}
    return default_recipe("distill", DATA, method, **(values | fields))


@pytest.fixture(scope="module")
def dataset() -> Dataset:
    return job.load_data(recipe())


@pytest.fixture(scope="module")
def taught(tmp_path_factory: pytest.TempPathFactory, dataset: Dataset) -> Path:
    out = tmp_path_factory.mktemp("runs") / "teacher"
    training = Training(epochs=8, batch=50, learning_rate=0.1, clip=1.0)
    mine = default_recipe("teach", DATA, model={"kind": "small-cnn", "width": 4}, training=training)
    job.teach(mine, out, console=QUIET, device="cpu", dataset=dataset)
    return out


def run(taught: Path, out: Path, dataset: Dataset, mine: Recipe, **more: Any) -> dict[str, Any]:
    mine = dataclasses.replace(mine, teacher={"run": str(taught)})
    return job.distill(mine, out, console=QUIET, device="cpu", dataset=dataset, **more)


def by_method(rows: list[dict[str, Any]], method: str) -> dict[int | None, dict[str, Any]]:
    return {row["steps"]: row for row in rows if row["method"] == method}


def test_the_student_begins_as_the_conversion_of_its_own_ann(
    taught: Path, tmp_path: Path, dataset: Dataset
) -> None:
    """Without an epoch of its own it answers as that conversion does, to the image."""
    untrained = dataclasses.replace(FAST, epochs=0)
    mine = recipe(training=untrained, ann=LONGER, norm="train", estimate=0)
    rows = run(taught, tmp_path / "run", dataset, mine)["rows"]
    made = load(tmp_path / "run")
    ann = begun_as(made)
    assert ann is not None and ann.recipe.model == OTHER and ann.kind == "teacher"
    images = calibration(dataset, 64, 0, CPU)
    encode = encoder(mine, dataset.mean, dataset.std)
    expected = convert(ann.net, build("neuron", mine.neuron, NEURONS), steps=2, calibrate=images)
    batches = evaluation(dataset.test, dataset, CPU)
    there = accuracy_over_steps(expected, batches, [2], encode=encode)[2]
    assert by_method(rows, "convert")[2]["accuracy"] == there
    assert by_method(rows, "logits")[2]["accuracy"] == there
    own = accuracy(ann.net, evaluation(dataset.test, dataset, CPU))
    assert by_method(rows, "logits")[2]["accuracy_ann"] == own
    assert own > 0.5  # it has learnt something


def test_its_price_is_that_of_both_trainings(
    taught: Path, tmp_path: Path, dataset: Dataset
) -> None:
    rows = run(taught, tmp_path / "run", dataset, recipe())["rows"]
    ann = read_json(tmp_path / "run" / "ann" / "results.json")["rows"][0]
    alone = run(taught, tmp_path / "alone", dataset, recipe(ann=None))["rows"]
    both, second = rows[-1], alone[-1]
    assert both["macs"] == ann["macs"] + second["macs"]
    assert both["ann_epochs"] > ann["ann_epochs"] > 0
    assert both["seconds"] > ann["seconds"] > 0
    assert "accuracy_ann" not in second


def test_it_goes_on_where_the_ann_was_stopped(
    taught: Path, tmp_path: Path, dataset: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Stopped in its ANN's training, and again in its own, it ends as if never stopped."""
    run(taught, tmp_path / "whole", dataset, recipe())
    fit, place, seen = job.fit, tmp_path / "parts", list[Path]()

    def stopped(distiller: Any, batches: Any, **options: Any) -> Any:
        """The first and the third training end after 5 of their 8 steps."""
        seen.append(options["run"])
        if len(seen) == 2:
            return fit(distiller, batches, **options)
        fit(distiller, batches, **options, stop_after=5)
        raise Interrupted(resume_line(options["run"]), 130)

    monkeypatch.setattr(job, "fit", stopped)
    for resume in (False, True):
        with pytest.raises(Interrupted, match=f"^spikelet distill --resume {place}$"):
            run(taught, place, dataset, recipe(), resume=resume)
        assert (place / "ann" / "results.json").exists() == resume
    assert seen == [place / "ann", place / "ann", place]
    monkeypatch.setattr(job, "fit", fit)
    run(taught, place, dataset, recipe(), resume=True)
    for name in ("model.safetensors", "ann/model.safetensors"):
        assert (place / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()


@pytest.mark.parametrize("method", ["none", "logits", "fading", "kdsnn-feature"])
def test_who_teaches_the_ann(taught: Path, method: str) -> None:
    """The student's teacher does where the method asks it; else the labels do, for controls."""
    mine = recipe(method, teacher={"run": str(taught)})
    own = ann_recipe(mine, load(taught))
    assert list(own.terms) == (["ce"] if method == "none" else ["ce", "logits"])
    assert own.terms.get("logits", {"fade": 1})["fade"] == 1
    assert (own.task, own.training, own.seed) == ("teach", mine.ann, mine.seed)


def test_a_spiking_teacher_leaves_the_ann_to_the_labels(
    taught: Path, tmp_path: Path, dataset: Dataset
) -> None:
    run(taught, tmp_path / "first", dataset, recipe(model=None, ann=None))
    rows = run(tmp_path / "first", tmp_path / "run", dataset, recipe())["rows"]
    assert read_recipe(tmp_path / "run" / "ann").method == "none"
    assert by_method(rows, "convert")[2]["note"] == "of the student's ANN"


def test_measuring_again_finds_the_conversion_of_its_ann(
    taught: Path, tmp_path: Path, dataset: Dataset, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = run(taught, tmp_path / "run", dataset, recipe())["rows"]
    assert main(["measure", str(tmp_path / "run"), "steps", "--json", "--quiet"]) == 0
    found = json.loads(capsys.readouterr().out)["rows"]
    assert found[-1]["accuracy_ann"] == rows[-1]["accuracy_ann"]
    for steps, row in by_method(rows, "convert").items():
        again = by_method(found, "convert")[steps]
        assert (again["accuracy"], again["note"]) == (row["accuracy"], row["note"])


def test_a_lost_ann_is_made_again(
    taught: Path, tmp_path: Path, dataset: Dataset, capsys: pytest.CaptureFixture[str]
) -> None:
    """Its conversion cannot be measured without; resuming the student gives the same back."""
    place = tmp_path / "run"
    run(taught, place, dataset, recipe())
    ann, student = place / "ann" / "model.safetensors", place / "model.safetensors"
    before = ann.read_bytes(), student.read_bytes()
    for lose in (ann.unlink, lambda: shutil.rmtree(place / "ann")):
        lose()
        assert main(["measure", str(place), "steps", "--quiet"]) == 2
        assert f"`spikelet distill --resume {place}` makes it anew" in capsys.readouterr().err
        run(taught, place, dataset, recipe(), resume=True)
        assert (ann.read_bytes(), student.read_bytes()) == before
        assert main(["measure", str(place), "steps", "--quiet"]) == 0
        capsys.readouterr()


def test_the_page_says_what_was_converted(taught: Path, tmp_path: Path, dataset: Dataset) -> None:
    ours = run(taught, tmp_path / "student", dataset, recipe())["rows"][-1]["accuracy_ann"]
    run(taught, tmp_path / "other", dataset, recipe(model=None, ann=None))
    own, teacher = "the student's own ANN", "the teacher"
    said = (
        (["student"], own),
        (["other"], teacher),
        (["other", "student"], f"{own} and {teacher}"),
    )
    for names, whose in said:
        page = tmp_path / "page.html"
        runs = [str(tmp_path / name) for name in names]
        assert main(["report", *runs, "--out", str(page), "--quiet"]) == 0
        text = html.unescape(page.read_text()).replace("\N{NO-BREAK SPACE}", " ")
        assert f"convert is {whose} with spiking neurons" in text
        assert ("ANN of " in text) == ("student" in names)
        if names == ["student"]:
            assert "its own ANN converted without training" in text
            assert f"{100 * ours:.1f}" in text


def test_fresh_weights_start_with_calibrated_thresholds(taught: Path, dataset: Dataset) -> None:
    """From scratch norms and thresholds fit what arrives: neurons neither silent nor always on."""
    images = calibration(dataset, 64, 0, CPU)
    for mine in (recipe(start="scratch", ann=None), recipe(ann=None), recipe()):
        student, description = make_student(mine, dataset, load(taught), images)
        neurons = [m for m in student.modules() if isinstance(m, Neuron)]
        assert all(neuron.threshold.ndim == 1 for neuron in neurons)
        assert description["width"] == 6 and description["norm"] == "train"
        rates = job.mean_rates(job.health(student, images, 2, encoder(mine, *statistics(dataset))))
        assert 0.05 < rates["rate_by_layer"] < 0.6


def statistics(dataset: Dataset) -> tuple[Any, Any]:
    return dataset.mean, dataset.std


def words(*more: str, teacher: str = "small-cnn") -> Recipe:
    from spikelet.cli.arguments import parse
    from spikelet.cli.leaves import split

    line = ["--teacher", teacher, "--data", "digits", "--steps", "2", *more]
    rest, leaves = split(line)
    return recipe_of(parse("distill", rest), leaves)


def test_what_the_command_line_makes_of_it(taught: Path) -> None:
    there = {"teacher": str(taught)}
    assert words(**there).ann is None  # the teacher's own weights
    assert words("--model", "vgg9", "--start", "scratch", **there).ann is None
    mine = words("--model", "vgg9", "--precision", "bf16", "--batch", "16", **there)
    assert mine.ann is not None and (mine.ann.precision, mine.ann.batch) == ("bf16", 16)
    assert mine.ann.least_steps > 0 and mine.ann.epochs > 0
    few = words(
        "--model", "vgg9", "--ann.epochs", "3", "--ann.batch", "8", "--batch", "16", **there
    )
    assert few.ann is not None
    assert (few.ann.epochs, few.ann.least_steps, few.ann.batch) == (3, 0, 8)
    assert (
        words("--model", "vgg9", "--epochs", "1", **there).ann
        == words("--model", "vgg9", **there).ann
    )
    for made in (mine, few):
        assert command_of(made, "out") is not None
        assert Recipe.from_json(made.to_json()) == made


@pytest.mark.parametrize("data", ["imagenet", "digits", "mnist", "cifar10", "nmnist"])
def test_how_the_ann_is_trained_by_default(data: str) -> None:
    """By adaptive steps with a clipped gradient, but on ImageNet, where the reference's are SGD."""
    ann = ann_training(data)
    assert (ann.optimiser, ann.clip) == (("sgd", None) if data == "imagenet" else ("adamw", 1.0))
    assert ann.least_steps == 500 and ann.epochs > 0


def test_what_is_refused(taught: Path) -> None:
    with pytest.raises(UserError, match=r"^`--ann\.epochs`: the student begins as its teacher"):
        words("--ann.epochs", "3", teacher=str(taught))
    with pytest.raises(UserError, match=r"^`ann`: only a student of another architecture"):
        words("--model", "vgg9", "--start", "scratch", "--ann.epochs", "3", teacher=str(taught))
    with pytest.raises(UserError, match=r"^`ann`: only a student of another architecture"):
        recipe(model=None)
    with pytest.raises(UserError, match=r"^`ann`: expected an object"):
        Recipe.from_json(json.dumps({**json.loads(recipe().to_json()), "ann": 3}))


def test_a_recipe_of_before_is_from_scratch(taught: Path) -> None:
    """A recipe that holds no `ann` makes what it made."""
    fields = json.loads(recipe().to_json())
    del fields["ann"]
    assert completed(Recipe.from_json(json.dumps(fields))).ann is None


@pytest.mark.parametrize(
    ("own", "taught", "first", "told"),
    [
        (0.91, True, "teacher", True),
        (0.9, True, "teacher", True),
        (0.89, True, "teacher", False),
        (0.91, False, "teacher", False),
        (0.91, True, "logits", False),  # a row without its teacher's, as in grids
        (None, True, "teacher", False),
    ],
)
def test_a_teacher_that_is_outgrown_is_told(
    tmp_path: Path, own: float | None, taught: bool, first: str, told: bool
) -> None:
    """Where the student's ANN is no worse than the teacher there is little to learn."""
    said = io.StringIO()
    rows = [{"method": first, "accuracy": 0.9}, {"method": "logits", "accuracy_ann": own}]
    place = Place(tmp_path, CPU, Console(file=said, width=300), False)
    outgrown(rows, taught, place)
    assert ("little to learn" in said.getvalue()) == told


@pytest.mark.parametrize(
    ("width", "steps", "taught", "told"),
    [(9, 1, True, True), (9, 2, True, False), (9, 1, False, False), (5000, 1, True, False)],
)
def test_a_student_too_small_for_a_teacher_is_told(
    tmp_path: Path, width: int, steps: int, taught: bool, told: bool
) -> None:
    said = io.StringIO()
    place = Place(tmp_path, CPU, Console(file=said, width=300), False)
    cramped(nn.Linear(width, 1), steps, taught, place)
    assert ("with 10 weights at T = 1" in said.getvalue()) == told
    assert ("--method none" in said.getvalue()) == told


def test_the_table_has_a_line_for_the_ann(taught: Path, tmp_path: Path, dataset: Dataset) -> None:
    from spikelet.cli.output import accuracy_table

    rows = run(taught, tmp_path / "run", dataset, recipe())["rows"]
    shown = io.StringIO()
    Console(file=shown, width=100).print(accuracy_table(rows))
    assert f"{100 * rows[-1]['accuracy_ann']:.2f}" in shown.getvalue()
    assert "the student's ANN" in shown.getvalue()


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory, dataset: Dataset) -> Path:
    """The run of an ANN of the student's architecture."""
    out = tmp_path_factory.mktemp("runs") / "own"
    mine = default_recipe("teach", DATA, model=OTHER, training=FAST)
    job.teach(mine, out, console=QUIET, device="cpu", dataset=dataset)
    return out


def test_a_student_begins_as_an_ann_that_is_trained_already(
    taught: Path, trained: Path, tmp_path: Path, dataset: Dataset
) -> None:
    """It is copied, so that its run may go; its price is not the student's."""
    given, mine = tmp_path / "given", recipe(ann={"run": str(tmp_path / "given")})
    shutil.copytree(trained, given)
    rows = run(taught, tmp_path / "run", dataset, mine)["rows"]
    shutil.rmtree(given)
    made = load(tmp_path / "run")
    ann, known = begun_as(made), load(trained)
    assert ann is not None and read_json(ann.path / "results.json")["run"] == str(ann.path)
    for name, value in known.net.state_dict().items():
        assert torch.equal(value, ann.net.state_dict()[name])
    alone = run(taught, tmp_path / "alone", dataset, recipe(ann=None))["rows"][-1]
    assert rows[-1]["macs"] == alone["macs"]
    assert rows[-1]["accuracy_ann"] == read_json(trained / "results.json")["rows"][0]["accuracy"]
    assert Recipe.from_json(made.recipe.to_json()) == made.recipe == mine_of(mine, taught)


def mine_of(mine: Recipe, taught: Path) -> Recipe:
    return dataclasses.replace(mine, teacher={"run": str(taught)})


def test_a_given_ann_on_the_command_line(
    taught: Path, trained: Path, tmp_path: Path, dataset: Dataset
) -> None:
    there, own = {"teacher": str(taught)}, ("--ann", str(trained))
    mine = words(*own, **there)
    assert (mine.model, mine.ann) == (OTHER, {"run": str(trained)})
    line = command_of(mine, "out")
    assert line is not None and f"--ann {trained}" in line
    run(taught, tmp_path / "student", dataset, recipe(model=None, ann=None))
    refused = (
        ((*own, "--model", "vgg9"), "`--model`: the run of --ann has its architecture"),
        ((*own, "--width", "4"), "`--width`: the run of --ann has its width"),
        ((*own, "--start", "scratch"), "`--ann`: a student from scratch"),
        ((*own, "--ann.epochs", "3"), "`--ann.epochs`: --ann names a run"),
        (("--ann", str(tmp_path)), "there is no run in this folder"),
        (("--ann", str(tmp_path / "student")), "it is a student's run"),
    )
    for more, said in refused:
        with pytest.raises(UserError) as caught:
            words(*more, **there)
        assert said in str(caught.value)


def test_an_ann_that_does_not_fit_is_refused_before_anything_is_written(
    taught: Path, trained: Path, tmp_path: Path, dataset: Dataset
) -> None:
    given = recipe(ann={"run": str(trained)})
    few = dataclasses.replace(dataset, classes=dataset.classes[:9])
    wrong = (
        (dataclasses.replace(given, model={"kind": "vgg9", "width": 4}), dataset, "is a small-cnn"),
        (dataclasses.replace(given, ann={"run": str(tmp_path / "no")}), dataset, "no run in this"),
    )
    for mine, data, said in wrong:
        with pytest.raises(UserError, match=said):
            run(taught, tmp_path / "run", data, mine)
        assert not (tmp_path / "run").exists()
    with pytest.raises(UserError, match="it knows 10 classes"):
        require_ann(load(trained), given, few)
    with pytest.raises(UserError, match=r"^`ann`: expected a training or the folder of a run"):
        recipe(ann={"runs": "x"})
