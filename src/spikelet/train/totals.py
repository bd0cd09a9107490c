"""Loss and parts summed over an epoch; numbers leave the device when the sums are settled."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

PART, IMAGES = "part ", "images"


class NotFinite(ArithmeticError):
    """A value that is not a number: `part` of a batch counted from 1."""

    def __init__(self, part: str, batch: int) -> None:
        super().__init__(f"{part} at batch {batch}")
        self.part, self.batch = part, batch


@dataclass
class Totals:
    """Sums over images, in the order of the batches, so that where they settle does not matter."""

    images: int = 0
    sums: dict[str, float] = field(default_factory=dict)
    counts: dict[str, int] = field(default_factory=dict)
    latest: float = math.nan
    waiting: list[tuple[int, int, list[str], Tensor]] = field(default_factory=list)

    def add(
        self, batch: int, images: int | Tensor, loss: Tensor, parts: Mapping[str, Tensor]
    ) -> None:
        """Take one batch's means; nothing is copied from the device yet."""
        names = ["loss", *(PART + name for name in parts)]
        kept = [loss, *parts.values()]
        if isinstance(images, Tensor):
            names, kept = [*names, IMAGES], [*kept, images]
        else:
            self.images += images
        values = torch.stack([x.detach().float().reshape(()) for x in kept])
        self.waiting.append((batch, images if isinstance(images, int) else 0, names, values))

    def settle(self) -> None:
        """Copy what waits, in one piece; raises NotFinite at the first value that is not."""
        if not self.waiting:
            return
        values = iter(torch.cat([each[-1] for each in self.waiting]).tolist())
        waiting, self.waiting = self.waiting, []
        for batch, images, names, _ in waiting:
            row = {name: next(values) for name in names}
            if IMAGES in row:
                images = int(row.pop(IMAGES))
                self.images += images
            if not all(map(math.isfinite, row.values())):
                raise NotFinite(_culprit(row), batch)
            self.latest = row["loss"]
            for name, value in row.items():
                self.sums[name] = self.sums.get(name, 0.0) + value * images
                self.counts[name] = self.counts.get(name, 0) + images

    def means(self) -> tuple[float, dict[str, float]]:
        """The mean loss and the mean of each part over the images."""
        means = {key: value / self.counts[key] for key, value in self.sums.items()}
        loss = means.pop("loss", math.nan)
        return loss, {key.removeprefix(PART): value for key, value in means.items()}

    def stored(self) -> dict[str, Any]:
        """The settled sums, for a checkpoint."""
        return {"images": self.images, "sums": self.sums, "counts": self.counts}

    @staticmethod
    def of(stored: Mapping[str, Any]) -> Totals:
        """The totals a checkpoint holds."""
        return Totals(stored["images"], dict(stored["sums"]), dict(stored["counts"]))


def _culprit(row: Mapping[str, float]) -> str:
    """The parts that are not finite, or the loss where all parts are."""
    bad = [name for name, value in row.items() if not math.isfinite(value)]
    parts = [repr(name.removeprefix(PART)) for name in bad if name.startswith(PART)]
    if len(parts) > 1:
        return f"parts {', '.join(parts[:-1])} and {parts[-1]}"
    return f"part {parts[0]}" if parts else "the loss"
