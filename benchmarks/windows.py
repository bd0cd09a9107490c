"""Windowed rates against BPTT: how near the gradient comes, what a step costs (docs/windows.md).

    python benchmarks/windows.py --what fidelity --out FILE [--data fashion-mnist]
    python benchmarks/windows.py --what cost --out FILE

Fidelity: cosine similarity and ratio of norms of the gradient of all parameters, windowed rates to
BPTT, for one training step (cross entropy of the mean logits, batch norm in train mode) on real
images; once for each seed, which draws the initial weights and the batch. A converted start is an
ANN trained here, or one with published weights, calibrated for T; a scratch start is untrained with
threshold 1. Cost: seconds of forward and backward and bytes kept for the backward pass on random
images, all ways in turn in one process. A FILE that exists keeps its runs and gets one more.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from functools import cache, partial
from itertools import product
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from spikelet.bench.memory import saved_bytes
from spikelet.convert import convert, settle_norms
from spikelet.data import Batches, Dataset, normalise
from spikelet.encode import repeat
from spikelet.execute import bptt, rate
from spikelet.measure.accuracy import evaluating
from spikelet.models import build_model
from spikelet.neuron import IF, LIF, Neuron
from spikelet.recipe import DATA, resolve
from spikelet.report import hardware
from spikelet.train import env, read_json, write_json

Row = dict[str, Any]
NEURONS: dict[str, Callable[[], Neuron]] = {
    "if-soft": IF,
    "lif-1.25-soft": partial(LIF, tau=1.25),
    "lif-2-hard": partial(LIF, tau=2.0, reset="hard"),
}
PRECISION = {"fp32": torch.float32, "fp64": torch.float64}
CALIBRATED, SCORED = 256, 500
NOT_SHOWN = {"kind", "data", "batch", "precision", "size", "width", "fused", "n"}


def divisors(steps: int) -> list[int]:
    return [w for w in range(1, steps + 1) if steps % w == 0]


# ---- fidelity ---------------------------------------------------------------------------------


def dataset(options: argparse.Namespace) -> Dataset:
    """The data set, with validation images held out of training as by default."""
    more = {"normalise": options.normalise} if options.normalise else {}
    return resolve("--data", options.data, DATA)(**more)


def fresh(options: argparse.Namespace, name: str, seed: int, weights: Any = None) -> nn.Module:
    data = options.dataset
    kinds = {"classes": len(data.classes), "channels": data.channels, "size": data.size}
    return build_model(name, width=options.width, seed=seed, weights=weights, **kinds)


def teacher(options: argparse.Namespace, name: str, seed: int) -> nn.Module:
    """An ANN of its own for each seed, trained in float32, or the published one, in eval mode."""
    model = fresh(options, name, seed, options.weights)
    if options.weights is None:
        batches = Batches(options.dataset.train, options.dataset, batch=64, seed=seed)
        epochs = max(1, round(options.teach / len(batches)))
        optimiser = torch.optim.AdamW(model.parameters(), lr=4e-3)
        total = epochs * len(batches)
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, 4e-3, total_steps=total)
        for images, labels in (pair for epoch in range(epochs) for pair in batches.epoch(epoch)):
            optimiser.zero_grad()
            F.cross_entropy(model(images), labels).backward()
            optimiser.step()
            schedule.step()
    return model.eval()


def accuracy(options: argparse.Namespace, model: nn.Module) -> float:
    """On the first test images; the model is in eval mode."""
    data = options.dataset
    images, labels = normalise(data.test.images[:SCORED], data), data.test.labels[:SCORED]
    with evaluating(model):
        return float((model(images).argmax(1) == labels).double().mean())


def drawn(options: argparse.Namespace, count: int, seed: int) -> tuple[Tensor, Tensor]:
    """Training images and labels, by the seed."""
    batches = Batches(options.dataset.train, options.dataset, batch=count, seed=1000 + seed)
    return next(batches.epoch())


def student(
    options: argparse.Namespace, source: nn.Module, neuron: str, steps: int, converted: bool
) -> nn.Module:
    """Converted: thresholds, biases and batch norms of the spikes, as at the start of training."""
    if not converted:
        return convert(source, NEURONS[neuron](), steps=steps)
    images, _ = drawn(options, CALIBRATED, -1)
    net = convert(source, NEURONS[neuron](), steps=steps, calibrate=images)
    settle_norms(net.eval(), images, steps)
    return net


def gradient(net: nn.Module, execute: Any, x: Tensor, labels: Tensor) -> list[Tensor]:
    """Of each parameter, flat, by one training step."""
    loss_of(net, x, labels, execute).backward()
    return [p.grad.flatten() for p in net.parameters() if p.grad is not None]


def compared(net: nn.Module, x: Tensor, labels: Tensor) -> dict[int, dict[str, float]]:
    """For each W: cosine and ratio of norms of the gradient to BPTT's, whole and first layer's."""
    exact = gradient(net, bptt, x, labels)
    found = {}
    for windows in divisors(len(x)):
        ours = gradient(net, partial(rate, windows=windows), x, labels)
        whole, reference = torch.cat(ours), torch.cat(exact)
        found[windows] = {
            "cosine": float(F.cosine_similarity(whole, reference, dim=0)),
            "ratio": float(whole.norm() / reference.norm()),
            "cosine_first": float(F.cosine_similarity(ours[0], exact[0], dim=0)),
        }
    return found


def fidelity(options: argparse.Namespace) -> Iterator[Row]:
    """One row for each model, start, neuron, T and W: mean and deviation over the seeds."""
    for name, start in product(options.models, options.starts):
        if start == "converted":
            make = cache(partial(teacher, options, name))
            scores = [accuracy(options, make(seed)) for seed in range(options.seeds)]
        else:
            make, scores = partial(fresh, options, name), []
        shared = {"kind": "fidelity", "data": options.data, "model": name, "start": start}
        shared["teacher_accuracy"] = round(statistics.mean(scores), 4) if scores else None
        for neuron, steps in product(options.neurons, options.steps):
            measured = [
                one_seed(options, make(seed), neuron, steps, start == "converted", seed)
                for seed in range(options.seeds)
            ]
            for windows in divisors(steps):
                row = shared | {"neuron": neuron, "steps": steps, "windows": windows}
                row |= {"batch": options.batch, "precision": options.precision, "n": len(measured)}
                yield row | summary([m[windows] for m in measured])


def one_seed(
    options: argparse.Namespace, source: nn.Module, neuron: str, steps: int, converted: bool,
    seed: int,
) -> dict[int, dict[str, float]]:  # fmt: skip
    net = student(options, source, neuron, steps, converted)
    images, labels = drawn(options, options.batch, seed)
    precise = PRECISION[options.precision]
    return compared(net.to(precise).train(), repeat(images.to(precise), steps), labels)


def summary(values: list[dict[str, float]]) -> dict[str, Any]:
    """Mean and standard deviation of each quantity, None of a single one."""
    found: dict[str, Any] = {}
    for key in values[0]:
        numbers = [v[key] for v in values]
        found[key] = round(statistics.mean(numbers), 5)
        found[f"{key}_std"] = round(statistics.stdev(numbers), 5) if len(numbers) > 1 else None
    return found


# ---- cost -------------------------------------------------------------------------------------


def cost(options: argparse.Namespace) -> Iterator[Row]:
    """One row for BPTT and each W: the median of steps that take turns, relative to the others."""
    for name, steps, neuron in product(options.models, options.steps, options.neurons):
        model = build_model(
            name, classes=10, channels=3, size=options.size, width=options.width, seed=0
        )
        net: Any = convert(model, NEURONS[neuron](), steps=steps).train()
        net = net.to(memory_format=torch.channels_last)
        images = torch.randn(options.batch, 3, options.size, options.size)
        images = images.contiguous(memory_format=torch.channels_last)
        loss = partial(loss_of, net, repeat(images, steps), torch.arange(options.batch) % 10)
        ways: dict[int | None, Any] = {None: partial(bptt, fuse=options.fuse)}
        ways |= {w: partial(rate, windows=w, fuse=options.fuse) for w in divisors(steps)}
        first = {way: timed(loss, execute) for way, execute in ways.items()}
        kept = {way: saved_bytes(partial(loss, execute)) for way, execute in ways.items()}
        rounds = [
            {way: timed(loss, execute) for way, execute in ways.items()}
            for _ in range(options.repeats)
        ]
        median = {way: statistics.median(r[way] for r in rounds) for way in ways}
        for way in ways:
            yield {
                "kind": "cost", "model": name, "width": options.width, "size": options.size,
                "neuron": neuron, "steps": steps, "engine": "rate" if way else "bptt",
                "windows": way, "batch": options.batch, "fused": options.fuse,
                "n": options.repeats, "seconds_first": round(first[way], 3),
                "seconds_median": round(median[way], 4),
                "seconds_min": round(min(r[way] for r in rounds), 4),
                "ratio_to_one_window": round(median[way] / median[1], 3),
                "ratio_to_bptt": round(median[way] / median[None], 3),
                "saved_mib": round(kept[way] / 2**20, 2),
            }  # fmt: skip


def loss_of(net: nn.Module, x: Tensor, labels: Tensor, execute: Any) -> Tensor:
    net.zero_grad(set_to_none=True)
    return F.cross_entropy(execute(net, x).mean_logits, labels)


def timed(loss: Callable[[Any], Tensor], execute: Any) -> float:
    begin = time.perf_counter()
    loss(execute).backward()
    return time.perf_counter() - begin


# ---- the run ----------------------------------------------------------------------------------


def line(row: Row) -> str:
    """One row for people."""
    words = (
        f"{key}={value:.4g}" if isinstance(value, float) else f"{key}={value}"
        for key, value in row.items()
        if key not in NOT_SHOWN and value is not None
    )
    return " ".join(words)


def about(options: argparse.Namespace) -> dict[str, Any]:
    """Date, machine, versions, commit and command."""
    hashes = options.dataset.hashes if options.dataset else {}
    around = env("cpu", hashes)
    if options.commit:
        around["git"] = {"commit": options.commit}
    return {
        "date": f"{datetime.now(UTC):%Y-%m-%d}",
        "machine": hardware(),
        "env": around,
        "command": " ".join(["python benchmarks/windows.py", *shown(sys.argv[1:])]),
    }


def shown(words: list[str]) -> list[str]:
    """The command's words, files by their name alone."""
    return [Path(word).name if "/" in word else word for word in words]


def parsed() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--what", choices=["fidelity", "cost"], required=True)
    parser.add_argument("--out", type=Path, required=True, help="JSON file")
    parser.add_argument("--models", nargs="+", help="default: small-cnn resnet20; cost: resnet20")
    parser.add_argument("--neurons", nargs="+", choices=NEURONS, help="default: all; cost: if-soft")
    parser.add_argument("--steps", type=int, nargs="+", default=[4, 8])
    parser.add_argument("--batch", type=int, help="default: 32; cost: 16")
    parser.add_argument("--width", type=int, default=16)
    parser.add_argument("--threads", type=int, help="of torch")
    parser.add_argument("--commit", help="where the copy that runs has no git")
    group = parser.add_argument_group("fidelity")
    group.add_argument("--data", default="digits", help="in SPIKELET_DATA; digits needs no files")
    group.add_argument("--normalise", help="statistics of CIFAR that the images are fed with")
    group.add_argument("--weights", help="of the teacher; else it is trained here")
    group.add_argument("--teach", type=int, default=400, help="training steps of the teacher")
    group.add_argument("--starts", nargs="+", default=["converted", "scratch"])
    group.add_argument("--seeds", type=int, default=5)
    group.add_argument("--precision", choices=PRECISION, default="fp64")
    group = parser.add_argument_group("cost")
    group.add_argument("--size", type=int, default=32)
    group.add_argument("--repeats", type=int, default=5)
    group.add_argument("--fuse", action=argparse.BooleanOptionalAction, default=True)
    options = parser.parse_args()
    timing = options.what == "cost"
    models, neurons = ["small-cnn", "resnet20"], list(NEURONS)
    options.models = tuple(options.models or (models[1:] if timing else models))
    options.neurons = tuple(options.neurons or (neurons[:1] if timing else neurons))
    options.batch = options.batch or (16 if timing else 32)
    options.steps, options.starts = tuple(options.steps), tuple(options.starts)
    return options


def main() -> None:
    options = parsed()
    options.dataset = dataset(options) if options.what == "fidelity" else None
    torch.set_num_threads(options.threads or torch.get_num_threads())
    torch.manual_seed(0)
    before = read_json(options.out)["runs"] if options.out.exists() else []
    run: dict[str, Any] = about(options) | {"rows": []}
    begin = time.perf_counter()
    for row in fidelity(options) if options.what == "fidelity" else cost(options):
        run["rows"].append(row)
        run["seconds"] = round(time.perf_counter() - begin)
        print(line(row), flush=True)
        write_json(options.out, {"schema": 1, "runs": [*before, run]})


if __name__ == "__main__":
    main()
