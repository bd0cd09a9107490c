"""Errors about a field of the recipe, told by the flag that gave the field its value."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from spikelet.cli.runs import PLACES
from spikelet.errors import UserError

# what else the package calls a flag's value by; every flag also goes by its own name
FIELDS = {
    "data": ("data.kind",),
    "data_root": ("data.root",),
    "download": ("data.download",),
    "model": ("model.kind",),
    "out": ("run",),
    "resume": ("run",),
    "teacher": ("teacher.run", "teacher.kind", "run"),
    "validation": ("data.validation",),
    "weights": ("teacher.weights", "model.weights"),
    "width": ("model.width", "teacher.width"),
}
POSITIONAL = ("measure", "report")  # verbs whose runs are words without a flag
FREELY = ("data_root", "validation")  # flags that most verbs have, with values of their own
# "steps = 0", "validation=-1", "--tune-rates 0.0", "--methods none: threshold = 0"
ARGUMENT = re.compile(
    r"(?P<method>--methods .*: )?(?P<dashes>--)?(?P<name>[A-Za-z_][\w.-]*)"
    r"(?:(?: = |=| )(?P<value>.*))?",
    re.DOTALL,
)


class Typed(NamedTuple):
    """A flag of a command and the words behind it; `joint` is "=" where it was written so."""

    flag: str
    words: tuple[str, ...]
    joint: str = " "

    @property
    def fields(self) -> tuple[str, ...]:
        """The dotted places that the flag gives a value to."""
        name = _underscored(self.flag.removeprefix("--"))
        placed = (PLACES[name],) if name in PLACES else ()
        return (name, *placed, *FIELDS.get(name, ()))


def told(error: UserError, words: Sequence[str]) -> UserError:
    """The error about a flag as it was typed, if one of `words` gave the value complained of."""
    found = ARGUMENT.fullmatch(error.argument)
    if found is None:
        return error
    name, value = _underscored(found["name"]), found["value"]
    if value is None and (found["method"] or found["dashes"]):
        return error
    fitting = [each for each in reversed(typed(words)) if _says(each, value)]
    best = max(fitting, key=lambda each: _closeness(each, name), default=None)
    if best is None or not _closeness(best, name):
        return _by_default(error, name, value, words)
    return UserError(_shown(best, value), error.message, error.fix)


def _by_default(error: UserError, name: str, value: str | None, words: Sequence[str]) -> UserError:
    """The error about a value that no flag gave, by the flag or word that would change it."""
    if value is None or not words:
        return error
    if name == "run" and words[0] in POSITIONAL:
        return UserError(f"RUN {value}", error.message, error.fix)
    flag = next((flag for flag, also in FIELDS.items() if f"data.{name}" in also), name)
    for each in typed(words):
        above = Path(" ".join(each.words)).expanduser()
        if name == "data_root" and name in each.fields and Path(value).is_relative_to(above):
            return UserError(_shown(each, None), f"{value}: {error.message}", error.fix)
    shown = f"--{flag.replace('_', '-')}"
    return UserError(f"{shown} {value}", error.message, error.fix) if flag in FREELY else error


def typed(words: Sequence[str]) -> list[Typed]:
    """The flags among the words of a command, in order."""
    found: list[Typed] = []
    for word in words:
        flag, equals, value = word.partition("=")
        if flag.startswith("--"):
            found.append(Typed(flag, (value,), "=") if equals else Typed(flag, ()))
        elif found and found[-1].joint == " ":
            found[-1] = Typed(found[-1].flag, (*found[-1].words, word))
    return found


def _underscored(name: str) -> str:
    return name.replace("-", "_")


def _closeness(each: Typed, name: str) -> int:
    """How well a flag fits a field's name: the same place, its end, a part of it; or not at all."""
    leaf = "." in each.flag
    if name in each.fields:
        return 3
    if any(field.endswith(f".{name}") for field in each.fields):
        return 2
    return int(leaf and any(name.startswith(f"{field}.") for field in each.fields))


def _says(each: Typed, value: str | None) -> bool:
    """Whether a flag was given this value; any, where none is told."""
    if value is None:
        return True
    if not each.words:
        return value == "True"
    return any(_equal(value, word) for word in (" ".join(each.words), *each.words))


def _equal(value: str, word: str) -> bool:
    """Whether a value as it is told is what a word means: the same text, number or place."""
    value = value.strip("'\"")
    try:
        return math.isclose(float(value), float(word), rel_tol=1e-5)
    except ValueError:
        return value == word or ("/" in value and Path(value) == Path(word).expanduser().resolve())


def _shown(each: Typed, value: str | None) -> str:
    """The flag as it was typed; of several words only the one that is complained of."""
    words = each.words
    if value is not None and len(words) > 1:
        words = next(((word,) for word in words if _equal(value, word)), words)
    return each.joint.join((each.flag, " ".join(words))) if words else each.flag
