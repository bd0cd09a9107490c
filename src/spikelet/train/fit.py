"""The training loop."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from torch import Tensor, nn

from spikelet.data import Batches
from spikelet.data.paired import Accompanied
from spikelet.errors import UserError
from spikelet.processes import Alone, meet, rank
from spikelet.recipe import Training
from spikelet.shared import sharing
from spikelet.train.interrupt import Interrupted, listening, resume_line
from spikelet.train.loading import loading
from spikelet.train.log import Log
from spikelet.train.loop import Evaluate, Health, Loop
from spikelet.train.many import alone, require_all, shares, silent
from spikelet.train.state import State
from spikelet.train.totals import NotFinite


def fit(
    distiller: nn.Module,
    batches: Batches | Accompanied | Iterable[tuple[Tensor, ...]],
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

    A third part of a batch goes to it as `shown`: the images that are paired with events.
    Left in eval mode, with averaged parameters where `training.ema` is on. With a run folder it
    is stored there and `resume` continues exactly: anywhere with `spikelet.data.Batches`, at the
    last finished epoch with any other iterable of (images, labels). `stop_after` steps of this
    call it stores its state and returns. Epochs that small data have more of, for
    `training.least_steps`, are measured and stored no more often than `training.epochs` times:
    the rows of the others have no `validation`, `health` and `rate`. Several processes
    (docs/processes.md) all call it, each with its own share of the batches; the first one writes
    and tells.

    Raises:
        UserError: where the loss or a weight is not finite any more, a run cannot be resumed, or
            another process of the training has ended.
        Interrupted: after Ctrl-C or SIGTERM, once the state is stored.
    """
    run = None if run is None else Path(run)
    if not isinstance(training, Training):
        what = f"expected a spikelet.Training, got {type(training).__name__}"
        raise UserError("training", what, "pass Training(epochs=10)")
    require_all(training)
    length = _length(batches)
    asked, training = training.epochs, training.lasting(length)
    every = -(-training.epochs // max(asked, 1))
    loop = Loop(State(distiller, training, seed), batches, length, run, stop_after, every)
    told = [*shares(training), *_emulated(training, loop.state.device), *loop.begin(resume)]
    standing = loop.state.standing
    if standing.epoch or standing.batch:
        told.append(f"goes on at epoch {standing.epoch + 1}, batch {standing.batch + 1}")
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


def _emulated(training: Training, device: torch.device) -> list[str]:
    """The line about bf16 on a processor whose convolutions have none: some forty times as slow."""
    fast = getattr(torch.ops.mkldnn, "_is_mkldnn_bf16_supported", lambda: True)
    if training.precision == "fp32" or device.type != "cpu" or fast():
        return []
    return ["this processor has no bf16: steps take many times as long as by --precision fp32"]


def _length(batches: Any) -> int:
    """Batches an epoch."""
    try:
        length = len(batches)
    except TypeError as error:
        raise UserError("batches", "their number is unknown", "give an object with len") from error
    if length == 0:
        raise UserError("batches", "there are none", "give more images or a smaller batch")
    return length
