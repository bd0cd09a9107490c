"""Hybrid block-wise replacement (arXiv 2503.16572): acceptance tests 7 and 8, losses by hand."""

from __future__ import annotations

import dataclasses
import functools
import itertools
import math

import pytest
import torch
from torch import Tensor, nn

from small import Stages, assert_same, gradients, images, network, scattered, student
from spikelet.convert import convert
from spikelet.cuts import after
from spikelet.distill import Distiller
from spikelet.encode import Direct
from spikelet.errors import UserError
from spikelet.execute import ann, bptt, rate
from spikelet.graph import capture
from spikelet.neuron import IF
from spikelet.terms import CrossEntropy, Hybrid
from spikelet.terms.hybrid import Branches, active
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
        mapped = torch.stack([c.scale[i] * r[:, i] + c.shift[i] for i in range(r.shape[1])], dim=1)
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


ALL = ("layer1", "layer2", "layer3")


@functools.cache
def branch_losses() -> dict[str, tuple[float, dict[str, Tensor]]]:
    """Loss and the student's gradient of each branch by itself, unweighted."""
    found = {}
    for cut in ALL:
        whole = distiller(Hybrid(on=[cut])).eval()
        loss, _ = whole(images("stages"), LABELS)
        found[cut] = float(loss.detach()), gradients(whole.student, loss)
    return found


@pytest.mark.parametrize("count", [1, 2, 3, 4, 5])
def test_curriculum(count: int) -> None:
    """From one branch to all at half of the training, one at a time and never back."""
    on = [active(count, n / 1000) for n in range(1001)]
    assert on[0] == 1
    assert on[500:] == [count] * 501
    assert count < 2 or on[499] == count - 1
    assert all(0 <= b - a <= 1 for a, b in itertools.pairwise(on))
    for k in range(1, count):
        assert active(count, k / (2 * (count - 1))) > k - 1e-9
    spans = [on.count(n) for n in range(1, count)]
    assert not spans or max(spans) - min(spans) <= 1


@pytest.mark.parametrize("weights", [None, (0.5, 2.0, 0.0)])
@pytest.mark.parametrize(("progress", "count"), [(0.0, 1), (0.24, 1), (0.25, 2), (0.5, 3), (1, 3)])
def test_branches_of_a_curriculum(
    progress: float, count: int, weights: tuple[float, ...] | None
) -> None:
    """The weighted sum over the shallowest `count` cuts, and its gradient."""
    separate = branch_losses()
    whole = distiller(Hybrid(on=ALL, curriculum=True, branch_weights=weights)).eval()
    loss, parts = whole(images("stages"), LABELS, progress)
    share = dict(zip(ALL, weights or (1.0, 1.0, 1.0), strict=True))
    expected = sum(share[cut] * separate[cut][0] for cut in ALL[:count])
    assert float(parts["hybrid"]) == pytest.approx(expected, rel=1e-5)
    total = {
        name: sum(share[cut] * separate[cut][1][name] for cut in ALL[:count])
        for name in separate["layer1"][1]
    }
    assert_same(gradients(whole.student, loss), total, 1e-5)


@pytest.mark.parametrize("weights", [None, (0.3, 1.7, 0.9)])
@pytest.mark.parametrize(
    ("curriculum", "progress"), [(False, 0.0), (True, 0.0), (True, 0.3), (True, 1.0)]
)
def test_a_sampled_branch_is_unbiased(
    curriculum: bool, progress: float, weights: tuple[float, ...] | None
) -> None:
    """The mean over the branches that may be drawn is the sum; so are gradients."""
    term = Hybrid(on=ALL, curriculum=curriculum, branch_weights=weights)
    summed = distiller(term).eval()
    loss, parts = summed(images("stages"), LABELS, progress)
    sampled = distiller(dataclasses.replace(term, sample=True)).eval()
    sampled.load_state_dict(summed.state_dict())
    seen: dict[float, dict[str, Tensor]] = {}
    for seed in range(12):
        generator = torch.Generator().manual_seed(seed)
        one, _ = sampled(images("stages"), LABELS, progress, generator)
        key = round(float(one.detach()), 5)
        if key not in seen:
            seen[key] = gradients(sampled, one)
    assert len(seen) == (active(3, progress) if curriculum else 3)
    assert math.isclose(sum(seen) / len(seen), float(parts["hybrid"]), rel_tol=1e-4)
    found = gradients(summed, loss)
    means = {k: torch.stack([g[k] for g in seen.values()]).mean(0) for k in found}
    assert_same(means, found, 1e-5)


def test_branch_weights_are_one_each_branch() -> None:
    with pytest.raises(UserError, match=r"branch_weights = \(1.0,\).*layer1, layer2.*give 2"):
        distiller(Hybrid(on=CUTS, branch_weights=(1.0,)))


def test_all_adds_the_teachers_classifier() -> None:
    """The last branch: the student's last features, mapped, through pooling and `linear`."""
    whole = distiller(Hybrid(on="all")).eval()
    branches = whole.own["hybrid"]
    assert isinstance(branches, Branches)
    assert len(branches.pairs) == len(distiller(Hybrid()).own["hybrid"].pairs) + 1
    r = torch.rand(4, 8, 2, 2, dtype=torch.float64)
    mapping, k = branches.mappings[-1], len(branches.pairs) - 1
    expected = network("stages").linear(mapping(r).mean((2, 3)))
    torch.testing.assert_close(branches.logits(k, r), expected)


@pytest.mark.parametrize("training", [True, False])
def test_convolution_and_norm_keep_what_conversion_gave(training: bool) -> None:
    """On the examples the mapping with batch norm starts as the fit without it."""
    outputs = []
    for mapping in ("conv", "conv-norm-relu"):
        whole = distiller(Hybrid(on=["layer1"], mapping=mapping))
        x = Direct(3)(images("stages", 16))
        r = rate(whole.student.eval(), x, ["layer1"]).taps["layer1"].mean
        outputs.append(whole.own["hybrid"].mappings.train(training)[0](r))
    torch.testing.assert_close(*outputs, rtol=1e-4, atol=1e-4)


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
