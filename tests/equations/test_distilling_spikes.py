"""Distilling Spikes (arXiv 2005.00288): spike trains in sliding windows, by loops."""

from __future__ import annotations

import copy
import math

import pytest
import torch
from torch import Tensor, nn

from small import Stages, gradients, images, moving, network, scattered, student
from spikelet.convert import convert
from spikelet.distill import Distiller
from spikelet.encode import Direct
from spikelet.errors import UserError
from spikelet.execute import bptt, rate
from spikelet.neuron import IF
from spikelet.terms.mapping import Pointwise
from spikelet.terms.steps import SpikeWindows, window_sums
from spikelet.terms.term import Binding, Step
from spikelet.trace import Tap, Trace

LABELS = torch.tensor([0, 1, 2, 0])
PLACES = (("a", "b"), ("c", "d"))


def train(steps: int, width: int, seed: int, *shape: int) -> Tensor:
    """Random spikes "T B C ..."."""
    generator = torch.Generator().manual_seed(seed)
    return (torch.rand(steps, 3, width, *shape, generator=generator) < 0.4).double()


def trace(paths: tuple[str, ...], trains: list[Tensor]) -> Trace:
    taps = {p: Tap(s.mean(0), s) for p, s in zip(paths[: len(trains)], trains, strict=True)}
    return Trace(torch.zeros(len(trains[0]), 3, 2, dtype=torch.float64), taps)


def refuse(path: str) -> None:
    raise AssertionError(f"nothing is cut at {path}")


def started(
    term: SpikeWindows, ours: list[Tensor], theirs: list[Tensor]
) -> tuple[nn.Module, Step, Binding]:
    """The term's own part and a step, at the places a=b and c=d."""
    student, teacher = trace(("a", "c"), ours), trace(("b", "d"), theirs)
    binding = Binding(student, teacher, PLACES[: len(ours)], refuse)
    return term.init(binding), Step(student, teacher, LABELS[:3]), binding


def counted(spikes: Tensor, window: int, stride: int) -> list[Tensor]:
    """The sums of each window, added step by step."""
    sums, start = [], 0
    while start + window <= len(spikes):
        total = torch.zeros_like(spikes[0])
        for t in range(start, start + window):
            total = total + spikes[t]
        sums.append(total)
        start += stride
    return sums


def soft(sums: Tensor) -> Tensor:
    """Softmax over channels of "B C ...", written out."""
    powers = torch.exp(sums)
    total = torch.zeros_like(powers[:, :1])
    for c in range(powers.shape[1]):
        total = total + powers[:, c : c + 1]
    return powers / total


def by_loops(ours: Tensor, theirs: Tensor, term: SpikeWindows) -> float:
    window = len(ours) if term.window is None else term.window
    total, count = 0.0, 0
    pairs = [counted(s, window, term.stride) for s in (ours, theirs)]
    for a, b in zip(*pairs, strict=True):
        if term.compare == "softmax":
            a, b = soft(a), soft(b)
        for x, y in zip(a.flatten().tolist(), b.flatten().tolist(), strict=True):
            total, count = total + (x - y) ** 2, count + 1
    channels = ours.shape[2] if term.compare == "softmax" else 1
    return channels * total / count


OPTIONS = {
    "two": SpikeWindows(),
    "one": SpikeWindows(window=1),
    "three by two": SpikeWindows(window=3, stride=2),
    "side by side": SpikeWindows(window=2, stride=2),
    "five of five": SpikeWindows(window=5),
    "all": SpikeWindows(window=None),
    "softmax": SpikeWindows(compare="softmax"),
    "softmax of three": SpikeWindows(window=3, compare="softmax"),
}


@pytest.mark.parametrize("term", OPTIONS.values(), ids=OPTIONS)
@pytest.mark.parametrize("shape", [(), (2, 3), (4,)], ids=str)
def test_loss_by_loops(term: SpikeWindows, shape: tuple[int, ...]) -> None:
    """At one place, and as the sum over two."""
    ours = [train(5, 4, 0, *shape), train(5, 6, 1, *shape)]
    theirs = [train(5, 4, 2, *shape), train(5, 6, 3, *shape)]
    expected = [by_loops(a, b, term) for a, b in zip(ours, theirs, strict=True)]
    for count in (1, 2):
        own, step, _ = started(term, ours[:count], theirs[:count])
        assert float(term(own, step)) == pytest.approx(sum(expected[:count]), rel=1e-12)
    assert min(expected) > 1e-4


def test_number_of_windows() -> None:
    for window, stride, count in ((1, 1, 5), (2, 1, 4), (2, 2, 2), (3, 2, 2), (5, 1, 1), (4, 9, 1)):
        sums = window_sums(train(5, 4, 0), window, stride)
        assert len(sums) == count == len(counted(train(5, 4, 0), window, stride))


def test_gradient_by_hand() -> None:
    """dL/ds(t) = (2 / n) sum of (n_S(k) - n_T(k)) over the windows k that hold step t."""
    term = SpikeWindows(window=2)
    ours, theirs = train(4, 3, 0).requires_grad_(), train(4, 3, 1)
    own, step, _ = started(term, [ours], [theirs])
    (found,) = torch.autograd.grad(term(own, step), ours)
    with torch.no_grad():
        gaps = [a - b for a, b in zip(counted(ours, 2, 1), counted(theirs, 2, 1), strict=True)]
    elements = len(gaps) * gaps[0].numel()
    for t in range(4):
        held = [gaps[k] for k in range(3) if k <= t < k + 2]
        torch.testing.assert_close(found[t], 2 * sum(held) / elements)


def test_one_window_forgets_the_order() -> None:
    """All steps in one window: only counts matter; with shorter windows the order does."""
    ours, order = train(4, 3, 0), [2, 0, 3, 1]
    for window, vanishes in ((None, True), (4, True), (2, False), (1, False)):
        term = SpikeWindows(window=window)
        own, step, _ = started(term, [ours], [ours[order]])
        assert (float(term(own, step)) == 0) == vanishes
        own, step, _ = started(term, [ours], [ours])
        assert float(term(own, step)) == 0


def test_softmax_sees_differences_only() -> None:
    """A constant added to all channels' counts changes nothing."""
    ours = train(4, 3, 0)
    more = ours + torch.tensor([1.0, 0.0, 2.0, 1.0], dtype=torch.float64)[:, None, None]
    for compare, vanishes in (("softmax", True), ("sum", False)):
        term = SpikeWindows(compare=compare)
        own, step, _ = started(term, [ours], [more])
        assert (float(term(own, step)) < 1e-12) == vanishes


# ---- unequal widths ---------------------------------------------------------------------------


def test_unequal_widths_meet_through_a_fitted_map() -> None:
    """Where a linear map exists, it is found, but for the ridge; it is learned with the student."""
    ours = train(5, 4, 0, 3, 3)
    theirs = torch.stack([ours[:, :, 2], ours[:, :, 0], ours[:, :, 2]], 2)
    term = SpikeWindows()
    own, step, _ = started(term, [ours], [theirs])
    loss = float(term(own, step).detach())
    assert loss < 1e-5
    assert isinstance(own[0], Pointwise)
    assert [p.shape for p in own.parameters()] == [(3,), (3, 4)]
    weight, bias = own[0].factors[0], own[0].bias
    total = 0.0
    for a, b in zip(counted(ours, 2, 1), counted(theirs, 2, 1), strict=True):
        for i in range(3):
            for j in range(3):
                mapped = a[:, :, i, j] @ weight.T + bias
                total += float((mapped - b[:, :, i, j]).square().detach().sum())
    assert loss == pytest.approx(total / (4 * 3 * 3 * 9), rel=1e-9)


def test_equal_widths_are_compared_as_they_are() -> None:
    own, _, _ = started(SpikeWindows(), [train(4, 3, 0)], [train(4, 3, 1)])
    assert not list(own.parameters())


# ---- refusals ---------------------------------------------------------------------------------


def test_a_window_longer_than_the_run() -> None:
    with pytest.raises(UserError, match=r"spikes\.window = 5.*4 steps.*at most 4"):
        started(SpikeWindows(window=5), [train(4, 3, 0)], [train(4, 3, 1)])


@pytest.mark.parametrize("name", ["window", "stride"])
@pytest.mark.parametrize("value", [0, -1])
def test_a_window_has_a_step(name: str, value: int) -> None:
    with pytest.raises(UserError, match=rf"spikes\.{name} = {value}.*at least 1"):
        SpikeWindows(**{name: value})


@pytest.mark.parametrize(
    ("side", "way"), [("teacher", "spiking teacher.*affine"), ("student", "execute=bptt")]
)
def test_a_network_without_spikes(side: str, way: str) -> None:
    ours = train(4, 3, 0)
    fires = {"student": trace(("a",), [ours]), "teacher": trace(("b",), [ours])}
    (path,) = fires[side].taps
    fires[side] = Trace(fires[side].logits, {path: Tap(ours.mean(0))})
    with pytest.raises(UserError, match=rf"{side}.*without spikes.*{way}"):
        SpikeWindows().init(Binding(**fires, pairs=PLACES[:1], suffix=refuse))


def test_places_of_unequal_resolution() -> None:
    with pytest.raises(UserError, match=r"a has positions \(2, 3\), b \(3, 2\)"):
        started(SpikeWindows(), [train(4, 3, 0, 2, 3)], [train(4, 3, 1, 3, 2)])


# ---- in a Distiller ---------------------------------------------------------------------------


def distiller(term: SpikeWindows, teacher: nn.Module, **fields) -> Distiller:
    net = fields.pop("student", None) or student("stages", calibrated=True)
    fields = {"execute": bptt, "example": images("stages", 16), "encode": Direct(3)} | fields
    return Distiller(net, teacher, terms={"spikes": term}, **fields).double().eval()


@pytest.mark.parametrize("compare", ["sum", "softmax"])
def test_a_spiking_teacher(compare: str) -> None:
    """It teaches its copy nothing, another student something; its own state stays."""
    teacher = student("stages", calibrated=True)
    term = SpikeWindows(compare=compare)
    same = distiller(term, teacher)
    assert float(same(images("stages"), LABELS)[0].detach()) == 0
    whole = distiller(term, teacher, student=student("stages", seed=2, calibrated=True))
    before = copy.deepcopy(whole.teacher.state_dict())
    loss, _ = whole(images("stages"), LABELS)
    assert float(loss.detach()) > 1e-4
    found = gradients(whole, loss)
    assert float(found["student.layer1.0.weight"].abs().max()) > 0
    assert all(torch.equal(v, before[k]) for k, v in whole.teacher.state_dict().items())


@pytest.mark.parametrize("kind", ["bptt", "rate"])
def test_the_whole_loss(kind: str) -> None:
    """The spikes of two unrolled networks, counted window by window at every stage."""
    window, execute = (None, rate) if kind == "rate" else (2, bptt)
    teacher, term = student("stages", seed=2, calibrated=True), SpikeWindows(window=window)
    whole = distiller(term, teacher, execute=execute, encode=lambda _: moving("stages", 3))
    loss, _ = whole(images("stages"), LABELS)
    expected = 0.0
    for s, t in whole.pairs:
        trains = [
            bptt(net.eval(), moving("stages", 3), {path: ("spikes",)}).taps[path].spikes.detach()
            for net, path in ((whole.student, s), (teacher.double(), t))
        ]
        expected += by_loops(*trains, term)
    assert len(whole.pairs) == 3
    assert float(loss.detach()) == pytest.approx(expected, rel=1e-6)


def test_all_steps_in_one_window_train_with_the_gradient_of_the_mean() -> None:
    """n = T mean / theta: the same gradient from the mean of what propagates."""
    teacher = student("stages", seed=2, calibrated=True)
    whole = distiller(SpikeWindows(window=None), teacher, execute=rate)
    found = gradients(whole, whole(images("stages"), LABELS)[0])
    x = Direct(3)(images("stages"))
    loss = torch.zeros((), dtype=torch.float64)
    for s, t in whole.pairs:
        mean = rate(whole.student, x, [s]).taps[s].mean
        target = bptt(whole.teacher, x, {t: ("spikes",)}).taps[t].spikes.detach().sum(0)
        theta = dict(whole.student.named_modules())[place(whole.student, s)].theta
        loss = loss + (3 * mean / theta.reshape(-1, 1, 1) - target).square().mean()
    expected = gradients(whole, loss)
    for key, value in expected.items():
        torch.testing.assert_close(found[key], value, rtol=1e-5, atol=1e-8, msg=key)


def place(net: nn.Module, node: str) -> str:
    """The module that a node calls."""
    return next(str(n.target) for n in net.graph.nodes if n.name == node)


def test_which_gradient_it_needs() -> None:
    teacher = student("stages", calibrated=True)
    assert (SpikeWindows().time, SpikeWindows(window=None).time) == ("steps", "mean")
    with pytest.raises(UserError, match="single steps"):
        distiller(SpikeWindows(), teacher, execute=rate)


@pytest.mark.parametrize("execute", [rate, bptt])
def test_an_ann_is_refused(execute) -> None:
    with pytest.raises(UserError, match="spikes"):
        distiller(SpikeWindows(window=None), network("stages"), execute=execute)


def test_a_narrower_student() -> None:
    torch.manual_seed(1)
    net = convert(scattered(Stages(width=3).double()), IF(), calibrate=images("stages", 16))
    whole = distiller(SpikeWindows(), student("stages", calibrated=True), student=net)
    loss, _ = whole(images("stages"), LABELS)
    found = gradients(whole, loss)
    learned = [k for k in found if k.startswith("own.")]
    assert len(learned) == 6
    assert all(float(found[k].abs().max()) > 0 for k in learned)
    assert math.isfinite(float(loss.detach()))


def test_networks_without_feature_maps() -> None:
    whole = Distiller(
        student("mlp"), student("mlp", seed=2), terms={"spikes": SpikeWindows(window=None)},
        example=images("mlp", 16), encode=Direct(3),
    ).double()  # fmt: skip
    found = gradients(whole, whole(images("mlp"), LABELS)[0])
    assert float(found["student.0.weight"].abs().max()) > 0


def test_half_precision_counts_in_full() -> None:
    spikes = train(4, 3, 0).bfloat16()
    assert window_sums(spikes, 2).dtype == torch.float32
