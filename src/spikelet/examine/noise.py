"""`noise`: accuracy under noise on the images and inside the network, beside other networks."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from spikelet.examine.exposure import DRAWS, INSIDE, Exposure, Plan, clean_hits, exposures, planned
from spikelet.examine.natural import natural
from spikelet.examine.seeds import matched
from spikelet.examine.subject import Subject
from spikelet.examine.table import Tell
from spikelet.measure.immunity import Right, against, over_kinds, over_seeds, summary
from spikelet.report.findings import kept_of_a_pair, kept_over_seeds

DEFINITIONS = {
    "accuracy": "share of images answered rightly, at each level; level 0 is clean",
    "deviation": "standard deviation of it over draws, on the first `n_again` images",
    "area": "mean accuracy over the levels, 0 included",
    "drop": "1 - (mean accuracy over the levels above 0) / (clean accuracy)",
    "versus": "the run's network less the other, paired by image, with 95 % intervals over images "
    "(of noise that is the same for all images over its draws, too). They are about these two "
    "trained networks: what other images would change, not what another seed of training would",
    "over_seeds": "the run's way of training less another, paired by seed and image, where two or "
    "more runs of each were measured; 95 % intervals over seeds and images",
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
    - `over_seeds`, a row for each other way of training of which two seeds or more take part.
    - `n` images, `definitions` of these words, `notes` about files that could not be used.
    """
    plan = planned(subject)
    files = natural(plan.subject, len(plan.subject.dataset.test))
    with torch.no_grad():
        tell(0, 1, "clean images")
        shown = exposures(plan, clean_hits(plan), files)
        found: dict[str, Mapping[str, Right]] = {}
        for done, (kind, exposure) in enumerate(shown.items()):
            tell(done, len(shown), kind)
            found[kind] = exposure.show()
    outer = {kind: rights for kind, rights in found.items() if shown[kind].where != INSIDE}
    names = [each.seen.name for each in plan.running]
    return {
        "network": subject.student.name,
        "n": len(plan.subject.dataset.test),
        "networks": {name: _overall(outer, name) for name in names},
        "kinds": {kind: _kind(shown[kind], found[kind], names, plan) for kind in shown},
        "versus": _versus(found, outer, names, subject),
        "over_seeds": _over_seeds(outer, subject),
        "definitions": DEFINITIONS,
        "notes": files.notes,
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


def _over_seeds(outer: Found, subject: Subject) -> list[dict[str, Any]]:
    """The run's way of training beside the others, over all noise on images."""
    rows = []
    for each in matched(subject):
        pairs = [
            tuple(over_kinds([rights[name] for rights in outer.values()]) for name in names)
            for names in each.networks.values()
        ]
        who = {"method": each.method, "minus": each.minus, "seeds": list(each.networks)}
        names = [list(names) for names in each.networks.values()]
        rows.append({**who, "networks": names, **over_seeds([(a, b) for a, b in pairs])})
    return rows


def say(found: Mapping[str, Any]) -> list[str]:
    """What was found, in sentences."""
    lines = [
        f"{name}: {100 * each['clean']:.1f} % clean, {100 * each['noisy']:.1f} % under noise on "
        f"the images (the first {found['n']})"
        for name, each in found["networks"].items()
    ]
    rows = found.get("over_seeds", ())
    for row in rows:
        if row["kept"]["mean"] is not None:
            names = row["method"], row["minus"]
            lines.append(kept_over_seeds(*names, len(row["seeds"]), row["kept"]))
    mine = found.get("network", "it")
    covered = {name for row in rows for pair in row["networks"] for name in pair}
    for other, kinds in found["versus"].items():
        if kinds["all"]["kept"]["mean"] is not None and other not in covered:
            lines.append(kept_of_a_pair(mine, other, kinds["all"]))
    return [*lines, *found.get("notes", ())]
