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
from spikelet.recipe import Training
from spikelet.train.graphed import Graphed
from spikelet.train.interrupt import Interrupted, Stop, listening, resume_line
from spikelet.train.log import Log
from spikelet.train.schedule import learning_rate
from spikelet.train.state import Standing, State, diverged
from spikelet.train.totals import NotFinite

Evaluate = Callable[[], Mapping[str, float]]
Health = Callable[[], Mapping[str, Mapping[str, float]]]
SETTLE_SECONDS = 1.0  # how long losses may stay on an accelerator before they are looked at


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
    call it stores its state and returns.

    Raises:
        UserError: where the loss or a weight is not finite any more, or a run cannot be resumed.
        Interrupted: after Ctrl-C or SIGTERM, once the state is stored.
    """
    run = None if run is None else Path(run)
    loop = _Loop(State(distiller, training, seed), batches, _length(batches), run, stop_after)
    loop.begin(resume)
    standing = loop.state.standing
    if standing.epoch < training.epochs:
        with listening() as stop, Log(run, training, loop.length, standing, console) as log:
            try:
                finished = loop.train(stop, log, evaluate, health)
            except NotFinite as error:
                epoch = loop.state.standing.epoch
                raise diverged(training, epoch, error.batch, error.part) from error
            except KeyboardInterrupt as error:
                if loop.skips:  # else the last finished epoch is what can be continued exactly
                    loop.store()
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

    @property
    def skips(self) -> bool:
        """Whether the batches can start within an epoch."""
        return callable(getattr(self.batches, "epoch", None))

    def begin(self, resume: bool) -> None:
        """Load what is to be continued; a new run stores its start, so it always can be."""
        if resume and self.run is None:
            raise UserError("resume = True", "there is no run to resume", "give `run`")
        if resume and self.run is not None:
            self.state.load(self.run)
        else:
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

    def store(self) -> None:
        """Write a checkpoint, unless continuing from it would not be exact."""
        exact = self.state.settled and (self.skips or self.state.standing.batch == 0)
        if self.run is not None and exact:
            self.state.save(self.run)
        self.stored_at = time.monotonic()

    def train(self, stop: Stop, log: Log, evaluate: Evaluate | None, health: Health | None) -> bool:
        """Epochs until the last; whether it came that far."""
        while self.state.standing.epoch < self.state.training.epochs:
            if self.taken == self.stop_after or not self.epoch(stop, log):
                self.store()
                return False
            row = self.finish(evaluate, health)
            log.epoch(row)
            self.store()
            if stop.signal is not None:
                raise KeyboardInterrupt
        return True

    def epoch(self, stop: Stop, log: Log) -> bool:
        """The rest of the present epoch; whether it is complete."""
        standing, minutes = self.state.standing, self.state.training.checkpoint_minutes
        self.state.distiller.train()
        then = time.monotonic()
        for images, labels in self.remaining(stop):
            self.step(images, labels)
            now = time.monotonic()
            standing.seconds += now - then
            then = now
            if self.state.device.type == "cpu" or now - self.settled_at > SETTLE_SECONDS:
                standing.totals.settle()
                self.settled_at = now
                log.step(standing.epoch, standing.batch, standing.totals.latest)
            if stop.signal is not None:
                raise KeyboardInterrupt
            if now - self.stored_at > 60 * minutes:
                self.store()
            if self.taken == self.stop_after and standing.batch < self.length:
                return False
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
            raise

    def step(self, images: Tensor, labels: Tensor) -> None:
        """One step of the optimiser."""
        state, training, standing = self.state, self.state.training, self.state.standing
        done = standing.epoch * self.length + standing.batch
        images = images.to(state.device, non_blocking=True)
        labels = labels.to(state.device, non_blocking=True)
        for group in state.optimiser.param_groups:
            group["lr"] = learning_rate(training, done, self.length)
        state.settled = False
        if self.graphed is not None and self.graphed.takes(images):
            loss, parts = self.graphed.step(images, labels)
        else:
            loss, parts = self.eager(images, labels, done / (training.epochs * self.length))
        if training.clip is not None:
            nn.utils.clip_grad_norm_(state.parameters, training.clip)
        state.optimiser.step()
        if state.average is not None:
            state.average.update()
        standing.batch += 1
        standing.totals.add(standing.batch, len(images), loss, parts)
        self.taken += 1
        state.settled = True

    def eager(
        self, images: Tensor, labels: Tensor, progress: float
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Loss, parts and gradients of one batch."""
        state, half = self.state, self.state.training.precision == "bf16"
        with torch.autocast(state.device.type, dtype=torch.bfloat16, enabled=half):
            loss, parts = state.distiller(
                images, labels, progress=progress, generator=state.generator
            )
        state.optimiser.zero_grad(set_to_none=True)
        loss.backward()
        return loss, parts

    def finish(self, evaluate: Evaluate | None, health: Health | None) -> dict[str, Any]:
        """Close the epoch: measure, and start the next one's account."""
        state, standing = self.state, self.state.standing
        state.require_finite()
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
