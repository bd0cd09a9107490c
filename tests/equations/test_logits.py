"""Logit distillation (Hinton et al. 2015) and cross entropy, by loops."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn

from spikelet.errors import UserError
from spikelet.terms import CrossEntropy, Logits
from spikelet.terms.logits import kl
from spikelet.terms.steps import StepEnsemble, StepLogits
from spikelet.terms.term import Step
from spikelet.trace import Trace

LABELS = torch.tensor([2, 0, 1])


def some(steps: int, seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return 3 * torch.randn(steps, 3, 4, generator=generator)


def softmax(z: list[float], tau: float = 1.0) -> list[float]:
    exponentials = [math.exp(x / tau) for x in z]
    return [e / sum(exponentials) for e in exponentials]


def mean_over_time(z: Tensor) -> list[list[float]]:
    steps, batch, classes = z.shape
    return [
        [sum(float(z[t, b, k]) for t in range(steps)) / steps for k in range(classes)]
        for b in range(batch)
    ]


def divergence(teacher: Tensor, student: Tensor, tau: float, other: float) -> float:
    """tau_T tau_S KL, summed over classes, mean over the batch, of mean logits."""
    total = 0.0
    for a, b in zip(mean_over_time(teacher), mean_over_time(student), strict=True):
        p, q = softmax(a, tau), softmax(b, other)
        total += sum(x * math.log(x / y) for x, y in zip(p, q, strict=True))
    return tau * other * total / 3


def step(student: Tensor, teacher: Tensor | None = None) -> Step:
    return Step(Trace(student), None if teacher is None else Trace(teacher), LABELS)


@pytest.mark.parametrize(("tau", "other"), [(1.0, None), (3.0, None), (4.0, 2.0), (0.5, 3.0)])
def test_divergence(tau: float, other: float | None) -> None:
    student, teacher = some(3, 0), some(1, 1)
    value = Logits(tau=tau, student_tau=other)(nn.Identity(), step(student, teacher))
    expected = divergence(teacher, student, tau, other or tau)
    assert float(value) == pytest.approx(expected, rel=1e-5)
    assert expected > 0.01


def test_divergence_vanishes_for_equal_logits() -> None:
    z = some(1, 0)
    assert abs(float(Logits(tau=3.0)(nn.Identity(), step(z.expand(3, -1, -1), z)))) < 1e-6


@pytest.mark.parametrize(("tau", "other"), [(1e3, 1e3), (1e3, 2e3)])
def test_the_factor_keeps_the_scale_of_the_gradient(tau: float, other: float) -> None:
    """At a high temperature of the student, the gradient tends to (tau_T tau_S / tau_S) (q - p)."""
    student, teacher = some(1, 0)[0].double().requires_grad_(), some(1, 1)[0].double()
    (grad,) = torch.autograd.grad(kl(teacher, student, tau, other), student)
    centred = [x - x.mean(1, keepdim=True) for x in (student.detach(), teacher)]
    expected = tau * (centred[0] / other - centred[1] / tau) / 4 / 3
    torch.testing.assert_close(grad.double(), expected, rtol=2e-2, atol=2e-3)


@pytest.mark.parametrize(("tau", "other"), [(4.0, 4.0), (4.0, 2.0), (2.0, 6.0)])
def test_two_temperatures_by_hand(tau: float, other: float) -> None:
    """Lee et al., arXiv 2106.07172: the gradient is tau_T (q - p) / B, p and q each at its own."""
    student, teacher = some(1, 0).double().requires_grad_(), some(1, 1).double()
    term = Logits(tau=tau, student_tau=other)
    (found,) = torch.autograd.grad(term(nn.Identity(), step(student, teacher)), student)
    for b in range(3):
        p, q = softmax(teacher[0, b].tolist(), tau), softmax(student[0, b].tolist(), other)
        for k in range(4):
            assert float(found[0, b, k]) == pytest.approx(tau * (q[k] - p[k]) / 3, abs=1e-12)


@pytest.mark.parametrize("tau", [0.0, -1.0, math.nan])
def test_temperatures_are_above_zero(tau: float) -> None:
    for make in (Logits, StepLogits, StepEnsemble):
        with pytest.raises(UserError, match=r"tau = .*above 0"):
            make(tau=tau)
    with pytest.raises(UserError, match=r"student_tau = .*above 0"):
        Logits(student_tau=tau)


def test_kdsnn_response_is_a_composition() -> None:
    """L = alpha tau^2 CE(p_T, q_S) + (1 - alpha) CE(z_S, y), with alpha = 0.9 and tau = 4.

    Cross entropy of soft targets is the KL divergence plus the teacher's entropy, a constant of
    the student: the gradients agree, the values differ by alpha tau^2 H(p_T).
    """
    alpha, tau = 0.9, 4.0
    student, teacher = some(3, 0).double().requires_grad_(), some(1, 1).double()
    loss, entropy = torch.zeros((), dtype=torch.float64), 0.0
    for b in range(3):
        z = (student[0, b] + student[1, b] + student[2, b]) / 3
        p = softmax(teacher[0, b].tolist(), tau)
        hard = (z.exp() / z.exp().sum()).log()
        soft = ((z / tau).exp() / (z / tau).exp().sum()).log()
        for k in range(4):
            loss = loss - alpha * tau**2 * p[k] * soft[k] / 3
            entropy -= p[k] * math.log(p[k]) / 3
        loss = loss - (1 - alpha) * hard[LABELS[b]] / 3
    terms = {"ce": CrossEntropy(weight=1 - alpha), "logits": Logits(weight=alpha, tau=tau)}
    now = step(student, teacher)
    ours = sum(term.weight * term(nn.Identity(), now) for term in terms.values())
    (found,), (expected,) = (torch.autograd.grad(x, student) for x in (ours, loss))
    torch.testing.assert_close(found, expected)
    assert float((loss - ours).detach()) == pytest.approx(alpha * tau**2 * entropy, rel=1e-9)


def cross_entropy(z: list[list[float]], smoothing: float) -> float:
    total = 0.0
    for row, label in zip(z, LABELS.tolist(), strict=True):
        logs = [math.log(p) for p in softmax(row)]
        total -= (1 - smoothing) * logs[label] + smoothing * sum(logs) / len(logs)
    return total / len(z)


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_cross_entropy(smoothing: float) -> None:
    z = some(3, 0)
    of_mean = CrossEntropy(label_smoothing=smoothing)(nn.Identity(), step(z))
    assert float(of_mean) == pytest.approx(cross_entropy(mean_over_time(z), smoothing), rel=1e-5)
    term = CrossEntropy(label_smoothing=smoothing, per_step=True)
    each = [cross_entropy(z[t].tolist(), smoothing) for t in range(3)]
    assert float(term(nn.Identity(), step(z))) == pytest.approx(sum(each) / 3, rel=1e-5)


@pytest.mark.parametrize("seed", range(5))
def test_cross_entropy_of_steps_is_at_least_that_of_the_mean(seed: int) -> None:
    """Acceptance test 11 (Jensen)."""
    z = some(4, seed)
    of_mean = float(CrossEntropy()(nn.Identity(), step(z)))
    per_step = float(CrossEntropy(per_step=True)(nn.Identity(), step(z)))
    assert per_step >= of_mean - 1e-6
    still = some(1, seed).expand(4, -1, -1)
    both = [float(CrossEntropy(per_step=p)(nn.Identity(), step(still))) for p in (False, True)]
    assert both[0] == pytest.approx(both[1], rel=1e-5)


def test_which_gradient_each_needs() -> None:
    assert CrossEntropy().time == "mean"
    assert CrossEntropy(per_step=True).time == "steps"
    assert Logits().time == "mean"
