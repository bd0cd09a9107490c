"""Jobs side by side: worker processes that stay, each with its device, data and teacher."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import signal
import threading
import time
from collections import deque
from collections.abc import Iterator, Sequence
from multiprocessing.connection import Connection, wait

import torch

from spikelet.compare.turns import Begin, Budget
from spikelet.compare.work import Job, Outcome, Station, died, perform
from spikelet.train import Interrupted

PATIENCE = 60.0  # seconds that a stopped worker has to write its checkpoint
THREADS_VARIABLE = "OMP_NUM_THREADS"


class Crew:
    """Worker processes, one of each of `devices`, which may repeat.

    Each computes with one thread, or with as many as OMP_NUM_THREADS says.
    """

    def __init__(self, devices: Sequence[str | None]) -> None:
        self.devices = list(devices)
        self.members: list[_Member] = []

    def run(self, jobs: Sequence[Job], budget: Budget, begin: Begin) -> Iterator[Outcome]:
        """The outcome of each job as it comes, until the budget is spent and all have stopped."""
        waiting, told = deque(jobs), False
        wanted = min(len(self.devices), len(jobs)) if budget.left > 0 else 0
        self.members += [_Member(device) for device in self.devices[len(self.members) : wanted]]
        while True:
            for member in self.members:
                if member.job is None and waiting and budget.left > 0:
                    begin(waiting[0])
                    member.start(waiting.popleft())
            busy = {member.inbox: member for member in self.members if member.job is not None}
            if not busy:
                return
            for inbox in wait(list(busy), timeout=min(1.0, max(budget.left_to_run, 0.05))):
                yield busy[inbox].outcome()  # type: ignore[index]
            if budget.left_to_run <= 0 and not told:
                told = True
                self._stop(signal.SIGINT)

    def close(self) -> None:
        """Every worker stops, with a checkpoint where it was at work."""
        try:
            self._stop(signal.SIGINT)
            for member in self.members:
                member.dismiss()
            until = time.monotonic() + PATIENCE
            for member in self.members:
                member.process.join(max(until - time.monotonic(), 0))
        finally:
            for member in self.members:
                member.process.kill()
                member.process.join()

    def _stop(self, number: signal.Signals) -> None:
        for member in self.members:
            if member.job is not None and member.process.pid is not None:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(member.process.pid, number)


class _Member:
    """A worker process as its employer sees it; one that died is replaced by another."""

    def __init__(self, device: str | None) -> None:
        self.device = device
        self.job: Job | None = None
        self.began = 0.0
        self._hire()

    def _hire(self) -> None:
        context = multiprocessing.get_context("spawn")
        self.inbox, theirs = context.Pipe()
        self.process = context.Process(target=serve, args=(theirs, self.device), daemon=True)
        self.process.start()
        theirs.close()

    def start(self, job: Job) -> None:
        """Hand over a job."""
        self.job, self.began = job, time.monotonic()
        try:
            self.inbox.send(job)
        except OSError:  # it died while it was idle
            self.process.join()
            self._hire()
            self.inbox.send(job)

    def outcome(self) -> Outcome:
        """What became of the job in hand; call it when the inbox is ready."""
        assert self.job is not None
        job, self.job = self.job, None
        try:
            found: Outcome = self.inbox.recv()
        except (EOFError, OSError):
            self.process.join()
            status, seconds = self.process.exitcode, time.monotonic() - self.began
            self._hire()
            return Outcome(job, seconds) if job.finished else died(job, seconds, status)
        return found

    def dismiss(self) -> None:
        """No more jobs."""
        with contextlib.suppress(OSError):
            self.inbox.send(None)


def serve(outbox: Connection, device: str | None) -> None:
    """A worker's life: job after job, until there is none or its employer is gone."""
    if hasattr(os, "setpgrp"):
        os.setpgrp()  # Ctrl-C reaches the employer alone, who passes it on once
    os.dup2(2, 1)  # standard output is the employer's alone
    signal.signal(signal.SIGINT, signal.default_int_handler)
    threading.Thread(target=_leave_with_employer, daemon=True).start()
    torch.set_num_threads(int(os.environ.get(THREADS_VARIABLE, "1").split(",")[0]))
    station = Station(device)
    with contextlib.suppress(EOFError, OSError, KeyboardInterrupt):
        while (job := outbox.recv()) is not None:
            outbox.send(_performed(station, job))


def _performed(station: Station, job: Job) -> Outcome:
    began = time.monotonic()
    try:
        return perform(station, job)
    except (Interrupted, KeyboardInterrupt):
        return Outcome(job, time.monotonic() - began, stopped=not job.finished)


def _leave_with_employer() -> None:
    """A worker whose employer was killed leaves at once; its last checkpoint stays."""
    employer = multiprocessing.parent_process()
    assert employer is not None
    employer.join()
    os._exit(1)
