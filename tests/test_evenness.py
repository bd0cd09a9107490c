"""Spikes out of place: against plain loops, and where they must be none."""

from __future__ import annotations

import copy
import math

import pytest
import torch

from small import images, network, student
from spikelet.encode import repeat
from spikelet.errors import UserError
from spikelet.examine.evenness import WAYS, examine, say
from spikelet.execute import bptt
from spikelet.measure import evenness
from spikelet.measure.evenness import signed
from spikelet.neuron import IF, LIF, Neuron
from watched import STEPS, seen, watched


def neurons_of(net: torch.nn.Module) -> dict[str, Neuron]:
    return {name: m for name, m in net.named_modules() if isinstance(m, Neuron)}


def test_counts_against_plain_loops() -> None:
    net, x = student(calibrated=True).eval(), images(batch=3)
    found = evenness(net, x, STEPS)
    assert list(found) == list(neurons_of(net))
    taps = bptt(net, repeat(x, STEPS), dict.fromkeys(found, ("spikes", "current"))).taps
    surplus = 0.0
    for path, neuron in neurons_of(net).items():
        sent = taps[path].spikes.detach().double().sum(0)
        current = taps[path].current.detach().double()
        current = current.expand(STEPS, *current.shape[1:]).mean(0)
        values = []
        for place in torch.cartesian_prod(*[torch.arange(n) for n in sent.shape]):
            b, c = int(place[0]), int(place[1])
            theta = neuron.theta.detach().double().expand(sent.shape[1])[c]
            start = neuron.initial.double().expand(sent.shape[1])[c]
            drive = (STEPS * current[tuple(place)] + start) / theta
            meant = min(max(math.floor(float(drive)), 0), STEPS)
            values.append((float(sent[tuple(place)]), meant))
            assert b < len(x)
        n = len(values)
        assert found[path]["spikes"] == pytest.approx(sum(s for s, _ in values) / n)
        expected = sum(max(s - m, 0) for s, m in values) / n
        assert found[path]["surplus"] == pytest.approx(expected)
        assert found[path]["missing"] == pytest.approx(sum(max(m - s, 0) for s, m in values) / n)
        surplus += expected
    assert surplus > 0  # else nothing was tested


def test_a_layer_that_sees_a_still_image_is_even() -> None:
    net = student(calibrated=True).eval()
    first = next(iter(neurons_of(net)))
    found = evenness(net, images(), STEPS)[first]
    assert found["surplus"] == found["missing"] == 0 < found["spikes"]


def test_taking_spikes_back_leaves_fewer_too_many() -> None:
    net = student(calibrated=True).eval()
    before = copy.deepcopy(net.state_dict())
    plain, taken = (evenness(each, images(batch=16), STEPS) for each in (net, signed(net)))
    totals = [sum(layer["surplus"] for layer in each.values()) for each in (plain, taken)]
    assert totals[1] < totals[0]
    assert not any(neuron.signed for neuron in neurons_of(net).values())
    for name, value in net.state_dict().items():
        assert torch.equal(value, before[name])


@pytest.mark.parametrize("neuron", [LIF(), IF(reset="hard")], ids=["LIF", "hard"])
def test_neurons_that_count_to_no_level_are_refused(neuron: Neuron) -> None:
    net = student(neuron=neuron).eval()
    for call in (lambda: evenness(net, images(), STEPS), lambda: signed(net)):
        with pytest.raises(UserError, match="IF neurons with soft reset"):
            call()


def test_the_measure_of_a_run() -> None:
    net = student(calibrated=True).float().eval()
    subject = watched(seen("none", net), None)
    found = examine(subject, lambda *_: None)
    rows = {(row["way"], row["steps"]): row["accuracy"] for row in found["rows"]}
    assert set(rows) == {(way, t) for way in WAYS for t in range(1, STEPS + 1)}
    assert rows["as it is", STEPS] == 1.0  # the labels are its own answers
    assert found["lost"] == rows["even spikes", STEPS] - 1.0
    assert set(found["layers"]) == set(neurons_of(net))
    assert any("T = 4" in line for line in say(found))
    with pytest.raises(UserError, match="no spikes"):
        examine(watched(seen("teacher", network().float(), "ann"), None), lambda *_: None)
