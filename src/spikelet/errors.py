"""Errors a user can mend, and suggestions for misspelt names."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


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


def _nearest(name: str, known: Iterable[str]) -> list[str]:
    """Up to three names like this one; where one is far nearer than others, that one alone."""
    bare, mine = {each.lstrip("-"): each for each in known}, name.lstrip("-")  # dashes are alike
    near = difflib.get_close_matches(mine, bare, n=3, cutoff=0.5)
    ratios = [difflib.SequenceMatcher(None, each, mine).ratio() for each in near]
    return [bare[n] for n, ratio in zip(near, ratios, strict=True) if ratio > ratios[0] - 0.15]
