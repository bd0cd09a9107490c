"""Alignment through an affine projector (Hu, Li, Deng 2025): fit and loss by normal equations."""

from __future__ import annotations

import itertools

import pytest
import torch
from torch import Tensor

from small import Stages, gradients, images, network, scattered, student
from spikelet.convert import convert
from spikelet.distill import Distiller
from spikelet.encode import Direct
from spikelet.errors import UserError
from spikelet.execute import ann, bptt, rate
from spikelet.graph import capture
from spikelet.neuron import IF
from spikelet.terms import Affine
from spikelet.terms.affine import aligned, moments
from spikelet.terms.mapping import Pointwise, fitted, normalised, ridge
from spikelet.trace import Trace

LABELS = torch.tensor([0, 1, 2, 0])


def pair(batch: int = 6, source: int = 3, target: int = 4, size: int = 3) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(2)
    f = torch.randn(batch, source, size, size, generator=generator, dtype=torch.float64)
    mix = torch.randn(target, source, generator=generator, dtype=torch.float64)
    noise = torch.randn(batch, target, size, size, generator=generator, dtype=torch.float64)
    return f, torch.einsum("dc,bchw->bdhw", mix, f) + 0.3 * noise + 0.5


def ridge_by_loops(f: Tensor, g: Tensor) -> tuple[Tensor, Tensor]:
    """Normal equations with an unpenalised constant, one position at a time."""
    width, wider = f.shape[1], g.shape[1]
    places = list(itertools.product(range(len(f)), range(f.shape[2]), range(f.shape[3])))
    mean = sum(f[b, :, i, j] for b, i, j in places) / len(places)
    variance = sum((f[b, :, i, j] - mean).square().sum() for b, i, j in places) / len(places)
    left = torch.zeros(width + 1, width + 1, dtype=f.dtype)
    right = torch.zeros(width + 1, wider, dtype=f.dtype)
    for b, i, j in places:
        row = torch.cat([f[b, :, i, j], torch.ones(1, dtype=f.dtype)])
        left += torch.outer(row, row) / len(places)
        right += torch.outer(row, g[b, :, i, j]) / len(places)
    for c in range(width):
        left[c, c] += 1e-3 * variance / width
    solution = torch.linalg.solve(left, right)
    return solution[:-1].T, solution[-1]


def test_ridge_fit() -> None:
    f, g = pair()
    for ours, theirs in zip(ridge(f, g), ridge_by_loops(f, g), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("silent", ["source", "target", "one channel"])
def test_ridge_fit_of_silent_features(silent: str) -> None:
    f, g = pair()
    if silent == "source":
        f = torch.zeros_like(f)
    elif silent == "target":
        g = torch.zeros_like(g)
    else:
        f[:, 1] = 0
    weight, bias = ridge(f, g)
    assert bool(torch.isfinite(weight).all() and torch.isfinite(bias).all())
    error = Pointwise(weight, bias)(f) - g
    assert float(error.square().mean().detach()) <= float(g.var()) + 1e-9


def test_projection_is_the_same_map_at_every_position() -> None:
    f, g = pair()
    weight, bias = ridge_by_loops(f, g)
    projected = Pointwise(weight, bias)(f)
    for b in range(2):
        for i in range(3):
            for j in range(3):
                expected = weight @ f[b, :, i, j] + bias
                torch.testing.assert_close(projected[b, :, i, j], expected)


@pytest.mark.parametrize("rank", [1, 2, 3])
def test_rank(rank: int) -> None:
    """The best approximation of that rank, as two factors."""
    f, g = pair()
    weight, bias = ridge(f, g)
    module = Pointwise(weight, bias, rank=rank)
    product = (module.factors[1] @ module.factors[0]).detach()
    assert int(torch.linalg.matrix_rank(product)) == rank
    tail = torch.linalg.svdvals(weight)[rank:].square().sum()
    torch.testing.assert_close((product - weight).square().sum(), tail, rtol=1e-6, atol=1e-12)


def test_loss_by_loops() -> None:
    f, g = pair(target=3)
    error = energy = 0.0
    for a, b in zip(f.flatten().tolist(), g.flatten().tolist(), strict=True):
        error += (a - b) ** 2
        energy += b**2
    assert float(aligned(f, g)) == pytest.approx(error / energy, rel=1e-5)
    assert float(aligned(3 * f, 3 * g)) == pytest.approx(error / energy, rel=1e-5)
    assert float(aligned(g, g)) == 0
    assert float(aligned(f * 0, g)) == pytest.approx(1)


def test_moments_by_loops() -> None:
    """Mean and deviation of each channel; one that is quiet gets a tenth of the common size."""
    _, g = pair()
    g[:, 2] = 0.7
    mean, deviation = moments(g)
    squares = []
    for c in range(g.shape[1]):
        values = [float(v) for v in g[:, c].flatten()]
        middle = sum(values) / len(values)
        squares.append(sum((v - middle) ** 2 for v in values) / len(values))
        assert float(mean[c]) == pytest.approx(middle, rel=1e-12)
    common = (sum(squares) / len(squares)) ** 0.5
    for c, square in enumerate(squares):
        assert float(deviation[c]) == pytest.approx(max(square**0.5, 0.1 * common), rel=1e-12)
    assert float(deviation[2]) == pytest.approx(0.1 * common)


@pytest.mark.parametrize("kind", ["auto", "affine", "conv", "conv-norm-relu", "identity"])
@pytest.mark.parametrize("ndim", [2, 3, 4])
def test_every_mapping_keeps_positions(kind: str, ndim: int) -> None:
    f, g = pair(target=3)
    cut = (slice(None), slice(None), *[0] * (4 - ndim))
    f, g = f[cut], g[cut]
    module = fitted(kind, f, g).double()
    assert module(f).shape == g.shape
    if kind != "identity":
        found = gradients(module, module(f).square().sum())
        assert all(bool(torch.isfinite(value).all()) for value in found.values())


@pytest.mark.parametrize("ndim", [2, 3, 4])
@pytest.mark.parametrize("training", [True, False])
def test_convolution_with_norm_starts_at_the_fit(ndim: int, training: bool) -> None:
    """On the examples it computes what the fit does, with the batch's statistics or its own."""
    f, g = pair()
    cut = (slice(None), slice(None), *[0] * (4 - ndim))
    f, g = f[cut], g[cut]
    module = normalised(f, g).train(training)
    torch.testing.assert_close(module(f), Pointwise(*ridge(f, g))(f), rtol=1e-4, atol=1e-4)


def test_relu_follows_where_the_target_is_never_negative() -> None:
    f, g = pair()
    assert float(fitted("conv", f, g.relu())(f).detach().min()) >= 0
    assert float(fitted("conv", f, g)(f).detach().min()) < 0


@pytest.mark.parametrize("normalise", ["energy", "channel", "none"])
@pytest.mark.parametrize("feature", ["spikes", "potential"])
@pytest.mark.parametrize("on", ["all", ("layer1", "layer3=layer3")])
def test_own_copy_has_almost_no_loss(feature: str, on: object, normalise: str) -> None:
    """The teacher distilled into its own copy: what is left is the ridge's shrinkage."""
    x = images("stages", 16)
    whole = Distiller(
        capture(network("stages")), network("stages"), execute=ann, encode=Direct(1), example=x,
        terms={"affine": Affine(on=on, feature=feature, normalise=normalise)},
    ).double().eval()  # fmt: skip
    _, parts = whole(x, torch.zeros(16, dtype=torch.int64))
    assert float(parts["affine"]) < 2e-3


def unit_by_hand(target: Tensor, example: Tensor, normalise: str) -> tuple[Tensor, float]:
    """The target that an option compares with, and what it divides the mean square by."""
    if normalise != "channel":
        energy = float(target.square().sum() / target.numel())
        return target, energy if normalise == "energy" else 1.0
    variances = [example[:, c].var(unbiased=False) for c in range(target.shape[1])]
    floor = 0.1 * (sum(variances) / len(variances)) ** 0.5
    channels = []
    for c, variance in enumerate(variances):
        spread = max(float(variance) ** 0.5, float(floor))
        channels.append((target[:, c] - example[:, c].mean()) / spread)
    return torch.stack(channels, 1), 1.0


@pytest.mark.parametrize("normalise", ["energy", "channel", "none"])
@pytest.mark.parametrize(("execute", "spiking"), [(rate, False), (bptt, True)])
@pytest.mark.parametrize("feature", ["spikes", "potential"])
def test_loss_of_a_student_by_hand(
    feature: str, execute: object, spiking: bool, normalise: str
) -> None:
    """At two named places, of an ANN teacher and of a spiking one."""
    example, x = images("stages", 16), images("stages")
    teacher = student("stages", seed=1, calibrated=True) if spiking else network("stages")
    whole = Distiller(
        student("stages", calibrated=True), teacher, execute=execute, encode=Direct(3),
        terms={"affine": Affine(on=["layer1", "layer3"], feature=feature, normalise=normalise)},
        example=example,
    ).double().eval()  # fmt: skip
    loss, parts = whole(x, LABELS)
    fields = dict.fromkeys(("layer1", "layer3"), ("mean", "potential"))
    teach = rate if spiking else ann

    def feature_of(trace: Trace, place: str) -> Tensor:
        tap = trace.taps[place]
        assert tap.potential is not None
        return tap.mean if feature == "spikes" else sum(tap.potential) / len(tap.potential)

    ours = execute(whole.student, Direct(3)(x), fields)
    theirs = teach(whole.teacher, Direct(3)(x), fields)
    seen = teach(whole.teacher, Direct(3)(example), fields)
    expected = 0.0
    for projection, place in zip(whole.own["affine"], fields, strict=True):
        (weight,), bias = projection.projector.factors, projection.projector.bias
        p = torch.einsum("dc,bchw->bdhw", weight, feature_of(ours, place)) + bias[:, None, None]
        target = feature_of(theirs, place)
        target, energy = unit_by_hand(target, feature_of(seen, place), normalise)
        expected += float(((p - target).square().sum() / p.numel()).detach()) / energy
    assert float(parts["affine"]) == pytest.approx(expected, rel=1e-5)
    found = gradients(whole, loss)
    assert float(found["student.layer1.0.weight"].abs().max()) > 0
    assert float(found["student.linear.weight"].abs().max()) == 0
    assert float(found["own.affine.0.projector.bias"].abs().max()) > 0


def test_fit_meets_the_standardised_target() -> None:
    """The projector starts at the fit of the target it is compared with, for other widths too."""
    x = images("stages", 16)
    torch.manual_seed(1)
    narrow = convert(scattered(Stages(width=3).double()), IF(), calibrate=x)
    whole = Distiller(
        narrow.double(), network("stages"), encode=Direct(4), example=x,
        terms={"affine": Affine(on="all", normalise="channel")},
    ).double().eval()  # fmt: skip
    _, parts = whole(x, torch.zeros(16, dtype=torch.int64))
    assert 0.05 < float(parts["affine"]) < len(whole.own["affine"]), "better than the mean: 1 each"
    assert {"own.affine.0.mean", "own.affine.0.deviation"} <= set(whole.state_dict())


def test_rank_below_one_is_refused() -> None:
    with pytest.raises(UserError, match=r"affine.rank = 0.*expected 1 or more"):
        Distiller(
            student("stages"), network("stages"), terms={"affine": Affine(rank=0)},
            example=images("stages"),
        )  # fmt: skip
