"""Semantic alignment across modalities: events and images of the same classes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, final

import torch
from torch import Tensor, nn

from spikelet.errors import UserError
from spikelet.terms.mapping import Mapping, Places, fitted
from spikelet.terms.relation import SILENT, rows
from spikelet.terms.term import Binding, Pairs, Reads, Step, Term, select


def unit_rows(x: Tensor) -> Tensor:
    """Rows "B D" less their mean, of length 1; one that is the mean stays near 0."""
    moved = x - x.mean(0)
    return moved / (moved.square().sum(1, keepdim=True) + SILENT).sqrt()


def misalignment(student: Tensor, teacher: Tensor) -> Tensor:
    """(1 / B^2) sum_ij (cos(s_i, t_j) - cos(t_i, t_j))^2 of rows "B D" of equal width.

    Rows are taken from their batch's mean, since features behind a ReLU all point one way. It is 0
    where event i is to every image j what the image paired with it is: the diagonal pulls an event
    to its own image, the rest to the likeness of the classes.
    """
    with torch.autocast(student.device.type, enabled=False):  # differences of near equal products
        s, t = unit_rows(student), unit_rows(teacher)
        return (s @ t.T - t @ t.T).square().mean()


@final
@dataclass(frozen=True)
class Semantic(Term):
    """Semantic alignment of cross-modal distillation (CKD, Ye et al., arXiv 2507.09269).

    What the abstract says: the semantic similarity of images and events is aligned, and matching
    features of ANN and SNN is left out in a later phase. Its formulas were not to be found; these
    are ours: `misalignment` of pooled mean features, the student's behind a mapping, until a share
    `until` of the training is done, then nothing.

    Args:
        weight: of the sum over places.
        on: "last", "all", "inner" or names of places, `student=teacher` where they differ.
        pool: positions per axis after average pooling; 0 keeps them.
        mapping: from the student's pooled features to the teacher's; "auto" is per channel for
            equal widths, else a ridge-fitted linear map.
        until: share of the training after which the term is 0.
    """

    weight: float = 10.0
    on: str | Sequence[str] = "last"
    pool: int = 1
    mapping: Mapping = "auto"
    until: float = 0.5
    coupled: ClassVar[bool] = True

    def __post_init__(self) -> None:
        if not 0 < self.until <= 1:
            what = "expected a share of the training above 0"
            raise UserError(f"semantic.until = {self.until}", what, "try 0.5")

    @property
    def fixed(self) -> bool:
        return False

    def taps(self, pairs: Pairs) -> Reads:
        chosen = select("semantic.on", self.on, pairs)
        return Reads({s: ("mean",) for s, _ in chosen}, {t: ("mean",) for _, t in chosen})

    def init(self, binding: Binding) -> nn.Module:
        assert binding.teacher is not None
        chosen, maps = select("semantic.on", self.on, binding.pairs), []
        for s, t in chosen:
            ours = rows(binding.student.taps[s].mean, self.pool)
            theirs = rows(binding.teacher.taps[t].mean, self.pool)
            maps.append(fitted(self.mapping, ours, theirs))
        return Places(chosen, maps)

    def __call__(self, own: nn.Module, step: Step) -> Tensor:
        assert isinstance(own, Places)
        losses = []
        for mapping, (s, t) in zip(own, own.pairs, strict=True):
            ours = mapping(rows(step.student.taps[s].mean, self.pool))
            losses.append(misalignment(ours, rows(step.taught.taps[t].mean, self.pool)))
        return torch.stack(losses).sum() * float(step.progress < self.until)
