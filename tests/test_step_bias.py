"""Neurons with a learned current for each step: values, gradients, levels, and what refuses it."""

from __future__ import annotations

from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor

from small import student
from spikelet.convert import convert
from spikelet.distill import Distiller
from spikelet.encode import repeat
from spikelet.errors import UserError
from spikelet.execute import Execute, bptt, rate
from spikelet.measure import evenness
from spikelet.models import small_cnn
from spikelet.neuron import IF, Neuron, arriving, scan
from spikelet.quantise import quantised
from spikelet.terms import CrossEntropy
from spikelet.unroll import unrolled, usable

STEPS = 4
IMAGES = torch.rand(6, 1, 8, 8, generator=torch.Generator().manual_seed(3)).double()


def currents(*shape: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return (0.4 + torch.randn(*shape, generator=generator)).double()


def neuron(bias: Tensor | None, **more: Any) -> IF:
    made = IF(step_bias=True, **more)
    theta = torch.linspace(0.5, 1.3, 3)
    made.set_threshold(theta, theta / 2)
    if bias is not None:
        made.set_step_biases(bias)
    return made.double()


def biased(spread: float = 0.3) -> Any:
    """A converted network whose steps have biases, in eval mode."""
    torch.manual_seed(1)
    ann = small_cnn(classes=3, channels=1, width=4).double().eval()
    net = convert(ann, IF(step_bias=True, dither=0.125), steps=STEPS, calibrate=IMAGES).double()
    for module in net.modules():
        if isinstance(module, Neuron):
            assert module.step_biases is not None
            assert (
                module.step_biases.shape == (STEPS, *module.theta.shape)
                and not module.step_biases.any()
            )
            module.set_step_biases(spread * torch.randn_like(module.step_biases) * module.theta)
    return net.double().eval()


@pytest.mark.parametrize("shared", [False, True])
@pytest.mark.parametrize("steps", [2, 4, 6])
def test_each_step_has_its_own_current_and_later_ones_none(steps: int, shared: bool) -> None:
    x, bias = currents(steps, 5, 3, 2), currents(STEPS) if shared else currents(STEPS, 3)
    expected = x.clone()
    for t in range(min(steps, STEPS)):
        for c in range(3):
            expected[t, :, c] += (bias[t] if shared else bias[t, c]).float()
    found = arriving(neuron(bias), x)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-12)
    plain = neuron(None)
    assert torch.equal(scan(neuron(bias), x).spikes, scan(plain, found).spikes)


@pytest.mark.parametrize("fuse", [False, True])
@pytest.mark.parametrize("signed", [False, True])
def test_gradients_are_those_of_the_recorded_scan(fuse: bool, signed: bool) -> None:
    made, weight = neuron(currents(STEPS, 3, seed=1), signed=signed), currents(STEPS, 5, 3, 2, 2)
    assert usable(made, currents(STEPS, 5, 3, 2, 2))
    found = []
    for run in (partial(unrolled, made, fuse=fuse), made):
        x = currents(STEPS, 5, 3, 2, 2, seed=4).requires_grad_()
        loss = (run(x) * weight).sum()
        found.append((loss.detach(), *torch.autograd.grad(loss, (x, made.step_biases))))
    assert found[0][2].shape == (STEPS, 3) and bool(found[0][2].ne(0).all())
    for ours, theirs in zip(*found, strict=True):
        torch.testing.assert_close(ours, theirs)


def test_half_precision_keeps_its_precision() -> None:
    made = neuron(currents(STEPS, 3)).float()
    sent = unrolled(made, currents(STEPS, 5, 3, 2).bfloat16())
    assert sent.dtype == torch.bfloat16
    sent.sum().backward()
    assert made.step_biases is not None and made.step_biases.grad is not None
    assert made.step_biases.grad.dtype == torch.float32


@pytest.mark.parametrize("execute", [rate, partial(rate, fuse=True), partial(bptt, fuse=True)])
def test_every_way_of_running_answers_alike(execute: Execute) -> None:
    net, x = biased(), repeat(IMAGES, STEPS)
    with torch.no_grad():
        found, expected = execute(net, x).logits, bptt(net, x).logits
        for module in net.modules():
            if isinstance(module, Neuron):
                module.step_biases = None
        assert not torch.allclose(expected, bptt(net, x).logits)
    torch.testing.assert_close(found, expected)


def test_levels_know_the_sum_of_the_biases() -> None:
    """One neuron with all its current and bias at the first step sends its level, one a step."""
    made = neuron(torch.zeros(STEPS, 3))
    for seed in range(20):
        x, bias = torch.zeros(STEPS, 8, 3, 1).double(), torch.zeros(STEPS, 3).double()
        x[0], bias[0] = 2 * currents(8, 3, 1, seed=seed), currents(3, seed=seed)
        made.set_step_biases(bias)
        sent = scan(made.double(), x).spikes.sum(0)
        total = x.sum(0) + made.given(x[0], STEPS)
        expected = (total / made.theta.reshape(-1, 1)).floor().clamp(0, STEPS)
        assert torch.equal(sent, expected)


def test_the_rival_and_evenness_take_them_along() -> None:
    net, x = biased(0.0), repeat(IMAGES, STEPS)
    with torch.no_grad():
        before, even = quantised(net, x).logits, evenness(net, IMAGES, STEPS)
        for module in net.modules():
            if isinstance(module, Neuron):  # the same sum as before, at the other end of time
                module.set_step_biases(
                    module.step_biases.new_zeros(module.step_biases.shape) + 1 / STEPS
                )
        after = quantised(net.double(), x).logits
        for module in net.modules():
            if isinstance(module, Neuron):
                module.initial += 1
                module.step_biases = None
        torch.testing.assert_close(quantised(net, x).logits, after)
    assert not torch.allclose(before, after)
    assert all(each["spikes"] > 0 for each in even.values())


def test_training_moves_them_and_the_gradient_of_the_mean_is_refused() -> None:
    net, labels = biased(), torch.arange(6) % 3
    made = partial(Distiller, net, terms={"ce": CrossEntropy()}, example=IMAGES)
    made(execute=bptt)(IMAGES, labels)[0].backward()
    own = [m.step_biases for m in net.modules() if isinstance(m, Neuron)]
    assert all(b is not None and b.grad is not None and bool(b.grad.ne(0).any()) for b in own)
    for execute in (rate, partial(rate, windows=2)):
        with pytest.raises(UserError, match=r"step_bias = True.*through time; use execute=bptt"):
            made(execute=execute)(IMAGES, labels)
    with pytest.raises(UserError, match=r"order = 'time'.*the bias of each step"):
        made(execute=partial(rate, order="time"))


@pytest.mark.parametrize(
    ("more", "said"), [({"delay": 1}, "begins late"), ({"step_bias": 1}, "True or False")]
)
def test_what_cannot_be_is_told(more: dict[str, Any], said: str) -> None:
    with pytest.raises(UserError, match=said):
        IF(**{"step_bias": True, **more})


def test_networks_without_have_no_such_weight() -> None:
    assert not any(name.endswith("step_biases") for name in student("stages").state_dict())
