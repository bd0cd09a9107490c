"""What one process and several are compared on: gradients of every executor and method."""

from __future__ import annotations

import functools
import os
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.multiprocessing
from rich.console import Console
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from small import images, network, student
from spikelet.data import Dataset, Split
from spikelet.distill import Distiller
from spikelet.dual import Dual, fold, unfold
from spikelet.encode import Direct
from spikelet.errors import UserError
from spikelet.execute import ann, bptt, rate
from spikelet.graph import capture
from spikelet.measure import accuracy
from spikelet.processes import from_each, processes, rank
from spikelet.quantise import quantised
from spikelet.rate import normalise
from spikelet.recipe import METHODS, TERMS, Training, build, default_recipe, terms_of
from spikelet.shared import sharing
from spikelet.terms import Affine, CrossEntropy, Feature, Hybrid, Relation, Term
from spikelet.train import fit
from spikelet.train.gradients import gradients
from spikelet.train.job import teach
from spikelet.train.rows import evaluation

STEPS, GLOBAL = 4, 11  # images of all processes: one of two has six, the other five
EXECUTES: Mapping[str, Callable] = {
    "ann": ann,
    "rate": rate,
    "rate-windows": functools.partial(rate, windows=2),
    "rate-all-windows": functools.partial(rate, windows=STEPS),
    "bptt": bptt,
    "quantised": quantised,
}
UNROLLED = ("twkd", "distilling-spikes")
LABELS = torch.arange(GLOBAL) % 3


class Spread(CrossEntropy):
    """A coupled term of a user's own: the variance of the logits over the batch."""

    coupled = True

    def __call__(self, own: nn.Module, step) -> Tensor:
        z = step.student.mean_logits
        return (z - z.mean(0)).square().mean() + step.labels.double().var() * 1e-3


def terms(method: str) -> dict[str, Term]:
    return {n: build(f"terms.{n}", spec, TERMS) for n, spec in terms_of(method).items()}


def distiller(
    execute: Callable, terms: Mapping[str, Term], spiking: bool = False, joint: bool = False
) -> Distiller:
    """A small student of another seed than its teacher, float64, moving or still images."""
    net = capture(network("stages", 1)) if execute is ann else student("stages", seed=1)
    taught: nn.Module = network("stages", 2)
    if spiking:
        taught = student("stages", seed=2)
    torch.manual_seed(0)
    made = Distiller(
        net, taught, terms=dict(terms), execute=execute, joint=joint,
        encode=Direct(1 if execute is ann else STEPS), example=images("stages", 16),
    )  # fmt: skip
    return made.double().train()


def cases() -> dict[str, Callable[[], dict[str, Tensor]]]:
    """Every executor with a plain loss, every method, every coupled form, by name."""
    table: dict[str, Callable[[], dict[str, Tensor]]] = {}

    def case(name: str, execute: Callable, losses: Mapping[str, Term], **more: bool) -> None:
        accumulate = more.pop("accumulate", 1)
        table[name] = lambda: outcome(distiller(execute, losses, **more), int(accumulate))

    for name, execute in EXECUTES.items():
        case(f"execute {name}", execute, terms("logits"))
    for name in METHODS:
        way = bptt if name in UNROLLED else quantised if name == "qann" else rate
        case(f"method {name}", way, terms(name), spiking=name == "distilling-spikes")
    for form in ("cosine", "centred", "similarity-preserving", "distance", "angle"):
        case(f"relation {form}", rate, {"relation": Relation(form=form, on="all")})
    case("relation in time", bptt, {"relation": Relation(keep_time=True, on=["relu"])})
    case("affine energy", rate, {"affine": Affine(on="all", normalise="energy")})
    case("feature strict", rate, {"feature": Feature(form="strict", on=["relu"])})
    mapped = Hybrid(on="all", mapping="conv-norm-relu")
    case("hybrid, norms of its own", rate, {"hybrid": mapped})
    case("hybrid, sampled", rate, {"hybrid": Hybrid(on="all", sample=True)})
    case("joint", rate, terms("logits"), joint=True)
    case("accumulated", rate, terms("hybrid"), accumulate=2)
    case("of a user", rate, {"spread": Spread()})
    table["accuracy"] = counted
    table["waiting norm"] = waiting_norm
    table["plain model"] = plain_model
    return table


def mine(values: Tensor) -> Tensor:
    """What this process sees of a batch."""
    return values[rank() :: processes()]


def outcome(whole: nn.Module, accumulate: int = 1, share: bool = True) -> dict[str, Tensor]:
    """Loss, parts, gradients and buffers after one batch of all processes."""
    x, y = images("stages", GLOBAL, 5), LABELS
    if accumulate > 1 and processes() == 1:  # the parts that two processes take together
        order = [i for part in parted(accumulate) for i in part]
        return by_hand(whole, [x[order], y[order]], [len(p) for p in parted(accumulate)])
    generator = torch.Generator().manual_seed(3)
    with sharing(whole) if share else nullcontext():
        found = gradients(
            whole, mine(x), mine(y), progress=0.3, generator=generator, accumulate=accumulate
        )
    loss = {"loss": found.loss, **{f"part {k}": v for k, v in found.parts.items()}}
    return {**loss, "images": torch.as_tensor(found.images).double(), **left(whole)}


def left(whole: nn.Module) -> dict[str, Tensor]:
    """Gradients and buffers."""
    found = {f"gradient {n}": p.grad for n, p in whole.named_parameters() if p.grad is not None}
    return found | {f"buffer {n}": b.detach().clone().double() for n, b in whole.named_buffers()}


def parted(accumulate: int) -> list[list[int]]:
    """The images that two processes take together in each part."""
    each = [torch.arange(GLOBAL)[r::2].tensor_split(accumulate) for r in range(2)]
    return [[*a.tolist(), *b.tolist()] for a, b in zip(*each, strict=True)]


def by_hand(whole: nn.Module, batch: list[Tensor], sizes: list[int]) -> dict[str, Tensor]:
    """One process, the parts one after the other, their losses weighted by hand."""
    total: Tensor = torch.zeros((), dtype=torch.float64)
    found: dict[str, Tensor] = {}
    for x, y in zip(*(values.split(sizes) for values in batch), strict=True):
        loss, parts = whole(x, y, progress=0.3, generator=torch.Generator().manual_seed(3))
        total = total + loss * len(x) / GLOBAL
        for name, value in parts.items():
            found[f"part {name}"] = found.get(f"part {name}", 0.0) + value * len(x) / GLOBAL
    total.backward()
    many = {"images": torch.tensor(float(GLOBAL), dtype=torch.float64)}
    return {"loss": total.detach(), **found, **many, **left(whole)}


def waiting_norm() -> dict[str, Tensor]:
    """The norm that waits for the neuron behind it, as compiled neurons have it."""
    found: dict[str, Tensor] = {}
    for steps in (1, STEPS):
        torch.manual_seed(4)
        net = nn.Sequential(nn.BatchNorm2d(3)).double().train()
        whole = torch.randn(steps, GLOBAL, 3, 4, 4, dtype=torch.float64) + 5
        weights = torch.randn(GLOBAL, 3, 4, 4, dtype=torch.float64)
        values = mine(whole.transpose(0, 1)).transpose(0, 1).contiguous()
        mean = values.mean(0).requires_grad_()
        with sharing(net):
            norm = net[0]
            assert isinstance(norm, _BatchNorm)
            dual = normalise(norm, Dual(fold(values), mean, steps), STEPS, wait=True)
            (dual.mean * mine(weights)).sum().backward()
        out = unfold(dual.settled().spikes, steps)
        for name, value in (("value", out.transpose(0, 1)), ("slope", mean.grad)):
            found[f"{name} {steps}"] = together(value)
        for name, parameter in net.named_parameters():
            gradient = parameter.grad.clone()
            if processes() > 1:
                dist.all_reduce(gradient)
            found[f"{name} {steps}"] = gradient
        found |= {f"{name} {steps}": b.double() for name, b in net.named_buffers()}
    return found


def together(value: Tensor) -> Tensor:
    """The images of all processes in their order."""
    if processes() == 1:
        return value.detach()
    parts: list[Tensor | None] = [None] * processes()
    dist.all_gather_object(parts, value.detach())
    found = value.new_empty(GLOBAL, *value.shape[1:])
    for number, part in enumerate(parts):
        found[number :: processes()] = part
    return found


def counted() -> dict[str, Tensor]:
    """How many of few and of more images are answered rightly: whole numbers, so exactly alike."""
    found, shape = {}, images("stages", 1).shape[1:]
    draw = torch.Generator().manual_seed(8)
    net = network("stages", 1).float().eval()
    for images_of_all in (1, GLOBAL, 600):
        pixels = torch.randint(0, 256, (images_of_all, *shape), generator=draw, dtype=torch.uint8)
        split = Split(pixels, torch.arange(images_of_all) % 3)
        data = Dataset("noise", split, None, split, ("a", "b", "c"), (0.5,) * 2, (0.3,) * 2, "", {})
        value = accuracy(net, evaluation(split, data, torch.device("cpu")))
        found[f"accuracy of {images_of_all}"] = torch.tensor(value, dtype=torch.float64)
    return found


def plain_model() -> dict[str, Tensor]:
    """An ANN that nobody traced, with norms of vectors and of maps."""
    torch.manual_seed(5)
    net = nn.Sequential(
        nn.Conv2d(2, 4, 3), nn.BatchNorm2d(4), nn.ReLU(inplace=True), nn.Flatten(),
        nn.Linear(144, 6), nn.BatchNorm1d(6, affine=False), nn.ReLU(),
        nn.BatchNorm1d(6, momentum=None), nn.Linear(6, 3),
    ).double()  # fmt: skip
    made = Distiller(
        net, terms={"ce": CrossEntropy()}, execute=ann, encode=Direct(1),
        example=images("stages", 4),
    )  # fmt: skip
    return outcome(made.train())


class Epochs:
    """Five batches an epoch, each process with its share; the last one is uneven."""

    def __len__(self) -> int:
        return 5

    def epoch(self, epoch: int, skip: int = 0) -> Iterator[tuple[Tensor, Tensor]]:
        x = images("stages", 4 * 8 + 5, 9)
        order = torch.randperm(len(x), generator=torch.Generator().manual_seed(epoch)).split(8)
        for chosen in order[skip:]:
            yield mine(x[chosen]), mine(chosen % 3)


def training(**more: Any) -> Training:
    return Training(
        epochs=3, batch=8 // processes(), processes=processes(), optimiser="adamw", clip=1.0,
        learning_rate=1e-2, scaling="none", ema=0.9, **more,
    )  # fmt: skip


def learner(dropout: bool) -> Distiller:
    """What is trained: with dropout its answer depends on torch's own generators too."""
    name, sampled = ("dropout", {}) if dropout else ("stages", {"hybrid": Hybrid(sample=True)})
    torch.manual_seed(0)
    made = Distiller(
        student(name, seed=1), network(name, 2), terms={**terms("logits"), **sampled},
        encode=Direct(STEPS), example=images(name, 16),
    )  # fmt: skip
    return made.double()


def trained(run: Path, dropout: bool = False, stop_after: int | None = None) -> dict[str, Any]:
    """A whole training, in one go or stopped and begun again: what it learned and told."""
    whole, console = learner(dropout), Console(quiet=True)
    more = {"training": training(), "run": run, "console": console, "evaluate": lambda: {"n": 1}}
    rows = fit(whole, Epochs(), stop_after=stop_after, **more)
    if stop_after is not None:
        whole = learner(dropout)
        rows = fit(whole, Epochs(), resume=True, **more)
    state = {name: value.detach().clone() for name, value in whole.state_dict().items()}
    flat = torch.cat([value.double().flatten() for value in state.values()])
    return {"state": state, "losses": [row["loss"] for row in rows], "each": from_each(flat)}


def deserted(run: Path, steps: int) -> str:
    """A training of which process 1 takes its leave; what process 0 says."""
    if rank():
        fit(learner(True), Epochs(), training=training(), run=run, stop_after=steps,
            console=Console(quiet=True))  # fmt: skip
        return ""
    try:
        fit(learner(True), Epochs(), training=training(), run=run, console=Console(quiet=True))
    except UserError as error:
        return str(error)
    return "it went on alone"


def taught(run: Path) -> list[dict[str, Any]]:
    """The rows of a whole run in a folder, of one process or of several."""
    recipe = default_recipe(
        "teach", {"kind": "digits", "train": 117, "validation": 21}, seed=3,
        model={"kind": "small-cnn", "width": 2},
        training=Training(epochs=2, batch=24 // processes(), processes=processes(), scaling="none"),
    )  # fmt: skip
    return teach(recipe, run, console=Console(quiet=True), device="cpu")["rows"]


def work(number: int, count: int, folder: str) -> None:
    """One of several processes: computes every case; process 0 stores what came out."""
    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo", init_method=f"file://{folder}/meeting", rank=number, world_size=count
    )
    place = Path(folder)
    found: dict[str, Any] = {name: case() for name, case in cases().items()}
    found["unshared"] = outcome(distiller(rate, terms("logits")), share=False)
    found["trained"] = trained(place / "trained")
    found["dropped"] = trained(place / "dropped", dropout=True)
    found["resumed"] = trained(place / "resumed", dropout=True, stop_after=7)
    found["rows"] = taught(place / "taught")
    fit(learner(True), Epochs(), training=training(), run=place / "stopped", stop_after=7,
        console=Console(quiet=True))  # fmt: skip
    found["deserted"] = deserted(place / "deserted", 7)  # the last: process 1 ends
    if number == 0:
        torch.save(found, place / "found.pt")


if __name__ == "__main__":
    torch.optim.AdamW([torch.zeros(1)])  # what this imports, both would
    how = "fork" if hasattr(os, "fork") else "spawn"
    torch.multiprocessing.start_processes(work, (2, sys.argv[1]), 2, start_method=how)
