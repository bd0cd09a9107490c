"""A few test images in a run's folder: its page shows them without reading the data again."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from spikelet.checkpoint import load_weights, save_weights
from spikelet.data import Dataset, Split
from spikelet.train.stored import damaged

EXAMPLES_FILE = "examples.safetensors"
EXAMPLES = 6


def first_of_classes(dataset: Dataset) -> Split:
    """The first test image of each of the first classes there are, and its label."""
    labels = dataset.test.labels
    found = [(labels == k).nonzero()[0, 0] for k in labels.unique()[:EXAMPLES]]
    index = torch.stack(found) if found else torch.empty(0, dtype=torch.int64)
    return Split(dataset.test.images[index], labels[index])


def store_examples(run: Path, dataset: Dataset) -> None:
    """Writes them to RUN/examples.safetensors: "images" uint8, "labels" int64."""
    shown = first_of_classes(dataset)
    save_weights(run / EXAMPLES_FILE, {"images": shown.images, "labels": shown.labels})


def stored_examples(run: Path, classes: int) -> Split | None:
    """The images and labels that a run stored; None for an older run, which has none.

    Raises:
        UserError: if the file is damaged.
    """
    file = run / EXAMPLES_FILE
    if not file.exists():
        return None
    tensors = load_weights(file)
    images, labels = tensors.get("images"), tensors.get("labels")
    if images is None or labels is None or not _fit(images, labels, classes):
        raise damaged(file, "it holds no labelled images", "delete it")
    return Split(images, labels)


def _fit(images: Tensor, labels: Tensor, classes: int) -> bool:
    """Whether these are images with labels of so many classes."""
    if images.dtype != torch.uint8 or images.ndim not in (4, 5) or labels.dtype != torch.int64:
        return False
    if not len(labels) or labels.shape != (len(images),):
        return False
    return int(labels.min()) >= 0 and int(labels.max()) < classes
