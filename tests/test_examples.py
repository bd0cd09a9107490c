"""The example methods: as the command line runs them, and as terms."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from small import gradients, images, network, student
from spikelet.data.dataset import require_dataset
from spikelet.distill import Distiller
from spikelet.encode import Direct
from spikelet.execute import bptt, rate
from spikelet.graph import capture
from spikelet.recipe import Training, default_recipe
from spikelet.train import load
from spikelet.train.job import teach

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

from examples.own_data import arrays  # noqa: E402
from examples.own_method import Attention, attention  # noqa: E402


def spikelet(*words: object) -> dict:
    command = [sys.executable, "-m", "spikelet", *map(str, words), "--json", "--quiet"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=False)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_maps_by_hand() -> None:
    x = torch.randn(2, 3, 2, 2, dtype=torch.float64)
    found = attention(x)
    for image in range(2):
        plain = [
            sum(float(x[image, c, i, j]) ** 2 for c in range(3)) for i in range(2) for j in range(2)
        ]
        length = sum(value**2 for value in plain) ** 0.5
        for value, expected in zip(found[image], plain, strict=True):
            assert float(value) == pytest.approx(expected / length, rel=1e-5)


@pytest.mark.parametrize("execute", [rate, bptt])
def test_it_is_a_term_like_ours(execute) -> None:
    whole = Distiller(
        student("stages", calibrated=True), network("stages"), terms={"own": Attention()},
        execute=execute, encode=Direct(2), example=images("stages", 16),
    )  # fmt: skip
    loss, parts = whole(images("stages"), torch.tensor([0, 1, 2, 0]))
    assert float(loss.detach()) == pytest.approx(100 * float(parts["own"]))
    found = gradients(whole, loss)
    assert found
    assert all(bool(torch.isfinite(g).all()) for g in found.values())


def test_a_copy_looks_where_its_teacher_looks() -> None:
    from spikelet.execute import ann

    teacher = capture(network("stages"))
    whole = Distiller(
        teacher, network("stages"), terms={"own": Attention()}, execute=ann, encode=Direct(1),
        example=images("stages", 16),
    )  # fmt: skip
    loss, _ = whole.eval()(images("stages"), torch.tensor([0, 1, 2, 0]))
    assert float(loss.detach()) == pytest.approx(0.0, abs=1e-9)


def test_the_command_line_runs_it(tmp_path: Path) -> None:
    data = {"kind": "digits", "train": 150, "validation": 30}
    training = Training(epochs=3, batch=50, learning_rate=0.1, clip=1.0)
    model = {"kind": "small-cnn", "width": 4}
    recipe = default_recipe("teach", data, model=model, training=training)
    teach(recipe, tmp_path / "teacher", device="cpu")
    found = spikelet(
        "distill", "--teacher", tmp_path / "teacher", "--method", "none", "--steps", 2,
        "--epochs", 1, "--terms.attention.kind", "examples.own_method:Attention",
        "--terms.attention.weight", 50, "--out", tmp_path / "own", "--device", "cpu",
    )  # fmt: skip
    assert found["rows"][-1]["steps"] == 2
    row = json.loads((tmp_path / "own" / "metrics.jsonl").read_text().splitlines()[-1])
    assert row["parts"]["attention"] > 0


def test_arrays_are_a_data_set(tmp_path: Path) -> None:
    """The example of one's own data, grey and in colour, as the command line reads it."""
    generator = np.random.default_rng(0)
    labels = np.arange(60) % 3
    grey = generator.integers(0, 256, (60, 8, 8))
    for name, found in (("grey", grey), ("colour", np.stack([grey, grey // 2, grey], 3))):
        np.savez(tmp_path / f"{name}.npz", images=found, labels=labels)
    data = arrays(str(tmp_path / "colour.npz"), validation=6)
    require_dataset("colour", data)
    assert data.sizes == {"train": 42, "validation": 6, "test": 12}
    assert data.channels == 3 and data.name == "colour"
    spikelet(
        "teach", "--data", "examples.own_data:arrays", "--data.file", tmp_path / "grey.npz",
        "--validation", 6, "--model", "small-cnn", "--width", 2, "--epochs", 1,
        "--out", tmp_path / "run",
    )  # fmt: skip
    assert load(tmp_path / "run").dataset().classes == ("0", "1", "2")
