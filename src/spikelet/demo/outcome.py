"""What the demo runs with, what a seed comes to, and what all seeds show."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from spikelet.data import Dataset
from spikelet.recipe import DATA, Training, build
from spikelet.recipe.methods import DEFAULT_METHOD
from spikelet.report import comparison, sentences

METHODS = ("convert", "none", DEFAULT_METHOD)
CONTROLS = ("none", "convert", "teacher")
MEASURED = (1, 2, 4, 8)
THREADS = 1  # the networks are small: more threads only wait for each other
BATCH = 500
CLOSER = 100  # test images of each measure of the first seed


# Chosen by accuracy on the held-out images alone (mean of ten seeds and of T = 1, 2, 4, 8), never
# on the test part. `none` and the default method had the same last grid, with gradients clipped to
# norm 1 and T = 2: AdamW at 0.03, SGD at 0.2 and 0.5; each got its own best.
TEACH = Training(epochs=80, batch=64, learning_rate=0.2, clip=1.0)
DISTILL = Training(epochs=40, batch=64, optimiser="adamw", learning_rate=0.03, clip=1.0)


@dataclass(frozen=True)
class Settings:
    """What the demo runs with.

    `steps` is the T that students train with; `none` differs from `distill` by optimiser and rate.
    """

    labelled: int = 400
    validation: int = 80
    width: int = 16
    steps: int = 2
    teach: Training = TEACH
    distill: Training = DISTILL
    control_optimiser: Literal["sgd", "adamw"] = "sgd"
    control_rate: float = 0.5

    def training(self, method: str) -> Training:
        """How a method's student is trained."""
        if method != "none":
            return self.distill
        return replace(
            self.distill, optimiser=self.control_optimiser, learning_rate=self.control_rate
        )


def data_spec(seed: int, settings: Settings) -> dict[str, Any]:
    """The spec of the digits, with the part that this seed holds out."""
    sizes = {"train": settings.labelled, "validation": settings.validation}
    return {"kind": "digits", **sizes, "seed": seed}


def load_digits(seed: int, settings: Settings) -> Dataset:
    """The digits of a seed; the test part is the same for all."""
    return build("data", data_spec(seed, settings), DATA)


@dataclass(frozen=True)
class Outcome:
    """One seed: accuracy on the test part by method and T, and where its runs lie."""

    seed: int
    accuracy: Mapping[str, Mapping[int | None, float]]
    runs: Mapping[str, Path]
    health: Mapping[str, Mapping[str, float]]


def result_of(out: Path, outcomes: Sequence[Outcome], settings: Settings) -> dict[str, Any]:
    """The JSON object of the demo, without its duration."""
    rows = [
        _row(method, steps, outcomes)
        for method, values in outcomes[0].accuracy.items()
        for steps in values
    ]
    differences = [] if len(outcomes) < 2 else _differences(outcomes)
    runs = {method: [str(o.runs[method]) for o in outcomes] for method in outcomes[0].runs}
    models = [f"{path}/model.safetensors" for paths in runs.values() for path in paths]
    return {
        "rows": rows,
        "differences": differences,
        "runs": runs,
        "default": DEFAULT_METHOD,
        "run": runs[DEFAULT_METHOD][0],
        "files": [str(out / "report.html"), str(out / "demo.json"), *models],
        "findings": sentences(rows, differences, DEFAULT_METHOD),
    }


def _row(method: str, steps: int | None, outcomes: Sequence[Outcome]) -> dict[str, Any]:
    values = [outcome.accuracy[method][steps] for outcome in outcomes]
    several = len(values) > 1
    return {
        "method": method,
        "steps": steps,
        "accuracy": statistics.fmean(values),
        "std": statistics.stdev(values) if several else None,
        "n": len(values),
        "seed": None if several else outcomes[0].seed,
        "split": "test",
    }


def _differences(outcomes: Sequence[Outcome]) -> list[dict[str, Any]]:
    """The default method minus each control at each T, paired by seed."""
    found = []
    for versus in CONTROLS:
        for t in MEASURED:
            own = [outcome.accuracy[DEFAULT_METHOD][t] for outcome in outcomes]
            key = None if versus == "teacher" else t
            other = [outcome.accuracy[versus][key] for outcome in outcomes]
            found.append(comparison(DEFAULT_METHOD, versus, t, own, other))
    return found
