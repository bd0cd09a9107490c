"""Likeness to the teacher at a neuron that conversion moved behind its max pooling."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from torch import nn

from spikelet.convert import convert
from spikelet.encode import repeat
from spikelet.examine.health import similarities
from spikelet.execute import bptt
from spikelet.measure.similarity import linear_cka
from spikelet.neuron import IF


def test_a_neuron_behind_max_pooling_is_compared_with_the_pooled_activation() -> None:
    """By hand: the teacher's modules one after the other, the student's mean spikes there."""
    torch.manual_seed(0)
    net = nn.Sequential(
        nn.Conv2d(2, 4, 3), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(4, 4, 3), nn.ReLU(),
        nn.Flatten(), nn.Linear(4 * 9, 3),
    ).eval()  # fmt: skip
    images = torch.randn(12, 2, 12, 12)
    student = convert(net, IF(), steps=4, calibrate=images)
    guide = SimpleNamespace(net=net, spiking=False, encode=repeat)
    seen = SimpleNamespace(net=student, encode=repeat)
    subject = SimpleNamespace(student=seen, teacher=guide, steps=4)
    found = similarities(subject, images)  # type: ignore[arg-type]
    assert set(found) == {"1", "4"}
    assert found["1"]["teacher"] == "_2"
    ours = bptt(student, repeat(images, 4), ["2", "4"]).taps
    for path, (tap, length) in {"1": ("2", 3), "4": ("4", 5)}.items():
        with torch.no_grad():
            expected = linear_cka(ours[tap].mean, net[:length](images)[None].mean(0))
        assert found[path]["cka"] == pytest.approx(expected, rel=1e-5)
