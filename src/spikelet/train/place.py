"""The folder that a run happens in: one process at a time, and only what it was begun with."""

from __future__ import annotations

import dataclasses
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from torch import nn

from spikelet.checkpoint import holds_state
from spikelet.data import Dataset
from spikelet.errors import UserError
from spikelet.folder import alone_in, require_free, storing, sweep
from spikelet.heap import keep_freed_memory
from spikelet.processes import first, rank
from spikelet.recipe import Recipe
from spikelet.train.interrupt import begun_line
from spikelet.train.load import ANN_FOLDER, MODEL_FILE, TEACHER_FILE, digests
from spikelet.train.run import (
    ENV_FILE,
    digest,
    env,
    identity,
    read_json,
    stored_identity,
    write_json,
    write_recipe,
)
from spikelet.train.stored import DESCRIPTIONS, RESULTS_FILE, stored_object, stored_rows

AGAIN = "delete it and resume the run to measure again"
CHECKPOINT = "checkpoint"
LATER = ("norm", "estimate")  # runs from before them did something else than their defaults


@dataclass(frozen=True)
class Place:
    """Where a run happens: its folder, device and console."""

    out: Path
    device: torch.device
    console: Console | None
    resume: bool

    @property
    def resumable(self) -> bool:
        """Whether training goes on from a checkpoint."""
        return bool(first(self.resume and holds_state(self.out / CHECKPOINT)))

    @property
    def writes(self) -> bool:
        """Whether this process writes the run's files."""
        return rank() == 0

    def tell(self, words: str) -> None:
        """A line for the user."""
        if self.console is not None:
            self.console.print(words, markup=False, highlight=False, soft_wrap=True)


def place_of(out: Path | str, resume: bool, device: str | None, console: Console | None) -> Place:
    """The place of a run; by default on a GPU where there is one."""
    name = device or ("cuda" if torch.cuda.is_available() else "cpu")
    if name == "cpu":
        keep_freed_memory()
    if rank() == 0:
        require_free(Path(out), f"run = {out}")
    return Place(Path(out), torch.device(name), console, resume)


def place_within(place: Place) -> Place:
    """The place of the ANN that a student begins as: a run in its folder, begun or gone on with."""
    return dataclasses.replace(place, out=place.out / ANN_FOLDER, resume=True)


def copy_run(run: Path, to: Path) -> None:
    """A finished run again in another folder, whole or not at all."""
    part = to.with_name(f"{to.name}.part")
    for folder in (part, to):
        shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(run, part, ignore=shutil.ignore_patterns("measures", "report.html"))
    write_json(part / RESULTS_FILE, {**read_json(part / RESULTS_FILE), "run": str(to)})
    part.rename(to)


def finished(place: Place) -> dict[str, Any] | None:
    """The results of a finished run that is resumed; None where there is something to do.

    Raises:
        UserError: if the folder holds another run, or a finished one whose weights are lost.
    """
    results = place.out / RESULTS_FILE
    if results.exists() and place.resume:
        if not intact(place.out):
            return None
        rows = stored_rows(place.out, AGAIN)
        return {**read_json(results), "rows": rows}
    if rank():  # the first process has looked, and may have begun to write
        return None
    if results.exists():
        raise UserError(f"out = {place.out}", "it holds a finished run", "name another folder")
    if (place.out / "recipe.json").exists() and not place.resume:
        raise UserError(
            f"out = {place.out}", "it holds an unfinished run", "resume it or name another folder"
        )
    return None


def intact(run: Path) -> bool:
    """Whether a finished run has what it has written; its checkpoint gives lost files back.

    Raises:
        UserError: if its results are damaged, or something else is and there is no checkpoint.
    """
    stored_rows(run, AGAIN)
    lost = next(
        (name for name, sha256 in _sums(run).items() if not _kept(run / name, sha256)), None
    )
    if lost is not None and not holds_state(run / CHECKPOINT):
        what = f"it is finished, but {lost} is lost or damaged, and there is no checkpoint"
        fix = f"take {lost} from a copy, or make the run again in a new folder"
        raise UserError(f"run = {run}", what, fix)
    return lost is None and _begun_intact(run)


def _begun_intact(run: Path) -> bool:
    """Whether the ANN that a finished student began as is there, as far as it can be made again."""
    recipe = stored_object(run / "recipe.json") if (run / "recipe.json").exists() else {}
    if recipe.get("ann") is None or not holds_state(run / CHECKPOINT):
        return True
    return (run / ANN_FOLDER / RESULTS_FILE).exists() and intact(run / ANN_FOLDER)


def _sums(run: Path) -> dict[str, str | None]:
    """The files of a finished run that can be made again, and their sha256 where it is known."""
    stored = stored_object(run / RESULTS_FILE).get("sums")
    known = stored if isinstance(stored, dict) else {}
    found: dict[str, str | None] = {name: known[name] for name in DESCRIPTIONS if name in known}
    try:
        weights = digests(run / "card.json")
    except UserError:  # the card has a sum, too, and is made again with the weights
        weights = {}
    found[MODEL_FILE] = weights.get("student")
    if (run / "teacher.json").exists():
        found[TEACHER_FILE] = weights.get("teacher")
    return found


def _kept(file: Path, sha256: str | None) -> bool:
    return file.exists() and sha256 in (None, digest(file))


@contextmanager
def opened(
    recipe: Recipe, place: Place, dataset: Dataset, teacher: nn.Module | None = None
) -> Iterator[None]:
    """The folder with its recipe, for this process alone; a full disk is one sentence.

    Of several processes that train together the first one alone writes.

    Raises:
        UserError: if another process is at work there, the run is finished, or it was begun with
            another recipe, other images or another teacher.
    """
    run = place.out
    if rank():
        yield
        return
    _make(run)
    with storing(run, lambda: begun_line(run)), alone_in(run, f"run = {run}"):
        if finished(place) is not None:
            what = "another process has finished it in the meantime"
            raise UserError(f"run = {run}", what, "nothing is left to do")
        sweep(run)
        made = identity(recipe, dataset.hashes, teacher)
        if place.resume:
            _require_settings(run)
            require_same(run, stored_identity(run), made)
        write_recipe(run, recipe)
        content = env(place.device, dataset.hashes)
        write_json(run / ENV_FILE, {**content, "identity": made})
        yield


def require_same(run: Path, then: Mapping[str, str], now: Mapping[str, str]) -> None:
    """Raise unless a run goes on with what it was begun with, as far as both are known."""
    for part in now:
        if then.get(part, now[part]) == now[part]:
            continue
        several = part.endswith("images")
        what = f"the {part} {'are not those' if several else 'is not that'} which it was begun with"
        fix = "put it back as it was, or begin a new run in another folder"
        raise UserError(f"run = {run}", what, fix)


def _require_settings(run: Path) -> None:
    """Raise for the recipe of a version that knew less, where what it did then is no default."""
    path = run / "recipe.json"
    stored = read_json(path) if path.exists() else None
    for name in LATER:
        if isinstance(stored, dict) and name not in stored:
            what = f"an older spikelet began this run: it has no `{name}`"
            raise UserError(str(path), what, "begin a new run in another folder")


def _make(run: Path) -> None:
    try:
        run.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        what = f"it cannot be made ({error.strerror})"
        raise UserError(f"out = {run}", what, "name another folder") from error
