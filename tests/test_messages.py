"""What the command line says: flags as they were typed, fields of data, how long it will take."""

from __future__ import annotations

import inspect
import io
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from rich.console import Console
from torch import nn

import spikelet
from spikelet.checkpoint import save_weights
from spikelet.cli import main
from spikelet.cli.fields import data_fields
from spikelet.cli.typed import told
from spikelet.errors import UserError
from spikelet.examine.table import chosen
from spikelet.execute import ann, bptt, rate
from spikelet.neuron import IF
from spikelet.quantise import quantised
from spikelet.recipe import DATA, Training, resolve
from spikelet.terms import Hybrid
from spikelet.terms.term import Step
from spikelet.train import read_recipe
from spikelet.train.log import LONG, SETTLED, Log, duration
from spikelet.train.state import Standing, diverged
from spikelet.train.totals import NotFinite, Totals


@pytest.mark.parametrize(
    "argument, words, said",
    [
        ("validation=5000", "teach --data digits", "--validation 5000"),
        ("validation=9", "teach --data digits --validation 9", "--validation 9"),
        ("data_root=/a/b", "teach --data cifar10", "--data-root /a/b"),
        ("data_root=/a/b", "teach --data cifar10 --data-root /c", "--data-root /a/b"),
        ("data_root=/a/b/c", "measure run --data-root /a/b", "--data-root /a/b"),
        ("run = runs/a", "measure runs/a steps", "RUN runs/a"),
        ("run = runs/a", "report runs/a runs/b", "RUN runs/a"),
        ("run = runs/a", "distill --teacher runs/a", "--teacher runs/a"),
        ("steps = 3", "distill --teacher runs/a", "steps = 3"),
        ("measure noise", "measure runs/a", "measure noise"),
    ],
)
def test_errors_name_what_was_typed(argument: str, words: str, said: str) -> None:
    error = UserError(argument, "it is wrong", "mend it")
    assert told(error, words.split()).argument == said
    assert told(error, words.split()).fix == "mend it"


def test_a_second_run_to_measure_is_told(tmp_path: Path) -> None:
    (tmp_path / "recipe.json").write_text("{}")
    with pytest.raises(UserError, match=r"another run, and one is measured at a time.*--versus"):
        chosen([str(tmp_path)])


def test_a_recipe_of_nothing_is_damaged_not_to_be_completed_by_hand(tmp_path: Path) -> None:
    (tmp_path / "recipe.json").write_text("{}")
    with pytest.raises(UserError, match=r"recipe\.json: task`: it is missing; take .* a copy"):
        read_recipe(tmp_path)


def test_a_place_within_a_typed_folder_is_told_with_it() -> None:
    error = told(UserError("data_root=/a/b/c", "damaged", "mend"), ["teach", "--data-root", "/a"])
    assert (error.argument, error.message) == ("--data-root /a", "/a/b/c: damaged")


def test_device_that_is_not_there_is_one_sentence_of_ours(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    out = str(tmp_path / "run")
    assert main(["teach", "--data", "digits", "--device", "tpu", "--out", out]) == 2
    said = capsys.readouterr().err
    assert "--device tpu" in said and "what it has here is cpu" in said
    assert "privateuseone" not in said and said.count("\n") == 1


def test_help_lists_the_fields_of_every_data_set(capsys: pytest.CaptureFixture[str]) -> None:
    """Those that the functions themselves have."""
    for name, known in data_fields().items():
        assert known == list(inspect.signature(resolve("data", name, DATA)).parameters), name
    assert set(data_fields()) == set(DATA)
    for verb in ("teach", "distill", "compare"):
        assert main([verb, "--help"]) == 0
        lines = capsys.readouterr().out.splitlines()
        (line,) = (line for line in lines if line.split()[:1] == ["cifar10"])
        assert {"root", "protocol", "size"} <= set(line.split())


@pytest.mark.parametrize(
    "words, said",
    [
        ("teach", "--data and --out"),
        ("distill", "--teacher and --out"),
        ("distill --teacher runs/a", "--out"),
        ("compare", "--methods and --data and --out"),
        ("compare --teacher runs/a", "--methods and --out"),
    ],
)
def test_all_flags_that_are_missing_are_told_in_one_sentence(
    words: str, said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(words.split()) == 2
    told = capsys.readouterr().err
    assert told.startswith(f"spikelet: `{said}`: ") and told.count("\n") == 1
    assert all(f"as {flag}" in told for flag in said.split(" and "))


@pytest.mark.parametrize(
    "flag, near",
    [("--methd", "--method"), ("--step", "--steps"), ("--lerning-rate", "--learning-rate")],
)
def test_only_flags_about_as_near_as_the_nearest_are_suggested(
    flag: str, near: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["distill", flag, "1"]) == 2
    assert capsys.readouterr().err.rstrip().endswith(f"did you mean {near}.")


def test_several_parts_that_are_not_finite_are_told_in_words(tmp_path: Path) -> None:
    totals = Totals()
    nan, parts = torch.tensor(torch.nan), ("ce", "logits", "hybrid")
    totals.add(1, 4, nan, dict.fromkeys(parts, nan) | {"size": torch.ones(())})
    with pytest.raises(NotFinite) as found:
        totals.settle()
    (tmp_path / "recipe.json").write_text("{}")
    told = diverged(Training(learning_rate=0.4), 0, 1, found.value.part, tmp_path)
    assert told.message.startswith("training diverged: parts 'ce', 'logits' and 'hybrid' are not")
    assert told.fix.startswith("begin a new run with a lower one, such as 0.1, or with clip = 1.0")
    assert told.fix.endswith("resuming this one keeps its settings")
    assert "clip" not in diverged(Training(clip=1.0), 0, 1, "the loss").fix
    assert "the loss is not finite" in diverged(Training(), 0, 1, "the loss").message


def test_temperature_of_zero_is_refused() -> None:
    with pytest.raises(UserError, match=r"hybrid\.tau"):
        Hybrid(tau=0.0)


# ---- an input without time ------------------------------------------------------------------


def convolutional() -> nn.Module:
    return nn.Sequential(nn.Conv2d(1, 2, 3), nn.ReLU(), nn.Flatten(), nn.Linear(72, 3))


@pytest.mark.parametrize("execute", [rate, bptt, quantised])
def test_images_without_time_are_told(execute: spikelet.Execute) -> None:
    images = torch.rand(4, 1, 8, 8)
    net = spikelet.convert(convolutional(), IF(), calibrate=images)
    assert execute(net, images.expand(2, *images.shape)).logits.shape == (2, 4, 3)
    for x in (images, images[0], images[None, None]):
        with pytest.raises(UserError, match="expected time first"):
            execute(net, x)


@pytest.mark.parametrize("execute", [rate, bptt])
def test_rows_of_numbers_without_time_are_told(execute: spikelet.Execute) -> None:
    """A network without images knows its axes from those it was calibrated on."""
    rows = torch.rand(4, 5)
    net = spikelet.convert(
        nn.Sequential(nn.Linear(5, 6), nn.ReLU(), nn.Linear(6, 3)), IF(), calibrate=rows
    )
    assert execute(net, rows.expand(2, 4, 5)).logits.shape == (2, 4, 3)
    with pytest.raises(UserError, match=r"x \(4, 5\)"):
        execute(net, rows)


def test_an_ann_needs_time_too() -> None:
    net = spikelet.graph.capture(convolutional())
    images = torch.rand(4, 1, 8, 8)
    assert ann(net, images[None]).logits.shape == (1, 4, 3)
    with pytest.raises(UserError, match="expected time first"):
        ann(net, images)


# ---- how long it takes ----------------------------------------------------------------------


@pytest.mark.parametrize(
    "seconds, said", [(100, "2 min"), (3540, "59 min"), (3600, "1 h 0 min"), (12_000, "3 h 20 min")]
)
def test_durations_in_words(seconds: float, said: str) -> None:
    assert duration(seconds) == said


@pytest.mark.parametrize("batches", [40, 4000])
def test_a_long_training_is_foretold_once(batches: int, monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]
    monkeypatch.setattr("spikelet.train.log.time.monotonic", lambda: now[0])
    console = Console(record=True, file=io.StringIO(), width=200)
    training = Training(epochs=2)
    with Log(None, training, batches, Standing(), console) as log:
        for batch in range(1, 30):
            now[0] += 0.6
            log.step(0, batch, 1.0)
    lines = [line for line in console.export_text().splitlines() if "to go" in line]
    first = -(-SETTLED // 0.6)
    left = (2 * batches - first) * 0.6
    assert len(lines) == (1 if left > LONG else 0)
    if lines:
        assert duration(left) in lines[0] and "0.60 s" in lines[0]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (
            ["--encode.least", "2"],
            "direct has no least; take it out, or choose --encode.kind mix",
        ),
        (["--neuron.kind", "LIF", "--neuron.delay", "1"], "choose --neuron.kind IF"),
        (["--method", "logits[logits.fade=1]"], "here it is a name alone, logits"),
        (["--method", "twkd", "--execute", "rate"], "run it by bptt"),
    ],
)
def test_what_another_kind_would_take_is_said(
    words: list[str], said: str, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    net = spikelet.models.build_model("small-cnn", width=2, classes=10, channels=1, size=(8, 8))
    weights = str(tmp_path / "w.safetensors")
    save_weights(Path(weights), net)
    line = ["distill", "--teacher", "small-cnn", "--weights", weights, "--width", "2", *words]
    assert main([*line, "--data", "digits", "--steps", "2", "--out", str(tmp_path / "o")]) == 2
    assert said in capsys.readouterr().err


def test_a_comparison_is_not_measured_as_a_run(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    (tmp_path / "compare.json").write_text("{}")
    assert main(["measure", str(tmp_path)]) == 2
    assert f"name one of the runs in {tmp_path / 'cells'}" in capsys.readouterr().err


# ---- values of another type in Python ------------------------------------------------------


@dataclass(frozen=True)
class Unreduced(spikelet.Term):
    """A user's term that forgot to take the mean."""

    def __call__(self, own: nn.Module, step: Step) -> torch.Tensor:
        return step.student.mean_logits.square()


def bound(**changed: object) -> spikelet.Distiller:
    torch.manual_seed(0)
    ann_ = nn.Sequential(nn.Conv2d(1, 2, 3), nn.ReLU(), nn.Flatten(), nn.Linear(72, 3))
    images = torch.rand(4, 1, 8, 8)
    student = spikelet.convert(ann_.eval(), calibrate=images)
    parts = {"student": student, "teacher": ann_, "terms": {"ce": spikelet.CrossEntropy()}}
    return spikelet.Distiller(**{**parts, "encode": spikelet.Direct(2), **changed})  # type: ignore[arg-type]


def plain_ann() -> nn.Module:
    return nn.Sequential(nn.Linear(2, 3), nn.ReLU(), nn.Linear(3, 2)).eval()


def frozen() -> spikelet.Distiller:
    """A student whose weights ask for no gradient, as a teacher's do that was frozen first."""
    whole = bound()
    whole.student.requires_grad_(False)
    return whole


TYPES: dict[str, tuple[Callable[[], object], str]] = {
    "steps of an encoder": (lambda: spikelet.Direct("4"), "`steps = '4'`: expected a whole"),
    "half a step": (lambda: spikelet.Mixed(2.5), "`steps = 2.5`: expected a whole"),
    "steps of a conversion": (
        lambda: spikelet.convert(nn.Sequential(nn.Linear(2, 2), nn.ReLU()), steps="4"),
        "`steps = '4'`: expected a whole",
    ),
    "images": (
        lambda: spikelet.convert(nn.Sequential(nn.Linear(2, 2), nn.ReLU()), calibrate=[1.0]),
        "`calibrate`: expected normalised images as a tensor of floating-point numbers, got list",
    ),
    "weight": (
        lambda: bound(terms={"ce": spikelet.CrossEntropy(weight="1")}),
        "`terms.ce.weight = '1'`: expected a number, got str",
    ),
    "fade": (
        lambda: bound(terms={"ce": spikelet.CrossEntropy(fade=None)}),
        "`terms.ce.fade = None`: expected a number",
    ),
    "a word for a switch": (
        lambda: spikelet.IF(signed="False"),
        "`signed = 'False'`: expected True or False",
    ),
    "dither": (lambda: spikelet.IF(dither="a"), "`dither = 'a'`: expected a share"),
    "delay": (lambda: spikelet.IF(delay=True), "`delay = True`: expected a whole number"),
    "a class for an encoder": (lambda: bound(encode=spikelet.Direct), "`encode`: expected an enc"),
    "terms": (
        lambda: bound(terms=[spikelet.CrossEntropy()]),
        "`terms`: expected names and losses, got list",
    ),
    "execute": (lambda: bound(execute="rate"), "`execute`: expected a function, got str"),
    "encode": (lambda: bound(encode=4), "`encode`: expected an encoder or None, got int"),
    "teacher": (lambda: bound(teacher="runs/a"), "`teacher`: expected a network or None, got str"),
    "student": (lambda: bound(student="runs/a"), "`student`: expected a network, got str"),
    "epochs": (lambda: spikelet.Training(epochs="3"), "`epochs = '3'`: expected a whole number"),
    "rate": (lambda: spikelet.Training(learning_rate="0.1"), "`learning_rate = '0.1'`: expected"),
    "training": (
        lambda: spikelet.fit(
            bound(), [(torch.rand(4, 1, 8, 8), torch.zeros(4).long())], training={}
        ),
        "`training`: expected a spikelet.Training, got dict",
    ),
    "a term's value": (
        lambda: bound(terms={"own": Unreduced()})(torch.rand(4, 1, 8, 8), torch.zeros(4).long()),
        r"`terms\['own'\]`: expected a loss that is a scalar tensor, got \[4, 3\]",
    ),
    "a model in half precision": (
        lambda: spikelet.convert(plain_ann().half(), calibrate=torch.rand(4, 2)),
        "`model`: its weights are float16, too coarse",
    ),
    "calibration images of another precision": (
        lambda: spikelet.convert(plain_ann().double(), calibrate=torch.rand(4, 2)),
        "`calibrate`: expected float64, as the model's weights are, got float32",
    ),
    "a teacher in half precision": (
        lambda: bound(teacher=plain_ann().half()),
        "`teacher`: expected float32, as the student's weights are, got float16",
    ),
    "images of another precision": (
        lambda: bound()(torch.rand(4, 1, 8, 8).double(), torch.zeros(4).long()),
        "`images`: expected float32, as the student's weights are, got float64",
    ),
    "a frozen student": (
        lambda: frozen()(torch.rand(4, 1, 8, 8), torch.zeros(4).long()),
        "`student`: none of its parameters asks for a gradient",
    ),
}


@pytest.mark.parametrize("name", TYPES)
def test_values_of_another_type_are_named(name: str) -> None:
    call, said = TYPES[name]
    with pytest.raises(UserError, match=said):
        call()


def test_numbers_of_other_libraries_are_numbers() -> None:
    numpy = pytest.importorskip("numpy")
    assert spikelet.Training(epochs=numpy.int64(3), learning_rate=numpy.float32(0.1)).epochs == 3
