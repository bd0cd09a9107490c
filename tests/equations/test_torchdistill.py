"""Losses against torchdistill's, on the same random features."""

from __future__ import annotations

from types import ModuleType

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from spikelet.terms.logits import kl
from spikelet.terms.relation import relation


@pytest.fixture(scope="module")
def losses() -> ModuleType:
    return pytest.importorskip(
        "torchdistill.losses.mid_level", reason="torchdistill is not installed"
    )


def features(width: int, seed: int, batch: int = 7) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(batch, width, 3, 3, generator=generator, dtype=torch.float64)


STUDENT, TEACHER = features(4, 0), features(6, 1)


def asked(loss: torch.nn.Module, student: Tensor = STUDENT, teacher: Tensor = TEACHER) -> float:
    """What a loss of torchdistill answers, given outputs of one place on either side."""
    return float(loss({"place": {"output": student}}, {"place": {"output": teacher}}))


@pytest.mark.parametrize("factors", [(1.0, 0.0), (0.0, 1.0), (25.0, 50.0)])
def test_relational(losses: ModuleType, factors: tuple[float, float]) -> None:
    """Distances and angles of flattened features, averaged over all entries with the diagonal."""
    theirs = asked(losses.RKDLoss("place", "place", *factors, reduction="mean"))
    ours = factors[0] * relation(STUDENT, TEACHER, 0, "distance")
    ours = ours + factors[1] * relation(STUDENT, TEACHER, 0, "angle")
    assert float(ours) == pytest.approx(theirs, rel=1e-6)


def test_similarity_preserving(losses: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    """With rows of unit Euclidean length, as published.

    torchdistill 1.1.5 passes the axis where `normalize` expects the order of the norm, and so
    divides rows by the sum of their absolute values; here the axis is passed as such.
    """
    monkeypatch.setattr(losses, "normalize", lambda x, dim: F.normalize(x, dim=dim))
    theirs = asked(losses.SPKDLoss("place", "place", reduction="batchmean"))
    ours = relation(STUDENT, TEACHER, form="similarity-preserving")
    assert float(ours) == pytest.approx(theirs, rel=1e-5)


def test_cosine(losses: ModuleType) -> None:
    """Correlation congruence with the bilinear kernel of unit rows: |G_T - G_S|_F / B^2."""
    congruence = losses.CCKDLoss("place", "place", {"type": "bilinear"}, reduction="batchmean")
    student, teacher = (F.normalize(f.flatten(1)) for f in (STUDENT, TEACHER))
    theirs = asked(congruence, student, teacher)
    batch = len(STUDENT)
    ours = relation(STUDENT, TEACHER, 0)
    assert float(ours) == pytest.approx((theirs * batch**2) ** 2 / batch**2, rel=1e-5)


@pytest.mark.parametrize("tau", [1.0, 3.0])
def test_logits(losses: ModuleType, tau: float) -> None:
    """A share of the cross entropy and a share of tau^2 KL, averaged over the batch."""
    student, teacher = STUDENT.flatten(1)[:, :6], TEACHER.flatten(1)[:, :6]
    labels = torch.arange(len(student)) % 6
    loss = losses.KDLoss("place", "output", "place", "output", temperature=tau, alpha=0.3, beta=0.7)
    theirs = loss({"place": {"output": student}}, {"place": {"output": teacher}}, labels)
    ours = 0.3 * F.cross_entropy(student, labels) + 0.7 * kl(teacher, student, tau)
    assert float(ours) == pytest.approx(float(theirs), rel=1e-6)
