"""Leaves of a recipe set from a flat table, where the recipe has them."""

from __future__ import annotations

import copy
import dataclasses
import json
import re
from collections.abc import Iterator, Mapping
from typing import Any

from spikelet.errors import UserError, unknown
from spikelet.recipe import Recipe, another_kind
from spikelet.recipe.methods import FUSED

GRIDS_OWN = ("task", "data", "model", "teacher", "method", "steps", "seed")


def overridden(recipe: Recipe, leaves: Mapping[str, Any]) -> tuple[Recipe, set[str]]:
    """The recipe with the leaves that it has, and the names of those.

    A kind is set before the fields beside it. A method that needs its own way of taking gradients
    keeps it (`qann`, and those that need every step), but takes `execute.fuse` where it compiles
    neurons; `qann`, which has no spikes, keeps its integrate-and-fire levels.

    Raises:
        UserError: for a leaf that no recipe has, or that is the grid's own.
    """
    fields, used = dataclasses.asdict(recipe), set()
    for part in ("training", "ann"):
        if f"{part}.epochs" in leaves and fields[part]:
            fields[part]["least_steps"] = 0  # who names epochs means them
    for path in sorted(leaves, key=_order):
        head, *rest = path.split(".")
        known = [each for each in fields if each not in GRIDS_OWN]
        if head in GRIDS_OWN:
            raise UserError(f"--{path}", "the grid sets it for every cell", "leave it out")
        if head not in known:
            raise unknown(f"--{path}", head, known)
        if _applies(recipe, head, rest, leaves):
            _place(fields, [head, *rest], copy.deepcopy(leaves[path]))
            used.add(path)
    if fields["start"] == "scratch" and not any(path.startswith("ann.") for path in leaves):
        fields["ann"] = None
    return Recipe.from_json(json.dumps(fields)), used


def variant(method: str) -> tuple[str, dict[str, Any]]:
    """A method's name and the settings in brackets behind it.

    Raises:
        UserError: for brackets without `leaf=value`.
    """
    name, bracket, rest = method.partition("[")
    if not bracket:
        return method, {}
    pairs = [pair.partition("=") for pair in re.split(r",(?=[\w.-]+=)", rest.removesuffix("]"))]
    if not rest.endswith("]") or not all(path and equal for path, equal, _ in pairs):
        what = "expected settings as in hybrid[hybrid.on=1,training.clip=2]"
        raise UserError(f"--methods {method}", what, "write leaf=value")
    return name, {path.replace("-", "_"): _value(path, text) for path, _, text in pairs}


def _value(path: str, text: str) -> Any:
    """A number, a truth value or a list as such; places are names, also where they are numbers."""
    if path.endswith(".on") and not text.startswith("["):
        return text
    try:
        return json.loads(text.lower() if text in ("True", "False", "None") else text)
    except ValueError:
        return None if text == "None" else text


def differences(a: Any, b: Any, path: str = "") -> Iterator[tuple[str, Any, Any]]:
    """(place, value in a, value in b) wherever two trees of plain data differ."""
    if isinstance(a, Mapping) and isinstance(b, Mapping):
        for key in sorted({*a, *b}):
            yield from differences(a.get(key), b.get(key), f"{path}.{key}".lstrip("."))
    elif a != b:
        yield path, a, b


def _order(path: str) -> tuple[bool, int]:
    """Kinds first, and what holds others before them."""
    return not path.endswith((".kind", ".surrogate")), path.count(".")


def _applies(recipe: Recipe, head: str, rest: list[str], leaves: Mapping[str, Any]) -> bool:
    """Whether a recipe takes part in a leaf."""
    if head == "terms":
        return bool(rest) and rest[0] in recipe.terms
    if head == "ann":
        return recipe.ann is not None
    if head == "execute":
        kind = recipe.execute["kind"]
        return kind == "rate" or (rest == ["fuse"] and kind in FUSED)
    if head == "neuron" and recipe.execute["kind"] == "quantised":
        of_time = rest in (["signed"], ["delay"], ["step_bias"])
        return leaves.get("neuron.kind", "IF") == "IF" and not of_time
    return True


def _place(fields: dict[str, Any], path: list[str], value: Any) -> None:
    """Set one leaf; another kind starts with its own defaults."""
    *way, last = path
    if last == "kind":
        *way, last = way
        value = another_kind(last, value, fields.get(last))
    elif last == "surrogate" and isinstance(value, str):
        value = {"kind": value}
    holder: Any = fields
    for key in way:
        holder = holder[int(key)] if isinstance(holder, list) else holder.get(key)
        if not isinstance(holder, dict | list):
            raise UserError(f"--{'.'.join(path)}", f"{key} has no fields here", "name its kind")
    index: Any = int(last) if isinstance(holder, list) else last
    before = holder[index] if isinstance(holder, list) else holder.get(last)
    same = path[-1] == "kind" and isinstance(before, dict) and before.get("kind") == value["kind"]
    if not same:
        holder[index] = value
