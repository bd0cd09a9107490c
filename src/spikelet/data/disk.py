"""Images that stay on the disk: decoded when they are asked for, in training by other processes."""

from __future__ import annotations

import hashlib
import math
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, final

import numpy as np
import torch
from PIL import Image
from torch import Generator, Tensor
from torch.utils.data import DataLoader, Dataset

from spikelet.data.augment import ResizedCrop
from spikelet.errors import UserError

Box = tuple[float, float, float, float]
Numbered = tuple[int, tuple[int, ...]]
AHEAD, MOST = 4, 16  # batches that each loader prepares, and loaders at most
THREADS, NAMED = 8, 5


@final
@dataclass(frozen=True)
class OnDisk:
    """Image files in place of a tensor uint8 "N C H W": indexing decodes, `part` does not.

    Attributes:
        root: the folder that names start at.
        names: of the files, an array of bytes, which processes share.
        size: of the images in pixels, height and width.
        crop: side of the central square that is kept, as a share of the shorter one.
        workers: processes that decode in training; None for one for each core, 16 at most.
    """

    root: Path
    names: np.ndarray
    size: int
    crop: float = 1.0
    workers: int | None = None

    def __len__(self) -> int:
        return len(self.names)

    @property
    def shape(self) -> torch.Size:
        return torch.Size((len(self), 3, self.size, self.size))

    @property
    def ndim(self) -> int:
        return 4

    def part(self, index: Tensor) -> OnDisk:
        """The files at `index` "M"."""
        return replace(self, names=self.names[index.numpy()])

    def __getitem__(self, index: Any) -> Tensor:
        """Images decoded by several threads: uint8 "M 3 H W", or "3 H W" of a single number."""
        chosen = self.names[index.cpu().numpy() if isinstance(index, Tensor) else index]
        if isinstance(chosen, bytes):
            return self._read(chosen)
        with ThreadPoolExecutor(min(os.cpu_count() or 1, THREADS)) as pool:
            images = list(pool.map(self._read, chosen))
        return torch.stack(images) if images else torch.empty(self[:1].shape, dtype=torch.uint8)[:0]

    def _read(self, name: bytes) -> Tensor:
        return decoded(self.path(name), self.size, self.middle)

    def path(self, name: bytes) -> Path:
        """Where a file is."""
        return self.root / os.fsdecode(bytes(name))

    def middle(self, width: int, height: int) -> Box:
        """The central square."""
        side = self.crop * min(width, height)
        left, top = (width - side) / 2, (height - side) / 2
        return left, top, left + side, top + side

    def fingerprint(self, labels: Tensor) -> str:
        """SHA-256 of size, names and labels: the pixels of many millions of bytes are not read."""
        digest = hashlib.sha256(repr((self.size, self.crop)).encode())
        digest.update(b"\0".join(self.names.tolist()))
        digest.update(labels.contiguous().numpy().tobytes())
        return digest.hexdigest()


def decoded(path: Path, size: int, box: Callable[[int, int], Box]) -> Tensor:
    """A part of an image as uint8 "3 S S".

    Args:
        path: of the file.
        size: S.
        box: (width, height) -> (left, top, right, bottom) of the part.

    Raises:
        UserError: if the file is no image.
    """
    try:
        with Image.open(path) as image:
            width, height = image.size
            part = box(width, height)
            least = min(part[2] - part[0], part[3] - part[1]) / size
            if least > 1:  # a JPEG is decoded at a half, quarter or eighth where that is enough
                image.draft("RGB", (math.ceil(width / least), math.ceil(height / least)))
            x, y = image.size[0] / width, image.size[1] / height
            part = (part[0] * x, part[1] * y, part[2] * x, part[3] * y)
            rgb = image if image.mode == "RGB" else image.convert("RGB")
            pixels = np.array(
                rgb.resize((size, size), Image.Resampling.BILINEAR, box=part, reducing_gap=2.0)
            )
    except Exception as error:
        what = f"this image cannot be read ({type(error).__name__})"
        raise UserError(f"data_root={path}", what, "repair or remove it") from error
    return torch.from_numpy(pixels).permute(2, 0, 1)


def streamed(
    images: OnDisk, chosen: Iterable[list[Numbered]], augment: Sequence[Any], pinned: bool
) -> Iterator[Tensor]:
    """Augmented batches uint8 "B 3 S S", each decoded ahead of time by another process.

    Args:
        images: the files.
        chosen: for each batch the numbers of its images, each with the key of what is drawn for it.
        augment: called with single images; a `ResizedCrop` in front chooses what is decoded.
        pinned: whether batches lie where a GPU fetches them from.
    """
    count = loaders() if images.workers is None else images.workers
    loader: DataLoader[Any] = DataLoader(
        _Files(images, tuple(augment)),
        batch_sampler=chosen,
        num_workers=count,
        prefetch_factor=AHEAD if count else None,
        collate_fn=_collated,
        pin_memory=pinned,
    )
    for batch in loader:
        if not isinstance(batch, Tensor):
            raise unreadable(batch)
        yield batch


def unreadable(bad: Sequence[str]) -> UserError:
    """The error about images of one batch that cannot be read, by their paths."""
    path, *others = bad
    try:
        decoded(Path(path), 1, lambda width, height: (0, 0, width, height))
    except UserError as error:
        if not others:
            return error
    what = f"{len(bad)} images of one batch cannot be read, this one first"
    shown = ", ".join(Path(each).name for each in bad[:NAMED])
    return UserError(f"data_root={path}", what, f"repair or remove them ({shown})")


def keyed(*key: int) -> Generator:
    """A CPU generator of its own for each key."""
    digest = hashlib.blake2b(repr(key).encode(), digest_size=8).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest, "big") >> 1)


def loaders() -> int:
    """Processes that decode: the cores of this machine, shared by those that train here."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return max(1, min(MOST, (cores or 1) // int(os.environ.get("LOCAL_WORLD_SIZE", "1"))))


@final
class _Files(Dataset[Any]):
    """What a loader process knows: an image by number and key, or the path of a bad one."""

    def __init__(self, images: OnDisk, augment: Sequence[Any]) -> None:
        self.images, self.crop = images, None
        if augment and isinstance(augment[0], ResizedCrop):
            self.crop, augment = augment[0], augment[1:]
        self.augment = augment

    def __getitem__(self, numbered: Numbered) -> Tensor | str:
        index, key = numbered
        generator = keyed(*key)
        path = self.images.path(self.images.names[index])

        def box(width: int, height: int) -> Box:
            if self.crop is None:
                return self.images.middle(width, height)
            return self.crop.box(width, height, generator)

        try:
            image = decoded(path, self.images.size, box)
        except UserError:
            return str(path)
        for change in self.augment:
            image = change(image.unsqueeze(0), generator)[0]
        return image


def _collated(images: Sequence[Tensor | str]) -> Tensor | list[str]:
    """A batch, or the paths of its images that cannot be read."""
    bad = [image for image in images if isinstance(image, str)]
    return bad or torch.stack([image for image in images if isinstance(image, Tensor)])
