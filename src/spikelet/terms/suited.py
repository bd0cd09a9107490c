"""Whether losses can be computed as they are asked for, before anything is built."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from spikelet.errors import UserError, require_numbers
from spikelet.execute import Execute, gives, rate
from spikelet.terms.term import Term

RANK = {"mean": 0, "windows": 1, "steps": 2}


def require_suited(
    terms: Mapping[str, Term], execute: Execute, steps: Sequence[int], taught: bool = True
) -> None:
    """Raises unless the executor gives what the terms read, and they leave a loss to minimise.

    Args:
        terms: name -> loss.
        execute: how the student runs.
        steps: every number of time steps that a batch may have.
        taught: whether there is a teacher that the terms see.

    Raises:
        UserError: naming the first term or setting that does not fit.
    """
    windows = getattr(execute, "keywords", {}).get("windows", 1)
    if windows < 1 or any(each % windows for each in steps):
        several = f"all of {steps[0]} to {steps[-1]}, of which the encoder draws"
        what = several if len(steps) > 1 else f"the {steps[0]} steps"
        fix = "use one" if len(steps) == 1 else "use one, or direct encoding"
        raise UserError(f"windows = {windows}", f"expected a divisor of {what}", fix)
    if not terms:
        raise UserError("terms = {}", "there is nothing to learn from", "pass a term")
    available = gives(execute, min(steps))
    for name, term in terms.items():
        if not isinstance(term, Term):
            raise UserError(
                f"terms[{name!r}]",
                f"{type(term).__name__} is not a term",
                "derive a frozen dataclass from spikelet.Term",
            )
        require_numbers(term, f"terms.{name}.")
        if not 0 <= term.weight < math.inf:
            what = "expected a weight of 0 or more"
            raise UserError(f"terms.{name}.weight = {term.weight}", what, "try 1")
        if not 0 <= term.fade < math.inf:
            what = "expected 0 (the weight stays) or more (it falls to 0)"
            raise UserError(f"terms.{name}.fade = {term.fade}", what, "try 1")
        if term.taught and not taught:
            raise UserError("teacher = None", f"term {name!r} needs a teacher", "pass one")
        if RANK[term.time] > RANK[available]:
            way = getattr(execute, "func", execute)
            fixes = ["run it by bptt", *(["in more windows of `rate`"] if way is rate else [])]
            ran = getattr(way, "__name__", str(way))
            what = f"it has the mean's gradient only, and term {name!r} compares single {term.time}"
            fix = f"{', '.join(fixes)}, or take the term's form on the mean"
            raise UserError(f"execute = {ran}", what, fix)
    if all(term.fade for term in terms.values()):
        what = "every term fades, so that at the end of the training there is no loss"
        raise UserError(f"terms = {', '.join(terms)}", what, "set the fade of one to 0")
