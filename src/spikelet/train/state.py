"""Everything of a run that must survive an interruption, and its way to the disk and back."""

from __future__ import annotations

import dataclasses
import hashlib
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import nn

from spikelet.checkpoint import (
    generator_states,
    newest_state,
    restore,
    restore_generators,
    save_state,
    set_aside,
)
from spikelet.errors import UserError
from spikelet.processes import first, rank
from spikelet.recipe import Training
from spikelet.train.average import Average
from spikelet.train.interrupt import begun_line
from spikelet.train.run import FREE, stored_identity
from spikelet.train.schedule import optimiser
from spikelet.train.totals import Totals


@dataclass
class Standing:
    """Where a run stands: finished epochs, and batches and seconds of the unfinished one.

    `waited` are those of the seconds in which a step waited for its images, `compiled` those in
    which neurons were compiled.
    """

    epoch: int = 0
    batch: int = 0
    seconds: float = 0.0
    waited: float = 0.0
    compiled: float = 0.0
    totals: Totals = field(default_factory=Totals)
    history: list[dict[str, Any]] = field(default_factory=list)


class State:
    """A distiller in training: optimiser, average, generator and standing."""

    def __init__(self, distiller: nn.Module, training: Training, seed: int) -> None:
        self.distiller, self.training, self.seed = distiller, training, seed
        self.optimiser = optimiser(distiller, training)
        self.parameters = [p for group in self.optimiser.param_groups for p in group["params"]]
        self.device = self.parameters[0].device
        self.average = None if training.ema is None else Average(distiller, training.ema)
        self.generator = torch.Generator(self.device).manual_seed(seed)
        self.standing = Standing()
        self.moved: str | None = None  # the type of device that the state loaded was stored on
        self.settled = True  # false while a step is half done: not to be stored then

    @torch.no_grad()
    def require_finite(self, run: Path | None = None) -> None:
        """Raise the sentence for parameters that are not numbers any more."""
        finite = torch.stack([torch.isfinite(each).all() for each in self.parameters])
        if not bool(finite.all()):
            part = "a parameter after the step"
            raise diverged(self.training, self.standing.epoch, self.standing.batch, part, run)

    def save(self, run: Path) -> None:
        """Write run/checkpoint; weights that are not finite never replace good ones."""
        self.standing.totals.settle()
        self.require_finite(run)
        standing, average = self.standing, self.average
        stored: dict[str, Any] = {
            "model": self.distiller.state_dict(),
            "optimiser": self.optimiser.state_dict(),
            "generators": generator_states({"distiller": self.generator}),
            "ema": None if average is None else [average.updates, average.values],
            "progress": {
                "epoch": standing.epoch,
                "batch": standing.batch,
                "seconds": standing.seconds,
                "waited": standing.waited,
                "compiled": standing.compiled,
                "totals": standing.totals.stored(),
                "history": standing.history,
            },
            "training": dataclasses.asdict(self.training),
            "device": self.device.type,
            "seed": self.seed,
            "identity": self.identity(run),
        }
        save_state(run / "checkpoint", stored)

    @staticmethod
    def identity(run: Path) -> dict[str, str]:
        """Whose state this is; a damaged file of the run does not keep it from the disk."""
        try:
            return stored_identity(run)
        except UserError:
            return {}

    def load(self, run: Path) -> list[str]:
        """Continue exactly from the newest whole state in run/checkpoint; what is to be told."""
        stored, damaged = newest_state(run / "checkpoint") if rank() == 0 else ({}, [])
        stored = first(stored)
        try:
            self._continue(run, stored)
        except UserError:
            raise
        except (KeyError, TypeError, ValueError, AttributeError, RuntimeError, IndexError) as error:
            where = run / "checkpoint"
            fix = f"delete the folder {where} and resume to train from the start"
            raise UserError(str(where), f"it is damaged ({error!r})", fix) from error
        for each in damaged:
            set_aside(each)
        standing = self.standing
        place = f"epoch {standing.epoch + 1}, batch {standing.batch}"
        told = [
            f"`{each.argument}`: {each.message}; the run goes on from the one before, at {place}."
            for each in damaged
        ]
        return told if self.moved is None else [*told, self._elsewhere(self.moved)]

    def _elsewhere(self, then: str) -> str:
        """The line about a run that goes on where the generator's draws are others."""
        return (
            f"begun on {then}, it continues on {self.device.type}: what is drawn by chance differs "
            f"there, so it does not end with the bits that it would have had on {then}"
        )

    def _continue(self, run: Path, stored: dict[str, Any]) -> None:
        """Take over what was stored."""
        _require_own(run, stored)
        self._require_same(run, stored)
        restore(self.distiller, stored["model"], f"resume = {run}")
        self.optimiser.load_state_dict(stored["optimiser"])
        if self.average is not None:
            updates, values = stored["ema"]
            self.average.load(values, updates)
        standing = stored["progress"]
        self.standing = Standing(**standing | {"totals": Totals.of(standing["totals"])})
        self.moved = self._moved(stored)
        if self.moved is None:
            restore_generators(stored["generators"], {"distiller": self.generator})
        else:
            restore_generators(stored["generators"], {})
            self._draw_anew()

    def _moved(self, stored: dict[str, Any]) -> str | None:
        """The type of device that a state was stored on, if it is another than this.

        Older checkpoints do not say it, but states of generators differ in their length.
        """
        own, kept = self.device.type, len(stored["generators"]["distiller"])
        then = str(stored.get("device", own))
        if then == own and kept != len(self.generator.get_state()):
            then = "cpu" if kept == len(torch.Generator().get_state()) else "another device"
        return None if then == own else then

    def _draw_anew(self) -> None:
        """Give the generator a stream of its own for where the run stands: not that of its start.

        Its state is of use on no other type of device.
        """
        key = repr((self.seed, self.standing.epoch, self.standing.batch)).encode()
        number = int.from_bytes(hashlib.blake2b(key, digest_size=8).digest(), "big") >> 1
        self.generator.manual_seed(number)

    def _require_same(self, run: Path, stored: dict[str, Any]) -> None:
        """Raise unless the run is continued with the settings it was started with."""
        now = dataclasses.asdict(self.training) | {"seed": self.seed}
        usual = dataclasses.asdict(Training())  # a setting of later has the value of before
        then = usual | stored["training"] | {"seed": stored["seed"]}
        for name, value in now.items():
            if name not in FREE and then.get(name) != value:
                raise UserError(
                    f"{name} = {value!r}",
                    f"the run in {run} was started with {then.get(name)!r}",
                    "resume it with that value or start a new run",
                )


def _require_own(run: Path, stored: dict[str, Any]) -> None:
    """Raise for the checkpoint of another run; older ones do not say whose they are."""
    then, now = stored.get("identity") or {}, stored_identity(run)
    for part in now:
        if then.get(part, now[part]) != now[part]:
            where = run / "checkpoint"
            fix = f"delete the folder {where} and resume to train from the start"
            raise UserError(str(where), f"it is of another run: the {part} is another", fix)


def diverged(
    training: Training, epoch: int, batch: int, part: str, run: Path | None = None
) -> UserError:
    """The error for numbers that are not finite; epochs and batches are counted from 1 in it."""
    verb = "are" if part.startswith("parts ") else "is"
    lower = f"begin a new run with a lower one, such as {training.learning_rate / 4:.2g}"
    clip = "" if training.clip else ", or with clip = 1.0 (--training.clip 1.0)"
    again = "" if begun_line(run) is None else "; resuming this one keeps its settings"
    return UserError(
        f"learning_rate = {training.learning_rate:g}",
        f"training diverged: {part} {verb} not finite at epoch {epoch + 1}, batch {batch}",
        f"{lower}{clip}{again}",
    )


def not_finite_images(epoch: int, batch: int, run: Path | None) -> UserError:
    """The error for a batch of images that are no numbers."""
    line = begun_line(run)
    again = "" if line is None else f", then go on from the state before it with `{line}`"
    what = f"images of epoch {epoch + 1}, batch {batch} are not finite"
    return UserError("batches", what, f"mend the data{again}")
