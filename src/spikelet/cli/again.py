"""The command line that describes a recipe: every leaf that is not a default, as a flag."""

from __future__ import annotations

import dataclasses
import json
import shlex
from collections.abc import Iterator, Mapping
from typing import Any

from spikelet.errors import UserError
from spikelet.recipe import Recipe

Fields = Mapping[str, Any]


def command_of(recipe: Recipe, out: str) -> str | None:
    """A line that makes a run of the same recipe in a new folder; None where no flags say it.

    The line is read back: it is given only if the recipe it describes is the same.
    """
    try:
        words = _words(recipe)
        for _ in range(3):  # a kind brings defaults of its own, which may have to be set in turn
            read = _read(recipe.task, words)
            differing = list(_differences(_fields(read), _fields(recipe)))
            if not differing:
                return shlex.join(["spikelet", recipe.task, *words, "--out", out])
            words += [word for leaf in differing for word in leaf]
    except (UserError, OSError):
        return None
    return None


def _words(recipe: Recipe) -> list[str]:
    """The flags that choose the defaults."""
    words = ["--data", str(recipe.data["kind"])]
    if recipe.task == "distill":
        teacher = recipe.teacher or {}
        words = ["--teacher", str(teacher.get("run") or teacher.get("kind")), *words]
        if teacher.get("weights"):
            words += ["--weights", str(teacher["weights"])]
        words += ["--method", recipe.method.partition("+")[0], "--steps", str(recipe.steps)]
    if isinstance(recipe.ann, dict):
        words += ["--ann", str(recipe.ann["run"])]
    elif recipe.model is not None:
        words += ["--model", str(recipe.model["kind"])]
        if recipe.model.get("width") is not None:
            words += ["--width", str(recipe.model["width"])]
    elif recipe.task == "distill" and (recipe.teacher or {}).get("width") is not None:
        words += ["--width", str((recipe.teacher or {})["width"])]
    return [*words, "--seed", str(recipe.seed)]


def _read(task: str, words: list[str]) -> Recipe:
    """The recipe that a line describes."""
    from spikelet.cli import distill, teach
    from spikelet.cli.arguments import parse
    from spikelet.cli.leaves import split

    rest, leaves = split(words)
    options = parse(task, rest)
    return (teach if task == "teach" else distill).recipe_of(options, leaves)


def _fields(recipe: Recipe) -> dict[str, Any]:
    return dataclasses.asdict(recipe)


def _differences(have: Fields, want: Fields, path: str = "") -> Iterator[list[str]]:
    """A flag with its words for each leaf of `want` that `have` has not; kinds go first.

    Raises:
        UserError: if a leaf would have to be taken away, which no flag does.
    """
    if path not in ("", "data") and set(have) - set(want):
        raise UserError(path, "it has fields that the recipe has not", "no flag removes them")
    for name in sorted(want, key=lambda name: name != "kind"):
        value, known = want[name], have.get(name)
        place = f"{path}.{name}" if path else name
        if (value == known and name in have) or place == "method":
            continue
        if isinstance(value, Mapping) and place not in ("data", "model", "teacher"):
            start = known if isinstance(known, Mapping) else {}
            if start.get("kind") != value.get("kind"):
                yield _flag(f"{place}.kind", value.get("kind"))
                start = {"kind": value.get("kind")}
            yield from _differences(start, value, place)
        elif isinstance(value, Mapping):
            yield from _differences(known or {}, value, place)
        elif place == "augment":
            yield from _augments(value)
        else:
            yield _flag(place, value)


def _augments(specs: Any) -> Iterator[list[str]]:
    """The list of augmentations, and the fields of each."""
    if specs is None:
        raise UserError("augment", "the data set's own", "no flag brings them back")
    yield ["--augment", *(str(spec["kind"]) for spec in specs or [{"kind": "none"}])]
    for number, spec in enumerate(specs):
        yield from _differences({"kind": spec["kind"]}, spec, f"augment.{number}")


def _flag(path: str, value: Any) -> list[str]:
    """A leaf as it is typed."""
    if value is None:
        return [f"--{path}", "none"]
    text = value if isinstance(value, str) else json.dumps(value)
    return [f"--{path}={text}"] if text.startswith("-") else [f"--{path}", text]
