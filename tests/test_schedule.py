"""How long a training lasts: in epochs, and in steps at least."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from spikelet.cli import leaves
from spikelet.cli.leaves import Leaf
from spikelet.compare import overrides
from spikelet.distill import Distiller
from spikelet.encode import Direct
from spikelet.execute import ann
from spikelet.recipe import Training, default_recipe
from spikelet.terms import CrossEntropy
from spikelet.train import fit


@pytest.mark.parametrize(
    ("epochs", "least", "per_epoch", "expected"),
    [(10, 0, 3, 10), (10, 100, 3, 34), (10, 30, 3, 10), (10, 31, 3, 11), (0, 100, 3, 0)],
)
def test_small_data_are_seen_more_often(
    epochs: int, least: int, per_epoch: int, expected: int
) -> None:
    training = Training(epochs=epochs, least_steps=least).lasting(per_epoch)
    assert training.epochs == expected
    assert training.lasting(per_epoch) == training


def test_whoever_names_epochs_means_them() -> None:
    usual = default_recipe("distill", {"kind": "imagefolder"}, "none")
    assert usual.training.least_steps > 0
    few = Leaf("training.epochs", ("2",), "--epochs")
    assert leaves.overridden(usual, [few]).training.lasting(1).epochs == 2
    assert overrides.overridden(usual, {"training.epochs": 2})[0].training.lasting(1).epochs == 2
    both = [few, Leaf("training.least_steps", ("7",), "--training.least_steps")]
    assert leaves.overridden(usual, both).training.lasting(1).epochs == 7


def test_fit_takes_so_many_steps() -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Flatten(), nn.Linear(4, 2))
    distiller = Distiller(
        net, terms={"ce": CrossEntropy()}, execute=ann, encode=Direct(1), example=torch.randn(4, 4)
    )
    batches = [(torch.randn(4, 4), torch.randint(2, (4,))) for _ in range(3)]
    rows = fit(distiller, batches, training=Training(epochs=1, least_steps=8))
    assert [row["step"] for row in rows] == [3, 6, 9]
