"""A comparison: the same for all methods, one honest table, and nothing computed twice."""

from __future__ import annotations

import csv
import dataclasses
import html
import io
import json
import math
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console
from torch import Tensor, nn

pytest.importorskip("sklearn", reason="scikit-learn is not installed: no digits")

from spikelet.checkpoint import holds_state
from spikelet.cli import main
from spikelet.compare import CONTROLS, TUNING_SEED, Cell, Grid, compare, work
from spikelet.compare.fitting import require_students
from spikelet.compare.grid import recipe_of, stored_grid
from spikelet.compare.notes import notes
from spikelet.compare.table import mean_rows, seed_rows
from spikelet.compare.tune import candidates, chosen, learning_rates, multipliers
from spikelet.compare.work import Job
from spikelet.compare.write import findings, over_seeds
from spikelet.data import Dataset, digits
from spikelet.errors import UserError
from spikelet.folder import alone_in
from spikelet.recipe import DITHER, METHODS, default_recipe
from spikelet.recipe.methods import FIELDS
from spikelet.report import at, grid_page
from spikelet.terms import Reads, Step, Term
from spikelet.terms.term import Pairs
from spikelet.train import Interrupted, read_json, read_recipe
from spikelet.train.job import teach
from spikelet.train.load import load
from spikelet.train.running import kind
from test_report import Reader

QUIET = Console(quiet=True)
KEYS = {"method", "steps", "accuracy", "std", "n", "seed", "split"}
MORE = {"difference", "low", "high", "pairs", "verdict", "kind", "rate", "seconds", "peak_mib"}
MORE |= {"ann_epochs", "macs"}


def few() -> Dataset:
    """Few images of digits."""
    every = digits(train=100, validation=20)
    return dataclasses.replace(every, name="few", test=every.test.at(torch.arange(100)))


@dataclass(frozen=True)
class Pull(Term):
    """A user's own term."""

    weight: float = 1.0

    def __call__(self, own: nn.Module, step: Step) -> Tensor:
        return (step.student.mean_logits - step.taught.mean_logits).square().mean()


@dataclass(frozen=True)
class Broken(Term):
    """A user's own term with a mistake in it."""

    weight: float = 1.0

    def __call__(self, own: nn.Module, step: Step) -> Tensor:
        raise RuntimeError("an own mistake")


@dataclass(frozen=True)
class Lost(Broken):
    """One that fails where it is asked for its places."""

    def taps(self, pairs: Pairs) -> Reads:
        raise RuntimeError("a place too many")


DATA = {"kind": "test_compare:few"}
PLAIN = {"calibrate": 16, "estimate": 40, "execute.fuse": False}
TINY: dict[str, Any] = {"epochs": 1, "batch": 40, "overrides": PLAIN}


@pytest.fixture(scope="module")
def teacher(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """The spec of a teacher after a few epochs."""
    run = tmp_path_factory.mktemp("compare") / "teacher"
    recipe = default_recipe("teach", DATA, model={"kind": "small-cnn", "width": 4})
    training = dataclasses.replace(recipe.training, epochs=3, batch=40)
    teach(dataclasses.replace(recipe, training=training), run, console=QUIET, device="cpu")
    return {"run": str(run)}


def tiny(teacher: dict[str, str], methods: tuple[str, ...] = (), **fields: Any) -> Grid:
    """A grid of moments."""
    return Grid(DATA, methods, teacher=teacher, **{**TINY, "steps": (2,), "seeds": 1, **fields})


def go(grid: Grid, out: Path, **more: Any) -> dict[str, Any]:
    return compare(grid, out, console=QUIET, devices=["cpu"], **more)


@pytest.fixture(scope="module")
def done(
    teacher: dict[str, str], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[dict[str, Any]]:
    """A finished grid of two seeds and two numbers of steps."""
    out = tmp_path_factory.mktemp("grid") / "out"
    yield go(tiny(teacher, ("logits",), steps=(2, 1), seeds=2), out)


def cell(done: dict[str, Any], method: str, steps: int, seed: int) -> Path:
    return Path(done["run"]) / "cells" / f"{method}-T{steps}-seed{seed}"


# ---- the grid -----------------------------------------------------------------------------


def curved(classes: int, channels: int) -> nn.Module:
    """A classifier that has no conversion."""
    return nn.Sequential(nn.Flatten(), nn.LazyLinear(8), nn.GELU(), nn.Linear(8, classes))


def test_a_teacher_that_cannot_be_converted_has_no_convert(tmp_path: Path) -> None:
    recipe = default_recipe("teach", DATA, model={"kind": "test_compare:curved"})
    training = dataclasses.replace(recipe.training, epochs=1, batch=40)
    run = tmp_path / "teacher"
    teach(dataclasses.replace(recipe, training=training), run, console=QUIET, device="cpu")
    spec = {"run": str(run)}
    with pytest.raises(UserError, match=r"no student can be made of it: 1 place .*with --model"):
        go(tiny(spec, ("logits",)), tmp_path / "no")
    with pytest.raises(UserError, match=r"--model.*no student can be made of it: 1 place "):
        go(tiny(spec, ("logits",), model={"kind": "test_compare:curved"}), tmp_path / "no")
    own = {"kind": "small-cnn", "width": 4}
    with pytest.raises(UserError, match=r"--methods hybrid: hybrid.on.*no stage of the student"):
        go(tiny(spec, ("hybrid",), model=own), tmp_path / "no")
    assert not (tmp_path / "no").exists()
    found = go(tiny(spec, ("logits",), model=own), tmp_path / "out")
    told = {row["method"] for row in found["rows"]}
    assert told == {"teacher", "convert", "none", "qann", "logits"} and not found["failed"]
    fresh = tiny(spec, ("logits",), model=own, overrides={**PLAIN, "start": "scratch"})
    found = go(fresh, tmp_path / "scratch")
    told = {row["method"] for row in found["rows"]}
    assert told == {"teacher", "none", "qann", "logits"} and not found["failed"]


def test_students_of_another_architecture_share_the_anns_they_begin_as(
    teacher: dict[str, str], tmp_path: Path
) -> None:
    """One by labels and one under the teacher serve every method and T, and count in each price."""
    own, ann = {"kind": "small-cnn", "width": 3}, {**PLAIN, "ann.epochs": 2}
    grid = tiny(teacher, ("logits",), steps=(2, 1), model=own, overrides=ann)
    out = tmp_path / "out"
    found = go(grid, out)
    assert not found["failed"]
    cells = {path.name: path / "ann" for path in (out / "cells").iterdir()}
    assert len(cells) == 8  # convert, none, qann, logits at two T
    logs: dict[bool, set[bytes]] = {True: set(), False: set()}
    for name, place in cells.items():
        recipe = read_recipe(place)
        alone = name.startswith(("convert", "none"))
        assert (recipe.method, recipe.training.epochs) == ("none" if alone else "fading", 2)
        logs[alone].add((place / "metrics.jsonl").read_bytes())  # with the seconds it took
        row = read_json(out / "cells" / name / "results.json")["rows"][-1]
        first = read_json(place / "results.json")
        assert first["run"] == str(place)
        assert row["accuracy_ann"] == first["rows"][0]["accuracy"]
        assert row["seconds"] >= first["rows"][0]["seconds"]
    assert all(len(each) == 1 for each in logs.values()) and not logs[True] & logs[False]
    again = go(grid, out)
    assert again["rows"] == found["rows"]


def test_flags_of_the_ann_that_students_begin_as(
    teacher: dict[str, str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    line = [
        "compare",
        "--teacher",
        teacher["run"],
        "--methods",
        "logits",
        "--quiet",
        "--seeds",
        "1",
    ]
    own = ["--model", "small-cnn", "--width", "3", "--steps", "1", "--epochs", "1"]
    few = ["--ann.epochs", "1", "--calibrate", "16", "--batch", "40"]
    assert main([*line, *own, *few, "--out", str(tmp_path / "a")]) == 0
    for cell in (tmp_path / "a" / "cells").iterdir():
        ann = read_recipe(cell).ann
        assert ann is not None and (ann.epochs, ann.least_steps, ann.batch) == (1, 0, 40)
    capsys.readouterr()
    assert main([*line, *few, "--out", str(tmp_path / "b")]) == 2
    assert "the student begins as its teacher" in capsys.readouterr().err
    assert main([*line, *own, *few, "--start", "scratch", "--out", str(tmp_path / "c")]) == 2
    assert "no start from scratch" in capsys.readouterr().err


def test_an_ann_that_is_damaged_is_not_shared(teacher: dict[str, str], tmp_path: Path) -> None:
    own = {"kind": "small-cnn", "width": 3}
    grid = tiny(teacher, (), model=own, overrides={**PLAIN, "ann.epochs": 1})
    out = tmp_path / "out"
    go(grid, out)
    for name in ("none", "convert"):
        (out / "cells" / f"{name}-T2-seed0" / "ann" / "model.json").write_text("{}")
    found = go(dataclasses.replace(grid, steps=(2, 1)), out)
    assert not [each for each in found["failed"] if "T1" in str(each)]
    assert load(out / "cells" / "none-T1-seed0" / "ann").net is not None


def test_controls_always_take_part() -> None:
    assert Grid(DATA).methods == CONTROLS
    assert Grid(DATA, ("logits", "none", "logits")).methods == (*CONTROLS, "logits")


def test_grid_survives_json() -> None:
    grid = Grid(DATA, ("affine",), (1, 2), 4, overrides={"training.clip": 2.0}, tune_rates=(0.1,))
    assert Grid.from_json(json.loads(json.dumps(grid.to_json()))) == grid


def test_a_seed_is_finished_before_the_next() -> None:
    cells = list(Grid(DATA, ("logits",), (1, 2), 2).cells())
    assert len(cells) == len(set(cells)) == 4 * 2 * 2
    assert [each.seed for each in cells] == [0] * 8 + [1] * 8


def test_recipes_differ_by_method_alone() -> None:
    """Same start, training, data and images for every method."""
    grid = Grid(DATA, tuple(METHODS), overrides={"training.clip": 3.0, "neuron.threshold": 2.0})
    own = ("method", "terms", "execute")
    seen = []
    for method in grid.methods:
        fields = dataclasses.asdict(grid.recipe(Cell(method, 2, 1), {"run": "somewhere"}))
        fields["encode"].pop("sliding", None)  # what images giving way to events is
        seen.append({name: value for name, value in fields.items() if name not in own})
        assert fields["terms"].keys() == METHODS[method].keys()
    assert all(each == seen[0] for each in seen)
    assert seen[0]["training"]["clip"] == 3.0
    assert seen[0]["neuron"] == {"kind": "IF", "dither": DITHER, "threshold": 2.0}


def test_frozen_norms_have_a_rate_that_they_bear() -> None:
    def rates(*methods: str, **overrides: Any) -> list[float]:
        grid = Grid({"kind": "mnist"}, methods, overrides=overrides)
        return [grid.recipe(Cell(m, 4, 0)).training.learning_rate for m in grid.methods]

    assert rates() == [0.004] * 3
    assert rates("logits[norm=frozen]") == [0.004, 0.004, 0.004, 0.001]
    assert rates("logits[norm=frozen,training.learning_rate=0.003]")[-1] == 0.003
    assert rates(norm="frozen") == [0.001] * 3
    assert rates(**{"norm": "frozen", "training.learning_rate": 0.002}) == [0.002] * 3


def test_what_a_variant_sets_goes_before_the_grid() -> None:
    """And the table says where its training is another."""
    name = "logits[training.epochs=3,training.learning-rate=0.001,neuron.signed=False,execute=bptt]"
    overrides = {"training.learning_rate": 0.01, "neuron.signed": True, "execute.kind": "rate"}
    grid = Grid({"kind": "mnist"}, (name, "logits"), epochs=1, overrides=overrides)
    mine, usual = (grid.recipe(Cell(each, 4, 0)) for each in (name, "logits"))
    assert (mine.training.epochs, mine.training.learning_rate) == (3, 0.001)
    assert (mine.neuron["signed"], mine.execute["kind"]) == (False, "bptt")
    assert (usual.training.epochs, usual.training.learning_rate) == (1, 0.01)
    assert (usual.neuron["signed"], usual.execute["kind"]) == (True, "rate")
    (said,) = [note for note in notes(grid) if note.startswith(name)]
    assert "epochs = 3 (none: 1)" in said
    assert not [note for note in notes(grid) if note.startswith("logits has")]


def test_what_distill_would_choose_by_itself_is_told() -> None:
    """A grid trains all methods alike; where the defaults of `distill` differ, it says so."""
    strong = "fading[feature.weight=10,feature.fade=4]"
    grid = Grid({"kind": "digits"}, ("logits", "fading", strong), steps=(1, 2, 4))
    beta, length, ways, features = notes(grid)
    assert "training.beta2=0.99 at T = 1 by itself" in beta
    assert "training.epochs=80" in length and "at T = 1 and 2 by itself" in length
    assert "execute.kind=bptt at T = 2 and 4" in ways and ways.endswith("--execute.kind bptt.")
    assert (
        "for fading at T = 4" in features and "fading[feature.fade=4,feature.weight=10]" in features
    )
    unrolled = {"execute.kind": "bptt"}
    told = Grid({"kind": "digits"}, ("logits",), steps=(2, 4), epochs=3, overrides=unrolled)
    quick = {"training.beta2": 0.99}
    brief = Grid({"kind": "digits"}, ("logits",), steps=(1,), epochs=3, overrides=quick)
    assert notes(told) == notes(brief) == []


def test_methods_are_joined_and_taken_from_elsewhere() -> None:
    joined = recipe_of("logits+affine", DATA)
    assert joined.terms.keys() == {"ce", "logits", "affine"}
    own = recipe_of("affine+test_compare:Pull", DATA)
    assert own.terms["own"] == {"kind": "test_compare:Pull"}
    assert own.terms.keys() == {"ce", "affine", "own"}
    steps = recipe_of("hybrid+twkd", DATA)
    assert steps.execute["kind"] == "bptt"


def test_methods_that_are_joined_keep_what_each_needs(monkeypatch: pytest.MonkeyPatch) -> None:
    """In any order; where two need different things, a sentence says so."""
    events = {"kind": "nmnist"}
    for method in ("ckd+logits", "logits+ckd", "logits+ckd+twkd"):
        assert recipe_of(method, events).encode == recipe_of("ckd", events).encode
    both = recipe_of("logits+ckd+twkd", events)
    assert both.execute == recipe_of("twkd", events).execute
    monkeypatch.setitem(FIELDS, "affine", {"encode": {"kind": "mixed"}})
    what = "ckd needs encode = .*0.25.*, affine {'kind': 'mixed'}"
    with pytest.raises(UserError, match=rf"--methods ckd\+affine`: {what}"):
        recipe_of("ckd+affine", events)


def test_compilation_is_left_out_of_every_way_that_has_it() -> None:
    def ways(data: str, **overrides: Any) -> dict[str, Any]:
        methods = ("twkd", "distilling-spikes", "fading")
        grid = Grid({"kind": data}, methods, overrides=overrides)
        return {m: grid.recipe(Cell(m, 2, 0)).execute for m in grid.methods}

    found = ways("mnist", **{"execute.fuse": False})
    assert found.pop("qann") == {"kind": "quantised"}
    assert {name: way["fuse"] for name, way in found.items()} == dict.fromkeys(found, False)
    kinds = {name: way["kind"] for name, way in found.items()}
    assert kinds["twkd"] == kinds["distilling-spikes"] == "bptt"
    assert kinds["fading"] == "rate"
    assert ways("mnist", **{"execute.kind": "bptt"})["twkd"] == {"kind": "bptt", "fuse": True}


def test_way_of_gradients_is_kept_by_methods_that_need_theirs() -> None:
    grid = Grid(DATA, ("logits", "twkd"), overrides={"execute.kind": "bptt", "neuron.kind": "LIF"})
    found = {m: grid.recipe(Cell(m, 2, 0)) for m in grid.methods}
    kinds = {method: recipe.execute["kind"] for method, recipe in found.items()}
    assert kinds == {"none": "bptt", "convert": "bptt", "qann": "quantised"} | {
        "logits": "bptt",
        "twkd": "bptt",
    }
    neurons = {method: recipe.neuron["kind"] for method, recipe in found.items()}
    assert neurons == dict.fromkeys(found, "LIF") | {"qann": "IF"}
    (said,) = notes(grid)
    assert said.startswith("qann stays") and "neuron.kind = LIF" in said


def test_a_quantised_network_takes_what_integrate_and_fire_has() -> None:
    common = {"neuron.threshold": 2.0, "neuron.kind": "IF"}
    plain = {"kind": "IF", "dither": DITHER, "threshold": 2.0}
    grid = Grid(DATA, overrides=common)
    assert grid.recipe(Cell("qann", 2, 0)).neuron == plain
    assert notes(grid) == []
    grid = Grid(DATA, overrides={**common, "neuron.signed": True})
    assert grid.recipe(Cell("qann", 2, 0)).neuron == plain
    (said,) = notes(grid)
    assert "neuron.signed = True" in said and "threshold" not in said
    grid = Grid(DATA, overrides={**common, "neuron.delay": 1})
    assert grid.recipe(Cell("qann", 2, 0)).neuron == plain
    assert grid.recipe(Cell("none", 2, 0)).neuron == {**plain, "delay": 1}
    (said,) = notes(grid)
    assert "neuron.delay = 1" in said


def test_a_network_is_named_by_its_spikes() -> None:
    late = {"neuron.delay": 1}
    by_levels = {**late, "execute.kind": "quantised"}
    kinds = [
        [kind(Grid(DATA, overrides=given).recipe(Cell(method, steps, 0))) for given in ({}, late)]
        for method, steps in (("none", 2), ("qann", 2))
    ]
    assert kinds == [["snn", "delayed snn"], ["quantised ann", "quantised ann"]]
    trained = Grid(DATA, overrides=by_levels).recipe(Cell("none", 2, 0))
    assert kind(trained) == "delayed snn"
    assert kind(dataclasses.replace(trained, steps=4)) == "quantised ann"  # not all input is known
    signs = Grid(DATA, overrides={**late, "neuron.signed": True}).recipe(Cell("none", 2, 0))
    assert kind(signs) == "delayed signed snn"


def test_notes_are_told_at_the_start_and_stay_with_the_table(
    teacher: dict[str, str], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    words = ["compare", "--data", DATA["kind"], "--teacher", teacher["run"], "--methods", "logits"]
    words += ["--neuron", "PLIF", "--joint", "true", "--budget-minutes", "0", "--epochs", "0"]
    assert main([*words, "--out", str(tmp_path / "out"), "--json"]) == 0
    printed, err = capfd.readouterr()
    said = json.loads(printed)["notes"]
    assert err.splitlines()[: len(said)] == [f"note: {each}" for each in said]
    assert "neuron.kind = PLIF" in said[0] and "before joint training" in said[1]
    stored = json.loads((tmp_path / "out" / "results.json").read_text())
    assert stored["notes"] == said
    for name in ("table.md", "report.html"):
        text = html.unescape((tmp_path / "out" / name).read_text())
        text = text.replace("\N{NO-BREAK SPACE}", " ")
        assert all(each in text for each in said)


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"methods": ("hybird",)}, "hybrid"),
        ({"methods": ("none+affine",)}, "control"),
        ({"seeds": 0}, "--seeds 0"),
        ({"seeds": TUNING_SEED + 1}, "1 to"),
        ({"steps": (2, 0)}, "--steps 2 0"),
        ({"steps": ()}, "--steps"),
        ({"tune": -1}, "--tune -1"),
        ({"tune": 2, "data": {"kind": "digits", "validation": 0}}, "--validation"),
        ({"tune_rates": (0.1, 0.0)}, "--tune-rates"),
        ({"epochs": -1}, "epochs"),
        ({"overrides": {"training.clib": 1}}, "clip"),
        ({"overrides": {"terms.relation.weight": 1}}, "no method"),
        ({"overrides": {"seed": 1}}, "the grid sets it"),
        ({"overrides": {"neuron.surrogate.alpha": 1}}, "surrogate"),
    ],
)
def test_mistake_in_a_grid_is_one_sentence(fields: dict[str, Any], said: str) -> None:
    with pytest.raises(UserError) as raised:
        Grid(**{"data": DATA, "methods": ("hybrid",), **fields})
    assert said in str(raised.value)


# ---- what comes out -----------------------------------------------------------------------


def test_rows_have_the_promised_keys(done: dict[str, Any]) -> None:
    assert all(set(row) >= KEYS | MORE for row in done["rows"])
    means = {(row["method"], row["steps"]) for row in done["rows"] if row["n"] == 2}
    assert means == {(m, t) for m in (*CONTROLS, "logits") for t in (1, 2)}
    assert all(row["seed"] is None for row in done["rows"] if row["n"] == 2)
    single = [row for row in done["rows"] if row["n"] == 1 and row["steps"] is not None]
    assert len(single) == 2 * 2 * 4 and all(row["std"] is None for row in single)
    assert [row["method"] for row in done["rows"] if row["steps"] is None] == ["teacher"]
    assert not done["failed"] and not done["remaining"] and done["resume"] is None


def test_means_and_intervals_are_those_of_the_cells(done: dict[str, Any]) -> None:
    """Two seeds: t(1) is Cauchy's, so the interval is the mean +- tan(0.475 pi) |d0 - d1| / 2."""

    def found(method: str, steps: int, seed: int) -> dict[str, Any]:
        rows = json.loads((cell(done, method, steps, seed) / "results.json").read_text())["rows"]
        (row,) = (r for r in rows if r["method"] == method and r["steps"] == steps)
        return row

    for row in done["rows"]:
        if row["n"] != 2:
            continue
        mine = [found(row["method"], row["steps"], seed) for seed in (0, 1)]
        a, b = (each["accuracy"] for each in mine)
        assert row["accuracy"] == pytest.approx((a + b) / 2)
        assert row["std"] == pytest.approx(abs(a - b) / math.sqrt(2))
        if row["method"] == "none":
            assert row["difference"] is row["low"] is row["verdict"] is None
            continue
        first, second = (
            each["accuracy"] - found("none", row["steps"], seed)["accuracy"]
            for seed, each in enumerate(mine)
        )
        half = math.tan(0.475 * math.pi) * abs(first - second) / 2
        assert row["difference"] == pytest.approx((first + second) / 2)
        assert row["high"] - row["difference"] == pytest.approx(half)
        assert row["difference"] - row["low"] == pytest.approx(half)
        assert (row["verdict"] == "no difference shown") == (row["low"] <= 0 <= row["high"])


def made_up(accuracies: dict[tuple[str, int], float], tmp_path: Path) -> list[Job]:
    """Jobs of cells that are finished with made-up accuracies, by (method, seed)."""
    jobs = []
    grid = Grid(DATA, tuple(dict.fromkeys(method for method, _ in accuracies)), (4,), 9)
    for (method, seed), accuracy in accuracies.items():
        folder = tmp_path / f"{method}{seed}"
        folder.mkdir()
        row = {"method": method, "steps": 4, "accuracy": accuracy, "std": None, "n": 1}
        row |= {"seed": seed, "split": "test", "rate": 0.1 * seed, "seconds": 2.0 + seed}
        (folder / "results.json").write_text(json.dumps({"rows": [row]}))
        jobs.append(Job("cell", folder.name, folder, grid.recipe(Cell(method, 4, seed))))
    return jobs


def share_within(t: float, freedom: int) -> float:
    """P(|X| <= t) of Student's t, by Simpson's rule on its density."""
    count, width = 2000, t / 2000
    scale = math.gamma((freedom + 1) / 2) / (math.sqrt(freedom * math.pi) * math.gamma(freedom / 2))
    total = 0.0
    for k in range(count + 1):
        weight = 1 if k in (0, count) else 4 if k % 2 else 2
        total += weight * scale * (1 + (k * width) ** 2 / freedom) ** (-(freedom + 1) / 2)
    return 2 * total * width / 3


def test_pairs_are_the_seeds_that_both_have(tmp_path: Path) -> None:
    """A half-finished grid: only common seeds are paired, the mean is over all that are there."""
    none = {("none", s): 0.5 + 0.01 * s for s in range(5)}
    more = {("logits", s): 0.52 + 0.013 * s * s for s in (0, 1, 3, 4, 7)}
    one = {("affine", 2): 0.4}
    lost = {("hybrid", 8): 0.9}
    rows = mean_rows(seed_rows(made_up(none | more | one | lost, tmp_path)))
    found = {row["method"]: row for row in rows}
    row = found["logits"]
    differences = [more["logits", s] - none["none", s] for s in (0, 1, 3, 4)]
    assert (row["n"], row["pairs"]) == (5, 4)
    assert row["accuracy"] == pytest.approx(sum(more.values()) / 5)
    mean = sum(differences) / 4
    deviation = math.sqrt(sum((d - mean) ** 2 for d in differences) / 3)
    t = (row["high"] - row["difference"]) / (deviation / 2)
    assert row["difference"] == pytest.approx(mean)
    assert share_within(t, 3) == pytest.approx(0.95, abs=1e-6)
    assert row["seconds"] == pytest.approx(sum(2.0 + s for s in (0, 1, 3, 4, 7)) / 5)
    assert row["peak_mib"] is None
    assert found["affine"]["difference"] == pytest.approx(0.4 - 0.52)
    assert found["affine"]["low"] is found["affine"]["verdict"] is None
    assert found["affine"]["seed"] == 2
    assert found["hybrid"]["difference"] is None
    said = " ".join(findings(rows))
    assert "one seed, so no interval and no claim: affine" in said


def test_kinds_are_marked(done: dict[str, Any]) -> None:
    kinds = {row["method"]: row["kind"] for row in done["rows"]}
    assert kinds == {"teacher": "ann", "none": "snn", "convert": "snn"} | {
        "qann": "quantised ann",
        "logits": "snn",
    }
    assert {row["rate"] for row in done["rows"] if row["method"] == "qann"} == {None}
    assert all(row["rate"] > 0 for row in done["rows"] if row["kind"] == "snn")
    assert "qann (quantised ann)" in (Path(done["run"]) / "table.md").read_text()


def test_files_hold_the_table(done: dict[str, Any]) -> None:
    out = Path(done["run"])
    stored = json.loads((out / "results.json").read_text())
    assert stored["schema"] == 1 and stored["rows"] == done["rows"]
    with (out / "table.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == len(done["rows"])
    for text, row in zip(rows, done["rows"], strict=True):
        assert (text["method"], float(text["accuracy"])) == (row["method"], row["accuracy"])
        assert text["low"] == ("" if row["low"] is None else repr(row["low"]))
    lines = [line for line in (out / "table.md").read_text().splitlines() if line[:1] == "|"]
    assert len(lines) == 2 + 1 + 2 * 4


def test_page_says_every_number_and_needs_nothing_else(done: dict[str, Any]) -> None:
    pytest.importorskip("jinja2")
    pytest.importorskip("matplotlib")
    text = (Path(done["run"]) / "report.html").read_text()
    words = " ".join(Reader(text).words)
    for row in over_seeds(done["rows"]):
        assert f"{100 * row['accuracy']:.1f}" in words
    assert "quantised ANN, no spikes" in words
    assert "no difference shown" in words
    bare = text.replace('xmlns="http://www.w3.org/2000/svg"', "")
    bare = bare.replace('xmlns:xlink="http://www.w3.org/1999/xlink"', "")
    assert "://" not in bare and "<script" not in bare
    for what in ("Accuracy of each method at T", "Difference of each method to none at T"):
        assert text.count(f'aria-label="{what}') == 2
    assert text.count("<svg") == text.count("<figure") > 4 and "A closer look:" in text


def test_page_of_nothing_yet() -> None:
    pytest.importorskip("jinja2")
    pytest.importorskip("matplotlib")
    text = grid_page([], title="T", remaining=["a cell"], tuned=None)
    assert "No cell is computed yet" in text and "a cell" in text
    Reader(text)


def test_cells_are_ordinary_runs(done: dict[str, Any]) -> None:
    run = cell(done, "logits", 2, 1)
    loaded = load(run)
    assert loaded.recipe == read_recipe(run)
    assert (loaded.recipe.method, loaded.recipe.steps, loaded.recipe.seed) == ("logits", 2, 1)
    assert main(["measure", str(run), "--steps", "2", "--quiet"]) == 0


def test_students_of_a_seed_start_alike(done: dict[str, Any]) -> None:
    """The untrained conversion is the start: calibrated on the same images for every method."""
    weights = [load(cell(done, "convert", 2, seed)).net.state_dict() for seed in (0, 1)]
    changed = [name for name in weights[0] if not torch.equal(weights[0][name], weights[1][name])]
    assert any("threshold" in name for name in changed), "seeds draw the same images"


def test_spiking_teacher_of_another_architecture(done: dict[str, Any], tmp_path: Path) -> None:
    """Its students begin as ANNs of their own, whose conversion is the control."""
    run = cell(done, "none", 2, 0)
    model = {"kind": "small-cnn", "width": 6}
    grid = Grid(DATA, ("logits",), (1, 2), 1, {"run": str(run)}, model, **TINY)
    result = go(grid, tmp_path / "out")
    found = {row["method"]: row for row in result["rows"]}
    assert found.keys() == {"teacher", "convert", "none", "qann", "logits"}
    assert not result["failed"]
    stored = json.loads((run / "results.json").read_text())["rows"]
    own = {row["steps"]: row["accuracy"] for row in stored if row["method"] == "none"}
    taught = {row["kind"]: row for row in result["rows"] if row["method"] == "teacher"}
    assert {kind: row["accuracy"] for kind, row in taught.items()} == {
        "snn, T = 1": own[1],
        "snn, T = 2": own[2],
    }
    for steps in (1, 2):
        shown = at(steps, over_seeds(result["rows"]))
        assert [row["accuracy"] for row in shown if row["steps"] is None] == [own[steps]]
    text = (tmp_path / "out" / "report.html").read_text().replace("\N{NO-BREAK SPACE}", " ")
    assert "<small>spiking, T = 1</small>" in text and "that the others start from" not in text
    assert "| teacher (spiking, T = 2) | 2 |" in (tmp_path / "out" / "table.md").read_text()
    assert any("spiking teacher at T = 2 answers" in each for each in result["findings"])
    student = load(tmp_path / "out" / "cells" / "logits-T1-seed0")
    assert student.description["width"] == 6


# ---- going on -----------------------------------------------------------------------------


def changes(out: Path) -> dict[str, int]:
    """When each cell's results were written."""
    return {p.parent.name: p.stat().st_mtime_ns for p in out.glob("cells/*/results.json")}


def test_finished_cells_are_not_computed_again(
    done: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: Any, **__: Any) -> None:
        raise AssertionError("a finished cell was computed again")

    monkeypatch.setattr(work, "distill", refuse)
    out = Path(done["run"])
    assert go(stored_grid(out), out)["rows"] == done["rows"]


def test_grid_grows_by_methods_steps_and_seeds(
    done: dict[str, Any], teacher: dict[str, str], tmp_path: Path
) -> None:
    out = tmp_path / "out"
    go(tiny(teacher), out)
    before = changes(out)
    assert len(before) == 3
    grown = go(tiny(teacher, ("logits",), steps=(1, 2), seeds=2), out)
    after = changes(out)
    assert len(after) == 4 * 2 * 2 and {name: after[name] for name in before} == before
    assert stored_grid(out).steps == (2, 1), "tuning stays at the first"
    assert accuracies(grown) == accuracies(done), "what ran before changed a cell"


def accuracies(result: dict[str, Any]) -> dict[Any, float]:
    return {(row["method"], row["steps"], row["seed"]): row["accuracy"] for row in result["rows"]}


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"epochs": 2}, "epochs = 2"),
        ({"methods": ()}, "logits too"),
        ({"steps": (2,)}, "1 too"),
        ({"seeds": 1}, "has 2"),
        ({"overrides": {**PLAIN, "training.clip": 9.0}}, "training.clip = 9.0"),
        ({"overrides": {"calibrate": 16, "estimate": 40}}, "`execute.fuse`: the comparison"),
        ({"data": {**DATA, "validation": 3}}, "data.validation = 3"),
        ({"model": {"kind": "small-cnn"}}, 'model.kind = "small-cnn"'),
    ],
)
def test_grid_only_grows(
    done: dict[str, Any], teacher: dict[str, str], fields: dict[str, Any], said: str
) -> None:
    asked = {"methods": ("logits",), "steps": (2, 1), "seeds": 2, **fields}
    with pytest.raises(UserError) as raised:
        go(dataclasses.replace(tiny(teacher), **asked), Path(done["run"]))
    assert said in str(raised.value)
    assert stored_grid(Path(done["run"])).seeds == 2


def test_folder_of_something_else_is_refused(teacher: dict[str, str], tmp_path: Path) -> None:
    with pytest.raises(UserError, match="it holds a run"):
        go(tiny(teacher), Path(teacher["run"]))
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(UserError, match="something else"):
        go(tiny(teacher), tmp_path)
    with pytest.raises(UserError, match="no comparison"):
        stored_grid(tmp_path)


def test_cell_of_another_recipe_or_teacher_is_refused(
    teacher: dict[str, str], tmp_path: Path
) -> None:
    out = tmp_path / "out"
    go(tiny(teacher), out)
    run = out / "cells" / "none-T2-seed0"
    stored = json.loads((run / "recipe.json").read_text())
    stored["training"]["epochs"] = 7
    (run / "recipe.json").write_text(json.dumps(stored))
    with pytest.raises(UserError, match=r"training\.epochs = 7"):
        go(tiny(teacher), out)
    stored["training"]["epochs"] = 1
    (run / "recipe.json").write_text(json.dumps(stored))
    card = json.loads((run / "card.json").read_text())
    card["teacher"]["sha256"] = "0" * 64
    (run / "card.json").write_text(json.dumps(card))
    with pytest.raises(UserError, match="another teacher"):
        go(tiny(teacher), out)


def test_two_comparisons_do_not_share_a_folder(teacher: dict[str, str], tmp_path: Path) -> None:
    pytest.importorskip("fcntl")
    out = tmp_path / "out"
    out.mkdir()
    said = rf"--out .*process {os.getpid()} is at work in this folder"
    with alone_in(out, "x"), pytest.raises(UserError, match=said):
        go(tiny(teacher), out)
    assert not list(out.iterdir()), "the second has left something there"


# ---- time ---------------------------------------------------------------------------------


def test_no_time_computes_nothing(teacher: dict[str, str], tmp_path: Path) -> None:
    result = go(tiny(teacher), tmp_path / "out", budget_minutes=0)
    assert result["remaining"] == [f"{method}-T2-seed0" for method in CONTROLS]
    assert result["resume"] == f"spikelet compare --resume {tmp_path / 'out'}"
    assert result["rows"] == []
    assert not (tmp_path / "out" / "cells").exists()
    assert (tmp_path / "out" / "table.csv").exists()


def test_spent_time_stops_a_run_with_a_checkpoint(teacher: dict[str, str], tmp_path: Path) -> None:
    out, grid = tmp_path / "out", tiny(teacher, epochs=100000)
    began = time.monotonic()
    result = go(grid, out, budget_minutes=1.0 / 60)
    assert time.monotonic() - began < 20
    assert "none-T2-seed0" in result["remaining"]
    assert holds_state(out / "cells" / "none-T2-seed0" / "checkpoint")
    assert not result["failed"]


def test_stopped_grid_goes_on_to_the_same_rows(
    done: dict[str, Any], teacher: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Stopped in the middle of a run by a signal, as Ctrl-C is."""
    from spikelet.train.loop import Loop

    step, taken = Loop.step, []

    def counted(self: Any, *args: Any) -> None:
        step(self, *args)
        taken.append(1)
        if len(taken) == 3:
            os.kill(os.getpid(), signal.SIGINT)

    monkeypatch.setattr(Loop, "step", counted)
    out = tmp_path / "out"
    with pytest.raises(Interrupted, match="spikelet compare --resume") as stop:
        go(tiny(teacher, ("logits",)), out)
    assert stop.value.code == 130
    assert changes(out).keys() == {"none-T2-seed0", "convert-T2-seed0"}
    assert (out / "cells" / "qann-T2-seed0" / "checkpoint").exists()
    rows = go(stored_grid(out), out)["rows"]
    whole = {
        key: value for key, value in accuracies(done).items() if key[1:] in ((2, 0), (None, 0))
    }
    assert {(r["method"], r["steps"], r["seed"]): r["accuracy"] for r in rows} == whole


def test_cell_killed_before_its_first_checkpoint_begins_anew(
    teacher: dict[str, str], tmp_path: Path
) -> None:
    out = tmp_path / "out"
    go(tiny(teacher), out)
    run = out / "cells" / "none-T2-seed0"
    before = json.loads((run / "results.json").read_text())["rows"]
    (run / "results.json").unlink()
    for state in (run / "checkpoint").glob("state*.json"):
        state.unlink()
    assert not go(tiny(teacher), out)["failed"]
    after = json.loads((run / "results.json").read_text())["rows"]
    assert [row["accuracy"] for row in before] == [row["accuracy"] for row in after]


@pytest.mark.parametrize(
    ("file", "content", "fix"),
    [
        ("cells/none-T2-seed0/results.json", "{", "delete this file"),
        ("cells/none-T2-seed0/results.json", '{"rows": []}', "delete this file"),
        ("cells/none-T2-seed0/card.json", "null", "delete its folder"),
        ("cells/none-T2-seed0/env.json", "[]", "delete its folder"),
        ("cells/none-T2-seed0/recipe.json", "", "delete its folder"),
        ("compare.json", '{"grid": 7}', "new folder"),
        ("compare.json", "", "new folder"),
    ],
)
def test_damaged_file_of_a_grid_is_named(
    done: dict[str, Any],
    file: str,
    content: str,
    fix: str,
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
) -> None:
    out = tmp_path / "out"
    shutil.copytree(done["run"], out)
    (out / file).write_text(content)
    whole = file == "compare.json"
    assert main(["compare", "--resume", str(out), "--json"]) == 2
    printed, said = capfd.readouterr()
    assert str(out / file) in said and fix in said and "Traceback" not in said
    if whole:
        return
    found = json.loads(printed)  # the others are told without the one that is damaged
    assert [(each["method"], each["steps"], each["seed"]) for each in found["failed"]] == [
        ("none", 2, 0)
    ]
    left, whole_grid = ({key for key in accuracies(r) if None not in key} for r in (found, done))
    assert left == whole_grid - {("none", 2, 0)}


def test_cell_whose_row_is_missing_is_named(done: dict[str, Any], tmp_path: Path) -> None:
    out = tmp_path / "out"
    shutil.copytree(done["run"], out)
    file = out / "cells" / "none-T2-seed0" / "results.json"
    results = json.loads(file.read_text())
    rows = [row for row in results["rows"] if row["method"] != "none" or row["steps"] != 2]
    rows = rows or [{**results["rows"][0], "method": "another"}]
    file.write_text(json.dumps({**results, "rows": rows}))
    (failed,) = go(stored_grid(out), out)["failed"]
    assert "no row of none at T = 2" in failed["message"]


def test_damaged_tuning_is_named(tmp_path: Path) -> None:
    grid = Grid(DATA, tune=2)
    for content in ("", "null", '{"chosen": 7}', '{"chosen": {"none": {"weight": "x"}}}'):
        (tmp_path / "tuned.json").write_text(content)
        with pytest.raises(UserError, match="delete it and resume") as raised:
            chosen(grid, tmp_path, {})
        assert str(tmp_path / "tuned.json") in str(raised.value)


# ---- failures -----------------------------------------------------------------------------


def test_failing_cell_leaves_the_others(
    teacher: dict[str, str], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    words = ["compare", "--data", DATA["kind"], "--teacher", teacher["run"], "--epochs", "1"]
    words += ["--methods", "test_compare:Broken", "test_compare:Pull", "hybrid", "--steps", "2"]
    words += ["--seeds", "1", "--calibrate", "16", "--terms.hybrid.branch-weights", "[1,2,3,4,5]"]
    words += ["--execute.fuse", "False"]
    assert main([*words, "--batch", "40", "--out", str(out), "--json"]) == 1
    printed, err = capfd.readouterr()
    content = json.loads(printed)
    failed = {each["method"]: each for each in content["failed"]}
    assert failed.keys() == {"test_compare:Broken", "hybrid"}
    assert failed["test_compare:Broken"]["defect"] and not failed["hybrid"]["defect"]
    assert "an own mistake" in failed["test_compare:Broken"]["message"]
    trace = out / "cells" / "test_compare.Broken-T2-seed0" / "error.txt"
    assert "RuntimeError: an own mistake" in trace.read_text()
    assert {row["method"] for row in content["rows"]} == {"teacher", *CONTROLS, "test_compare:Pull"}
    assert content["schema"] == 1 and content["run"] == str(out)
    assert "continue with: spikelet compare --resume" in err
    words = ["compare", "--resume", str(out), "--json", "--quiet"]
    assert main(words) == 1, "failed cells are tried again"


def test_a_defect_of_a_term_is_left_to_its_cells(teacher: dict[str, str]) -> None:
    require_students(Grid(DATA, ("test_compare:Lost",), (2,), 1, teacher))
    with pytest.raises(UserError, match=r"--methods hybrid.*there are 2 matching places"):
        require_students(Grid(DATA, ("hybrid[hybrid.on=7]",), (2,), 1, teacher))


def test_teacher_that_fails_is_one_sentence(tmp_path: Path) -> None:
    grid = Grid(DATA, model={"kind": "small-cnn", "width": 4, "depth": 3}, **TINY)
    with pytest.raises(UserError, match="depth"):
        go(grid, tmp_path / "out")


# ---- tuning -------------------------------------------------------------------------------


@pytest.mark.parametrize("count", [1, 2, 5, 8])
def test_candidates_differ_and_begin_with_what_is_given(count: int) -> None:
    weights, rates = multipliers(count), learning_rates([0.1, 0.05, 0.2], count)
    assert weights[0] == 1 and len(set(weights)) == len(weights) == count
    assert rates[: min(count, 3)] == [0.1, 0.05, 0.2][:count]
    assert len(set(rates)) == len(rates) == count
    assert multipliers(5)[1:] == pytest.approx([1 / 3, 3, 1 / 10, 10])


@pytest.mark.parametrize(("weights", "rates"), [(3, ()), (3, (0.1, 0.2)), (0, (0.1, 0.2, 0.3))])
def test_every_trained_method_has_as_many_candidates(weights: int, rates: Any) -> None:
    grid = Grid(DATA, tuple(METHODS), tune=weights, tune_rates=rates)
    counts = {method: len(candidates(grid, method)) for method in grid.methods}
    expected = max(weights, 1) * max(len(rates), 1)
    assert counts == dict.fromkeys(METHODS, expected) | {"convert": 0}
    names = [each.name for method in grid.methods for each in candidates(grid, method)]
    assert len(names) == len(set(names))


def test_nothing_is_tuned_unless_asked() -> None:
    for grid in (Grid(DATA, ("logits",)), Grid(DATA, ("logits",), tune=1)):
        assert not any(candidates(grid, method) for method in grid.methods)


def test_tuning_chooses_on_the_validation_part_alone(
    teacher: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    distill, seen = work.distill, []

    def watched(recipe: Any, folder: Path, **fields: Any) -> dict[str, Any]:
        data = fields["dataset"]
        seen.append((recipe.seed, data.test is data.validation))
        return distill(recipe, folder, **fields)

    monkeypatch.setattr(work, "distill", watched)
    out, grid = tmp_path / "out", tiny(teacher, ("logits",), tune=2, tune_rates=(0.05,))
    result = go(grid, out)
    assert sorted(set(seen)) == [(0, False), (TUNING_SEED, True)]
    assert seen.count((TUNING_SEED, True)) == 3 * 2
    tuned = result["tuned"]
    assert tuned.keys() >= {"seed", "steps", "chosen", "tried"}
    assert tuned == json.loads((out / "tuned.json").read_text())
    for method, tried in tuned["tried"].items():
        best = max(each["accuracy"] for each in tried)
        first = next(each for each in tried if each["accuracy"] == best)
        chosen = tuned["chosen"][method]
        assert {key: first[key] for key in chosen} == chosen
        recipe = read_recipe(out / "cells" / f"{method}-T2-seed0")
        assert recipe.training.learning_rate == chosen["learning_rate"]
    weight = read_recipe(out / "cells" / "logits-T2-seed0").terms["logits"].get("weight", 1.0)
    assert weight == pytest.approx(tuned["chosen"]["logits"]["weight"])
    for run in (out / "tune").iterdir():
        (row,) = json.loads((run / "results.json").read_text())["rows"][-1:]
        last = json.loads((run / "metrics.jsonl").read_text().splitlines()[-1])
        assert row["split"] == "validation"
        assert row["accuracy"] == last["validation"]["accuracy"]
    count = len(seen)
    assert go(grid, out)["rows"] == result["rows"] and len(seen) == count


def test_method_without_a_finished_candidate_fails(teacher: dict[str, str], tmp_path: Path) -> None:
    grid = tiny(teacher, ("test_compare:Broken",), tune=2)
    result = go(grid, tmp_path / "out")
    (failure,) = result["failed"]
    assert failure["method"] == "test_compare:Broken" and "an own mistake" in failure["message"]
    assert {row["method"] for row in result["rows"]} == {"teacher", *CONTROLS}


# ---- several processes, and processes that are killed ---------------------------------------

SMALL = ["compare", "--data", "digits", "--width", "4", "--methods", "logits", "--steps", "2"]
SMALL += ["--seeds", "2", "--epochs", "3", "--teacher-epochs", "3", "--device", "cpu"]


def begin(out: Path, *more: str) -> subprocess.Popen[str]:
    """A comparison in a process of its own."""
    words = [sys.executable, "-m", "spikelet", *SMALL, "--out", str(out), *more]
    where = {"env": {**os.environ, "OMP_NUM_THREADS": "1"}, "cwd": Path(__file__).parent}
    return subprocess.Popen(words, stderr=subprocess.PIPE, text=True, **where)  # type: ignore[call-overload,no-any-return]


def wait_for(out: Path, cells: int) -> None:
    """Until some cells are finished and another has begun."""
    for _ in range(12000):
        if len(changes(out)) >= cells and len(list(out.glob("cells/*/recipe.json"))) > cells:
            return
        time.sleep(0.01)
    raise AssertionError("the comparison did not come this far")


@pytest.mark.slow
@pytest.mark.parametrize("jobs", [1, 2])
def test_killed_grid_goes_on_to_the_same_rows(jobs: int, tmp_path: Path) -> None:
    whole = begin(tmp_path / "whole")
    killed = begin(tmp_path / "out", "--jobs", str(jobs))
    wait_for(tmp_path / "out", 2)
    killed.kill()
    killed.wait()
    assert whole.wait() == 0
    count = len(changes(tmp_path / "out"))
    time.sleep(1.0)
    assert len(changes(tmp_path / "out")) <= count + jobs, "its workers live on"
    before = changes(tmp_path / "out")
    words = [sys.executable, "-m", "spikelet", "compare", "--resume", str(tmp_path / "out")]
    where = {**os.environ, "OMP_NUM_THREADS": "1"}  # other threads, other sums
    subprocess.run([*words, "--jobs", str(jobs)], check=True, env=where, capture_output=True)
    after = changes(tmp_path / "out")
    assert {name: after[name] for name in before} == before and len(after) == 8
    rows = [json.loads((tmp_path / n / "results.json").read_text()) for n in ("whole", "out")]
    assert accuracies(rows[0]) == accuracies(rows[1])


@pytest.mark.slow
@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_workers_stop_with_checkpoints(number: signal.Signals, status: int, tmp_path: Path) -> None:
    out = tmp_path / "out"
    process = begin(out, "--jobs", "2", "--training.checkpoint-minutes", "100", "--epochs", "400")
    for _ in range(12000):
        if len(list(out.glob("cells/*/metrics.jsonl"))) >= 2:
            break
        time.sleep(0.01)
    time.sleep(0.5)
    process.send_signal(number)
    assert process.wait(60) == status
    assert process.stderr is not None
    assert f"spikelet compare --resume {out}" in process.stderr.read()
    assert list(out.glob("cells/*/checkpoint/state-*.json"))


def test_a_variant_is_a_method_with_settings_of_its_own() -> None:
    """The ablation of branch positions is one command."""
    data = {"kind": "digits"}
    text = "hybrid[hybrid.on=1,hybrid.sample=True,training.clip=2,neuron.kind=LIF]"
    found, usual = recipe_of(text, data), recipe_of("hybrid", data)
    assert found.method == text
    assert found.terms["hybrid"] == {**usual.terms["hybrid"], "on": "1", "sample": True}
    assert (found.training.clip, found.neuron["kind"]) == (2.0, "LIF")
    assert found.terms["logits"] == usual.terms["logits"]
    listed = recipe_of("hybrid[hybrid.branch-weights=[1, 0.5],training.ema=0.9]", data)
    assert listed.terms["hybrid"]["branch_weights"] == [1, 0.5]
    assert listed.training.ema == 0.9


@pytest.mark.parametrize(
    ("text", "what"),
    [
        ("hybrid[on]", "leaf=value"),
        ("hybrid[hybrid.on=1", "leaf=value"),
        ("logits[hybrid.on=1]", "hybrid"),
        ("logits[training.clip=0]", r"--methods logits\[training.clip=0\]: clip = 0"),
        ("qann[execute.fuse=False]", "does not take"),
        ("hybrid[steps=3]", "the grid sets it"),
    ],
)
def test_bad_variants(text: str, what: str) -> None:
    with pytest.raises(UserError, match=what):
        recipe_of(text, {"kind": "digits"})


def test_a_method_that_cannot_be_made_is_refused_before_anything_trains(tmp_path: Path) -> None:
    for method, what in (
        ("hybrid[hybrid.weight=abc]", "terms.hybrid.weight"),
        ("examples.nothing:Nope", "cannot be imported"),
        ("hybrid[hybrid.nonsense=1]", "nonsense"),
        ("logits[logits.fade=-1]", "terms.logits.fade = -1"),
        ("logits[encode.kind=mixed,encode.least=3]", "least"),
        ("logits[ce.per-step=True]", "has the mean's gradient only"),
        ("logits[neuron.step-bias=True]", "step_bias = True.*use execute=bptt"),
        ("logits[execute.windows=2]", "at T = 1: windows = 2`: expected a divisor of the 1 steps"),
        ("logits[logits.fade=1,ce.fade=1]", "every term fades"),
    ):
        with pytest.raises(UserError, match=what) as found:
            compare(Grid({"kind": "digits"}, (method,), (2, 1), 1), tmp_path / "out")
        assert "--methods" in found.value.argument
        assert not (tmp_path / "out").exists()


def test_a_method_without_a_finished_cell_may_be_taken_back(tmp_path: Path) -> None:
    from spikelet.compare.grid import claimed

    data = {"kind": "digits"}
    wrong, right = (Grid(data, (name,), (2,), 1) for name in ("hybrid[hybrid.on=9]", "hybrid"))
    claimed(tmp_path / "out", wrong)
    assert claimed(tmp_path / "out", right).methods == (*CONTROLS, "hybrid")
    done = tmp_path / "out" / "cells" / "hybrid-T2-seed0"
    done.mkdir(parents=True)
    (done / "results.json").write_text("{}")
    with pytest.raises(UserError, match="may only grow"):
        claimed(tmp_path / "out", Grid(data, ("logits",), (2,), 1))


def test_names_of_variants_are_shown_whole() -> None:
    """Brackets are no markup, and a long name does not push numbers out."""
    from spikelet.cli.compare import show

    name = "hybrid[hybrid.on=1,training.clip=2,neuron.kind=LIF]"
    common = {"steps": 2, "split": "test", "kind": "snn", "std": 0.01, "n": 3, "seed": None}
    numbers = {"accuracy": 0.5, "difference": 0.123, "low": -0.1348, "high": 0.2212, "pairs": 3}
    costs = {"verdict": "no difference shown", "rate": 0.2, "seconds": 1.0, "peak_mib": 2.0}
    costs |= {"ann_epochs": 3.0, "macs": 1e9}
    row = {"method": name, **common, **numbers, **costs}
    result = {"rows": [row], "findings": [], "failed": [], "remaining": [], "files": []}
    result["notes"] = ["a [note]"]
    console = Console(width=100, file=io.StringIO(), record=True, force_terminal=False)
    show(console, {**result, "resume": None})
    text = console.export_text().replace("\n", "")
    assert "-13.48 to +22.12" in text
    assert "hybrid[hybrid" in text and "note: a [note]" in text
