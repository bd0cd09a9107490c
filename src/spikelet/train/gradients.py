"""The gradient of one batch: in parts to save memory, and over several processes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from spikelet.processes import processes, share_gradients, smallest


@dataclass(frozen=True)
class Found:
    """What a batch came to, over all processes.

    Attributes:
        images: their number; a tensor on the device where there are several processes.
        loss: the mean over them.
        parts: each term's unweighted mean.
        asked: for each thing that a process may ask for, above 0 if any process did.
    """

    images: int | Tensor
    loss: Tensor
    parts: dict[str, Tensor]
    asked: Tensor | None = None


def gradients(
    distiller: nn.Module,
    images: Tensor,
    labels: Tensor,
    *,
    progress: float = 0.0,
    generator: torch.Generator | None = None,
    accumulate: int = 1,
    half: bool = False,
    asked: Sequence[bool] = (),
    shown: Tensor | None = None,
) -> Found:
    """Leaves the gradient of the mean loss of a batch in the parameters.

    Of several processes each gives its own images: the gradient is that of the mean over all.

    Args:
        distiller: (images, labels, progress, generator) -> (loss, parts).
        images: "B ...".
        labels: "B".
        progress: as the distiller takes it.
        generator: as the distiller takes it.
        accumulate: in how many parts one after the other; fewer for a batch that is too small.
        half: whether to run in bf16 autocast.
        asked: what this process asks the others for.
        shown: the images "B ..." that are paired with events; only then the distiller takes any.
    """
    many, count = processes() > 1, _parts(len(images), accumulate)
    losses: list[tuple[float, Tensor, Mapping[str, Tensor]]] = []
    distiller.zero_grad(set_to_none=True)
    beside = [{}] * count if shown is None else [{"shown": z} for z in shown.tensor_split(count)]
    pieces = zip(images.tensor_split(count), labels.tensor_split(count), beside, strict=True)
    for x, y, more in pieces:
        with torch.autocast(images.device.type, dtype=torch.bfloat16, enabled=half):
            loss, parts = distiller(x, y, progress=progress, generator=generator, **more)
        share = len(x) / len(images)
        weight = len(x) if many else share  # of several processes, divided by all images below
        (loss if weight == 1 else loss * weight).backward()
        losses.append((share, loss.detach(), parts))
    loss, parts = _mean(losses)
    if not many:
        return Found(len(images), loss, dict(parts))
    parameters = [p for p in distiller.parameters() if p.requires_grad]
    wanted = [loss.new_tensor(float(each)) for each in asked]
    total, means = share_gradients(parameters, len(images), [loss, *parts.values(), *wanted])
    loss, *rest = means.unbind()
    return Found(total, loss, dict(zip(parts, rest, strict=False)), means[1 + len(parts) :])


def _parts(images: int, accumulate: int) -> int:
    """In how many parts to take a batch: the same number in every process, two images in each."""
    if accumulate == 1:
        return 1
    return max(1, min(accumulate, smallest(images) // 2))


def _mean(
    losses: Sequence[tuple[float, Tensor, Mapping[str, Tensor]]],
) -> tuple[Tensor, Mapping[str, Tensor]]:
    """Loss and parts of a batch from those of its parts."""
    if len(losses) == 1:
        return losses[0][1:]
    loss = torch.stack([share * loss for share, loss, _ in losses]).sum()
    names = losses[0][2]
    parts = {n: torch.stack([share * each[n] for share, _, each in losses]).sum() for n in names}
    return loss, parts
