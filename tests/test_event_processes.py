"""Recordings, and the images beside them, in several processes: what one process learns."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.multiprocessing

import many_events
from many_events import CASES, learner, recordings, trained


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What two gloo processes on this machine found, all in one start of them."""
    folder = tmp_path_factory.mktemp("events")
    torch.multiprocessing.spawn(many_events.work, (2, str(folder)), 2)
    return torch.load(folder / "found.pt")


@pytest.mark.parametrize("case", CASES)
def test_two_processes_learn_what_one_does(case: str, two: dict[str, Any], tmp_path: Path) -> None:
    """Losses, parts and weights of two epochs; recordings unknown to the images among them."""
    one = trained(case, tmp_path / "run")
    found = torch.tensor(two[case]["losses"]), torch.tensor(one["losses"])
    assert torch.allclose(*found, rtol=1e-8, atol=1e-10)
    for name, value in one["state"].items():
        assert torch.allclose(value, two[case]["state"][name], rtol=1e-6, atol=1e-8), name
    first, second = two[case]["each"]
    assert torch.equal(first, second)


def test_a_training_of_two_resumes_exactly(two: dict[str, Any]) -> None:
    """In the middle of an epoch in which images give way to events."""
    whole, parts = two[CASES[0]], two["resumed"]
    assert whole["losses"] == parts["losses"]
    for name, value in whole["state"].items():
        assert torch.equal(value, parts["state"][name]), name


def test_what_is_compared_depends_on_the_images(tmp_path: Path) -> None:
    """Another choice of images beside the events is another training."""
    whole, batches = learner(CASES[0])
    images, labels, shown = next(batches.epoch(0))
    losses = [
        float(whole(images, labels, 0.3, torch.Generator().manual_seed(0), each)[0].detach())
        for each in (shown, shown, shown.flip(0))
    ]
    assert losses[0] == losses[1] != losses[2]
    pair = batches.batches.paired
    assert 0 < pair.exact < len(recordings().train)
