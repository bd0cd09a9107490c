"""Batches of a split: shuffled, augmented and normalised on the device."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

import torch
from jaxtyping import Float32, Int64, UInt8
from torch import Generator, Tensor

from spikelet.data.augment import Cutout, EventDrop
from spikelet.data.dataset import Dataset, Split
from spikelet.data.disk import Numbered, OnDisk, keyed, streamed
from spikelet.errors import UserError

Augmentation = Callable[[Tensor, Generator], Tensor]


class Batches:
    """Endless supply of (images float32 "B C H W" or frames "B T C H W", labels "B") in epochs.

    The order depends on (seed, epoch) only, augmentation on (seed, epoch, batch) only: skipping is
    exact. `shard` (rank, processes) takes every n-th image of each batch, after augmentation: all
    processes together see what one would. A shuffled epoch drops a last batch with fewer than two
    images per process, which batch norm could not use.

    Images on the disk (`OnDisk`) are decoded by other processes, ahead of time; their augmentation
    depends on (seed, epoch, image), so that each process of a training decodes its own alone.
    """

    def __init__(
        self,
        split: Split,
        dataset: Dataset,
        batch: int = 128,
        augment: Sequence[Augmentation] = (),
        seed: int = 0,
        device: torch.device | str = "cpu",
        shuffle: bool = True,
        shard: tuple[int, int] = (0, 1),
    ) -> None:
        rank, processes = shard
        if batch < processes:
            raise UserError(
                f"batch={batch}",
                "a batch needs an image per process",
                f"choose {processes} or more",
            )
        self.batch, self.seed, self.shuffle, self.shard = batch, seed, shuffle, (rank, processes)
        self.device = torch.device(device)
        stored = isinstance(split.images, OnDisk)
        self.images = split.images if stored else split.images.to(self.device)
        self.labels = split.labels.to(self.device)
        mean = torch.tensor(dataset.mean, device=self.device).view(1, -1, 1, 1)
        std = torch.tensor(dataset.std, device=self.device).view(1, -1, 1, 1)
        self.scale, self.shift = 1 / (255 * std), -mean / std
        self.augment = tuple(_filled(change, dataset) for change in augment)

    def __len__(self) -> int:
        """Batches an epoch."""
        whole, rest = divmod(len(self.labels), self.batch)
        dropped = self.shuffle and whole > 0 and rest < 2 * self.shard[1]
        return whole if dropped or not rest else whole + 1

    def epoch(
        self, epoch: int = 0, skip: int = 0
    ) -> Iterator[tuple[Float32[Tensor, "B *T C H W"], Int64[Tensor, "B"]]]:
        """The batches of one epoch from number `skip` on."""
        order = self.order(epoch)
        rank, processes = self.shard
        stored = isinstance(self.images, OnDisk)
        changes = self._decoded(order, epoch, skip) if stored else self._held(order, epoch, skip)
        for index, images in enumerate(changes, skip):
            chosen = order[index * self.batch : (index + 1) * self.batch][rank::processes]
            images = images.to(self.device, torch.float32, non_blocking=True)
            images = images.mul_(self.scale).add_(self.shift)
            if images.ndim == 4:
                images = images.contiguous(memory_format=torch.channels_last)
            yield images, self.labels[chosen]

    def _held(self, order: Tensor, epoch: int, skip: int) -> Iterator[Tensor]:
        """This process's share of augmented batches of images in memory."""
        rank, processes = self.shard
        for index in range(skip, len(self)):
            images = self.images[order[index * self.batch : (index + 1) * self.batch]]
            generator = keyed(self.seed, epoch, index)
            for change in self.augment:
                images = changed(images, change, generator)
            yield images[rank::processes]

    def _decoded(self, order: Tensor, epoch: int, skip: int) -> Iterator[Tensor]:
        """This process's share of augmented batches of images on the disk."""
        assert isinstance(self.images, OnDisk)
        batches = order.cpu().split(self.batch)[skip : len(self)]
        plan = _Plan(batches, self.shard, (self.seed, epoch))
        return streamed(self.images, plan, self.augment, self.device.type == "cuda")

    def order(self, epoch: int) -> Int64[Tensor, "N"]:
        """The samples of an epoch, those of all processes, batch after batch."""
        count = len(self.labels)
        if not self.shuffle:
            return torch.arange(count, device=self.device)
        return torch.randperm(count, generator=keyed(self.seed, epoch)).to(self.device)


@dataclass(frozen=True)
class _Plan:
    """Which images each batch of a process has, and the keys of what is drawn for them."""

    batches: Sequence[Tensor]
    shard: tuple[int, int]
    key: tuple[int, int]

    def __iter__(self) -> Iterator[list[Numbered]]:
        rank, processes = self.shard
        for batch in self.batches:
            yield [(index, (*self.key, index)) for index in batch[rank::processes].tolist()]


def normalise(images: UInt8[Tensor, "*B C H W"], dataset: Dataset) -> Float32[Tensor, "*B C H W"]:
    """(images / 255 - mean) / std in float32, for uint8 images or frames "... C H W".

    Raises:
        UserError: for other types than uint8, and other channels than the data set's.
    """
    if images.dtype != torch.uint8:
        what = f"expected uint8 pixels of 0 to 255, got {images.dtype}"
        fix = "of numbers from 0 to 1 take (255 * images).round().byte()"
        raise UserError("images", what, fix)
    if images.ndim < 3 or images.shape[-3] != len(dataset.mean):
        what = f"expected {len(dataset.mean)} channels in the third axis from the end"
        raise UserError(f"images {tuple(images.shape)}", what, f"give images as {dataset.name} has")
    mean = torch.tensor(dataset.mean, device=images.device).view(-1, 1, 1)
    std = torch.tensor(dataset.std, device=images.device).view(-1, 1, 1)
    return images.to(torch.float32).mul_(1 / (255 * std)).add_(-mean / std)


def changed(images: Tensor, change: Augmentation, generator: Generator) -> Tensor:
    """Images, or frames "B T C H W" changed all alike: as one image of T C channels."""
    if images.ndim == 4 or getattr(change, "frames", False):
        return change(images, generator)
    return change(images.flatten(1, 2), generator).reshape(images.shape)


def _filled(change: Augmentation, dataset: Dataset) -> Augmentation:
    """Cutout without a colour gets the data set's mean, which becomes 0; `unit` is the data's."""
    if isinstance(change, EventDrop) and dataset.frames is None:
        what = "it drops events of recordings, and these are still images"
        raise UserError("augment = event-drop", what, "leave it out")
    if isinstance(change, EventDrop) and change.unit is None:
        return replace(change, unit=dataset.unit)
    if isinstance(change, Cutout) and change.fill is None:
        colour = tuple(round(255 * value) for value in dataset.mean)
        return replace(change, fill=colour * (dataset.frames or 1))
    return change
