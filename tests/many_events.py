"""What one process and several are compared on with recordings: whole trainings, images beside."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from rich.console import Console
from torch import Tensor

from small import Stages, network, scattered
from spikelet.convert import convert
from spikelet.data import Batches, Crop, EventDrop, Split, normalise
from spikelet.data.dataset import Dataset, Origin, assemble
from spikelet.data.paired import Accompanied, Paired
from spikelet.distill import Distiller
from spikelet.encode import Direct
from spikelet.execute import bptt, rate
from spikelet.neuron import IF
from spikelet.processes import from_each, processes, rank
from spikelet.recipe import TERMS, Training, build, terms_of
from spikelet.train import fit

STEPS, BATCH = 3, 7  # of 33 recordings: the last batch has five, one process three of them
WAYS: dict[str, Callable] = {"rate": rate, "windows": functools.partial(rate, windows=3)}
WAYS["bptt"] = bptt
CASES = ("ckd rate", "ckd windows", "hybrid bptt", "none rate")


def parts(x: Tensor, number: Tensor, **more: Any) -> Dataset:
    """Three classes, which the number of what is shown says."""
    split = Split(x, number % 3, Origin("pictures", number))
    common = {"classes": ("a", "b", "c"), "licence": "none", "train": None, "seed": 0}
    return assemble("parts", split, split, validation=4, **common, **more)


def pictures() -> Dataset:
    """Images of 40 numbers."""
    drawn = torch.Generator().manual_seed(5)
    x = torch.randint(0, 256, (40, 2, 8, 8), generator=drawn, dtype=torch.uint8)
    return parts(x, torch.arange(40))


def recordings() -> Dataset:
    """Recordings of 37 images, some of them unknown: shares are uneven."""
    drawn = torch.Generator().manual_seed(6)
    x = 10 * torch.randint(0, 5, (37, STEPS, 2, 8, 8), generator=drawn, dtype=torch.uint8)
    return parts(x, torch.randperm(60, generator=drawn)[:37], unit=10)


class Precise:
    """Batches in float64, in which two ways to one sum differ little."""

    def __init__(self, batches: Batches | Accompanied) -> None:
        self.batches = batches

    def __len__(self) -> int:
        return len(self.batches)

    def epoch(self, epoch: int = 0, skip: int = 0) -> Iterator[tuple[Tensor, ...]]:
        for images, labels, *shown in self.batches.epoch(epoch, skip):
            yield images.double(), labels, *(each.double() for each in shown)


def learner(case: str) -> tuple[Distiller, Precise]:
    """A student of recordings under a teacher of images, and what this process sees of them."""
    method, way = case.split()
    images, events = pictures(), recordings()
    beside = None if method == "none" else Paired(images, events)
    example = normalise(events.train.images[:8], events).double()
    shown = None if beside is None else beside.pictures(torch.arange(8)).double()
    student = convert(network("stages", 1), IF(), calibrate=example).double()
    teacher = scattered(Stages().double(), 2).eval()
    terms = {n: build(f"terms.{n}", spec, TERMS) for n, spec in terms_of(method).items()}
    torch.manual_seed(0)
    made = Distiller(
        student, None if method == "none" else teacher, terms=terms, execute=WAYS[way],
        encode=Direct(STEPS, sliding=0.6 if method == "ckd" else 0.0), example=example,
        paired=beside, shown=shown,
    )  # fmt: skip
    batches = Batches(
        events.train, events, BATCH, [Crop(1), EventDrop(unit=10)], 3, shard=(rank(), processes())
    )
    return made.double(), Precise(batches if beside is None else Accompanied(batches, beside))


def trained(case: str, run: Path, stop_after: int | None = None) -> dict[str, Any]:
    """What a training learned, in one go or stopped and begun again."""
    training = Training(
        epochs=2, batch=BATCH // processes(), processes=processes(), optimiser="adamw", clip=1.0,
        learning_rate=1e-2, scaling="none",
    )  # fmt: skip
    more = {"training": training, "run": run, "console": Console(quiet=True)}
    whole, batches = learner(case)
    history = fit(whole, batches, stop_after=stop_after, **more)
    if stop_after is not None:
        whole, batches = learner(case)
        history = fit(whole, batches, resume=True, **more)
    state = {name: value.detach().clone() for name, value in whole.state_dict().items()}
    flat = torch.cat([value.double().flatten() for value in state.values()])
    losses = [[row["loss"], *row["parts"].values()] for row in history]
    return {"state": state, "losses": losses, "each": from_each(flat)}


def work(number: int, count: int, folder: str) -> None:
    """One of several processes; process 0 stores what came out."""
    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo", init_method=f"file://{folder}/meeting", rank=number, world_size=count
    )
    found = {case: trained(case, Path(folder) / f"two {case}") for case in CASES}
    found["resumed"] = trained(CASES[0], Path(folder) / "resumed", stop_after=5)
    if number == 0:
        torch.save(found, Path(folder) / "found.pt")
    dist.destroy_process_group()  # its threads must not outlive the interpreter
