"""Batches of a split: shuffled, augmented and normalised on the device."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace

import torch
from jaxtyping import Float32, Int64, UInt8
from torch import Generator, Tensor

from spikelet.data.augment import Cutout
from spikelet.data.dataset import Dataset, Split
from spikelet.errors import UserError

Augmentation = Callable[[Tensor, Generator], Tensor]


class Batches:
    """Endless supply of (images float32 "B C H W", labels int64 "B") in epochs.

    The order depends on (seed, epoch) only, augmentation on (seed, epoch, batch) only: skipping is
    exact. `shard` (rank, processes) takes every n-th image of each batch, after augmentation: all
    processes together see what one would. A shuffled epoch drops a last batch with fewer than two
    images per process, which batch norm could not use.
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
        self.images = split.images.to(self.device)
        self.labels = split.labels.to(self.device)
        mean = torch.tensor(dataset.mean, device=self.device).view(1, -1, 1, 1)
        std = torch.tensor(dataset.std, device=self.device).view(1, -1, 1, 1)
        self.scale, self.shift = 1 / (255 * std), -mean / std
        self.augment = tuple(_filled(change, dataset.mean) for change in augment)

    def __len__(self) -> int:
        """Batches an epoch."""
        whole, rest = divmod(len(self.labels), self.batch)
        dropped = self.shuffle and whole > 0 and rest < 2 * self.shard[1]
        return whole if dropped or not rest else whole + 1

    def epoch(
        self, epoch: int = 0, skip: int = 0
    ) -> Iterator[tuple[Float32[Tensor, "B C H W"], Int64[Tensor, "B"]]]:
        """The batches of one epoch from number `skip` on."""
        order = self._order(epoch)
        rank, processes = self.shard
        for index in range(skip, len(self)):
            chosen = order[index * self.batch : (index + 1) * self.batch]
            images = self.images[chosen]
            generator = _generator(self.seed, epoch, index)
            for change in self.augment:
                images = change(images, generator)
            images = images[rank::processes].to(torch.float32)
            images = images.mul_(self.scale).add_(self.shift)
            images = images.contiguous(memory_format=torch.channels_last)
            yield images, self.labels[chosen[rank::processes]]

    def _order(self, epoch: int) -> Tensor:
        count = len(self.labels)
        if not self.shuffle:
            return torch.arange(count, device=self.device)
        return torch.randperm(count, generator=_generator(self.seed, epoch)).to(self.device)


def normalise(images: UInt8[Tensor, "*B C H W"], dataset: Dataset) -> Float32[Tensor, "*B C H W"]:
    """(images / 255 - mean) / std in float32, for uint8 images "... C H W"."""
    mean = torch.tensor(dataset.mean, device=images.device).view(-1, 1, 1)
    std = torch.tensor(dataset.std, device=images.device).view(-1, 1, 1)
    return images.to(torch.float32).mul_(1 / (255 * std)).add_(-mean / std)


def _filled(change: Augmentation, mean: Sequence[float]) -> Augmentation:
    """Cutout without a colour gets the data set's mean, which becomes 0."""
    if isinstance(change, Cutout) and change.fill is None:
        return replace(change, fill=tuple(round(255 * value) for value in mean))
    return change


def _generator(*key: int) -> Generator:
    """A CPU generator of its own for each key."""
    digest = hashlib.blake2b(repr(key).encode(), digest_size=8).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest, "big") >> 1)
