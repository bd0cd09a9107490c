"""`spikelet measure RUN [NAME ...]`: what a finished run can do, each measure stored with it."""

from __future__ import annotations

import dataclasses
from argparse import Namespace
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from spikelet.cli.runs import absolute, device_of
from spikelet.errors import UserError
from spikelet.examine import MEASURES, Tell, chosen

if TYPE_CHECKING:
    from rich.console import Console

    from spikelet.examine.subject import Subject
    from spikelet.train import Loaded


def run(options: Namespace, console: Console) -> dict[str, Any]:
    """Measure; the object for --json."""
    chosen(options.what)
    steps = sorted(set(options.steps or ()))
    if steps and steps[0] < 1:
        raise UserError(
            f"--steps {steps[0]}", "expected 1 or more", "give time steps such as 1 2 4"
        )
    from spikelet.examine.table import images_of
    from spikelet.examine.work import work

    images_of("steps", options.images)
    subject = _subject(options, steps, console)
    names = chosen(options.what, subject.student.spiking, len(subject.networks) > 1)
    line = f"measuring {', '.join(names)} on {options.split} images of {subject.dataset.name}"
    console.print(line, markup=False, highlight=False, soft_wrap=True)
    with _board(console) as telling:
        found, failed = work(subject, names, options.images, telling)
    left_out = _left_out(failed, asked=bool(options.what), console=console)
    if not found and failed:
        raise next(iter(failed.values()))
    rows = found["steps"]["rows"] if "steps" in found else []
    more = {"failed": left_out} if left_out else {}
    return {"run": str(options.run), "rows": rows, "measures": found, **more}


def _subject(options: Namespace, steps: list[int], console: Console) -> Subject:
    """The run beside its teacher and the runs of --versus, with the images to measure on."""
    device = device_of(options)
    from spikelet.examine.subject import measured_part, subject
    from spikelet.heap import keep_freed_memory
    from spikelet.train import load
    from spikelet.train.known import other_test_part

    loaded = _moved(load(Path(options.run)), options.data_root)
    whole = loaded.dataset()
    changed = other_test_part(loaded.path, whole)
    if changed is not None:
        console.print(f"note: {changed}", markup=False, highlight=False, soft_wrap=True)
    dataset = measured_part(whole, options.split)
    place = device or _usual()
    if place == "cpu":
        keep_freed_memory()
    return subject(loaded, dataset, options.versus or (), place, steps, options.split)


def _moved(loaded: Loaded, root: str | None) -> Loaded:
    """The run with its data taken from `root` where they have moved."""
    if root is None or "root" not in loaded.recipe.data:
        return loaded
    data = {**loaded.recipe.data, "root": absolute(root)}
    return dataclasses.replace(loaded, recipe=dataclasses.replace(loaded.recipe, data=data))


def _usual() -> str:
    import torch

    return "cuda" if torch.cuda.is_available() else "cpu"


def _left_out(failed: Mapping[str, Exception], asked: bool, console: Console) -> dict[str, str]:
    """A sentence for each measure that does not suit the run; what else went wrong is raised.

    Raises:
        UserError: for a measure that was asked for by name.
        Exception: a defect, after the other measures were written.
    """
    for name, error in failed.items():
        line = f"{name}: left out ({error})"
        console.print(line, markup=False, highlight=False, soft_wrap=True)
    for error in failed.values():
        if asked or not isinstance(error, UserError):
            raise error
    return {name: str(error) for name, error in failed.items()}


@contextmanager
def _board(console: Console) -> Iterator[Any]:
    """A function that gives each measure its line of progress, on a terminal a bar."""
    from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn("{task.description}"), BarColumn(), TextColumn("ETA"))
    with Progress(
        *columns,
        TimeRemainingColumn(),
        console=console,
        transient=True,
        refresh_per_second=4,
        disable=not console.is_terminal or console.quiet,
    ) as bar:

        @contextmanager
        def telling(name: str) -> Iterator[Tell]:
            task = bar.add_task(name, total=None)

            def tell(done: int, total: int, words: str) -> None:
                bar.update(task, completed=done, total=total, description=f"{name}: {words}")

            try:
                yield tell
            finally:
                bar.remove_task(task)
            console.print(f"{name}: done", markup=False, highlight=False)

        yield telling


def show(console: Console, result: Mapping[str, Any]) -> None:
    """The table of accuracy, what each measure says in words, and where the files are."""
    import importlib

    from spikelet.cli.output import show as show_rows
    from spikelet.examine.work import file_of

    if result.get("rows"):
        settings = result["measures"]["steps"]["settings"]
        count = settings["images"], settings["of"]
        show_rows(console, {"rows": result["rows"], "counts": count})
    for name, found in result.get("measures", {}).items():
        path = MEASURES.get(name, name).partition(":")[0]
        say = getattr(importlib.import_module(path), "say", None)
        for line in say(found) if callable(say) else found.get("sentences", ()):
            console.print(line, markup=False, highlight=False, soft_wrap=True)
        place = file_of(Path(result["run"]), name)
        console.print(place, markup=False, highlight=False, soft_wrap=True)
