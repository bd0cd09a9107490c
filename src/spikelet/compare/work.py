"""One cell at a time: what is to be computed, where, and what became of it."""

from __future__ import annotations

import contextlib
import copy
import dataclasses
import io
import time
import traceback
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from rich.console import Console

from spikelet.data import Dataset
from spikelet.errors import UserError
from spikelet.folder import unwritable
from spikelet.obstacles import reason
from spikelet.recipe import Recipe
from spikelet.train import Interrupted, read_recipe, write_json
from spikelet.train.job import distill, load_data, teach
from spikelet.train.load import ANN_FOLDER, SNN, Loaded
from spikelet.train.place import copy_run, intact
from spikelet.train.prepare import ann_recipe, teacher_of
from spikelet.train.stored import RESULTS_FILE as RESULTS
from spikelet.train.stored import stored_rows

AGAIN = "delete its folder to compute the run again"
ANEW = "delete this file to measure the run again"
DEFECT_FILE = "error.txt"
RECIPE = "recipe.json"


@dataclass(frozen=True)
class Job:
    """A run of the grid: its name, folder and recipe."""

    kind: Literal["teach", "tune", "cell"]
    name: str
    folder: Path
    recipe: Recipe

    @property
    def finished(self) -> bool:
        """Whether its results are there; such a run is never computed again."""
        rows = read_rows(self.folder)
        return rows is not None and (self.kind != "tune" or rows[-1]["split"] == "validation")


@dataclass(frozen=True)
class Outcome:
    """What became of a job: done, stopped with a checkpoint, or failed with a sentence."""

    job: Job
    seconds: float
    stopped: bool = False
    error: dict[str, Any] | None = None


class Station:
    """A device, with data and teacher loaded once."""

    def __init__(self, device: str | None) -> None:
        self.device = device
        self._dataset: Dataset | None = None
        self._teacher: Loaded | None = None

    def run(self, job: Job) -> dict[str, Any]:
        """Computes a job, or goes on with it; its results.

        A tuning run has the validation part in the place of the test part: it never sees a test
        image.
        """
        if self._dataset is None:
            self._dataset = load_data(job.recipe)
        (job.folder / DEFECT_FILE).unlink(missing_ok=True)
        torch.manual_seed(job.recipe.seed)  # mappings start alike whatever ran before
        common: dict[str, Any] = {
            "resume": True,
            "console": Console(quiet=True, file=io.StringIO()),
            "device": self.device,
            "dataset": self._dataset,
        }
        if job.kind == "teach":
            return teach(job.recipe, job.folder, **common)
        common["teacher"] = self._own_teacher(job, self._dataset)
        borrow_ann(job, common["teacher"])
        if job.kind == "cell":
            controls = job.recipe.method == self._telling(common["teacher"], job.recipe)
            return distill(job.recipe, job.folder, **common, controls=controls)
        held = self._dataset.validation
        assert held is not None
        common["dataset"] = dataclasses.replace(self._dataset, test=held)
        return _on_validation(job, distill(job.recipe, job.folder, **common, controls=False))

    def _telling(self, teacher: Loaded, recipe: Recipe) -> str:
        """The method whose cells measure the teacher, too: `convert` where there is one."""
        without = teacher.kind == SNN or reason(teacher.net) is not None
        return "none" if without and recipe.ann is None else "convert"

    def _own_teacher(self, job: Job, dataset: Dataset) -> Loaded:
        """A copy of the teacher: a method that trains it along changes only its own."""
        if self._teacher is None:
            self._teacher = teacher_of(job.recipe, job.folder, dataset)
        return dataclasses.replace(self._teacher, net=copy.deepcopy(self._teacher.net))


def borrow_ann(job: Job, teacher: Loaded) -> None:
    """Takes over the ANN that a run's student begins as, where a run beside it has trained it.

    It is the same for every T and, as far as a teacher is asked or not, for every method.
    """
    mine = job.folder / ANN_FOLDER
    if job.recipe.ann is None or (mine / RECIPE).exists():
        return
    wanted = ann_recipe(job.recipe, teacher)
    for other in sorted(job.folder.parent.glob(f"*/{ANN_FOLDER}/{RESULTS}")):
        folder = other.parent
        if _is_whole(folder, wanted):
            copy_run(folder, mine)
            return


def _is_whole(run: Path, recipe: Recipe) -> bool:
    """Whether a finished run is one of this recipe, with all that it has written."""
    try:
        return read_recipe(run) == recipe and intact(run)
    except UserError:
        return False


def perform(station: Station, job: Job) -> Outcome:
    """Computes a job on a station; a failure is told, not raised.

    Raises:
        Interrupted, KeyboardInterrupt: when it was stopped.
    """
    began = time.monotonic()
    try:
        station.run(job)
    except Interrupted:
        raise
    except UserError as error:
        return Outcome(job, time.monotonic() - began, error=parts_of(error))
    except torch.OutOfMemoryError:
        fix = "give a smaller --batch or --device cpu"
        full = UserError("--batch", "the device's memory is full", fix)
        return Outcome(job, time.monotonic() - began, error=parts_of(full))
    except OSError as error:
        told = unwritable(error, job.folder, None)
        parts = _defect(job, error) if told is None else parts_of(told)
        return Outcome(job, time.monotonic() - began, error=parts)
    except Exception as error:
        return Outcome(job, time.monotonic() - began, error=_defect(job, error))
    return Outcome(job, time.monotonic() - began)


def read_rows(run: Path) -> list[dict[str, Any]] | None:
    """The rows of a finished run; None of an unfinished one."""
    return stored_rows(run, ANEW) if (run / RESULTS).exists() else None


def died(job: Job, seconds: float, status: int | None) -> Outcome:
    """The outcome of a job whose process is gone."""
    what = f"its process died (status {status})"
    fix = "look at the machine's memory, or give fewer --jobs"
    return Outcome(job, seconds, error=parts_of(UserError("--jobs", what, fix)))


def _on_validation(job: Job, results: dict[str, Any]) -> dict[str, Any]:
    """Results that say on which part they were measured."""
    kept = ("accuracy_selected", "epoch_selected")
    rows = [
        {k: v for k, v in row.items() if k not in kept} | {"split": "validation"}
        for row in results["rows"]
    ]
    results = {**results, "rows": rows}
    write_json(job.folder / RESULTS, results)
    return results


def parts_of(error: UserError) -> dict[str, Any]:
    """An error as a row of `failed` has it."""
    parts = {"argument": error.argument, "message": error.message, "fix": error.fix}
    return {**parts, "defect": False}


def _defect(job: Job, error: Exception) -> dict[str, Any]:
    """A sentence about a defect; the whole trace goes to the run's folder."""
    with contextlib.suppress(OSError):
        job.folder.mkdir(parents=True, exist_ok=True)
        text = "".join(traceback.format_exception(error))
        (job.folder / DEFECT_FILE).write_text(text, encoding="utf-8")
    message = f"a defect of spikelet ({' '.join(str(error).split())})"
    fix = f"please report it with {job.folder / DEFECT_FILE}"
    return {"argument": type(error).__name__, "message": message, "fix": fix, "defect": True}
