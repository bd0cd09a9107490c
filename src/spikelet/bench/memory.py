"""Memory of one training step: what autograd keeps, the peak, and the largest tensors alive."""

from __future__ import annotations

import gc
import itertools
import statistics
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from spikelet.bench.foreign import forget
from spikelet.bench.setting import Case, Setting
from spikelet.bench.subject import CHANNELS, Subject, model_of, subject
from spikelet.heap import forget_peak

MIB = 2**20
WARM_UP = 2
STATUS = Path("/proc/self/status")
ITEM_SIZE = {"fp32": 4, "bf16": 2}


def saved_bytes(run: Callable[[], Tensor]) -> int:
    """Bytes of the distinct storages that autograd keeps for the backward pass of one forward."""
    kept: dict[int, int] = {}

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        loss = run()
    loss.backward()
    return sum(kept.values())


def measure(setting: Setting, case: Case) -> dict[str, Any]:
    """Memory of a case in this process, which on a CPU should be used for nothing else.

    `peak_mib` is the most that one forward and backward take beyond what is held before them (the
    network, its images, the libraries): of the device's allocator on a GPU, of this process's
    resident size on a CPU, None where the system does not tell it. Gradients count, and so do what
    libraries need in between and the gaps that freed blocks leave. `tensors_mib` is the same of
    tensors alone, on a CPU; `live_largest` counts the largest of them.
    """
    made = subject(setting, case)
    kept = [saved_bytes(made.loss) for _ in range(WARM_UP)][-1]
    peaks = [peak_bytes(made) for _ in range(setting.repeats)]
    known = [peak for peak in peaks if peak is not None]
    row = {
        "saved_mib": kept / MIB,
        "peak_mib": statistics.median(known) / MIB if known else None,
    }
    changes = allocations(made) if made.device.type == "cpu" else []
    if not changes:
        return row
    return row | {
        "tensors_mib": max(itertools.accumulate(changes)) / MIB,
        "live_largest": live_largest(changes, case, largest_layer(setting)),
    }


def peak_bytes(made: Subject) -> int | None:
    """The most that one forward and backward take beyond what is held before them."""
    _clear(made)
    if made.device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(made.device)
        before = torch.cuda.memory_allocated(made.device)
        made.loss().backward()
        return torch.cuda.max_memory_allocated(made.device) - before
    if not forget_peak():  # from now on the kernel's high-water mark is that of this step
        return None
    begin = _high_water()
    made.loss().backward()
    return _high_water() - begin


def _high_water() -> int:
    """Bytes: the largest resident size of this process since it was reset (Linux)."""
    lines = STATUS.read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM")) * 1024


def _clear(made: Subject) -> None:
    """Drops what the step before left behind."""
    made.net.zero_grad(set_to_none=True)
    forget(made.net)
    gc.collect()


def allocations(made: Subject) -> list[int]:
    """Bytes of each block that torch's profiler sees taken (or, negative, freed) in one step.

    Empty with a version of torch whose profiler keeps its events elsewhere.
    """
    _clear(made)
    with torch.profiler.profile(
        activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True
    ) as profile:
        made.loss().backward()
    recorded = getattr(getattr(profile, "profiler", None), "kineto_results", None)
    found = sorted(
        (event.start_ns(), place, event.nbytes())
        for place, event in enumerate(recorded.events() if recorded is not None else ())
        if event.name() == "[memory]"
    )
    return [size for _, _, size in found]


def live_largest(changes: Sequence[int], case: Case, numbers: int) -> int | None:
    """How many tensors of the largest layer, `numbers` at each step, are alive at once over T.

    A block counts if it holds at least T times as many numbers, in the case's precision. None
    where a mean over time in fp32 would be as large.
    """
    item = ITEM_SIZE[case.precision]
    if case.steps > 1 and case.steps * item <= ITEM_SIZE["fp32"]:
        return None
    return most_alive(changes, case.steps * item * numbers)


def most_alive(changes: Iterable[int], size: int) -> int:
    """The most blocks of at least `size` bytes at once; a freed block is a negative change."""
    alive = most = 0
    for change in changes:
        if abs(change) >= size:
            alive += 1 if change > 0 else -1
            most = max(most, alive)
    return most


def largest_layer(setting: Setting) -> int:
    """Numbers in the largest output of a module of the ANN for one batch."""
    model, sizes = model_of(setting).eval(), [0]

    def note(_module: nn.Module, _inputs: Any, output: Any) -> None:
        if isinstance(output, Tensor):
            sizes.append(output.numel())

    handles = [module.register_forward_hook(note) for module in model.modules()]
    try:
        with torch.no_grad():
            model(torch.zeros(1, CHANNELS, setting.size, setting.size))
    finally:
        for handle in handles:
            handle.remove()
    return max(sizes) * setting.batch
