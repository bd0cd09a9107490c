"""A whole comparison: teacher, tuning, cells, table; it goes on wherever it was stopped."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from rich.console import Console

from spikelet.compare.crew import Crew
from spikelet.compare.fitting import require_buildable, require_students
from spikelet.compare.grid import GRID_FILE, Cell, Grid, claimed, require_room
from spikelet.compare.notes import notes
from spikelet.compare.progress import Board
from spikelet.compare.table import mean_rows, require_alike, require_sound, seed_rows, teacher_rows
from spikelet.compare.tune import chosen, tuned, tuning_jobs
from spikelet.compare.turns import Alone, Budget
from spikelet.compare.work import Job, parts_of
from spikelet.compare.write import commits, findings, write, write_tables
from spikelet.errors import UserError
from spikelet.folder import alone_in, storing, sweep
from spikelet.obstacles import reason
from spikelet.recipe import Spec
from spikelet.train import Interrupted, load, read_recipe


def compare(
    grid: Grid,
    out: Path | str,
    *,
    jobs: int = 1,
    devices: Sequence[str] | None = None,
    budget_minutes: float | None = None,
    console: Console | None = None,
) -> dict[str, Any]:
    """Computes a grid, or goes on with it, and writes OUT/results.json, table.csv, report.html.

    Finished cells are never computed again, stopped ones go on from their checkpoint; a folder's
    grid may be called again with more methods, steps or seeds.

    Args:
        grid: what is compared.
        out: folder of the grid; cells lie in OUT/cells, each an ordinary run.
        jobs: worker processes; 1 computes in this process.
        devices: of the workers in turn, "cpu", "cuda:1"; by default a GPU where there is one.
        budget_minutes: after these no cell begins; what is done is told, and what remains.
        console: where progress goes; standard error by default.

    Returns:
        `run`, `rows`, `tuned`, `failed`, `remaining`, `resume`, `findings`, `notes`, `commits`,
        `files`.

    Raises:
        UserError: if the folder holds something else or another grid, or the teacher fails.
        Interrupted: after Ctrl-C or SIGTERM in training; the same call continues.
    """
    if jobs < 1:
        raise UserError(f"--jobs {jobs}", "expected 1 or more", "give the worker processes")
    if budget_minutes is not None and budget_minutes < 0:
        raise UserError(f"--budget-minutes {budget_minutes:g}", "expected 0 or more", "raise it")
    out, places = Path(out), list(devices or [None])  # type: ignore[list-item]
    budget = Budget(None if budget_minutes is None else 60 * budget_minutes)
    console = Console(stderr=True) if console is None else console
    require_buildable(grid)
    require_students(grid)
    require_room(out)
    workers = (
        Alone(places[0]) if jobs == 1 else Crew([places[i % len(places)] for i in range(jobs)])
    )
    alone = alone_in(out, f"--out {out}")
    with storing(out, lambda: _begun_line(out)), alone, Board(console, jobs) as board:
        sweep(out)
        grid = claimed(out, grid)
        for note in notes(grid):
            console.print(f"note: {note}", markup=False, highlight=False, soft_wrap=True)
        session = _Session(grid, out, board, budget, workers)
        try:
            return session.run()
        except Interrupted as stop:
            session.tell()
            raise Interrupted(resume_line(out), stop.code) from stop
        finally:
            workers.close()


def resume_line(out: Path) -> str:
    """The command that goes on with a grid."""
    return shlex.join(["spikelet", "compare", "--resume", str(out)])


def _begun_line(out: Path) -> str | None:
    return resume_line(out) if (out / GRID_FILE).exists() else None


@dataclass
class _Session:
    """One call of `compare`."""

    grid: Grid
    out: Path
    board: Board
    budget: Budget
    workers: Alone | Crew
    errors: dict[str, dict[str, Any]] = field(default_factory=dict)
    tuning: dict[str, Any] | None = None
    cells: list[Job] = field(default_factory=list)
    damaged: list[Job] = field(default_factory=list)

    def run(self) -> dict[str, Any]:
        """Teacher, tuning, cells, then the page."""
        self.choose()
        taught, tries = self.teacher_jobs(), self.tuning_jobs()
        every = [*taught, *tries, *self.cells]
        left = [job for job in every if not job.finished]
        require_alike(self.cells)
        self.board.plan(len(every) - len(left), left)
        self.do(taught)
        if all(job.finished for job in taught):
            self.do(tries)
            self.choose()
            self.do([job for job in self.cells if self.ready(job)])
        result = self.result()
        result["files"] = write(self.out, self.grid, result, self.cells)
        return result

    @property
    def teacher(self) -> Spec:
        """What teaches every cell."""
        if self.grid.teacher is not None:
            return self.grid.teacher
        return {"run": str((self.out / "teacher").absolute())}

    @property
    def spiking_teacher(self) -> bool:
        """Whether the teacher is the run of a student."""
        spec = self.grid.teacher or {}
        return "run" in spec and read_recipe(spec["run"]).task == "distill"

    @cached_property
    def unconverted(self) -> str | None:
        """Why the run of an ANN that teaches has no conversion; None where it has one."""
        spec = self.grid.teacher or {}
        if "run" not in spec or self.spiking_teacher:
            return None
        return reason(load(spec["run"]).net)

    def measured_teachers(self) -> dict[Path, str]:
        """Runs that may have measured the teacher, and what it was there; a spiking one needs T."""
        found = {self.out / "teacher": "ann"} if self.grid.teacher is None else {}
        spiking = self.spiking_teacher
        for job in self.cells:
            found[job.folder] = f"snn, T = {job.recipe.steps}" if spiking else "ann"
        return found

    def teacher_jobs(self) -> list[Job]:
        """The training of the teacher, unless one is given."""
        if self.grid.teacher is not None:
            return []
        recipe = self.grid.teacher_recipe()
        return [Job("teach", "teacher", self.out / "teacher", recipe)]

    def tuning_jobs(self) -> list[Job]:
        """The candidates of methods that are not decided on yet."""
        decided = {} if self.tuning is None else self.tuning["chosen"]
        every = tuning_jobs(self.grid, self.out, self.teacher)
        return [job for job in every if job.recipe.method not in decided]

    def choose(self) -> None:
        """Sets every cell's recipe by what tuning has found.

        A spiking teacher has no `convert`, nor has one that cannot become spiking; where students
        begin as an ANN, `convert` is that of theirs.
        """
        self.tuning = chosen(self.grid, self.out, self.sentences)
        choices = {} if self.tuning is None else self.tuning["chosen"]
        without = self.spiking_teacher or self.unconverted is not None
        every = [
            self._job(cell, choices.get(cell.method))
            for cell in self.grid.cells()
            if not (without and cell.method == "convert" and self.grid.recipe(cell).ann is None)
        ]
        self.damaged = [job for job in every if self.is_damaged(job)]
        self.cells = [job for job in every if job not in self.damaged]

    def is_damaged(self, job: Job) -> bool:
        """Whether a finished cell cannot be read; the others go on without it."""
        try:
            require_sound(job)
        except UserError as error:
            self.errors[job.name] = parts_of(error)
            return True
        return False

    def _job(self, cell: Cell, choice: dict[str, Any] | None) -> Job:
        recipe = tuned(self.grid.recipe(cell, self.teacher), choice)
        return Job("cell", cell.name, self.out / "cells" / cell.name, recipe)

    def ready(self, job: Job) -> bool:
        """Whether its method is tuned, if it is to be; one that never came through has failed."""
        method = job.recipe.method
        tried = (self.tuning or {"tried": {}})["tried"].get(method)
        if not tried or any(each["accuracy"] is not None for each in tried):
            return not tried or method in (self.tuning or {})["chosen"]
        if all(each["error"] is not None for each in tried):
            what = f"no tuning run of {method} came through ({tried[0]['error']})"
            parts = {"argument": "--tune", "message": what, "fix": "see OUT/tuned.json"}
            self.errors.setdefault(job.name, {**parts, "defect": False})
        return False

    @property
    def sentences(self) -> dict[str, str]:
        """What failed, in words, by name of the job."""
        return {name: f"{e['argument']}: {e['message']}" for name, e in self.errors.items()}

    def do(self, jobs: Sequence[Job]) -> None:
        """Computes what is not finished of some jobs."""
        left = [job for job in jobs if not job.finished]
        for outcome in self.workers.run(left, self.budget, self.board.begin):
            self.board.end(outcome)
            if outcome.error is not None:
                self.errors[outcome.job.name] = outcome.error
                _require_teacher(outcome.job, outcome.error)
            self.tell()

    def tell(self) -> None:
        """The table of what is known by now, so that a grid that is killed has left it."""
        write_tables(self.out, self.result())

    def result(self) -> dict[str, Any]:
        """What is known by now."""
        jobs = self.cells
        seeds = seed_rows(jobs)
        means = mean_rows(seeds)
        rows = [*teacher_rows(self.measured_teachers()), *means]
        rows += [row for row in seeds if not any(row is each for each in means)]
        failed = [
            _failure(job, self.errors[job.name])
            for job in [*jobs, *self.damaged]
            if job.name in self.errors
        ]
        remaining = [job.name for job in jobs if not job.finished and job.name not in self.errors]
        return {
            "run": str(self.out),
            "rows": rows,
            "tuned": self.tuning,
            "failed": failed,
            "remaining": remaining,
            "resume": resume_line(self.out) if failed or remaining else None,
            "findings": findings(rows),
            "notes": notes(self.grid),
            "commits": commits(jobs),
        }


def _failure(job: Job, error: dict[str, Any]) -> dict[str, Any]:
    recipe = job.recipe
    names = {"method": recipe.method, "steps": recipe.steps, "seed": recipe.seed}
    return {**names, "run": str(job.folder), **error}


def _require_teacher(job: Job, error: dict[str, Any]) -> None:
    """Without its teacher there is no grid."""
    if job.kind != "teach":
        return
    if error["defect"]:
        raise RuntimeError(f"{error['argument']}: {error['message']}; {error['fix']}")
    raise UserError(f"teacher: {error['argument']}", error["message"], error["fix"])
