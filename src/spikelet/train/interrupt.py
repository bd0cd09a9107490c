"""Stopping a run from outside without losing work."""

from __future__ import annotations

import json
import shlex
import signal
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

EXIT_CODES = {signal.SIGINT: 130, signal.SIGTERM: 143}


class Interrupted(Exception):
    """The run was stopped; the message is the line that continues it, `code` the exit status."""

    def __init__(self, message: str, code: int) -> None:
        super().__init__(message)
        self.code = code


@dataclass
class Stop:
    """Whether a signal has asked to stop after the present step."""

    signal: signal.Signals | None = None

    def __call__(self, number: int, frame: Any) -> None:
        """The handler: the first signal asks, a second one stops at once."""
        if self.signal is not None:
            raise KeyboardInterrupt
        self.signal = signal.Signals(number)

    @property
    def asked(self) -> tuple[bool, ...]:
        """For each signal in the order of EXIT_CODES, whether it was heard."""
        return tuple(self.signal == each for each in EXIT_CODES)

    def take(self, asked: Sequence[float]) -> None:
        """Hear a signal that another process has heard."""
        for number, each in zip(EXIT_CODES, asked, strict=True):
            if each and self.signal is None:
                self.signal = number

    @property
    def code(self) -> int:
        """The exit status that stands for the signal."""
        return EXIT_CODES[self.signal or signal.SIGINT]


@contextmanager
def listening() -> Iterator[Stop]:
    """Hear Ctrl-C and SIGTERM, in the main thread only; the handlers before are put back."""
    stop = Stop()
    if threading.current_thread() is not threading.main_thread():
        yield stop
        return
    before = {number: signal.signal(number, stop) for number in EXIT_CODES}
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler if handler is not None else signal.SIG_DFL)


def resume_line(run: Path | None) -> str:
    """The command that continues a run, or that there is none."""
    if run is None:
        return "stopped; nothing was stored because the run has no folder"
    if run.name == "ann" and (run.parent / "recipe.json").exists():
        run = run.parent  # the ANN that a student begins as
    try:
        task = json.loads((run / "recipe.json").read_text(encoding="utf-8"))["task"]
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        task = "distill"
    return shlex.join(["spikelet", task, "--resume", str(run)])


def begun_line(run: Path | None) -> str | None:
    """The command that continues a run, if there is one to continue."""
    begun = run is not None and (run / "recipe.json").exists()
    return resume_line(run) if begun else None
