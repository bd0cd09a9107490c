"""Benchmarks: rows and their ratios, what is kept and held, others' neurons, failures, files."""

from __future__ import annotations

import dataclasses
import json
import math
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
import torch
from torch import Tensor, nn

from spikelet.bench import ENGINES, Case, Setting, bench, foreign, memory, run
from spikelet.bench.alone import measure_alone
from spikelet.bench.chart import lines
from spikelet.bench.rows import Row, answers_so_far, related
from spikelet.bench.subject import Subject, subject, width_of
from spikelet.convert import convert
from spikelet.distill import Distiller
from spikelet.errors import UserError
from spikelet.execute import bptt
from spikelet.measure import answers_over_steps
from spikelet.neuron import IF

pytest.importorskip("matplotlib")

SCHEMA = {"engine", "precision", "model", "steps", "batch", "seconds_min", "seconds_median"}
SCHEMA |= {"seconds_forward", "ratio_to_ann", "ratio_to_floor", "saved_mib", "peak_mib"}
TINY = Setting(
    model="small-cnn",
    width=4,
    size=8,
    batch=4,
    steps=(4, 2),
    engines=("rate", "bptt"),
    repeats=2,
    threads=1,
    fuse="off",
)
MIB = 2**20


def quiet(_line: str) -> None:
    """Nothing is said."""


def cells(rows: list[Row]) -> dict[tuple[str, str, int], Row]:
    return {(row["engine"], row["precision"], row["steps"]): row for row in rows}


# ---- training ---------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, Any], Path, list[str]]:
    """A small benchmark of training in both precisions: result, folder, lines said."""
    out, said = tmp_path_factory.mktemp("bench"), []
    setting = dataclasses.replace(TINY, precisions=("fp32", "bf16"))
    return bench(setting, out, said.append), out, said


def test_rows_have_the_schema(trained: tuple[dict[str, Any], Path, list[str]]) -> None:
    rows = trained[0]["rows"]
    expected = [
        (engine, precision, steps)
        for precision in ("fp32", "bf16")
        for engine, steps in [("ann", 1), ("rate", 2), ("bptt", 2), ("rate", 4), ("bptt", 4)]
    ]
    assert list(cells(rows)) == expected
    for row in rows:
        assert set(row) >= SCHEMA
        assert 0 < row["seconds_min"] <= row["seconds_median"]
        assert 0 < row["seconds_forward"] < row["seconds_median"]
        assert row["peak_mib"] is None
        assert (row["n"], row["threads"], row["fused"], row["width"]) == (2, 1, False, 4)
        assert math.isclose(row["images_per_second"] * row["seconds_median"], 4)


def test_ratios_are_to_the_ann_and_to_the_floor(
    trained: tuple[dict[str, Any], Path, list[str]],
) -> None:
    """T forwards one after the other, then one backward, of the ANN in the same precision."""
    rows = cells(trained[0]["rows"])
    for (_, precision, steps), row in rows.items():
        ann = rows["ann", precision, 1]
        floor = ann["seconds_median"] - ann["seconds_forward"]
        for _ in range(steps):
            floor += ann["seconds_forward"]
        assert math.isclose(row["ratio_to_ann"] * ann["seconds_median"], row["seconds_median"])
        assert math.isclose(row["ratio_to_floor"] * floor, row["seconds_median"])


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_what_rate_keeps_does_not_depend_on_steps(
    precision: str, trained: tuple[dict[str, Any], Path, list[str]]
) -> None:
    kept = {key: row["saved_mib"] for key, row in cells(trained[0]["rows"]).items()}
    assert math.isclose(kept["rate", precision, 2], kept["rate", precision, 4], rel_tol=0.02)
    assert kept["bptt", precision, 4] > 1.7 * kept["bptt", precision, 2]


def test_files_of_a_benchmark(trained: tuple[dict[str, Any], Path, list[str]]) -> None:
    result, out, said = trained
    assert result["files"] == [str(out / "bench.json"), str(out / "bench.svg")]
    stored = json.loads((out / "bench.json").read_text())
    assert stored["schema"] == 1
    assert stored["rows"] == result["rows"]
    assert {"date", "machine", "env", "setting", "failed"} <= set(stored)
    assert Setting.from_json(stored["setting"]) == dataclasses.replace(
        TINY, precisions=("fp32", "bf16")
    )
    assert stored["env"]["versions"]["torch"] == torch.__version__
    text = (out / "bench.svg").read_text()
    assert ElementTree.fromstring(text).tag.endswith("svg")
    for word in ("rate, fp32", "bptt, bf16", "floor, fp32", "ANN, fp32", "time steps T"):
        assert word in text
    assert "#0404" not in text and "var(" not in text
    assert len(said) == 12  # the ANN of each precision is measured twice


def test_related_takes_the_faster_ann() -> None:
    """The first measurement of the ANN is cold here; the second is the measure."""

    def row(engine: str, steps: int, median: float, forward: float) -> Row:
        times = {"seconds_median": median, "seconds_forward": forward}
        return {"engine": engine, "precision": "fp32", "steps": steps, **times}

    cold, warm = row("ann", 1, 5.0, 2.5), row("ann", 1, 3.0, 1.0)
    ours, theirs = row("rate", 4, 9.0, 6.0), row("jelly", 4, 18.0, 9.0)
    found = related([cold, ours, theirs, warm])
    assert [each["engine"] for each in found] == ["ann", "rate", "jelly"]
    assert found[0]["seconds_median"] == 3.0
    assert found[1]["ratio_to_ann"] == 3.0
    assert found[1]["ratio_to_floor"] == 9 / (1 + 1 + 1 + 1 + 2)
    assert found[1]["ratio_to_jelly"] == 0.5
    assert "ratio_to_ann" not in related([ours])[0]


def test_lines_of_the_plot(trained: tuple[dict[str, Any], Path, list[str]]) -> None:
    rows = trained[0]["rows"]
    by_name = {(name, precision): points for name, precision, points in lines(rows, "saved_mib")}
    table = cells(rows)
    kept = [(t, table["bptt", "bf16", t]["saved_mib"]) for t in (2, 4)]
    assert by_name["bptt", "bf16"] == kept
    assert ("floor", "fp32") not in by_name
    by_name = {(name, p): points for name, p, points in lines(rows, "seconds_median")}
    assert [t for t, _ in by_name["floor", "fp32"]] == [2, 4]


# ---- memory -----------------------------------------------------------------------------------


def test_saved_bytes_of_a_product() -> None:
    """Autograd keeps both factors of a product and the result of an exponential, each once."""
    x, w = (torch.randn(n, requires_grad=True) for n in (1000, 1000))
    assert memory.saved_bytes(lambda: ((x * w).exp() * x).sum()) == 4 * 3 * 1000


class Stand(nn.Module):
    """No network: nothing is cleared."""


def subject_of(loss: Callable[[], Tensor]) -> Subject:
    """A subject whose logits take as much memory as a function does."""

    def logits(images: Tensor) -> Tensor:
        return loss().reshape(1, 1, 1).expand(1, len(images), 2)

    return Subject(Stand(), torch.zeros(1, 1), torch.zeros(1, dtype=torch.long), logits, "fp32")


def three_blocks() -> Tensor:
    """Three blocks of 32 MiB at once, after two that are freed."""
    for _ in range(2):
        torch.ones(8 * MIB)
    blocks = [torch.ones(8 * MIB) for _ in range(3)]
    return blocks[0][:1].clone().requires_grad_()


def test_peak_of_known_blocks() -> None:
    """In a process of its own: others keep what they have freed."""
    ask = "import test_bench as t; print(t.memory.peak_bytes(t.subject_of(t.three_blocks)))"
    done = subprocess.run(
        [sys.executable, "-c", ask],
        cwd=Path(__file__).parent,
        capture_output=True,
        text=True,
        check=True,
    )
    if done.stdout.strip() == "None":
        pytest.skip("this system does not tell the largest resident size")
    assert 94 * MIB < int(done.stdout) < 112 * MIB  # counted in steps of some hundred KiB


def test_largest_blocks_alive_are_counted() -> None:
    changes = memory.allocations(subject_of(three_blocks))
    assert memory.most_alive(changes, 32 * MIB) == 3
    assert memory.most_alive(changes, 33 * MIB) == 0


def test_most_alive_by_hand() -> None:
    assert memory.most_alive([5, 9, -9, 8, 8, -8, -8, -5], 8) == 2
    assert memory.most_alive([], 8) == 0


def test_largest_layer_is_that_of_the_widest_stage() -> None:
    """small-cnn: width 4 at 8x8 twice, then 8 at 4x4."""
    assert memory.largest_layer(TINY) == TINY.batch * 4 * 8 * 8


def test_means_in_fp32_are_not_taken_for_steps_in_bf16() -> None:
    assert memory.live_largest([8, 8], Case("rate", "bf16", 2), 2) is None
    assert memory.live_largest([16, 16], Case("rate", "bf16", 4), 2) == 2


def test_memory_in_a_process_of_its_own(tmp_path: Path) -> None:
    setting = dataclasses.replace(TINY, kind="memory", engines=("rate",), steps=(4,), repeats=1)
    (row,) = bench(setting, tmp_path, quiet)["rows"]
    assert set(row) >= SCHEMA
    assert row["seconds_median"] is None and row["ratio_to_ann"] is None
    here = memory.measure(setting, Case("rate", "fp32", 4))
    assert row["saved_mib"] == here["saved_mib"]
    assert row["live_largest"] == here["live_largest"]
    assert row["tensors_mib"] >= row["saved_mib"] / 2 > 0


@pytest.mark.parametrize(
    ("status", "stderr", "said"), [(1, "Traceback\nno room\n", "no room"), (-9, "", "status -9")]
)
def test_failure_of_a_process_is_its_last_line(
    status: int, stderr: str, said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    done = subprocess.CompletedProcess([], status, "", stderr)
    monkeypatch.setattr(subprocess, "run", lambda *_, **__: done)
    with pytest.raises(RuntimeError, match=said):
        measure_alone(TINY, Case("ann", "fp32", 1))


def test_rate_holds_fewer_large_tensors_than_bptt() -> None:
    setting = dataclasses.replace(TINY, width=8, repeats=1)
    found = {
        engine: memory.measure(setting, Case(engine, "fp32", 8)) for engine in ("rate", "bptt")
    }
    assert found["rate"]["live_largest"] <= 3 < found["bptt"]["live_largest"]
    assert found["rate"]["tensors_mib"] < found["bptt"]["tensors_mib"]


# ---- inference --------------------------------------------------------------------------------


def test_answers_so_far_are_means_of_the_first_logits() -> None:
    logits = torch.randn(5, 3, 4, dtype=torch.float64)
    found = answers_so_far(logits)
    for t in range(1, 6):
        expected = sum(logits[k] for k in range(t)) / t
        torch.testing.assert_close(found[t - 1].double(), expected, rtol=1e-5, atol=1e-6)


def test_one_run_answers_at_every_step() -> None:
    """As the measure does for accuracy, for every T up to the largest."""
    made = subject(TINY, Case("rate", "fp32", 4))
    made.net.eval()
    with torch.no_grad():
        found = answers_so_far(made.run())
    for t, expected in answers_over_steps(made.net, made.images, [1, 2, 3, 4], bptt).items():
        torch.testing.assert_close(found[t - 1], expected, rtol=1e-4, atol=1e-5)


def test_inference_has_its_floor_in_forwards(tmp_path: Path) -> None:
    setting = dataclasses.replace(TINY, kind="infer", steps=(2,), repeats=2)
    rows = cells(bench(setting, tmp_path, quiet)["rows"])
    ann = rows["ann", "fp32", 1]["seconds_median"]
    for engine in ("rate", "bptt"):
        row = rows[engine, "fp32", 2]
        assert math.isclose(row["ratio_to_floor"], row["seconds_median"] / (ann + ann))
        assert row["saved_mib"] is None


# ---- others -----------------------------------------------------------------------------------


@pytest.mark.parametrize("engine", ["jelly", "snntorch"])
def test_others_run_the_same_network(engine: str) -> None:
    """Their logits and gradients in training are those of our unrolled run, call after call.

    snnTorch's resets carry no gradient.
    """
    pytest.importorskip(foreign.PACKAGES[engine], reason="it is not installed")
    theirs = subject(TINY, Case(engine, "fp32", 3))
    ours = convert(run.model_of(TINY), IF(detach=engine == "snntorch"), steps=3).train()
    expected = bptt(ours, theirs.images.expand(3, *theirs.images.shape)).logits
    for _ in range(2):
        found = theirs.run()
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
    for logits in (found, expected):
        nn.functional.cross_entropy(logits.mean(0), theirs.labels).backward()
    gradients = {name: p.grad for name, p in theirs.net.named_parameters()}
    for name, p in ours.named_parameters():
        torch.testing.assert_close(gradients[name], p.grad, rtol=1e-3, atol=1e-5)


def test_absent_package_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    absent = {"jelly": "spikingjelly"}
    monkeypatch.setattr(run, "missing", absent.get)
    said: list[str] = []
    setting = dataclasses.replace(TINY, engines=("jelly", "bptt"), steps=(2,), repeats=1)
    result = bench(setting, tmp_path, said.append)
    assert result["failed"] == ["jelly: spikingjelly is not installed"]
    assert [line for line in said if "jelly" in line] == ["left out: " + result["failed"][0]]
    assert [row["engine"] for row in result["rows"]] == ["ann", "bptt"]


def test_failing_engine_leaves_the_others(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken() -> nn.Module:
        raise RuntimeError("no kernel\nfor this machine")

    monkeypatch.setitem(foreign.NEURONS, "jelly", broken)
    monkeypatch.setattr(run, "missing", {}.get)
    setting = dataclasses.replace(TINY, engines=("jelly", "bptt"), steps=(2,), repeats=1)
    result = bench(setting, tmp_path, quiet)
    assert result["failed"] == ["jelly, fp32, T = 2: no kernel"]
    assert [row["engine"] for row in result["rows"]] == ["ann", "bptt"]


def test_nothing_measured_is_a_mistake(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run, "missing", {"jelly": "spikingjelly"}.get)
    setting = dataclasses.replace(TINY, kind="memory", engines=("jelly",))
    with pytest.raises(UserError, match="spikingjelly is not installed"):
        bench(setting, tmp_path, quiet)


# ---- settings ---------------------------------------------------------------------------------


def test_cases_of_the_fused_scan() -> None:
    both = dataclasses.replace(TINY, fuse="both", steps=(2,), engines=ENGINES)
    found = [(case.engine, case.fused) for case in both.cases("fp32")]
    foreign_engines = [("jelly", False), ("snntorch", False)]
    ours = [(engine, fused) for engine in ("rate", "hybrid", "bptt") for fused in (False, True)]
    assert found == [*ours, *foreign_engines]


def test_width_is_the_models_own_where_none_is_given() -> None:
    assert width_of(TINY) == 4
    assert width_of(dataclasses.replace(TINY, model="resnet18", width=None)) == 64
    assert width_of(dataclasses.replace(TINY, model="timm:resnet18", width=None)) is None


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"kind": "trian"}, "did you mean train"),
        ({"engines": ("jely",)}, "did you mean jelly"),
        ({"engines": ()}, "--engines"),
        ({"steps": (2, 0)}, "--steps 0"),
        ({"steps": ()}, "--steps"),
        ({"repeats": 0}, "--repeats 0"),
        ({"precisions": ("fp16",)}, "did you mean bf16"),
        ({"batch": 0}, "--batch 0"),
        ({"threads": 0}, "--threads 0"),
        ({"fuse": "of"}, "did you mean off"),
    ],
)
def test_wrong_setting_is_one_sentence(fields: dict[str, Any], said: str) -> None:
    with pytest.raises(UserError) as raised:
        dataclasses.replace(TINY, **fields)
    assert said in str(raised.value)


def test_unknown_model_ends_before_anything_is_written(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="resnet18"):
        bench(dataclasses.replace(TINY, model="resnt18"), tmp_path / "out", quiet)
    assert not (tmp_path / "out").exists()


def test_hybrid_is_a_whole_training_step() -> None:
    """With the loss and the gradients of the distiller of that method, and no row at inference."""
    made = subject(TINY, Case("hybrid", "fp32", 2))
    assert isinstance(made.net, Distiller) and set(made.net.terms) == {"ce", "logits", "hybrid"}
    loss, parts = made.net(made.images, made.labels)
    assert float(made.loss().detach()) == pytest.approx(float(loss.detach()), rel=1e-5)
    assert all(float(part) > 0 for part in parts.values())
    made.loss().backward()
    assert all(p.grad is not None for p in made.net.student.parameters() if p.requires_grad)
    assert made.run().shape == (2, TINY.batch, 10)
    infer = dataclasses.replace(TINY, kind="infer", engines=("rate", "hybrid"), steps=(2,))
    assert [case.engine for case in infer.cases("fp32")] == ["rate"]
