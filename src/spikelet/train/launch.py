"""Starting several processes of one training, and joining those that torchrun has started."""

from __future__ import annotations

import logging
import os
import signal
import tempfile
import uuid
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from typing import Any

import torch
import torch.distributed as dist

from spikelet.errors import UserError

MENDABLE, DEFECT = 2, 1
AGREED = (MENDABLE, 130, 143)  # statuses of a process that has told why it ends


@contextmanager
def joined(device: str | None) -> Iterator[None]:
    """This process as one of those that torchrun or `launch` has started: gloo, on GPUs NCCL.

    Args:
        device: "cpu" or "cuda"; by default a GPU where there is one, each process its own.

    Raises:
        UserError: if there are more processes on this machine than GPUs, or they do not meet.
    """
    name = device or ("cuda" if torch.cuda.is_available() else "cpu")
    if name.startswith("cuda"):
        _take_gpu(int(os.environ.get("LOCAL_RANK", 0)))
    if "TORCHELASTIC_RUN_ID" in os.environ:
        with suppress(OSError):
            os.setpgid(0, 0)  # Ctrl-C then comes from the launcher alone, once
    try:
        dist.init_process_group("nccl" if name.startswith("cuda") else "gloo")
    except (RuntimeError, ValueError) as error:
        reason = str(error).splitlines()[0].rstrip(".")
        raise UserError(
            "processes", f"they do not meet ({reason})", "look at MASTER_ADDR and MASTER_PORT"
        ) from error
    yield
    dist.destroy_process_group()


def _take_gpu(local: int) -> None:
    """The GPU of this machine's process of that number."""
    count = torch.cuda.device_count()
    if local >= count:
        raise UserError(
            f"processes = {os.environ.get('LOCAL_WORLD_SIZE', local + 1)}",
            f"this machine has {count} GPU{'s' * (count != 1)}",
            f"start {count} here, or use --device cpu",
        )
    torch.cuda.set_device(local)


def launch(
    work: Callable[..., None], arguments: tuple[Any, ...], count: int, tell: Callable[[str], None]
) -> int:
    """Runs `work(*arguments)` in `count` processes on this machine; the exit status.

    This is torch's elastic launcher: if a process ends before its work is done, it ends the others.

    Args:
        work: an importable function, which ends its process with a status by SystemExit.
        arguments: for each process the same.
        count: how many.
        tell: is given a sentence about a process that ended without one of its own.
    """
    from torch.distributed.elastic.multiprocessing import DefaultLogsSpecs, SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch

    with tempfile.TemporaryDirectory() as folder, _surroundings(count):
        config = LaunchConfig(
            min_nodes=1,
            max_nodes=1,
            nproc_per_node=count,
            run_id=uuid.uuid4().hex,
            rdzv_backend="c10d",
            rdzv_endpoint="localhost:0",
            local_addr="localhost",
            max_restarts=0,
            logs_specs=DefaultLogsSpecs(log_dir=folder),
        )
        try:
            elastic_launch(config, work)(*arguments)
        except ChildFailedError as error:
            return _status(error.failures, count, tell)
        except SignalException as stop:
            return 128 + int(stop.sigval)
    return 0


def _status(failures: Mapping[int, Any], count: int, tell: Callable[[str], None]) -> int:
    """The exit status of processes of which some failed: that of the first to do so."""
    number, failure = min(failures.items(), key=lambda item: (item[1].timestamp, item[0]))
    if failure.exitcode in AGREED:
        return int(failure.exitcode)
    if failure.exitcode < 0:
        name = signal.Signals(-failure.exitcode).name
        tell(f"process {number} of {count} (0 is the first) was ended by {name}")
        return MENDABLE
    return DEFECT


@contextmanager
def _surroundings(count: int) -> Iterator[None]:
    """Processes share the cores, where nothing else is said, and the launcher itself is quiet."""
    level, threads = logging.root.manager.disable, os.environ.get("OMP_NUM_THREADS")
    handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    logging.disable(logging.ERROR)
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // count)))
    try:
        yield
    finally:
        logging.disable(level)
        if threads is None:
            del os.environ["OMP_NUM_THREADS"]
        for number, handler in handlers.items():
            signal.signal(number, handler)
