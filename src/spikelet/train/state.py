"""Everything of a run that must survive an interruption, and its way to the disk and back."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import nn

from spikelet.checkpoint import (
    generator_states,
    load_state,
    restore,
    restore_generators,
    save_state,
)
from spikelet.errors import UserError
from spikelet.recipe import Training
from spikelet.train.average import Average
from spikelet.train.schedule import optimiser
from spikelet.train.totals import Totals

FREE = ("checkpoint_minutes", "tensorboard")  # may change on resume without changing the weights


@dataclass
class Standing:
    """Where a run stands: finished epochs, and batches and seconds of the unfinished one."""

    epoch: int = 0
    batch: int = 0
    seconds: float = 0.0
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
        self.settled = True  # false while a step is half done: not to be stored then

    @torch.no_grad()
    def require_finite(self) -> None:
        """Raise the sentence for parameters that are not numbers any more."""
        finite = torch.stack([torch.isfinite(each).all() for each in self.parameters])
        if not bool(finite.all()):
            part = "a parameter after the step"
            raise diverged(self.training, self.standing.epoch, self.standing.batch, part)

    def save(self, run: Path) -> None:
        """Write run/checkpoint; weights that are not finite never replace good ones."""
        self.standing.totals.settle()
        self.require_finite()
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
                "totals": standing.totals.stored(),
                "history": standing.history,
            },
            "training": dataclasses.asdict(self.training),
            "seed": self.seed,
        }
        save_state(run / "checkpoint", stored)

    def load(self, run: Path) -> None:
        """Continue exactly from run/checkpoint."""
        stored = load_state(run / "checkpoint")
        try:
            self._continue(run, stored)
        except (KeyError, TypeError, AttributeError, RuntimeError, IndexError) as error:
            where = run / "checkpoint"
            fix = f"delete the folder {where} and resume to train from the start"
            raise UserError(str(where), f"it is damaged ({error!r})", fix) from error

    def _continue(self, run: Path, stored: dict[str, Any]) -> None:
        """Take over what was stored."""
        self._require_same(run, stored)
        restore(self.distiller, stored["model"], f"resume = {run}")
        self.optimiser.load_state_dict(stored["optimiser"])
        if self.average is not None:
            updates, values = stored["ema"]
            self.average.load(values, updates)
        standing = stored["progress"]
        self.standing = Standing(**standing | {"totals": Totals.of(standing["totals"])})
        restore_generators(stored["generators"], {"distiller": self.generator})

    def _require_same(self, run: Path, stored: dict[str, Any]) -> None:
        """Raise unless the run is continued with the settings it was started with."""
        now = dataclasses.asdict(self.training) | {"seed": self.seed}
        then = stored["training"] | {"seed": stored["seed"]}
        for name, value in now.items():
            if name not in FREE and then.get(name) != value:
                raise UserError(
                    f"{name} = {value!r}",
                    f"the run in {run} was started with {then.get(name)!r}",
                    "resume it with that value or start a new run",
                )


def diverged(training: Training, epoch: int, batch: int, part: str) -> UserError:
    """The error for numbers that are not finite; epochs and batches are counted from 1 in it."""
    clip = "" if training.clip else " or clip the gradient (clip = 1.0)"
    return UserError(
        f"learning_rate = {training.learning_rate:g}",
        f"training diverged: {part} is not finite at epoch {epoch + 1}, batch {batch}",
        f"lower it{clip}, in a new run",
    )
