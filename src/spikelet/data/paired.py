"""Still images beside events, for a teacher that was trained on images.

A recording's own image where it is known and among the teacher's training images, else another one
of its class.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from typing import Any, final

import torch
from jaxtyping import Float32, Int64
from torch import Generator, Tensor

from spikelet.data.batches import Batches, normalise
from spikelet.data.dataset import Dataset, Split
from spikelet.data.disk import keyed
from spikelet.errors import UserError

UNKNOWN = -1


@final
class Paired:
    """Chooses a training image for each training recording, normalised as its own data set is.

    Where there is none to be known an image of the class is drawn, never one whose recording is
    held out. Test images are never shown.

    Args:
        images: a data set of still images.
        events: of which the training part is paired; the same classes in the same order.
        device: where the images are.

    Attributes:
        partner: for each training recording, where its own image lies among the training images,
            -1 where it is not known or not there: int64 "N".

    Raises:
        UserError: if they are no images, the classes differ, or one has no image.
    """

    def __init__(
        self, images: Dataset, events: Dataset, device: torch.device | str = "cpu"
    ) -> None:
        if images.frames is not None:
            what = f"it was trained on the events of {images.name}, not on these or on images"
            raise UserError("teacher", what, "use a teacher of the same events, or of images")
        if images.classes != events.classes:
            raise UserError(
                "teacher",
                f"it was trained on {images.name}, whose classes are not those of the events",
                "use a teacher of images of the same classes, as mnist for nmnist",
            )
        self.dataset = images
        self.images = images.train.images.to(device)
        self.partner = partners(events.train, images.train).to(device)
        free = ~_shown_by(events.validation, images.train)
        labels = torch.where(free, images.train.labels, len(events.classes))
        self.order = labels.argsort(stable=True).to(device)
        self.count = torch.bincount(labels, minlength=len(events.classes) + 1)[:-1].to(device)
        self.start = self.count.cumsum(0) - self.count
        if int(self.count.min()) < 1:
            what = f"no training image of {events.classes[int(self.count.argmin())]}"
            raise UserError(f"data={images.name}", what, "use more training images")

    def __deepcopy__(self, memo: dict[int, Any]) -> Paired:
        """Itself: nothing in it changes, and images are large."""
        return self

    def __call__(
        self, labels: Int64[Tensor, "B"], generator: Generator | None = None
    ) -> Float32[Tensor, "B C H W"]:
        """A normalised image for each label, drawn from a CPU generator."""
        return self.pictures(self.drawn(labels, generator))

    def drawn(
        self, labels: Int64[Tensor, "B"], generator: Generator | None = None
    ) -> Int64[Tensor, "B"]:
        """Where an image of each label lies, drawn from a CPU generator."""
        chance = torch.rand(len(labels), generator=generator, dtype=torch.float64)
        place = (chance.to(labels.device) * self.count[labels]).long()
        return self.order[self.start[labels] + place]

    def chosen(
        self,
        recordings: Int64[Tensor, "B"],
        labels: Int64[Tensor, "B"],
        generator: Generator | None = None,
    ) -> Int64[Tensor, "B"]:
        """Where the image beside each training recording lies: its own, else one of its class."""
        own = self.partner[recordings]
        return torch.where(own == UNKNOWN, self.drawn(labels, generator), own)

    def pictures(self, places: Int64[Tensor, "B"]) -> Float32[Tensor, "B C H W"]:
        """The normalised images at some places."""
        return normalise(self.images[places], self.dataset)

    @property
    def exact(self) -> int:
        """How many training recordings are shown with their own image."""
        return int((self.partner != UNKNOWN).sum())

    def fingerprint(self) -> str:
        """SHA-256 of the images and of which one belongs to which recording."""
        digest = hashlib.sha256(self.dataset.hashes["train"].encode())
        for part in (self.partner, self.order, self.count):
            digest.update(part.cpu().numpy().tobytes())
        return digest.hexdigest()


@final
class Accompanied:
    """Batches of training recordings with a third part, the image beside each.

    Images that are drawn depend on (seed, epoch, batch) alone, as all else in `Batches`.
    """

    def __init__(self, batches: Batches, paired: Paired) -> None:
        self.batches, self.paired = batches, paired

    def __len__(self) -> int:
        """Batches an epoch."""
        return len(self.batches)

    def epoch(
        self, epoch: int = 0, skip: int = 0
    ) -> Iterator[tuple[Tensor, Tensor, Float32[Tensor, "B C H W"]]]:
        """The batches of one epoch from number `skip` on."""
        order, size = self.batches.order(epoch), self.batches.batch
        for index, (events, labels) in enumerate(self.batches.epoch(epoch, skip), skip):
            whole = order[index * size : (index + 1) * size]
            yield events, labels, self._beside(whole, (self.batches.seed, epoch, index))

    def _beside(self, whole: Tensor, key: tuple[int, int, int]) -> Tensor:
        """The images of this process's share of a batch, drawn for the whole batch."""
        rank, processes = self.batches.shard
        places = self.paired.chosen(whole, self.batches.labels[whole], keyed(*key, 1))
        pictures = self.paired.pictures(places[rank::processes])
        return pictures.contiguous(memory_format=torch.channels_last)


def partners(events: Split, images: Split) -> Int64[Tensor, "N"]:
    """Where the image that each recording shows lies among images; -1 where none is known there.

    An image of another class than the recording's is not what it shows, whatever its number says.
    """
    known, numbered = events.origin, images.origin
    found = torch.full((len(events),), UNKNOWN)
    if known is None or numbered is None or known.name != numbered.name or not len(images):
        return found
    sought, order = known.numbers, numbered.numbers.argsort()
    sorted_numbers = numbered.numbers[order]
    place = torch.searchsorted(sorted_numbers, sought).clamp(max=len(order) - 1)
    place = order[place]
    same = (numbered.numbers[place] == sought) & (images.labels[place] == events.labels)
    return torch.where(same & (sought >= 0), place, found)


def _shown_by(events: Split | None, images: Split) -> Tensor:
    """Which images are those that some recordings show: bool "M"."""
    shown = torch.zeros(len(images), dtype=torch.bool)
    if events is not None:
        found = partners(events, images)
        shown[found[found != UNKNOWN]] = True
    return shown
