"""Which pixels a network looks at, and whether two networks look at the same.

The paper that asks (Hu, Li and Deng, 2025) gives no formula; the maps are the plain ones, and
their similarity is measured in three ways.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable

import torch
from torch import Tensor, nn

from spikelet.errors import UserError

Answer = Callable[[Tensor], Tensor]

SHARE = 0.1  # of the pixels that count as the most salient ones
POINTS = 16  # of the integral in integrated gradients


def input_gradients(answer: Answer, images: Tensor, classes: Tensor) -> Tensor:
    """|d z_y / d x| summed over channels: maps "B H W" of images "B C H W" (Simonyan et al., 2014).

    Of frames "B T C H W" it is summed over them as well. For a spiking network z is the mean logit
    over time, and the derivative that of its surrogate.

    Args:
        answer: images to logits "B K", one image apart from the other.
        images: normalised, as the network sees them.
        classes: y "B", the class whose logit is explained.

    Raises:
        UserError: if the answer has no derivative by the image, as with an encoder that draws.
    """
    return _gradient(answer, images, classes).abs().flatten(1, -3).sum(1)


def integrated_gradients(
    answer: Answer, images: Tensor, classes: Tensor, baseline: Tensor, points: int = POINTS
) -> Tensor:
    """|sum over channels of (x - b) times the mean gradient between b and x| (Sundararajan, 2017).

    The mean is taken at the middles of `points` equal parts of the line; maps "B H W". With
    surrogate gradients its parts need not sum to the difference of the logits.

    Args:
        answer, images, classes: as in `input_gradients`.
        baseline: b, an image that says nothing, "C 1 1" or as an image.
        points: how many gradients.
    """
    way = images - baseline
    total = torch.zeros_like(images)
    for point in range(points):
        share = (point + 0.5) / points
        total += _gradient(answer, baseline + share * way, classes)
    return (way * total / points).flatten(1, -3).sum(1).abs()


def _gradient(answer: Answer, images: Tensor, classes: Tensor) -> Tensor:
    with torch.enable_grad():
        seen = images.detach().clone().requires_grad_()
        chosen = answer(seen).gather(1, classes.unsqueeze(1)).sum()
        found: Tensor | None = None
        if chosen.requires_grad:  # it may by the weights alone
            (found,) = torch.autograd.grad(chosen, seen, allow_unused=True)
        if found is None:
            what = "the answer has no derivative by the image"
            raise UserError("saliency", what, "take a network that sees the image itself (direct)")
        return found


def cosine(a: Tensor, b: Tensor) -> Tensor:
    """a.b / (|a| |b|) of each pair of maps "B ...": "B"; NaN where a map is zero."""
    a, b = (x.flatten(1).double() for x in (a, b))
    return (a * b).sum(1) / (a.norm(dim=1) * b.norm(dim=1))


def spearman(a: Tensor, b: Tensor) -> Tensor:
    """Correlation of the ranks of each pair of maps "B ...": "B"; NaN where a map is constant.

    Pixels that tie share the mean of their ranks.
    """
    ranked = [ranks(x.flatten(1)) for x in (a, b)]
    return cosine(*(x - x.mean(1, keepdim=True) for x in ranked))


def ranks(x: Tensor) -> Tensor:
    """The rank of each entry within its row "B P", from 1; ties share their mean rank."""
    ordered = x.sort(1).values
    below = torch.searchsorted(ordered, x.contiguous())
    up_to = torch.searchsorted(ordered, x.contiguous(), right=True)
    return (below + up_to + 1).double() / 2


def overlap(a: Tensor, b: Tensor, share: float = SHARE) -> Tensor:
    """Intersection over union of the most salient `share` of the pixels of each pair: "B"."""
    tops = [top(x, share) for x in (a, b)]
    both, either = tops[0] & tops[1], tops[0] | tops[1]
    return both.sum(1).double() / either.sum(1)


def chance(pixels: int, share: float = SHARE) -> float:
    """The overlap to expect of two rankings of that many pixels that have nothing in common.

    Of the k first of one, i are among the k first of the other with the probability
    C(k, i) C(P - k, k - i) / C(P, k); their overlap is i / (2 k - i).
    """
    k = _count(pixels, share)
    ways = [math.comb(k, i) * math.comb(pixels - k, k - i) for i in range(k + 1)]
    return math.fsum(w / math.comb(pixels, k) * i / (2 * k - i) for i, w in enumerate(ways))


def _count(pixels: int, share: float) -> int:
    return max(round(share * pixels), 1)


def top(x: Tensor, share: float) -> Tensor:
    """Which pixels of maps "B ..." are among the `share` most salient, one at least: bool "B P"."""
    flat = x.flatten(1)
    count = _count(flat.shape[1], share)
    return torch.zeros_like(flat, dtype=torch.bool).scatter(1, ranking(x)[:, :count], True)


def ranking(x: Tensor) -> Tensor:
    """The pixels of maps "B ..." from the most to the least salient: indices "B P"."""
    return x.flatten(1).argsort(dim=1, descending=True, stable=True)


SIMILARITIES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "cosine": cosine,
    "spearman": spearman,
    "overlap": overlap,
}


def similarities(a: Tensor, b: Tensor) -> dict[str, Tensor]:
    """Every similarity of each pair of maps "B ...", by name: "B"."""
    return {name: measure(a, b) for name, measure in SIMILARITIES.items()}


def randomised(net: nn.Module, generator: torch.Generator) -> nn.Module:
    """A copy whose weights are shuffled within each layer; biases and thresholds stay.

    The control of Adebayo et al., 2018 (arXiv 1810.03292): a map that is the same for such a
    network shows the image, not what was learned.

    Args:
        net: any network; it is left as it is.
        generator: on the CPU; draws the orders.
    """
    other = copy.deepcopy(net)
    with torch.no_grad():
        for weight in other.parameters():
            if weight.ndim > 1:
                order = torch.randperm(weight.numel(), generator=generator).to(weight.device)
                weight.copy_(weight.flatten()[order].view_as(weight))
    return other
