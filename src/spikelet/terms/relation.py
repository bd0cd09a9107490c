"""Pairwise relations within a batch: what is compared is how images relate, not features."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal, final

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from spikelet.neuron import per_channel
from spikelet.processes import gathered, summed
from spikelet.terms.mapping import Places
from spikelet.terms.term import Binding, Pairs, Reads, Step, Term, full, select
from spikelet.trace import Tap

Form = Literal["cosine", "centred", "similarity-preserving", "distance", "angle"]
SILENT = 1e-6
"""Energy below which a row counts as silent: small against one spike of one image."""


def rows(features: Tensor, pool: int) -> Tensor:
    """Features "B C ..." as rows "B D", maps average-pooled to pool x pool positions; 0 keeps all.

    A feature that is no map "B C H W" is only flattened.
    """
    f = full(features)
    if f.ndim == 4 and pool:
        f = F.adaptive_avg_pool2d(f, pool)
    return f.flatten(1)


def cosines(x: Tensor) -> Tensor:
    """Cosine similarities "B B" of rows "B D"; a silent row has similarity 0 to all.

    Rows are divided by sqrt(|x|^2 + 1e-6), which keeps the gradient of a silent row finite.
    """
    unit = x / (x.square().sum(1, keepdim=True) + SILENT).sqrt()
    return unit @ unit.T


def gram(features: Tensor, pool: int) -> Tensor:
    """Cosine similarities "B B" of features "B C ...", average-pooled to pool x pool positions."""
    return cosines(rows(features, pool))


def centred(x: Tensor) -> Tensor:
    """H X X^T H / |H X X^T H|_F with H = 1 - 1/B, of rows "B D".

    |centred(X) - centred(Y)|^2 = 2 (1 - CKA) with the linear CKA of Kornblith et al. 2019. Rows are
    centred before they are multiplied: the same matrix, without the cancellation.
    """
    moved = x - x.mean(0)
    k = moved @ moved.T
    floor = (1e-6 * _energy(x)).square() + 1e-20
    return k / (k.square().sum() + floor).sqrt()


def preserving(x: Tensor) -> Tensor:
    """X X^T with rows of unit length, of rows "B D" (Tung and Mori, ICCV 2019)."""
    g = x @ x.T
    floor = (1e-3 * _energy(x)).square() + 1e-20
    return g / (g.square().sum(1, keepdim=True) + floor).sqrt()


def distances(x: Tensor) -> Tensor:
    """|x_i - x_j| over the mean of those with i != j, "B B" (Park et al., CVPR 2019)."""
    _, d = _separations(x)
    return d / (d.sum() / max(len(x) * (len(x) - 1), 1)).clamp_min(1e-12)


def angles(x: Tensor) -> Tensor:
    """Cosines of the angles at x_i between x_j and x_k, "B B B"; 0 where two of a side coincide.

    From the Gram matrix: <x_i - x_j, x_i - x_k> = g_ii - g_ij - g_ik + g_jk, so that memory is
    B^3, not B^2 D.
    """
    g, d = _separations(x)
    same = torch.eye(len(x), dtype=torch.bool, device=x.device)
    d = d.masked_fill(same, 1.0)
    dot = g.diagonal()[:, None, None] - g[:, :, None] - g[:, None, :] + g[None]
    void = same[:, :, None] | same[:, None, :]
    return (dot / (d[:, :, None] * d[:, None, :])).masked_fill(void, 0.0)


def _energy(x: Tensor) -> Tensor:
    """The mean squared length of rows, without gradient."""
    return x.detach().square().sum(1).mean()


def _separations(x: Tensor) -> tuple[Tensor, Tensor]:
    """Gram matrix of the centred rows and their distances, zero on the diagonal.

    Under the root stands 1e-8 of the energy as well: above the rounding of fp32, so that the
    gradient stays finite where two rows coincide.
    """
    moved = x - x.mean(0)
    g = moved @ moved.T
    squared = (g.diagonal()[:, None] + g.diagonal()[None] - 2 * g).clamp_min(0)
    d = (squared + 1e-8 * _energy(x) + 1e-12).sqrt()
    return g, d.masked_fill(torch.eye(len(x), dtype=torch.bool, device=x.device), 0.0)


def relation(student: Tensor, teacher: Tensor, pool: int = 1, form: Form = "cosine") -> Tensor:
    """How far the relations within two batches of features "B C ..." differ; widths are free.

    A batch is that of all processes, whose pooled rows are gathered.

    cosine, similarity-preserving: (1 / B^2) |G_T - G_S|_F^2; centred: |G_T - G_S|_F^2; distance,
    angle: smooth L1, averaged over all pairs or triplets.
    """
    matrix = {
        "cosine": cosines,
        "centred": centred,
        "similarity-preserving": preserving,
        "distance": distances,
        "angle": angles,
    }[form]
    pool = 0 if form == "similarity-preserving" else pool
    with torch.autocast(student.device.type, enabled=False):  # differences of near equal products
        ours, theirs = (matrix(gathered(rows(x, pool))) for x in (student, teacher))
        if form in ("distance", "angle"):
            return F.smooth_l1_loss(ours, theirs)
        error = (theirs - ours).square()
        return error.sum() if form == "centred" else error.mean()


def in_time(tap: Tap) -> Tensor:
    """theta * s of every step, time joined with channels: spikes "T B C ..." to "B (T C) ...".

    A tap has binary s and the mean of theta * s: theta of a channel is the ratio of their sums
    over the batch of all processes. A silent channel, which has no ratio, takes that of the layer.
    """
    assert tap.spikes is not None
    spikes = full(tap.spikes)
    count = summed(spikes.mean(0).abs().transpose(0, 1).flatten(1).sum(1))
    total = summed(full(tap.mean).abs().transpose(0, 1).flatten(1).sum(1))
    layer = torch.where(count.sum() > 0, total.sum() / count.sum().clamp_min(1e-12), 1.0)
    theta = torch.where(count > 0, total / count.clamp_min(1e-12), layer)
    return (spikes * per_channel(theta, tap.mean)).transpose(0, 1).flatten(1, 2)


@final
@dataclass(frozen=True)
class Relation(Term):
    """Pairwise relations (SuperSNN; "Knowledge Distill for Spiking Neural Networks", IJCNN 2024).

    The published formula is not known. "cosine" compares the cosine similarities of mean features
    within the batch; the other forms are established ones. Widths and resolutions may differ.

    Args:
        weight: of the sum over places. Usual: 3000 with "similarity-preserving", 25 with
            "distance", 50 with "angle"; 1 is plenty with "centred".
        on: "last", "all", "inner" or names of places, `student=teacher` where they differ.
        pool: positions per axis after average pooling; 0 keeps them, as "similarity-preserving"
            always does.
        form: "cosine"; "centred" Gram matrices of unit norm, so 2 (1 - CKA); "similarity-
            preserving" (Tung and Mori 2019); "distance" or "angle", which takes memory B^3, of
            relational distillation (Park et al. 2019).
        keep_time: compare the student's spikes of every step, flattened, in place of their mean
            (a reviewer's variant). It needs neurons at `on`, and steps: `rate` refuses it.
    """

    weight: float = 10.0
    on: str | Sequence[str] = "last"
    pool: int = 1
    form: Form = "cosine"
    keep_time: bool = False
    coupled: ClassVar[bool] = True
    gathers: ClassVar[bool] = True

    @property
    def time(self) -> Literal["mean", "windows", "steps"]:
        return "steps" if self.keep_time else "mean"

    def taps(self, pairs: Pairs) -> Reads:
        chosen = select("relation.on", self.on, pairs)
        fields = ("mean", "spikes") if self.keep_time else ("mean",)
        return Reads({s: fields for s, _ in chosen}, {t: ("mean",) for _, t in chosen})

    def init(self, binding: Binding) -> nn.Module:
        return Places(select("relation.on", self.on, binding.pairs), [])

    def __call__(self, own: nn.Module, step: Step) -> Tensor:
        assert isinstance(own, Places)
        losses = []
        for s, t in own.pairs:
            tap = step.student.taps[s]
            ours = in_time(tap) if self.keep_time else tap.mean
            losses.append(relation(ours, step.taught.taps[t].mean, self.pool, self.form))
        return torch.stack(losses).sum()
