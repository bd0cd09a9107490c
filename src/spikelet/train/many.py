"""What several processes that train together agree on, and what each of them keeps to itself."""

from __future__ import annotations

import dataclasses
import hashlib
from dataclasses import dataclass
from pathlib import Path

import torch
from rich.console import Console
from torch import Tensor

from spikelet.errors import UserError
from spikelet.processes import processes, rank
from spikelet.recipe import Training
from spikelet.train.interrupt import begun_line
from spikelet.train.state import State


def require_all(training: Training) -> None:
    """Raises unless as many processes have joined as share each step."""
    here, wanted = processes(), training.processes
    if here != wanted:
        started = "1 process has started" if here == 1 else f"{here} processes train together"
        raise UserError(
            f"processes = {wanted}",
            f"{started} here",
            f"start as many with `--processes {wanted}` or torchrun",
        )


def shares(training: Training) -> list[str]:
    """The line about what each step sees and how fast it learns, where several share it."""
    count, batch = training.processes, training.batch
    if count == 1:
        return []
    factor = training.peak / training.learning_rate
    rate = f"learning rate {training.learning_rate:g} x {factor:.4g} = {training.peak:.4g}"
    return [f"{count} processes x {batch} images = {count * batch} a step; {rate}"]


def silent(
    run: Path | None, training: Training, console: Console | None
) -> tuple[None, Training, Console]:
    """The arguments of a log that neither writes nor tells: that of all processes but one."""
    return None, dataclasses.replace(training, tensorboard=False), Console(quiet=True)


def alone(training: Training, run: Path | None) -> UserError:
    """The error for a process that ended while others train with it."""
    line = begun_line(run)
    fix = "start them again" if line is None else f"continue with `{line}`"
    what = "another process of this training has ended, and the others cannot go on without it"
    return UserError(f"processes = {training.processes}", what, fix)


def reseed(seed: int, step: int) -> None:
    """Gives torch's global generators a stream for each step and process, such as for dropout.

    A resumed run then needs to know nothing of the other processes' generators.
    """
    key = repr((seed, step, rank())).encode()
    torch.manual_seed(int.from_bytes(hashlib.blake2b(key, digest_size=8).digest(), "big") >> 1)


@dataclass(frozen=True)
class Before:
    """What a step changes before its gradient is known, as it was when the step began."""

    buffers: list[Tensor]
    generator: Tensor

    @staticmethod
    def of(state: State) -> Before:
        """That of a state between two steps."""
        kept = [buffer.detach().clone() for buffer in state.distiller.buffers()]
        return Before(kept, state.generator.get_state())

    @torch.no_grad()
    def put_back(self, state: State) -> None:
        """Takes back a step that did not come to change a parameter."""
        for buffer, value in zip(state.distiller.buffers(), self.buffers, strict=True):
            buffer.copy_(value)
        state.generator.set_state(self.generator)
