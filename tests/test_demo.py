"""The demo with tiny settings: what it returns, writes, continues and refuses."""

from __future__ import annotations

import json
import re
import socket
import statistics
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console

from spikelet.demo import run
from spikelet.errors import UserError
from spikelet.examine import MEASURES
from spikelet.recipe import Training
from spikelet.recipe.methods import DEFAULT_METHOD
from spikelet.train import Interrupted
from spikelet.train.load import load

pytest.importorskip("sklearn")
pytest.importorskip("jinja2")
pytest.importorskip("matplotlib")

TINY: dict[str, Any] = {
    "width": 4,
    "teach": Training(epochs=3, batch=64, learning_rate=0.1),
    "distill": Training(epochs=1, batch=128, learning_rate=0.01),
}
QUIET = Console(quiet=True)


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Any]]:
    """A finished demo of two seeds, made without any network."""

    def refuse(*_: object) -> None:
        raise AssertionError("the demo opened a connection")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(socket.socket, "connect", refuse)
        yield run(tmp_path_factory.mktemp("demo") / "out", 2, QUIET, **TINY)


def out_of(done: dict[str, Any]) -> Path:
    return Path(done["files"][0]).parent


def test_object_is_what_scripts_rely_on(done: dict[str, Any]) -> None:
    keys = {"method", "steps", "accuracy", "std", "n", "seed", "split"}
    assert all(set(row) == keys for row in done["rows"])
    assert all(row["n"] == 2 and row["seed"] is None for row in done["rows"])
    assert all(row["std"] is not None and row["split"] == "test" for row in done["rows"])
    found = {(row["method"], row["steps"]) for row in done["rows"]}
    methods = ("convert", "none", DEFAULT_METHOD)
    assert found == {("teacher", None)} | {(m, t) for m in methods for t in (1, 2, 4, 8)}
    assert done["default"] == DEFAULT_METHOD
    assert set(done["runs"]) == {"teacher", *methods}
    assert all(len(paths) == 2 for paths in done["runs"].values())
    assert done["run"] == done["runs"][DEFAULT_METHOD][0]
    assert json.loads(json.dumps(done)) == done


def test_files_are_there(done: dict[str, Any]) -> None:
    assert all(Path(path).is_file() for path in done["files"])
    assert out_of(done) / "report.html" == Path(done["files"][0])
    stored = json.loads((out_of(done) / "demo.json").read_text())
    assert stored == done
    assert load(done["run"]).predict(torch.zeros(2, 1, 8, 8), steps=2).shape == (2, 10)


def stored(done: dict[str, Any], method: str, steps: int | None) -> list[float]:
    """The accuracies that the runs themselves stored."""
    paths = done["runs"][DEFAULT_METHOD if method in ("convert", "teacher") else method]
    rows = [json.loads((Path(path) / "results.json").read_text())["rows"] for path in paths]
    return [
        next(r["accuracy"] for r in each if (r["method"], r["steps"]) == (method, steps))
        for each in rows
    ]


def test_rows_are_the_means_of_the_runs(done: dict[str, Any]) -> None:
    for row in done["rows"]:
        if row["steps"] not in (4, 8):  # runs store what they were trained for, up to T = 2
            values = stored(done, row["method"], row["steps"])
            assert row["accuracy"] == pytest.approx(statistics.fmean(values), abs=1e-9)
            assert row["std"] == pytest.approx(statistics.stdev(values), abs=1e-9)


def test_differences_are_paired_by_seed(done: dict[str, Any]) -> None:
    stats = pytest.importorskip("scipy.stats")
    assert len(done["differences"]) == 12
    for each in done["differences"]:
        assert each["method"] == DEFAULT_METHOD and each["n"] == 2
        if each["steps"] not in (4, 8):
            own = stored(done, DEFAULT_METHOD, each["steps"])
            key = None if each["versus"] == "teacher" else each["steps"]
            test = stats.ttest_rel(own, stored(done, each["versus"], key))
            low, high = test.confidence_interval(0.95)
            if low == low:  # equal differences have no t statistic
                assert (each["low"], each["high"]) == pytest.approx((low, high), abs=1e-9)
            assert (each["verdict"] == "no difference shown") == (each["low"] <= 0 <= each["high"])


def test_same_call_keeps_the_runs(
    done: dict[str, Any], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("it trained again")

    monkeypatch.setattr("spikelet.train.job.fit", refuse)
    torch.set_num_threads(1)
    again = run(out_of(done), 2, Console(width=200, stderr=True), **TINY)
    assert torch.get_num_threads() == 1
    assert again["rows"] == done["rows"] and again["differences"] == done["differences"]
    shown = capsys.readouterr()
    assert shown.out == "" and "T = 8" in shown.err
    for words in (DEFAULT_METHOD, "report.html", "demo.json", "no difference shown"):
        assert words in shown.err
    (out_of(done) / "demo.json").write_text(json.dumps(done))


def test_report_tells_findings_and_makings(done: dict[str, Any]) -> None:
    text = (out_of(done) / "report.html").read_text().replace("\N{NO-BREAK SPACE}", " ")
    for sentence in done["findings"]:
        assert sentence in text
    for words in ("spikelet demo --out", "On 1397 test images", "layer1", "torch 2", "T = 8"):
        assert words in text
    # answers; images with maps of teacher and three students; what each student sees
    assert text.count("data:image/png") == 20 + 6 * 5 + 3


def test_report_has_the_chapters_of_the_first_seed(done: dict[str, Any]) -> None:
    text = (out_of(done) / "report.html").read_text()
    measured = out_of(done) / "seed0" / DEFAULT_METHOD / "measures"
    assert {f"{name}.json" for name in MEASURES} <= {each.name for each in measured.iterdir()}
    titles = re.findall(r"<h2>(.*?)</h2>", text)
    for title in ("Energy and accuracy", "Noise", "Spikes, step by step", "Health of the layers"):
        assert titles.count(title) == 1
    ids = re.findall(r'\bid="([^"]*)"', text)
    assert len(ids) == len(set(ids))


def test_one_seed_claims_no_difference(
    done: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import shutil

    monkeypatch.setattr("spikelet.demo.present.close_up", lambda runs, look: [])
    shutil.copytree(out_of(done) / "seed0", tmp_path / "one" / "seed0")
    shutil.copy(out_of(done) / "settings.json", tmp_path / "one")
    single = run(tmp_path / "one", 1, QUIET, **TINY)
    assert single["differences"] == []
    assert all(row["std"] is None and row["n"] == 1 and row["seed"] == 0 for row in single["rows"])


def test_other_settings_need_another_folder(done: dict[str, Any], tmp_path: Path) -> None:
    with pytest.raises(UserError, match="other settings"):
        run(out_of(done), 2, QUIET, **{**TINY, "width": 8})
    (tmp_path / "letter.txt").write_text("mine")
    with pytest.raises(UserError, match="not empty"):
        run(tmp_path, 1, QUIET)


def test_bad_settings_are_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="width"):
        run(tmp_path / "a", 1, QUIET, widht=3)
    with pytest.raises(UserError, match="seeds"):
        run(tmp_path / "a", 0, QUIET)
    assert not (tmp_path / "a").exists()


def test_interruption_tells_the_line_to_continue(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stopped(*_: object, **__: object) -> None:
        raise Interrupted("spikelet teach --resume somewhere", 143)

    monkeypatch.setattr("spikelet.demo.digits.teach", stopped)
    with pytest.raises(Interrupted, match="spikelet demo --out") as caught:
        run(tmp_path / "a", 3, QUIET, **TINY)
    assert caught.value.code == 143 and "--seeds 3" in str(caught.value)
