"""Encoders: every one passes one table; what each spike stands for."""

from __future__ import annotations

import copy
import dataclasses
import functools
import math
import sys
from types import ModuleType

import pytest
import torch
from torch import Tensor

from small import student
from spikelet.distill import Distiller
from spikelet.encode import Direct, Latency, Mixed, Poisson, repeat
from spikelet.errors import UserError
from spikelet.execute import bptt, rate
from spikelet.recipe import ENCODERS, build
from spikelet.terms import CrossEntropy, StepEnsemble

MEAN, STD = (0.4, 0.5), (0.25, 0.3)
TABLE = [
    ("direct", {}),
    ("poisson", {}),
    ("poisson", {"normalised": True, "mean": MEAN, "std": STD}),
    ("latency", {}),
    ("latency", {"mapping": "log", "mean": [0.5], "std": [0.25]}),
    ("mixed", {"least": 2}),
]


def pictures(batch: int = 6, channels: int = 2) -> Tensor:
    """Intensities between 0 and 1, with black and white pixels among them."""
    values = torch.rand(batch, channels, 8, 8)
    values = values.clamp_min(0.01)
    values[:, :, 0], values[:, :, 1] = 0, 1
    return values


def normalised(values: Tensor) -> Tensor:
    mean, std = (torch.tensor(x).reshape(1, -1, 1, 1) for x in (MEAN, STD))
    return (values - mean) / std


def test_the_table_covers_every_encoder() -> None:
    assert {name for name, _ in TABLE} == set(ENCODERS)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("steps", [1, 4])
@pytest.mark.parametrize(("name", "fields"), TABLE)
def test_every_encoder(name: str, fields: dict, steps: int, dtype: torch.dtype) -> None:
    """Shape, dtype, device, determinism, the images and torch's generator left alone, JSON."""
    encode = build("encode", {"kind": name, **fields}, ENCODERS, steps=steps)
    images = normalised(pictures()).to(dtype)
    before, state = images.clone(), torch.get_rng_state()
    x = encode(images)
    assert (tuple(x.shape), x.dtype) == ((steps, *images.shape), dtype)
    assert bool(x.isfinite().all())
    assert torch.equal(encode(images), x)
    assert torch.equal(copy.deepcopy(encode)(images), x)
    assert torch.equal(images, before)
    assert torch.equal(torch.get_rng_state(), state)
    if name not in ("direct", "mixed") and not fields.get("normalised"):
        assert set(x.unique().tolist()) <= {0.0, 1.0}
    again = {"kind": name, **dataclasses.asdict(encode)}
    assert build("encode", again, ENCODERS) == encode


@pytest.mark.parametrize(("name", "fields"), TABLE)
def test_networks_run_on_what_it_makes(name: str, fields: dict) -> None:
    """Values over time agree between both ways of taking gradients."""
    encode = build("encode", {"kind": name, **fields}, ENCODERS, steps=3)
    x = encode(normalised(pictures()).double())
    net = student().eval()
    torch.testing.assert_close(rate(net, x).logits, bptt(net, x).logits)


def test_direct_is_a_view_of_the_image() -> None:
    images = pictures()
    x = Direct(5)(images)
    assert x.stride(0) == 0
    assert x.data_ptr() == images.data_ptr()
    assert torch.equal(repeat(images, 5), x)


# ---- rate coding -------------------------------------------------------------------------------


@pytest.mark.parametrize("gain", [0.5, 1.0, 3.0])
def test_poisson_counts_have_the_mean_and_variance_of_independent_draws(gain: float) -> None:
    """Over 4,000 steps, within five standard errors; neighbouring steps do not correlate."""
    steps, values = 4000, pictures(2)
    encode = Poisson(steps, gain=gain, mean=MEAN, std=STD)
    x = encode(normalised(values)).double()
    p = (gain * values).clamp(0, 1).double()
    error = (p * (1 - p) / steps).sqrt()
    assert bool(((x.mean(0) - p).abs() <= 5 * error + 1e-6).all())
    together = (x[1:] * x[:-1]).mean(0) - p * p
    assert float(together.abs().max()) < 5 / math.sqrt(steps)


def test_poisson_is_drawn_by_its_generator() -> None:
    images = pictures()

    def drawn(encode: Poisson, seed: int | None = None) -> Tensor:
        generator = None if seed is None else torch.Generator().manual_seed(seed)
        return encode(images, generator=generator)

    encode = Poisson(4)
    assert torch.equal(drawn(encode, 3), drawn(encode, 3))
    assert not torch.equal(drawn(encode, 3), drawn(encode, 4))
    assert torch.equal(drawn(encode), drawn(encode, 0))
    assert torch.equal(drawn(Poisson(4, seed=3)), drawn(encode, 3))
    generator = torch.Generator().manual_seed(0)
    assert not torch.equal(encode(images, generator), encode(images, generator))


def test_black_never_fires_and_white_always() -> None:
    x = Poisson(50, mean=MEAN, std=STD)(normalised(pictures()))
    assert not bool(x[:, :, :, 0].any())
    assert bool((Poisson(50)(pictures())[:, :, :, 1] == 1).all())


def test_normalised_spikes_expect_the_normalised_image() -> None:
    steps, images = 4000, normalised(pictures(2))
    x = Poisson(steps, mean=MEAN, std=STD, normalised=True)(images)
    bound = 5 * 0.5 / min(STD) / math.sqrt(steps)
    assert float((x.mean(0) - images).abs().max()) < bound
    binary = Poisson(steps, mean=MEAN, std=STD)(images)
    torch.testing.assert_close(x, normalised(binary))


# ---- time to first spike -----------------------------------------------------------------------


@pytest.mark.parametrize("steps", [1, 2, 5, 16])
@pytest.mark.parametrize("mapping", ["linear", "log"])
def test_latency_by_hand(mapping: str, steps: int) -> None:
    values = pictures(3).double()
    x = Latency(steps, mapping)(values)
    for p, train in zip(values.flatten().tolist(), x.reshape(steps, -1).T.tolist(), strict=True):
        wanted = [0.0] * steps
        if p > 0:
            time = (steps - 1) * (1 - p)
            if mapping == "log":
                time = steps - 1 - math.log((math.exp(steps - 1) - 1) * p + 1)
            wanted[round(time)] = 1.0
        assert train == wanted


@pytest.mark.parametrize("mapping", ["linear", "log"])
def test_brighter_is_never_later(mapping: str) -> None:
    values = torch.linspace(0, 1, 201, dtype=torch.float64).reshape(1, 1, -1)
    x = Latency(9, mapping)(values)
    counts = x.sum(0).flatten()
    assert counts.tolist() == [0.0] + [1.0] * 200
    times = x.argmax(0).flatten()[1:]
    assert bool((times.diff() <= 0).all())
    assert int(times[-1]) == 0
    if mapping == "linear":
        assert times.unique().tolist() == list(range(9))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_latency_sees_the_intensity_behind_a_normalised_image(dtype: torch.dtype) -> None:
    """Also of the 256 levels of real images; black stays black where rounding leaves a rest."""
    levels = torch.arange(256, dtype=dtype).reshape(1, 1, 16, 16).expand(2, 2, 16, 16) / 255
    seen = Latency(7, gain=0.5, mean=MEAN, std=STD)(normalised(levels))
    wanted = Latency(7, gain=0.5)(levels)  # of 7 steps no level lies between two
    assert not bool(seen[..., 0, 0].any())
    assert torch.equal(seen.sum(0), (levels > 0).to(dtype))
    assert torch.equal(seen, wanted)


def test_log_latency_of_many_steps_does_not_overflow() -> None:
    values = pictures()
    assert torch.equal(Latency(2000, "log")(values).sum(0), (values > 0).float())


@pytest.mark.parametrize("mapping", ["linear", "log"])
def test_latency_of_spikingjelly(mapping: str) -> None:
    jelly: ModuleType = pytest.importorskip(
        "spikingjelly.activation_based.encoding", reason="spikingjelly is not installed"
    )
    values = pictures().clamp_min(0.01).double()
    theirs = jelly.LatencyEncoder(10, mapping)
    wanted = torch.stack([theirs(values) for _ in range(10)])
    assert torch.equal(Latency(10, mapping)(values), wanted)


# ---- mixed steps -------------------------------------------------------------------------------


def test_every_number_of_steps_is_drawn_as_often() -> None:
    made, generator = Mixed(4, least=2), torch.Generator().manual_seed(0)
    drawn = [len(made(pictures(), generator)) for _ in range(600)]
    for steps in (2, 3, 4):
        assert abs(drawn.count(steps) - 200) < 50, steps  # 4 deviations of a binomial
    assert set(drawn) == {2, 3, 4} and len(made(pictures())) == 4


def test_a_training_sees_all_numbers_of_steps_and_an_evaluation_the_largest() -> None:
    seen: list[int] = []

    def execute(net, x, taps=()):
        seen.append(len(x))
        return rate(net, x, taps)

    x = pictures(4).double()
    terms = {"labels": CrossEntropy()}
    trained = Distiller(student(), terms=terms, execute=execute, encode=Mixed(3), example=x)
    assert set(seen) == {3}  # what terms are bound to is no batch
    generator = torch.Generator().manual_seed(1)
    for _ in range(20):
        loss, _ = trained(x, torch.zeros(4, dtype=torch.int64), generator=generator)
        loss.backward()
    assert set(seen[1:]) == {1, 2, 3}
    del seen[:]
    torch.manual_seed(0)
    for _ in range(20):  # a loop of one's own that brings no generator
        trained(x, torch.zeros(4, dtype=torch.int64))
    assert set(seen) == {1, 2, 3}
    del seen[:]
    trained.eval()(x, torch.zeros(4, dtype=torch.int64))
    assert seen == [3]


def test_processes_draw_one_number_of_steps_and_noise_of_their_own(monkeypatch) -> None:
    """What a process draws is the common stream's where all must agree."""
    module = sys.modules["spikelet.distill"]
    monkeypatch.setattr(module, "processes", lambda: 2)
    x, found = pictures(4).double(), {}
    terms = {"labels": CrossEntropy()}
    for encode in (Mixed(16), Poisson(4)):
        made = Distiller(student(), terms=terms, encode=encode, example=x)
        for rank in (0, 1):
            monkeypatch.setattr(module, "rank", lambda rank=rank: rank)
            generator = torch.Generator().manual_seed(3)
            found[type(encode), rank] = [made._encoded(x.abs(), generator) for _ in range(8)]
    same = [len(each) for each in found[Mixed, 0]]
    assert same == [len(each) for each in found[Mixed, 1]] and len(set(same)) > 1
    assert not torch.equal(*(found[Poisson, rank][0] for rank in (0, 1)))


def test_a_term_that_compares_steps_needs_them_in_every_batch() -> None:
    windows = functools.partial(rate, windows=4)
    made = functools.partial(Distiller, student(), terms={"steps": StepEnsemble()}, execute=windows)
    made(encode=Direct(4), example=pictures(4).double())
    with pytest.raises(UserError, match="a divisor of all of 2 to 4"):
        made(encode=Mixed(4, least=2), example=pictures(4).double())
    with pytest.raises(UserError, match="compares single"):
        made(encode=Mixed(4, least=2), example=pictures(4).double(), execute=rate)


# ---- arguments ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("make", "word"),
    [
        (lambda: Direct(0)(pictures()), "steps = 0"),
        (lambda: Poisson(0), "steps = 0"),
        (lambda: Latency(-1), "steps = -1"),
        (lambda: Mixed(4, least=0), "least = 0"),
        (lambda: Mixed(4, least=5)(pictures(), torch.Generator()), "no more than the 4 steps"),
        (lambda: Poisson(4, gain=0.0), "gain = 0"),
        (lambda: Latency(4, gain=-1.0), "gain = -1"),
        (lambda: Latency(4, "linaer"), "linear"),
        (lambda: Poisson(4, mean=(0.1, 0.2, 0.3))(pictures()), "images have 2 channels"),
        (lambda: Latency(4, std=())(pictures()), "std = .*images have 2 channels"),
    ],
)
def test_bad_arguments(make, word: str) -> None:
    with pytest.raises(UserError, match=word):
        make()
