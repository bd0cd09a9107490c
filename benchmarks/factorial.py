"""Where a student's accuracy comes from: start x losses x gradient x budget, all crossed.

    python benchmarks/factorial.py --teacher RUN --other RUN --out DIR --file FILE [--epochs 1]

{converted, scratch} x {none, logits, hybrid} x {rate, bptt} x {1, 2 budgets}, each with the best of
the same learning rates, chosen on validation images at one budget with a seed that is not used
again; then every cell with every seed, scored on the test images. `--other` is a second teacher of
the same recipe and another seed: the control in which student and control differ in who taught.
Cells are runs of `spikelet distill` in DIR; finished ones are kept, so it can be stopped at any
time. FILE gets the rows, the paired effects of each factor, versions, commit and date.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any

from cells import difference, distilled, in_turn, row_of, write

from spikelet.train import read_json

STARTS, METHODS, EXECUTES = ("converted", "scratch"), ("none", "logits", "hybrid"), ("rate", "bptt")
TUNING_SEED = 100


@dataclass(frozen=True)
class Cell:
    """One combination; `swapped` is taught by, and starts from, the other teacher."""

    start: str
    method: str
    execute: str
    budget: int
    swapped: bool = False

    @property
    def name(self) -> str:
        teacher = "-swapped" if self.swapped else ""
        return f"{self.start}-{self.method}-{self.execute}-{self.budget}x{teacher}"


def cells(starts: Sequence[str], budgets: Sequence[int]) -> Iterator[Cell]:
    for budget, start, method, execute in product(budgets, starts, METHODS, EXECUTES):
        yield Cell(start, method, execute, budget)
    for start in starts:
        yield Cell(start, "hybrid", "rate", 1, swapped=True)


def train(options: Any, cell: Cell, seed: int, rate: float) -> dict[str, Any]:
    """The row of a cell, trained unless it is finished."""
    words = [
        *("--teacher", options.other if cell.swapped else options.teacher),
        *("--data", options.data, "--data.train", options.images + options.validation),
        *("--validation", options.validation, "--method", cell.method),
        *("--start", cell.start, "--execute", cell.execute, "--steps", options.steps),
        *("--epochs", options.epochs * cell.budget, "--batch", 128, "--precision", "bf16"),
        *("--estimate", 1024, "--learning-rate", rate, "--seed", seed),
    ]
    out = Path(options.out) / f"{cell.name}-seed{seed}-rate{rate:g}"
    return row_of(distilled(out, words, controls=False), cell.method, options.steps)


def tuned(options: Any, cell: Cell) -> dict[str, float]:
    """Validation accuracy of each learning rate, at one budget."""
    one = replace(cell, budget=1, swapped=False)
    rates: Sequence[float] = options.rates
    scores = [train(options, one, TUNING_SEED, r)["accuracy_validation"] for r in rates]
    return {f"{r:g}": score for r, score in zip(rates, scores, strict=True)}


def scored(options: Any, cell: Cell) -> dict[str, Any]:
    """A cell with all its seeds."""
    tuning = tuned(options, cell)
    rate = float(max(tuning, key=lambda r: tuning[r]))
    found = [train(options, cell, seed, rate) for seed in range(options.seeds)]
    keys = ("start", "method", "execute", "budget", "swapped")
    return {
        "cell": cell.name,
        **{key: getattr(cell, key) for key in keys},
        "learning_rate": rate,
        "tuning": tuning,
        "accuracies": [row["accuracy"] for row in found],
        "seconds": [row["seconds"] for row in found],
        "ann_epochs": [row.get("ann_epochs") for row in found],
        "macs": found[0].get("macs"),
    }


def effects(rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Each factor's effect, everything else equal: paired over seeds, and over the other factors.

    The pairs of one factor are the means over all other factors, one for each seed.
    """
    plain = [row for row in rows if not row["swapped"]]
    wanted = [
        ("start", "scratch", "converted"),
        ("method", "none", "logits"),
        ("method", "none", "hybrid"),
        ("method", "logits", "hybrid"),
        ("execute", "rate", "bptt"),
        ("budget", 1, 2),
    ]
    found = []
    wanted = [each for each in wanted if {each[1], each[2]} <= {row[each[0]] for row in plain}]
    starts = [start for start in STARTS if any(row["start"] == start for row in plain)]
    places = (None, *starts) if len(starts) > 1 else starts
    for (factor, low, high), start in product(wanted, places):
        chosen = [row for row in plain if start in (None, row["start"])]
        if start is None or factor != "start":
            below, above = (by_seed([r for r in chosen if r[factor] == v]) for v in (low, high))
            found.append(effect(factor, f"{high} minus {low}", start, below, above))
    for start in starts:
        name = f"{start}-hybrid-rate-1x"
        of = {row["swapped"]: row for row in rows if row["cell"].startswith(name)}
        below, above = of[True]["accuracies"], of[False]["accuracies"]
        found.append(effect("teacher", "this one minus the other", start, below, above))
    return found


def by_seed(rows: Sequence[dict[str, Any]]) -> list[float]:
    """Means over rows, one for each seed."""
    return [sum(each) / len(rows) for each in zip(*(r["accuracies"] for r in rows), strict=True)]


def effect(
    factor: str, what: str, start: str | None, below: Sequence[float], above: Sequence[float]
) -> dict[str, Any]:
    where = "both starts" if start is None else start
    return {"factor": factor, "what": what, "start": where, **difference(above, below)}


def options_of(words: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add = parser.add_argument
    add("--teacher", required=True)
    add("--other", required=True)
    add("--out", required=True)
    add("--file", required=True)
    add("--data", default="fashion-mnist")
    add("--steps", type=int, default=2)
    add("--epochs", type=int, default=2, help="of one budget")
    add("--starts", nargs="+", default=list(STARTS), choices=STARTS)
    add("--budgets", type=int, nargs="+", default=[1, 2], help="1, 2 or both")
    add("--images", type=int, default=8000)
    add("--validation", type=int, default=2000)
    add("--seeds", type=int, default=3)
    add("--rates", type=float, nargs="+", default=[0.002, 0.006])
    add("--jobs", type=int, default=2)
    return parser.parse_args(words)


def main() -> None:
    options = options_of()
    rows = in_turn(partial(scored, options), cells(options.starts, options.budgets), options.jobs)
    hidden = ("out", "file", "jobs", "teacher", "other")
    settings = {key: value for key, value in vars(options).items() if key not in hidden}
    results = [read_json(Path(t) / "results.json") for t in (options.teacher, options.other)]
    settings["teachers"] = [found["rows"][0]["accuracy"] for found in results]
    found = effects(rows)
    write(options.file, "factorial", settings, rows=rows, effects=found)
    for line in found:
        print(line)


if __name__ == "__main__":
    main()
