"""A run that is killed at random moments and resumed until it is through, each life a fork.

A life ends after some seconds of its own computing, or soon after it has stored something, so that
a busy machine lets it come as far as an idle one. Neither signal can be heard by it.

`python tests/killing.py FOLDER TASK SEED KILLS` prints how many lives were killed with the run
begun and how many checkpoints were damaged; every fourth kill flips a bit in the newest one.
"""

from __future__ import annotations

import dataclasses
import os
import random
import signal
import sys
import time
from pathlib import Path
from typing import Any

import torch
from rich.console import Console

from spikelet.data import Dataset, digits
from spikelet.recipe import Recipe, Training, default_recipe
from spikelet.train.job import distill, teach

LONGEST = 0.15  # seconds that a life computes before it is killed
SOON = 0.02  # seconds from something that it stores to its end
DATA = {"kind": "digits", "train": 120, "validation": 20}


def recipe_of(task: str, folder: Path) -> Recipe:
    """A few dozen steps with a checkpoint after each."""
    training = Training(
        epochs=4, batch=20, optimiser="adamw", learning_rate=2e-3, ema=0.9, checkpoint_minutes=1e-9
    )
    if task == "teach":
        model = {"kind": "small-cnn", "width": 4}
        return default_recipe("teach", DATA, model=model, training=training)
    teacher = {"run": str(folder / "teach")}
    plain = default_recipe("distill", DATA, "logits", teacher=teacher, training=training, steps=2)
    execute = {**plain.execute, "fuse": False}
    return dataclasses.replace(plain, execute=execute, calibrate=32, estimate=40)


def live(task: str, folder: Path, out: Path, dataset: Dataset) -> None:
    """The run from where it stands to its end."""
    torch.manual_seed(0)
    start: Any = teach if task == "teach" else distill
    console = Console(quiet=True)
    start(recipe_of(task, folder), out, resume=True, console=console, device="cpu", dataset=dataset)


def begun(task: str, folder: Path, out: Path, dataset: Dataset, seconds: float = 0.0) -> int:
    """The process of a life; it dies at once when it has computed for some seconds, if any."""
    child = os.fork()
    if child:
        return child
    try:
        signal.setitimer(signal.ITIMER_PROF, seconds)
        live(task, folder, out, dataset)
    except BaseException as error:
        print(f"{type(error).__name__}: {error}", file=sys.stderr, flush=True)
        os._exit(1)
    os._exit(0)


def ended(child: int) -> bool:
    """Whether a life came to its end by itself, once it is over."""
    status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    assert status in (0, -signal.SIGKILL, -signal.SIGPROF), "a life has failed"
    return status == 0


def killed_after_a_step(child: int, out: Path, seconds: float) -> None:
    """Kills a life some seconds after the next thing that it does to its checkpoints."""
    seen = touched(out)
    while touched(out) == seen:
        if os.waitid(os.P_PID, child, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None:
            return
        time.sleep(0.001)
    time.sleep(seconds)
    os.kill(child, signal.SIGKILL)


def touched(out: Path) -> int | None:
    """When something was last made or renamed among the checkpoints."""
    place = out / "checkpoint"
    return place.stat().st_mtime_ns if place.exists() else None


def flip(out: Path, draw: random.Random) -> bool:
    """Flips a bit in the newest checkpoint, if another is left behind it."""
    states = sorted((out / "checkpoint").glob("state-*.json"))
    if len(states) < 2:
        return False
    number = states[-1].stem.partition("-")[2]
    path = draw.choice([states[-1], states[-1].with_name(f"tensors-{number}.safetensors")])
    content = bytearray(path.read_bytes())
    content[draw.randrange(len(content))] ^= 1 << draw.randrange(8)
    path.write_bytes(content)
    return True


def main(folder: Path, task: str, seed: int, kills: int) -> None:
    """Whole runs in FOLDER/TASK, and the killed one in FOLDER/killed."""
    torch.set_num_threads(1)
    torch.optim.AdamW([torch.zeros(1)])  # what this imports would take most of each life
    every = digits(train=120, validation=20)
    dataset = dataclasses.replace(every, test=every.test.at(torch.arange(60)))
    for whole in dict.fromkeys(["teach", task]):
        assert ended(begun(whole, folder, folder / whole, dataset))
    draw, out, hits, damaged = random.Random(seed), folder / "killed", 0, 0
    for number in range(kills):
        if number % 2:
            child = begun(task, folder, out, dataset, draw.uniform(0.02, LONGEST))
        else:
            child = begun(task, folder, out, dataset)
            killed_after_a_step(child, out, draw.uniform(0, SOON))
        if ended(child):
            break
        hits += (out / "recipe.json").exists()
        damaged += number % 4 == 3 and flip(out, draw)
    assert ended(begun(task, folder, out, dataset))
    print(hits, damaged)


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2], int(sys.argv[3]), int(sys.argv[4]))
