"""ImageNet's recipes from end to end on a small folder of its layout: teach, distill, measure.

    python benchmarks/imagenet.py --data-root DIR --out FILE [--runs FOLDER] [--size 32] ...

DIR holds `train/CLASS` and `val/CLASS`, such as Tiny-ImageNet's. Network and hyper-parameters are
those of `--data imagenet` (ResNet-34; published for 8 processes, so one process learns an eighth as
fast); size, epochs, warm-up and precision are what makes it short: about ten minutes of one core
for 13,500 training images of 30 classes. Each command's row has its wall and processor seconds (its
loaders' too) and the share of training that waited for images.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from spikelet.report import hardware
from spikelet.train import env, read_json, write_json


def commands(options: argparse.Namespace) -> dict[str, list[str]]:
    """The lines, as one would type them."""
    runs = {name: str(options.runs / name) for name in ("resnet34", "student")}
    size = ["--data.size", str(options.size), "--data.crop", "1.0"]
    if options.images is not None:
        size += ["--data.train", str(options.images)]
    short = ["--precision", "bf16", "--seed", str(options.seed)]
    teach = ["teach", "--data", "imagenet", "--data-root", str(options.data_root), *size]
    teach += ["--epochs", str(options.teach_epochs), "--training.warmup-epochs", "0.5", *short]
    distill = ["distill", "--teacher", runs["resnet34"], "--method", options.method]
    distill += ["--steps", "4", "--epochs", str(options.epochs), *short]
    return {
        "teach": [*teach, "--out", runs["resnet34"]],
        "distill": [*distill, "--out", runs["student"]],
        "measure": ["measure", runs["student"], "steps", "health"],
    }


def done(words: list[str]) -> dict[str, Any]:
    """What a command answers, and what it took."""
    begin, before = time.monotonic(), resource.getrusage(resource.RUSAGE_CHILDREN)
    answer = subprocess.run(
        [sys.executable, "-m", "spikelet", *words, "--json"], stdout=subprocess.PIPE, check=True
    ).stdout
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    busy = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    told = json.loads(answer)
    return {
        "rows": told["rows"],
        "seconds": round(time.monotonic() - begin, 1),
        "seconds_of_processors": round(busy, 1),
    }


def waiting(run: Path) -> dict[str, Any]:
    """What the epochs of a run took and waited."""
    epochs = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    whole, waited = (sum(row[name] for row in epochs) for name in ("seconds", "seconds_waiting"))
    kept = ("epoch", "loss", "validation", "seconds", "seconds_waiting", "images_per_second")
    return {
        "training": read_json(run / "recipe.json")["training"],
        "epochs": [{name: row[name] for name in kept} for row in epochs],
        "share_waiting": round(waited / whole, 5),
    }


def shown(words: list[str], options: argparse.Namespace) -> str:
    """A line without the places of this machine."""
    line = " ".join(["spikelet", *words])
    return line.replace(str(options.data_root), "DIR").replace(str(options.runs), "runs")


def parsed() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data-root", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--runs", type=Path, default=Path("runs/imagenet"))
    parser.add_argument("--images", type=int, help="of the training part; by default all")
    parser.add_argument("--size", type=int, default=32)
    parser.add_argument("--teach-epochs", type=int, default=4)
    parser.add_argument("--epochs", type=int, default=2)
    parser.add_argument("--method", default="kdsnn-feature")
    parser.add_argument("--seed", type=int, default=0)
    return parser.parse_args()


def main() -> None:
    options, found = parsed(), []
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    for verb, words in commands(options).items():
        row = {"command": shown(words, options), **done(words)}
        if verb != "measure":
            row |= waiting(Path(words[-1]))
        found.append(row)
        print(row["command"], row["seconds"], row.get("share_waiting"), flush=True)
        write(options.out, found)


def write(out: Path, found: list[dict[str, Any]]) -> None:
    """What is known by now."""
    made = {
        "schema": 1,
        "date": datetime.now(UTC).date().isoformat(),
        "machine": hardware(),
        "env": {**env(), "threads": int(os.environ["OMP_NUM_THREADS"])},
        "commands": found,
    }
    write_json(out, made)


if __name__ == "__main__":
    main()
