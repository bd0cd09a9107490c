"""What a comparison tells while it runs: a line for each cell, and when it will be ready."""

from __future__ import annotations

import statistics
import time
from pathlib import Path
from types import TracebackType
from typing import Self

from rich.console import Console
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from spikelet.compare.work import Job, Outcome, read_rows


class Board:
    """Progress over the whole grid, on a console (standard error)."""

    def __init__(self, console: Console, workers: int) -> None:
        self.console, self.workers = console, workers
        self.left: list[Job] = []
        self.total = 0
        self.running: dict[str, tuple[Job, float]] = {}
        self.took: dict[tuple[str, int], list[float]] = {}
        self.live = Live(
            get_renderable=self._shown,
            console=console,
            transient=True,
            refresh_per_second=2,
        )

    def __enter__(self) -> Self:
        if self.console.is_terminal and not self.console.quiet:
            self.live.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.live.stop()

    def plan(self, done: int, left: list[Job]) -> None:
        """What is to come: runs that are finished already, and the others."""
        self.total, self.left = done + len(left), list(left)

    def begin(self, job: Job) -> None:
        """A job has started."""
        self.running[job.name] = (job, time.monotonic())

    def end(self, outcome: Outcome) -> None:
        """A job has ended: one line."""
        job = outcome.job
        self.running.pop(job.name, None)
        if not outcome.stopped:
            self.left = [each for each in self.left if each.name != job.name]
        if not outcome.stopped and outcome.error is None:
            self.took.setdefault(_sort(job), []).append(outcome.seconds)
        done = self.total - len(self.left)
        words = f"{_what(job)}: {_result(outcome)} ({done} of {self.total}{self._ready()})"
        self.console.print(words, markup=False, highlight=False, soft_wrap=True)

    def seconds_left(self) -> float | None:
        """Estimate of the time until the grid is ready, from runs of the same kind where known."""
        known = [s for each in self.took.values() for s in each]
        if not known:
            return None
        usual, now, total = statistics.fmean(known), time.monotonic(), 0.0
        for job in self.left:
            mine = self.took.get(_sort(job))
            expected = statistics.fmean(mine) if mine else usual
            if job.name in self.running:
                expected = max(expected - (now - self.running[job.name][1]), 0.0)
            total += expected
        return total / min(self.workers, max(len(self.left), 1))

    def _ready(self) -> str:
        seconds = self.seconds_left()
        return "" if seconds is None or not self.left else f", about {duration(seconds)} left"

    def _shown(self) -> Table:
        """The moving part: bar, runs at work with their epochs, time left."""
        done = self.total - len(self.left)
        table = Table.grid(padding=(0, 1))
        seconds = self.seconds_left()
        eta = "" if seconds is None else f"ETA {duration(seconds)}"
        bar = ProgressBar(total=max(self.total, 1), completed=done, width=30)
        names = ", ".join(_at(job) for job, _ in list(self.running.values())[:4])
        table.add_row(
            Text(f"{done}/{self.total}"), bar, Text(eta), Text(names, overflow="ellipsis")
        )
        return table


def duration(seconds: float) -> str:
    """45 s, 12 min, 3.5 h."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


def _sort(job: Job) -> tuple[str, int]:
    """Jobs that take about as long as each other."""
    return (f"{job.kind} {job.recipe.method}", job.recipe.steps)


def _what(job: Job) -> str:
    if job.kind == "teach":
        return "teacher"
    if job.kind == "tune":
        return f"tuning {job.name}"
    return f"{job.recipe.method}, T = {job.recipe.steps}, seed {job.recipe.seed}"


def _at(job: Job) -> str:
    """A run at work and the epochs it has behind it."""
    path: Path = job.folder / "metrics.jsonl"
    try:
        epochs = path.read_text(encoding="utf-8").count("\n")
    except OSError:
        epochs = 0
    training = job.recipe.training  # how many epochs `least_steps` take is not known here
    return f"{job.name} {epochs}/{max(epochs, training.epochs)}"


def _result(outcome: Outcome) -> str:
    took = duration(outcome.seconds)
    if outcome.error is not None:
        return f"failed: {outcome.error['message']}"
    if outcome.stopped:
        return f"stopped after {took}, with a checkpoint"
    rows = read_rows(outcome.job.folder)
    assert rows
    row = rows[-1]
    part = "" if row["split"] == "test" else f" of the {row['split']} part"
    return f"{100 * row['accuracy']:.2f} %{part} in {took}"
