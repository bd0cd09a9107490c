"""Processes that load a training's batches, and what is said when one of them dies."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from spikelet.errors import UserError
from spikelet.train.interrupt import begun_line

WORKER = "DataLoader worker"  # how torch's error about one begins


@contextmanager
def loading(run: Path | None) -> Iterator[None]:
    """Makes a sentence of torch's error about a dead process, which it raises at any moment."""
    try:
        yield
    except RuntimeError as error:
        if WORKER in str(error):
            raise lost_worker(error, run) from error
        raise


def lost_worker(error: Exception, run: Path | None) -> UserError:
    """The error for a process that loaded data and is gone."""
    line = begun_line(run)
    again = "" if line is None else f", then continue with `{line}`"
    reason = " ".join(str(error).split()).rstrip(".")
    what = f"a process that loads them has died ({reason})"
    return UserError("batches", what, f"look at the machine's memory{again}")


def is_lost(error: Exception) -> bool:
    """Whether an error of a loader means that one of its processes is gone."""
    return WORKER in str(error) or isinstance(error, ConnectionError | EOFError)
