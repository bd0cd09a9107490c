"""Whether `spikelet distill` without further flags is worth it: against no teacher, and conversion.

    python benchmarks/defaults.py --teacher RUN [RUN ...] --out DIR --file FILE \\
        [--steps 1 2 4] [--seeds 10] [--more --model vgg9 --width 16]

For every T and seed one run with `--teacher RUN --steps T --seed S` and no other flag, for the
first `--plain` seeds another with `--method none` added. With several teachers, of one recipe and
different seeds, all of that under each of them, and the intervals are over teachers, not seeds.
Rows of the untrained conversion come with each. A run that fails, or ends below conversion, is
listed. Finished cells in DIR are kept. What follows `--more` is added to every run: another
architecture of the student, for example.
"""

from __future__ import annotations

import argparse
import statistics
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any

from cells import difference, distilled, in_turn, row_of, teacher_settings, write

from spikelet.errors import UserError
from spikelet.recipe import DEFAULT_METHOD

Cell = tuple[str, str, int, int]


def accuracy(options: Any, cell: Cell) -> dict[str, Any]:
    """What a cell came to; a failure is a result, too."""
    teacher, method, steps, seed = cell
    words = ["--teacher", teacher, "--steps", steps, "--seed", seed, *options.more]
    if method != DEFAULT_METHOD:
        words += ["--method", method]
    name = Path(teacher).name
    folder = Path(options.out) / (name if len(options.teacher) > 1 else "")
    here = {"teacher": name, "method": method, "steps": steps, "seed": seed}
    try:
        rows = distilled(folder / f"{method}-T{steps}-seed{seed}", words)
    except UserError as error:
        return here | {"failed": str(error)}
    mine, plain = row_of(rows, method, steps), row_of(rows, "convert", steps)
    kept = ("accuracy", "seconds", "ann_epochs", "macs", "rate", "accuracy_ann")
    return here | {key: mine.get(key) for key in kept} | {"convert": plain["accuracy"]}


def paired(rows: list[dict[str, Any]], above: str, below: str) -> dict[str, float]:
    """Mean and interval of the differences of two entries: over teachers if there are several."""
    teachers = sorted({row["teacher"] for row in rows})
    groups = [[row for row in rows if row["teacher"] == name] for name in teachers]
    units = groups if len(groups) > 1 else [[row] for row in rows]
    means = [
        [statistics.fmean(row[key] for row in unit) for unit in units] for key in (above, below)
    ]
    return difference(*means)


def summary(found: list[dict[str, Any]], steps: int) -> dict[str, Any]:
    """The default at one T against conversion and no teacher, paired over teachers or seeds."""
    here = [row for row in found if row["steps"] == steps and "failed" not in row]
    plain = {(r["teacher"], r["seed"]): r["accuracy"] for r in here if r["method"] == "none"}
    ours = [row for row in here if row["method"] == DEFAULT_METHOD]
    both = [
        row | {"none": plain[row["teacher"], row["seed"]]}
        for row in ours
        if (row["teacher"], row["seed"]) in plain
    ]
    scores = [row["accuracy"] for row in ours]
    return {
        "steps": steps,
        "n": len(scores),
        "teachers": len({row["teacher"] for row in ours}),
        "mean": statistics.fmean(scores),
        "std": statistics.stdev(scores) if len(scores) > 1 else None,
        "worst": min(scores),
        "convert": statistics.fmean(row["convert"] for row in ours),
        "none": statistics.fmean(plain.values()),
        "minus_convert": paired(ours, "accuracy", "convert"),
        "minus_none": paired(both, "accuracy", "none"),
        "below_convert": [
            [row["teacher"], row["seed"]] for row in ours if row["accuracy"] < row["convert"]
        ],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add = parser.add_argument
    add("--teacher", nargs="+", required=True)
    for name in ("--out", "--file"):
        add(name, required=True)
    add("--steps", type=int, nargs="+", default=[1, 2, 4])
    add("--seeds", type=int, default=10)
    add("--plain", type=int, default=10, help="seeds of runs without a teacher")
    add("--jobs", type=int, default=2)
    add("--more", nargs=argparse.REMAINDER, default=[], help="last: flags for every run")
    options = parser.parse_args()
    wanted = ((DEFAULT_METHOD, options.seeds), ("none", options.plain))
    cells = [
        (teacher, method, steps, seed)
        for method, seeds in wanted
        for teacher, seed, steps in product(options.teacher, range(seeds), options.steps)
    ]
    found = in_turn(partial(accuracy, options), cells, options.jobs)
    runs = [teacher_settings(Path(teacher)) for teacher in options.teacher]
    settings = {
        "data": runs[0]["data"]["kind"],
        "model": runs[0]["model"],
        "teacher": [run["teacher"] for run in runs] if len(runs) > 1 else runs[0]["teacher"],
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
