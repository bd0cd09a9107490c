"""Jobs one after another in this process, within a budget of time."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

from spikelet.compare.work import Job, Outcome, Station, perform
from spikelet.train import Interrupted

Begin = Callable[[Job], None]
LONGEST_GRACE = 60.0
SHARE_OF_GRACE = 0.1


@dataclass(frozen=True)
class Budget:
    """Seconds from now within which jobs may begin; None has no end.

    A job that runs then may go on for a tenth of them, at most a minute; after that it is stopped
    with a checkpoint.
    """

    seconds: float | None = None
    began: float = field(default_factory=time.monotonic)

    @property
    def left(self) -> float:
        """Seconds until no job may begin any more."""
        return float("inf") if self.seconds is None else self.began + self.seconds - self.now

    @property
    def left_to_run(self) -> float:
        """Seconds until a running job is stopped."""
        if self.seconds is None:
            return float("inf")
        return self.left + min(LONGEST_GRACE, SHARE_OF_GRACE * self.seconds)

    @property
    def now(self) -> float:
        return time.monotonic()


class Alone:
    """This process as the only worker."""

    def __init__(self, device: str | None) -> None:
        self.station = Station(device)

    def run(self, jobs: Sequence[Job], budget: Budget, begin: Begin) -> Iterator[Outcome]:
        """The outcome of each job in order, until the budget is spent.

        Raises:
            Interrupted, KeyboardInterrupt: when stopped from outside, with a checkpoint.
        """
        for job in jobs:
            if budget.left <= 0:
                return
            begin(job)
            began = time.monotonic()
            alarm = _Alarm()
            try:
                with alarm.after(budget.left_to_run):
                    outcome = perform(self.station, job)
            except (Interrupted, KeyboardInterrupt):
                if not alarm.rang:
                    raise
                outcome = Outcome(job, time.monotonic() - began, stopped=not job.finished)
            yield outcome

    def close(self) -> None:
        """Nothing is left behind."""


class _Alarm:
    """Sends this process Ctrl-C's signal after a while: training hears it and stores its state."""

    def __init__(self) -> None:
        self.rang, self._set, self._lock = False, True, threading.Lock()

    @contextmanager
    def after(self, seconds: float) -> Iterator[None]:
        """Rings within the block or not at all; only the main thread can be woken."""
        main = threading.current_thread() is threading.main_thread()
        if seconds == float("inf") or not main:
            yield
            return
        seconds = min(max(seconds, 0.0), threading.TIMEOUT_MAX)
        timer = threading.Timer(seconds, self._ring)
        timer.daemon = True
        timer.start()
        try:
            yield
        finally:
            timer.cancel()
            with self._lock:
                self._set = False
            time.sleep(0)  # a signal sent just before is heard here, not after the block

    def _ring(self) -> None:
        with self._lock:
            if self._set:
                self.rang = True
                os.kill(os.getpid(), signal.SIGINT)
