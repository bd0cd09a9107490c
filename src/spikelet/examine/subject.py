"""What is measured: the network of a run beside its teacher and other runs, and their images."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from spikelet.data import Batches, Dataset, Split
from spikelet.encode import repeat, still
from spikelet.errors import UserError
from spikelet.execute import Execute, ann, bptt
from spikelet.layout import laid_for
from spikelet.measure.accuracy import Encode
from spikelet.quantise import quantised
from spikelet.recipe import Recipe
from spikelet.train.crossed import IMAGES
from spikelet.train.known import require_classes
from spikelet.train.load import ANN, SNN, Loaded, load, statistics, teacher
from spikelet.train.prepare import placed
from spikelet.train.running import encoder, runner, spiking

PLACE = ("root", "download", "normalise")  # of the data's spec: the images are the same
TRAINING = ("train", "validation", "seed")  # the test part is the same
Statistics = tuple[Sequence[float], Sequence[float]]  # mean and deviation per channel


@dataclass(frozen=True)
class Seen:
    """One network as it answers.

    Attributes:
        name: "teacher", or the method of its run; unique in a subject.
        net: in eval mode, on the device.
        spiking: whether it has spikes.
        run: its folder; None for the teacher.
        answer: normalised images "B C H W" to logits "B K" at the subject's steps, differentiable
            in the images; a spiking network by `bptt`, the mean over time.
        execute: how it, or a copy of it, runs where no gradient is asked for; `ann` for an ANN.
        encode: (normalised images, T) to what it sees, "T B ...".
    """

    name: str
    net: nn.Module
    spiking: bool
    run: str | None
    answer: Callable[[Tensor], Tensor]
    execute: Execute = bptt
    encode: Encode = repeat


@dataclass(frozen=True)
class Subject:
    """A run to measure.

    Attributes:
        loaded: the run as it was read.
        student: its network; for the run of an ANN that ANN.
        teacher: the teacher that a student's run keeps.
        others: networks of other runs to compare with.
        dataset: its `test` is the part to measure on, cut to the first images asked for.
        steps: T of the training.
        device: where the networks are.
        seed: of the run, and of what a measure draws.
        over: numbers of steps that were asked for; none for 1 to `steps`.
        split: what `dataset.test` is: "test" or "validation".
    """

    loaded: Loaded
    student: Seen
    teacher: Seen | None
    others: tuple[Seen, ...]
    dataset: Dataset
    steps: int
    device: torch.device
    seed: int
    over: tuple[int, ...] = ()
    split: str = "test"

    @property
    def networks(self) -> tuple[Seen, ...]:
        """The teacher if there is one, the others, the student."""
        first = () if self.teacher is None else (self.teacher,)
        return (*first, *self.others, self.student)

    def batches(self, size: int = 250) -> Iterator[tuple[Tensor, Tensor]]:
        """(normalised images "B C H W", labels "B") in order."""
        split = self.dataset.test
        return Batches(split, self.dataset, size, shuffle=False, device=self.device).epoch(0)

    def pixels(self, size: int = 250) -> Iterator[tuple[Tensor, Tensor]]:
        """(images "B C H W" between 0 and 1, not normalised, labels "B") in order."""
        split = self.dataset.test
        for start in range(0, len(split), size):
            images = split.images[start : start + size].to(self.device).float() / 255
            yield images, split.labels[start : start + size].to(self.device)

    def normalise(self, pixels: Tensor) -> Tensor:
        """Images between 0 and 1 "B C H W" as the networks see them, (pixels - mean) / std."""
        mean, std = (_column(x, pixels) for x in (self.dataset.mean, self.dataset.std))
        return (pixels - mean) / std

    def cut(self, images: int | None) -> Subject:
        """The same with the first `images` images of the measured part; None keeps all."""
        if images is None or images >= len(self.dataset.test):
            return self
        few = self.dataset.test.at(torch.arange(images))
        return dataclasses.replace(self, dataset=dataclasses.replace(self.dataset, test=few))


def _column(values: Sequence[float], like: Tensor) -> Tensor:
    return torch.tensor(values, dtype=like.dtype, device=like.device).view(-1, 1, 1)


def subject(
    loaded: Loaded,
    dataset: Dataset,
    versus: Sequence[str] = (),
    device: torch.device | str = "cpu",
    over: Sequence[int] = (),
    split: str = "test",
) -> Subject:
    """The subject of a run, beside its teacher and the runs named in `versus`.

    Args:
        loaded: the run.
        dataset: its data, with the part to measure on as `test`.
        versus: folders of other runs, made with the same data.
        device: where to measure.
        over: numbers of steps that `steps` measures.
        split: what the measured part is called.

    Raises:
        UserError: if the data have other classes than the run's, or another run is none,
            unfinished, or was made with other data.
    """
    device, recipe = torch.device(device), loaded.recipe
    require_classes(loaded.path, dataset, "run")
    see = _Eye(dataset, recipe.steps, device)
    known = dataset.mean, dataset.std
    student = see(loaded, ANN if loaded.kind == ANN else recipe.method, loaded.path, known)
    guide = None if loaded.kind == ANN else _guide(teacher(loaded), see, known)
    taken, others = ["teacher", student.name], []
    for folder in versus:
        other = _same_data(_versus(folder), loaded, dataset, split)
        name = _free(ANN if other.kind == ANN else other.recipe.method, other.path, taken)
        taken.append(name)
        others.append(see(other, name, other.path, statistics(other.path / "card.json")))
    seed, wide = recipe.seed, tuple(over)
    return Subject(
        loaded, student, guide, tuple(others), dataset, recipe.steps, device, seed, wide, split
    )


def _guide(known: Loaded, see: _Eye, statistics: Statistics) -> Seen | None:
    """A student's teacher; None for one that knows images where the student sees events."""
    return None if IMAGES in known.description else see(known, "teacher", None, statistics)


def _versus(folder: str) -> Loaded:
    """Another run to compare with; what is wrong with it is said of the flag."""
    try:
        return load(folder)
    except UserError as error:
        asked = f"run = {Path(folder)}"
        what = f"--versus {folder}" if error.argument == asked else error.argument
        raise UserError(what, error.message, error.fix) from error


def _free(name: str, path: Path, taken: Sequence[str]) -> str:
    """A name that is not taken: the method, with the run's folder, with a number."""
    wide = f"{name} ({path.name})"
    numbered = (f"{name} ({path.name} {count})" for count in range(2, len(taken) + 3))
    return next(each for each in (name, wide, *numbered) if each not in taken)


def _same_data(other: Loaded, mine: Loaded, dataset: Dataset, split: str) -> Loaded:
    """The other run, which was made with the same data, so that it never saw these images.

    Raises:
        UserError: if it was not.
    """
    free = PLACE if split == "validation" else (*PLACE, *TRAINING)
    specs = [{k: v for k, v in each.recipe.data.items() if k not in free} for each in (mine, other)]
    described = other.description
    theirs = (described["channels"], *described["size"], described["classes"])
    if specs[0] != specs[1] or theirs != (dataset.channels, *dataset.size, len(dataset.classes)):
        raise UserError(
            f"--versus {other.path}",
            f"it was made with other data ({specs[1]}, not {specs[0]})",
            "name a run that was made with the same data",
        )
    _same_levels(other, mine.recipe.steps)
    return other


def _same_levels(other: Loaded, steps: int) -> None:
    """Raises for quantised activations with the levels of another number of steps."""
    if other.kind == SNN and not spiking(other.recipe) and other.recipe.steps != steps:
        raise UserError(
            f"--versus {other.path}",
            f"its activations have the levels of T = {other.recipe.steps}, not of T = {steps}",
            f"name one that was trained with --steps {steps}",
        )


@dataclass(frozen=True)
class _Eye:
    """Makes networks that answer images of one data set."""

    dataset: Dataset
    steps: int
    device: torch.device

    def __call__(self, loaded: Loaded, name: str, path: Path | None, known: Statistics) -> Seen:
        """The network of a run; `known` is what its own images were normalised with."""
        net, recipe = placed(loaded.net.eval(), self.device), loaded.recipe
        renewed, run = self._renewed(*known), None if path is None else str(path)
        if loaded.kind == ANN:

            def shown_still(images: Tensor, steps: int) -> Tensor:
                return repeat(renewed(still(images)), steps)

            def told(images: Tensor) -> Tensor:
                return net(laid_for(net, renewed(still(images))))

            return Seen(name, net, False, run, told, ann, shown_still)
        has_spikes = path is None or spiking(recipe)  # a teacher without spikes is an ANN
        execute, exact = (bptt, bptt) if path is None else _ways(recipe)
        encode = encoder(recipe, *known)

        def shown(images: Tensor, steps: int) -> Tensor:
            return encode(renewed(images), steps)

        def answer(images: Tensor) -> Tensor:
            way = exact if torch.is_grad_enabled() else execute
            return way(net, shown(images, self.steps)).mean_logits

        return Seen(name, net, has_spikes, run, answer, execute, shown)

    def _renewed(self, mean: Sequence[float], std: Sequence[float]) -> Callable[[Tensor], Tensor]:
        """Images normalised for this data set, as a network that was fed otherwise knows them."""
        mine = tuple(self.dataset.mean), tuple(self.dataset.std)
        if mine == (tuple(mean), tuple(std)):
            return lambda images: images

        def renewed(images: Tensor) -> Tensor:
            pixels = images * _column(mine[1], images) + _column(mine[0], images)
            return (pixels - _column(mean, images)) / _column(std, images)

        return renewed


def _ways(recipe: Recipe) -> tuple[Execute, Execute]:
    """How a network runs without and with gradients."""
    return runner(recipe), bptt if spiking(recipe) else quantised


def measured_part(dataset: Dataset, split: str) -> Dataset:
    """The data set with the split to measure in the place of its test.

    Raises:
        UserError: for the validation part of a run that held none out.
    """
    if split == "test":
        return dataset
    held: Split | None = dataset.validation
    if held is None:
        raise UserError("--split validation", "the run held no images out", "use --split test")
    return dataclasses.replace(dataset, test=held)
