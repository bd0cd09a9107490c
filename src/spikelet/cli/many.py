"""`--processes N` and torchrun: one training, several processes, one voice. Nothing loads torch."""

from __future__ import annotations

import json
import os
import sys
import time
from argparse import Namespace
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from spikelet.cli.leaves import Leaf
from spikelet.errors import UserError

VERBS = ("teach", "distill")
GRACE = 2.0  # seconds that the first process has to speak before another one ends it


def world() -> int:
    """How many processes torchrun, or we, have started; 1 if none."""
    return int(os.environ.get("WORLD_SIZE", "1")) if "RANK" in os.environ else 1


def number() -> int:
    """Which of them this one is, counted from 0."""
    return int(os.environ["RANK"]) if world() > 1 else 0


def to_launch(verb: str, options: Namespace, leaves: Sequence[Leaf]) -> int:
    """How many processes are still to be started for a verb; 1 if this one is to do the work.

    Raises:
        UserError: for a number that is not that of torchrun, or a verb that is for one process.
    """
    if verb not in VERBS:
        if world() > 1:
            fix = f"only {' and '.join(VERBS)} are for several; start it without torchrun"
            raise UserError(verb, f"torchrun has started {world()} processes", fix)
        return 1
    for leaf in leaves:
        if leaf.path == "training.processes" and leaf.words and leaf.words[0].isdigit():
            options.processes = int(leaf.words[0])
    begun = _begun_with(options.resume)
    if begun is not None and options.processes not in (None, begun):
        raise UserError(
            f"--processes {options.processes}",
            f"the run in {options.resume} was begun with {begun}",
            "leave the flag out",
        )
    wanted = options.processes if begun is None else begun
    if world() == 1:
        return 1 if wanted is None else wanted
    if wanted not in (None, world()):
        raise UserError(
            f"--processes {wanted}",
            f"torchrun has started {world()}",
            f"start {wanted} by torchrun, or leave it out",
        )
    if begun is None:
        options.processes = world()
    return 1


def _begun_with(run: str | None) -> int | None:
    """The processes of a run that is to be resumed and has something left to do."""
    if run is None or (Path(run) / "results.json").exists():
        return None
    try:
        training = json.loads((Path(run) / "recipe.json").read_text(encoding="utf-8"))["training"]
        count = training.get("processes", 1)
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return None  # what is wrong with it is told where it is read
    return count if isinstance(count, int) else None


def launched(words: list[str], count: int) -> int:
    """Starts the processes of a command, each with the same words; the exit status."""
    from spikelet.train.launch import launch

    if count < 1:
        raise UserError(f"--processes {count}", "expected 1 or more", "try 2")
    return launch(work, (words,), count, lambda text: print(f"spikelet: {text}", file=sys.stderr))


def work(words: list[str]) -> None:
    """What each started process does."""
    from spikelet.cli.command import main

    status = main(words)
    if status:
        raise SystemExit(status)


@contextmanager
def together(device: str | None) -> Iterator[None]:
    """Joins the others, if torchrun or we have started any."""
    if world() == 1:
        yield
        return
    from spikelet.train.launch import joined

    with joined(device):
        yield


def let_the_first_speak() -> None:
    """Waits, in any other process: what is wrong for all of them is told once, and ends all."""
    if number():
        time.sleep(GRACE)
