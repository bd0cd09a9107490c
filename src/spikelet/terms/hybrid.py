"""Hybrid branches: the student's prefix, a learnable mapping, the teacher's frozen suffix."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import final

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

from spikelet.errors import UserError
from spikelet.terms.logits import kl, warm
from spikelet.terms.mapping import Mapping, fitted
from spikelet.terms.term import Binding, Pair, Pairs, Reads, Step, Term, check_places, full, select


class Branches(nn.Module):
    """The mappings C_k, registered, and the teacher's suffixes, not registered."""

    def __init__(
        self,
        pairs: Sequence[Pair],
        mappings: Sequence[nn.Module],
        suffixes: Sequence[fx.GraphModule],
    ) -> None:
        super().__init__()
        self.pairs = tuple(pairs)
        self.mappings = nn.ModuleList(mappings)
        self._suffixes = tuple(suffixes)

    def logits(self, k: int, features: Tensor) -> Tensor:
        """z_k = A_n o ... o A_{k+1}(C_k(r_k)): features "B ..." to logits "B K"."""
        return self._suffixes[k](self.mappings[k](features))


def active(count: int, progress: float) -> int:
    """How many of `count` branches are on, from the shallowest cut on, at a progress of 0 to 1.

    One at the start, all from half of the training on, evenly between: branch k of n is on once
    2 progress (n - 1) >= k.
    """
    return min(count, 1 + int(2 * progress * (count - 1)))


@final
@dataclass(frozen=True)
class Hybrid(Term):
    """Hybrid block-wise replacement (arXiv 2503.16572): losses of z_k, summed over branches k.

    M_k is the student up to stage k, a learnable mapping C_k of its mean feature, and the frozen
    teacher from stage k + 1. Gradients of a branch avoid every surrogate above its cut. Weights,
    tau and the form of C_k are not published; these are ours. "Progressively" is read as the depth
    of replacement, all branches trained together; `curriculum` is the other reading.

    Args:
        weight: of the sum over branches.
        on: cuts; "inner" is every stage output but the last, "all" adds the last one: the
            student's features before the teacher's classifier.
        ce: share of the cross entropy with the labels.
        kl: share of the KL divergence from the teacher's logits.
        tau: temperature of that divergence, above 0.
        mapping: form of C_k; "auto" starts at the identity or at a ridge fit.
        sample: take one branch per batch, its loss times their number (unbiased, cheaper).
        curriculum: start with the shallowest cut alone (most of M_k is the teacher) and add the
            deeper ones evenly, all from half of the training on.
        branch_weights: w_k of each branch, from input to output; None for 1 each.
    """

    weight: float = 1.0
    on: str | Sequence[str] = "inner"
    ce: float = 1.0
    kl: float = 1.0
    tau: float = 3.0
    mapping: Mapping = "auto"
    sample: bool = False
    curriculum: bool = False
    branch_weights: tuple[float, ...] | None = None

    def __post_init__(self) -> None:
        warm("hybrid.tau", self.tau)

    @property
    def fixed(self) -> bool:
        return not (self.sample or self.curriculum)

    def taps(self, pairs: Pairs) -> Reads:
        chosen = select("hybrid.on", self.on, pairs)
        return Reads({s: ("mean",) for s, _ in chosen}, {t: ("mean",) for _, t in chosen})

    def init(self, binding: Binding) -> nn.Module:
        assert binding.teacher is not None
        chosen, mappings = select("hybrid.on", self.on, binding.pairs), []
        self._check_weights(chosen)
        for pair in chosen:
            source = binding.student.taps[pair[0]].mean
            target = binding.teacher.taps[pair[1]].mean
            check_places("hybrid.on", source, target, pair)
            mappings.append(fitted(self.mapping, source, target))
        return Branches(chosen, mappings, [binding.suffix(t) for _, t in chosen])

    def _check_weights(self, chosen: Sequence[Pair]) -> None:
        if self.branch_weights is not None and len(self.branch_weights) != len(chosen):
            raise UserError(
                f"hybrid.branch_weights = {self.branch_weights}",
                f"the branches are {', '.join(s for s, _ in chosen)}",
                f"give {len(chosen)} of them",
            )

    def __call__(self, own: nn.Module, step: Step) -> Tensor:
        assert isinstance(own, Branches)
        count = len(own.pairs)
        if self.curriculum:
            count = active(count, float(step.progress))
        if self.sample:
            device = step.generator.device if step.generator is not None else "cpu"
            k = int(torch.randint(count, (), generator=step.generator, device=device))
            return count * self._branch(own, k, step)
        return torch.stack([self._branch(own, k, step) for k in range(count)]).sum()

    def _branch(self, own: Branches, k: int, step: Step) -> Tensor:
        """w_k [ce CE(z_k, y) + kl KL(z_A || z_k)]."""
        z = full(own.logits(k, step.student.taps[own.pairs[k][0]].mean))
        loss = self.ce * F.cross_entropy(z, step.labels)
        loss = loss + self.kl * kl(step.taught.mean_logits, z, self.tau)
        return loss if self.branch_weights is None else self.branch_weights[k] * loss
