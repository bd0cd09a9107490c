"""Does a distilled student see as its teacher does: alike in saliency, immune to noise?

    python benchmarks/alike.py --teacher RUN --other RUN --out DIR --file FILE [DISTILL FLAGS...]

For every seed a student without a teacher's losses (`none`), one of each of `--methods`, and one of
the first of them taught by `--other`: a second teacher of the same recipe and another seed, the
control. Then `spikelet measure saliency noise` of each method's student beside the other students,
on the same images of the test part. Differences are paired over seeds, which is what their 95 %
intervals are over. What is not a flag of this script goes to `spikelet distill` of every student.
Finished students and measures in DIR are kept, so it can be stopped at any time.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

from cells import difference, distilled, in_turn, row_of, write

from spikelet.cli import measure
from spikelet.cli.arguments import parse
from spikelet.train import read_json

SWAPPED, NONE = "swapped", "none"
ALIKE = ("spearman", "overlap")
Row = dict[str, Any]


def students(options: Any, seed: int) -> dict[str, Path]:
    """The folder of each kind of student with a seed."""
    kinds = (NONE, *options.methods, SWAPPED)
    return {kind: Path(options.out) / f"{kind}-seed{seed}" for kind in kinds}


def trained(options: Any, cell: tuple[str, int]) -> Row:
    """The accuracy of one student, trained unless it is finished."""
    kind, seed = cell
    swapped = kind == SWAPPED
    method = options.methods[0] if swapped else kind
    words = [
        *("--teacher", options.other if swapped else options.teacher, "--method", method),
        *("--steps", options.steps, "--seed", seed, *options.rest),
    ]
    found = distilled(students(options, seed)[kind], words, controls=False)
    row = row_of(found, method, options.steps)
    return {"student": kind, "seed": seed, "accuracy": row["accuracy"], "rate": row.get("rate")}


def measured(options: Any, cell: tuple[str, int]) -> dict[str, Row]:
    """Saliency and noise of one method's student with a seed; `none` and `swapped` beside it."""
    method, seed = cell
    folders = students(options, seed)
    stored = [folders[method] / "measures" / f"{name}.json" for name in ("saliency", "noise")]
    if not all(file.exists() for file in stored):
        beside = [str(folders[kind]) for kind in (NONE, SWAPPED)]
        words = [str(folders[method]), "saliency", "noise", "--versus", *beside]
        words += ["--images", str(options.images)]
        from rich.console import Console

        measure.run(parse("measure", words), Console(quiet=True))
    saliency, noise = (read_json(file) for file in stored)
    return {"saliency": alike(saliency, method), "noise": immune(noise, method)}


def alike(found: Row, method: str) -> Row:
    """Likeness of each network's maps to the teacher's, in the order in which it was measured."""
    names = (NONE, SWAPPED, method, "shuffled")
    rows = zip(names, found["similarity"], strict=True)
    return {name: {key: row[key]["mean"] for key in ALIKE} for name, row in rows}


def immune(found: Row, method: str) -> Row:
    """Accuracy of each network under noise; what `method` keeps more than each other one."""
    names = ("teacher", NONE, SWAPPED, method)
    noisy = {n: row["noisy"] for n, row in zip(names, found["networks"].values(), strict=True)}
    versus = zip(names, found["versus"].values(), strict=False)
    return {"noisy": noisy, "kept": {name: row["all"]["kept"]["mean"] for name, row in versus}}


def differences(method: str, found: Sequence[dict[str, Row]]) -> list[Row]:
    """A method against none and against a student of the other teacher, paired over seeds."""
    rows = []
    for other in (NONE, SWAPPED):
        for key in ALIKE:
            mine, theirs = ([f["saliency"][w][key] for f in found] for w in (method, other))
            rows.append({"what": key, "minus": other, **difference(mine, theirs)})
    for other in ("teacher", NONE, SWAPPED):
        kept = [f["noise"]["kept"][other] for f in found]
        row = difference(kept, [0.0] * len(kept))
        rows.append({"what": "kept under noise", "minus": other, **row})
    return [{"method": method, **row} for row in rows]


def options_of(words: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add = parser.add_argument
    add("--teacher", required=True)
    add("--other", required=True)
    add("--out", required=True)
    add("--file", required=True)
    add("--methods", nargs="+", default=["kdsnn-feature", "affine"])
    add("--steps", type=int, default=2)
    add("--seeds", type=int, default=3)
    add("--images", type=int, default=1000)
    add("--jobs", type=int, default=2)
    options, options.rest = parser.parse_known_args(words)
    return options


def main() -> None:
    options = options_of()
    seeds = range(options.seeds)
    kinds = list(students(options, 0))
    rows = in_turn(partial(trained, options), [(k, s) for s in seeds for k in kinds], options.jobs)
    cells = [(method, seed) for seed in seeds for method in options.methods]
    found = in_turn(partial(measured, options), cells, options.jobs)
    pairs = list(zip(cells, found, strict=True))
    by_method = {m: [f for (method, _), f in pairs if method == m] for m in options.methods}
    effects = [row for method, each in by_method.items() for row in differences(method, each)]
    settings = {key: getattr(options, key) for key in ("methods", "steps", "seeds", "images")}
    settings["distill"] = options.rest
    teachers = [read_json(Path(t) / "results.json") for t in (options.teacher, options.other)]
    settings["teachers"] = [each["rows"][0]["accuracy"] for each in teachers]
    write(options.file, "alike", settings, rows=rows, measures=by_method, differences=effects)
    for row in effects:
        print(row)


if __name__ == "__main__":
    main()
