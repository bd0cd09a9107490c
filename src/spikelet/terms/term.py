"""What a term is, and what it sees."""

from __future__ import annotations

import difflib
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import ClassVar, Literal

import torch
from torch import Tensor, fx, nn

from spikelet.errors import UserError, unknown
from spikelet.trace import Trace

ANY = "any"  # `on` of a term that does without places where there are none
Pair = tuple[str, str]
Pairs = Sequence[Pair]


@dataclass(frozen=True)
class Reads:
    """What a term reads: path -> fields, on both sides, and whether it needs a teacher."""

    student: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    teacher: Mapping[str, tuple[str, ...]] = field(default_factory=dict)


@dataclass(frozen=True)
class Step:
    """One training step, as every term sees it.

    Attributes:
        student: the student's trace.
        teacher: the teacher's trace, without gradient, or None.
        labels: class indices "B".
        progress: share of the training that is done, 0 to 1 (a scalar in a CUDA graph).
        generator: source of randomness, on the CPU; None uses torch's own.
    """

    student: Trace
    teacher: Trace | None
    labels: Tensor
    progress: float | Tensor = 0.0
    generator: torch.Generator | None = None

    @property
    def taught(self) -> Trace:
        """The teacher's trace of a term that needs one."""
        assert self.teacher is not None
        return self.teacher


@dataclass(frozen=True)
class Binding:
    """What a term may use when it starts.

    Attributes:
        student: the student's trace on example images (its taps have shapes and values).
        teacher: the teacher's, or None.
        pairs: matching places (student path, teacher path) from input to output.
        suffix: the frozen teacher after a cut: features "B ..." to logits "B K".
        teacher_net: the teacher itself, to look at (which norm stands where), or None.
        classifier: the frozen teacher after the last pair.
    """

    student: Trace
    teacher: Trace | None
    pairs: tuple[Pair, ...]
    suffix: Callable[[str], fx.GraphModule]
    teacher_net: nn.Module | None = None

    @property
    def classifier(self) -> fx.GraphModule:
        return self.suffix(self.pairs[-1][1])


@dataclass(frozen=True)
class Term(ABC):
    """One loss: a frozen dataclass of its hyper-parameters.

    The Distiller applies `weight`, times (1 - progress)^fade: with `fade` above 0 the term counts
    less and less, and nothing at the end of the training.
    """

    coupled: ClassVar[bool] = False
    """Whether the loss of a batch is more than the mean of its images' losses.

    Where several processes share a batch, such a term is given all of it, with gradient.
    """
    gathers: ClassVar[bool] = False
    """Whether a coupled term gathers by itself, which may be less than all that it reads."""
    taught: ClassVar[bool] = True
    """Whether the term needs a teacher."""
    weight: float = 1.0
    fade: float = field(default=0.0, kw_only=True)

    @property
    def fixed(self) -> bool:
        """Whether the term is the same computation at every step: nothing drawn, no schedule."""
        return True

    @property
    def time(self) -> Literal["mean", "windows", "steps"]:
        """Whose gradient the term needs: that of the mean, of windows, or of every step."""
        return "mean"

    def taps(self, pairs: Pairs) -> Reads:
        """What the term reads besides the logits."""
        return Reads()

    def init(self, binding: Binding) -> nn.Module:
        """What the term must learn; nothing by default."""
        return nn.Identity()

    @abstractmethod
    def __call__(self, own: nn.Module, step: Step) -> Tensor:
        """The unweighted loss, a scalar, averaged over the batch."""


def select(argument: str, on: str | Sequence[str], pairs: Pairs) -> tuple[Pair, ...]:
    """The pairs that `on` means.

    Args:
        argument: name of the argument for the error.
        on: "last", "all", "inner" (all but the last), "any" (all, or none where nothing matches),
            their numbers "1", "2", ..., or places of the student, `student=teacher` where the
            names differ.
        pairs: the matching stage outputs.
    """
    if isinstance(on, str):
        known = {"last": pairs[-1:], "all": pairs, "inner": pairs[:-1], ANY: pairs}
        near = difflib.get_close_matches(on, known, cutoff=0.5)
        if near and on not in known and on not in dict(pairs):
            raise unknown(argument, on, known)
        if on.isdigit():
            if not 1 <= int(on) <= len(pairs):
                what = f"there are {len(pairs)} matching places"
                raise UserError(f"{argument} = {on!r}", what, f"give 1 to {len(pairs)}")
            return (pairs[int(on) - 1],)
        chosen = known.get(on)
        if chosen is None:
            return select(argument, [on], pairs)
        if not chosen and on != ANY:
            raise UserError(f"{argument} = {on!r}", *_no_place(argument, pairs))
        return tuple(chosen)
    same = dict(pairs)
    split = [place.partition("=") for place in on]
    return tuple((s, t or same.get(s, s)) for s, _, t in split)


def _no_place(argument: str, pairs: Pairs) -> tuple[str, str]:
    """Why "last", "all" or "inner" means no place, and what to do."""
    flag, other = f"--terms.{argument}", "choose a method without features, as logits"
    if pairs:  # then "inner" was asked for
        what = f"it means all matching places but the last, and there is one alone, {pairs[0][0]}"
        return what, f"give {flag} all, or {other}"
    what = "no stage of the student matches one of the teacher's"
    return what, f"name places by {flag}, `student=teacher`, or {other}"


def full(x: Tensor) -> Tensor:
    """Half precision as fp32; fp32 and fp64 as they are."""
    return x.float() if x.dtype.itemsize < 4 else x


def check_places(argument: str, student: Tensor, teacher: Tensor, pair: Pair) -> None:
    """Refuses two feature maps "B C ..." whose positions differ."""
    if student.shape[2:] != teacher.shape[2:]:
        raise UserError(
            argument,
            f"{pair[0]} has positions {tuple(student.shape[2:])}, "
            f"{pair[1]} {tuple(teacher.shape[2:])}",
            "pair places of equal resolution",
        )
