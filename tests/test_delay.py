"""Neurons that begin later than those before them: values, slopes, and what they stand for."""

from __future__ import annotations

import itertools
from functools import partial

import pytest
import torch
from torch import Tensor, nn

from spikelet.convert import convert
from spikelet.encode import repeat
from spikelet.errors import UserError
from spikelet.execute import bptt, rate
from spikelet.late import collected
from spikelet.measure import accuracy_over_steps, answers_over_steps, evenness
from spikelet.models import resnet20
from spikelet.neuron import IF, scan
from spikelet.norm import freeze_norms
from spikelet.quantise import quantised
from spikelet.slopes import by_jvp, closed_form, respond
from spikelet.unroll import unrolled

STEPS = 4


def currents(*shape: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return 0.4 + torch.randn(*shape, generator=generator)


def neuron(delay: int, **more: object) -> IF:
    made = IF(delay=delay, **more)  # type: ignore[arg-type]
    theta = torch.linspace(0.5, 1.3, 3)
    made.set_threshold(theta, theta / 2)
    return made


def slowly(x: Tensor, theta: float, start: float, delay: int) -> list[list[float]]:
    """Spikes of one neuron, from the definition: step t may use inputs up to t + delay."""
    sent: list[float] = []
    for t in range(len(x)):
        known = float(x[: t + delay + 1].sum())
        sent.append(float(start + known - theta * sum(sent) >= theta))
    return [sent]


@pytest.mark.parametrize("delay", [0, 1, 2, 3, 9])
def test_spikes_are_those_of_the_definition(delay: int) -> None:
    x = currents(STEPS, 200, 3, 1).double()
    run = scan(IF(0.9, 0.45, delay=delay), x).spikes
    for b, c in itertools.product(range(200), range(3)):
        (expected,) = slowly(x[:, b, c, 0], 0.9, 0.45, delay)
        assert run[:, b, c, 0].tolist() == expected


def test_what_is_collected_has_the_same_sum() -> None:
    x = currents(5, 2, 3, 4).double()
    for delay in range(7):
        torch.testing.assert_close(collected(x, delay).sum(0), x.sum(0))
    assert collected(x, 0) is x
    assert not collected(x, 9)[1:].any()


@pytest.mark.parametrize("signed", [False, True])
@pytest.mark.parametrize("reset", ["soft", "hard"])
@pytest.mark.parametrize("delay", [1, 2, 3, 9])
def test_the_closed_form_is_the_derivative(delay: int, reset: str, signed: bool) -> None:
    if signed and reset == "hard":
        pytest.skip("signed spikes need a soft reset")
    kind = neuron(delay, reset=reset, signed=signed).double()
    for x in (currents(STEPS, 5, 3, 2, 2).double(), currents(1, 5, 3, 2, 2).double()):
        whole = x.expand(STEPS, *x.shape[1:])
        ours, theirs = closed_form(kind, x, STEPS), by_jvp(kind, whole)
        torch.testing.assert_close(ours.output, theirs.output)
        torch.testing.assert_close(ours.slope, theirs.slope)


def test_norms_and_sums_that_wait_are_collected_too() -> None:
    kind = neuron(1).double()
    x, y = (currents(STEPS, 5, 3, 2, 2, seed=seed).double() for seed in (0, 1))
    affine = (torch.tensor([0.5, 1.0, 2.0]).double(), torch.tensor([0.1, -0.2, 0.3]).double())
    scale, shift = (each.reshape(3, 1, 1) for each in affine)
    together = respond(kind, x * scale + shift + y, STEPS)
    apart = respond(kind, x, STEPS, affine=affine, other=(y, None))
    torch.testing.assert_close(apart.output, together.output)
    torch.testing.assert_close(apart.slope, together.slope)


def test_compiled_neurons_are_late_as_well() -> None:
    x = currents(STEPS, 5, 3, 2, 2)
    kind = neuron(1)
    plain, fused = closed_form(kind, x, STEPS), closed_form(kind, x, STEPS, fuse=True)
    assert torch.equal(plain.output, fused.output)
    torch.testing.assert_close(plain.slope, fused.slope)
    torch.testing.assert_close(unrolled(kind, x, fuse=True), plain.output)


@pytest.mark.parametrize("delay", [1, 3])
def test_bptt_has_the_gradient_of_automatic_differentiation(delay: int) -> None:
    kind = neuron(delay).double()
    x = currents(STEPS, 5, 3, 2, 2).double().requires_grad_()
    weights = currents(STEPS, 5, 3, 2, 2, seed=1).double()
    slow = torch.autograd.grad((kind(x) * weights).sum(), x)[0]
    fast = torch.autograd.grad((unrolled(kind, x) * weights).sum(), x)[0]
    torch.testing.assert_close(fast, slow)


@pytest.mark.parametrize("delay", [1, 3])
def test_half_precision_is_collected_in_fp32(delay: int) -> None:
    kind, x = neuron(delay), currents(STEPS, 50, 3, 4, 4).bfloat16()
    expected = scan(kind, x).spikes
    for output in (unrolled(kind, x), closed_form(kind, x, STEPS).output):
        assert output.dtype == torch.bfloat16
        assert torch.equal(output.ne(0), expected.ne(0))


def network(delay: int, dither: float = 0.125) -> nn.Module:
    torch.manual_seed(0)
    model = resnet20(classes=10, width=4)
    images = currents(32, 3, 8, 8)
    model.train()(images)
    return convert(model.eval(), IF(delay=delay, dither=dither), steps=STEPS, calibrate=images)


@pytest.mark.parametrize("steps", [1, 2, 4])
def test_a_whole_delay_is_the_quantised_network(steps: int) -> None:
    net, images = network(STEPS - 1).double().eval(), currents(16, 3, 8, 8, seed=3).double()
    x = repeat(images, steps)
    expected = quantised(net, x).mean_logits
    for execute in (bptt, rate):
        torch.testing.assert_close(execute(net, x).mean_logits, expected)
    found = evenness(net, images, steps)
    assert all(each["surplus"] == each["missing"] == 0 for each in found.values())
    early = network(0).double().eval()
    same = repeat(images, STEPS)
    assert not torch.allclose(bptt(early, same).mean_logits, quantised(early, same).mean_logits)


def test_later_neurons_send_fewer_spikes_in_vain() -> None:
    images, wrong = currents(32, 3, 8, 8, seed=3), []
    for delay in range(STEPS):
        found = evenness(network(delay).eval(), images, STEPS)
        wrong.append(sum(each["surplus"] + each["missing"] for each in found.values()))
    assert wrong[0] > 2 * wrong[1] > 2 * wrong[2] > 0
    assert wrong[3] < 1e-3  # sums of fp32 in another order


def test_rate_and_bptt_send_the_same_spikes() -> None:
    net, images = network(1).double(), currents(8, 3, 8, 8, seed=3).double()
    freeze_norms(net)
    x = repeat(images, STEPS)
    with torch.no_grad():
        torch.testing.assert_close(rate(net, x).logits, bptt(net, x).logits)


def test_each_number_of_steps_is_a_run_of_its_own() -> None:
    net, images = network(1).eval(), currents(8, 3, 8, 8, seed=3)
    found = answers_over_steps(net, images, [1, 2, 4])
    for steps, logits in found.items():
        torch.testing.assert_close(logits, bptt(net, repeat(images, steps)).mean_logits)
    labels = torch.zeros(8, dtype=torch.long)
    assert set(accuracy_over_steps(net, [(images, labels)], [1, 4])) == {1, 4}


def test_what_cannot_begin_late_says_so() -> None:
    for wrong in (-1, 1.5, "a"):
        with pytest.raises(UserError, match="delay"):
            IF(delay=wrong)  # type: ignore[arg-type]
    net, x = network(1), repeat(currents(2, 3, 8, 8), STEPS)
    with pytest.raises(UserError, match=r"windows = 2.*begin 1 step late"):
        rate(net, x, windows=2)
    freeze_norms(net)
    with pytest.raises(UserError, match=r"order.*begin 1 step late"):
        partial(rate, order="time")(net, x)
