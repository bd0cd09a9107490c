"""What a run tells: a progress bar, one line and one JSON object an epoch, TensorBoard."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Self

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from spikelet.checkpoint import replacing
from spikelet.errors import UserError
from spikelet.recipe import Training
from spikelet.train.state import Standing

SATURATED = 0.9  # share of neurons that fire at every step from which a layer is named
NAMED = 4  # layers named in one warning


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

    def epoch(self, row: Mapping[str, Any]) -> None:
        """Print and store what an epoch came to."""
        if self.metrics is not None:
            with self.metrics.open("a", encoding="utf-8") as file:
                file.write(json.dumps(row) + "\n")
        if self.board is not None:
            for name, value in _scalars(row).items():
                self.board.add_scalar(name, value, row["epoch"])
        for text in (epoch_line(row, self.epochs), *health_warnings(row["health"])):
            self.console.print(text, markup=False, highlight=False, soft_wrap=True)


def epoch_line(row: Mapping[str, Any], epochs: int) -> str:
    """An epoch in one line; parts are unweighted means."""
    parts = ", ".join(f"{name} {value:.4f}" for name, value in row["parts"].items())
    fields = [
        f"epoch {row['epoch']}/{epochs}",
        f"loss {row['loss']:.4f}" + (f" ({parts})" if parts else ""),
        f"learning rate {row['learning_rate']:.3g}",
    ]
    for name, value in row["validation"].items():
        shown = f"{100 * value:.2f} %" if name == "accuracy" else f"{value:.4g}"
        fields.append(f"validation {name} {shown}")
    fields += [f"{row['seconds']:.1f} s", f"{row['images_per_second']:.0f} images/s"]
    if row["rate"] is not None:
        fields.append(f"mean firing rate {row['rate']:.3f}")
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
