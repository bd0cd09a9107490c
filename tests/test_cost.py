"""What a training cost: operations by hand, and time in epochs of the ANN."""

from __future__ import annotations

import itertools
from functools import partial

import pytest
import torch
from torch import nn

from small import mlp, student
from spikelet.convert import convert
from spikelet.data import Batches, Dataset, Split
from spikelet.distill import Distiller
from spikelet.encode import Direct, Mixed
from spikelet.execute import bptt, rate
from spikelet.quantise import quantised
from spikelet.recipe import Training
from spikelet.terms import CrossEntropy, Logits
from spikelet.train import cost, fit, loop
from spikelet.train.cost import costs, epoch_seconds, macs_per_image, plainly

FIRST, SECOND, THIRD = 6 * 12, 12 * 8, 8 * 3  # weights of `mlp`
T = 4


def distiller(execute: object, taught: bool = False) -> Distiller:
    """The student of `mlp` over four steps, with the labels alone or its teacher's logits."""
    terms = {"ce": CrossEntropy()} | ({"logits": Logits()} if taught else {})
    net, example = student("mlp").float(), torch.randn(4, 6)
    teacher = mlp() if taught else None
    return Distiller(
        net, teacher, terms=terms, execute=execute, encode=Direct(steps=T), example=example
    )


def batch() -> tuple[torch.Tensor, torch.Tensor]:
    return torch.randn(5, 6), torch.tensor([0, 1, 2, 0, 1])


@pytest.mark.parametrize(
    ("execute", "expected"),
    [
        # backward the first layer needs the gradient of its weights alone; in a rate pass its input
        # is the same at every step, and a linear layer runs once more, on the mean
        (rate, 3 * FIRST + (T + 1 + 2) * (SECOND + THIRD)),
        (bptt, 2 * T * FIRST + 3 * T * (SECOND + THIRD)),
        (quantised, 2 * FIRST + 3 * (SECOND + THIRD)),
    ],
    ids=["rate", "bptt", "quantised"],
)
def test_operations_of_a_step_by_hand(execute: object, expected: int) -> None:
    assert macs_per_image(distiller(execute), *batch()) == expected


def test_the_teachers_forward_is_part_of_it() -> None:
    taught, alone = (macs_per_image(distiller(rate, each), *batch()) for each in (True, False))
    assert taught - alone == FIRST + SECOND + THIRD


def test_drawn_steps_are_counted_on_average() -> None:
    each = []
    for encode in (Direct(1), Direct(2), Direct(3), Mixed(3)):
        found = distiller(bptt)
        found.encode = encode
        each.append(macs_per_image(found, *batch()))
    assert each[0] < each[1] < each[2] and each[3] == pytest.approx(sum(each[:3]) / 3)


def test_counting_leaves_the_distiller_as_it_is() -> None:
    counted = distiller(rate)
    before = {name: value.clone() for name, value in counted.state_dict().items()}
    macs_per_image(counted, *batch())
    for name, value in counted.state_dict().items():
        assert torch.equal(value, before[name]), name
    assert all(p.grad is None for p in counted.parameters())


def test_compiled_ways_are_counted_plainly() -> None:
    fused = partial(rate, fuse=True, divide_by_steps=True)
    assert plainly(distiller(fused)).execute.keywords == {"fuse": False, "divide_by_steps": True}
    assert plainly(distiller(rate)).execute is rate


def small(images: int, batch_size: int) -> Batches:
    """Random images "1 2 3" in batches."""
    pixels = torch.randint(255, (images, 1, 2, 3), dtype=torch.uint8)
    split = Split(pixels, torch.randint(3, (images,)))
    data = Dataset("random", split, None, split, ("a", "b", "c"), (0.5,), (0.5,), "none", {})
    return Batches(split, data, batch_size)


def flat() -> nn.Module:
    """`mlp` on images."""
    return nn.Sequential(nn.Flatten(), mlp())


def test_costs_scale_with_images_and_seconds() -> None:
    batches, net = small(20, 8), flat()
    found = Distiller(
        convert(net), terms={"ce": CrossEntropy()}, execute=rate, example=torch.randn(2, 1, 2, 3)
    )
    once = macs_per_image(found, *next(iter(batches.epoch(0))))
    for epochs in (1, 3):
        training = Training(epochs=epochs, batch=8)
        paid = costs(found, flat(), batches, training, 10.0)
        assert paid["macs"] == pytest.approx(20 * epochs * once)
        assert paid["ann_epochs"] is not None and 0 < paid["ann_epochs"] < 1e7
        layers = [m.weight for m in net.modules() if isinstance(m, nn.Linear)]
        by_hand = 3 * sum(w.numel() for w in layers) - layers[0].numel()  # images need no gradient
        assert paid["ann_epochs_macs"] == pytest.approx(epochs * once / by_hand)


def test_what_compiles_is_told_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    spent = iter(range(100))  # a second whenever it is asked for
    monkeypatch.setattr(loop, "seconds_compiling", lambda: next(spent))
    images = torch.utils.data.TensorDataset(torch.randn(12, 6), torch.zeros(12, dtype=torch.long))
    loader = torch.utils.data.DataLoader(images, 4)
    first, second = fit(distiller(rate), loader, training=Training(epochs=2, learning_rate=1e-3))
    assert first["seconds_compiling"] == second["seconds_compiling"] == 3


def test_an_epoch_of_the_ann_takes_its_number_of_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    """By a clock that moves on by a second whenever it is read, a step takes one second."""
    clock = itertools.count()
    monkeypatch.setattr(cost, "_now", lambda device: float(next(clock)))
    net, training = flat(), Training(epochs=1, batch=8)
    before = {name: value.clone() for name, value in net.state_dict().items()}
    for images in (16, 640):
        assert epoch_seconds(net, small(images, 8), training) == images / 8
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())
