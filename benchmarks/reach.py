"""How near students come to their teacher for a given price, by the kind of their spikes.

    python benchmarks/reach.py --teacher RUN --out DIR --file FILE [--budget 10] [--seeds 3] \\
        [--more --training.graph True]

Kinds, each at every T: `binary`, the default recipe; `one step late` and `late`, layers that begin
one or T - 1 steps after those before them (docs/delay.md), the latter trained as the quantised
network that they are; `signed`, spikes that can be taken back. `none` is `late` without a teacher.
Each cell gets as many epochs as the budget pays, in training epochs of the ANN; the price of an
epoch of each kind is measured on the way (`ann_epochs` of a row) and the first guess stands in
PRICES. Cells are runs of `spikelet distill` in DIR; finished ones are kept.
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Sequence
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any

from cells import distilled, in_turn, row_of, teacher_settings, write

from spikelet.recipe import DEFAULT_METHOD

# one epoch of a ResNet-20 of width 16 and its teacher's forwards, in epochs of the ANN (bf16, CPU)
PRICES = {
    ("binary", 1): 1.6, ("binary", 2): 2.7, ("binary", 4): 4.4,
    ("one step late", 2): 2.2, ("one step late", 4): 3.5,
    ("late", 2): 1.5, ("late", 4): 1.5, ("none", 2): 1.1, ("none", 4): 1.1,
    ("signed", 2): 2.3, ("signed", 4): 3.5,
}  # fmt: skip
KINDS = ("binary", "one step late", "late", "signed", "none")
Cell = tuple[str, int, int]


def flags(kind: str, steps: int) -> list[Any]:
    """What makes a student of this kind, beside the default recipe."""
    late = ["--neuron.delay", steps - 1, "--execute", "quantised"]
    return {
        "binary": [],
        "one step late": ["--neuron.delay", 1],
        "late": late,
        "signed": ["--neuron.signed", "True", "--learning-rate", 0.001],
        "none": [*late, "--method", "none"],
    }[kind]


def train(options: Any, cell: Cell) -> dict[str, Any]:
    """A cell's row, with the accuracy of its conversion before training."""
    kind, steps, seed = cell
    epochs = max(1, int(options.budget / PRICES[kind, steps]))
    words = [
        *("--teacher", options.teacher, "--steps", steps, "--seed", seed, "--epochs", epochs),
        *("--batch", 128, "--precision", "bf16", *flags(kind, steps)),
        *options.more,
    ]
    out = Path(options.out) / f"{kind.replace(' ', '-')}-T{steps}-seed{seed}"
    rows = distilled(out, words, controls=seed == 0)
    mine = row_of(rows, "none" if kind == "none" else DEFAULT_METHOD, steps)
    kept = ("accuracy", "seconds", "ann_epochs", "macs", "rate")
    found = {"kind": kind, "steps": steps, "seed": seed, "epochs": epochs}
    found |= {key: mine.get(key) for key in kept}
    if seed == 0:
        found["convert"] = row_of(rows, "convert", steps)["accuracy"]
    return found


def summary(rows: Sequence[dict[str, Any]], teacher: float) -> list[dict[str, Any]]:
    """Each kind at each T: mean over seeds, and points below the teacher."""
    found = []
    for kind, steps in dict.fromkeys((row["kind"], row["steps"]) for row in rows):
        mine = [row for row in rows if (row["kind"], row["steps"]) == (kind, steps)]
        scores = [row["accuracy"] for row in mine]
        prices = [row["ann_epochs"] for row in mine if row["ann_epochs"] is not None]
        found.append({
            "kind": kind,
            "steps": steps,
            "n": len(scores),
            "mean": statistics.fmean(scores),
            "std": statistics.stdev(scores) if len(scores) > 1 else None,
            "below_teacher": teacher - statistics.fmean(scores),
            "ann_epochs": statistics.fmean(prices) if prices else None,
        })  # fmt: skip
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add = parser.add_argument
    for name in ("--teacher", "--out", "--file"):
        add(name, required=True)
    add("--kinds", nargs="+", default=list(KINDS), choices=KINDS)
    add("--steps", type=int, nargs="+", default=[4, 2, 1])
    add("--seeds", type=int, default=3)
    add("--budget", type=float, default=10.0, help="in training epochs of the ANN")
    add("--jobs", type=int, default=2)
    add("--more", nargs=argparse.REMAINDER, default=[], help="last: flags for every run")
    options = parser.parse_args()
    wanted = product(range(options.seeds), options.steps, options.kinds)
    cells = [(kind, steps, seed) for seed, steps, kind in wanted if (kind, steps) in PRICES]
    rows = in_turn(partial(train, options), cells, options.jobs)
    settings = {
        **teacher_settings(Path(options.teacher)),
        "budget": options.budget,
        "more": options.more,
        "default": DEFAULT_METHOD,
    }
    found = summary(rows, settings["teacher"])
    write(options.file, "reach", settings, summaries=found, rows=rows)
    for line in found:
        print(line)


if __name__ == "__main__":
    main()
