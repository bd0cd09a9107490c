"""A teacher of images for a student of events: whether it is one, and which images it is shown."""

from __future__ import annotations

import dataclasses

import torch
from torch import nn

from spikelet.data import Batches, Dataset
from spikelet.data.paired import Accompanied, Paired
from spikelet.distill import Distiller
from spikelet.train.load import ANN, Loaded, assemble, made

IMAGES = "images"  # of a description: the data that a teacher of another modality was trained on


def crossing(teacher: Loaded, dataset: Dataset, kind: str) -> Loaded:
    """The run of an ANN as teacher of a data set; of images for events, it remembers its data.

    Args:
        teacher: as it was read.
        dataset: of the student.
        kind: what a recipe calls that data set.
    """
    known = teacher.recipe.data
    if teacher.kind != ANN or dataset.frames is None or known["kind"] == kind:
        return teacher
    return dataclasses.replace(teacher, description=teacher.description | {IMAGES: dict(known)})


def images_of(teacher: Loaded) -> Dataset | None:
    """The images that a teacher of events' students knows; None where it sees what they see."""
    spec = teacher.description.get(IMAGES)
    return None if spec is None else made(spec)


def paired(teacher: Loaded, dataset: Dataset, device: torch.device) -> Paired | None:
    """What the teacher is shown in training: a recording's own image, or one of its class."""
    images = images_of(teacher)
    return None if images is None else Paired(images, dataset, device)


def beside(distiller: Distiller, batches: Batches) -> Batches | Accompanied:
    """What a distiller is trained on: batches, with images beside events where it is paired."""
    paired = distiller.paired
    return Accompanied(batches, paired) if isinstance(paired, Paired) else batches


def summed(dataset: Dataset, shown: Paired | None) -> Dataset:
    """The data set with a sum of the images that are paired with it among its own sums."""
    if shown is None:
        return dataset
    return dataclasses.replace(dataset, hashes={**dataset.hashes, "paired": shown.fingerprint()})


def sees(teacher: Loaded, dataset: Dataset) -> bool:
    """Whether a teacher's input has the shape of the data's images or mean frames."""
    description = teacher.description
    theirs = (description["channels"], *description["size"])
    return theirs == (dataset.channels, *dataset.size)


def beginning(teacher: Loaded, dataset: Dataset, seed: int) -> tuple[nn.Module, dict[str, object]]:
    """The teacher's network for a data set, and its description.

    Where it was made for images of another shape it is built anew by `seed`, and takes over every
    weight of the same shape, all but the first layer's as a rule.
    """
    description = {k: v for k, v in teacher.description.items() if k != IMAGES}
    if sees(teacher, dataset):
        return teacher.net, description
    description |= {"channels": dataset.channels, "size": list(dataset.size)}
    net, known = assemble(description | {"seed": seed}), teacher.net.state_dict()
    own = net.state_dict()
    kept = {k: v for k, v in known.items() if k in own and own[k].shape == v.shape}
    net.load_state_dict(own | kept)
    return net.eval(), description
