"""What a comparison's page shows of single runs, and how the whole is made again."""

from __future__ import annotations

import json
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path

from spikelet.compare.grid import Grid
from spikelet.compare.line import line_of
from spikelet.compare.work import Job, read_rows
from spikelet.errors import UserError
from spikelet.examine import MEASURES
from spikelet.report.parts import Block, Code, Fold, Note, Section
from spikelet.story import close_up
from spikelet.story.made import wrapped

MOST = 6  # runs on one page: as many as there are colours
BASE = "none"
OVER_SEEDS = ("noise", "saliency")  # claims about methods: one network of each shows nothing


def closer(out: Path, grid: Grid, jobs: Sequence[Job]) -> list[Section]:
    """The chapters of some runs of a grid, and the lines that measure and repeat it."""
    runs = chosen(jobs)
    sections: list[Section] = []
    if runs:
        first = next(iter(runs.values())).recipe
        look = (
            f"One run of each method at T = {first.steps}: that of its first finished seed, out "
            "of the cells above. One run shows how such a network works, not which method is "
            f"better. {_left_out(jobs, runs)}"
        )
        try:
            sections = close_up([job.folder for job in runs.values()], look=look.strip())
        except Exception as error:  # a table that took hours is worth more than its pictures
            what = error if isinstance(error, UserError) else f"{type(error).__name__}: {error}"
            sections = [Section("A closer look", f"No single run is shown: {what}", [])]
    return [*sections, _again(out, grid, jobs, runs)]


def chosen(jobs: Sequence[Job]) -> dict[str, Job]:
    """A finished cell of each method at the largest T, by method: `none`, then the most accurate.

    Cells whose folders are gone or that are not finished are passed over.
    """
    done = [job for job in jobs if job.finished]
    last = max((job.recipe.steps for job in done), default=0)
    first: dict[str, Job] = {}
    for job in done:
        if job.recipe.steps == last:
            first.setdefault(job.recipe.method, job)
    best = sorted(first, key=lambda name: (name != BASE, -_accuracy(first[name])))[:MOST]
    return {name: job for name, job in first.items() if name in best}


def _accuracy(job: Job) -> float:
    """What a cell's own network came to at its T."""
    wanted = (job.recipe.method, job.recipe.steps)
    rows = [r for r in read_rows(job.folder) or [] if (r["method"], r["steps"]) == wanted]
    return float(rows[0]["accuracy"]) if rows else 0.0


def _left_out(jobs: Sequence[Job], runs: Mapping[str, Job]) -> str:
    """A sentence about methods for which there is no room."""
    more = {job.recipe.method for job in jobs if job.finished} - set(runs)
    return f"Shown are `{BASE}` and the most accurate methods." if more else ""


def _again(out: Path, grid: Grid, jobs: Sequence[Job], runs: Mapping[str, Job]) -> Section:
    """How to compute the grid again, and how to measure more of its runs."""
    blocks: list[Block] = [
        Note("The command that computes it again, in another folder, with all its settings:"),
        Code(wrapped(line_of(grid, Path(f"{out}-again")))),
    ]
    best = next((name for name in reversed(list(runs)) if name != BASE), None)
    if best is not None and BASE in runs:
        lines = [*_measures(jobs, runs[best], runs[BASE]), ["spikelet", "compare", "--resume"]]
        lines[-1].append(str(out))
        blocks += [
            Note("Energy, noise, saliency and more of a run, and then this page with them:"),
            Code("\n".join(wrapped(shlex.join(line)) for line in lines)),
        ]
    text = json.dumps(grid.to_json(), indent=2)
    blocks.append(Fold("the whole comparison, as its folder describes it", [Code(text)]))
    look = "Everything here is read from the comparison's folder; nothing was typed in."
    return Section("How to make it again", look, blocks)


def _measures(jobs: Sequence[Job], best: Job, base: Job) -> list[list[str]]:
    """The lines that measure a run beside `none`, noise and saliency over all seeds of both."""
    first = ["spikelet", "measure", str(best.folder)]
    pairs = [_beside(jobs, job, base.recipe.method) for job in jobs if _repeats(job, best)]
    more = [str(each.folder) for pair in pairs if len(pair) == 2 for each in pair]
    if not more:
        return [[*first, "--versus", str(base.folder)]]
    rest = [name for name in MEASURES if name not in OVER_SEEDS]
    return [
        [*first, *rest, "--versus", str(base.folder)],
        [*first, *OVER_SEEDS, "--versus", str(base.folder), *more],
    ]


def _repeats(job: Job, best: Job) -> bool:
    """Whether a cell is another one with another seed, and finished."""
    mine, other = job.recipe, best.recipe
    same = (mine.method, mine.steps) == (other.method, other.steps)
    return job.finished and same and mine.seed != other.seed


def _beside(jobs: Sequence[Job], job: Job, base: str) -> list[Job]:
    """A cell, and that of the control with the same T and seed if it is finished."""
    wanted = (base, job.recipe.steps, job.recipe.seed)
    found = [
        other
        for other in jobs
        if other.finished and (other.recipe.method, other.recipe.steps, other.recipe.seed) == wanted
    ]
    return [job, *found[:1]]
