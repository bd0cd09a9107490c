"""Accuracy against the price of training: from scratch, from a teacher's weights, and our best.

    python benchmarks/price.py --teacher RUN --out DIR --file FILE [--epochs 1 2 4 8] [--seeds 3]

Recipes, all of binary spikes at the same T: BPTT and rate-based backpropagation from scratch, the
latter from the converted teacher, all three with the labels alone; the default method
from the converted teacher, by BPTT; and the default method in layers that begin T - 1 steps
late, trained by levels (docs/delay.md). Each takes, at every length, the one of the
learning rates that is best on validation images in runs of the second length with a seed that is
not used again. Cells are runs of `spikelet distill` in DIR; finished ones are kept. FILE gets the
rows, versions, commit and date, and beside it a plot.
"""

from __future__ import annotations

import argparse
import io
import statistics
from collections.abc import Sequence
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any

from cells import distilled, in_turn, row_of, teacher_settings, write

from spikelet.recipe import DEFAULT_METHOD

TUNING_SEED = 100
RECIPES = {
    "BPTT from scratch": ("none", "scratch", "bptt"),
    "rates from scratch": ("none", "scratch", "rate"),
    "rates from conversion": ("none", "converted", "rate"),
    "default method": (DEFAULT_METHOD, "converted", "bptt"),
    "default method, layers begin late": (DEFAULT_METHOD, "converted", "quantised"),
}
Cell = tuple[str, int]


def train(options: Any, recipe: str, epochs: int, seed: int, rate: float) -> dict[str, Any]:
    """The row of one run, trained unless it is finished."""
    method, start, execute = RECIPES[recipe]
    late = ["--neuron.delay", options.steps - 1] if execute == "quantised" else []
    words = [
        *("--teacher", options.teacher, "--method", method, "--start", start),
        *("--execute", execute, "--steps", options.steps, "--seed", seed, *late),
        *("--epochs", epochs, "--training.least-steps", 0, "--learning-rate", rate),
    ]
    name = recipe.lower().replace(",", "").replace(" ", "-")
    out = Path(options.out) / f"{name}-{epochs}-seed{seed}-rate{rate:g}"
    return row_of(distilled(out, words, controls=False), method, options.steps)


def scored(options: Any, cell: Cell) -> dict[str, Any]:
    """A recipe and a length, with all seeds."""
    recipe, epochs = cell
    middle = options.epochs[min(1, len(options.epochs) - 1)]
    tuning = {
        rate: train(options, recipe, middle, TUNING_SEED, rate)["accuracy_validation"]
        for rate in options.rates
    }
    best = max(tuning, key=lambda rate: tuning[rate])
    found = [train(options, recipe, epochs, seed, best) for seed in range(options.seeds)]
    return {
        "recipe": recipe,
        "epochs": epochs,
        "learning_rate": best,
        "tuning": {f"{rate:g}": score for rate, score in tuning.items()},
        "accuracies": [row["accuracy"] for row in found],
        "seconds": [row["seconds"] for row in found],
        "ann_epochs": [row.get("ann_epochs") for row in found],
        "macs": found[0].get("macs"),
    }


def deviation(values: Sequence[float]) -> float:
    """The standard deviation over seeds; 0 of a single one."""
    return statistics.stdev(values) if len(values) > 1 else 0.0


def drawn(rows: Sequence[dict[str, Any]], teacher: float) -> str:
    """Test accuracy over the training's price, a line per recipe, as SVG."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7.2, 4.2), layout="constrained", facecolor="white")
    axes = figure.add_subplot()
    for recipe, marker in zip(RECIPES, "ov^sD", strict=True):
        mine = [row for row in rows if row["recipe"] == recipe]
        axes.errorbar(
            [row["macs"] / 1e12 for row in mine],
            [100 * statistics.fmean(row["accuracies"]) for row in mine],
            [100 * deviation(row["accuracies"]) for row in mine],
            marker=marker,
            capsize=2,
            label=recipe,
        )
    axes.axhline(100 * teacher, color="grey", ls=":", label="teacher")
    axes.set_xscale("log")
    axes.set_xlabel("multiply-accumulates of the training, teacher included, 10^12")
    axes.set_ylabel("test accuracy, %")
    axes.grid(alpha=0.3)
    axes.legend(fontsize=8)
    file = io.StringIO()
    none = dict.fromkeys(("Date", "Creator", "Format", "Type"))
    figure.savefig(file, format="svg", metadata=none)
    return file.getvalue()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add = parser.add_argument
    for name in ("--teacher", "--out", "--file"):
        add(name, required=True)
    add("--steps", type=int, default=4)
    add("--epochs", type=int, nargs="+", default=[1, 2, 4, 8])
    add("--seeds", type=int, default=3)
    add("--rates", type=float, nargs="+", default=[0.002, 0.006, 0.02])
    add("--jobs", type=int, default=1, help="more of them share cores: prices then say little")
    options = parser.parse_args()
    cells = list(product(RECIPES, options.epochs))
    rows = in_turn(partial(scored, options), cells, options.jobs)
    settings = {
        **teacher_settings(Path(options.teacher)),
        "default": DEFAULT_METHOD,
        **{key: getattr(options, key) for key in ("steps", "epochs", "seeds", "rates")},
    }
    write(options.file, "price", settings, rows=rows)
    Path(options.file).with_suffix(".svg").write_text(
        drawn(rows, settings["teacher"]), encoding="utf-8"
    )
    for row in rows:
        print(row)


if __name__ == "__main__":
    main()
