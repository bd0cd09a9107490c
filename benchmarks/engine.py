"""One training step of the ANN, `rate` and `bptt`: time, and bytes kept for the backward pass.

    python benchmarks/engine.py --model resnet18 --width 64 --batch 16 --steps 2 4 8 16

Ratios are within this process; run it with nothing else on the machine. Prints a table and, with
--out, writes the rows as JSON with versions, threads and processor.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import time
from collections.abc import Callable
from datetime import UTC, datetime
from functools import partial
from pathlib import Path

import torch

from spikelet.convert import convert
from spikelet.distill import Distiller
from spikelet.encode import Direct
from spikelet.execute import ann, bptt, rate
from spikelet.models import build_model
from spikelet.neuron import IF
from spikelet.terms import CrossEntropy
from spikelet.train.run import env


def saved_bytes(run: Callable[[], torch.Tensor]) -> int:
    """Bytes of the distinct storages that autograd keeps for the backward pass of one forward."""
    kept: dict[int, int] = {}

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        loss = run()
    loss.backward()
    return sum(kept.values())


def timed(run: Callable[[], torch.Tensor], repeats: int) -> tuple[list[float], list[float]]:
    """Seconds of forward plus backward, and of the forward alone, after two warm-up steps."""
    whole, forward = [], []
    for index in range(repeats + 2):
        start = time.perf_counter()
        loss = run()
        middle = time.perf_counter()
        loss.backward()
        if index > 1:
            forward.append(middle - start)
            whole.append(time.perf_counter() - start)
    return whole, forward


def rows(arguments: argparse.Namespace) -> list[dict[str, object]]:
    torch.manual_seed(0)
    images = torch.randn(arguments.batch, 3, 32, 32)
    labels = torch.randint(10, (arguments.batch,))
    model = build_model(
        arguments.model, classes=10, channels=3, size=32, width=arguments.width, seed=0
    )
    engines = {"rate": rate, "rate-fused": partial(rate, fuse=True), "bptt": bptt}
    cases = [("ann", 1, ann)]
    cases += [(n, t, e) for t in arguments.steps for n, e in engines.items()]
    found: list[dict[str, object]] = []
    for precision in arguments.precision:
        base = ahead = 0.0
        for name, steps, execute in cases:
            net = model if name == "ann" else convert(model, IF(), steps=steps, calibrate=images)
            distiller = Distiller(
                net,
                terms={"ce": CrossEntropy()},
                execute=execute,
                encode=Direct(steps),
                example=images[:2],
            )
            distiller.train()

            def run(distiller: Distiller = distiller, precision: str = precision) -> torch.Tensor:
                with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16"):
                    return distiller(images, labels)[0]

            kept = saved_bytes(run)
            whole, forward = timed(run, arguments.repeats)
            median = statistics.median(whole)
            if name == "ann":
                base, ahead = median, statistics.median(forward)
            found.append(
                {
                    "engine": name,
                    "precision": precision,
                    "model": arguments.model,
                    "width": arguments.width,
                    "steps": steps,
                    "batch": arguments.batch,
                    "seconds_min": min(whole),
                    "seconds_median": median,
                    "seconds_forward": statistics.median(forward),
                    "ratio_to_ann": median / base,
                    "ratio_to_floor": median / (base + (steps - 1) * ahead),
                    "saved_mib": kept / 2**20,
                }
            )
            row = found[-1]
            print(
                f"{name:11s} {precision} T={steps:<2d} {median:7.3f} s  "
                f"{row['ratio_to_ann']:5.2f} x ANN  {row['ratio_to_floor']:5.2f} x floor  "
                f"{row['saved_mib']:8.1f} MiB kept",
                flush=True,
            )
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="resnet18")
    parser.add_argument("--width", type=int, default=64)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--steps", type=int, nargs="+", default=[2, 4, 8, 16])
    parser.add_argument("--precision", nargs="+", default=["fp32"], choices=["fp32", "bf16"])
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    found = rows(arguments)
    if arguments.out is not None:
        details = {"date": f"{datetime.now(UTC):%Y-%m-%d}", "processor": platform.processor()}
        content = {**details, "env": env(), "rows": found}
        arguments.out.write_text(json.dumps(content, indent=2) + "\n")


if __name__ == "__main__":
    main()
