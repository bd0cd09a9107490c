"""Deletion and insertion: what an answer loses without the pixels that a map calls salient.

Petsiuk et al., 2018 (RISE, arXiv 1806.07421). The map may be another network's: then the curve
tells whether what one network looks at matters to the other.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from spikelet.measure.saliency import Answer

Kind = Literal["deletion", "insertion"]
SHARES = (0.0, 0.1, 0.2, 0.35, 0.5, 0.75, 1.0)  # of the pixels that are replaced or shown


@dataclass(frozen=True)
class Curve:
    """What a network answers as more and more pixels are replaced or shown.

    Attributes:
        shares: of the pixels, from 0 to 1.
        probability: of the class that it predicts for the whole image, float64 "B S".
        agreement: 1 where it still predicts that class, float64 "B S".
    """

    shares: tuple[float, ...]
    probability: Tensor
    agreement: Tensor

    @property
    def areas(self) -> dict[str, Tensor]:
        """The areas under both, by trapezoids: "B", between 0 and 1.

        Small after deletion and large after insertion where the ranking names what matters.
        """
        shares = torch.tensor(self.shares, dtype=torch.float64)
        return {
            name: torch.trapezoid(getattr(self, name), shares, dim=1)
            for name in ("probability", "agreement")
        }


@dataclass(frozen=True)
class Ends:
    """Where every curve of a network begins and ends: probabilities "B K" of two images.

    Attributes:
        whole: of the image as it is.
        blank: of the image with every pixel replaced.
    """

    whole: Tensor
    blank: Tensor


def ends(answer: Answer, images: Tensor, fill: Tensor) -> Ends:
    """What a network says about images "B C H W", normalised, and about none; see `curves`."""
    with torch.no_grad():
        return Ends(_told(answer, images), _told(answer, fill.expand_as(images)))


def curves(
    answer: Answer,
    images: Tensor,
    order: Tensor,
    fill: Tensor,
    known: Ends,
    shares: Sequence[float] = SHARES,
) -> dict[Kind, Curve]:
    """The deletion and the insertion curve of a network under a ranking of the pixels.

    Args:
        answer: normalised images "B C H W" to logits "B K".
        images: normalised.
        order: pixels from the first to the last replaced or shown, "B P" with P = H W.
        fill: what a pixel that is not shown looks like, normalised, "C 1 1".
        known: what `ends` found for the same images.
        shares: how many of them, from 0 to 1, in ascending order.
    """
    within = [1] * (images.ndim - 3)  # all channels, and all frames, of a pixel together
    places = order.argsort(1).reshape(len(images), *within, *images.shape[-2:])
    last = len(shares) - 1
    found: dict[Kind, list[Tensor]] = {"deletion": [], "insertion": []}
    with torch.no_grad():
        for number, share in enumerate(shares):
            first = places < round(share * order.shape[1])
            for kind, shown in (("deletion", ~first), ("insertion", first)):
                if number in (0, last):
                    told = known.whole if (kind == "deletion") == (number == 0) else known.blank
                else:
                    told = _told(answer, torch.where(shown, images, fill))
                found[kind].append(told)  # type: ignore[index]
    return {kind: _curve(told, known, shares) for kind, told in found.items()}


def _told(answer: Answer, images: Tensor) -> Tensor:
    return F.softmax(answer(images).double(), 1).cpu()


def _curve(told: Sequence[Tensor], known: Ends, shares: Sequence[float]) -> Curve:
    """A curve out of the probabilities at every share."""
    predicted = known.whole.argmax(1)
    probability = [each.gather(1, predicted.unsqueeze(1)).squeeze(1) for each in told]
    agreement = [(each.argmax(1) == predicted).double() for each in told]
    return Curve(tuple(shares), torch.stack(probability, 1), torch.stack(agreement, 1))


def random_order(images: Tensor, generator: torch.Generator) -> Tensor:
    """The pixels of each image in an order of its own that means nothing: "B P"."""
    pixels = images.shape[-2] * images.shape[-1]
    drawn = torch.rand(len(images), pixels, generator=generator)
    return drawn.argsort(1).to(images.device)
