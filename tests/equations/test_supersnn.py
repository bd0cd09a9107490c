"""Pairwise relations (SuperSNN): acceptance test 9 and the loss by loops."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from spikelet.terms.features import Relation, gram, relation
from spikelet.terms.term import Step
from spikelet.trace import Tap, Trace


def features(width: int, seed: int, batch: int = 5, size: int = 4) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(batch, width, size, size, generator=generator)


def rotation(width: int) -> Tensor:
    generator = torch.Generator().manual_seed(9)
    q, _ = torch.linalg.qr(torch.randn(width, width, generator=generator, dtype=torch.float64))
    return q.float()


def cosine(a: list[float], b: list[float]) -> float:
    dot = sum(x * y for x, y in zip(a, b, strict=True))
    norms = [math.sqrt(sum(x * x for x in v) + 1e-8) for v in (a, b)]
    return dot / (norms[0] * norms[1])


def by_loops(student: Tensor, teacher: Tensor, pool: int) -> float:
    """(1 / B^2) sum_ij (cos_T(i, j) - cos_S(i, j))^2 of means over pool x pool windows."""
    rows = []
    for f in (student, teacher):
        batch, width, size, _ = f.shape
        side = size // pool
        rows.append(
            [
                [
                    float(f[b, c, i * side : (i + 1) * side, j * side : (j + 1) * side].mean())
                    for c in range(width)
                    for i in range(pool)
                    for j in range(pool)
                ]
                for b in range(batch)
            ]
        )
    ours, theirs = rows
    total = 0.0
    for i in range(len(ours)):
        for j in range(len(ours)):
            total += (cosine(theirs[i], theirs[j]) - cosine(ours[i], ours[j])) ** 2
    return total / len(ours) ** 2


@pytest.mark.parametrize("pool", [1, 2, 4])
def test_loss_by_loops(pool: int) -> None:
    """Also with different widths."""
    student, teacher = features(3, 0), features(6, 1)
    expected = by_loops(student, teacher, pool)
    assert expected > 1e-5
    assert float(relation(student, teacher, pool)) == pytest.approx(expected, rel=1e-4)


def test_invariances() -> None:
    student, teacher, value = features(4, 0), features(6, 1), None
    value = float(relation(student, teacher))
    scale = torch.tensor([0.1, 1.0, 2.0, 7.0, 30.0])[:, None, None, None]
    turned = torch.einsum("dc,bchw->bdhw", rotation(4), student)
    for changed in (scale * student, turned, scale * turned):
        assert float(relation(changed, teacher)) == pytest.approx(value, rel=1e-4)
    turned = torch.einsum("dc,bchw->bdhw", rotation(6), teacher)
    for changed in (scale * teacher, turned, scale * turned):
        assert float(relation(student, changed)) == pytest.approx(value, rel=1e-4)


def test_zero_when_equal_up_to_scale_and_rotation() -> None:
    f = features(4, 0)
    scale = torch.tensor([0.5, 1.0, 2.0, 7.0, 3.0])[:, None, None, None]
    wider = torch.cat([scale * torch.einsum("dc,bchw->bdhw", rotation(4), f), f * 0], 1)
    assert float(relation(f, f)) == 0
    assert float(relation(wider, f)) < 1e-11


def test_a_silent_image_is_like_no_other() -> None:
    """Its row is zero, finite, and so is the gradient."""
    f = features(4, 0)
    f[2] = 0
    f.requires_grad_()
    g = gram(f, 1)
    assert torch.equal(g[2], torch.zeros(5))
    assert float(g[0, 0].detach()) == pytest.approx(1, abs=1e-5)
    relation(f, features(6, 1)).backward()
    assert f.grad is not None
    assert bool(torch.isfinite(f.grad).all())


@pytest.mark.parametrize("shape", [(5, 4), (5, 4, 6)])
def test_vectors_and_lines(shape: tuple[int, ...]) -> None:
    a, b = torch.rand(shape), torch.rand(shape)
    f, g = (torch.nn.functional.normalize(x.flatten(1)) for x in (a, b))
    expected = (g @ g.T - f @ f.T).square().sum() / 25
    assert float(relation(a, b)) == pytest.approx(float(expected), rel=1e-3)


def test_term_sums_over_places() -> None:
    term = Relation(on=["a=b", "c"])
    reads = term.taps([("x", "y")])
    assert reads.student == {"a": ("mean",), "c": ("mean",)}
    assert reads.teacher == {"b": ("mean",), "c": ("mean",)}
    ours = {"a": Tap(features(4, 0)), "c": Tap(features(3, 1))}
    theirs = {"b": Tap(features(6, 2)), "c": Tap(features(3, 3))}
    logits = torch.zeros(1, 5, 2)
    step = Step(Trace(logits, ours), Trace(logits, theirs), torch.zeros(5, dtype=torch.int64))
    own = term.init(type("Binding", (), {"pairs": (("x", "y"),)})())
    expected = relation(ours["a"].mean, theirs["b"].mean)
    expected = expected + relation(ours["c"].mean, theirs["c"].mean)
    assert float(term(own, step)) == pytest.approx(float(expected))
