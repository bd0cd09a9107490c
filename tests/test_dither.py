"""Ordered dither: its pattern, what it does to a uniform current, and every way of running it."""

from __future__ import annotations

import json
from functools import partial
from itertools import product
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from spikelet.convert import convert
from spikelet.dither import pattern
from spikelet.encode import repeat
from spikelet.errors import UserError
from spikelet.execute import bptt, rate
from spikelet.neuron import IF, LIF, PLIF, Integrator, scan
from spikelet.quantise import levels
from spikelet.recipe import DITHER, Recipe, default_recipe
from spikelet.slopes import closed_form
from spikelet.unroll import unrolled

SHARE = 0.25
NEURONS = [
    IF(dither=SHARE),
    IF(dither=1.0, reset="hard", v_reset=0.1),
    LIF(tau=3.0, dither=SHARE),
    IF(dither=SHARE, signed=True),
    IF(dither=SHARE, detach=True),
]


def currents(*shape: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return 0.4 + torch.randn(*shape, generator=generator)


def channels_last(x: Tensor) -> Tensor:
    return x.movedim(2, -1).contiguous().movedim(-1, 2)


def calibrated(neuron: Integrator) -> Integrator:
    theta = torch.linspace(0.5, 1.3, 3)
    neuron.set_threshold(theta, theta / 2)
    return neuron


# ---- the pattern --------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(5, 64), (3, 32, 32), (4, 6, 6, 6), (2, 1, 40), (7, 5, 3)])
def test_values_fill_an_interval_of_length_1_evenly(shape: tuple[int, ...]) -> None:
    values = pattern(torch.zeros(2, *shape)).flatten(1).double()
    torch.testing.assert_close(values.mean(1), values.new_zeros(len(values)), atol=1e-6, rtol=0)
    assert float((values.amax(1) - values.amin(1)).max()) < 1
    ranks = values.sort(1).values - values.amin(1, keepdim=True)
    count = values.shape[1]
    even = (torch.arange(count) + 0.5) / count
    # the largest distance of the empirical distribution from the uniform one
    assert float((ranks - even).abs().max()) < 2.5 / count**0.5


def test_neighbours_are_far_apart() -> None:
    values = pattern(torch.zeros(1, 3, 16, 16))
    for axis in (1, 2):
        near = (values.narrow(axis, 1, 15) - values.narrow(axis, 0, 15)).abs()
        assert float(near.min()) > 0.2
    assert not torch.equal(values[0], values[1])


def test_one_neuron_a_channel_has_none() -> None:
    assert not pattern(torch.zeros(2, 5, 1, 1)).any()
    assert IF(dither=1.0).beginning(torch.zeros(2, 5)).ndim == 0


def test_it_lies_in_memory_as_an_image_does() -> None:
    x = torch.zeros(2, 3, 8, 8)
    plain, last = pattern(x), pattern(x.to(memory_format=torch.channels_last))
    assert torch.equal(plain, last)
    assert plain.is_contiguous() and last.movedim(0, -1).is_contiguous()


def test_it_can_be_differentiated_through_after_inference_mode() -> None:
    with torch.inference_mode():
        pattern(torch.zeros(1, 2, 9, 11))
    x = torch.zeros(1, 2, 9, 11, requires_grad=True)
    (x * pattern(x)).square().sum().backward()
    assert x.grad is not None


# ---- what it does -------------------------------------------------------------------------


@pytest.mark.parametrize("steps", [1, 2, 4])
def test_the_mean_of_a_uniform_area_grows_smoothly(steps: int) -> None:
    """Of one current everywhere: all or none fire without dither; with a full one the mean over
    the area is the current itself, to the evenness of the pattern."""
    for current in torch.linspace(0.05, 0.95, 19).tolist():
        x = torch.full((steps, 1, 1, 32, 32), current)
        plain, dithered = (
            scan(IF(initial=0.5, dither=share), x).spikes.mean(0) for share in (0.0, 1.0)
        )
        assert float(plain.std()) == 0
        assert float(dithered.mean()) == pytest.approx(current, abs=0.02)


def test_the_potential_of_each_place() -> None:
    """v(0) = initial + theta dither p, seen at a current of 0."""
    theta = torch.tensor([0.5, 2.0])
    neuron = IF(dither=SHARE)
    neuron.set_threshold(theta, theta / 2)
    x = torch.zeros(1, 3, 2, 4, 4)
    expected = (theta / 2)[:, None, None] + theta[:, None, None] * SHARE * pattern(x[0])
    torch.testing.assert_close(scan(neuron, x).potential[0], expected.expand(3, 2, 4, 4))


def test_a_share_of_the_threshold_is_asked_for() -> None:
    for kind, value in product((IF, LIF, PLIF), (-0.1, 1.5, float("nan"))):
        with pytest.raises(UserError, match="dither"):
            kind(dither=value)


# ---- every way of running -----------------------------------------------------------------


@pytest.mark.parametrize("neuron", NEURONS, ids=str)
@pytest.mark.parametrize("laid_out", [Tensor.contiguous, channels_last])
def test_closed_forms_send_what_the_scan_sends(neuron: Integrator, laid_out: Any) -> None:
    neuron, x = calibrated(neuron), laid_out(currents(4, 2, 3, 5, 4))
    expected = neuron(x)
    assert torch.equal(closed_form(neuron, x, 4).output, expected)
    assert torch.equal(unrolled(neuron, x), expected)
    assert not torch.equal(calibrated(type(neuron)())(x), expected)


@pytest.mark.parametrize("laid_out", [Tensor.contiguous, channels_last])
def test_compiled_forms_send_what_the_scan_sends(laid_out: Any) -> None:
    """Batches and sizes change: what was compiled for one start must not be taken for another."""
    neuron = calibrated(IF(dither=SHARE))
    for batch, side in ((2, 5), (5, 4)):
        x = laid_out(currents(2, batch, 3, side, side))
        assert torch.equal(closed_form(neuron, x, 2, True).output, neuron(x))
        assert torch.equal(unrolled(neuron, x, True), neuron(x))


@pytest.mark.parametrize("neuron", NEURONS, ids=str)
@pytest.mark.parametrize("laid_out", [Tensor.contiguous, channels_last])
def test_gradients_are_those_of_the_scan(neuron: Integrator, laid_out: Any) -> None:
    neuron, found = calibrated(neuron), []
    for run in (neuron, lambda x: unrolled(neuron, x)):
        x = laid_out(currents(4, 2, 3, 5, 4)).requires_grad_()
        (run(x) * currents(4, 2, 3, 5, 4, seed=1)).sum().backward()
        found.append(x.grad)
    torch.testing.assert_close(found[0], found[1])


def test_steps_one_by_one_are_the_layers_one_by_one() -> None:
    images = torch.randn(8, 3, 8, 8)
    ann = nn.Sequential(nn.Conv2d(3, 6, 3), nn.ReLU(), nn.Conv2d(6, 4, 3), nn.ReLU(), nn.Flatten())
    net = convert(ann.eval(), IF(dither=SHARE), steps=3, calibrate=images).eval()
    x = repeat(images, 3)
    reference = bptt(net, x).logits
    for order in ("layers", "time"):
        torch.testing.assert_close(rate(net, x, order=order).logits.mean(0), reference.mean(0))


def test_the_quantised_network_starts_there_too() -> None:
    """A constant current sends on average the level of the neuron's own start."""
    neuron, x = calibrated(IF(dither=SHARE)), currents(2, 3, 6, 6).abs()
    mean = neuron(repeat(x, 5)).mean(0)
    torch.testing.assert_close(mean, levels(x, neuron.theta, neuron.beginning(x), 5))


# ---- in recipes ---------------------------------------------------------------------------


def test_distill_has_it_and_old_recipes_do_not() -> None:
    recipe = default_recipe("distill", {"kind": "digits"}, teacher={"kind": "resnet20"})
    assert recipe.neuron["dither"] == DITHER > 0
    fields = json.loads(recipe.to_json())
    fields["neuron"] = {"kind": "IF"}
    assert "dither" not in Recipe.from_json(json.dumps(fields)).neuron
    assert IF().dither == 0


@pytest.mark.parametrize("fuse", [False, True])
@pytest.mark.parametrize("neuron", [IF(dither=SHARE), LIF(dither=SHARE)], ids=str)
def test_windows_start_there_too(neuron: Integrator, fuse: bool) -> None:
    """Channels last, as training lays its images: a window for each step is BPTT."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(3, 6, 3), nn.ReLU(), nn.Conv2d(6, 4, 3), nn.ReLU(), nn.Flatten())
    images = torch.randn(5, 3, 8, 8).contiguous(memory_format=torch.channels_last)
    net = net.to(memory_format=torch.channels_last)
    found = []
    for run in (bptt, partial(rate, windows=4, fuse=fuse), partial(rate, windows=2, fuse=fuse)):
        student = convert(net.eval(), neuron, calibrate=images).train()
        trace = run(student, repeat(images, 4))
        trace.mean_logits.square().sum().backward()
        found.append((trace.mean_logits.detach(), student.get_parameter("0.weight").grad))
    for logits, _ in found[1:]:
        torch.testing.assert_close(logits, found[0][0])
    torch.testing.assert_close(found[1][1], found[0][1])
    alike = torch.cosine_similarity(found[2][1].flatten(), found[0][1].flatten(), dim=0)
    assert 0.9 < alike < 1 - 1e-6
