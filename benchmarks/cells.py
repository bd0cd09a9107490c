"""What scripts of many runs share: cells that are trained once, and the document of results."""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ProcessPoolExecutor
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

import torch

from spikelet.cli import distill
from spikelet.cli.arguments import parse
from spikelet.cli.leaves import split
from spikelet.measure.interval import paired_interval
from spikelet.report import hardware
from spikelet.train import env, job, read_json, write_json


def distilled(out: Path, words: Sequence[Any], controls: bool = True) -> list[dict[str, Any]]:
    """The rows of `spikelet distill WORDS`, which is run in OUT, or resumed, unless finished.

    It runs in this process, so that compiled code and data serve the next run, too. Without
    `controls` the untrained conversions are not measured.

    Raises:
        UserError: if the run fails.
    """
    results = out / "results.json"
    if results.exists():
        return list(read_json(results)["rows"])
    rest, leaves = split([str(word) for word in words])
    recipe = distill.recipe_of(parse("distill", rest), leaves)
    resume = (out / "recipe.json").exists()
    found = job.distill(recipe, out, resume=resume, controls=controls)
    return list(found["rows"])


def in_turn(work: Callable[[Any], Any], cells: Iterable[Any], jobs: int) -> list[Any]:
    """What `work` makes of each cell, in `jobs` processes of one thread."""
    if jobs == 1:
        torch.set_num_threads(1)
        return [work(cell) for cell in cells]
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(jobs, context, partial(torch.set_num_threads, 1)) as pool:
        return list(pool.map(work, cells))


def row_of(rows: Sequence[dict[str, Any]], method: str, steps: int) -> dict[str, Any]:
    """The row of a method at T."""
    return next(row for row in rows if (row["method"], row["steps"]) == (method, steps))


def teacher_settings(run: Path) -> dict[str, Any]:
    """Data, network and test accuracy of a teacher's run."""
    return {
        "data": read_json(run / "recipe.json")["data"],
        "model": read_json(run / "model.json"),
        "teacher": read_json(run / "results.json")["rows"][0]["accuracy"],
    }


def difference(above: Sequence[float], below: Sequence[float]) -> dict[str, float]:
    """Mean and 95 % t interval of above - below, paired."""
    mean, low, high = paired_interval(above, below)
    return {"mean": mean, "low": low, "high": high, "pairs": len(above)}


def write(file: str, what: str, settings: dict[str, Any], **parts: Any) -> None:
    """The results with date, versions, commit and machine; no paths but names of runs."""
    made = env()
    document = {
        "what": what,
        "date": datetime.now(UTC).date().isoformat(),
        "versions": made["versions"],
        "git": made["git"],
        "hardware": hardware(),
        "settings": settings,
        **parts,
    }
    write_json(Path(file), document)
