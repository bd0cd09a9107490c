"""One training step on a GPU as a CUDA graph: the ANN, `rate`, SpikingJelly, `bptt`.

    PYTHONPATH=src python benchmarks/gpu_graphed.py --out DIR [--steps 2 4 8 16] [--batch 128]

Forward and backward of one batch are captured once and replayed, so that nothing waits for Python:
what is left is the work of the GPU. The networks are those of `gpu_engine.py`, in bf16 autocast
and channels-last. Rows are written to DIR/gpu-graphed.json as they come.
"""

from __future__ import annotations

import argparse
import json
import statistics
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from gpu_engine import Bench, net_of
from torch import Tensor

WARM_UP, REPLAYS = 4, 20


def captured(bench: Bench, engine: str, steps: int) -> tuple[torch.cuda.CUDAGraph, int]:
    """A graph of one step, and the bytes that it takes beyond what was held before."""
    network, images = bench.network(engine, "bf16", steps), bench.lay_out(bench.images, "bf16")
    parameters = list(net_of(network).train().parameters())

    def step() -> Tensor:
        for parameter in parameters:
            parameter.grad = None
        with torch.autocast("cuda", torch.bfloat16, cache_enabled=False):
            loss = F.cross_entropy(network(images).mean(0).float(), bench.labels)
        loss.backward()
        return loss

    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(WARM_UP):
            step()
    torch.cuda.current_stream().wait_stream(side)
    for parameter in parameters:
        parameter.grad = None
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
    before, graph = torch.cuda.memory_allocated(), torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        step()
    return graph, torch.cuda.max_memory_allocated() - before


def replayed(graph: torch.cuda.CUDAGraph) -> list[float]:
    """Seconds of each replay, by CUDA events."""
    marks = []
    for _ in range(3 + REPLAYS):
        pair = [torch.cuda.Event(enable_timing=True) for _ in range(2)]
        pair[0].record()
        graph.replay()
        pair[1].record()
        marks.append(pair)
    torch.cuda.synchronize()
    return [begin.elapsed_time(end) / 1000 for begin, end in marks[3:]]


def row(bench: Bench, engine: str, steps: int) -> dict[str, Any]:
    graph, peak = captured(bench, engine, steps)
    seconds = replayed(graph)
    common = {"engine": engine, "precision": "bf16", "steps": steps, "n": len(seconds)}
    times = {"seconds_min": min(seconds), "seconds_median": statistics.median(seconds)}
    return {**common, "batch": len(bench.images), **times, "peak_mib": peak / 2**20}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--steps", type=int, nargs="+", default=[2, 4, 8, 16])
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--width", type=int, default=64)
    parser.add_argument("--commit")
    options = parser.parse_args()
    options.device = "cuda"
    options.out.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(0)
    torch.backends.cudnn.benchmark = True
    bench, rows = Bench(options), []
    pairs = [(engine, t) for t in options.steps for engine in ("rate-kernel", "jelly", "bptt")]
    for engine, steps in [("ann", 1), *pairs, ("ann", 1)]:
        try:
            rows.append(row(bench, engine, steps))
        except Exception as error:
            print(f"failed: {engine} T={steps}: {type(error).__name__}: {error}", flush=True)
            continue
        print(rows[-1], flush=True)
        content = json.dumps({**bench.about, "graph": True, "rows": rows}, indent=2)
        (options.out / "gpu-graphed.json").write_text(content + "\n")


if __name__ == "__main__":
    main()
