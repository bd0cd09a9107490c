"""What a comparison's page shows of single runs, and the line that computes it again."""

from __future__ import annotations

import dataclasses
import json
import re
import shlex
import sys
from pathlib import Path

import pytest

pytest.importorskip("sklearn", reason="scikit-learn is not installed: no digits")
pytest.importorskip("jinja2")
pytest.importorskip("matplotlib")

from finished import DATA, FOLDER
from spikelet.cli import main
from spikelet.cli.arguments import parse
from spikelet.cli.compare import grid_of
from spikelet.cli.leaves import split
from spikelet.compare.closer import MOST, chosen, closer
from spikelet.compare.closer import _measures as lines
from spikelet.compare.grid import Grid
from spikelet.compare.line import line_of
from spikelet.compare.work import Job
from spikelet.report import grid_page
from spikelet.train import read_recipe
from test_report import Reader


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A teacher and two students of two steps, one in a folder with a name that would do harm."""
    folder = tmp_path_factory.mktemp("cells")
    found = {"teacher": folder / "teacher", "hybrid": folder / FOLDER, "none": folder / "none"}
    size = ("--model", "small-cnn", "--width", "4", "--epochs", "3")
    assert main(["teach", *DATA, *size, "--out", str(found["teacher"])]) == 0
    common = ("--teacher", str(found["teacher"]), "--steps", "2", "--calibrate", "64")
    common += ("--estimate", "64", "--epochs", "1", "--execute.fuse", "False")
    for method in ("hybrid", "none"):
        out = ("--method", method, "--out", str(found[method]))
        assert main(["distill", *DATA, *common, *out]) == 0
    return found


def jobs_of(runs: dict[str, Path]) -> list[Job]:
    """The students as cells of a grid."""
    named = ("hybrid", "none")
    return [Job("cell", name, runs[name], read_recipe(runs[name])) for name in named]


def test_page_has_the_chapters_of_its_runs(runs: dict[str, Path], tmp_path: Path) -> None:
    grid = Grid({"kind": "digits"}, ("hybrid",), teacher={"run": str(runs["teacher"])})
    sections = closer(tmp_path / "a grid", grid, jobs_of(runs))
    text = grid_page([], title="A grid", sections=sections)
    titles = re.findall(r"<h2>(.*?)</h2>", text)
    for title in ("Accuracy over time steps", "Training", "Health of the layers"):
        assert titles.count(title) == 1
    assert "A closer look: hybrid and none" in titles
    words = " ".join(Reader(text).words)
    assert "spikelet compare --methods hybrid" in words and "/a grid-again'" in words
    measure = words[words.index("spikelet measure") :].replace("\\\n", " ")
    assert shlex.split(measure)[2] in map(str, runs.values())
    ids = re.findall(r'\bid="([^"]*)"', text)
    assert ids and len(ids) == len(set(ids))
    assert "<b>run" not in text and "&lt;b&gt;run" in text


def test_what_cannot_be_shown_is_said(
    runs: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: object, **__: object) -> None:
        raise ZeroDivisionError("oh")

    monkeypatch.setattr(sys.modules["spikelet.compare.closer"], "close_up", broken)
    first, *_ = closer(tmp_path, Grid({"kind": "digits"}), jobs_of(runs))
    assert "No single run is shown: ZeroDivisionError: oh" in first.look


def test_noise_and_saliency_of_all_seeds_are_one_line(tmp_path: Path) -> None:
    """The others are measured for the first seed; one seed alone needs no line of its own."""
    grid = Grid({"kind": "digits"}, ("hybrid",), (2,), seeds=3)
    jobs = []
    for cell in grid.cells():
        jobs.append(Job("cell", cell.name, tmp_path / cell.name, grid.recipe(cell)))
        if (cell.method, cell.seed) != ("none", 2):  # that one is not finished
            row = {"method": cell.method, "steps": 2, "accuracy": 0.5, "split": "test"}
            row |= {"std": None, "n": 1, "seed": cell.seed}
            (tmp_path / cell.name).mkdir()
            (tmp_path / cell.name / "results.json").write_text(json.dumps({"rows": [row]}))
    best, base = (
        next(j for j in jobs if (j.recipe.method, j.recipe.seed) == (m, 0))
        for m in ("hybrid", "none")
    )
    first, over = lines(jobs, best, base)
    assert not {"noise", "saliency"} & set(first) and "energy" in first
    assert over[over.index("--versus") :][1:] == [
        str(tmp_path / name) for name in ("none-T2-seed0", "hybrid-T2-seed1", "none-T2-seed1")
    ]
    assert over[2] == first[2] == str(best.folder) and over[3:5] == ["noise", "saliency"]
    ((only),) = lines([best, base], best, base)
    assert only[3:] == ["--versus", str(base.folder)]


def test_runs_are_of_the_largest_t_and_the_first_seed(tmp_path: Path) -> None:
    grid = Grid({"kind": "digits"}, ("hybrid", "logits", "affine", "twkd", "supersnn"), (2, 4))
    jobs = []
    for cell in grid.cells():
        recipe = grid.recipe(cell)
        jobs.append(Job("cell", cell.name, tmp_path / cell.name, recipe))
        if cell.method == "hybrid" and cell.seed == 0:
            continue  # not finished
        value = 0.5 + 0.01 * len(cell.method) + 0.1 * (cell.steps == 2)
        row = {"method": cell.method, "steps": cell.steps, "accuracy": value, "split": "test"}
        row |= {"std": None, "n": 1, "seed": cell.seed}
        (tmp_path / cell.name).mkdir()
        (tmp_path / cell.name / "results.json").write_text(json.dumps({"rows": [row]}))
    found = chosen(jobs)
    assert len(found) == MOST < len(grid.methods) and "none" in found
    assert {job.recipe.steps for job in found.values()} == {4}
    seeds = {name: job.recipe.seed for name, job in found.items()}
    assert seeds.pop("hybrid", 1) == 1 and set(seeds.values()) == {0}
    assert set(grid.methods) - set(found) == {"qann", "twkd"}  # the least accurate
    assert chosen([]) == {}


@pytest.mark.parametrize(
    "words",
    [
        "--methods hybrid --data digits",
        "--methods logits+hybrid hybrid[hybrid.on=inner,training.clip=2] --steps 2 4 --seeds 5 "
        "--data digits --data.train 300 --validation 40 --model small-cnn --width 8 "
        "--teacher-epochs 3 --epochs 4 --batch 32",
        "--methods none --data digits --tune 3 --tune-rates 0.001 0.01 --tune-epochs 2 "
        "--training.clip none --neuron LIF --neuron.tau 1.5 --augment crop flip --calibrate 64 "
        "--precision bf16 --norm frozen --terms.logits.tau 2.5",
        "--methods hybrid --data digits --teacher resnet20 --weights TEACHER --width 8",
        "--methods hybrid --data cifar10 --data-root ROOT --data.protocol batch5 --augment none",
    ],
)
def test_line_describes_the_same_grid(words: str, tmp_path: Path) -> None:
    given = words.replace("TEACHER", str(tmp_path / "w.npz")).replace("ROOT", str(tmp_path))
    rest, leaves = split(shlex.split(given))
    grid = grid_of(parse("compare", rest), leaves)
    line = shlex.split(line_of(grid, Path("a folder")))
    assert line[:2] == ["spikelet", "compare"] and line[-2:] == ["--out", "a folder"]
    rest, leaves = split(line[2:])
    again = grid_of(parse("compare", rest), leaves)
    assert again == grid and dataclasses.asdict(again) == dataclasses.asdict(grid)
