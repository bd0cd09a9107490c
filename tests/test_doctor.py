"""The doctor: what it reports, also where something is missing."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from spikelet import doctor
from spikelet.cli import main


def test_doctor_writes_one_object(capfd: pytest.CaptureFixture[str]) -> None:
    assert main(["doctor", "--json"]) == 0
    out, err = capfd.readouterr()
    report = json.loads(out)
    assert report["schema"] == 1
    assert report["speed"]["ratio"] > 0
    assert {"python", "packages", "devices", "data", "compiler", "missing"} <= set(report)
    assert {"name", "version", "use", "install"} <= set(report["packages"][0])
    assert "times the ANN" in err


def test_missing_things_come_with_the_line_that_installs_them(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(doctor, "_version", lambda name: None)
    monkeypatch.setattr(doctor, "compiler", lambda: None)
    report = doctor.examine(tmp_path, timed=False)
    absent = {each["name"]: each["install"] for each in report["missing"]}
    assert absent["timm"] == "pip install 'spikelet[timm]'"
    assert "--download" in absent["cifar10"]
    assert "g++" in absent["C++ compiler"]
    assert set(doctor.PACKAGES) <= set(absent)


def test_data_is_found(tmp_path: Path) -> None:
    file = tmp_path / "cifar-10-batches-py" / "data_batch_1"
    file.parent.mkdir()
    file.touch()
    found = {each["name"]: each["found"] for each in doctor.data(tmp_path)}
    assert found["cifar10"] == str(file.parent)
    assert found["mnist"] is None


def test_torch_that_does_not_import(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(doctor, "torch_error", lambda: "OSError: libcudart is missing")
    report: dict[str, Any] = doctor.examine()
    assert "speed" not in report
    assert report["missing"][0]["use"] == "OSError: libcudart is missing"
    assert main(["doctor"]) == 0
    assert "libcudart" in capsys.readouterr().out


def test_best_seconds_takes_turns() -> None:
    order: list[str] = []
    works = {"a": lambda: order.append("a"), "b": lambda: order.append("b")}
    seconds = doctor.best_seconds(works, repeats=2)
    assert order == ["a", "b"] * 3
    assert all(value >= 0 for value in seconds.values())
