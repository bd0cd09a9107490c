"""A distillation method of one's own: attention maps, in one file outside the package.

    spikelet distill --teacher RUN --method none --steps 2 --out runs/own \
        --terms.attention.kind examples.own_method:Attention --terms.attention.weight 100
    spikelet compare --teacher RUN --methods logits examples.own_method:Attention --out runs/grid

Where a layer looks is Q = sum_c f_c^2 at unit length; the student's mean feature is asked to
look where its teacher does (LaSNN, arXiv 2304.09101; Zagoruyko and Komodakis, ICLR 2017).
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from spikelet.terms import Reads, Step, Term
from spikelet.terms.mapping import Places
from spikelet.terms.term import select


def attention(features: Tensor) -> Tensor:
    """Features "B C H W" to maps "B HW" of unit length; widths may differ."""
    maps = features.float().square().sum(1).flatten(1)
    return maps / (maps.square().sum(1, keepdim=True) + 1e-12).sqrt()


@dataclass(frozen=True)
class Attention(Term):
    """The mean squared distance of attention maps, summed over the places `on`."""

    weight: float = 100.0
    on: str = "all"

    def taps(self, pairs) -> Reads:
        chosen = select("attention.on", self.on, pairs)
        return Reads({s: ("mean",) for s, _ in chosen}, {t: ("mean",) for _, t in chosen})

    def init(self, binding) -> nn.Module:
        return Places(select("attention.on", self.on, binding.pairs), [])

    def __call__(self, own: nn.Module, step: Step) -> Tensor:
        pairs = [(step.student.taps[s].mean, step.taught.taps[t].mean) for s, t in own.pairs]
        gaps = [(attention(s) - attention(t)).square().mean() for s, t in pairs]
        return torch.stack(gaps).sum()
