"""Noise on images and inside networks, and its summaries, each against a second derivation."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, fx, nn

from small import images, network, student
from spikelet.encode import repeat
from spikelet.errors import UserError
from spikelet.execute import Execute, bptt, rate
from spikelet.measure.corruptions import KINDS, corrupt, source
from spikelet.measure.immunity import Right, against, mean_right, over_kinds, paired, summary
from spikelet.measure.inside import (
    DISTURBANCES,
    disturbed,
    jittered,
    noisy_weights,
    quantised_weights,
    unreliable,
)
from spikelet.neuron import IF, Neuron

STEPS = 4


def pictures(count: int = 6, channels: int = 3, size: int = 16, seed: int = 0) -> Tensor:
    """Random images between 0 and 1, smooth enough to blur."""
    return torch.rand(count, channels, size, size, generator=source("pictures", seed))


# ---- on images ----------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_noise_is_clipped_drawn_again_and_leaves_the_image(kind: str) -> None:
    pixels = pictures()
    before = pixels.clone()
    level = KINDS[kind].levels[-1]
    noisy = corrupt(pixels, kind, level, source(1))
    assert noisy.shape == pixels.shape and noisy.dtype == pixels.dtype
    assert float(noisy.min()) >= 0 and float(noisy.max()) <= 1
    assert not torch.equal(noisy, pixels) and torch.equal(pixels, before)
    assert torch.equal(noisy, corrupt(pixels, kind, level, source(1)))
    assert KINDS[kind].drawn != torch.equal(noisy, corrupt(pixels, kind, level, source(2)))


@pytest.mark.parametrize("kind", KINDS)
def test_no_noise_is_the_image_and_little_noise_is_near(kind: str) -> None:
    """Level 0 by definition, and as the limit of each kind's own equation."""
    pixels = pictures()
    assert torch.equal(corrupt(pixels, kind, 0, source(0)), pixels)
    little = corrupt(pixels, kind, 1e-6, source(0)) - pixels
    assert float(little.double().square().mean().sqrt()) < 2e-3


@pytest.mark.parametrize("kind", KINDS)
def test_levels_rise(kind: str) -> None:
    pixels = pictures(20)
    distance = [
        float((corrupt(pixels, kind, level, source(0)) - pixels).abs().mean())
        for level in KINDS[kind].levels
    ]
    assert distance == sorted(distance) and len(set(distance)) == len(distance) >= 3


@pytest.mark.parametrize(
    ("kind", "level", "expected"),
    [
        ("gaussian", 0.05, 0.05),
        ("uniform", 0.1, 0.1 / math.sqrt(3)),
        ("speckle", 0.2, 0.2 * 0.5),
        ("poisson", 0.005, math.sqrt(0.005 * 0.5)),
    ],
)
def test_deviation_of_additive_noise(kind: str, level: float, expected: float) -> None:
    """Of a grey image that no clipping reaches; the mean stays."""
    grey = torch.full((8, 3, 64, 64), 0.5)
    noisy = corrupt(grey, kind, level, source(0)).double()
    assert float(noisy.std()) == pytest.approx(expected, rel=0.02)
    assert float(noisy.mean()) == pytest.approx(0.5, abs=5e-3)


def test_salt_and_pepper_takes_whole_pixels() -> None:
    grey = torch.full((8, 3, 64, 64), 0.5)
    noisy = corrupt(grey, "salt-and-pepper", 0.1, source(0))
    assert all(torch.equal(noisy[:, 0], noisy[:, c]) for c in (1, 2))
    shares = [float((noisy == value).double().mean()) for value in (0.0, 1.0, 0.5)]
    assert shares == pytest.approx([0.05, 0.05, 0.9], abs=0.005)
    dropped = corrupt(grey, "pixel-drop", 0.1, source(0))
    shares = [float((dropped == value).double().mean()) for value in (0.0, 0.5)]
    assert shares == pytest.approx([0.1, 0.9], abs=0.01)


def test_blur_is_the_plain_sum() -> None:
    """Every output pixel as a double loop over its neighbours, the nearest edge outside."""
    pixels, sigma = pictures(1, 2, 7), 0.6
    blurred = corrupt(pixels, "blur", sigma, source(0))
    radius, edge = 2, 6
    weights = {
        (i, j): math.exp(-(i * i + j * j) / (2 * sigma**2))
        for i in range(-radius, radius + 1)
        for j in range(-radius, radius + 1)
    }
    for c, y, x in [(0, 0, 0), (0, 3, 3), (1, 6, 2), (1, 1, 5)]:
        value = sum(
            w * float(pixels[0, c, min(max(y + i, 0), edge), min(max(x + j, 0), edge)])
            for (i, j), w in weights.items()
        )
        assert float(blurred[0, c, y, x]) == pytest.approx(value / sum(weights.values()), abs=1e-6)


def test_brightness_contrast_and_haze_by_their_equations() -> None:
    pixels = pictures() * 0.5
    assert torch.allclose(corrupt(pixels, "brightness", 0.2, source(0)), pixels + 0.2)
    middle = torch.stack([torch.stack([c.mean() for c in image]) for image in pixels])
    expected = 0.3 * pixels + 0.7 * middle[:, :, None, None]
    assert torch.allclose(corrupt(pixels, "contrast", 0.7, source(0)), expected, atol=1e-6)
    field = (corrupt(pixels, "haze", 0.4, source(0)) - 0.6 * pixels) / 0.4
    assert float(field.min()) > 0.7 - 1e-5 and float(field.max()) < 1 + 1e-5
    assert torch.allclose(field[:, 0], field[:, 1], atol=1e-5)
    steps = (field[:, :, 1:] - field[:, :, :-1]).abs().max()
    assert float(steps) <= 0.3 * 2 / 15 + 1e-5  # smooth: linear between three values a side


def test_unknown_noise_is_answered_with_the_nearest() -> None:
    with pytest.raises(UserError, match="gaussian"):
        corrupt(pictures(), "gausian", 0.1, source(0))
    with pytest.raises(UserError, match="0 or more"):
        corrupt(pictures(), "gaussian", -0.1, source(0))


# ---- inside a network ---------------------------------------------------------------------------


def logits(net: nn.Module, execute: Execute = bptt, name: str = "residual") -> Tensor:
    with torch.no_grad():
        return execute(net, repeat(images(name, 4, 5), STEPS)).logits


def unsettled(name: str = "residual", **fields: object) -> fx.GraphModule:
    """A calibrated student in eval mode."""
    neuron = IF(**fields) if fields else None
    return student(name, neuron, calibrated=True).eval()


@pytest.mark.parametrize("kind", [kind for kind in DISTURBANCES if kind != "weight-bits"])
def test_zero_noise_inside_changes_nothing(kind: str) -> None:
    """Level 0 is the network; and so is each copy that was made with a level of zero."""
    net = unsettled()
    assert disturbed(net, kind, 0, source(0), images()) is net
    spoiled = DISTURBANCES[kind].copy(net, 0.0, source(0), images())
    assert spoiled is not net
    assert torch.equal(logits(spoiled), logits(net))


@pytest.mark.parametrize("kind", DISTURBANCES)
def test_noise_inside_leaves_the_network_as_it_was(kind: str) -> None:
    net = unsettled()
    before, names = copy.deepcopy(net.state_dict()), [n.name for n in net.graph.nodes]
    expected = logits(net)
    level = 3 if kind == "weight-bits" else 0.5
    spoiled = disturbed(net, kind, level, source(0), images())
    assert not torch.equal(logits(spoiled), expected)
    assert torch.equal(logits(net), expected)
    assert [n.name for n in net.graph.nodes] == names
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())


@pytest.mark.parametrize("execute", [bptt, rate])
def test_losing_every_spike_silences(execute: Execute) -> None:
    """Behind the last neuron only the classifier's bias is left."""
    net = unsettled()
    silent = logits(unreliable(net, source(0), lost=1.0), execute)
    assert torch.allclose(silent, net.linear.bias.expand_as(silent))
    assert not torch.allclose(logits(net), silent)


@pytest.mark.parametrize("execute", [bptt, rate])
def test_false_spikes_fill_every_silent_step(execute: Execute) -> None:
    """With probability 1 every neuron sends theta at every step, whatever it is shown."""
    net = unsettled()
    last = [m for m in net.modules() if isinstance(m, Neuron)][-1]
    full = logits(unreliable(net, source(0), false=1.0), execute)
    theta = last.theta.to(full).expand(net.linear.in_features)
    expected = torch.nn.functional.linear(theta, net.linear.weight, net.linear.bias)
    assert torch.allclose(full, expected.expand_as(full))


def test_share_of_lost_and_false_spikes() -> None:
    """Counted at a tap's own reader: what comes out of the module for ones and for zeros."""
    net = unreliable(unsettled(), source(0), lost=0.2, false=0.05)
    module = next(m for name, m in net.named_modules() if name.endswith("_heard"))
    theta = float(module.theta.flatten()[0])
    sent = torch.full((1, module.theta.numel(), 200, 200), theta)
    assert float((module(sent)[:, 0] == 0).double().mean()) == pytest.approx(0.2, abs=0.01)
    heard = module(torch.zeros_like(sent))[:, 0]
    assert float((heard != 0).double().mean()) == pytest.approx(0.05, abs=0.005)
    assert float(heard.max()) == pytest.approx(theta)


def test_wrong_probability_and_bits_are_named() -> None:
    with pytest.raises(UserError, match="lost"):
        unreliable(unsettled(), source(0), lost=1.5)
    with pytest.raises(UserError, match="bits"):
        quantised_weights(network(), 1)


def test_jitter_moves_every_channel_of_every_neuron() -> None:
    """Relative deviations over many channels; the unjittered potential stays."""
    net = unsettled()
    spoiled = jittered(net, 0.1, source(0), images())
    before = {n: m for n, m in net.named_modules() if isinstance(m, Neuron)}
    after = {n: m for n, m in spoiled.named_modules() if isinstance(m, Neuron)}
    ratios = torch.cat([(after[n].theta / before[n].theta).flatten() for n in before])
    assert len(ratios) == sum(m.theta.numel() for m in after.values()) >= 8
    assert 0.03 < float((ratios - 1).std()) < 0.3
    for name, neuron in before.items():
        assert torch.allclose(after[name].initial, neuron.initial.expand_as(after[name].initial))
    wild = jittered(net, 100.0, source(0), images())
    assert all(float(m.theta.min()) > 0 for m in wild.modules() if isinstance(m, Neuron))


@pytest.mark.parametrize("bits", [8, 4, 3, 2])
def test_quantised_weights_row_by_row(bits: int) -> None:
    net = network()
    coarse = quantised_weights(net, bits)
    for (name, module), other in zip(net.named_modules(), coarse.modules(), strict=True):
        if not isinstance(module, (nn.Conv2d, nn.Linear)):
            continue
        for row, found in zip(module.weight.flatten(1), other.weight.flatten(1), strict=True):
            unit = max(abs(w) for w in row.tolist()) / (2 ** (bits - 1) - 1)
            expected = [round(w / unit) * unit for w in row.tolist()]
            assert found.tolist() == pytest.approx(expected, abs=1e-6), name
            assert len({round(w / unit) for w in found.tolist()}) <= 2**bits - 1
        assert module.bias is None or torch.equal(module.bias, other.bias)


def test_weight_noise_is_relative_to_each_tensor() -> None:
    net = nn.Sequential(nn.Linear(60, 60), nn.Linear(60, 60))
    with torch.no_grad():
        net[1].weight.mul_(10)
    spoiled = noisy_weights(net, 0.1, source(0))
    for before, after in zip(net, spoiled, strict=True):
        change = (after.weight - before.weight).detach()
        assert float(change.std() / before.weight.detach().std()) == pytest.approx(0.1, rel=0.05)
        assert torch.equal(before.bias, after.bias)


def test_noise_inside_runs_compiled_or_not() -> None:
    """The same copy by `bptt` and by `rate`: the noise is drawn anew, the spread is the same."""
    net = unsettled()
    found: dict[Callable[..., object], float] = {}
    for execute in (bptt, rate):
        spoiled = [unreliable(net, source(seed), lost=0.3) for seed in range(8)]
        found[execute] = float(torch.stack([logits(each, execute) for each in spoiled]).mean())
    assert found[bptt] == pytest.approx(found[rate], abs=0.1)


# ---- summaries ----------------------------------------------------------------------------------


def random_right(clean: float, noisy: float, seed: int, count: int = 300) -> Right:
    """Three levels with three draws, of which the later two have a third of the images."""
    generator = source("right", seed)

    def drawn(share: float, n: int) -> Tensor:
        return torch.rand(n, generator=generator) < share

    levels = [[drawn(noisy, count), drawn(noisy, count // 3), drawn(noisy, count // 3)]] * 3
    return Right.of(drawn(clean, count), levels)


def test_mean_over_draws_image_by_image() -> None:
    draws = [torch.tensor([1, 0, 1, 0]), torch.tensor([1, 1]), torch.tensor([0, 1])]
    found = mean_right([each.bool() for each in draws])
    assert found.tolist() == pytest.approx([2 / 3, 2 / 3, 1, 0])


def test_summary_by_hand() -> None:
    clean = torch.tensor([True, True, True, False])
    half, none = torch.tensor([True, True, False, False]), torch.zeros(4).bool()
    found = summary(Right.of(clean, [[half], [none, torch.ones(2).bool()]]))
    assert found["accuracy"] == [0.75, 0.5, 0.25]
    assert found["area"] == pytest.approx(0.5)
    assert found["drop"] == pytest.approx(1 - 0.375 / 0.75)
    assert found["deviation"] == [None, None, pytest.approx(math.sqrt(0.5))]
    assert summary(Right.of(none, [[half]]))["drop"] is None


def test_kinds_together_count_the_same() -> None:
    one, two = random_right(0.9, 0.8, 0), random_right(0.9, 0.2, 1)
    both = over_kinds([one, two])
    assert torch.equal(both.right[0], one.right[0])
    expected = (one.right[1:].mean(0) + two.right[1:].mean(0)) / 2
    assert torch.allclose(both.right[1:].mean(0), expected)


def test_network_beside_itself_shows_nothing() -> None:
    found = random_right(0.8, 0.5, 3)
    beside = against(found, found)
    for part in ("clean", "noisy", "kept"):
        assert beside[part]["mean"] == 0 and beside[part]["low"] < 0 < beside[part]["high"]
    assert beside["drop"] == {"mean": 0, "low": 0, "high": 0}


def test_kept_by_a_loop_over_images() -> None:
    mine, other = random_right(0.9, 0.7, 1), random_right(0.8, 0.4, 2)
    differences = [
        float(a[1:].mean() - b[1:].mean())
        for a, b in zip(mine.right.T, other.right.T, strict=True)
        if a[0] == 1 and b[0] == 1
    ]
    found = against(mine, other)
    n = found["images_both_right"]
    mean = sum(differences) / n
    deviation = math.sqrt((sum((d - mean) ** 2 for d in differences) + 1) / (n - 1))
    assert n == len(differences) < found["images"] == 300
    assert found["kept"]["mean"] == pytest.approx(mean)
    half = 1.97 * deviation / math.sqrt(n)  # t of some 200 degrees of freedom
    assert found["kept"]["high"] - mean == pytest.approx(half, rel=0.01)
    assert found["kept"]["low"] > 0


def test_kept_ignores_what_clean_accuracy_explains() -> None:
    """A network that is right more often when clean, and loses the same share of it under noise."""
    images_, generator = 4000, source("kept")
    survives = torch.rand(images_, generator=generator) < 0.6
    clean = [torch.rand(images_, generator=generator) < share for share in (0.95, 0.7)]
    better, worse = (Right.of(each, [[each & survives]]) for each in clean)
    found = against(better, worse)
    assert found["noisy"]["low"] > 0.1
    assert found["kept"]["low"] < found["kept"]["mean"] == 0 < found["kept"]["high"] < 0.002
    assert found["drop"]["low"] < 0 < found["drop"]["high"]


def test_interval_of_the_drop_covers_its_deviation() -> None:
    """The bootstrap's width is that of the delta method for a difference of two ratios."""
    mine, other = random_right(0.9, 0.7, 5), random_right(0.8, 0.6, 6)
    found = against(mine, other)["drop"]

    def influence(right: Right) -> Tensor:
        c, b = right.right[0], right.right[1:].mean(0)
        return -(b - b.mean()) / c.mean() + b.mean() * (c - c.mean()) / c.mean() ** 2

    spread = float((influence(mine) - influence(other)).std()) / math.sqrt(300)
    assert found["high"] - found["low"] == pytest.approx(2 * 1.96 * spread, rel=0.08)
    drops = [summary(each)["drop"] for each in (mine, other)]
    assert found["mean"] == pytest.approx(drops[0] - drops[1])


def test_too_few_images_have_no_interval() -> None:
    nothing = {"mean": None, "low": None, "high": None}
    assert paired(torch.ones(1), torch.zeros(1)) == nothing
    never = Right.of(torch.zeros(5).bool(), [[torch.zeros(5).bool()]])
    assert against(never, never)["drop"] == nothing
