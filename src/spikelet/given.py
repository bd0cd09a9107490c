"""What a caller gives: images, labels and batches that do not fit are told before they are used."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from spikelet.encode import FRAMES
from spikelet.errors import UserError

IMAGES = 4  # axes of images "B C H W"; event frames "B F C H W" have one more
IGNORED = -100  # the label of images that count in no loss, as torch has it


def require_images(argument: str, images: Any, like: Sequence[int] = ()) -> None:
    """Raises for what is no batch of normalised images, or none `like` the shape of one that fits.

    Nothing is read but shape and type, so that no device is waited for.
    """
    what = "expected normalised images as a tensor of floating-point numbers"
    if not isinstance(images, Tensor):
        got = type(images).__name__
        raise UserError(argument, f"{what}, got {got}", "give images of spikelet.data")
    if not images.is_floating_point():
        fix = "take spikelet.data.normalise(pixels, dataset)"
        raise UserError(argument, f"{what}, got {images.dtype}", fix)
    shape, channel = f"{argument} {tuple(images.shape)}", images.ndim - 3
    if like and images.ndim != len(like):
        what = f"expected the {len(like)} axes of a batch like {tuple(like)}, it has {images.ndim}"
        fewer = images.ndim < len(like)
        fix = "images.unsqueeze(0) for a single one" if fewer else "them without an axis of time"
        raise UserError(shape, what, f"give {fix}")
    if like and images.ndim in (IMAGES, FRAMES) and images.shape[channel] != like[channel]:
        what = f"expected {like[channel]} channels, it has {images.shape[channel]}"
        raise UserError(shape, what, "give images of the kind that the network was made for")


def require_batch_axes(argument: str, images: Any, axes: int | None) -> None:
    """Raises for what is no batch of images, or of event frames, of so many axes, where known."""
    require_images(argument, images)
    if axes is not None and images.ndim not in (axes, FRAMES):
        what = f"expected the {axes} axes of a batch, it has {images.ndim}"
        raise UserError(f"{argument} {tuple(images.shape)}", what, "give a batch of images")


def require_labels(labels: Any, images: Tensor, classes: int) -> None:
    """Raises for labels "B" that are no classes of the images "B ..."; values only on a CPU."""
    fix = "give class indices as an int64 tensor with one axis"
    if not isinstance(labels, Tensor):
        what = f"expected class indices as a tensor, got {type(labels).__name__}"
        raise UserError("labels", what, "take torch.tensor(labels)")
    if labels.shape != images.shape[:1]:
        what = f"expected one class index for each of the {len(images)} images"
        raise UserError(f"labels {tuple(labels.shape)}", what, fix)
    if labels.dtype not in (torch.int64, torch.uint8):  # what torch's cross entropy takes
        raise UserError("labels", f"expected class indices as int64, got {labels.dtype}", fix)
    if labels.device.type == "cpu":
        wrong = labels[((labels < 0) & (labels != IGNORED)) | (labels >= classes)]
        if len(wrong):
            what = f"expected class indices from 0 to {classes - 1}, found {int(wrong[0])}"
            raise UserError("labels", what, "give a network with as many classes as the data")


def require_finite(argument: str, images: Tensor) -> None:
    """Raises for images that hold values that are no numbers."""
    if not bool(torch.isfinite(images).all()):
        raise UserError(argument, "it holds values that are not finite", "mend the images")


def dtype_of(net: nn.Module) -> torch.dtype | None:
    """The type of a network's first floating-point parameter; None where it has none."""
    kinds = (p.dtype for p in net.parameters() if p.is_floating_point())
    return next(kinds, None)


def require_precise(argument: str, net: nn.Module) -> None:
    """Raises for weights in half precision, in which thresholds cannot be calibrated."""
    kind = dtype_of(net)
    if kind is not None and kind.itemsize < 4:
        what = f"its weights are {_short(kind)}, too coarse to calibrate thresholds with"
        fix = f"give {argument}.float(); training may be in bf16 all the same"
        raise UserError(argument, what, fix)


def require_same(
    argument: str, kind: torch.dtype | None, like: torch.dtype | None, whose: str
) -> None:
    """Raises where images or weights are of another type than `whose` weights."""
    if None not in (kind, like) and kind != like:
        what = f"expected {_short(like)}, as the {whose}'s weights are, got {_short(kind)}"
        raise UserError(argument, what, f"give {argument}.to(torch.{_short(like)})")


def require_trainable(loss: Tensor) -> None:
    """Raises for a loss of which nothing can learn, as no weight asks for a gradient."""
    if not loss.requires_grad:
        what = "none of its parameters asks for a gradient, so that nothing can be trained"
        fix = "call student.requires_grad_(True), or convert a teacher before you freeze it"
        raise UserError("student", what, fix)


def _short(kind: torch.dtype | None) -> str:
    return str(kind).removeprefix("torch.")


def require_batch(batch: Any) -> None:
    """Raises for what is not (images, labels), perhaps with images beside."""
    parts = len(batch) if isinstance(batch, (tuple, list)) else 0
    if parts not in (2, 3) or not all(isinstance(part, Tensor) for part in batch):
        got = f"{type(batch).__name__} of {len(batch)}" if parts else type(batch).__name__
        what = f"expected tensors (images, labels) in each batch, got a {got}"
        raise UserError("batches", what, "give a DataLoader of pairs, or spikelet.data.Batches")
