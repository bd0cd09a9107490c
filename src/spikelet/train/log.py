"""What a run tells: a progress bar, one line and one JSON object an epoch, TensorBoard."""

from __future__ import annotations

import json
import time
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Self

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from spikelet.compiling import seconds_compiling
from spikelet.errors import UserError
from spikelet.folder import append, replacing
from spikelet.recipe import Training
from spikelet.train.state import Standing

SATURATED = 0.9  # share of neurons that fire at every step from which a layer is named
WAITING = 0.1  # share of an epoch from which waiting for images is told
NAMED = 4  # layers named in one warning
SETTLED, LONG = 10.0, 90.0  # seconds of training before it is foretold, and worth a line


class Log:
    """Writes to the console (standard error unless given) and, with a run folder, to its files."""

    def __init__(
        self,
        run: Path | None,
        training: Training,
        per_epoch: int,
        standing: Standing,
        console: Console | None,
    ) -> None:
        self.console = console if console is not None else Console(stderr=True)
        self.epochs, self.per_epoch = training.epochs, per_epoch
        self.metrics = None if run is None else run / "metrics.jsonl"
        self.board = _board(run, standing.epoch) if training.tensorboard else None
        if self.metrics is not None:
            with replacing(self.metrics) as temporary:
                temporary.write_text("".join(json.dumps(row) + "\n" for row in standing.history))
        self.bar = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[loss]}"),
            TextColumn("ETA"),
            TimeRemainingColumn(),
            console=self.console,
            transient=True,
            refresh_per_second=4,
            disable=not self.console.is_terminal,
        )
        done, total = standing.epoch * per_epoch + standing.batch, self.epochs * per_epoch
        self.task = self.bar.add_task("training", completed=done, total=total, loss="")
        self.began, self.first, self.total, self.told = time.monotonic(), done, total, False
        self.compiled = seconds_compiling()

    def __enter__(self) -> Self:
        self.bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.bar.stop()
        if self.board is not None:
            self.board.close()

    def step(self, epoch: int, batch: int, loss: float) -> None:
        """Move the bar to `batch` batches done of an epoch counted from 0."""
        self.bar.update(
            self.task,
            completed=epoch * self.per_epoch + batch,
            description=f"epoch {epoch + 1}/{self.epochs}",
            loss=f"loss {loss:.4f}",
        )

        self._tell_duration(epoch * self.per_epoch + batch)

    def _tell_duration(self, done: int) -> None:
        """Once, after the first batches, how long the rest will take, where that is long.

        What compiled before does not count: it is done once.
        """
        compiled = seconds_compiling() - self.compiled
        passed, taken = time.monotonic() - self.began - compiled, done - self.first
        if self.told or passed < SETTLED or taken < 2:
            return
        self.told, each = True, passed / taken
        if (left := (self.total - done) * each) > LONG:
            text = f"about {duration(left)} to go: {self.total - done} batches of {each:.2f} s"
            self.say([text])

    def epoch(self, row: Mapping[str, Any]) -> None:
        """Store what an epoch came to."""
        if self.metrics is not None:
            append(self.metrics, json.dumps(row) + "\n")
        if self.board is not None:
            for name, value in _scalars(row).items():
                self.board.add_scalar(name, value, row["epoch"])

    def tell(self, row: Mapping[str, Any]) -> None:
        """Print what an epoch came to."""
        warnings = [*health_warnings(row["health"]), *waiting_warnings(row)]
        self.say([epoch_line(row, self.epochs), *warnings])

    def say(self, lines: Iterable[str]) -> None:
        """Print lines as they are."""
        for text in lines:
            self.console.print(text, markup=False, highlight=False, soft_wrap=True)


def duration(seconds: float) -> str:
    """Seconds as minutes or hours: "12 min", "3 h 20 min"."""
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 60 else f"{minutes // 60} h {minutes % 60} min"


def epoch_line(row: Mapping[str, Any], epochs: int) -> str:
    """An epoch in one line; parts are unweighted means."""
    parts = ", ".join(f"{name} {value:.4f}" for name, value in row["parts"].items())
    fields = [
        f"epoch {row['epoch']}/{epochs}",
        f"loss {row['loss']:.4f}" + (f" (unweighted: {parts})" if parts else ""),
        f"learning rate {row['learning_rate']:.3g}",
    ]
    for name, value in row["validation"].items():
        shown = f"{100 * value:.2f} %" if name == "accuracy" else f"{value:.4g}"
        fields.append(f"validation {name} {shown}")
    compiling = row["seconds_compiling"]
    apart = f" ({compiling:.1f} s of them compiling)" if compiling >= 1 else ""
    fields += [f"{row['seconds']:.1f} s{apart}", f"{row['images_per_second']:.0f} images/s"]
    if row["rate"] is not None:
        fields.append(f"firing rate by layer {row['rate']:.3f}")
    return "  ".join(fields)


def health_warnings(health: Mapping[str, Mapping[str, float]]) -> list[str]:
    """A sentence about layers that never fire and one about layers that always do."""
    dead = [path for path, layer in health.items() if layer["rate"] == 0]
    full = [path for path, layer in health.items() if layer.get("saturated", 0) >= SATURATED]
    warnings = []
    if dead:
        warnings.append(f"warning: no spike at all in {_listed(dead)}; lower its threshold")
    if full:
        warnings.append(f"warning: nearly every neuron fires at every step in {_listed(full)}")
    return warnings


def waiting_warnings(row: Mapping[str, Any]) -> list[str]:
    """A sentence about steps that wait for their images for a good part of a long epoch."""
    seconds, share = row["seconds"], row.get("seconds_waiting", 0) / max(row["seconds"], 1e-9)
    if seconds < SETTLED or share < WAITING:
        return []
    return [f"warning: steps waited {100 * share:.0f} % of the time for their images"]


def _listed(names: list[str]) -> str:
    """The first few names, and how many there are besides."""
    more = f" and {len(names) - NAMED} more" if len(names) > NAMED else ""
    return ", ".join(names[:NAMED]) + more


def _scalars(row: Mapping[str, Any]) -> dict[str, float]:
    """The curves of an epoch, by TensorBoard tag."""
    scalars = {name: row[name] for name in ("loss", "learning_rate", "images_per_second")}
    for group in ("parts", "validation"):
        scalars |= {f"{group}/{name}": value for name, value in row[group].items()}
    return scalars | {f"rate/{path}": layer["rate"] for path, layer in row["health"].items()}


def _board(run: Path | None, epochs_done: int) -> Any:
    """A TensorBoard writer that drops what an interrupted run wrote past the resumed epoch."""
    if run is None:
        raise UserError("tensorboard = True", "a run folder is needed for it", "give `run`")
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError as error:
        raise UserError(
            "tensorboard = True", "the package is not installed", "run `pip install tensorboard`"
        ) from error
    return SummaryWriter(str(run / "tensorboard"), purge_step=epochs_done + 1)
