"""Temporal decoupling (TWKD, arXiv 2501.15925): every step's losses by loops, and their bounds."""

from __future__ import annotations

import math
from functools import partial

import pytest
import torch
from torch import Tensor, nn

from small import gradients, images, moving, network, student
from spikelet.distill import Distiller
from spikelet.encode import Direct
from spikelet.errors import UserError
from spikelet.execute import ann, bptt, rate
from spikelet.terms.logits import CrossEntropy, Logits
from spikelet.terms.steps import StepEnsemble, StepLogits, reliable
from spikelet.terms.term import Step
from spikelet.trace import Trace

LABELS = torch.tensor([2, 0, 1])
OWN = nn.Identity()


def some(steps: int, seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return 3 * torch.randn(steps, 3, 4, generator=generator, dtype=torch.float64)


def step(ours: Tensor, theirs: Tensor | None = None) -> Step:
    return Step(Trace(ours), None if theirs is None else Trace(theirs), LABELS)


def softmax(z: list[float], tau: float) -> list[float]:
    exponentials = [math.exp(x / tau) for x in z]
    return [e / sum(exponentials) for e in exponentials]


def divergence(target: list[float], z: list[float], tau: float) -> float:
    """tau^2 KL(softmax(target / tau) || softmax(z / tau)) of one image."""
    p, q = softmax(target, tau), softmax(z, tau)
    return tau**2 * sum(x * math.log(x / y) for x, y in zip(p, q, strict=True))


def over_steps(targets: list[list[list[float]]], ours: Tensor, tau: float) -> float:
    """(1 / T B) sum over steps and images; `targets` is "T B K"."""
    steps, batch, _ = ours.shape
    total = 0.0
    for t in range(steps):
        for b in range(batch):
            total += divergence(targets[t][b], ours[t, b].tolist(), tau)
    return total / steps / batch


def mean_of(rows: list[list[float]]) -> list[float]:
    return [sum(column) / len(rows) for column in zip(*rows, strict=True)]


def over_time(z: Tensor, only_correct: bool = False) -> list[list[float]]:
    """Each image's mean logits over its steps, or over those that answer correctly."""
    answer = []
    for b in range(z.shape[1]):
        rows = [z[t, b].tolist() for t in range(len(z))]
        if only_correct:
            rows = [row for row in rows if row.index(max(row)) == int(LABELS[b])]
        answer.append(mean_of(rows) if rows else [0.0] * z.shape[2])
    return answer


# ---- the teacher at every step ----------------------------------------------------------------


@pytest.mark.parametrize("tau", [1.0, 3.0])
@pytest.mark.parametrize("teacher_steps", [1, 4])
def test_every_step_against_the_teachers_mean(tau: float, teacher_steps: int) -> None:
    ours, theirs = some(4, 0), some(teacher_steps, 1)
    expected = over_steps([over_time(theirs)] * 4, ours, tau)
    value = StepLogits(tau=tau)(OWN, step(ours, theirs))
    assert float(value) == pytest.approx(expected, rel=1e-12)
    assert expected > 0.01


def test_every_step_against_the_teachers_step() -> None:
    ours, theirs = some(4, 0), some(4, 1)
    value = StepLogits(teacher="step")(OWN, step(ours, theirs))
    assert float(value) == pytest.approx(over_steps(theirs.tolist(), ours, 3.0), rel=1e-12)
    assert float(value) != pytest.approx(float(StepLogits()(OWN, step(ours, theirs))), rel=1e-2)


@pytest.mark.parametrize("seed", range(5))
def test_steps_bound_the_mean(seed: int) -> None:
    """KL(p || softmax(z)) is convex in z: the mean over steps is at least that of the mean."""
    ours, theirs = some(4, seed), some(1, seed + 9)
    each, of_mean = (term(OWN, step(ours, theirs)) for term in (StepLogits(), Logits()))
    assert float(each) > float(of_mean) > 0
    still = ours[:1].expand(4, -1, -1)
    each, of_mean = (term(OWN, step(still, theirs)) for term in (StepLogits(), Logits()))
    assert float(each) == pytest.approx(float(of_mean), rel=1e-12)


@pytest.mark.parametrize("seed", range(5))
def test_the_gap_to_the_mean_is_the_same_for_every_teacher(seed: int) -> None:
    """mean_t KL(p || q_t) - KL(p || q_mean) has no p in it: it is the loss of the ensemble."""
    ours, gaps = some(4, seed), []
    for other in (some(1, 50), some(1, 60), ours.mean(0, keepdim=True)):
        each = StepLogits(tau=2.0)(OWN, step(ours, other))
        gaps.append(float(each - Logits(tau=2.0)(OWN, step(ours, other))))
    assert gaps[0] == pytest.approx(gaps[1], rel=1e-9)
    ensemble = float(StepEnsemble(tau=2.0)(OWN, step(ours)))
    assert ensemble == pytest.approx(gaps[2], rel=1e-9)
    assert ensemble == pytest.approx(gaps[0], rel=1e-9)


# ---- the ensemble -----------------------------------------------------------------------------


def mixed() -> Tensor:
    """Logits whose images are right at some steps, at none, and at all."""
    z = some(4, 2)
    for b, right in enumerate(((1, 3), (), (0, 1, 2, 3))):
        label = int(LABELS[b])
        for t in range(4):
            z[t, b, label] = z[t, b].max() + 1 if t in right else z[t, b].min() - 1
    return z


@pytest.mark.parametrize("target", ["mean", "correct"])
@pytest.mark.parametrize("tau", [1.0, 3.0])
def test_ensemble(target: str, tau: float) -> None:
    z = mixed()
    expected = over_steps([over_time(z, target == "correct")] * 4, z, tau)
    value = StepEnsemble(tau=tau, target=target)(OWN, step(z))
    assert float(value) == pytest.approx(expected, rel=1e-12)


def test_the_reliable_steps() -> None:
    z = mixed()
    found = reliable(z, LABELS)
    torch.testing.assert_close(found[0], (z[1, 0] + z[3, 0]) / 2)
    assert torch.equal(found[1], torch.zeros(4, dtype=torch.float64))
    torch.testing.assert_close(found[2], z[:, 2].mean(0))


@pytest.mark.parametrize("target", ["mean", "correct"])
def test_the_ensemble_is_not_taught_by_its_steps(target: str) -> None:
    """The gradient is tau (q - p) / (T B) with p held still, by hand."""
    z, tau = mixed().requires_grad_(), 3.0
    (found,) = torch.autograd.grad(StepEnsemble(tau=tau, target=target)(OWN, step(z)), z)
    ensemble = over_time(z.detach(), target == "correct")
    for t in range(4):
        for b in range(3):
            p, q = softmax(ensemble[b], tau), softmax(z[t, b].tolist(), tau)
            for k in range(4):
                expected = tau * (q[k] - p[k]) / 12
                assert float(found[t, b, k]) == pytest.approx(expected, rel=1e-9, abs=1e-12)


def test_one_step_agrees_with_itself() -> None:
    assert abs(float(StepEnsemble()(OWN, step(some(1, 0))))) < 1e-12


def test_which_gradient_each_needs() -> None:
    assert (StepLogits().time, StepEnsemble().time) == ("steps", "steps")
    assert (StepLogits().taught, StepEnsemble().taught) == (True, False)


# ---- in a Distiller ---------------------------------------------------------------------------

TWKD = {
    "ce": CrossEntropy(per_step=True),
    "step-logits": StepLogits(weight=0.2),
    "step-ensemble": StepEnsemble(weight=0.5),
}
THREE = torch.tensor([0, 1, 2, 0])


def distiller(terms, teacher: nn.Module | None = None, steps: int = 3, **fields) -> Distiller:
    fields = {"execute": bptt, "example": images("stages", 16), "encode": Direct(steps)} | fields
    net = student("stages", calibrated=True)
    return Distiller(net, teacher, terms=terms, **fields).double().eval()


@pytest.mark.parametrize("target", ["mean", "correct"])
def test_the_whole_loss(target: str) -> None:
    """L = L_TWCE + 0.2 L_TWKL + 0.5 L_TWSD, values and the student's gradients, step by step."""
    terms = TWKD | {"step-ensemble": StepEnsemble(weight=0.5, target=target)}
    whole = distiller(terms, network("stages"), 4, encode=lambda _: moving("stages", 4))
    still = moving("stages", 4).mean(0)
    loss, parts = whole(still, THREE)
    z = bptt(whole.student, moving("stages", 4)).logits
    answer = network("stages").eval()(still).detach()
    correct = [[bool(z[t, b].argmax() == THREE[b]) for b in range(4)] for t in range(4)]
    expected = torch.zeros((), dtype=torch.float64)
    for b in range(4):
        kept = [z[t, b].detach() for t in range(4) if target == "mean" or correct[t][b]]
        ensemble = sum(kept) / len(kept) if kept else torch.zeros(3, dtype=torch.float64)
        for t in range(4):
            q = (z[t, b] / 3).log_softmax(0)
            p, e = (answer[b] / 3).softmax(0), (ensemble / 3).softmax(0)
            expected = expected - z[t, b].log_softmax(0)[THREE[b]] / 16
            expected = expected + 0.2 * 9 * (p * (p.log() - q)).sum() / 16
            expected = expected + 0.5 * 9 * (e * (e.log() - q)).sum() / 16
    torch.testing.assert_close(loss, expected)
    assert set(parts) == set(terms)
    reference = torch.autograd.grad(expected, list(whole.student.parameters()))
    found = torch.autograd.grad(loss, list(whole.student.parameters()))
    for ours, theirs in zip(found, reference, strict=True):
        torch.testing.assert_close(ours, theirs)


@pytest.mark.parametrize("name", TWKD)
@pytest.mark.parametrize("execute", [rate, partial(rate, divide_by_steps=True)])
def test_the_gradient_of_the_mean_is_not_enough(name: str, execute) -> None:
    with pytest.raises(
        UserError, match=rf"execute = rate.*term '{name}' compares single steps.*bptt"
    ):
        distiller({name: TWKD[name]}, network("stages"), execute=execute)


def test_the_ensemble_needs_no_teacher() -> None:
    whole = distiller({"step-ensemble": StepEnsemble()})
    loss, _ = whole(images("stages"), THREE)
    assert whole.teacher is None
    assert float(gradients(whole, loss)["student.layer1.0.weight"].abs().max()) > 0


def test_a_spiking_teacher_step_by_step() -> None:
    """It teaches its copy nothing; with its mean logits there is something left at each step."""
    copy = student("stages", calibrated=True)
    step_by_step = distiller({"t": StepLogits(teacher="step")}, copy)
    of_mean = distiller({"t": StepLogits()}, copy)
    values = [float(d(images("stages"), THREE)[1]["t"]) for d in (step_by_step, of_mean)]
    assert abs(values[0]) < 1e-9
    assert values[1] > 1e-5


def test_an_ann_has_no_steps_to_teach() -> None:
    with pytest.raises(UserError, match=r"answers at 1 step, the student at 3.*'mean'"):
        distiller({"t": StepLogits(teacher="step")}, network("stages"))
    one = {"execute": ann, "encode": Direct(1), "example": images("stages")}
    same = Distiller(
        network("stages"), network("stages"), terms={"t": StepLogits(teacher="step")}, **one
    )
    assert abs(float(same.double().eval()(images("stages"), THREE)[0].detach())) < 1e-9


def test_half_precision() -> None:
    """Losses are computed in full precision, whatever the logits are."""
    z, labels = some(4, 0).bfloat16(), torch.tensor([2, 0, 1])
    step_of = Step(Trace(z), Trace(some(1, 1).bfloat16()), labels)
    for term in (StepLogits(), StepEnsemble(), StepEnsemble(target="correct")):
        assert term(OWN, step_of).dtype == torch.float32


def test_it_learns_to_answer_at_every_step() -> None:
    """A few steps of training lower each term; the steps come to agree with the teacher."""
    torch.manual_seed(0)
    whole = distiller(TWKD, network("stages")).train()
    optimiser = torch.optim.Adam(whole.parameters(), 3e-3)
    x, history = images("stages", 16), []
    labels = network("stages").eval()(x).argmax(1)
    for _ in range(12):
        optimiser.zero_grad()
        loss, parts = whole(x, labels)
        loss.backward()
        optimiser.step()
        history.append({name: float(value) for name, value in parts.items()})
    assert history[-1]["ce"] < 0.9 * history[0]["ce"]
    assert history[-1]["step-logits"] < history[0]["step-logits"]
