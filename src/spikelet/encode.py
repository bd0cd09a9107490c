"""Encoders: images to what the network sees at each time step."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, final

from spikelet.errors import UserError

if TYPE_CHECKING:
    from torch import Tensor


def repeat(images: Tensor, steps: int) -> Tensor:
    """The images "B ..." shown unchanged at each step: a view "T B ..." (direct encoding).

    Raises:
        UserError: if `steps` is below 1.
    """
    if steps < 1:
        raise UserError(f"steps = {steps}", "expected a whole number of at least 1", "raise it")
    return images.unsqueeze(0).expand(steps, *images.shape)


@final
@dataclass(frozen=True)
class Direct:
    """Direct encoding: the normalised image at each of the `steps` time steps."""

    steps: int = 4

    def __call__(self, images: Tensor) -> Tensor:
        """Images "B ..." to a view "T B ..."."""
        return repeat(images, self.steps)
