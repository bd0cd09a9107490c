"""Fashion-MNIST by the command line alone: a teacher, then students by T, method and seed.

    python benchmarks/fashion_mnist.py --out runs/fashion-mnist --jobs 2

Every finished run is kept, so a killed grid continues where it was. Learning rates are chosen per
method by validation accuracy (--tune, one seed, a third of the images), with the same candidates
for all; the test images are looked at once, by the final runs. Writes a table and the rows to
benchmarks/results/.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from spikelet.measure import paired_interval
from spikelet.train.run import env

METHODS = ("none", "logits", "hybrid")
DATA = "fashion-mnist"
RESULTS = Path(__file__).parent / "results"


def spikelet(*words: object) -> None:
    """Runs one command on one thread; its output goes to the run's own log."""
    command = [sys.executable, "-m", "spikelet", *map(str, words), "--json"]
    subprocess.run(
        command,
        check=True,
        env={"OMP_NUM_THREADS": "1", **os.environ},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )


def run(verb: str, out: Path, *flags: object) -> dict[str, Any]:
    """A run's results; it is made, or continued, if it is not finished."""
    if not (out / "results.json").exists():
        started = (out / "recipe.json").exists()
        spikelet(verb, *(["--resume", out] if started else ["--out", out, *flags]))
    return json.loads((out / "results.json").read_text())


def last(out: Path, key: str = "validation") -> Any:
    """A value of the last line of a run's metrics."""
    return json.loads((out / "metrics.jsonl").read_text().splitlines()[-1])[key]


def student(
    options: argparse.Namespace, out: Path, method: str, steps: int, *flags: object
) -> dict[str, Any]:
    teacher = options.out / "teacher"
    return run("distill", out, "--teacher", teacher, "--method", method, "--steps", steps, *flags)


def tune(options: argparse.Namespace, pool: ThreadPoolExecutor) -> dict[str, float]:
    """For each method the candidate learning rate with the best validation accuracy at T = 2."""
    cells = [(m, rate) for m in METHODS for rate in options.tune]
    part = ("--epochs", 1, "--data.train", 25000, "--data.validation", 5000, "--seed", 100)

    def cell(method: str, rate: float) -> float:
        out = options.out / f"tune-{method}-{rate:g}"
        student(options, out, method, 2, "--learning-rate", rate, *part)
        return float(last(out)["accuracy"])

    scores = list(pool.map(lambda c: cell(*c), cells))
    found = dict(zip(cells, scores, strict=True))
    for (method, rate), score in found.items():
        print(f"tune {method:8s} {rate:<8g} validation {100 * score:.2f} %", flush=True)
    return {m: max(options.tune, key=lambda rate: found[m, rate]) for m in METHODS}


def grid(
    options: argparse.Namespace, rates: dict[str, float], pool: ThreadPoolExecutor
) -> dict[tuple[str, int, int], dict[str, Any]]:
    cells = [(m, t, s) for s in range(options.seeds) for t in options.steps for m in METHODS]

    def cell(method: str, steps: int, seed: int) -> dict[str, Any]:
        out = options.out / f"{method}-T{steps}-seed{seed}"
        flags = ("--epochs", options.epochs, "--learning-rate", rates[method], "--seed", seed)
        found = student(options, out, method, steps, *flags)
        print(f"done {out.name}", flush=True)
        return found

    return dict(zip(cells, pool.map(lambda c: cell(*c), cells), strict=True))


def accuracy(rows: Iterable[dict[str, Any]], method: str, steps: int | None) -> float:
    return next(r["accuracy"] for r in rows if r["method"] == method and r["steps"] == steps)


def table(
    options: argparse.Namespace, found: dict[tuple[str, int, int], dict[str, Any]]
) -> list[dict[str, Any]]:
    """Rows by T and method: mean, deviation, n, and the paired difference to `none`."""
    rows: list[dict[str, Any]] = []
    seeds = range(options.seeds)
    for steps in options.steps:
        values = {
            m: [accuracy(found[m, steps, s]["rows"], m, steps) for s in seeds] for m in METHODS
        }
        values["convert"] = [
            accuracy(found["none", steps, s]["rows"], "convert", steps) for s in seeds
        ]
        for method, scores in values.items():
            row = {
                "method": method,
                "steps": steps,
                "accuracy": statistics.mean(scores),
                "std": statistics.stdev(scores) if len(scores) > 1 else None,
                "n": len(scores),
                "seed": None,
                "split": "test",
            }
            if method not in ("none", "convert") and len(scores) > 1:
                mean, low, high = paired_interval(scores, values["none"])
                row["minus_none"] = {"mean": mean, "low": low, "high": high}
            if method in METHODS:
                folders = [options.out / f"{method}-T{steps}-seed{s}" for s in seeds]
                row["seconds_per_epoch"] = statistics.mean(last(f, "seconds") for f in folders)
            rows.append(row)
    return rows


def markdown(teacher: float, rows: Sequence[dict[str, Any]]) -> str:
    lines = [
        f"Teacher: {100 * teacher:.2f} %.",
        "",
        "| T | method | accuracy, % | n | minus `none` |",
    ]
    lines.append("|---|---|---|---|---|")
    for row in rows:
        spread = "" if row["std"] is None else f" ± {100 * row['std']:.2f}"
        difference = row.get("minus_none")
        text = ""
        if difference:
            mean, low, high = (100 * difference[k] for k in ("mean", "low", "high"))
            verdict = "" if low > 0 or high < 0 else ", no difference shown"
            text = f"{mean:+.2f} ({low:+.2f} to {high:+.2f}{verdict})"
        score = f"{100 * row['accuracy']:.2f}{spread}"
        lines.append(f"| {row['steps']} | `{row['method']}` | {score} | {row['n']} | {text} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--width", type=int, default=16)
    parser.add_argument("--epochs", type=int, default=2)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--steps", type=int, nargs="+", default=[2, 4])
    parser.add_argument("--tune", type=float, nargs="+", default=[1e-3, 4e-3])
    parser.add_argument("--jobs", type=int, default=1)
    options = parser.parse_args()
    taught = run(
        "teach", options.out / "teacher", "--data", DATA, "--width", options.width, "--epochs", 10
    )
    with ThreadPoolExecutor(options.jobs) as pool:
        rates = tune(options, pool)
        found = grid(options, rates, pool)
    rows, teacher = table(options, found), accuracy(taught["rows"], "teacher", None)
    day = f"{datetime.now(UTC):%Y-%m-%d}"
    settings = {k: str(v) if isinstance(v, Path) else v for k, v in vars(options).items()}
    settings.pop("out")
    content = {"date": day, "settings": settings, "learning_rates": rates, "teacher": teacher}
    content |= {"env": env(), "rows": rows}
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / f"fashion-mnist-{day}.json").write_text(json.dumps(content, indent=2) + "\n")
    print(markdown(teacher, rows))


if __name__ == "__main__":
    main()
