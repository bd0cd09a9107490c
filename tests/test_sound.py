"""What does not fit is told before it is used: data sets, images, networks, places to write."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from small import images, network, student
from spikelet.cli import main
from spikelet.convert import convert
from spikelet.data import Batches, Dataset, EventDrop, Split, digits, normalise
from spikelet.data.dataset import require_dataset
from spikelet.distill import Distiller
from spikelet.encode import Direct
from spikelet.errors import UserError
from spikelet.execute import rate
from spikelet.neuron import IF
from spikelet.terms import CrossEntropy, Logits
from spikelet.train import load
from spikelet.train.load import _records


def few() -> Dataset:
    """Few images of digits."""
    every = digits(train=60, validation=20)
    return dataclasses.replace(every, test=every.test.at(torch.arange(40)))


def nothing() -> None:
    """A function that forgot to return its data."""


def lost() -> Dataset:
    """A function with a mistake."""
    return {}["images"]


def part(**changes: Any) -> Split:
    return dataclasses.replace(few().test, **changes)


PIXELS = torch.zeros(40, 1, 8, 8, dtype=torch.uint8)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"test": part(images=PIXELS.float())}, r"test.images.*expected uint8.*torch.float32"),
        ({"test": part(images=PIXELS[:, 0])}, r"test.images.*N C H W.*\(40, 8, 8\)"),
        ({"test": part(images=PIXELS.expand(-1, 3, -1, -1))}, r"\(1, 8, 8\).*got \(3, 8, 8\)"),
        ({"test": part(images=PIXELS[:20])}, r"test.labels.*\(40,\).* for 20 images"),
        ({"validation": part(labels=torch.zeros(40))}, r"validation.labels.*torch.float32"),
        ({"test": part(labels=torch.full((40,), 10))}, r"expected classes 0 to 9, found 10 to 10"),
        ({"test": part(labels=torch.full((40,), -1))}, r"found -1 to -1"),
        ({"train": few().train.at(torch.arange(0))}, r"train.*it holds no images"),
        ({"test": part(images=PIXELS.numpy())}, r"test.images.*expected a tensor, got ndarray"),
        ({"test": part(labels=[0] * 40)}, r"test.labels.*expected a tensor, got list"),
        ({"test": None}, r"test.*expected a spikelet.data.Split, got NoneType"),
        ({"classes": ("one",)}, r"expected two or more classes, it has 1"),
        ({"std": (0.0,)}, r"std.*expected 1 positive numbers, one per channel, got \(0.0,\)"),
        ({"mean": (float("nan"),)}, r"mean.*expected 1 finite numbers"),
        ({"mean": (0.1, 0.2)}, r"mean.*expected 1 finite numbers"),
    ],
)
def test_parts_that_do_not_fit(changes: dict[str, Any], said: str) -> None:
    require_dataset("mine", few())
    require_dataset("mine", dataclasses.replace(few(), validation=None))
    with pytest.raises(UserError, match=f"^`mine.*{said}"):
        require_dataset("mine", dataclasses.replace(few(), **changes))


@pytest.mark.parametrize(
    ("kind", "more", "said"),
    [
        ("nothing", (), "expected a spikelet.data.Dataset, got NoneType"),
        ("lost", (), "it cannot be made (KeyError: 'images')"),
        ("few", ("--validation", "5"), "`--validation`: test_sound:few takes no argument"),
    ],
)
def test_functions_that_give_no_data(
    kind: str, more: tuple[str, ...], said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "run"
    words = ["teach", "--data", f"test_sound:{kind}", *more, "--out", str(out), "--quiet"]
    assert main(words) == 2
    assert said in capsys.readouterr().err
    assert not out.exists()


@pytest.mark.parametrize("flag", ["out", "teacher"])
def test_an_empty_place_is_no_place(
    flag: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    given = {"teacher": "small-cnn", "out": "run", flag: ""}
    words = [word for name, value in given.items() for word in (f"--{name}", value)]
    assert main(["distill", "--data", "digits", *words, "--quiet"]) == 2
    assert f"`--{flag}`: it is empty" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_pixels_are_bytes() -> None:
    data = few()
    with pytest.raises(UserError, match=r"expected uint8 pixels of 0 to 255, got torch.float32"):
        normalise(data.test.images / 255, data)
    for strange in (PIXELS.expand(-1, 3, -1, -1), PIXELS[0, 0]):
        with pytest.raises(UserError, match="expected 1 channels in the third axis from the end"):
            normalise(strange, data)


def test_events_are_dropped_from_recordings() -> None:
    with pytest.raises(UserError, match=r"event-drop.*these are still images; leave it out"):
        Batches(few().train, few(), augment=[EventDrop()])


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A teacher and a student, hardly trained."""
    folder = tmp_path_factory.mktemp("sound")
    common = ("--data", "test_sound:few", "--epochs", "1", "--batch", "20", "--quiet")
    found = {name: folder / name for name in ("teach", "distill")}
    size = ("--model", "small-cnn", "--width", "2")
    assert main(["teach", *common, *size, "--out", str(found["teach"])]) == 0
    more = ("--teacher", str(found["teach"]), "--steps", "2", "--method", "none")
    more += ("--execute.kind", "rate", "--execute.fuse", "False")
    assert main(["distill", *common, *more, "--out", str(found["distill"])]) == 0
    return found


def test_answers_are_for_images(runs: dict[str, Path]) -> None:
    data = few()
    x = normalise(data.test.images, data)
    broken = x.clone()
    broken[3, 0, 2, 2] = float("nan")
    for run in runs.values():
        loaded = load(run)
        assert loaded.predict(x).shape == (40, 10)
        for strange in (broken, x / 0):
            with pytest.raises(UserError, match="`images`: it holds values that are not finite"):
                loaded.predict(strange)
    assert load(runs["distill"]).predict(x, steps=1).shape == (40, 10)
    with pytest.raises(UserError, match=r"steps = 2.*an ANN answers without time steps; leave it"):
        load(runs["teach"]).predict(x, steps=2)


def test_a_batch_is_no_recording(tmp_path: Path, taught_digits: Path) -> None:
    loaded = load(taught_digits)
    x = normalise(few().test.images, few())
    with pytest.raises(UserError, match=r"expected a batch of images \(1, 8, 8\)"):
        loaded.predict(x.unsqueeze(0))


@pytest.fixture(scope="module")
def taught_digits(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A teacher of our own digits, which are still images."""
    out = tmp_path_factory.mktemp("sound") / "digits"
    words = ("--data", "digits", "--data.train", "60", "--validation", "0", "--epochs", "1")
    size = ("--model", "small-cnn", "--width", "2", "--quiet")
    assert main(["teach", *words, *size, "--out", str(out)]) == 0
    return out


def test_measures_need_a_place_first(
    runs: dict[str, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    run = runs["distill"]
    assert main(["measure", str(run), "health", "--images", "1", "--quiet"]) == 2
    assert "expected 2 or more, got 1; raise --images" in capsys.readouterr().err
    assert main(["measure", str(run), "evenness", "--images", "9", "--quiet"]) == 0
    capsys.readouterr()
    assert main(["measure", str(run), "health", "evenness", "--images", "8", "--quiet"]) == 2
    assert "evenness is stored for 9 images, which fewer would" in capsys.readouterr().err
    assert not (run / "measures" / "health.json").exists()
    assert main(["measure", str(run), "evenness", "--images", "9", "--quiet"]) == 0
    (run / "measures" / "steps.json").write_text('{"schema": 1}')
    assert main(["report", str(run), "--quiet"]) == 2
    assert "it is damaged (settings is missing); measure the run again" in capsys.readouterr().err
    for file in (run / "measures").iterdir():
        file.unlink()
    (run / "measures").rmdir()
    (run / "measures").write_text("in the way")
    assert main(["measure", str(run), "energy", "--quiet"]) == 2
    said = capsys.readouterr().err
    assert "nothing can be written there" in said and "measure a copy of the run" in said


@pytest.mark.parametrize("share", [-0.1, 1.5, 3, float("nan")])
def test_progress_is_a_share(share: float) -> None:
    net = student("stages", calibrated=True)
    terms = {"ce": CrossEntropy(), "logits": Logits(fade=1.0)}
    whole = Distiller(net, network("stages"), terms=terms, execute=rate, encode=Direct(2))
    with pytest.raises(UserError, match="expected the share of the training that is done, 0 to 1"):
        whole(images("stages"), torch.tensor([0, 1, 2, 0]), progress=share)


class Two(nn.Module):
    """Logits, and something else."""

    def __init__(self, form: type) -> None:
        super().__init__()
        self.form, self.line = form, nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Any:
        y = self.line(torch.relu(x))
        return {"logits": y} if self.form is dict else (y, y)


def test_networks_give_logits() -> None:
    for form in (dict, tuple):
        with pytest.raises(UserError, match=f"it gives a .*{form.__name__}, expected logits alone"):
            convert(Two(form), IF())
    net = nn.Sequential(nn.Conv2d(1, 2, 3), nn.ReLU(), nn.Flatten(), nn.Linear(72, 3))
    for strange in (net.state_dict(), None, "net"):
        with pytest.raises(UserError, match="expected a network, got"):
            convert(strange, IF())
    with pytest.raises(UserError, match=r"calibrate.*it holds no images; give some hundred"):
        convert(net, IF(), calibrate=torch.zeros(0, 1, 8, 8))
    with pytest.raises(UserError, match="sweeps = -1"):
        convert(net, IF(), sweeps=-1)


def fresh(classes: int, channels: int) -> nn.Module:
    """A network that has learnt nothing, as its weights were forgotten; always the same answer."""
    net = nn.Sequential(nn.Conv2d(channels, 2, 3), nn.ReLU(), nn.Flatten(), nn.Linear(72, classes))
    nn.init.zeros_(net[3].weight)
    return net


def test_a_teacher_without_its_weights_is_told_before_training(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["distill", "--data", "digits", "--data.train", "60", "--validation", "20"]
    words += ["--teacher", "test_sound:fresh", "--epochs", "1", "--batch", "20", "--steps", "1"]
    assert main([*words, "--execute.fuse", "False", "--out", str(tmp_path / "run")]) == 0
    said = " ".join(capsys.readouterr().err.split())
    hint = "the teacher test_sound:fresh answers 10.0% of the validation images rightly"
    assert hint in said and "by --weights FILE" in said
    assert said.index(hint) < said.index("epoch 1/1")


def test_convert_trains_nothing(
    taught_digits: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["distill", "--teacher", str(taught_digits), "--method", "convert", "--steps", "1"]
    assert main([*words, "--epochs", "3", "--out", str(tmp_path / "run")]) == 0
    said = capsys.readouterr().err
    assert "convert trains nothing and leaves --epochs aside" in said


def test_steps_and_folders_are_what_they_should_be(runs: dict[str, Path]) -> None:
    x = normalise(few().test.images, few())
    with pytest.raises(UserError, match=r"steps = '2'.*expected a whole number"):
        load(runs["distill"]).predict(x, steps="2")
    with pytest.raises(UserError, match="`run`: expected a folder, got NoneType"):
        load(None)
    with pytest.raises(UserError, match="there is 1 labelled training image"):
        digits(train=1, validation=1)


@pytest.mark.parametrize(
    ("kind", "recordings"), [("nmnist", True), ("cifar10", False), ("test_sound:few", True)]
)
def test_which_data_may_be_recordings(kind: str, recordings: bool) -> None:
    assert _records(kind) is recordings
