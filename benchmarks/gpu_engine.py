"""One training step, inference and the scan alone on a GPU: ours, SpikingJelly's, snnTorch's.

    PYTHONPATH=src python benchmarks/gpu_engine.py --out DIR [--quick]

ResNet-18 on random 32x32 images. Every way of training runs the same network in the same process,
between two measurements of the ANN; the others' neurons stand in it with threshold 1 and see the
image T times, as their users feed them. Times are CUDA events around steps that are queued one
after the other, as in training; the medians leave the warm-up out. After every row the rows so far
are written to DIR/gpu-engine.json; an engine that fails says so in one line, the others go on.
"""

from __future__ import annotations

import argparse
import gc
import importlib.metadata
import importlib.util
import json
import platform
import statistics
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from datetime import UTC, datetime
from functools import cached_property, partial
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from spikelet import kernels
from spikelet.bench.foreign import OverTime, implementation, jelly_neuron, snntorch_neuron
from spikelet.bench.memory import saved_bytes
from spikelet.convert import convert
from spikelet.encode import repeat
from spikelet.execute import ann, bptt, rate
from spikelet.models import build_model
from spikelet.neuron import IF
from spikelet.slopes import eligibility

PACKAGES = ("torch", "triton", "spikingjelly", "snntorch", "numpy")
Run = Callable[[], Tensor]


# ---- other people's neurons in our network ----------------------------------------------------


def foreign(model: nn.Module, make: Callable[[], nn.Module], steps: int) -> nn.Module:
    """The network itself with every ReLU replaced by a neuron of threshold 1."""
    for path, module in list(model.named_modules()):
        if isinstance(module, nn.ReLU):
            model.set_submodule(path, OverTime(make(), steps))
    return model


def run_foreign(net: nn.Module, images: Tensor, steps: int) -> Tensor:
    """Logits "T B K" of a network of other people's neurons, from rest."""
    if importlib.util.find_spec("spikingjelly") is not None:
        from spikingjelly.activation_based import functional

        functional.reset_net(net)
    # repeated in memory: a reshape of an expanded view would lose the channels-last layout
    x = images.repeat(steps, *[1] * (images.ndim - 1))
    logits = net(x)
    return logits.reshape(steps, -1, logits.shape[-1])


def check_jelly(steps: int = 4) -> str:
    """On the CPU, the largest difference of training logits "T B K" between SpikingJelly and us."""
    images = torch.randn(8, 3, 16, 16, generator=torch.Generator().manual_seed(1))
    build = partial(build_model, "resnet18", classes=10, channels=3, size=16, width=8, seed=0)
    theirs = foreign(build(), jelly_neuron, steps).train()
    ours = convert(build(), IF(), steps=steps).train()
    with torch.no_grad():
        a, b = run_foreign(theirs, images, steps), bptt(ours, repeat(images, steps)).logits
    spread = float(b.std())
    return f"{float((a - b).abs().max()):.2e} (standard deviation of the logits {spread:.2e})"


# ---- what is measured -------------------------------------------------------------------------


@contextmanager
def without_kernel() -> Iterator[None]:
    """Makes `fuse` use `torch.compile`, also where our kernel could be used."""
    usable = kernels.usable
    kernels.usable = lambda *_: False
    try:
        yield
    finally:
        kernels.usable = usable


@contextmanager
def counted() -> Iterator[list[int]]:
    """A list that gets one entry for every call of our kernel."""
    scan, calls = kernels.scan, []

    def counting(currents: Tensor, *args: Any, **options: Any) -> Any:
        calls.append(currents.numel())
        return scan(currents, *args, **options)

    kernels.scan = counting
    try:
        yield calls
    finally:
        kernels.scan = scan


class Bench:
    """The settings of one run, its networks and the rows found so far."""

    def __init__(self, options: argparse.Namespace) -> None:
        self.options, self.device = options, torch.device(options.device)
        self.begin = time.perf_counter()
        self.difference: str | None = None
        self.rows: list[dict[str, Any]] = []
        self.failed: list[str] = []
        self.cuda = self.device.type == "cuda"
        self.images = torch.randn(options.batch, 3, 32, 32).to(self.device)
        self.labels = torch.randint(10, (options.batch,)).to(self.device)
        self.students: dict[tuple[str, int], nn.Module] = {}

    def lay_out(self, x: Any, precision: str) -> Any:
        """Tensors and networks of bf16 runs are channels-last, those of fp32 runs contiguous."""
        last = torch.channels_last if precision == "bf16" else torch.contiguous_format
        return x.to(memory_format=last)

    def model(self, precision: str) -> nn.Module:
        model = build_model(
            "resnet18", classes=10, channels=3, size=32, width=self.options.width, seed=0
        )
        return self.lay_out(model.to(self.device), precision)

    def student(self, precision: str, steps: int) -> nn.Module:
        """One converted network for all of our ways to train it."""
        key = (precision, steps)
        if key not in self.students:
            self.students.clear()
            model = self.model(precision)
            images = self.images[: min(64, len(self.images))]
            self.students[key] = convert(model, IF(), steps=steps, calibrate=images)
        return self.students[key]

    def network(self, engine: str, precision: str, steps: int) -> Callable[[Tensor], Tensor]:
        """Images to logits "T B K"; parameters are those of the function's `net`."""
        if engine == "ann":
            net = self.model(precision)
            return partial(run_ann, net)
        if engine in ("jelly", "snntorch"):
            make = jelly_neuron if engine == "jelly" else snntorch_neuron
            net = foreign(self.model(precision), make, steps).to(self.device)
            return partial(run_foreign, net, steps=steps)
        execute = {"bptt": bptt, "rate": rate}.get(engine, partial(rate, fuse=True))
        return partial(run_ours, self.student(precision, steps), execute=execute, steps=steps)

    def autocast(self, precision: str) -> Any:
        return torch.autocast(self.device.type, torch.bfloat16, enabled=precision == "bf16")

    def guarded(self, name: str, measure: Callable[[], dict[str, Any]]) -> None:
        """Takes one row, prints it, writes all; a failure is one line, so is a lack of time."""
        if time.perf_counter() - self.begin > self.options.budget:
            print(f"skipped: {name}, the time is up", flush=True)
            return
        try:
            if self.cuda:
                gc.collect()
                torch.cuda.empty_cache()
                torch.cuda.reset_peak_memory_stats()
            with counted() as calls:
                row = measure()
            self.rows.append(row | ({"kernel_calls": len(calls)} if calls else {}))
            print(line(self.rows[-1]), flush=True)
        except Exception as error:
            reason = f"{type(error).__name__}: {error}".splitlines()[0][:300]
            self.failed.append(f"{name}: {reason}")
            print(f"failed: {self.failed[-1]}", flush=True)
        self.write()

    def write(self) -> None:
        path = self.options.out / "gpu-engine.json"
        content = {**self.about, "rows": self.rows, "failed": self.failed}
        path.with_suffix(".part").write_text(json.dumps(content, indent=2) + "\n")
        path.with_suffix(".part").replace(path)

    @cached_property
    def about(self) -> dict[str, Any]:
        """Device, versions, commit, date."""
        installed = {d.metadata["Name"]: d.version for d in importlib.metadata.distributions()}
        versions = {name: installed[name] for name in PACKAGES if name in installed}
        commit = subprocess.run(
            ["git", "rev-parse", "HEAD"], capture_output=True, text=True, check=False
        )
        return {
            "date": f"{datetime.now(UTC):%Y-%m-%d}",
            "device": torch.cuda.get_device_name() if self.cuda else platform.processor(),
            "python": platform.python_version(),
            "versions": versions,
            "cuda": torch.version.cuda,
            "commit": self.options.commit or commit.stdout.strip() or None,
            "width": self.options.width,
            "difference_from_spikingjelly": self.difference,
        }


def run_ann(net: nn.Module, images: Tensor) -> Tensor:
    return ann(net, images.unsqueeze(0)).logits


def run_ours(net: nn.Module, images: Tensor, execute: Any, steps: int) -> Tensor:
    return execute(net, repeat(images, steps)).logits


def net_of(network: Any) -> nn.Module:
    return network.args[0]


class Clock:
    """Seconds between marks: CUDA events, or the processor's clock."""

    def __init__(self, cuda: bool) -> None:
        self.cuda = cuda

    def mark(self) -> Any:
        if not self.cuda:
            return time.perf_counter()
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event

    def wait(self) -> None:
        if self.cuda:
            torch.cuda.synchronize()

    def between(self, a: Any, b: Any) -> float:
        return a.elapsed_time(b) / 1000 if self.cuda else b - a

    def times(self, step: Callable[[], list[Any]], repeats: int, limit: float) -> list[list[float]]:
        """Intervals between the marks of each step; fewer than `repeats` steps after `limit` s."""
        marks, begin = [], time.perf_counter()
        for index in range(repeats):
            marks.append(step())
            if time.perf_counter() - begin > limit and index >= 2:
                break
        self.wait()
        return [[self.between(*pair) for pair in pairwise(m)] for m in marks]


def training(bench: Bench, engine: str, precision: str, steps: int) -> dict[str, Any]:
    """Forward and backward of one batch: seconds, and memory."""
    network, clock = bench.network(engine, precision, steps), Clock(bench.cuda)
    net = net_of(network).train()
    images = bench.lay_out(bench.images, precision)

    def forward() -> Tensor:
        with bench.autocast(precision):
            return F.cross_entropy(network(images).mean(0).float(), bench.labels)

    def step() -> list[Any]:
        net.zero_grad(set_to_none=True)
        marks = [clock.mark()]
        loss = forward()
        marks.append(clock.mark())
        loss.backward()
        return [*marks, clock.mark()]

    clock.times(step, bench.options.warmup, limit=60)
    if bench.cuda:
        torch.cuda.reset_peak_memory_stats()
    measured = clock.times(step, bench.options.repeats, limit=bench.options.limit)
    peak = torch.cuda.max_memory_allocated() if bench.cuda else None
    kept = saved_bytes(forward)
    whole, ahead = [sum(m) for m in measured], [m[0] for m in measured]
    row = named("training", bench, engine, precision, steps)
    row |= {
        "seconds_min": min(whole),
        "seconds_median": statistics.median(whole),
        "seconds_forward": statistics.median(ahead),
        "n": len(whole),
        "images_per_second": len(images) / statistics.median(whole),
        "saved_mib": kept / 2**20,
        "peak_mib": peak / 2**20 if peak is not None else None,
    }
    return row | ratios(bench.rows, row)


def ratios(rows: list[dict[str, Any]], row: dict[str, Any]) -> dict[str, Any]:
    """A step relative to the first ANN's, and to T of its forwards with one of its backwards."""
    same = [
        r for r in [*rows, row]
        if (r["kind"], r["engine"], r["precision"]) == ("training", "ann", row["precision"])
    ]  # fmt: skip
    if not same:
        return {"ratio_to_ann": None, "ratio_to_floor": None}
    base, ahead = same[0]["seconds_median"], same[0]["seconds_forward"]
    seconds, steps = row["seconds_median"], row["steps"]
    floor = base + (steps - 1) * ahead
    return {"ratio_to_ann": seconds / base, "ratio_to_floor": seconds / floor}


def inference(bench: Bench, engine: str, precision: str, steps: int) -> dict[str, Any]:
    """Images per second in eval mode without gradients."""
    network, clock = bench.network(engine, precision, steps), Clock(bench.cuda)
    net_of(network).eval()
    images = bench.lay_out(bench.images, precision)

    def step() -> list[Any]:
        before = clock.mark()
        with torch.no_grad(), bench.autocast(precision):
            network(images)
        return [before, clock.mark()]

    clock.times(step, bench.options.warmup, limit=60)
    seconds = [m[0] for m in clock.times(step, bench.options.repeats, bench.options.limit)]
    row = named("inference", bench, engine, precision, steps)
    median = statistics.median(seconds)
    more = {"seconds_min": min(seconds), "seconds_median": median, "n": len(seconds)}
    return row | more | {"images_per_second": len(images) / median}


def named(kind: str, bench: Bench, engine: str, precision: str, steps: int) -> dict[str, Any]:
    row = {"kind": kind, "engine": engine, "precision": precision, "model": "resnet18"}
    layout = "channels-last" if precision == "bf16" else "contiguous"
    row |= {"steps": steps, "batch": len(bench.images), "layout": layout}
    if engine == "jelly" and bench.cuda:
        row["implementation"] = implementation(bench.device)
    return row


def scan_alone(
    bench: Bench, engine: str, precision: str, steps: int, last: bool, **more: Any
) -> dict[str, Any]:
    """The scan of stage 1's currents: bytes it must read and write per second, and a copy's."""
    dtype = torch.bfloat16 if precision == "bf16" else torch.float32
    batch, width = bench.options.batch, bench.options.width
    x = torch.randn(steps, batch, width, 32, 32, device=bench.device).to(dtype)
    if last:
        x = x.movedim(2, -1).contiguous().movedim(-1, 2)
    theta = torch.rand(width, device=bench.device) + 0.5
    neuron, start, target = IF(), theta / 2, torch.empty_like(x)
    rest = {"leak": 1.0, "gain": 1.0, "rest": 0.0}
    kind = {"hard": False, "detached": False, "signed": False}

    def run() -> Any:
        if engine == "copy":
            return target.copy_(x)
        if engine == "eager":
            folded = x.reshape(steps, batch, width, -1).float()
            column, first = theta.reshape(-1, 1), start.reshape(-1, 1)
            slope_of = neuron.surrogate.slope
            run = eligibility(folded, column, first, steps, **rest, slope_of=slope_of, **kind)
            return run[:2]
        surrogate = neuron.surrogate
        return kernels.scan(x, theta, start, steps, **rest, surrogate=surrogate, **kind, **more)

    clock = Clock(bench.cuda)

    def step() -> list[Any]:
        before = clock.mark()
        run()
        return [before, clock.mark()]

    clock.times(step, 3, limit=10)
    seconds = statistics.median(m[0] for m in clock.times(step, 50, limit=0.5))
    size, one = x.numel() * x.element_size(), x[0].numel()
    means = one * (x.element_size() + 4 * more.get("need_slope", True))
    moved = 2 * size + (0 if engine == "copy" else means)
    return {
        "kind": "scan", "engine": engine, "precision": precision, "steps": steps, "batch": batch,
        "layout": "channels-last" if last else "contiguous", **more,
        "seconds_median": seconds, "gigabytes_per_second": moved / seconds / 1e9,
    }  # fmt: skip


def line(row: dict[str, Any]) -> str:
    """One row for people."""
    skip = {"kind", "engine", "precision", "model", "steps", "batch"}
    words = [f"{row['kind']:9s} {row['engine']:12s} {row['precision']} T={row['steps']:<2d}"]
    for name, value in row.items():
        if name not in skip and value is not None:
            words.append(f"{name}={value:.4g}" if isinstance(value, float) else f"{name}={value}")
    return " ".join(words)


# ---- the plan ---------------------------------------------------------------------------------


def measure_scans(bench: Bench) -> None:
    quick = bench.options.quick
    cases = [("bf16", 4, True), ("bf16", 4, False)]
    cases += [] if quick else [("fp32", 4, False), ("bf16", 2, True), ("bf16", 16, True)]
    for precision, steps, last in cases:
        for engine in ("copy", "kernel", "eager"):
            one = partial(scan_alone, bench, engine, precision, steps, last)
            bench.guarded(f"scan {engine}", one)
    tiles = [(512, 4), (1024, 2), (1024, 4), (1024, 8), (2048, 4), (2048, 8), (4096, 8)]
    for tile, warps in [] if quick else tiles:
        for last in (True, False):
            more = {"tile": tile, "warps": warps}
            one = partial(scan_alone, bench, "kernel", "bf16", 4, last, **more)
            bench.guarded(f"scan tile {tile} warps {warps}", one)
    one = partial(scan_alone, bench, "kernel", "bf16", 4, True, need_slope=False)
    bench.guarded("scan without slope", one)


def measure_engines(bench: Bench, precision: str, steps: list[int]) -> None:
    """Training and inference for each T, between two measurements of the ANN."""
    bench.guarded("ann", partial(training, bench, "ann", precision, 1))
    bench.guarded("ann inference", partial(inference, bench, "ann", precision, 1))
    for t in steps:
        for engine in bench.options.engines:
            if not runs(bench, engine, precision, t):
                continue
            with without_kernel() if engine == "rate-compile" else nullcontext():
                one = partial(training, bench, engine, precision, t)
                bench.guarded(f"{engine} {precision} T={t}", one)
            if engine in ("rate-kernel", "bptt", "jelly"):
                one = partial(inference, bench, engine, precision, t)
                bench.guarded(f"{engine} {precision} T={t}, inference", one)
    bench.students.clear()
    bench.guarded("ann again", partial(training, bench, "ann", precision, 1))


def runs(bench: Bench, engine: str, precision: str, steps: int) -> bool:
    """Whether a row is worth its time; says so where a package is missing."""
    package = {"jelly": "spikingjelly", "snntorch": "snntorch"}.get(engine, "torch")
    if importlib.util.find_spec(package) is None:
        print(f"skipped: {engine}, {package} is not installed", flush=True)
        return False
    slow = engine in ("rate-compile", "snntorch")
    return not (slow and steps != 4 and (bench.options.quick or precision == "fp32" or steps > 8))


def parsed() -> argparse.Namespace:
    engines = ["rate-kernel", "jelly", "rate", "bptt", "snntorch", "rate-compile"]
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--quick", action="store_true", help="under 90 seconds")
    parser.add_argument("--steps", type=int, nargs="+")
    parser.add_argument("--engines", nargs="+", choices=engines, default=engines)
    parser.add_argument("--commit", help="where the copy that runs has no git")
    for name, value in {"width": 64, "batch": 128, "repeats": 12, "warmup": 5}.items():
        parser.add_argument(f"--{name}", type=int, default=value)
    parser.add_argument("--limit", type=float, default=3.0, help="seconds per row, after warm-up")
    parser.add_argument("--budget", type=float, help="seconds after which rows are skipped")
    parser.add_argument("--device", default="cuda", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.device == "cuda" and not torch.cuda.is_available():
        parser.error("this benchmark needs a GPU that torch can use")
    options.steps = options.steps or ([4, 2, 8] if options.quick else [4, 2, 8, 16])
    options.budget = options.budget or (85 if options.quick else 235)
    return options


def main() -> None:
    options = parsed()
    options.out.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(0)
    torch.backends.cudnn.benchmark = True
    torch._dynamo.config.recompile_limit = 64  # one graph for each T and kind of input
    bench = Bench(options)
    try:
        bench.difference = check_jelly()
        print(f"largest difference from SpikingJelly's network: {bench.difference}", flush=True)
    except Exception as error:
        print(f"skipped: SpikingJelly's network ({error})", flush=True)
    measure_scans(bench)
    measure_engines(bench, "bf16", options.steps)
    measure_engines(bench, "fp32", [4] if options.quick else options.steps)
    seconds = time.perf_counter() - bench.begin
    print(f"{seconds:.0f} s in all, {len(bench.failed)} failed", flush=True)


if __name__ == "__main__":
    main()
