"""Whether `spikelet distill` without further flags is worth it: against no teacher, and conversion.

    python benchmarks/defaults.py --teacher RUN --out DIR --file FILE [--steps 1 2 4] \\
        [--seeds 10] [--more --model vgg9 --width 16]

For every T and seed one run with `--teacher RUN --steps T --seed S` and no other flag, for the
first `--plain` seeds another with `--method none` added. Rows of the untrained conversion come
with each. A run that fails, or ends below conversion, is listed. Finished cells in DIR are kept.
What follows `--more` is added to every run: another architecture of the student, for example.
"""

from __future__ import annotations

import argparse
import statistics
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any

from cells import difference, distilled, in_turn, row_of, write

from spikelet.errors import UserError
from spikelet.recipe import DEFAULT_METHOD
from spikelet.train import read_json

Cell = tuple[str, int, int]


def accuracy(options: Any, cell: Cell) -> dict[str, Any]:
    """What a cell came to; a failure is a result, too."""
    method, steps, seed = cell
    words = ["--teacher", options.teacher, "--steps", steps, "--seed", seed, *options.more]
    if method != DEFAULT_METHOD:
        words += ["--method", method]
    try:
        rows = distilled(Path(options.out) / f"{method}-T{steps}-seed{seed}", words)
    except UserError as error:
        return {"method": method, "steps": steps, "seed": seed, "failed": str(error)}
    mine, plain = row_of(rows, method, steps), row_of(rows, "convert", steps)
    kept = (
        "method",
        "steps",
        "seed",
        "accuracy",
        "seconds",
        "ann_epochs",
        "macs",
        "rate",
        "accuracy_ann",
    )
    return {key: mine.get(key) for key in kept} | {"convert": plain["accuracy"]}


def summary(found: list[dict[str, Any]], steps: int) -> dict[str, Any]:
    """The default at one T against conversion and no teacher, paired over seeds."""
    here = [row for row in found if row["steps"] == steps and "failed" not in row]
    ours = {row["seed"]: row for row in here if row["method"] == DEFAULT_METHOD}
    plain = {row["seed"]: row for row in here if row["method"] == "none"}
    scores = [row["accuracy"] for row in ours.values()]
    converted = [row["convert"] for row in ours.values()]
    both = sorted(ours.keys() & plain.keys())
    below = [seed for seed, row in ours.items() if row["accuracy"] < row["convert"]]
    return {
        "steps": steps,
        "n": len(scores),
        "mean": statistics.fmean(scores),
        "std": statistics.stdev(scores) if len(scores) > 1 else None,
        "worst": min(scores),
        "convert": statistics.fmean(converted),
        "none": statistics.fmean(row["accuracy"] for row in plain.values()),
        "minus_convert": difference(scores, converted),
        "minus_none": difference(
            [ours[seed]["accuracy"] for seed in both], [plain[seed]["accuracy"] for seed in both]
        ),
        "seeds_below_convert": below,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add = parser.add_argument
    for name in ("--teacher", "--out", "--file"):
        add(name, required=True)
    add("--steps", type=int, nargs="+", default=[1, 2, 4])
    add("--seeds", type=int, default=10)
    add("--plain", type=int, default=10, help="seeds of runs without a teacher")
    add("--jobs", type=int, default=2)
    add("--more", nargs=argparse.REMAINDER, default=[], help="last: flags for every run")
    options = parser.parse_args()
    wanted = ((DEFAULT_METHOD, options.seeds), ("none", options.plain))
    cells = [(m, t, s) for m, seeds in wanted for s, t in product(range(seeds), options.steps)]
    found = in_turn(partial(accuracy, options), cells, options.jobs)
    teacher = Path(options.teacher)
    settings = {
        "data": read_json(teacher / "recipe.json")["data"]["kind"],
        "model": read_json(teacher / "model.json"),
        "teacher": read_json(teacher / "results.json")["rows"][0]["accuracy"],
        "default": DEFAULT_METHOD,
        "more": options.more,
    }
    summaries = [summary(found, steps) for steps in options.steps]
    failed = [row for row in found if "failed" in row]
    write(options.file, "defaults", settings, summaries=summaries, failed=failed, rows=found)
    for line in summaries:
        print(line)
    print(f"{len(failed)} of {len(found)} runs failed")


if __name__ == "__main__":
    main()
