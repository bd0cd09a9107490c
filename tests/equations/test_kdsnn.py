"""Feature distillation of KDSNN (arXiv 2304.05627): margins by sampling, errors by loops."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, fx, nn

from small import Residual, Stages, gradients, images, network, scattered, student
from spikelet.convert import convert
from spikelet.distill import Distiller
from spikelet.encode import Direct
from spikelet.errors import UserError
from spikelet.execute import ann, bptt, rate
from spikelet.graph import capture
from spikelet.neuron import IF
from spikelet.norm import freeze_norms
from spikelet.terms import CrossEntropy
from spikelet.terms.feature import (
    Connector,
    Feature,
    gaussian_margin,
    norm_before,
    observed_margin,
    partial_error,
)
from spikelet.terms.mapping import Places
from spikelet.terms.term import Binding

LABELS = torch.tensor([0, 1, 2, 0])
PLACES = ("layer1", "relu", "layer3")


# ---- margins ------------------------------------------------------------------------------


@pytest.mark.parametrize("beta", [-2.0, -0.3, 0.0, 0.4, 2.5])
@pytest.mark.parametrize("gamma", [0.5, -1.0, 1.7])
def test_margin_is_the_mean_of_the_negative_values(beta: float, gamma: float) -> None:
    """By integrating x over the density below zero on a fine grid."""
    deviation = abs(gamma)
    step = deviation / 2000
    mass = first = 0.0
    for n in range(int((abs(beta) + 9 * deviation) / step)):
        x = -(n + 0.5) * step
        density = math.exp(-0.5 * ((x - beta) / deviation) ** 2)
        mass, first = mass + density, first + x * density
    ours = gaussian_margin(*torch.tensor([[beta], [gamma]], dtype=torch.float64))
    share = 0.5 * math.erfc(beta / deviation / math.sqrt(2))
    expected = first / mass if share > 1e-3 else -3 * deviation
    assert float(ours) == pytest.approx(expected, rel=1e-5)


def test_margin_where_nothing_is_negative() -> None:
    beta, gamma = torch.tensor([8.0, 3.0, 0.7, -0.7]), torch.tensor([0.5, -0.5, 0.0, 0.0])
    expected = torch.tensor([-1.5, -1.5, 0.0, -0.7])
    torch.testing.assert_close(gaussian_margin(beta, gamma), expected)


def test_observed_margin_by_loops() -> None:
    values = torch.randn(4, 3, 5, 5, dtype=torch.float64) + 0.3
    values[:, 1] = values[:, 1].abs() + 0.1
    ours = observed_margin(values)
    for c in range(3):
        below = [float(v) for v in values[:, c].flatten() if v < 0]
        spread = float(values[:, c].std(unbiased=False))
        expected = sum(below) / len(below) if below else -3 * spread
        assert float(ours[c]) == pytest.approx(expected, rel=1e-12)


def test_both_margins_agree_on_what_a_norm_gives() -> None:
    generator = torch.Generator().manual_seed(0)
    beta, gamma = torch.tensor([0.5, -0.4]), torch.tensor([0.8, 1.3])
    x = torch.randn(20000, 2, generator=generator) * gamma + beta
    torch.testing.assert_close(observed_margin(x), gaussian_margin(beta, gamma), rtol=0.03, atol=0)


def test_partial_error_by_loops() -> None:
    generator = torch.Generator().manual_seed(1)
    s, t = torch.randn(2, 3, 2, 4, 4, generator=generator, dtype=torch.float64)
    total = 0.0
    for a, b in zip(s.flatten().tolist(), t.flatten().tolist(), strict=True):
        if a > b or b > 0:
            total += (a - b) ** 2
    assert float(partial_error(s, t)) == pytest.approx(total / s.numel(), rel=1e-12)
    assert float(partial_error(t.clamp_max(0) - 1, t.clamp_max(0))) == 0
    assert float(partial_error(t, t)) == 0


# ---- the norm in front --------------------------------------------------------------------


class Dropped(nn.Module):
    """Batch norm, then a ReLU directly, behind dropout, behind pooling, and behind a norm."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(2, 4, 3, padding=1)
        self.norms = nn.ModuleList([nn.BatchNorm2d(4) for _ in range(4)])
        self.relus = nn.ModuleList([nn.ReLU() for _ in range(5)])
        self.drop, self.pool = nn.Dropout(0.1), nn.AvgPool2d(2)
        self.linear = nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.relus[0](self.norms[0](self.conv(x)))
        x = self.relus[1](self.drop(self.norms[1](x)))
        x = self.relus[2](self.pool(self.norms[2](x)))
        x = self.relus[3](x)
        x = self.relus[4](x + self.norms[3](x))
        return self.linear(x.mean((2, 3)))


def test_norm_before() -> None:
    net = capture(Dropped())
    found = [norm_before(net, f"relus.{i}") for i in range(5)]
    assert found[:2] == [net.get_submodule(f"norms.{i}") for i in range(2)]
    assert found[2:] == [None, None, None]
    assert norm_before(net, "norms.0") is None
    assert norm_before(net, "linear") is None
    assert norm_before(Dropped(), "relus.0") is None
    assert norm_before(None, "relus.0") is None


def test_norm_before_in_residual_and_spiking_nets() -> None:
    net = capture(network("residual"))
    assert norm_before(net, "relu1") is net.bn1
    assert norm_before(net, "relu2") is None
    spiking = student("residual")
    assert norm_before(spiking, "relu1") is spiking.bn1
    frozen = freeze_norms(spiking)
    assert norm_before(frozen, "relu1") is frozen.bn1


# ---- the term -----------------------------------------------------------------------------


def narrow() -> fx.GraphModule:
    torch.manual_seed(1)
    model = scattered(Stages(width=3).double())
    return convert(model, IF(), calibrate=images("stages", 16)).double()


def distiller(term: Feature, execute: object = rate, teacher: nn.Module | None = None) -> Distiller:
    return Distiller(
        narrow(), network("stages") if teacher is None else teacher, terms={"feature": term},
        execute=execute, encode=Direct(3), example=images("stages", 16),
    ).double()  # fmt: skip


def stage_share(i: int, weighted: bool) -> float:
    """1 / 2^(n - i - 1) of the three places."""
    return [0.25, 0.5, 1.0][i] if weighted else 1.0


def connected(connector: Connector, r: Tensor) -> Tensor:
    """1x1 convolution, then batch norm with its stored statistics, written out."""
    mapping = connector.mapping
    if not isinstance(mapping, nn.Sequential):
        (weight,) = mapping.factors
        return torch.einsum("dc,bchw->bdhw", weight, r) + mapping.bias[:, None, None]
    convolution, norm = mapping
    assert convolution.bias is None
    y = torch.einsum("dc,bchw->bdhw", convolution.factors[0], r)
    gain = norm.weight / (norm.running_var + norm.eps).sqrt()
    return y * gain[:, None, None] + (norm.bias - norm.running_mean * gain)[:, None, None]


@pytest.mark.parametrize("execute", [rate, bptt])
@pytest.mark.parametrize("connector", ["auto", "conv", "conv-norm"])
@pytest.mark.parametrize("weighted", [True, False])
@pytest.mark.parametrize("form", ["simple", "strict"])
def test_loss_of_a_student_by_hand(
    form: str, weighted: bool, connector: str, execute: object
) -> None:
    whole = distiller(
        Feature(form=form, stage_weights=weighted, connector=connector, on=PLACES), execute
    ).eval()
    x = images("stages")
    loss, parts = whole(x, LABELS)
    ours = execute(whole.student, Direct(3)(x), PLACES)
    theirs = ann(whole.teacher, Direct(3)(x), dict.fromkeys(PLACES, ("mean", "current")))
    own, expected = whole.own["feature"], 0.0
    assert isinstance(own, Places)
    for i, (part, place) in enumerate(zip(own, PLACES, strict=True)):
        normed = connector == "conv-norm" or (connector, form) == ("auto", "strict")
        assert isinstance(part.mapping, nn.Sequential) == normed
        s = connected(part, ours.taps[place].mean)
        if form == "simple":
            expected += float((s - theirs.taps[place].mean).square().sum().detach()) / s.numel()
            continue
        t = theirs.taps[place].current[0]
        for c in range(t.shape[1]):
            target = t[:, c].clamp_min(float(part.margin[c]))
            counts = (s[:, c] > target) | (target > 0)
            error = float(((s[:, c] - target) ** 2)[counts].sum().detach())
            expected += stage_share(i, weighted) * error / s.numel()
    assert float(parts["feature"]) == pytest.approx(expected, rel=1e-5)
    found = gradients(whole, loss)
    assert float(found["student.layer1.0.weight"].abs().max()) > 0
    assert float(found["student.linear.weight"].abs().max()) == 0
    mapped = [g for name, g in found.items() if name.startswith("own.")]
    assert mapped and all(float(g.abs().max()) > 0 for g in mapped)


def bind(net: nn.Module | None, term: Feature, spiking: bool = False) -> Places:
    """The term's own part for a teacher, with or without a look at the teacher itself."""
    x = Direct(3)(images("stages", 16))
    taps = dict.fromkeys(PLACES, ("mean", "current"))
    teacher = student("stages", seed=1, calibrated=True) if spiking else capture(network("stages"))
    binding = Binding(
        rate(narrow().eval(), x, PLACES), (rate if spiking else ann)(teacher.eval(), x, taps),
        tuple((p, p) for p in PLACES), lambda path: teacher, net,
    )  # fmt: skip
    own = term.init(binding)
    assert isinstance(own, Places)
    return own


def test_margins_come_from_norms_and_behind_sums_from_values() -> None:
    net = capture(network("stages")).eval()
    own = bind(net, Feature(form="strict", on=PLACES))
    before = ann(net, images("stages", 16)[None], dict.fromkeys(PLACES, ("current",))).taps
    norms = {"layer1": net.layer1.get_submodule("1"), "layer3": net.layer3.get_submodule("1")}
    for part, place in zip(own, PLACES, strict=True):
        if place == "relu":
            expected = observed_margin(before[place].current[0])
        else:
            norm = norms[place]
            expected = gaussian_margin(norm.bias, norm.weight)
        torch.testing.assert_close(part.margin, expected.detach())
        assert bool((part.margin < 0).all())
    unseen = bind(None, Feature(form="strict", on=PLACES))
    for part, place in zip(unseen, PLACES, strict=True):
        torch.testing.assert_close(part.margin, observed_margin(before[place].current[0]))
    assert all(part.margin is None for part in bind(net, Feature(on=PLACES)))


def test_spiking_teacher() -> None:
    """Its pre-activation is the mean current, which its norm describes just the same."""
    own = bind(student("stages", seed=1, calibrated=True), Feature(form="strict", on=PLACES), True)
    assert all(part.margin.shape == (width,) for part, width in zip(own, (4, 8, 8), strict=True))
    for form in ("simple", "strict"):
        teacher = student("stages", seed=1, calibrated=True)
        whole = distiller(Feature(form=form, on=PLACES), teacher=teacher)
        loss, _ = whole.train()(images("stages"), LABELS)
        found = gradients(whole, loss)
        assert float(found["student.layer1.0.weight"].abs().max()) > 0
        assert all(bool(torch.isfinite(g).all()) for g in found.values())


@pytest.mark.parametrize("connector", ["conv", "conv-norm"])
def test_own_copy_has_almost_no_loss(connector: str) -> None:
    """The simple form; what is left is the ridge's shrinkage."""
    x = images("stages", 16)
    whole = Distiller(
        capture(network("stages")), network("stages"), execute=ann, encode=Direct(1), example=x,
        terms={"feature": Feature(connector=connector)},
    ).double().eval()  # fmt: skip
    _, parts = whole(x, torch.zeros(16, dtype=torch.int64))
    assert float(parts["feature"]) < 2e-3


@pytest.mark.parametrize("form", ["simple", "strict"])
def test_size_does_not_depend_on_resolution(form: str) -> None:
    """Four copies of each position leave the loss; the published sum would be four times it."""
    generator = torch.Generator().manual_seed(0)
    s, t = torch.randn(2, 4, 3, 4, 4, generator=generator)
    big = [x.repeat_interleave(2, 2).repeat_interleave(2, 3) for x in (s, t)]
    loss = partial_error if form == "strict" else nn.functional.mse_loss
    torch.testing.assert_close(loss(*big), loss(s, t))
    published = sum(((s - t) ** 2)[b].sum() for b in range(4)) / 4
    torch.testing.assert_close(nn.functional.mse_loss(s, t) * 3 * 4 * 4, published)


def test_places() -> None:
    with pytest.raises(UserError, match=r"layer1 has positions \(8, 8\).*layer2 \(4, 4\)"):
        distiller(Feature(on=["layer1=layer2"]))
    with pytest.raises(UserError, match="exist at neurons only"):
        distiller(Feature(on=["down"], form="strict"))
    assert distiller(Feature(on=["down"])).own["feature"].pairs == (("down", "down"),)


@pytest.mark.parametrize("form", ["simple", "strict"])
def test_relative_errors_do_not_depend_on_the_size_of_features(form: str) -> None:
    """Each place over the variance between the example's images, element by element."""
    x, losses = images("stages", 16), []
    for place in PLACES:
        alone = distiller(Feature(form=form, on=[place])).eval()
        loss = float(alone(x[:4], LABELS)[1]["feature"])
        assert alone.teacher is not None
        field = "mean" if form == "simple" else "current"
        tap = ann(alone.teacher, Direct(1)(x), {place: (field,)}).taps[place]
        part = alone.own["feature"][0]
        target = tap.mean if form == "simple" else tap.current[0]
        if form == "strict":
            target = target.maximum(part.margin[:, None, None])
        spreads = []
        for element in target.flatten(1).T.tolist():
            mean = sum(element) / len(element)
            spreads.append(sum((value - mean) ** 2 for value in element) / len(element))
        losses.append(loss * len(spreads) / sum(spreads))
    shares = [stage_share(i, True) if form == "strict" else 1.0 for i in range(len(PLACES))]
    whole = distiller(Feature(form=form, on=PLACES, relative=True)).eval()
    found = float(whole(x[:4], LABELS)[1]["feature"])
    assert found == pytest.approx(sum(map(math.prod, zip(losses, shares, strict=True))), rel=1e-5)
    assert not any("spread" in name for name, _ in whole.named_parameters())


def test_any_place_may_be_none() -> None:
    """Where nothing matches, "any" is no loss and "all" is an error."""

    def bound(on: str) -> Distiller:
        return Distiller(
            narrow(), network("stages"), terms={"ce": CrossEntropy(), "feature": Feature(on=on)},
            encode=Direct(3), example=images("stages", 16), pairs=(),
        ).double()  # fmt: skip

    whole = bound("any")
    loss, parts = whole(images("stages"), LABELS)
    assert parts["feature"] == 0 and torch.equal(loss, parts["ce"])
    loss.backward()
    with pytest.raises(UserError, match=r"no stage of the student matches.*as logits"):
        bound("all")
    every, some = distiller(Feature(on="all")), distiller(Feature(on="any"))
    assert every.own["feature"].pairs == some.own["feature"].pairs


def test_the_teacher_keeps_its_state() -> None:
    model = scattered(Residual().double())
    whole = Distiller(
        student("residual", calibrated=True), model, terms={"f": Feature(form="strict")},
        encode=Direct(2), example=images("residual", 16),
    ).double().train()  # fmt: skip
    assert whole.teacher is not None
    before = {k: v.clone() for k, v in whole.teacher.state_dict().items()}
    loss, _ = whole(images("residual"), LABELS)
    loss.backward()
    assert all(torch.equal(v, before[k]) for k, v in whole.teacher.state_dict().items())
    assert not any(name.startswith("teacher") for name in whole.state_dict())


def test_the_distiller_shows_its_teacher() -> None:
    whole = distiller(Feature(form="strict", on=PLACES))
    assert whole.teacher is not None
    norm = whole.teacher.get_submodule("layer1.1")
    torch.testing.assert_close(
        whole.own["feature"][0].margin.double(), gaussian_margin(norm.bias, norm.weight)
    )
