"""Alignment through an affine projector (Hu, Li, Deng 2025): fit and loss by normal equations."""

from __future__ import annotations

import itertools

import pytest
import torch
from torch import Tensor

from small import gradients, images, network, student
from spikelet.distill import Distiller
from spikelet.encode import Direct
from spikelet.execute import ann, bptt, rate
from spikelet.graph import capture
from spikelet.terms import Affine
from spikelet.terms.features import aligned
from spikelet.terms.mapping import Pointwise, fitted, ridge

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


def test_relu_follows_where_the_target_is_never_negative() -> None:
    f, g = pair()
    assert float(fitted("conv", f, g.relu())(f).detach().min()) >= 0
    assert float(fitted("conv", f, g)(f).detach().min()) < 0


@pytest.mark.parametrize("feature", ["spikes", "potential"])
@pytest.mark.parametrize("on", ["last", "all", "inner", ("layer1", "layer3=layer3")])
def test_own_copy_has_almost_no_loss(feature: str, on: object) -> None:
    """The teacher distilled into its own copy: what is left is the ridge's shrinkage."""
    if feature == "potential" and on in ("last", "all", "inner"):
        on = ["layer1", "layer2"]
    x = images("stages", 16)
    whole = Distiller(
        capture(network("stages")), network("stages"), execute=ann, encode=Direct(1), example=x,
        terms={"affine": Affine(on=on, feature=feature)},
    ).double().eval()  # fmt: skip
    _, parts = whole(x, torch.zeros(16, dtype=torch.int64))
    assert float(parts["affine"]) < 2e-3


@pytest.mark.parametrize("execute", [rate, bptt])
@pytest.mark.parametrize("feature", ["spikes", "potential"])
def test_loss_of_a_student_by_hand(feature: str, execute: object) -> None:
    whole = Distiller(
        student("stages", calibrated=True), network("stages"), execute=execute, encode=Direct(3),
        terms={"affine": Affine(on=["layer1", "layer3"], feature=feature)},
        example=images("stages", 16),
    ).double().eval()  # fmt: skip
    x = images("stages")
    loss, parts = whole(x, LABELS)
    fields = dict.fromkeys(("layer1", "layer3"), ("mean", "potential"))
    ours = execute(whole.student, Direct(3)(x), fields)
    theirs = ann(whole.teacher, Direct(3)(x), fields)
    expected = 0.0
    for projector, place in zip(whole.own["affine"], fields, strict=True):
        f, g = ours.taps[place].mean, theirs.taps[place].mean
        if feature == "potential":
            f = sum(ours.taps[place].potential) / 3
            g = theirs.taps[place].potential[0]
        (weight,), bias = projector.factors, projector.bias
        p = torch.einsum("dc,bchw->bdhw", weight, f) + bias[:, None, None]
        expected += float(((p - g).square().sum() / g.square().sum()).detach())
    assert float(parts["affine"]) == pytest.approx(expected, rel=1e-5)
    found = gradients(whole, loss)
    assert float(found["student.layer1.0.weight"].abs().max()) > 0
    assert float(found["student.linear.weight"].abs().max()) == 0
    assert float(found["own.affine.0.bias"].abs().max()) > 0
