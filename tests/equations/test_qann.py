"""The quantised rival: clip(floor((T c + v0) / theta), 0, T) theta / T, against plain loops."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from small import images, student
from spikelet.convert import convert
from spikelet.encode import repeat
from spikelet.errors import UserError
from spikelet.execute import bptt, rate
from spikelet.measure import answers_over_steps
from spikelet.neuron import IF, LIF
from spikelet.quantise import levels, quantised


def plainly(current: float, theta: float, initial: float, steps: int) -> float:
    """Spikes of an integrate-and-fire neuron under a constant current, counted one by one."""
    potential, count = initial, 0
    for _ in range(steps):
        potential += current
        if potential >= theta:
            potential -= theta
            count += 1
    return count * theta / steps


@pytest.mark.parametrize("steps", [1, 2, 4, 7])
def test_levels_are_what_a_neuron_sends_under_a_constant_current(steps: int) -> None:
    theta = torch.tensor([0.5, 1.3, 2.0], dtype=torch.float64)
    initial = theta * torch.tensor([0.5, 0.25, 0.0], dtype=torch.float64)
    current = torch.randn(40, 3, dtype=torch.float64) * 1.5
    current = current[(current < theta).all(1)]  # above theta a neuron saturates later than this
    found = levels(current, theta, initial, steps)
    for row, values in zip(current, found, strict=True):
        for c, th, v, value in zip(row, theta, initial, values, strict=True):
            assert math.isclose(value, plainly(float(c), float(th), float(v), steps), abs_tol=1e-12)


def test_levels_saturate_and_pass_the_gradient_between() -> None:
    theta, initial, steps = torch.tensor(1.0), torch.tensor(0.5), 4
    current = torch.tensor([[-3.0], [-0.01], [0.3], [0.99], [1.2], [5.0]], requires_grad=True)
    value = levels(current, theta, initial, steps)
    assert value.flatten().tolist() == [0.0, 0.0, 0.25, 1.0, 1.0, 1.0]
    value.sum().backward()
    assert current.grad is not None
    assert current.grad.flatten().tolist() == [0.0, 0.0, 1.0, 1.0, 0.0, 0.0]


def test_the_first_layer_equals_the_spiking_one_under_direct_coding() -> None:
    net = student("stages", calibrated=True)
    x = repeat(images("stages"), 3)
    first = next(path for path, m in net.named_modules() if isinstance(m, IF))
    same = quantised(net, x, [first]).taps[first].mean
    spiking = bptt(net, x, {first: ("mean", "current")}).taps[first]
    theta = net.get_submodule(first).theta.reshape(-1, 1, 1)
    inside = spiking.current[0] < theta  # above theta a rest is left, which is sent on later
    assert float(inside.float().mean()) > 0.5
    assert float(spiking.mean[inside].max()) > 0
    torch.testing.assert_close(same[inside], spiking.mean[inside])


def test_more_levels_come_nearer_to_the_network_without_quantisation() -> None:
    torch.manual_seed(0)
    ann = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(144, 3)).eval()
    x = torch.randn(8, 3, 8, 8)
    errors = []
    for steps in (1, 4, 64):
        net = convert(ann, IF(), steps=steps, calibrate=x, sweeps=0)
        errors.append(float((quantised(net, repeat(x, steps)).mean_logits - ann(x)).abs().mean()))
    assert errors[0] > errors[1] > errors[2]


def test_every_number_of_steps_has_levels_of_its_own() -> None:
    net, x = student("stages", calibrated=True).eval(), images("stages")
    found = answers_over_steps(net, x, [1, 3], quantised)
    for t in (1, 3):
        torch.testing.assert_close(found[t], quantised(net, repeat(x, t)).mean_logits.float())


def test_gradients_flow_and_thresholds_learn() -> None:
    net = convert(
        nn.Sequential(nn.Linear(6, 5), nn.ReLU(), nn.Linear(5, 3)).double(),
        IF(learn_threshold=True),
        calibrate=torch.randn(32, 6).double(),
    ).double()
    quantised(net, repeat(torch.randn(4, 6).double(), 4)).mean_logits.square().sum().backward()
    for name, parameter in net.named_parameters():
        assert parameter.grad is not None, name
        assert bool(torch.isfinite(parameter.grad).all())


def test_only_integrate_and_fire_has_a_quantised_form() -> None:
    ann = nn.Sequential(nn.Linear(6, 5), nn.ReLU(), nn.Linear(5, 3))
    for neuron in (LIF(), IF(reset="hard")):
        with pytest.raises(UserError, match="soft reset"):
            quantised(convert(ann, neuron), repeat(torch.randn(4, 6), 2))


def test_one_step_of_rate_is_one_level() -> None:
    net = student("stages", calibrated=True).eval()
    x = repeat(images("stages"), 1)
    torch.testing.assert_close(quantised(net, x).mean_logits, rate(net, x).mean_logits)
