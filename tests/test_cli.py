"""The command line as scripts see it: JSON keys, exit codes, one sentence for each mistake."""

from __future__ import annotations

import dataclasses
import io
import json
import os
import shlex
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console

pytest.importorskip("sklearn", reason="scikit-learn is not installed: no digits")

from spikelet.cli import distill, main
from spikelet.cli.again import command_of
from spikelet.cli.arguments import parse
from spikelet.cli.leaves import Leaf, overridden, split
from spikelet.cli.output import accuracy_table, priced, show
from spikelet.cli.typed import told
from spikelet.data import Dataset, Split, digits
from spikelet.errors import UserError
from spikelet.recipe import DITHER, METHODS, Recipe, default_recipe, gentler

ROW = {"method", "steps", "accuracy", "std", "n", "seed", "split"}
FEW = ("--data", "test_cli:few", "--model", "small-cnn", "--width", "4", "--epochs", "1")
DISTILL = ("distill", "--teacher", "TEACHER")
HYBRID = ("--method", "hybrid")
PLAIN = {"kind": "IF", "dither": DITHER}


def few(validation: int = 20) -> Dataset:
    """A user's own data set: few images of digits."""
    every = digits(train=100, validation=validation)
    test = every.test.at(torch.arange(100))
    return dataclasses.replace(every, name="few", test=test)


def five() -> Dataset:
    """A user's own data set with five of the ten digits."""

    def kept(part: Split) -> Split:
        return part.at((part.labels < 5).nonzero()[:, 0])

    every = few()
    parts = {"train": kept(every.train), "test": kept(every.test), "validation": None}
    return dataclasses.replace(every, name="five", classes=every.classes[:5], **parts)


def segmenter(classes: int, channels: int) -> torch.nn.Module:
    """A user's own model, which answers with a map, not with logits."""
    return torch.nn.Conv2d(channels, classes, 1)


def quiet(*words: str) -> int:
    """Run a command, its exit status alone."""
    return main([*words, "--quiet"])


@pytest.fixture(scope="module")
def teacher(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run of a teacher after one epoch."""
    run = tmp_path_factory.mktemp("cli") / "teacher"
    assert quiet("teach", *FEW, "--out", str(run)) == 0
    return run


@pytest.fixture(scope="module")
def student(teacher: Path) -> Path:
    """The run of a student for two time steps after one epoch."""
    run = teacher.with_name("student")
    flags = ("--method", "hybrid", "--steps", "2", "--epochs", "1", "--neuron.signed", "True")
    flags += ("--terms.hybrid.weight", "0.5", "--seed", "3", "--calibrate", "32")
    assert quiet("distill", "--teacher", str(teacher), "--out", str(run), *flags) == 0
    return run


def only_object(text: str) -> dict[str, Any]:
    """Standard output, which must be one JSON object with its schema."""
    assert len(text.strip().splitlines()) == 1, text
    content = json.loads(text)
    assert content["schema"] == 1
    return content


# ---- help -------------------------------------------------------------------------------------


def test_help_of_every_verb_is_quick_and_loads_no_torch() -> None:
    code = """
import sys, time
from spikelet.cli import main
from spikelet.cli.arguments import VERBS
assert main(["--help"]) == 0
for verb in VERBS:
    assert main([verb, "--help"]) == 0
heavy = [name for name in ("torch", "numpy", "pydantic", "rich") if name in sys.modules]
print(heavy, time.process_time() < 1)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "[] True"


def test_help_of_distill_names_methods_data_and_leaves(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["distill", "--help"]) == 0
    text = capsys.readouterr().out
    for word in (*METHODS, "digits", "cifar10", "timm:NAME", "--terms.hybrid.weight", "LIF"):
        assert word in text


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--version"]) == 0
    assert capsys.readouterr().out.startswith("spikelet ")


# ---- what is written --------------------------------------------------------------------------


def test_teach_writes_one_object(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    run = tmp_path / "run"
    words = ["teach", "--data", "digits", "--epochs", "1", "--validation", "20"]
    assert main([*words, "--seed", "5", "--batch", "64", "--out", str(run), "--json"]) == 0
    out, err = capfd.readouterr()
    content = only_object(out)
    assert content["run"] == str(run)
    (row,) = content["rows"]
    assert set(row) >= ROW
    assert (row["method"], row["steps"], row["std"], row["n"]) == ("teacher", None, None, 1)
    assert (row["seed"], row["split"]) == (5, "test")
    assert "epoch 1/1" in err
    recipe = json.loads((run / "recipe.json").read_text())
    assert recipe["training"]["batch"] == 64
    assert recipe["data"] == {"kind": "digits", "validation": 20}


def test_distill_writes_teacher_conversion_and_student(student: Path) -> None:
    rows = json.loads((student / "results.json").read_text())["rows"]
    found = [(row["method"], row["steps"]) for row in rows]
    assert found == [
        ("teacher", None),
        *(("convert", 1), ("convert", 2)),
        *(("hybrid", 1), ("hybrid", 2)),
    ]
    assert all(set(row) >= ROW and row["split"] == "test" for row in rows)


def test_distill_takes_data_of_its_teacher_and_leaves(teacher: Path, student: Path) -> None:
    recipe = json.loads((student / "recipe.json").read_text())
    assert recipe["data"] == {"kind": "test_cli:few"}
    assert recipe["neuron"] == {**PLAIN, "signed": True}
    assert recipe["terms"]["hybrid"] == {"kind": "hybrid", "weight": 0.5}
    assert recipe["teacher"] == {"run": str(teacher)}
    assert (recipe["seed"], recipe["steps"], recipe["calibrate"]) == (3, 2, 32)


@pytest.mark.parametrize("part", ["test", "validation"])
def test_measure_writes_one_object(
    part: str, student: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    words = ["measure", str(student), "steps", "--steps", "1", "3", "--split", part, "--json"]
    assert main(words) == 0
    content = only_object(capfd.readouterr().out)
    found = [(row["method"], row["steps"]) for row in content["rows"]]
    assert found[0] == ("teacher", None)
    assert found[1:] == [(name, t) for name in ("convert", "hybrid") for t in (1, 3)]
    assert all(set(row) >= ROW and row["split"] == part for row in content["rows"])


def test_measure_repeats_the_results(student: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert main(["measure", str(student), "--json", "--quiet"]) == 0
    out, err = capfd.readouterr()
    assert err == ""
    stored = json.loads((student / "results.json").read_text())["rows"]
    kept = [{name: row[name] for name in (*ROW, "kind") if name in row} for row in stored]
    assert only_object(out)["rows"] == kept


def test_measure_of_a_teacher_shows_a_table(
    teacher: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    assert main(["measure", str(teacher), "steps"]) == 0
    out, _ = capfd.readouterr()
    assert "teacher" in out
    assert "ANN" in out


def test_demo_passes_on(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> None:
    demo = pytest.importorskip("spikelet.demo", reason="spikelet.demo is not written yet")

    def run(out: Path, seeds: int, console: Any, **overrides: Any) -> dict[str, Any]:
        print("something a library prints")
        epochs = {name: each.epochs for name, each in overrides.items()}
        return {"run": str(out), "rows": [], "seeds": seeds, **epochs}

    monkeypatch.setattr(demo, "run", run)
    assert main(["demo", "--out", "here", "--seeds", "2", "--epochs", "1", "--json"]) == 0
    out, err = capfd.readouterr()
    expected = {"schema": 1, "run": "here", "rows": [], "seeds": 2, "teach": 1, "distill": 1}
    assert only_object(out) == expected
    assert "something a library prints" in err


# ---- mistakes ---------------------------------------------------------------------------------

GRID = ["compare", "--data", "digits", "--methods", "logits", "--out", "OUT"]
MISTAKES = {
    "verb": (["tech"], "teach"),
    "flag": (["teach", "--data", "digits", "--lerning-rate", "1"], "--learning-rate"),
    "number": (["teach", "--data", "digits", "--epochs", "x"], "--epochs"),
    "bench, what": (["bench", "trian"], "train"),
    "bench, nothing": (["bench"], "memory"),
    "bench, engine": (["bench", "train", "--engines", "rat"], "rate"),
    "bench, steps": (["bench", "infer", "--steps", "0"], "--steps 0"),
    "bench, repeats": (["bench", "memory", "--repeats", "0"], "--repeats 0"),
    "bench, model": (["bench", "train", "--model", "resnet81", "--out", "OUT"], "resnet18"),
    "bench, place": (["bench", "train", "--out", "FILE"], "--out"),
    "out is missing": (["teach", "--data", "digits"], "--out"),
    "data is missing": (["teach", "--out", "OUT"], "--data"),
    "data": (["teach", "--data", "digitz", "--out", "OUT"], "digits"),
    "model": (["teach", "--data", "digits", "--model", "resnet81", "--out", "OUT"], "resnet18"),
    "data folder": (["teach", "--data", "mnist", "--data-root", "NO", "--out", "OUT"], "download"),
    "weights": (
        ["teach", "--data", "digits", "--weights", "NO.pt", "--out", "OUT"],
        "no such file",
    ),
    "device": (["teach", "--data", "digits", "--out", "OUT", "--device", "cuda:9"], "--device"),
    "leaf": (["teach", "--data", "digits", "--out", "OUT", "--training.cli", "1"], "clip"),
    "place": (["teach", "--data", "digits", "--out", "OUT", "--trainin.clip", "1"], "training"),
    "teacher is missing": (["distill", "--out", "OUT"], "--teacher"),
    "teacher": (["distill", "--teacher", "runs/nothing", "--out", "OUT"], "no run"),
    "teacher file": (
        [
            "distill",
            "--teacher",
            "resnet20",
            "--weights",
            "NO.pt",
            "--data",
            "digits",
            "--out",
            "OUT",
        ],
        "no such file",
    ),
    "untrained": (
        ["distill", "--teacher", "resnet20", "--data", "digits", "--out", "OUT"],
        "weights",
    ),
    "steps": (["distill", "--teacher", "TEACHER", "--steps", "0", "--out", "OUT"], "steps"),
    "method": (["distill", "--teacher", "TEACHER", "--method", "hybird", "--out", "OUT"], "hybrid"),
    "neuron": (["distill", "--teacher", "TEACHER", "--neuron", "ILF", "--out", "OUT"], "LIF"),
    "execute": (["distill", "--teacher", "TEACHER", "--execute", "rat", "--out", "OUT"], "rate"),
    "term": (
        ["distill", "--teacher", "TEACHER", *HYBRID, "--terms.hybrit.tau", "4", "--out", "OUT"],
        "hybrid",
    ),
    "field": (
        ["distill", "--teacher", "TEACHER", *HYBRID, "--terms.hybrid.wieght", "4", "--out", "OUT"],
        "weight",
    ),
    "value": (
        [*DISTILL, *HYBRID, "--terms.hybrid.weight", "much", "--out", "OUT"],
        "number",
    ),
    "out is in a file": (["teach", "--data", "digits", "--out", "FILE"], "is a file"),
    "run exists": (["teach", "--data", "digits", "--out", "TEACHER"], "--resume"),
    "student teaches": (["distill", "--teacher", "STUDENT", "--out", "OUT"], "student"),
    "measure": (["measure", "STUDENT", "stepz"], "steps"),
    "measure nothing": (["measure", "NO"], "run"),
    "measure no steps": (["measure", "STUDENT", "--steps", "0"], "1 or more"),
    "resume nothing": (["distill", "--resume", "NO"], "no run"),
    "resume a teacher": (["distill", "--resume", "TEACHER"], "spikelet teach --resume"),
    "page as PDF": (["report", "STUDENT", "--out", "page.pdf"], "name a file such as page.html"),
    "augmentation": ([*DISTILL, "--augment", "flipp", "--out", "OUT"], "--augment 'flipp'"),
    "versus nothing": (["measure", "STUDENT", "--versus", "NO"], "--versus"),
    "measures at the end": (
        ["measure", "STUDENT", "--data-root", "NO", "--images", "1", "noise"],
        "directly behind RUN",
    ),
    "resume another": (["distill", "--resume", "STUDENT", "--epochs", "9"], "--epochs"),
    "grid without data": (["compare", "--methods", "logits", "--out", "OUT"], "--data"),
    "grid without methods": (["compare", "--data", "digits", "--out", "OUT"], "--methods"),
    "grid without out": (["compare", "--data", "digits", "--methods", "logits"], "--out"),
    "grid method": (
        ["compare", "--data", "digits", "--methods", "logits", "hybird", "--out", "OUT"],
        "hybrid",
    ),
    "grid seeds": ([*GRID, "--seeds", "0"], "1 to"),
    "conversion from scratch": (
        [
            "distill",
            "--teacher",
            "resnet20",
            "--method",
            "convert",
            "--start",
            "scratch",
            "--out",
            "OUT",
        ],
        "convert is the teacher's conversion",
    ),
    "grid steps": ([*GRID, "--steps", "2", "0"], "1 or more"),
    "grid epochs": ([*GRID, "--epochs", "-1"], "0 or more"),
    "grid leaf": ([*GRID, "--terms.hybrid.weight", "1"], "logits"),
    "grid field": ([*GRID, "--terms.logits.tua", "1"], "tau"),
    "grid value": ([*GRID, "--training.clip", "much"], "number"),
    "grid new term": ([*GRID, "--terms.extra.kind", "affine"], "no method"),
    "grid seed": ([*GRID, "--seed", "3"], "--seeds"),
    "grid jobs": ([*GRID, "--jobs", "0"], "1 or more"),
    "grid budget": ([*GRID, "--budget-minutes", "-1"], "0 or more"),
    "grid device": ([*GRID, "--device", "cpu", "cuda:9"], "cuda:9"),
    "grid tuning": ([*GRID, "--tune", "2", "--validation", "0"], "for tuning"),
    "grid rates": ([*GRID, "--tune-rates", "0"], "above 0"),
    "grid weights": ([*GRID, "--weights", "NO.pt"], "--teacher"),
    "grid width": ([*GRID, "--teacher", "TEACHER", "--width", "8"], "--model"),
    "grid teacher": ([*GRID, "--teacher", "runs/nothing"], "no run"),
    "grid out is a run": (
        ["compare", "--data", "digits", "--methods", "logits", "--out", "TEACHER"],
        "no comparison",
    ),
    "resume no grid": (["compare", "--resume", "STUDENT"], "no comparison"),
    "resume a grid of nothing": (["compare", "--resume", "NO"], "no comparison"),
    "resume a leaf": (
        ["distill", "--resume", "STUDENT", "--training.clip", "1"],
        "--training.clip",
    ),
}


@pytest.mark.parametrize("name", MISTAKES)
def test_mistake_is_one_sentence(
    name: str, teacher: Path, student: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    words, expected = MISTAKES[name]
    out = tmp_path / "out"
    places = {"TEACHER": str(teacher), "STUDENT": str(student), "OUT": str(out)}
    places |= {
        "FILE": str(Path(__file__) / "out"),
        "NO": str(tmp_path / "no"),
        "NO.pt": str(tmp_path / "no.pt"),
    }
    before = sorted(path.name for path in teacher.iterdir())
    assert main([*(places.get(word, word) for word in words), "--json"]) == 2
    printed, err = capfd.readouterr()
    error = only_object(printed)["error"]
    assert set(error) == {"argument", "message", "fix"}
    assert expected in f"{error['argument']} {error['message']} {error['fix']}"
    assert len(err.strip().splitlines()) == 1
    assert err.startswith("spikelet: ")
    assert not out.exists()
    assert before == sorted(path.name for path in teacher.iterdir())


TEACH = ["teach", "--data", "digits", "--model", "small-cnn", "--out", "OUT"]
DISTILL = ["distill", "--teacher", "TEACHER", "--method", "logits", "--out", "OUT"]
TYPED = [
    (TEACH, "--epochs -1"),
    (TEACH, "--width 0"),
    (TEACH, "--model.width=-1"),
    (TEACH, "--learning-rate 0"),
    (TEACH, "--data.train 0"),
    (DISTILL, "--steps 0"),
    (DISTILL, "--epochs -1"),
    (DISTILL, "--batch=0"),
    (DISTILL, "--learning-rate -1"),
    (DISTILL, "--learning-rate nan"),
    (DISTILL, "--calibrate 0"),
    (DISTILL, "--estimate -1"),
    (DISTILL, "--seed -1"),
    (DISTILL, "--seed 99999999999999999999"),
    (DISTILL, "--norm never"),
    (DISTILL, "--training.weight-decay -1"),
    (DISTILL, "--training.clip much"),
    (DISTILL, "--encode.steps 3"),
    (GRID, "--steps 2 0"),
    (GRID, "--seeds 0"),
    (GRID, "--epochs -1"),
    (GRID, "--width 0"),
    (GRID, "--validation -1"),
    (GRID, "--calibrate 1"),
    (GRID, "--neuron.threshold 0"),
    (GRID, "--terms.logits.tau 0"),
    (["demo", "--out", "OUT"], "--seeds 0"),
    (["demo", "--out", "OUT"], "--epochs 0"),
    (["demo", "--out", "OUT"], "--steps 0"),
]


@pytest.mark.parametrize(("words", "flag"), TYPED)
def test_bad_value_is_told_by_the_flag_as_typed(
    words: list[str],
    flag: str,
    teacher: Path,
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
) -> None:
    places = {"TEACHER": str(teacher), "OUT": str(tmp_path / "out")}
    assert main([*(places.get(word, word) for word in words), *flag.split(), "--json"]) == 2
    error = only_object(capfd.readouterr().out)["error"]
    name, _, value = flag.partition(" ")
    asked_by_parser = error["argument"] == name and value in error["message"]
    assert error["argument"] == flag or asked_by_parser or name == "--encode.steps"
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("argument", "typed", "expected"),
    [
        ("steps = 0", "--steps 0", "--steps 0"),
        ("learning_rate = 1e+30", "--learning-rate 1e30", "--learning-rate 1e30"),
        ("clip = 0.0", "--training.clip=0", "--training.clip=0"),
        ("steps = 0", "--steps 3 --steps 0", "--steps 0"),
        ("--methods none: threshold = 0", "--neuron.threshold 0", "--neuron.threshold 0"),
        ("neuron.threshold.float = 'x'", "--neuron.threshold x", "--neuron.threshold x"),
        ("--tune-rates 0.0", "--tune-rates 0.1 0", "--tune-rates 0"),
        ("download=True", "--download --seed 3", "--download"),
        ("run = /somewhere/run", "--teacher /somewhere/run", "--teacher /somewhere/run"),
        # given by no flag, or by one with another value, or in a file, or to another network
        ("learning_rate = 0.1", "--steps 4", None),
        ("learning_rate = 0.1", "--learning-rate 0.2", None),
        ("steps = 0", "--teacher.steps 0 --steps 4", "--teacher.steps 0"),
        ("--methods logits[training.clip=0]: clip = 0", "--training.clip 2", None),
        ("runs/a/recipe.json: steps = 0", "--steps 0", None),
        ("teacher: learning_rate = 0.2", "--learning-rate 0.2", None),
        ("--width", "--width 8", None),
    ],
)
def test_flag_of_a_field(argument: str, typed: str, expected: str | None) -> None:
    error = told(UserError(argument, "what", "fix"), ["distill", *typed.split()])
    assert error.argument == (argument if expected is None else expected)
    assert (error.message, error.fix) == ("what", "fix")


def table(rows: list[dict[str, Any]]) -> str:
    """The table of rows as text."""
    console = Console(record=True, width=100, file=io.StringIO())
    console.print(accuracy_table(rows))
    return console.export_text()


def test_table_of_many_steps_shows_some_of_them() -> None:
    common = {"std": None, "n": 1, "seed": 0, "split": "test", "method": "logits"}
    some = {8: (1, 2, 4, 8), 12: (1, 2, 4, 8, 12), 16: (1, 2, 4, 8, 16)}
    for last, shown in ({7: range(1, 8)} | some).items():
        rows = [{"steps": t, "accuracy": t / 100, **common} for t in range(1, last + 1)]
        head = table(rows).splitlines()[1]
        assert [each for each in head.split() if "T=" in each] == [f"T={t}" for t in shown]


def test_what_training_took_stands_below_the_table() -> None:
    common = {"std": None, "n": 1, "seed": 0, "split": "test", "method": "logits", "steps": 2}
    rows = [{"accuracy": 0.5, "seconds": 1234.5, "ann_epochs_macs": 7.25, **common}]
    console = Console(record=True, width=200, file=io.StringIO())
    show(console, {"rows": rows})
    last = console.export_text().splitlines()[-1]
    price = "the price of 7.2 epochs of training the teacher"
    assert last == f"training took 1,234 s, by multiply-accumulates {price}"
    assert priced({"seconds": 3.0, "ann_epochs": 2.0}) == priced({}) == ""


def test_table_names_what_teaches() -> None:
    common = {"std": None, "n": 1, "seed": 0, "split": "test"}
    given = {"method": "teacher", "steps": None, "accuracy": 0.5, "kind": "ann", **common}
    student = {"method": "logits", "steps": 2, "accuracy": 0.25, **common}
    assert "ANN" in table([given, student])
    spiking = table([{**given, "kind": "snn, T = 2"}, student])
    assert "ANN" not in spiking and "teacher (spiking, T = 2)" in spiking
    noted = {**given, "note": "given, before joint training"}
    both = table([noted, {**student, "accuracy_teacher": 0.75}])
    assert "teacher (given, before joint training) │ 50.00" in both
    assert "teacher (after joint training)         │ 75.00" in both


DAMAGE = {
    "results, nothing": ("results.json", "", "resume"),
    "results, null": ("results.json", "null", "resume"),
    "results, no rows": ("results.json", '{"rows": 7}', "resume"),
    "results, other rows": ("results.json", '{"rows": [{"method": "x"}]}', "resume"),
    "recipe": ("recipe.json", '{"task": "dist', "measure"),
    "model, nothing": ("model.json", "", "measure"),
    "model, null": ("model.json", "null", "measure"),
    "model, a field": ("model.json", '{"kind": "small-cnn", "classes": "x"}', "measure"),
    "teacher": ("teacher.json", "[]", "measure"),
    "weights": ("model.safetensors", "PK garbage", "measure"),
    "card": ("card.json", "[]", "measure"),
}


@pytest.mark.parametrize("name", DAMAGE)
def test_damaged_file_of_a_run_is_named(
    name: str, student: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    file, content, command = DAMAGE[name]
    run = tmp_path / "run"
    shutil.copytree(student, run)
    (run / file).write_text(content)
    words = ["measure", run] if command == "measure" else ["distill", "--resume", run]
    said = sentence(capfd, *words, "--quiet")
    assert str(run / file) in said
    mended = ("new folder", "delete it and resume", "make it again", "resume the run, which")
    assert any(words in said for words in mended)


@pytest.mark.parametrize("file", ["model.safetensors", "teacher.safetensors"])
def test_weights_that_changed_are_not_measured(
    file: str, student: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """One bit of a weight: the file is read without complaint, its digest is another."""
    run = tmp_path / "run"
    shutil.copytree(student, run)
    content = bytearray((run / file).read_bytes())
    content[-3] ^= 0x40
    (run / file).write_bytes(content)
    assert "sha256 differs" in sentence(capfd, "measure", run, "--quiet")


@pytest.mark.parametrize(
    "file", ["model.safetensors", "card.json", "model.json", "teacher.json", "teacher.safetensors"]
)
def test_weights_that_are_lost_come_back_from_the_checkpoint(
    file: str, student: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """Gone or damaged, resuming makes them again; without a checkpoint it says that it cannot."""
    run = tmp_path / "run"
    shutil.copytree(student, run)
    before = json.loads((run / "results.json").read_text())["rows"]
    (run / "model.safetensors").unlink()
    assert f"--resume {run}" in sentence(capfd, "measure", run, "--quiet")
    (run / file).write_bytes(b"damaged")
    assert main(["distill", "--resume", str(run)]) == 0
    assert "made again from its checkpoint" in "".join(capfd.readouterr())
    after = json.loads((run / "results.json").read_text())["rows"]
    assert [row["accuracy"] for row in after] == [row["accuracy"] for row in before]
    assert (run / "model.safetensors").read_bytes() == (student / "model.safetensors").read_bytes()
    assert quiet("measure", str(run), "steps") == 0
    capfd.readouterr()
    (run / "model.safetensors").write_bytes(b"damaged")
    shutil.rmtree(run / "checkpoint")
    assert "there is no checkpoint" in sentence(capfd, "distill", "--resume", run, "--quiet")


@pytest.mark.parametrize(
    ("file", "content"),
    [
        ("DOCUMENT", ""),
        ("DOCUMENT", '{"format": "spikelet.state", "tensors": 7, "state": {}}'),
        ("TENSORS", "garbage"),
        ("STATE", "{}"),
        ("STATE", "null"),
    ],
)
def test_damaged_checkpoint_is_named(
    file: str, content: str, student: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "run"
    shutil.copytree(student, run)
    (run / "results.json").unlink()
    folder = run / "checkpoint"
    for path in folder.glob("*.safetensors" if file == "TENSORS" else "*.json"):  # every one kept
        if file == "STATE":
            content = json.dumps({**json.loads(path.read_text()), "state": json.loads(content)})
        path.write_text(content)
    said = sentence(capfd, "distill", "--resume", run, "--quiet")
    assert str(folder) in said and f"delete the folder {folder}" in said


def test_lost_checkpoint_is_told_and_lost_selection_not_invented(
    student: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "run"
    shutil.copytree(student, run)
    (run / "results.json").unlink()
    (run / "selected.safetensors").unlink()
    assert main(["distill", "--resume", str(run), "--json"]) == 0
    out, err = capfd.readouterr()
    assert "training begins" not in err
    assert "accuracy_selected" not in only_object(out)["rows"][-1]
    (run / "results.json").unlink()
    shutil.rmtree(run / "checkpoint")
    assert main(["distill", "--resume", str(run), "--json"]) == 0
    out, err = capfd.readouterr()
    assert "training begins from its start" in err
    stored = json.loads((student / "results.json").read_text())["rows"][-1]
    again = only_object(out)["rows"][-1]
    for key in ("accuracy", "accuracy_selected", "epoch_selected"):
        assert again[key] == stored[key]


def sentence(capfd: pytest.CaptureFixture[str], *words: str | Path) -> str:
    """What a command that must exit with 2 says."""
    assert main([*map(str, words)]) == 2
    out, err = capfd.readouterr()
    assert out == ""
    return err.strip().splitlines()[-1]


def test_class_counts_differ(
    teacher: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    words = ("distill", "--teacher", teacher, "--data", "test_cli:five", "--out", tmp_path / "out")
    said = sentence(capfd, *words)
    assert "10 classes" in said
    assert "5" in said


def test_teacher_is_no_classifier(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    torch.save({"weight": torch.zeros(10, 1, 1, 1), "bias": torch.zeros(10)}, tmp_path / "w.pt")
    words = ("distill", "--teacher", "test_cli:segmenter", "--weights", tmp_path / "w.pt")
    said = sentence(capfd, *words, "--data", "digits", "--out", tmp_path / "out")
    assert "classifier" in said
    assert "(2, 10)" in said


def test_cut_inside_a_residual_block(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    run = str(tmp_path / "teacher")
    words = ("--model", "resnet20", "--width", "1", "--epochs", "0")
    assert quiet("teach", *FEW, *words, "--out", run) == 0
    capfd.readouterr()
    words = ("distill", "--teacher", run, *HYBRID, "--steps", "1")
    words += ("--terms.hybrid.on", "layer1.1.relu1")
    said = sentence(capfd, *words, "--calibrate", "4", "--out", tmp_path / "out")
    assert "goes around" in said


def test_loss_that_is_not_finite(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    words = ("teach", *FEW, "--batch", "8", "--learning-rate", "1e30")
    said = sentence(capfd, *words, "--out", tmp_path / "out")
    assert "not finite" in said
    assert "lower one" in said


def test_defect_is_told_as_one(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    from spikelet.train import job

    def broken(*_: Any, **__: Any) -> None:
        raise RuntimeError("not the user's fault")

    monkeypatch.setattr(job, "teach", broken)
    assert main(["teach", "--data", "digits", "--out", str(tmp_path / "out"), "--json"]) == 1
    out, err = capfd.readouterr()
    assert "Traceback" in err
    assert only_object(out)["error"]["message"] == "not the user's fault"


# ---- stopping and resuming --------------------------------------------------------------------


def test_resume_of_a_finished_run_says_so(student: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert main(["distill", "--resume", str(student), "--json"]) == 0
    out, err = capfd.readouterr()
    assert "is finished" in err
    assert only_object(out)["rows"] == json.loads((student / "results.json").read_text())["rows"]


@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_stopped_run_can_be_resumed(
    number: signal.Signals, status: int, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "run"
    words = ["teach", *FEW, "--epochs", "30"]
    before = signal.signal(number, signal.SIG_IGN)
    try:
        thread = after(lambda: lines_of(run) > 0, lambda: os.kill(os.getpid(), number))
        assert main([*words, "--out", str(run)]) == status
        thread.join()
    finally:
        signal.signal(number, before)
    assert f"spikelet teach --resume {run}" in capfd.readouterr().err
    assert main(["teach", "--resume", str(run), "--json"]) == 0
    assert only_object(capfd.readouterr().out)["rows"][0]["method"] == "teacher"
    assert lines_of(run) == 30


def lines_of(run: Path) -> int:
    """Epochs that a run has written down."""
    path = run / "metrics.jsonl"
    return len(path.read_text().splitlines()) if path.exists() else 0


def after(ready: Callable[[], bool], act: Callable[[], None]) -> threading.Thread:
    """A thread that acts as soon as something is so, within half a minute."""

    def watch() -> None:
        for _ in range(6000):
            if ready():
                act()
                return
            time.sleep(0.005)

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    return thread


# ---- grids ------------------------------------------------------------------------------------


def test_compare_writes_one_object(
    teacher: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    words = ["compare", "--teacher", str(teacher), "--methods", "logits", "--steps", "2"]
    words += ["--seeds", "2", "--epochs", "1", "--calibrate", "32", "--terms.logits.tau", "4"]
    words += ["--execute.fuse", "False", "--device", "cpu", "--out", str(out), "--json"]
    assert main(words) == 0
    printed, err = capfd.readouterr()
    content = only_object(printed)
    assert content["run"] == str(out)
    assert all(set(row) >= ROW | {"difference", "low", "high"} for row in content["rows"])
    found = {(row["method"], row["seed"]) for row in content["rows"] if row["steps"] == 2}
    methods = ("none", "convert", "qann", "logits")
    assert found == {(method, seed) for method in methods for seed in (None, 0, 1)}
    assert "(8 of 8)" in err and "logits, T = 2, seed 1" in err
    recipe = json.loads((out / "cells" / "logits-T2-seed1" / "recipe.json").read_text())
    assert recipe["terms"]["logits"]["tau"] == 4.0
    assert recipe["data"] == {"kind": "test_cli:few"}

    assert main(["compare", "--resume", str(out), "--json", "--quiet"]) == 0
    printed, err = capfd.readouterr()
    assert only_object(printed)["rows"] == content["rows"]
    assert err == ""
    assert main(["compare", "--resume", str(out), "--seeds", "5"]) == 2
    assert "keeps its settings" in capfd.readouterr().err
    assert main(["compare", "--resume", str(out), "--training.clip", "5"]) == 2
    assert "--training.clip" in capfd.readouterr().err


def test_bench_writes_one_object(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "bench"
    words = ["bench", "train", "--model", "small-cnn", "--width", "2", "--size", "8"]
    words += ["--batch", "2", "--steps", "2", "--engines", "rate", "bptt", "--fuse", "off"]
    words += ["--repeats", "1", "--device", "cpu", "--out", str(out)]
    assert main([*words, "--json"]) == 0
    printed, err = capfd.readouterr()
    content = only_object(printed)
    assert [row["engine"] for row in content["rows"]] == ["ann", "rate", "bptt"]
    assert content["files"] == [str(out / "bench.json"), str(out / "bench.svg")]
    assert "bptt, fp32, T = 2" in err and "x floor" in err
    assert main([*words, "--quiet"]) == 0
    printed, err = capfd.readouterr()
    assert err == ""
    assert "x floor" in printed and str(out / "bench.svg") in printed


LEAVES = (
    "--training.clip none --neuron.surrogate.alpha 3 --neuron.surrogate.kind sigmoid",
    "--augment crop flip --augment.0.padding 2 --calibrate 9 --norm frozen",
    "--neuron.kind LIF --neuron.threshold 2 --terms.logits.tau 4 --terms.logits.weight 2",
    "--terms.hybrid.on layer1 layer2 --execute.kind bptt --training.optimiser sgd",
    "--neuron.surrogate triangle --execute.divide-by-steps yes --joint True",
)


@pytest.mark.parametrize("text", LEAVES)
def test_leaf_of_a_grid_is_that_of_each_run(text: str) -> None:
    """A grid sets the leaves that `distill` would, wherever a method has them."""
    from spikelet.cli.compare import overrides_of
    from spikelet.compare import Cell, Grid

    _, leaves = split(text.split())
    plain = [leaf for leaf in leaves if "." in leaf.flag or leaf.flag == "--augment"]
    words = text.split()
    plain += [
        Leaf(word[2:], (words[index + 1],), word)
        for index, word in enumerate(words)
        if word.startswith("--") and "." not in word and word != "--augment"
    ]
    grid = Grid({"kind": "digits"}, ("logits", "hybrid"))
    grid = dataclasses.replace(grid, overrides=overrides_of(plain, grid))
    grid = Grid.from_json(json.loads(json.dumps(grid.to_json())))
    for method in ("none", "logits", "hybrid"):
        base = default_recipe("distill", {"kind": "digits"}, method)
        mine = [leaf for leaf in plain if _has(base, leaf)]
        expected = gentler(overridden(base, mine), [leaf.path for leaf in mine])
        assert grid.recipe(Cell(method, base.steps, 0)) == expected


def _has(recipe: Recipe, leaf: Leaf) -> bool:
    head, *rest = leaf.path.split(".")
    return head != "terms" or rest[0] in recipe.terms


# ---- leaves -----------------------------------------------------------------------------------


def set_leaves(text: str, task: str = "distill") -> Recipe:
    """A default recipe on digits with the leaves of a command line."""
    rest, leaves = split(text.split())
    assert rest == []
    model = {"kind": "small-cnn", "width": 16}
    return overridden(default_recipe(task, {"kind": "digits"}, "hybrid", model=model), leaves)


@pytest.mark.parametrize(
    ("text", "rate"),
    [
        ("", 0.004),
        ("--neuron.signed True", 0.001),
        ("--norm frozen", 0.001),
        ("--neuron.signed True --norm settled", 0.004),
        ("--data digits --neuron.signed True", 0.001),
        ("--neuron.signed True --learning-rate 0.002", 0.002),
        ("--norm frozen --training.learning-rate 0.004", 0.004),
        ("--norm frozen --training.optimiser sgd", 0.004),
    ],
)
def test_a_rate_that_norms_bear(text: str, rate: float, student: Path) -> None:
    """Frozen norms end at chance by the rate of others; a rate that is named is taken."""
    words = ["--teacher", str(student), "--data", "mnist", "--model", "small-cnn", *text.split()]
    rest, leaves = split(words)
    recipe = distill.recipe_of(parse("distill", rest), leaves)
    assert recipe.training.learning_rate == rate
    if "optimiser" not in text:
        line = command_of(recipe, "out")
        rest, leaves = split(shlex.split(line or "")[2:])
        assert distill.recipe_of(parse("distill", rest), leaves) == recipe


@pytest.mark.parametrize(
    ("text", "read", "expected"),
    [
        ("--training.learning-rate 0.5", lambda r: r.training.learning_rate, 0.5),
        ("--training.learning_rate=0.5", lambda r: r.training.learning_rate, 0.5),
        ("--training.clip none", lambda r: r.training.clip, None),
        ("--training.ema 0.9", lambda r: r.training.ema, 0.9),
        ("--training.tensorboard", lambda r: r.training.tensorboard, True),
        ("--training.optimiser adamw", lambda r: r.training.optimiser, "adamw"),
        ("--neuron.threshold 2", lambda r: r.neuron, {**PLAIN, "threshold": 2.0}),
        ("--neuron.initial -1", lambda r: r.neuron, {**PLAIN, "initial": -1.0}),
        ("--neuron.kind LIF", lambda r: r.neuron, {**PLAIN, "kind": "LIF"}),
        (
            "--neuron.surrogate.alpha 3 --neuron.surrogate.kind sigmoid",
            lambda r: r.neuron["surrogate"],
            {"kind": "sigmoid", "alpha": 3.0},
        ),
        (
            "--neuron.surrogate triangle",
            lambda r: r.neuron["surrogate"],
            {"kind": "triangle"},
        ),
        ("--terms.logits.tau 4", lambda r: r.terms["logits"]["tau"], 4.0),
        (
            "--terms.hybrid.on layer1 layer2",
            lambda r: r.terms["hybrid"]["on"],
            ["layer1", "layer2"],
        ),
        ("--terms.hybrid.on all", lambda r: r.terms["hybrid"]["on"], "all"),
        ('--terms.hybrid.on ["layer1"]', lambda r: r.terms["hybrid"]["on"], ["layer1"]),
        (
            "--terms.extra.weight 2 --terms.extra.kind affine",
            lambda r: r.terms["extra"],
            {"kind": "affine", "weight": 2.0},
        ),
        ("--execute.kind bptt", lambda r: r.execute, {"kind": "bptt"}),
        ("--execute.divide-by-steps yes", lambda r: r.execute["divide_by_steps"], True),
        ("--model.width 8", lambda r: r.model["width"], 8),
        ("--data.train 100", lambda r: r.data["train"], 100),
        (
            "--augment crop flip --augment.0.padding 2",
            lambda r: r.augment,
            [{"kind": "crop", "padding": 2}, {"kind": "flip"}],
        ),
        ("--augment none", lambda r: r.augment, []),
    ],
)
def test_leaf_is_set(text: str, read: Callable[[Recipe], Any], expected: Any) -> None:
    found = read(set_leaves(text))
    assert found == expected
    assert type(found) is type(expected)


@pytest.mark.parametrize(
    ("kind", "expected"),
    [
        ("bptt", {"kind": "bptt", "fuse": True}),
        ("rate", {"kind": "rate", "fuse": True}),
        ("quantised", {"kind": "quantised"}),
    ],
)
def test_another_way_of_running_is_compiled_as_the_first(
    kind: str, expected: dict[str, Any]
) -> None:
    recipe = default_recipe("distill", {"kind": "mnist"})
    assert recipe.execute["fuse"] is True
    leaves = split(["--execute.kind", kind])[1]
    assert overridden(recipe, leaves).execute == expected


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("--neuron.tresh 1", "threshold"),
        ("--neuron.surrogate.kind arctan", "arctangent"),
        ("--neuron.surrogate.alpha 2", "--neuron.surrogate.kind"),
        ("--terms.other.weight 2", "choose one of ce, hybrid, logits"),
        ("--terms.logits", "--terms.NAME.FIELD"),
        ("--training.optimiser adam", "adamw"),
        ("--training.epochs 1.5", "whole number"),
        ("--execute.net 3", "not known"),
        ("--augment crop --augment.7.padding 3", "7"),
        ("--augment.0.padding 3", "--augment crop flip"),
        ("--teacher.width 3", "--teacher.kind"),
        ("--model.depth 3", "not known"),
        ("--steps.more 3", "not known"),
    ],
)
def test_wrong_leaf_is_one_sentence(text: str, said: str) -> None:
    with pytest.raises(UserError) as raised:
        _, leaves = split(text.split())
        leaves = leaves or [Leaf(text.split()[0][2:], (), text.split()[0])]
        model = {"kind": "small-cnn", "width": 16}
        overridden(default_recipe("distill", {"kind": "digits"}, "hybrid", model=model), leaves)
    assert said in str(raised.value)


def test_leaf_of_a_users_own_function() -> None:
    recipe = default_recipe("distill", {"kind": "test_cli:five"})
    with pytest.raises(UserError, match="remove it"):
        overridden(recipe, [Leaf("data.train", ("3",), "--data.train")])
