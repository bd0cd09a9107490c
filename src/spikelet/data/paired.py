"""Images of the same classes as some events, for a teacher that was trained on images."""

from __future__ import annotations

from typing import Any, final

import torch
from jaxtyping import Float32, Int64
from torch import Generator, Tensor

from spikelet.data.batches import normalise
from spikelet.data.dataset import Dataset
from spikelet.errors import UserError


@final
class Paired:
    """Draws for each label a training image of that class, normalised as its own data set is.

    Args:
        images: a data set of still images.
        classes: of the events; the same names in the same order.
        device: where the images are.

    Raises:
        UserError: if they are no images, the classes differ, or one has no image.
    """

    def __init__(
        self, images: Dataset, classes: tuple[str, ...], device: torch.device | str = "cpu"
    ) -> None:
        if images.frames is not None:
            what = f"it was trained on the events of {images.name}, not on these or on images"
            raise UserError("teacher", what, "use a teacher of the same events, or of images")
        if images.classes != classes:
            raise UserError(
                "teacher",
                f"it was trained on {images.name}, whose classes are not those of the events",
                "use a teacher of images of the same classes, as mnist for nmnist",
            )
        self.dataset = images
        self.images = images.train.images.to(device)
        self.order = images.train.labels.argsort(stable=True).to(device)
        self.count = torch.bincount(images.train.labels, minlength=len(classes)).to(device)
        self.start = self.count.cumsum(0) - self.count
        if int(self.count.min()) < 1:
            what = f"no training image of {classes[int(self.count.argmin())]}"
            raise UserError(f"data={images.name}", what, "use more training images")

    def __deepcopy__(self, memo: dict[int, Any]) -> Paired:
        """Itself: nothing in it changes, and images are large."""
        return self

    def __call__(
        self, labels: Int64[Tensor, "B"], generator: Generator | None = None
    ) -> Float32[Tensor, "B C H W"]:
        """A normalised image for each label, drawn from a CPU generator."""
        drawn = torch.rand(len(labels), generator=generator, dtype=torch.float64)
        place = (drawn.to(labels.device) * self.count[labels]).long()
        return normalise(self.images[self.order[self.start[labels] + place]], self.dataset)
