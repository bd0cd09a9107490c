"""Terms on features: alignment through an affine projector, pairwise relations."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal, final

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from spikelet.terms.mapping import Pointwise, ridge
from spikelet.terms.term import Binding, Pair, Pairs, Reads, Step, Term, check_places, full, select
from spikelet.trace import Tap

On = str | Sequence[str]


class Places(nn.ModuleList):
    """One module for each pair of places (a term's own part)."""

    def __init__(self, pairs: Sequence[Pair], modules: Sequence[nn.Module]) -> None:
        super().__init__(modules)
        self.pairs = tuple(pairs)


def aligned(projected: Tensor, target: Tensor) -> Tensor:
    """|P(f_S) - f_T|^2 / |f_T|^2 over a batch "B ...": squared error in units of the energy."""
    energy = full(target).square().mean().clamp_min(1e-12)
    return F.mse_loss(full(projected), full(target)) / energy


@final
@dataclass(frozen=True)
class Affine(Term):
    """Feature alignment through an affine projector (Hu, Li, Deng, IOP NCE 2025, ade821).

    The published loss is not known; this is squared error over the teacher's energy, at the places
    `on`, of P(f_S), P a pointwise affine map of the given rank that starts at a ridge fit.

    Args:
        weight: of the sum over places.
        on: "last", "all", "inner" or names of places.
        feature: "spikes" aligns the mean of what propagates, "potential" the mean pre-reset
            potential with the teacher's pre-activation.
        rank: of the projector's weight; None for full.
    """

    weight: float = 1.0
    on: On = "last"
    feature: Literal["spikes", "potential"] = "spikes"
    rank: int | None = None

    def taps(self, pairs: Pairs) -> Reads:
        chosen = select("affine.on", self.on, pairs)
        fields = ("mean",) if self.feature == "spikes" else ("mean", "potential")
        return Reads(dict.fromkeys([s for s, _ in chosen], fields),
                     dict.fromkeys([t for _, t in chosen], fields))  # fmt: skip

    def init(self, binding: Binding) -> nn.Module:
        assert binding.teacher is not None
        chosen, modules = select("affine.on", self.on, binding.pairs), []
        for pair in chosen:
            source = self._feature(binding.student.taps[pair[0]])
            target = self._feature(binding.teacher.taps[pair[1]])
            check_places("affine.on", source, target, pair)
            modules.append(Pointwise(*ridge(source, target), rank=self.rank))
        return Places(chosen, modules)

    def _feature(self, tap: Tap) -> Tensor:
        if self.feature == "spikes":
            return tap.mean
        assert tap.potential is not None
        return tap.potential.mean(0)

    def __call__(self, own: nn.Module, step: Step) -> Tensor:
        assert isinstance(own, Places)
        return torch.stack(
            [
                aligned(
                    projector(self._feature(step.student.taps[s])),
                    self._feature(step.taught.taps[t]),
                )
                for projector, (s, t) in zip(own, own.pairs, strict=True)
            ]
        ).sum()


def gram(features: Tensor, pool: int) -> Tensor:
    """Cosine similarities "B B" of features "B C ...", average-pooled to pool x pool positions.

    Rows are divided by sqrt(|f|^2 + eps), so that a silent image has similarity 0 to all.
    """
    f = F.adaptive_avg_pool2d(full(features), pool) if features.ndim == 4 else full(features)
    f = f.flatten(1)
    f = f / (f.square().sum(1, keepdim=True) + 1e-8).sqrt()
    return f @ f.T


def relation(student: Tensor, teacher: Tensor, pool: int = 1) -> Tensor:
    """(1 / B^2) |G_T - G_S|_F^2 between the similarity matrices of two features "B C ..."."""
    return (gram(teacher, pool) - gram(student, pool)).square().mean()


@final
@dataclass(frozen=True)
class Relation(Term):
    """Pairwise relations (SuperSNN; "Knowledge Distill for Spiking Neural Networks", IJCNN 2024).

    Similarities of average-pooled, unit-length mean features within the batch; widths may differ.
    """

    weight: float = 10.0
    on: On = "last"
    pool: int = 1
    coupled: ClassVar[bool] = True

    def taps(self, pairs: Pairs) -> Reads:
        chosen = select("relation.on", self.on, pairs)
        return Reads({s: ("mean",) for s, _ in chosen}, {t: ("mean",) for _, t in chosen})

    def init(self, binding: Binding) -> nn.Module:
        return Places(select("relation.on", self.on, binding.pairs), [])

    def __call__(self, own: nn.Module, step: Step) -> Tensor:
        assert isinstance(own, Places)
        losses = [
            relation(step.student.taps[s].mean, step.taught.taps[t].mean, self.pool)
            for s, t in own.pairs
        ]
        return torch.stack(losses).sum()
