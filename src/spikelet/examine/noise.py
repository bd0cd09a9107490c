"""`noise`: accuracy under noise on the images and inside the network, beside other networks."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from spikelet.examine.exposure import DRAWS, INSIDE, Exposure, Plan, clean_hits, exposures, planned
from spikelet.examine.subject import Subject
from spikelet.examine.table import Tell
from spikelet.measure.immunity import Right, against, over_kinds, summary
from spikelet.report.findings import signed

DEFINITIONS = {
    "accuracy": "share of images answered rightly, at each level; level 0 is clean",
    "deviation": "standard deviation of it over draws, on the first `n_again` images",
    "area": "mean accuracy over the levels, 0 included",
    "drop": "1 - (mean accuracy over the levels above 0) / (clean accuracy)",
    "versus": "the run's network less the other, paired over images, with 95 % intervals",
    "kept": "difference of the accuracy under noise on the images that both answer rightly when "
    "clean: the part of the gain that clean accuracy does not explain",
    "all": "over all kinds of noise on images, each counted the same",
}
Found = Mapping[str, Mapping[str, Right]]


def examine(subject: Subject, tell: Tell) -> dict[str, Any]:
    """Accuracy by kind and level for every network, and the run's beside each of the others.

    - `kinds`, by name: `where` ("image", "file", "network"), `unit`, `levels` from 0, `draws` with
      `n_again` images in all but the first, and `networks` by name: `accuracy` and `deviation` by
      level, `area`, `drop`; None where the noise means nothing.
    - `networks`: `clean`, `noisy`, `area` and `drop` over all noise on images.
    - `versus`, by the other's name: `against` by kind, and under "all" over all noise on images.
    - `n` images, `definitions` of these words.
    """
    plan = planned(subject)
    with torch.no_grad():
        tell(0, 1, "clean images")
        shown = exposures(plan, clean_hits(plan))
        found: dict[str, Mapping[str, Right]] = {}
        for done, (kind, exposure) in enumerate(shown.items()):
            tell(done, len(shown), kind)
            found[kind] = exposure.show()
    outer = {kind: rights for kind, rights in found.items() if shown[kind].where != INSIDE}
    names = [each.seen.name for each in plan.running]
    return {
        "n": len(plan.subject.dataset.test),
        "networks": {name: _overall(outer, name) for name in names},
        "kinds": {kind: _kind(shown[kind], found[kind], names, plan) for kind in shown},
        "versus": _versus(found, outer, names, subject),
        "definitions": DEFINITIONS,
    }


def _kind(
    exposure: Exposure, found: Mapping[str, Right], names: list[str], plan: Plan
) -> dict[str, Any]:
    """What one kind came to."""
    return {
        "where": exposure.where,
        "unit": exposure.unit,
        "levels": [0, *exposure.levels],
        "draws": DRAWS if exposure.drawn else 1,
        "n_again": plan.again if exposure.drawn else 0,
        "networks": {name: summary(found[name]) if name in found else None for name in names},
    }


def _overall(outer: Found, name: str) -> dict[str, Any]:
    """A network over all noise on images."""
    whole = summary(over_kinds([rights[name] for rights in outer.values()]))
    clean, *noisy = whole["accuracy"]
    return {
        "clean": clean,
        "noisy": sum(noisy) / len(noisy),
        "area": whole["area"],
        "drop": whole["drop"],
    }


def _versus(found: Found, outer: Found, names: list[str], subject: Subject) -> dict[str, Any]:
    """The run's own network beside each of the others."""
    mine = subject.student.name
    result: dict[str, Any] = {}
    for other in (name for name in names if name != mine):
        both = {k: rights for k, rights in found.items() if {mine, other} <= set(rights)}
        ours, theirs = (over_kinds([r[name] for r in outer.values()]) for name in (mine, other))
        result[other] = {
            "all": against(ours, theirs, subject.seed),
            **{k: against(rights[mine], rights[other], subject.seed) for k, rights in both.items()},
        }
    return result


def say(found: Mapping[str, Any]) -> list[str]:
    """What was found, in sentences."""
    lines = [
        f"{name}: {100 * each['clean']:.1f} % clean, {100 * each['noisy']:.1f} % under noise on "
        f"the images (the first {found['n']})"
        for name, each in found["networks"].items()
    ]
    for other, kinds in found["versus"].items():
        kept = kinds["all"]["kept"]
        if kept["mean"] is not None:
            lines.append(f"beside {other}, {_kept(kept)}")
    return lines


def _kept(kept: Mapping[str, float]) -> str:
    """A paired difference with its interval, and whether it shows anything."""
    low, high = 100 * kept["low"], 100 * kept["high"]
    words = "no difference is shown" if low <= 0 <= high else "noise costs it "
    if low > 0 or high < 0:
        words += "less" if low > 0 else "more"
    return (
        f"{words}: of the images both answer rightly when clean it keeps "
        f"{signed(100 * kept['mean'], 1)} points (95 % interval {signed(low, 1)} to "
        f"{signed(high, 1)})"
    )
