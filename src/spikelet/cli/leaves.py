"""Leaves of a recipe given as flags: `--training.learning-rate 0.05`, `--terms.hybrid.weight 2`.

A value takes the type that the class or function behind the spec declares for it.
"""

from __future__ import annotations

import dataclasses
import inspect
import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from spikelet.errors import UserError, unknown
from spikelet.recipe import (
    AUGMENTS,
    DATA,
    ENCODERS,
    EXECUTES,
    MODELS,
    NEURONS,
    SURROGATES,
    TERMS,
    Recipe,
    Spec,
    Table,
    Training,
    another_kind,
    import_path,
    plain,
    resolve,
    validated,
)

ONE = {"data": DATA, "model": MODELS, "teacher": MODELS, "neuron": NEURONS}
ONE |= {"execute": EXECUTES, "encode": ENCODERS}
TRAININGS = ("training", "ann")
MANY = {"terms": TERMS, "augment": AUGMENTS}
NESTED = {"surrogate": SURROGATES, "neuron": NEURONS}
ZOOS = ("timm:", "torchvision:")
SET_ELSEWHERE = {"encode.steps": "--steps sets it", "encode.mean": "the data set it"}
SET_ELSEWHERE |= {"encode.std": "the data set it"}


class Leaf(NamedTuple):
    """A dotted place of the recipe, the words given for it, and how the user called it."""

    path: str
    words: tuple[str, ...]
    flag: str


def split(words: Sequence[str]) -> tuple[list[str], list[Leaf]]:
    """Fixed flags and what belongs to them; leaves (`--a.b`, or a dotless list `--augment`)."""
    rest, leaves, index = [], [], 0
    while index < len(words):
        flag, equals, value = words[index].partition("=")
        index += 1
        if not flag.startswith("--") or ("." not in flag and flag != "--augment"):
            rest.append(words[index - 1])
            continue
        end = index
        while not equals and end < len(words) and not words[end].startswith("--"):
            end += 1
        given = (value,) if equals else tuple(words[index:end])
        leaves.append(Leaf(flag.removeprefix("--").replace("-", "_"), given, flag))
        index = end
    return rest, leaves


def overridden(recipe: Recipe, leaves: Sequence[Leaf]) -> Recipe:
    """The recipe with these leaves set, later ones winning; a kind is set before its fields.

    Raises:
        UserError: naming a place that is not there, with the nearest, or a value of a wrong type.
    """
    fields, paths = dataclasses.asdict(recipe), {leaf.path for leaf in leaves}
    for part in TRAININGS:
        if f"{part}.epochs" in paths and fields[part] and "run" not in fields[part]:
            fields[part]["least_steps"] = 0  # who names epochs means them
    for leaf in sorted(leaves, key=lambda leaf: not _chooses(leaf)):
        _place(fields, leaf)
    if fields["start"] == "scratch" and not any(path.startswith("ann.") for path in paths):
        fields["ann"] = None
    return Recipe.from_json(json.dumps(fields))


def _chooses(leaf: Leaf) -> bool:
    """Whether a leaf says which kind to take."""
    name = leaf.path.rpartition(".")[2]
    return name == "kind" or name in NESTED or leaf.path == "augment"


def _place(fields: dict[str, Any], leaf: Leaf) -> None:
    """Set one leaf in the fields of a recipe."""
    if leaf.path in SET_ELSEWHERE:
        raise UserError(leaf.flag, SET_ELSEWHERE[leaf.path], "leave the flag out")
    head, *rest = leaf.path.split(".")
    if head == "augment" and not rest:
        kinds = () if leaf.words == ("none",) else leaf.words
        for kind in kinds:
            import_path(leaf.flag, kind, AUGMENTS)
        fields["augment"] = [{"kind": kind} for kind in kinds]
    elif head in TRAININGS and len(rest) == 1:
        if fields[head] is None:
            what = "the student begins as its teacher, which is trained already"
            raise UserError(leaf.flag, what, "leave it out, or add --model")
        if "run" in fields[head]:
            raise UserError(leaf.flag, "--ann names a run, which is trained", "leave it out")
        fields[head][rest[0]] = _value(leaf, head, Training, rest[0])
    elif head in ONE and rest:
        _set(fields, head, rest, leaf, ONE[head], head)
    elif head in MANY and len(rest) > 1:
        holder, key = _member(fields[head], rest[0], leaf, rest[1] == "kind")
        _set(holder, key, rest[1:], leaf, MANY[head], f"{head}.{key}")
    elif not rest and head in {each.name for each in dataclasses.fields(Recipe)}:
        fields[head] = _value(leaf, "", Recipe, head)
    else:
        raise _nowhere(head, leaf)


def _nowhere(head: str, leaf: Leaf) -> UserError:
    """The error for a path that leads nowhere."""
    known = (*TRAININGS, *ONE, *MANY)
    if head not in known:
        return unknown(leaf.flag, head, known)
    form = f"--{head}.NAME.FIELD" if head in MANY else f"--{head}.FIELD"
    return UserError(leaf.flag, "this is no leaf of the recipe", f"write {form} and a value")


def _member(holder: Any, name: str, leaf: Leaf, new: bool) -> tuple[Any, Any]:
    """A term by its name or an augmentation by its number; a new term may be given a kind."""
    if holder is None or isinstance(holder, list):
        numbers = [str(index) for index in range(len(holder or []))]
        if name not in numbers:
            if not numbers:
                fix = "name them first, such as --augment crop flip"
                raise UserError(leaf.flag, "the augmentations are the data set's own", fix)
            raise unknown(leaf.flag, name, numbers)
        return holder, int(name)
    names = {key.replace("-", "_"): key for key in holder}
    if name not in names and not new:
        raise unknown(leaf.flag, name, holder or ["(this method has no terms)"])
    return holder, names.get(name, name)


def _set(holder: Any, key: Any, rest: list[str], leaf: Leaf, table: Table, where: str) -> None:
    """Set a field of the spec `holder[key]`, or choose its kind."""
    spec = holder.get(key) if isinstance(holder, dict) else holder[key]
    if rest == ["kind"]:
        _choose(holder, key, spec, leaf, table)
    elif spec is None:
        raise UserError(leaf.flag, f"this recipe names no {where}", f"add --{where}.kind first")
    elif "run" in spec:
        raise UserError(leaf.flag, f"the {where} is a finished run", "leave it out")
    elif rest[0] in NESTED and len(rest) <= 2:
        nested = rest[1:] or ["kind"]
        _set(spec, rest[0], nested, leaf, NESTED[rest[0]], f"{where}.{rest[0]}")
    elif len(rest) > 1:
        raise UserError(leaf.flag, f"{where}.{rest[0]} has no fields", "shorten it")
    else:
        spec[rest[0]] = _field(leaf, spec, table, where, rest[0])


def _choose(holder: Any, key: Any, spec: Spec | None, leaf: Leaf, table: Table) -> None:
    """Another kind of a spec, with its own defaults but for what every kind shares."""
    if len(leaf.words) != 1:
        raise UserError(leaf.flag, "expected one name", f"choose one of {', '.join(table)}")
    import_path(leaf.flag, leaf.words[0], table)
    if spec is None or spec.get("kind") != leaf.words[0]:
        holder[key] = another_kind(str(key), leaf.words[0], spec)


def _field(leaf: Leaf, spec: Spec, table: Table, where: str, name: str) -> Any:
    """The value of a field, of the type that what the spec's kind names declares."""
    kind = spec["kind"]
    if table is MODELS:
        from spikelet.models import build_model

        if kind.startswith(ZOOS) or name in ("width", "weights", "pretrained"):
            return _value(leaf, where, build_model, name)
    target = resolve(where, kind, table)
    others = [] if table in (MODELS, DATA) else _that_take(name, where, table)
    if others and name not in inspect.signature(target).parameters:
        fix = f"take it out, or choose --{where}.kind {' or '.join(others)}"
        raise UserError(leaf.flag, f"{kind} has no {name}", fix)
    return _value(leaf, where, target, name, table is EXECUTES)


def _that_take(name: str, where: str, table: Table) -> list[str]:
    """The kinds of a table that have a field."""
    kinds = {kind: inspect.signature(resolve(where, kind, table)) for kind in table}
    return [kind for kind, signature in kinds.items() if name in signature.parameters]


def _value(
    leaf: Leaf, where: str, target: Callable[..., Any], name: str, binding: bool = False
) -> Any:
    """The words of a leaf as plain data of the declared type; the first complaint if none fits."""
    parameters = inspect.signature(target).parameters
    named = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
    given = {
        key: None
        for key, each in parameters.items()
        if each.default is each.empty and each.kind in named and key != name and not binding
    }
    typed = name in parameters and parameters[name].annotation is not inspect.Parameter.empty
    complaint = None
    for candidate in _readings(leaf.words, typed):
        try:
            fields = validated(where, target, {name: candidate}, given, binding)
            return plain(where, fields[name])
        except UserError as error:
            complaint = complaint or error
    assert complaint is not None
    raise complaint


def _readings(words: tuple[str, ...], typed: bool) -> list[Any]:
    """What the words may mean, the likeliest first: a switch, none, JSON, a word, a list."""
    if not words:
        return [True]
    if len(words) > 1:
        return [list(words)]
    word = words[0]
    if word.lower() in ("none", "null"):
        return [None, word]
    decoded = _decoded(word)
    if isinstance(decoded, list | Mapping) or not typed:
        return [decoded]
    return [word, [word]]


def _decoded(word: str) -> Any:
    """A word as JSON, or as itself; True and False as Python writes them too."""
    try:
        return json.loads({"True": "true", "False": "false"}.get(word, word))
    except ValueError:
        return word
