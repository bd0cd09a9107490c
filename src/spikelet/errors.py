"""Errors a user can mend, and suggestions for misspelt names."""

from __future__ import annotations

import dataclasses
import difflib
from collections.abc import Iterable
from numbers import Integral, Real
from typing import Any

NUMBERS: dict[str, tuple[type, str]] = {
    "int": (Integral, "a whole number"),
    "float": (Real, "a number"),
}


class UserError(ValueError):
    """Bad input: names the argument, what was expected and what to do.

    Attributes:
        argument: the offending argument, with its value where that helps.
        message: what was expected and what was found, without a full stop.
        fix: what to do about it, without a full stop.
    """

    def __init__(self, argument: str, message: str, fix: str) -> None:
        super().__init__(f"`{argument}`: {message}; {fix}.")
        self.argument, self.message, self.fix = argument, message, fix


def unknown(argument: str, name: str, known: Iterable[str]) -> UserError:
    """The error for a name nobody knows, answered with the nearest known ones."""
    known = sorted(known)
    near = _nearest(name, known)
    fix = f"did you mean {' or '.join(near)}?" if near else f"choose one of {', '.join(known)}"
    return UserError(argument, f"{name!r} is not known", fix.rstrip("?"))


def require_numbers(made: Any, place: str = "") -> None:
    """Raises for a field of a dataclass that is declared a number, and is something else.

    Args:
        made: an instance whose fields are declared "int" or "float", perhaps "| None".
        place: what stands before the name of a field.
    """
    for each in dataclasses.fields(made):
        kind, _, other = str(each.type).partition(" | ")
        value = getattr(made, each.name)
        if kind not in NUMBERS or (value is None and other == "None"):
            continue
        accepted, words = NUMBERS[kind]
        if isinstance(value, bool) or not isinstance(value, accepted):
            what = f"expected {words}, got {type(value).__name__}"
            raise UserError(f"{place}{each.name} = {value!r}", what, "give a number")


def _nearest(name: str, known: Iterable[str]) -> list[str]:
    """Up to three names like this one; where one is far nearer than others, that one alone."""
    bare, mine = {each.lstrip("-"): each for each in known}, name.lstrip("-")  # dashes are alike
    near = difflib.get_close_matches(mine, bare, n=3, cutoff=0.5)
    ratios = [difflib.SequenceMatcher(None, each, mine).ratio() for each in near]
    return [bare[n] for n, ratio in zip(near, ratios, strict=True) if ratio > ratios[0] - 0.15]
