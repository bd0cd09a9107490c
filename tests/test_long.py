"""Runs that are killed, stopped, starved of space or given something else than they began with."""

from __future__ import annotations

import dataclasses
import errno
import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from rich.console import Console
from torch import Tensor
from torch.utils.data import DataLoader, TensorDataset
from torch.utils.data import Dataset as TorchDataset

from spikelet import folder
from spikelet.checkpoint import load_state
from spikelet.cli import main
from spikelet.compare import compare
from spikelet.compare.grid import stored_grid
from spikelet.data import Dataset, digits
from spikelet.errors import UserError
from spikelet.folder import alone_in, append
from spikelet.recipe import Recipe, Training, default_recipe
from spikelet.train import Interrupted, load, read_recipe
from spikelet.train.job import distill, teach
from spikelet.train.loop import Loop
from test_compare import DATA as FEW
from test_compare import Pull, accuracies, tiny
from test_train import Epochs, assert_same, timeless, train

QUIET = Console(quiet=True)
HERE = Path(__file__).parent
TRAINING = Training(epochs=2, batch=40, learning_rate=0.05, checkpoint_minutes=1e-9)
SIZE = {"kind": "small-cnn", "width": 2}


@pytest.fixture(scope="module")
def dataset() -> Dataset:
    every = digits(train=100, validation=20)
    return dataclasses.replace(every, test=every.test.at(torch.arange(40)))


def recipe(**fields: Any) -> Recipe:
    data = {"kind": "digits", "train": 100, "validation": 20}
    return default_recipe("teach", data, **{"model": SIZE, "training": TRAINING, **fields})


def run(out: Path, dataset: Dataset, resume: bool = False, **fields: Any) -> dict[str, Any]:
    """The same small run each time."""
    there = {"console": QUIET, "device": "cpu", "dataset": dataset, "resume": resume}
    return teach(recipe(**fields), out, **there)


@pytest.fixture(scope="module")
def whole(dataset: Dataset, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run that nothing happened to."""
    out = tmp_path_factory.mktemp("long") / "whole"
    run(out, dataset)
    return out


def assert_alike(left: Path, right: Path) -> None:
    for name in ("model.safetensors", "selected.safetensors"):
        assert (left / name).read_bytes() == (right / name).read_bytes(), name


@pytest.fixture
def stop_after(monkeypatch: pytest.MonkeyPatch) -> Callable[[int], None]:
    """Sends SIGTERM to this process after some steps of training, once."""

    def set_up(steps: int) -> None:
        step, taken = Loop.step, []

        def counted(self: Any, *args: Any) -> None:
            step(self, *args)
            taken.append(1)
            if len(taken) == steps:
                os.kill(os.getpid(), signal.SIGTERM)

        monkeypatch.setattr(Loop, "step", counted)

    return set_up


# ---- killed -----------------------------------------------------------------------------------


def killed(where: Path, task: str, seed: int, kills: int) -> list[int]:
    """How many lives were killed with the run begun, and how many checkpoints were damaged."""
    words = [sys.executable, "killing.py", str(where), task, str(seed), str(kills)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        words, cwd=HERE, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    for name in ("model.safetensors", "selected.safetensors"):
        mine, theirs = where / "killed" / name, where / task / name
        assert mine.read_bytes() == theirs.read_bytes(), name
    rows = [json.loads((where / each / "results.json").read_text())["rows"] for each in
            ("killed", task)]  # fmt: skip
    assert [row["accuracy"] for row in rows[0]] == [row["accuracy"] for row in rows[1]]
    return [int(word) for word in done.stdout.split()]


needs_fork = pytest.mark.skipif(not hasattr(os, "fork"), reason="this system does not fork")


@needs_fork
def test_a_run_killed_a_few_times_ends_bit_identical(tmp_path: Path) -> None:
    hits, _ = killed(tmp_path, "teach", seed=1, kills=5)
    assert hits > 1


@needs_fork
@pytest.mark.slow
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_a_student_killed_often_with_damaged_checkpoints_ends_bit_identical(
    seed: int, tmp_path: Path
) -> None:
    hits, damaged = killed(tmp_path, "distill", seed, kills=60)
    assert hits > 5 and damaged


def test_a_damaged_checkpoint_is_told_and_the_one_before_continued(
    dataset: Dataset, whole: Path, tmp_path: Path, stop_after: Callable[[int], None],
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    stop_after(3)
    with pytest.raises(Interrupted) as stopped:
        run(tmp_path, dataset)
    assert stopped.value.code == 143
    newest = max((tmp_path / "checkpoint").glob("tensors-*"))
    newest.write_bytes(newest.read_bytes()[:-1])
    console = Console(stderr=True, width=500)
    teach(recipe(), tmp_path, resume=True, console=console, device="cpu", dataset=dataset)
    told = capsys.readouterr().err
    assert f"{newest.name} is damaged: its sha256 differs" in told
    assert "goes on from the one before, at epoch 2, batch 0" in told
    assert_alike(tmp_path, whole)


# ---- many short epochs -----------------------------------------------------------------------


class Stopped(Exception):
    """As good as a kill: nothing is stored because of it."""


def test_short_epochs_are_measured_and_stored_as_often_as_epochs_were_asked_for(
    tmp_path: Path,
) -> None:
    """Three epochs of five steps become eight; a run that dies in the seventh loses little."""
    training = Training(epochs=3, least_steps=40, learning_rate=0.05)
    measured: list[int] = []

    def evaluate() -> dict[str, float]:
        measured.append(1)
        return {"accuracy": 0.5}

    whole, rows = train(tmp_path / "whole", training, evaluate=evaluate)
    assert [row["epoch"] for row in rows if row["validation"]] == [3, 6, 8]
    assert len(rows) == 8 and len(measured) == 3
    stored = [json.loads(line) for line in (tmp_path / "whole/metrics.jsonl").open()]
    assert stored == rows

    def die(epoch: int, index: int) -> None:
        if (epoch, index) == (6, 2):
            raise Stopped

    batches = Epochs()
    batches.before = die
    with pytest.raises(Stopped), pytest.MonkeyPatch.context() as patch:
        patch.setattr(Loop, "remaining", lambda self, stop: dying(self))
        train(tmp_path / "dead", training, batches=batches, evaluate=evaluate)
    progress = load_state(tmp_path / "dead" / "checkpoint")["progress"]
    assert (progress["epoch"], progress["batch"]) == (6, 0)
    again, history = train(tmp_path / "dead", training, evaluate=evaluate, resume=True)
    assert_same(whole, again)
    assert timeless(history) == timeless(rows)


def dying(loop: Loop) -> Iterator[Any]:
    """The batches, without the checkpoint where they end with an error."""
    standing = loop.state.standing
    yield from loop.batches.epoch(standing.epoch, standing.batch)


def test_the_epoch_that_validation_would_choose_is_one_that_was_measured(
    dataset: Dataset, tmp_path: Path, capsys: pytest.CaptureFixture[str],
    stop_after: Callable[[int], None],
) -> None:  # fmt: skip
    training = dataclasses.replace(TRAINING, epochs=2, least_steps=14, checkpoint_minutes=9.0)
    console = Console(stderr=True, width=500)
    there: dict[str, Any] = {"console": console, "device": "cpu", "dataset": dataset}
    whole = teach(recipe(training=training), tmp_path / "whole", **there)["rows"][0]
    said = capsys.readouterr().err
    assert "7 epochs in batches of 40" in said and "so many for 14 steps" in said
    assert said.count("epoch ") - said.count(" epoch ") == 2
    assert whole["epoch_selected"] in (4, 7)
    stop_after(11)
    with pytest.raises(Interrupted):
        teach(recipe(training=training), tmp_path / "out", **there)
    again = teach(recipe(training=training), tmp_path / "out", resume=True, **there)["rows"][0]
    assert again["accuracy_selected"] == whole["accuracy_selected"]
    assert again["epoch_selected"] == whole["epoch_selected"]
    assert_alike(tmp_path / "out", tmp_path / "whole")


# ---- two at once ------------------------------------------------------------------------------


def test_the_second_run_in_a_folder_is_refused_by_the_first_ones_number(
    dataset: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(folder, "PATIENCE", 0.1)
    said = rf"process {os.getpid()} is at work in this folder"
    with alone_in(tmp_path, "x"):
        with pytest.raises(UserError, match=said):
            run(tmp_path, dataset)
        assert [each.name for each in tmp_path.iterdir()] == [".lock"]
        words = ["teach", "--data", "digits", "--out", str(tmp_path), "--quiet"]
        assert main(words) == 2
    run(tmp_path, dataset, training=dataclasses.replace(TRAINING, epochs=0))
    assert not (tmp_path / ".lock").exists()


def test_a_killed_process_leaves_no_lock(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("fcntl")
    monkeypatch.setattr(folder, "PATIENCE", 0.1)
    code = "import sys, time, pathlib; from spikelet.folder import alone_in\n"
    code += "with alone_in(pathlib.Path(sys.argv[1]), 'x'): print(1, flush=True); time.sleep(60)"
    held = subprocess.Popen([sys.executable, "-c", code, str(tmp_path)], stdout=subprocess.PIPE)
    assert held.stdout is not None and held.stdout.readline() == b"1\n"
    with pytest.raises(UserError, match=f"process {held.pid} "), alone_in(tmp_path, "x"):
        pass
    held.kill()
    held.wait()
    assert (tmp_path / ".lock").exists()
    with alone_in(tmp_path, "x"):
        pass


# ---- a disk that is full, a folder that cannot be written -----------------------------------


@pytest.fixture
def failing(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[int, int], None]]:
    """Lets every write from the n-th on fail with an error of the system."""

    def set_up(count: int, number: int) -> None:
        real, left = folder._flush, [count]

        def flush(path: Path) -> None:
            left[0] -= 1
            if left[0] < 0:
                raise OSError(number, os.strerror(number))
            real(path)

        monkeypatch.setattr(folder, "_flush", flush)

    yield set_up


@pytest.mark.parametrize("count", [0, 3, 4, 6, 7, 9, 12, 17, 30, 35, 42])
def test_a_full_disk_is_one_sentence_and_the_run_goes_on(
    count: int, dataset: Dataset, whole: Path, tmp_path: Path,
    failing: Callable[[int, int], None], monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    failing(count, (errno.ENOSPC, errno.EROFS)[count % 2])
    with pytest.raises(UserError, match=r"cannot be written there \((No space|Read-only)") as told:
        run(tmp_path / "out", dataset)
    assert str(tmp_path / "out") in told.value.argument
    begun = (tmp_path / "out" / "recipe.json").exists()
    line = f"then continue with `spikelet teach --resume {tmp_path / 'out'}`"
    assert told.value.fix.endswith(line if begun else "or name another folder")
    monkeypatch.undo()
    run(tmp_path / "out", dataset, resume=begun)
    assert_alike(tmp_path / "out", whole)


def test_a_line_of_the_log_on_a_full_disk_names_its_file() -> None:
    full = Path("/dev/full")
    if not full.is_char_device():
        pytest.skip("this system has no /dev/full")
    with pytest.raises(OSError, match="No space left") as raised:
        append(full, "a line\n")
    assert raised.value.filename == "/dev/full"


def filling() -> Dataset:
    """Few digits, and as a side effect a disk with little space left."""
    every = digits(train=100, validation=20)
    if os.environ.get("FILL"):
        place = Path(os.environ["FILL"])
        free = os.statvfs(place).f_bavail * os.statvfs(place).f_frsize
        (place / "filler").write_bytes(bytes(max(free - 60_000, 0)))
    return dataclasses.replace(every, name="few", test=every.test.at(torch.arange(40)))


MOUNT = """
mount -t tmpfs -o size=1m none "$FILL" || exit 99
"$@" --out "$FILL/run"; first=$?
rm "$FILL/filler"; mount -o remount,size=20m "$FILL"
cp -r "$FILL/run" "$OUT"
exit $first
"""


@pytest.mark.slow
def test_a_disk_that_is_really_full(tmp_path: Path) -> None:
    """In a name space of its own, on a disk of one megabyte."""
    place, out = tmp_path / "small", tmp_path / "out"
    place.mkdir()
    words = ["teach", "--data", "test_long:filling", "--model", "small-cnn", "--width", "4"]
    words += ["--epochs", "3", "--batch", "40", "--quiet"]
    command = [sys.executable, "-m", "spikelet", *words]
    if shutil.which("unshare") is None:
        pytest.skip("there is no unshare")
    environment = {**os.environ, "FILL": str(place), "OUT": str(out), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        ["unshare", "--mount", "sh", "-c", MOUNT, "sh", *command],
        cwd=HERE, env=environment, capture_output=True, text=True, check=False,
    )  # fmt: skip
    if done.returncode in (1, 99) and "spikelet" not in done.stderr:
        pytest.skip(f"no disk of one's own here: {done.stderr.strip()}")
    assert done.returncode == 2, done.stderr
    (line,) = done.stderr.strip().splitlines()
    assert "cannot be written there (No space left on device" in line
    assert f"continue with `spikelet teach --resume {place}/run`" in line
    assert main(["teach", "--resume", str(out), "--quiet"]) == 0
    assert main([*words, "--out", str(tmp_path / "whole")]) == 0
    assert_alike(out, tmp_path / "whole")


# ---- data and workers -------------------------------------------------------------------------


def write_images(root: Path) -> None:
    draw = np.random.default_rng(0)
    for part, count in (("train", 12), ("test", 4)):
        for number in range(3 * count):
            path = root / part / f"class{number % 3}" / f"{number}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            pixels = draw.integers(0, 85, (8, 8, 3)) + 85 * (number % 3)
            Image.fromarray(pixels.astype(np.uint8)).save(path)


def test_a_data_file_deleted_while_a_run_was_stopped_is_noticed(
    tmp_path: Path, stop_after: Callable[[int], None], capfd: pytest.CaptureFixture[str]
) -> None:
    images = tmp_path / "images"
    write_images(images)
    words = ["teach", "--data", "imagefolder", "--data-root", str(images), "--data.size", "8"]
    words += ["--model", "small-cnn", "--width", "2", "--epochs", "2", "--batch", "8", "--quiet"]
    assert main([*words, "--out", str(tmp_path / "whole")]) == 0
    stop_after(3)
    out = str(tmp_path / "out")
    assert main([*words, "--out", out]) == 143
    assert f"spikelet teach --resume {out}" in capfd.readouterr().err
    gone = images / "train" / "class1" / "4.png"
    gone.rename(tmp_path / "kept.png")
    assert main(["teach", "--resume", out, "--quiet"]) == 2
    said = capfd.readouterr().err.strip()
    assert "images are not those which it was begun with; put it back as it was" in said
    assert len(said.splitlines()) == 1
    (tmp_path / "kept.png").rename(gone)
    assert main(["teach", "--resume", out, "--quiet"]) == 0
    assert_alike(tmp_path / "out", tmp_path / "whole")


def test_a_batch_that_is_no_number_leaves_the_state_before_it(tmp_path: Path) -> None:
    training = Training(epochs=3, learning_rate=0.05)
    batches, mended = Epochs(), Epochs()
    batches.images = batches.images.clone()
    batches.images[int(order(1)[2][0]), 0, 1, 1] = torch.nan  # once epoch 1 sees it, epoch 2
    (tmp_path / "recipe.json").write_text('{"task": "distill"}')
    with pytest.raises(UserError, match=r"images of epoch 1, batch \d are not finite") as told:
        train(tmp_path, training, batches=batches)
    line = f"`spikelet distill --resume {tmp_path}`"
    assert told.value.fix == f"mend the data, then go on from the state before it with {line}"
    stored = load_state(tmp_path / "checkpoint")["model"]
    assert all(bool(value.isfinite().all()) for value in stored.values())
    resumed, _ = train(tmp_path, training, batches=mended, resume=True)
    assert_same(resumed, train(None, training)[0])


def order(epoch: int) -> tuple[Tensor, ...]:
    """The images of each batch of `Epochs`."""
    return torch.randperm(36, generator=torch.Generator().manual_seed(epoch)).split(8)


class Mortal(TorchDataset):
    """Kills the process that asks for an image, once."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark
        self.images = TensorDataset(Epochs().images, Epochs().labels)

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> Any:
        if self.mark.exists() and torch.utils.data.get_worker_info() is not None and index == 7:
            self.mark.unlink()
            os.kill(os.getpid(), signal.SIGKILL)
        return self.images[index]


class Failing(Epochs):
    """Batches whose loader fails in the second epoch, before its third batch."""

    def __init__(self, error: Exception) -> None:
        super().__init__()
        self.error = error
        self.before = self.fail

    def fail(self, epoch: int, index: int) -> None:
        if (epoch, index) == (1, 2):
            raise self.error


@pytest.mark.parametrize(
    ("error", "raised"),
    [
        (RuntimeError("DataLoader worker (pid 7) is killed by signal: Killed. "), UserError),
        (UserError("data_root = x", "this image cannot be read", "mend it"), UserError),
        (RuntimeError("a mistake"), RuntimeError),
    ],
)
def test_what_was_done_before_the_data_failed_is_kept(
    error: Exception, raised: type[Exception], tmp_path: Path
) -> None:
    (tmp_path / "recipe.json").write_text('{"task": "distill"}')
    with pytest.raises(raised, match=str(error).strip("`. ").partition("(")[0]):
        train(tmp_path, batches=Failing(error))
    progress = load_state(tmp_path / "checkpoint")["progress"]
    assert (progress["epoch"], progress["batch"]) == (1, 2)
    assert_same(train(None)[0], train(tmp_path, resume=True)[0])


def loader(mark: Path) -> Any:
    """Images from a process of its own."""
    return DataLoader(Mortal(mark), batch_size=8, shuffle=True, num_workers=1)


def lose_worker(out: Path) -> None:
    """Trains in a folder until the process that loads images has killed itself."""
    (out / "mark").touch()
    (out / "recipe.json").write_text('{"task": "distill"}')
    try:
        train(out, batches=loader(out / "mark"))
    except UserError as error:
        print(error)


@pytest.mark.slow
def test_a_loader_process_that_dies_is_one_sentence(tmp_path: Path) -> None:
    """In a process of its own: torch tells of the death wherever that happens to be."""
    code = f"import pathlib, test_long; test_long.lose_worker(pathlib.Path({str(tmp_path)!r}))"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=HERE, capture_output=True, text=True, check=False
    )
    assert done.stdout.startswith("`batches`: a process that loads them has died"), done.stderr
    line = f"then continue with `spikelet distill --resume {tmp_path}`."
    assert done.stdout.strip().endswith(line)
    whole, _ = train(None, batches=loader(tmp_path / "none"))
    assert_same(whole, train(tmp_path, batches=loader(tmp_path / "none"), resume=True)[0])


# ---- another run's files ----------------------------------------------------------------------


def begun(out: Path, dataset: Dataset, stop_after: Callable[[int], None], **fields: Any) -> Path:
    """A run that was stopped in its second epoch."""
    stop_after(3)
    with pytest.raises(Interrupted):
        run(out, dataset, **fields)
    return out


def test_the_checkpoint_of_another_run_is_refused(
    dataset: Dataset, tmp_path: Path, stop_after: Callable[[int], None]
) -> None:
    """The same network and training: only what else is in the recipe tells them apart."""
    here = begun(tmp_path / "here", dataset, stop_after)
    other = begun(tmp_path / "other", dataset, stop_after, augment=[])
    shutil.rmtree(here / "checkpoint")
    shutil.copytree(other / "checkpoint", here / "checkpoint")
    with pytest.raises(UserError, match="of another run: the recipe's augment is another"):
        run(here, dataset, resume=True)


def test_an_edited_recipe_and_other_images_are_refused(
    dataset: Dataset, tmp_path: Path, stop_after: Callable[[int], None]
) -> None:
    out = begun(tmp_path, dataset, stop_after)
    with pytest.raises(UserError, match="recipe's augment is not that which it was begun with"):
        run(out, dataset, resume=True, augment=[])
    changed = dataset.train.images.flip(3)
    parts = {"train": dataclasses.replace(dataset.train, images=changed)}
    hashes = {**dataset.hashes, "train": "0" * 64}
    with pytest.raises(UserError, match="train images are not those"):
        run(out, dataclasses.replace(dataset, hashes=hashes, **parts), resume=True)
    moved = recipe(training=dataclasses.replace(TRAINING, checkpoint_minutes=5.0))
    moved = dataclasses.replace(moved, data={**moved.data, "root": str(tmp_path)})
    teach(moved, out, resume=True, console=QUIET, device="cpu", dataset=dataset)


def test_another_teacher_is_refused(
    dataset: Dataset, whole: Path, tmp_path: Path, stop_after: Callable[[int], None]
) -> None:
    teacher, out = tmp_path / "teacher", tmp_path / "out"
    shutil.copytree(whole, teacher)
    data, spec = recipe().data, {"run": str(teacher)}
    mine = default_recipe("distill", data, "none", teacher=spec, training=TRAINING, steps=1)
    mine = dataclasses.replace(
        mine, calibrate=16, estimate=0, execute={**mine.execute, "fuse": False}
    )
    there: dict[str, Any] = {"console": QUIET, "device": "cpu", "dataset": dataset}
    stop_after(3)
    with pytest.raises(Interrupted):
        distill(mine, out, **there)
    shutil.rmtree(teacher)
    run(teacher, dataset, seed=5)
    with pytest.raises(UserError, match="teacher is not that which it was begun with"):
        distill(mine, out, resume=True, **there)


# ---- versions ---------------------------------------------------------------------------------


def changed(path: Path, **fields: Any) -> None:
    """Sets fields of a JSON file; those that are None are taken out."""
    content = json.loads(path.read_text())
    content = {k: v for k, v in content.items() if k not in fields}
    path.write_text(json.dumps(content | {k: v for k, v in fields.items() if v is not None}))


@pytest.mark.parametrize("file", ["recipe.json", "card.json", "results.json"])
def test_a_folder_of_a_later_version_is_refused(
    file: str, whole: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "run"
    shutil.copytree(whole, out)
    changed(out / "results.json", sums=None)  # else the change itself is what is told
    changed(out / file, schema=2)
    words = ["--resume", str(out)] if file == "results.json" else [str(out)]
    assert main(["teach" if file == "results.json" else "measure", *words, "--quiet"]) == 2
    said = capfd.readouterr().err
    assert str(out / file) in said and "schema 2, this spikelet knows 1" in said


def test_a_folder_of_the_first_version_is_read(whole: Path, tmp_path: Path) -> None:
    """It had no schema, no digests of its descriptions and no identity."""
    out = tmp_path / "run"
    shutil.copytree(whole, out)
    changed(out / "recipe.json", schema=None)
    changed(out / "env.json", schema=None, identity=None)
    changed(out / "card.json", schema=None)
    changed(out / "results.json", schema=None, sums=None)
    assert read_recipe(out) == read_recipe(whole)
    images = torch.rand(2, 1, 8, 8)
    assert torch.equal(load(out).predict(images), load(whole).predict(images))


def test_an_unfinished_run_of_a_version_with_fewer_settings_is_not_continued(
    dataset: Dataset, tmp_path: Path, stop_after: Callable[[int], None]
) -> None:
    out = begun(tmp_path, dataset, stop_after)
    changed(out / "env.json", schema=None, identity=None)
    changed(out / "recipe.json", schema=None, estimate=None)
    with pytest.raises(UserError, match="an older spikelet began this run: it has no `estimate`"):
        run(out, dataset, resume=True)


def test_a_run_without_results_is_not_finished(whole: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    shutil.copytree(whole, out)
    (out / "results.json").unlink()
    with pytest.raises(UserError, match=f"not finished; .*spikelet teach --resume {out}"):
        load(out)


def test_a_changed_description_is_not_loaded(whole: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    shutil.copytree(whole, out)
    changed(out / "model.json", seed=1)
    with pytest.raises(UserError, match=r"model\.json.*sha256 differs"):
        load(out)


# ---- grids ------------------------------------------------------------------------------------


class Once(Pull):
    """A user's own term that kills its process the first time."""

    def __call__(self, own: Any, step: Any) -> Tensor:
        mark = Path(os.environ["MARK"])
        if mark.exists():
            mark.unlink()
            os.kill(os.getpid(), signal.SIGKILL)
        return super().__call__(own, step)


@pytest.fixture(scope="module")
def teacher(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    out = tmp_path_factory.mktemp("grids") / "teacher"
    training = dataclasses.replace(TRAINING, epochs=1)
    teach(default_recipe("teach", FEW, model=SIZE, training=training), out, console=QUIET)
    return {"run": str(out)}


@pytest.mark.slow
def test_a_worker_that_dies_is_one_sentence_and_its_cell_is_computed_later(
    teacher: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    mark, out = tmp_path / "mark", tmp_path / "out"
    monkeypatch.setenv("MARK", str(mark))
    monkeypatch.setenv("PYTHONPATH", str(HERE))
    grid = tiny(teacher, ("test_long:Once",))
    whole = compare(grid, tmp_path / "whole", console=QUIET, devices=["cpu"])
    mark.touch()
    result = compare(grid, out, jobs=2, console=QUIET, devices=["cpu"])
    (failure,) = result["failed"]
    assert failure["method"] == "test_long:Once" and not failure["defect"]
    assert failure["message"] == "its process died (status -9)"
    assert "test_long:Once" not in {row["method"] for row in result["rows"]}
    again = compare(stored_grid(out), out, console=QUIET, devices=["cpu"])
    assert not again["failed"] and accuracies(again) == accuracies(whole)


def test_a_grid_on_a_full_disk_goes_on(
    teacher: dict[str, str], tmp_path: Path, failing: Callable[[int, int], None],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    """The table cannot be written any more, nor the rest of the cells."""
    grid, out = tiny(teacher), tmp_path / "out"
    whole = compare(grid, tmp_path / "whole", console=QUIET, devices=["cpu"])
    for count in (1, 16):
        failing(count, errno.ENOSPC)
        with pytest.raises(UserError, match=r"cannot be written there \(No space") as told:
            compare(grid, out, console=QUIET, devices=["cpu"])
        assert told.value.argument == f"run = {out}"
        assert told.value.fix.endswith(f"`spikelet compare --resume {out}`")
        monkeypatch.undo()
    again = compare(grid, out, console=QUIET, devices=["cpu"])
    assert not again["failed"] and accuracies(again) == accuracies(whole)


def test_the_table_holds_every_finished_cell_at_any_moment(
    teacher: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from spikelet.compare.run import _Session

    tell, seen = _Session.tell, []

    def told(self: Any) -> None:
        tell(self)
        rows = json.loads((tmp_path / "out" / "results.json").read_text())["rows"]
        table = {row["method"] for row in rows} - {"teacher"}
        assert table == {job.recipe.method for job in self.cells if job.finished}
        seen.append(len(table))

    monkeypatch.setattr(_Session, "tell", told)
    compare(tiny(teacher), tmp_path / "out", console=QUIET, devices=["cpu"])
    assert seen == [1, 2, 3]


def test_a_grid_of_a_later_version_is_refused(
    teacher: dict[str, str], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    compare(tiny(teacher), out, console=QUIET, budget_minutes=0)
    changed(out / "compare.json", schema=7)
    assert main(["compare", "--resume", str(out), "--quiet"]) == 2
    assert "schema 7, this spikelet knows 1" in capfd.readouterr().err
