"""Alignment of features through an affine projector."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, final

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from spikelet.errors import UserError
from spikelet.neuron import per_channel
from spikelet.processes import averaged
from spikelet.terms.mapping import Places, Pointwise, ridge
from spikelet.terms.term import Binding, Pairs, Reads, Step, Term, check_places, full, select
from spikelet.trace import Tap

QUIET = 0.1
"""Smallest deviation of a channel, as a share of the root mean square over all channels."""


def aligned(projected: Tensor, target: Tensor) -> Tensor:
    """|P(f_S) - f_T|^2 / |f_T|^2 over a batch "B ...": squared error in units of the energy.

    The energy is that of the batches of all processes.
    """
    energy = averaged(full(target).square().mean(), len(target)).clamp_min(1e-12)
    return F.mse_loss(full(projected), full(target)) / energy


def moments(target: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and deviation "C" of the channels of features "B C ...".

    A deviation is at least a tenth of the root mean square of all, so that a channel that is quiet
    on the examples does not outweigh the others later.
    """
    values = full(target).transpose(0, 1).flatten(1)
    deviation = values.std(1, unbiased=False)
    floor = QUIET * deviation.square().mean().sqrt().clamp_min(1e-12)
    return values.mean(1), deviation.maximum(floor)


@final
class Projection(nn.Module):
    """The projector P of one pair, and the target it is compared with.

    Args:
        source: the student's feature on the examples, "B C ...".
        target: the teacher's, "B D ...".
        rank: of the projector's weight; None for full.
        standard: whether targets are standardised per channel, with the examples' statistics.
    """

    mean: Tensor | None
    deviation: Tensor | None

    def __init__(self, source: Tensor, target: Tensor, rank: int | None, standard: bool) -> None:
        super().__init__()
        mean, deviation = moments(target) if standard else (None, None)
        self.register_buffer("mean", mean)
        self.register_buffer("deviation", deviation)
        self.projector = Pointwise(*ridge(source, self.target(target)), rank=rank)

    def target(self, feature: Tensor) -> Tensor:
        """(f_T - mean_c) / deviation_c, or f_T itself."""
        if self.mean is None or self.deviation is None:
            return feature
        return (feature - per_channel(self.mean, feature)) / per_channel(self.deviation, feature)

    def forward(self, source: Tensor) -> Tensor:
        return self.projector(source)


@final
@dataclass(frozen=True)
class Affine(Term):
    """Feature alignment through an affine projector (Hu, Li, Deng, IOP NCE 2025, ade821).

    The published loss is not known; this is the squared error, at the places `on`, of P(f_S), P a
    pointwise affine map of the given rank that starts at a ridge fit. Widths may differ.

    Args:
        weight: of the sum over places.
        on: "last", "all", "inner" or names of places, `student=teacher` where they differ.
        feature: "spikes" aligns the mean of what propagates, "potential" the mean pre-reset
            potential with the teacher's pre-activation (a spiking teacher's mean potential).
        rank: of the projector's weight, at least 1; None for full.
        normalise: "energy" divides by the mean square of the teacher's feature, so that a weight
            means the same at every place; "channel" standardises the teacher's feature per
            channel, with the examples' statistics; "none" is the plain squared error.
    """

    weight: float = 1.0
    on: str | Sequence[str] = "last"
    feature: Literal["spikes", "potential"] = "spikes"
    rank: int | None = None
    normalise: Literal["energy", "channel", "none"] = "energy"

    def taps(self, pairs: Pairs) -> Reads:
        chosen = select("affine.on", self.on, pairs)
        fields = ("mean",) if self.feature == "spikes" else ("mean", "potential")
        return Reads(dict.fromkeys([s for s, _ in chosen], fields),
                     dict.fromkeys([t for _, t in chosen], fields))  # fmt: skip

    def init(self, binding: Binding) -> nn.Module:
        assert binding.teacher is not None
        if self.rank is not None and self.rank < 1:
            raise UserError(f"affine.rank = {self.rank}", "expected 1 or more", "raise it")
        chosen, modules = select("affine.on", self.on, binding.pairs), []
        for pair in chosen:
            source = self._feature(binding.student.taps[pair[0]])
            target = self._feature(binding.teacher.taps[pair[1]])
            check_places("affine.on", source, target, pair)
            modules.append(Projection(source, target, self.rank, self.normalise == "channel"))
        return Places(chosen, modules)

    def _feature(self, tap: Tap) -> Tensor:
        if self.feature == "spikes":
            return tap.mean
        assert tap.potential is not None
        return tap.potential.mean(0)

    def __call__(self, own: nn.Module, step: Step) -> Tensor:
        assert isinstance(own, Places)
        losses = []
        for projection, (s, t) in zip(own, own.pairs, strict=True):
            assert isinstance(projection, Projection)
            projected = projection(self._feature(step.student.taps[s]))
            target = projection.target(self._feature(step.taught.taps[t]))
            if self.normalise == "energy":
                losses.append(aligned(projected, target))
            else:
                losses.append(F.mse_loss(full(projected), full(target)))
        return torch.stack(losses).sum()
