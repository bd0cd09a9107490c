"""Hybrid block-wise replacement (arXiv 2503.16572): acceptance tests 7 and 8, losses by hand."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn

from small import Stages, assert_same, gradients, images, network, scattered, student
from spikelet.convert import convert
from spikelet.distill import Distiller
from spikelet.encode import Direct
from spikelet.execute import ann, bptt, rate
from spikelet.graph import after, capture
from spikelet.neuron import IF
from spikelet.terms import CrossEntropy, Hybrid
from spikelet.terms.hybrid import Branches
from spikelet.terms.term import Step
from spikelet.trace import Tap, Trace

LABELS = torch.tensor([0, 1, 2, 0])
CUTS = ("layer1", "layer2")


def distiller(term: Hybrid, execute: object = rate, **terms: object) -> Distiller:
    net = student("stages", calibrated=True)
    return Distiller(
        net, network("stages"), terms={"hybrid": term, **terms}, execute=execute,
        encode=Direct(3), example=images("stages", 16),
    ).double()  # fmt: skip


def suffix_by_hand(teacher: nn.Module, cut: int, r: Tensor) -> Tensor:
    """A_n o ... o A_{k+1} of `Stages`, called module by module."""
    if cut == 1:
        r = teacher.layer2(teacher.down(r))
    r = teacher.relu(teacher.conv(r) + r)
    return teacher.linear(teacher.layer3(teacher.down(r)).mean((2, 3)))


def cross_entropy(z: Tensor, labels: Tensor) -> Tensor:
    total = torch.zeros((), dtype=z.dtype)
    for row, label in zip(z, labels.tolist(), strict=True):
        total = total - row[label] + torch.log(torch.exp(row).sum())
    return total / len(z)


def divergence(teacher: Tensor, z: Tensor, tau: float) -> Tensor:
    total = torch.zeros((), dtype=z.dtype)
    for a, b in zip(teacher, z, strict=True):
        p, q = torch.softmax(a / tau, 0), torch.softmax(b / tau, 0)
        for k in range(len(p)):
            total = total + p[k] * (torch.log(p[k]) - torch.log(q[k]))
    return tau**2 * total / len(z)


@pytest.mark.parametrize("tau", [1.0, 3.0])
def test_branch_losses_by_hand(tau: float) -> None:
    """sum_k CE(z_k) a + KL(z_A || z_k) b, z_k = suffix of a scaled and shifted r_k."""
    term = Hybrid(on=CUTS, ce=0.7, kl=1.3, tau=tau)
    whole = distiller(term)
    branches = whole.own["hybrid"]
    assert isinstance(branches, Branches)
    with torch.no_grad():
        for mapping in branches.mappings:
            mapping.scale.uniform_(0.5, 1.5)
            mapping.shift.uniform_(-0.2, 0.2)
    teacher, x = network("stages").eval(), images("stages")
    _, parts = whole.eval()(x, LABELS)
    trace = rate(whole.student, Direct(3)(x), CUTS)
    expected = torch.zeros((), dtype=torch.float64)
    for k, cut in enumerate(CUTS):
        c, r = branches.mappings[k], trace.taps[cut].mean
        mapped = torch.stack(
            [c.scale[i] * r[:, i] + c.shift[i] for i in range(r.shape[1])], dim=1
        )
        z = suffix_by_hand(teacher, k + 1, mapped)
        expected = expected + 0.7 * cross_entropy(z, LABELS) + 1.3 * divergence(teacher(x), z, tau)
    torch.testing.assert_close(parts["hybrid"].double(), expected.detach(), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("path", ["layer1", "down", "layer2", "relu", "down_1", "layer3", "linear"])
def test_the_teachers_own_feature_gives_its_logits(path: str) -> None:
    """Acceptance test 8: C_k = identity and r_k = the ANN's feature, for every cut."""
    teacher = capture(network("stages")).eval()
    x = images("stages")
    trace = ann(teacher, x.unsqueeze(0), [path])
    r = trace.taps[path].mean
    z = r if path == "linear" else after(teacher, path)(r)
    torch.testing.assert_close(z, trace.logits[0], rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(z, network("stages").eval()(x), rtol=1e-12, atol=1e-12)


def test_only_prefix_and_mapping_get_a_gradient() -> None:
    """Acceptance test 7: of M_k, the student's suffix and the teacher get none."""
    for k, cut in enumerate(CUTS):
        whole = distiller(Hybrid(on=[cut])).train()
        loss, _ = whole(images("stages"), LABELS)
        found = gradients(whole, loss)
        inside = ["student.layer1."] + ["student.layer2."] * (k > 0)
        for name, value in found.items():
            through = name.startswith((*inside, "own.hybrid."))
            assert bool(value.abs().max() > 0) == through, name
        assert whole.teacher is not None
        assert all(p.grad is None and not p.requires_grad for p in whole.teacher.parameters())


@pytest.mark.parametrize("execute", [rate, bptt])
@pytest.mark.parametrize("mapping", ["auto", "conv", "conv-norm-relu"])
def test_training_leaves_the_teacher_bit_identical(execute: object, mapping: str) -> None:
    """Acceptance test 7: parameters and batch-norm buffers, ours and the user's."""
    model = network("stages").train()
    states = [{k: v.clone() for k, v in model.state_dict().items()}]
    whole = Distiller(
        student("stages", calibrated=True), model, execute=execute, encode=Direct(2),
        terms={"ce": CrossEntropy(), "hybrid": Hybrid(mapping=mapping)},
        example=images("stages", 16),
    ).double().train()  # fmt: skip
    assert whole.teacher is not None
    states.append({k: v.clone() for k, v in whole.teacher.state_dict().items()})
    before = {k: v.clone() for k, v in whole.state_dict().items()}
    optimiser = torch.optim.SGD(whole.parameters(), lr=0.05, momentum=0.9, weight_decay=1e-2)
    for step in range(3):
        optimiser.zero_grad()
        loss, _ = whole(images("stages", seed=step), LABELS)
        loss.backward()
        optimiser.step()
    for net, state in zip((model, whole.teacher), states, strict=True):
        assert all(torch.equal(v, state[k]) for k, v in net.state_dict().items())
    assert not whole.teacher.training
    moved = {k for k, v in whole.state_dict().items() if not torch.equal(v, before[k])}
    assert {"student.layer1.0.weight", "student.layer1.1.running_var"} <= moved
    assert any(name.startswith("own.hybrid.") for name in moved)


def test_a_sampled_branch_is_unbiased() -> None:
    """The mean over branches of (their number times their loss) is the sum; so are gradients."""
    summed, found = distiller(Hybrid(on=CUTS)).eval(), {}
    loss, parts = summed(images("stages"), LABELS)
    sampled = distiller(Hybrid(on=CUTS, sample=True)).eval()
    sampled.load_state_dict(summed.state_dict())
    seen: dict[float, dict[str, Tensor]] = {}
    for seed in range(12):
        generator = torch.Generator().manual_seed(seed)
        one, _ = sampled(images("stages"), LABELS, 0.0, generator)
        seen.setdefault(round(float(one.detach()), 5), gradients(sampled, one))
    assert len(seen) == len(CUTS)
    assert math.isclose(sum(seen) / len(CUTS), float(parts["hybrid"]), rel_tol=1e-4)
    found = gradients(summed, loss)
    means = {k: torch.stack([g[k] for g in seen.values()]).mean(0) for k in found}
    assert_same(means, found, 1e-5)


def test_the_generator_decides_the_branch() -> None:
    whole = distiller(Hybrid(on=CUTS, sample=True)).eval()
    values = []
    for _ in range(2):
        torch.rand(3)
        generator = torch.Generator().manual_seed(3)
        values.append([float(whole(images("stages"), LABELS, 0.0, generator)[0].detach())
                       for _ in range(4)])  # fmt: skip
    assert values[0] == values[1]


def test_a_perfect_student_pays_cross_entropy_only() -> None:
    """r_k = the ANN's feature and C_k = identity: the divergence is zero."""
    net, x = capture(network("stages")).eval(), images("stages")
    whole = Distiller(
        net, network("stages"), terms={"hybrid": Hybrid(ce=0.0)}, execute=ann, encode=Direct(1),
        example=x,
    ).double().eval()  # fmt: skip
    _, parts = whole(x, LABELS)
    assert abs(float(parts["hybrid"])) < 1e-6


def test_unequal_widths_start_at_a_fit() -> None:
    """A narrower student: the mapping is a ridge fit with a ReLU, and positions must agree."""
    torch.manual_seed(1)
    narrow = convert(scattered(Stages(width=3).double()), IF(), calibrate=images("stages", 16))
    whole = Distiller(
        narrow.double(), network("stages"), terms={"hybrid": Hybrid()}, execute=rate,
        encode=Direct(4), example=images("stages", 16),
    ).double()  # fmt: skip
    branches = whole.own["hybrid"]
    x = Direct(4)(images("stages", 16))
    taught = ann(whole.teacher, x, [t for _, t in branches.pairs])
    ours = rate(narrow.eval(), x, [s for s, _ in branches.pairs])
    for (s, t), mapping in zip(branches.pairs, branches.mappings, strict=True):
        target, fitted = taught.taps[t].mean, mapping(ours.taps[s].mean)
        assert fitted.shape == target.shape
        error = (fitted - target).square().mean()
        spread = (target - target.mean((0, 2, 3), True)).square().mean()
        assert float(error.detach()) < float(spread)
    step = Step(
        Trace(torch.zeros(1, 4, 3), {s: Tap(ours.taps[s].mean[:4]) for s, _ in branches.pairs}),
        Trace(taught.logits[:, :4]),
        LABELS,
    )
    assert torch.isfinite(Hybrid()(branches, step))
