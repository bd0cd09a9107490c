"""Several processes: they find what one finds, write once, and end with a checkpoint."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch

import many
from many import GLOBAL, cases, trained
from spikelet.checkpoint import load_state
from spikelet.data import Batches, Dataset, Split
from spikelet.errors import UserError
from spikelet.processes import averaged, first, gathered, processes, rank, smallest, summed, total
from spikelet.recipe import Training
from spikelet.train.schedule import learning_rate

NAMES = sorted(cases())


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("processes")


@pytest.fixture(scope="module")
def two(folder: Path) -> dict[str, Any]:
    """What two gloo processes on this machine found, all in one start of them and one import."""
    subprocess.run([sys.executable, many.__file__, str(folder)], check=True, timeout=500)
    return torch.load(folder / "found.pt")


@pytest.mark.parametrize("name", NAMES)
def test_two_processes_find_what_one_does(name: str, two: dict[str, Any]) -> None:
    """Loss, parts, gradients, statistics: with the same images in all, of unequal shares."""
    one = cases()[name]()
    assert one.keys() == two[name].keys()
    for key, value in one.items():
        scale = max(float(value.abs().max()), 1.0)
        tolerance = 1e-6 if key == "part teacher" or name == "joint" else 1e-11
        assert float((value - two[name][key]).abs().max()) <= tolerance * scale, key


def test_norms_that_share_nothing_find_something_else(two: dict[str, Any]) -> None:
    one, other = cases()["method logits"](), two["unshared"]
    apart = [float((one[key] - other[key]).abs().max()) for key in one if key != "images"]
    assert max(apart) > 1e-3


def test_a_training_of_two_learns_what_one_learns(two: dict[str, Any], tmp_path: Path) -> None:
    """Optimiser, clip, average, epochs with an uneven batch, a term that draws."""
    one = trained(tmp_path / "run")
    assert two["trained"]["losses"] == pytest.approx(one["losses"], rel=1e-5)
    for name, value in one["state"].items():
        assert torch.allclose(value, two["trained"]["state"][name], rtol=1e-5, atol=1e-6), name


def test_a_run_of_two_is_written_once_and_measures_what_one_measures(
    two: dict[str, Any], folder: Path, tmp_path: Path
) -> None:
    (mine,), (theirs,) = two["rows"], many.taught(tmp_path / "taught")
    for name in ("accuracy", "accuracy_validation"):
        assert mine[name] == pytest.approx(theirs[name], abs=0.003), name
    rows = [read_rows(place / "taught") for place in (folder, tmp_path)]
    assert [len(each) for each in rows] == [2, 2]
    for one, other in zip(*rows, strict=True):
        assert one["loss"] == pytest.approx(other["loss"], rel=1e-4)
    files = [{each.name for each in (place / "taught").iterdir()} for place in (folder, tmp_path)]
    assert files[0] == files[1]


def read_rows(run: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


@pytest.mark.parametrize("name", ["trained", "dropped", "resumed"])
def test_every_process_ends_with_the_same(name: str, two: dict[str, Any]) -> None:
    first_one, second = two[name]["each"]
    assert torch.equal(first_one, second)


def test_a_training_of_two_resumes_exactly(two: dict[str, Any]) -> None:
    """With dropout: each process draws from a stream of its own."""
    whole, parts = two["dropped"], two["resumed"]
    assert whole["losses"] == parts["losses"]
    for name, value in whole["state"].items():
        assert torch.equal(value, parts["state"][name]), name


def test_who_is_left_stores_the_last_whole_step(two: dict[str, Any], folder: Path) -> None:
    """Process 1 left after seven steps, process 0 was in the eighth: it stores the seventh."""
    assert "another process of this training has ended" in two["deserted"]
    left, stopped = (load_state(folder / name / "checkpoint") for name in ("deserted", "stopped"))
    for part in ("model", "generators", "ema"):
        assert same(left[part], stopped[part]), part
    assert left["progress"]["batch"] == stopped["progress"]["batch"] == 2
    assert left["progress"]["totals"] == stopped["progress"]["totals"]


def same(a: Any, b: Any) -> bool:
    if isinstance(a, torch.Tensor):
        return torch.equal(a, b)
    if isinstance(a, dict):
        drawn = "global"  # torch's own generators are seeded anew at each step
        keys = [key for key in a if not str(key).startswith(drawn)]
        return a.keys() == b.keys() and all(same(a[key], b[key]) for key in keys)
    if isinstance(a, (list, tuple)):
        return len(a) == len(b) and all(map(same, a, b))
    return a == b


@pytest.mark.parametrize("count", [2, 3, 4])
@pytest.mark.parametrize("images", [37, 64])
def test_shares_of_a_batch_are_the_batch_without_overlap(count: int, images: int) -> None:
    split = Split(torch.arange(images, dtype=torch.uint8).view(-1, 1, 1, 1), torch.arange(images))
    data = Dataset("numbers", split, None, split, ("a",), (0.0,), (1.0,), "none", {})
    whole = Batches(split, data, 16, seed=3, shard=(0, 1))
    parts = [Batches(split, data, 16, seed=3, shard=(r, count)) for r in range(count)]
    assert len({len(part) for part in parts}) == 1
    for epoch in range(2):
        for index, each in enumerate(zip(*(part.epoch(epoch) for part in parts), strict=True)):
            labels = torch.cat([y for _, y in each])
            assert len(labels.unique()) == len(labels)
            expected = list(whole.epoch(epoch))[index][1]
            assert torch.equal(labels.sort().values, expected.sort().values)
            assert min(len(y) for _, y in each) >= 2


def test_alone_everything_is_the_identity() -> None:
    x = torch.randn(3, 4, requires_grad=True)
    assert summed(x) is x
    assert gathered(x) is x
    assert averaged(x, 3) is x
    assert (processes(), rank(), total(2.0, 3.0), smallest(5)) == (1, 0, (2.0, 3.0), 5)
    assert first({"a": 1}) == {"a": 1}


@pytest.mark.parametrize(
    "optimiser, scaling, factor",
    [("sgd", "auto", 4), ("adamw", "auto", 2), ("sgd", "root", 2), ("adamw", "none", 1)],
)
def test_the_learning_rate_grows_with_the_images_of_a_step(
    optimiser: Any, scaling: Any, factor: float
) -> None:
    one = Training(optimiser=optimiser, scaling=scaling, warmup_epochs=1)
    four = Training(optimiser=optimiser, scaling=scaling, warmup_epochs=1, processes=4)
    for step in range(100):
        assert learning_rate(four, step, 10) == pytest.approx(factor * learning_rate(one, step, 10))


def test_a_lonely_process_is_told_how_to_start_the_others() -> None:
    from spikelet.train import fit

    with pytest.raises(UserError, match=r"processes = 2.*1 process has started.*--processes 2"):
        fit(torch.nn.Linear(2, 2), [1], training=Training(processes=2))
    with pytest.raises(UserError, match="graph"):
        Training(graph=True, processes=2)


def test_parts_of_a_batch_have_the_gradient_of_the_whole() -> None:
    """Without norms of the batch, accumulated parts are the batch, for any number of parts."""
    from spikelet.norm import freeze_norms
    from spikelet.train.gradients import gradients

    found = []
    for accumulate in (1, 2, 3, 7):
        whole = many.distiller(many.rate, many.terms("hybrid"))
        freeze_norms(whole)
        got = gradients(whole, many.images("stages", GLOBAL, 5), many.LABELS, accumulate=accumulate)
        found.append({"loss": got.loss, **many.left(whole)})
    for other in found[1:]:
        for key, value in found[0].items():
            assert torch.allclose(value, other[key], rtol=1e-9, atol=1e-11), key


# ---- the command line ------------------------------------------------------------------------

DIGITS = ["--data", "digits", "--data.train", "300", "--validation", "60", "--width", "4"]


def started(*words: str) -> subprocess.Popen[str]:
    script = Path(sys.executable).with_name("spikelet")
    env = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(
        [str(script), *words], text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=env
    )


def ended(process: subprocess.Popen[str], status: int = 0) -> tuple[dict[str, Any], str]:
    out, told = process.communicate(timeout=300)
    assert process.returncode == status, told
    return json.loads(out), told


def workers(process: subprocess.Popen[str]) -> list[int]:
    """The processes that a launcher has started, the first one first."""
    listed = subprocess.run(
        ["ps", "-ww", "-o", "pid=,args=", "--ppid", str(process.pid)],
        capture_output=True, text=True, check=True,
    ).stdout  # fmt: skip
    return sorted(int(line.split()[0]) for line in listed.splitlines() if "spawn_main" in line)


def test_command_line_starts_two_processes(tmp_path: Path) -> None:
    words = ["teach", *DIGITS, "--epochs", "1", "--batch", "60", "--processes", "2", "--json"]
    answer, told = ended(started(*words, "--out", str(tmp_path / "run")))
    assert "2 processes x 60 images = 120 a step; learning rate 0.2 x 2 = 0.4" in told
    assert told.count("epoch 1/1") == 1
    assert answer["rows"][0]["method"] == "teacher"
    assert len(read_rows(tmp_path / "run")) == 1


@pytest.mark.slow
def test_command_line_runs_two_processes_and_one_voice(tmp_path: Path) -> None:
    words = ["teach", *DIGITS, "--epochs", "2", "--json"]
    one, _ = ended(started(*words, "--batch", "60", "--out", str(tmp_path / "one")))
    more = ["--batch", "30", "--training.scaling", "none", "--processes", "2"]
    two, told = ended(started(*words, *more, "--out", str(tmp_path / "two")))
    assert "2 processes x 30 images = 60 a step; learning rate 0.2 x 1 = 0.2" in told
    assert told.count("epoch 2/2") == 1
    assert two["rows"][0]["accuracy"] == pytest.approx(one["rows"][0]["accuracy"], abs=0.01)
    rows = [read_rows(tmp_path / name) for name in ("one", "two")]
    for mine, theirs in zip(*rows, strict=True):
        assert mine["loss"] == pytest.approx(theirs["loss"], rel=1e-3)


@pytest.mark.slow
@pytest.mark.parametrize("who, what, status", [(1, signal.SIGKILL, 2), (None, signal.SIGTERM, 143)])
def test_an_end_from_outside_leaves_a_run_that_resumes(
    tmp_path: Path, who: int | None, what: signal.Signals, status: int
) -> None:
    words = ["teach", *DIGITS, "--epochs", "30", "--batch", "20", "--processes", "2", "--json"]
    whole, _ = ended(started(*words, "--out", str(tmp_path / "whole")))
    run = tmp_path / "run"
    process = started(*words, "--out", str(run))
    until = time.monotonic() + 120
    while not (run / "metrics.jsonl").exists() or not (run / "metrics.jsonl").read_text():
        assert process.poll() is None and time.monotonic() < until
        time.sleep(0.05)
    os.kill(process.pid if who is None else workers(process)[who], what)
    answer, told = ended(process, status)
    assert f"spikelet teach --resume {run}" in told
    assert "error" in answer
    again, _ = ended(started("teach", "--resume", str(run), "--json"))
    assert again["rows"][0]["accuracy"] == whole["rows"][0]["accuracy"]
    last = [json.loads((p / "metrics.jsonl").read_text().splitlines()[-1]) for p in
            (run, tmp_path / "whole")]  # fmt: skip
    assert last[0]["loss"] == last[1]["loss"]


STUBS = {
    "scontrol": 'if [ "$1" = show ]; then echo localhost; else echo "$@" >> requeued; fi',
    "srun": """
stop() { for job in $jobs; do kill -TERM "$job"; done; }
trap stop TERM
jobs=""
for node in 1 2; do "$@" & jobs="$jobs $!"; done
for job in $jobs; do while kill -0 "$job" 2>/dev/null; do wait "$job"; done; done
""",
}


def submitted(folder: Path, *words: str) -> subprocess.Popen[bytes]:
    """The SLURM script on two nodes that are both this machine, one process each."""
    bin_folder = Path(sys.executable).parent
    (folder / "bin").mkdir(exist_ok=True)
    for name, text in STUBS.items():
        (folder / "bin" / name).write_text(f"#!/bin/bash\n{text}\n")
        (folder / "bin" / name).chmod(0o755)
    settings = {"RUN": "run", "VERB": "teach", "PROCESSES_PER_NODE": "1", "SLURM_JOB_ID": "7"}
    settings |= {"SLURM_NNODES": "2", "SLURM_JOB_NODELIST": "x", "OMP_NUM_THREADS": "1"}
    settings["PORT"] = str(free_port())
    settings["PATH"] = f"{folder}/bin:{bin_folder}:{os.environ['PATH']}"
    script = Path(__file__).parents[1] / "examples" / "slurm.sh"
    log = (folder / "log").open("ab")
    return subprocess.Popen(
        ["bash", str(script), *words], cwd=folder, env={**os.environ, **settings}, stdout=log,
        stderr=log,
    )  # fmt: skip


def free_port() -> int:
    with socket.socket() as made:
        made.bind(("localhost", 0))
        return int(made.getsockname()[1])


@pytest.mark.slow
def test_slurm_script_on_two_nodes_stops_in_time_and_goes_on(tmp_path: Path) -> None:
    words = [*DIGITS, "--epochs", "40", "--batch", "20", "--device", "cpu"]
    job, metrics = submitted(tmp_path, *words), tmp_path / "run" / "metrics.jsonl"
    until = time.monotonic() + 200
    while not metrics.exists() or not metrics.read_text():
        assert job.poll() is None and time.monotonic() < until, (tmp_path / "log").read_text()
        time.sleep(0.05)
    job.send_signal(signal.SIGTERM)
    assert job.wait(120) == 0, (tmp_path / "log").read_text()
    assert (tmp_path / "requeued").read_text() == "requeue 7\n"
    assert not (tmp_path / "run" / "results.json").exists()
    assert submitted(tmp_path).wait(200) == 0, (tmp_path / "log").read_text()
    assert len(metrics.read_text().splitlines()) >= 40
    assert "2 processes x 20 images = 40 a step" in (tmp_path / "log").read_text()
    assert json.loads((tmp_path / "run" / "results.json").read_text())["rows"]
