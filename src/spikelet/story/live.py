"""What only the networks themselves can show, run on a few images of their data."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, fx

from spikelet.data import Dataset
from spikelet.errors import UserError
from spikelet.examine.subject import Seen, Subject, subject
from spikelet.execute import bptt
from spikelet.measure.saliency import input_gradients
from spikelet.neuron import Neuron, per_channel
from spikelet.report.parts import Cell, Gallery
from spikelet.story.kept import few, kept_images
from spikelet.story.told import Told
from spikelet.train import Loaded, load
from spikelet.train.examples import first_of_classes

LARGEST = 96  # pixels across a picture
LAYERS, NEURONS, TRACES = 4, 24, 3  # drawn of one network
RAMP = ((8, 8, 20), (92, 28, 108), (222, 88, 60), (253, 240, 170))


@dataclass(frozen=True)
class Layer:
    """Spikes of some neurons of a layer on one image: a row of T values for each."""

    path: str
    neurons: int
    spikes: Sequence[Sequence[float]]


@dataclass(frozen=True)
class Trace:
    """One neuron: its potential before each reset, in thresholds, and its spikes."""

    name: str
    potentials: Sequence[float]
    spikes: Sequence[float]


@dataclass(frozen=True)
class Firing:
    """What some neurons of a network do on one image, or on the frames of a recording."""

    image: Tensor
    label: str
    layers: Sequence[Layer]
    traces: Sequence[Trace]
    where: str
    recording: bool = False


@dataclass
class Live:
    """What was seen, by name on the page, and why some of it was not.

    Attributes:
        galleries: images with the maps of every network.
        notes: how images were chosen.
        firing: of each spiking run.
        troubles: a sentence for each run that could not be run.
    """

    galleries: list[Gallery] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    firing: dict[str, Firing] = field(default_factory=dict)
    troubles: list[str] = field(default_factory=list)


def see(runs: Sequence[Told], root: Path | None = None) -> Live:
    """Runs every network on a few test images; runs with the same test part share a gallery.

    Images are those that a run keeps in its folder, else they are read from its data.

    Args:
        runs: to see.
        root: folder of the data where they have moved.
    """
    live = Live()
    data: dict[str, Dataset] = {}
    shown: dict[str, list[tuple[Told, Subject]]] = {}
    for run in runs:
        try:
            mine = _subject(run, root, data)
            shown.setdefault(_test_part(run), []).append((run, mine))
            _inside(run, mine, live)
        except (UserError, OSError, ImportError) as error:
            live.troubles.append(f"{run.label} could not be run on its data ({error})")
    for pairs in shown.values():
        try:
            live.galleries.append(_gallery(pairs))
        except UserError as error:
            live.troubles.append(f"no saliency maps ({error})")
    if live.galleries:
        count = max(len(next(iter(each.rows.values()))) for each in live.galleries)
        live.notes.append(
            f"The first test image of each of {count} classes, not chosen otherwise. Each map "
            "is as bright as its own largest value; under it is the network's answer, underlined "
            "where it is wrong."
        )
    return live


def _test_part(run: Told) -> str:
    """The digest of the images that a run was tested on."""
    return str(((run.card.get("data") or {}).get("hashes") or {}).get("test"))


def _subject(run: Told, root: Path | None, data: dict[str, Dataset]) -> Subject:
    """The networks of a run and images of its data, which must be what it was made with.

    `data` keeps what was read, so that runs of the same data read it once.

    Raises:
        UserError: if the weights or data are not there, or not those of the run.
    """
    loaded, kept = _moved(load(run.path), root), kept_images(run)
    if kept is not None:
        return subject(loaded, few(loaded, kept))
    spec = json.dumps(loaded.recipe.data, sort_keys=True)
    dataset = data[spec] if spec in data else data.setdefault(spec, loaded.dataset())
    known = _test_part(run)
    if known != str(dataset.hashes.get("test")) and known != "None":
        what = "the test images are not those of the run: their sha256 differs"
        raise UserError(f"data of {run.path}", what, "bring back the data it was made with")
    return subject(loaded, dataset)


def _moved(loaded: Loaded, root: Path | None) -> Loaded:
    if root is None or "root" not in loaded.recipe.data:
        return loaded
    data = {**loaded.recipe.data, "root": str(root.expanduser().resolve())}
    return dataclasses.replace(loaded, recipe=dataclasses.replace(loaded.recipe, data=data))


def _gallery(pairs: Sequence[tuple[Told, Subject]]) -> Gallery:
    """A row of images, and under it for each network its answers and what they depend on."""
    first = pairs[0][1]
    examples = first_of_classes(first.dataset)
    images, labels = examples.images, examples.labels
    names = first.dataset.classes
    seen: dict[str, tuple[Subject, Seen]] = {}
    for run, mine in pairs:
        if mine.teacher is not None:
            seen.setdefault(str(run.teacher), (mine, mine.teacher))
        seen.setdefault(run.label, (mine, mine.student))
    rows = {
        "image and label": [
            Cell(_small(x), f"test image labelled {names[int(y)]}", names[int(y)])
            for x, y in zip(images, labels, strict=True)
        ]
    }
    return Gallery(rows | {n: _maps(n, *where, images, labels) for n, where in seen.items()})


def _maps(name: str, mine: Subject, seen: Seen, images: Tensor, labels: Tensor) -> list[Cell]:
    """One network's map and answer for each image."""
    pixels = mine.normalise(images.to(mine.device).float() / 255)
    maps = input_gradients(seen.answer, pixels, labels.to(mine.device)).cpu()
    with torch.no_grad():
        answers = seen.answer(pixels).argmax(1).cpu()
    classes = mine.dataset.classes
    return [
        Cell(_coloured(map_), f"saliency map of {name}", classes[int(a)], bool(a != y))
        for map_, a, y in zip(maps, answers, labels, strict=True)
    ]


def _coloured(map_: Tensor) -> Tensor:
    """A map "H W" as bright colours uint8 "3 H W", from 0 to its largest value."""
    largest = map_.max().clamp_min(1e-30)
    place = _shrunk((map_ / largest).clamp(0, 1).nan_to_num()[None])[0] * (len(RAMP) - 1)
    ramp = torch.tensor(RAMP, dtype=torch.float32)
    below = place.floor().long().clamp(max=len(RAMP) - 2)
    part = (place - below).unsqueeze(-1)
    return (ramp[below] * (1 - part) + ramp[below + 1] * part).round().byte().permute(2, 0, 1)


def _small(image: Tensor) -> Tensor:
    """An image uint8 "C H W" of 1 or 3 channels, not larger than a picture needs."""
    if image.ndim == 4:  # frames: their sum, as bright as its brightest pixel
        counts = image.float().sum((0, 1))[None]
        image = counts * (255 / counts.max().clamp_min(1))
    if image.shape[0] not in (1, 3):
        image = image[:1]
    return _shrunk(image.float()).round().byte()


def _shrunk(image: Tensor) -> Tensor:
    """An image "C H W" averaged down to the largest size."""
    factor = LARGEST / max(image.shape[1:])
    if factor >= 1:
        return image
    height, width = (max(1, round(side * factor)) for side in image.shape[1:])
    return F.adaptive_avg_pool2d(image, (height, width))


def _inside(run: Told, mine: Subject, live: Live) -> None:
    """Adds what a spiking run's neurons do."""
    if run.spikes and isinstance(mine.student.net, fx.GraphModule):
        live.firing[run.label] = firing(mine)


def firing(mine: Subject) -> Firing:
    """Spikes and potentials of some neurons of a student on the first test image."""
    seen, steps = mine.student, mine.steps
    examples = first_of_classes(mine.dataset)
    images, labels = examples.images, examples.labels
    x = seen.encode(mine.normalise(images[:1].to(mine.device).float() / 255), steps)
    neurons = {p: m for p, m in seen.net.named_modules() if isinstance(m, Neuron)}
    chosen = _spaced(list(neurons), LAYERS)
    with torch.no_grad():
        taps = bptt(seen.net, x, dict.fromkeys(chosen, ("spikes", "potential"))).taps
    layers, traces, where = [], [], chosen[len(chosen) // 2]
    for path in chosen:
        spikes, potential = taps[path].spikes, taps[path].potential
        assert spikes is not None and potential is not None
        theta = per_channel(neurons[path].theta, potential[0]).to(potential)
        rows, levels, names = _rows(spikes[:, 0], (potential / theta)[:, 0])
        layers.append(Layer(path, spikes[0].numel(), rows.tolist()))
        if path == where:
            traces = _traces(rows, levels, names)
    label = mine.dataset.classes[int(labels[0])]
    frames = mine.dataset.frames is not None
    return Firing(_small(images[0]), label, layers, traces, where, frames)


def _spaced(names: Sequence[str], count: int) -> list[str]:
    """At most so many of some names, the first and the last among them, evenly apart."""
    if len(names) <= count:
        return list(names)
    return [names[round(n * (len(names) - 1) / (count - 1))] for n in range(count)]


def _rows(spikes: Tensor, potential: Tensor) -> tuple[Tensor, Tensor, list[str]]:
    """Of "T C ...", a neuron of each channel: that which fires most, "N T" of both, and names."""
    flat = (x.flatten(2) if x.ndim > 2 else x.unsqueeze(2) for x in (spikes, potential))
    spikes, potential = flat
    channels = range(min(spikes.shape[1], NEURONS))
    places = spikes.abs().sum(0).argmax(1)
    rows = torch.stack([spikes[:, c, places[c]] for c in channels])
    levels = torch.stack([potential[:, c, places[c]] for c in channels])
    return rows, levels, [f"neuron {c + 1}" for c in channels]


def _traces(rows: Tensor, levels: Tensor, names: Sequence[str]) -> list[Trace]:
    """The neurons that fire most, in the middle, and least."""
    order = rows.abs().sum(1).argsort(descending=True, stable=True).tolist()
    picked = dict.fromkeys(order[round(n * (len(order) - 1) / (TRACES - 1))] for n in range(TRACES))
    return [Trace(names[i], levels[i].tolist(), rows[i].tolist()) for i in picked]
