"""Which networks of a subject are the same two methods again, trained with other seeds."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from spikelet.examine.subject import Seen, Subject
from spikelet.recipe import Recipe
from spikelet.train import read_recipe

PLACES = ("root", "download", "workers", "seed")  # of data: the same but for places and the seed


@dataclass(frozen=True)
class Matched:
    """Two ways of training, each with several seeds.

    Attributes:
        method: what the run was trained with.
        minus: what the others were trained with.
        networks: seed -> names in the subject, of `method` and of `minus`.
    """

    method: str
    minus: str
    networks: Mapping[int, tuple[str, str]]


def matched(subject: Subject) -> list[Matched]:
    """The run's way of training beside each other one that shares two seeds or more with it.

    Two runs are trained in the same way if their recipes, teacher included, differ in the seed
    alone.
    """
    ways: dict[str, dict[int, Seen]] = {}
    methods: dict[str, str] = {}
    for seen, recipe in (*_own(subject), *_others(subject)):
        key = way(recipe)
        methods.setdefault(key, recipe.method)
        ways.setdefault(key, {}).setdefault(recipe.seed, seen)
    if subject.student.run is None or not ways:
        return []
    own, *others = ways
    return [
        Matched(methods[own], _called(methods, key, ways[key]), pairs)
        for key in others
        if len(pairs := _pairs(ways[own], ways[key])) > 1
    ]


def way(recipe: Recipe) -> str:
    """All of a recipe but its seed and places."""
    fields = dataclasses.asdict(recipe)
    del fields["seed"]
    fields["data"] = {k: v for k, v in fields["data"].items() if k not in PLACES}
    return json.dumps(fields, sort_keys=True, default=str)


def _own(subject: Subject) -> Iterator[tuple[Seen, Recipe]]:
    if subject.student.run is not None:
        yield subject.student, subject.loaded.recipe


def _others(subject: Subject) -> Iterator[tuple[Seen, Recipe]]:
    for seen in subject.others:
        if seen.run is not None:
            yield seen, read_recipe(Path(seen.run))


def _pairs(mine: Mapping[int, Seen], other: Mapping[int, Seen]) -> dict[int, tuple[str, str]]:
    return {seed: (mine[seed].name, other[seed].name) for seed in mine if seed in other}


def _called(methods: Mapping[str, str], key: str, runs: Mapping[int, Seen]) -> str:
    """A method's name, or where several ways have it that of their first network."""
    same = [other for other, name in methods.items() if name == methods[key]]
    return methods[key] if len(same) == 1 else next(iter(runs.values())).name
