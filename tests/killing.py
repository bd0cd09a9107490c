"""A run that is killed at random moments and resumed until it is through, each life a fork.

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

LONGEST = 0.6  # seconds of a life that is killed
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


def forked(task: str, folder: Path, out: Path, dataset: Dataset, seconds: float) -> bool:
    """Whether a life came to its end within some seconds; it is killed then."""
    child = os.fork()
    if not child:
        try:
            live(task, folder, out, dataset)
        except BaseException as error:
            print(f"{type(error).__name__}: {error}", file=sys.stderr, flush=True)
            os._exit(1)
        os._exit(0)
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        gone, status = os.waitpid(child, os.WNOHANG)
        if gone:
            assert status == 0, "a life has failed"
            return True
        time.sleep(0.002)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    return False


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
        assert forked(whole, folder, folder / whole, dataset, 600)
    draw, out, hits, damaged = random.Random(seed), folder / "killed", 0, 0
    for number in range(kills):
        if forked(task, folder, out, dataset, draw.uniform(0.02, LONGEST)):
            break
        hits += (out / "recipe.json").exists()
        damaged += number % 4 == 3 and flip(out, draw)
    assert forked(task, folder, out, dataset, 600)
    print(hits, damaged)


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2], int(sys.argv[3]), int(sys.argv[4]))
