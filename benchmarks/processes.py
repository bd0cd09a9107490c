"""What several processes cost and gain: seconds of a training step, one thread each.

    python benchmarks/processes.py --out FILE [--counts 2 4] [--model resnet20 --width 16]

One step is forward, backward, sharing and optimiser of `hybrid` at T steps on random images, the
same number in each process (weak scaling), batch norm in train mode or with fixed statistics. Ways,
one after the other: "alone", one process; "apart", several at a time that share nothing, so that
only memory and caches are; "together", several that share norms and gradients as `fit` does.
Efficiency is the median step alone over that together. A FILE that exists keeps its runs and gets
one more.
"""

from __future__ import annotations

import argparse
import functools
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.multiprocessing

from spikelet.convert import convert
from spikelet.distill import Distiller
from spikelet.encode import Direct
from spikelet.execute import rate
from spikelet.heap import keep_freed_memory
from spikelet.models import build_model
from spikelet.norm import freeze_norms
from spikelet.processes import meet
from spikelet.recipe import TERMS, Training, build, terms_of
from spikelet.report import hardware
from spikelet.shared import sharing
from spikelet.train import env, read_json, write_json
from spikelet.train.gradients import gradients
from spikelet.train.schedule import optimiser

WARM = 2


def learner(options: argparse.Namespace, norm: str) -> Distiller:
    """A converted network and its teacher, calibrated on random images."""
    teacher = build_model(
        options.model, classes=10, channels=3, size=options.size, width=options.width, seed=0
    )
    images = torch.randn(16, 3, options.size, options.size)
    losses = {n: build(f"terms.{n}", spec, TERMS) for n, spec in terms_of("hybrid").items()}
    student = convert(teacher, steps=options.steps, calibrate=images)
    if norm == "frozen":
        freeze_norms(student)
    made = Distiller(
        student, teacher, terms=losses, example=images,
        execute=functools.partial(rate, fuse=options.fuse), encode=Direct(options.steps),
    )  # fmt: skip
    return made.train()


def measured(options: argparse.Namespace, norm: str, shared: bool) -> list[float]:
    """Seconds of each step of this process."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    whole, taken = learner(options, norm), []
    update = optimiser(whole, Training())
    images = torch.randn(options.batch, 3, options.size, options.size)
    labels = torch.arange(options.batch) % 10
    with sharing(whole):
        for _ in range(WARM + options.number):
            if shared:
                meet()
            begin = time.perf_counter()
            gradients(whole, images, labels)
            update.step()
            taken.append(time.perf_counter() - begin)
    return taken[WARM:]


def work(number: int, options: argparse.Namespace, count: int, folder: str) -> None:
    """One process of several: every way in turn; where it takes no part it waits."""
    keep_freed_memory()
    for norm in options.norms:
        taken: dict[str, list[float]] = {}
        if number == 0:
            taken["alone"] = measured(options, norm, False)
        with joined(number, count, f"{folder}/{norm}-apart"):
            meet()
        taken["apart"] = measured(options, norm, False)
        with joined(number, count, f"{folder}/{norm}-together"):
            taken["together"] = measured(options, norm, True)
        write_json(Path(folder) / f"{norm}-{number}.json", taken)


@contextmanager
def joined(number: int, count: int, meeting: str) -> Iterator[None]:
    dist.init_process_group("gloo", init_method=f"file://{meeting}", rank=number, world_size=count)
    yield
    dist.destroy_process_group()


def rows(options: argparse.Namespace) -> list[dict[str, Any]]:
    setting = {k: getattr(options, k) for k in ("model", "width", "size", "batch", "steps", "fuse")}
    found = []
    for count in options.counts:
        with tempfile.TemporaryDirectory() as folder:
            torch.multiprocessing.spawn(work, (options, count, folder), count)
            for norm in options.norms:
                each = [read_json(Path(folder) / f"{norm}-{r}.json") for r in range(count)]
                found += [{**setting, "norm": norm, **row} for row in compared(options, each)]
    return found


def compared(options: argparse.Namespace, each: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """A row for each way: median and minimum over the steps of the slowest process."""
    found, base = [], statistics.median(each[0]["alone"])
    for way in ("alone", "apart", "together"):
        count = 1 if way == "alone" else len(each)
        slowest = max((taken[way] for taken in each[:count]), key=statistics.median)
        median = statistics.median(slowest)
        found.append({
            "way": way, "processes": count, "threads": 1, "n": options.number,
            "seconds_median": round(median, 4), "seconds_min": round(min(slowest), 4),
            "images_per_second": round(count * options.batch / median, 1),
            "efficiency": round(base / median, 3),
        })  # fmt: skip
    return found


def parsed() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--counts", type=int, nargs="+", default=[2])
    parser.add_argument("--norms", nargs="+", default=["train", "frozen"])
    parser.add_argument("--model", default="resnet20")
    parser.add_argument("--width", type=int, default=16)
    parser.add_argument("--size", type=int, default=32)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--steps", type=int, default=4)
    parser.add_argument("--number", type=int, default=9)
    parser.add_argument("--fuse", action="store_true")
    return parser.parse_args()


def main() -> None:
    options = parsed()
    before = read_json(options.out)["runs"] if options.out.exists() else []
    made = {
        "date": datetime.now(UTC).date().isoformat(),
        "machine": hardware(),
        "env": env(),
        "command": " ".join(["python benchmarks/processes.py", *sys.argv[1:]]),
        "rows": rows(options),
    }
    write_json(options.out, {"schema": 1, "runs": [*before, made]})
    for each in made["rows"]:
        print(each)


if __name__ == "__main__":
    main()
