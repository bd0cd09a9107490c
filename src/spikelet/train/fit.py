"""The training loop."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from torch import Tensor, nn

from spikelet.data import Batches
from spikelet.errors import UserError
from spikelet.processes import Alone, alike, meet, rank, total
from spikelet.recipe import Training
from spikelet.shared import sharing
from spikelet.train.gradients import Found, gradients
from spikelet.train.graphed import Graphed
from spikelet.train.interrupt import Interrupted, Stop, listening, resume_line
from spikelet.train.loading import is_lost, loading, lost_worker
from spikelet.train.log import Log
from spikelet.train.many import Before, alone, require_all, reseed, shares, silent
from spikelet.train.schedule import learning_rate
from spikelet.train.state import Standing, State, diverged, not_finite_images
from spikelet.train.totals import NotFinite

Evaluate = Callable[[], Mapping[str, float]]
Health = Callable[[], Mapping[str, Mapping[str, float]]]
SETTLE_SECONDS = 1.0  # how long losses may stay on an accelerator before they are looked at
SETTLE_STEPS = 16  # the same for several processes, which look at the same time


def fit(
    distiller: nn.Module,
    batches: Batches | Iterable[tuple[Tensor, Tensor]],
    *,
    training: Training,
    seed: int = 0,
    run: Path | None = None,
    evaluate: Evaluate | None = None,
    health: Health | None = None,
    resume: bool = False,
    console: Console | None = None,
    stop_after: int | None = None,
) -> list[dict[str, Any]]:
    """Train a distiller (images, labels, progress, generator) -> (loss, parts); one row an epoch.

    Left in eval mode, with averaged parameters where `training.ema` is on. With a run folder it
    is stored there and `resume` continues exactly: anywhere with `spikelet.data.Batches`, at the
    last finished epoch with any other iterable of (images, labels). `stop_after` steps of this
    call it stores its state and returns. Several processes (docs/processes.md) all call it, each
    with its own share of the batches; the first one writes and tells.

    Raises:
        UserError: where the loss or a weight is not finite any more, a run cannot be resumed, or
            another process of the training has ended.
        Interrupted: after Ctrl-C or SIGTERM, once the state is stored.
    """
    run = None if run is None else Path(run)
    require_all(training)
    length = _length(batches)
    training = training.lasting(length)
    loop = _Loop(State(distiller, training, seed), batches, length, run, stop_after)
    told = [*shares(training), *loop.begin(resume)]
    standing = loop.state.standing
    if standing.epoch < training.epochs:
        whose = silent(run, training, console) if rank() else (run, training, console)
        with (
            loading(run),
            sharing(distiller),
            listening() as stop,
            Log(whose[0], whose[1], loop.length, standing, whose[2]) as log,
        ):
            log.say(told)
            try:
                finished = loop.train(stop, log, evaluate, health)
            except NotFinite as error:
                raise loop.culprit(error) from error
            except Alone as error:
                loop.rewind()
                loop.store()
                raise alone(training, run) from error
            except KeyboardInterrupt as error:
                if loop.skips:  # else the last finished epoch is what can be continued exactly
                    loop.store()
                if loop.agreed:
                    meet()  # an end of any other process would end the one that writes
                raise Interrupted(resume_line(run), stop.code) from error
        if not finished:
            return list(loop.state.standing.history)
    if loop.state.average is not None:
        loop.state.average.put_on()
    distiller.eval()
    return list(loop.state.standing.history)


@dataclass
class _Loop:
    """One call of `fit`."""

    state: State
    batches: Any
    length: int
    run: Path | None
    stop_after: int | None
    taken: int = 0
    stored_at: float = 0.0
    settled_at: float = 0.0
    graphed: Graphed | None = None
    before: Before | None = None
    agreed: bool = False

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
            row = self.finish(evaluate, health)
            log.epoch(row)
            self.store()
            if self.heard(stop):
                raise KeyboardInterrupt
        return True

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
        standing, minutes = self.state.standing, self.state.training.checkpoint_minutes
        self.state.distiller.train()
        then = ready = time.monotonic()
        for images, labels in self.remaining(stop):
            standing.waited += time.monotonic() - ready
            found = self.step(images, labels, stop)
            now = time.monotonic()
            standing.seconds += now - then
            then = now
            due = self.due(now)
            if due:
                standing.totals.settle()
                self.settled_at = now
                log.step(standing.epoch, standing.batch, standing.totals.latest)
            if (due or found is None) and self.heard(stop, found):
                raise KeyboardInterrupt
            if due and now - self.stored_at > 60 * minutes:
                self.store()
            if self.taken == self.stop_after and standing.batch < self.length:
                return False
            ready = time.monotonic()
        standing.totals.settle()
        standing.seconds += time.monotonic() - then
        return True

    def remaining(self, stop: Stop) -> Iterator[tuple[Tensor, Tensor]]:
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
        if self.skips:
            images, _ = next(iter(self.batches.epoch(epoch, batch - 1)))
            (bad,) = total(float(not bool(torch.isfinite(images).all())))
            if bad:
                return not_finite_images(epoch, batch, self.run)
        return diverged(self.state.training, epoch, batch, error.part, self.run)

    def step(self, images: Tensor, labels: Tensor, stop: Stop) -> Found | None:
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
        if self.graphed is not None and self.graphed.takes(images):
            found = Found(len(images), *self.graphed.step(images, labels))
        else:
            progress = done / (training.epochs * self.length)
            found = self.eager(images, labels, progress, stop)
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

    def eager(self, images: Tensor, labels: Tensor, progress: float, stop: Stop) -> Found:
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
        row = {
            "epoch": standing.epoch + 1,
            "step": standing.epoch * self.length + standing.batch,
            "loss": loss,
            "parts": parts,
            "learning_rate": state.optimiser.param_groups[0]["lr"],
            "validation": validation,
            "seconds": standing.seconds,
            "seconds_waiting": standing.waited,
            "images_per_second": standing.totals.images / max(standing.seconds, 1e-9),
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


def _length(batches: Any) -> int:
    """Batches an epoch."""
    try:
        length = len(batches)
    except TypeError as error:
        raise UserError("batches", "their number is unknown", "give an object with len") from error
    if length == 0:
        raise UserError("batches", "there are none", "give more images or a smaller batch")
    return length
