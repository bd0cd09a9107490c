"""The steps and epochs of a training: taken, stored, measured, and stopped in time."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from spikelet.compiling import seconds_compiling
from spikelet.errors import UserError
from spikelet.given import require_batch
from spikelet.processes import alike, meet, rank, total
from spikelet.train.gradients import Found, gradients
from spikelet.train.graphed import Graphed
from spikelet.train.interrupt import Stop
from spikelet.train.loading import is_lost, lost_worker
from spikelet.train.log import Log
from spikelet.train.many import Before, reseed
from spikelet.train.schedule import learning_rate
from spikelet.train.state import Standing, State, diverged, not_finite_images
from spikelet.train.totals import NotFinite

Evaluate = Callable[[], Mapping[str, float]]
Health = Callable[[], Mapping[str, Mapping[str, float]]]
SETTLE_SECONDS = 1.0  # how long losses may stay on an accelerator before they are looked at
SETTLE_STEPS = 16  # the same for several processes, which look at the same time


@dataclass
class Loop:
    """One call of `fit`."""

    state: State
    batches: Any
    length: int
    run: Path | None
    stop_after: int | None
    every: int = 1  # epochs from one measurement and checkpoint to the next
    taken: int = 0
    stored_at: float = 0.0
    settled_at: float = 0.0
    graphed: Graphed | None = None
    before: Before | None = None
    agreed: bool = False
    latest: Tensor | None = None

    @property
    def skips(self) -> bool:
        """Whether the batches can start within an epoch."""
        return callable(getattr(self.batches, "epoch", None))

    def begin(self, resume: bool) -> list[str]:
        """Load what is to be continued; a new run stores its start, so it always can be.

        Returns sentences about checkpoints that were damaged.
        """
        told: list[str] = []
        if resume and self.run is None:
            raise UserError("resume = True", "there is no run to resume", "give `run`")
        if resume and self.run is not None:
            told = self.state.load(self.run)
        else:
            alike(self.state.distiller)
            self.store()
        if self.state.training.graph:
            half = self.state.training.precision == "bf16"
            self.graphed = Graphed(self.state.distiller, half)
        if self.state.standing.batch and not self.skips:
            raise UserError(
                "batches",
                "the run stopped within an epoch and these cannot start there",
                "resume it with `spikelet.data.Batches`",
            )
        meet()  # what is read is not written over by another process that is ahead
        return told

    def store(self) -> None:
        """Write a checkpoint, unless continuing from it would not be exact."""
        exact = self.state.settled and (self.skips or self.state.standing.batch == 0)
        if self.run is not None and exact and rank() == 0:
            self.state.save(self.run)
        self.stored_at = time.monotonic()

    def rewind(self) -> None:
        """Back to where the last whole step ended, if one of several processes is in the next."""
        if not self.state.settled and self.before is not None:
            self.before.put_back(self.state)
            self.state.settled = True

    def train(self, stop: Stop, log: Log, evaluate: Evaluate | None, health: Health | None) -> bool:
        """Epochs until the last; whether it came that far."""
        while self.state.standing.epoch < self.state.training.epochs:
            if self.taken == self.stop_after or not self.epoch(stop, log):
                self.store()
                return False
            due = self.whole
            row = self.finish(evaluate, health) if due else self.finish(None, None)
            log.epoch(row)
            if due:
                log.tell(row)
            if due or self.late:
                self.store()
            if self.heard(stop):
                raise KeyboardInterrupt
        return True

    @property
    def whole(self) -> bool:
        """Whether the present epoch is the last of those that are measured and stored together."""
        done = self.state.standing.epoch + 1
        return done % self.every == 0 or done == self.state.training.epochs

    @property
    def late(self) -> bool:
        """Whether a checkpoint is due by the clock."""
        return time.monotonic() - self.stored_at > 60 * self.state.training.checkpoint_minutes

    def heard(self, stop: Stop, found: Found | None = None) -> bool:
        """Whether to stop; several processes agree on that, after a step by what they found."""
        if self.state.training.processes == 1:
            return stop.signal is not None
        if found is None or found.asked is None:
            asked = total(*stop.asked)
        else:
            asked = tuple(found.asked.tolist())
        stop.take(asked)
        self.agreed = any(asked)
        return self.agreed

    def due(self, now: float) -> bool:
        """Whether to look at the losses, which copies them from the device."""
        if self.state.device.type == "cpu":
            return True
        if self.state.training.processes > 1:
            return self.taken % SETTLE_STEPS == 0
        return now - self.settled_at > SETTLE_SECONDS

    def epoch(self, stop: Stop, log: Log) -> bool:
        """The rest of the present epoch; whether it is complete."""
        standing = self.state.standing
        self.state.distiller.train()
        then = ready = time.monotonic()
        spent = seconds_compiling()
        for batch in self.remaining(stop):
            require_batch(batch)
            images, labels, *beside = batch
            self.latest = images
            standing.waited += time.monotonic() - ready
            found = self.step(images, labels, stop, *beside)
            now = time.monotonic()
            standing.seconds += now - then
            compiled = seconds_compiling()
            standing.compiled += compiled - spent
            then, spent = now, compiled
            due = self.due(now)
            if due:
                standing.totals.settle()
                self.settled_at = now
                log.step(standing.epoch, standing.batch, standing.totals.latest)
            if (due or found is None) and self.heard(stop, found):
                raise KeyboardInterrupt
            if due and self.late:
                self.store()
            if self.taken == self.stop_after and standing.batch < self.length:
                return False
            ready = time.monotonic()
        standing.totals.settle()
        standing.seconds += time.monotonic() - then
        return True

    def remaining(self, stop: Stop) -> Iterator[tuple[Tensor, ...]]:
        """What is left of the epoch; loader processes that die of our signal are no error."""
        standing = self.state.standing
        try:
            if self.skips:
                yield from self.batches.epoch(standing.epoch, standing.batch)
            else:
                yield from self.batches
        except Exception as error:
            if stop.signal is not None:
                raise KeyboardInterrupt from error
            self.store()
            if is_lost(error):
                raise lost_worker(error, self.run) from error
            raise

    def culprit(self, error: NotFinite) -> UserError:
        """The sentence about a value that is not finite: the images of its batch, or training."""
        epoch, batch = self.state.standing.epoch, error.batch
        seen = self.latest if batch == self.state.standing.batch else None
        if self.skips:
            seen, *_ = next(iter(self.batches.epoch(epoch, batch - 1)))
        if seen is not None:
            (bad,) = total(float(not bool(torch.isfinite(seen).all())))
            if bad:
                return not_finite_images(epoch, batch, self.run)
        return diverged(self.state.training, epoch, batch, error.part, self.run)

    def step(
        self, images: Tensor, labels: Tensor, stop: Stop, shown: Tensor | None = None
    ) -> Found | None:
        """One step of the optimiser; what several processes found together."""
        state, training, standing = self.state, self.state.training, self.state.standing
        done = standing.epoch * self.length + standing.batch
        images = images.to(state.device, non_blocking=True)
        labels = labels.to(state.device, non_blocking=True)
        for group in state.optimiser.param_groups:
            group["lr"] = learning_rate(training, done, self.length)
        if training.processes > 1:
            self.before = Before.of(state)
            reseed(state.seed, done)
        state.settled = False
        progress = done / (training.epochs * self.length)
        if self.graphed is not None and self.graphed.takes(images):
            found = Found(len(images), *self.graphed.step(images, labels, progress))
        else:
            found = self.eager(images, labels, progress, stop, shown)
        if training.clip is not None:
            nn.utils.clip_grad_norm_(state.parameters, training.clip)
        state.optimiser.step()
        if state.average is not None:
            state.average.update()
        standing.batch += 1
        standing.totals.add(standing.batch, found.images, found.loss, found.parts)
        self.taken += 1
        state.settled = True
        return found if training.processes > 1 else None

    def eager(
        self,
        images: Tensor,
        labels: Tensor,
        progress: float,
        stop: Stop,
        shown: Tensor | None,
    ) -> Found:
        """Loss, parts and gradients of one batch."""
        training = self.state.training
        return gradients(
            self.state.distiller,
            images,
            labels,
            progress=progress,
            generator=self.state.generator,
            accumulate=training.accumulate,
            half=training.precision == "bf16",
            asked=stop.asked,
            shown=None if shown is None else shown.to(self.state.device, non_blocking=True),
        )

    def finish(self, evaluate: Evaluate | None, health: Health | None) -> dict[str, Any]:
        """Close the epoch: measure, and start the next one's account."""
        state, standing = self.state, self.state.standing
        state.require_finite(self.run)
        with _measuring(state):
            validation = {} if evaluate is None else {k: float(v) for k, v in evaluate().items()}
            layers = {} if health is None else {k: dict(v) for k, v in health().items()}
        loss, parts = standing.totals.means()
        rates = [layer["rate"] for layer in layers.values()]
        own = standing.seconds - standing.compiled
        row = {
            "epoch": standing.epoch + 1,
            "step": standing.epoch * self.length + standing.batch,
            "loss": loss,
            "parts": parts,
            "learning_rate": state.optimiser.param_groups[0]["lr"],
            "validation": validation,
            "seconds": standing.seconds,
            "seconds_waiting": standing.waited,
            "seconds_compiling": standing.compiled,
            "images_per_second": standing.totals.images / max(own, 1e-9),
            "rate": sum(rates) / len(rates) if rates else None,
            "health": layers,
        }
        state.standing = Standing(standing.epoch + 1, history=[*standing.history, row])
        return row


@contextmanager
def _measuring(state: State) -> Iterator[None]:
    """Eval mode, averaged parameters, no gradient; the random stream of training is untouched."""
    state.distiller.eval()
    devices = [state.device] if state.device.type == "cuda" else []
    with ExitStack() as stack:
        stack.enter_context(torch.random.fork_rng(devices))
        stack.enter_context(torch.no_grad())
        if state.average is not None:
            stack.enter_context(state.average.worn())
        yield
