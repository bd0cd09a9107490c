"""The Distiller: parts and sums, what belongs to it, teachers of every kind."""

from __future__ import annotations

import copy
from functools import partial
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from small import Stages, Untracked, gradients, images, network, scattered, student
from spikelet.convert import convert
from spikelet.distill import Distiller, freeze, match
from spikelet.encode import Direct
from spikelet.errors import UserError
from spikelet.execute import ann, bptt, rate
from spikelet.graph import capture
from spikelet.neuron import IF
from spikelet.terms import Affine, CrossEntropy, Hybrid, Logits, Relation
from spikelet.terms.steps import StepEnsemble, StepLogits

LABELS = torch.tensor([0, 1, 2, 0])
ALL = {
    "ce": CrossEntropy(),
    "logits": Logits(weight=0.5),
    "affine": Affine(weight=2.0),
    "relation": Relation(),
    "hybrid": Hybrid(weight=0.25),
}


def distiller(terms: dict | None = None, teacher: nn.Module | None = None, **fields) -> Distiller:
    fields = {"encode": Direct(2), "example": images("stages", 16)} | fields
    teacher = network("stages") if teacher is None else teacher
    net = fields.pop("student", None) or student("stages", calibrated=True)
    return Distiller(net, teacher, terms=ALL if terms is None else terms, **fields).double()


def test_parts_are_unweighted_and_sum_to_the_loss() -> None:
    whole = distiller().eval()
    loss, parts = whole(images("stages"), LABELS)
    assert list(parts) == list(ALL)
    total = sum(ALL[name].weight * float(value) for name, value in parts.items())
    assert float(loss.detach()) == pytest.approx(total, rel=1e-6)
    for name, term in ALL.items():
        alone = distiller({name: term}).eval()
        state = whole.state_dict()
        kept = [k for k in state if k.startswith(("student.", f"own.{name}."))]
        alone.load_state_dict({key: state[key] for key in kept})
        value = alone(images("stages"), LABELS)[1][name]
        torch.testing.assert_close(value, parts[name], rtol=1e-6, atol=1e-9)


def test_what_belongs_to_it() -> None:
    """Student and what terms learn; never the teacher, in no list and no mode."""
    model = network("stages").train()
    whole = distiller(teacher=model)
    names = [name for name, _ in whole.named_parameters()]
    assert all(name.startswith(("student.", "own.affine.", "own.hybrid.")) for name in names)
    assert {k.split(".")[0] for k in whole.state_dict()} == {"student", "own"}
    teacher = whole.teacher
    assert teacher is not model
    assert all(teacher is not module for module in whole.modules())
    for mode in (True, False):
        whole.train(mode)
        assert not any(module.training for module in teacher.modules())
    assert model.training
    assert all(p.requires_grad for p in model.parameters())
    ids = {id(p) for p in whole.parameters()}
    assert ids.isdisjoint(id(p) for p in [*model.parameters(), *teacher.parameters()])


def test_building_one_changes_neither_network() -> None:
    net, model = student("stages", calibrated=True).train(), network("stages").train()
    net.layer1.eval()
    states = [copy.deepcopy(m.state_dict()) for m in (net, model)]
    modes = [[m.training for m in x.modules()] for x in (net, model)]
    distiller(teacher=model, student=net)
    for x, state, mode in zip((net, model), states, modes, strict=True):
        assert [m.training for m in x.modules()] == mode
        assert all(torch.equal(v, state[k]) for k, v in x.state_dict().items())


def test_copies_and_states() -> None:
    whole = distiller()
    twin = copy.deepcopy(whole)
    other = distiller(student=student("stages", seed=4, calibrated=True))
    other.load_state_dict(whole.state_dict())
    x = images("stages")
    losses = [d.train()(x, LABELS)[0].detach() for d in (whole, twin, other)]
    assert torch.equal(losses[0], losses[1])
    torch.testing.assert_close(losses[2], losses[0], rtol=1e-6, atol=1e-9)
    assert twin.teacher is not whole.teacher
    with torch.no_grad():
        next(iter(twin.student.parameters())).add_(1.0)
    changed, same = twin.eval()(x, LABELS)[0], whole.eval()(x, LABELS)[0]
    torch.testing.assert_close(same, other.eval()(x, LABELS)[0], rtol=1e-6, atol=1e-9)
    assert not torch.equal(changed, same)


def test_it_learns() -> None:
    """A few steps with all terms lower the loss; everything trained moves."""
    whole = distiller().train()
    optimiser = torch.optim.Adam(whole.parameters(), 3e-3)
    x, losses = images("stages", 16), []
    labels = network("stages").eval()(x).argmax(1)
    before = {k: p.detach().clone() for k, p in whole.named_parameters()}
    for _ in range(12):
        optimiser.zero_grad()
        loss, _ = whole(x, labels)
        loss.backward()
        optimiser.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < 0.8 * losses[0]
    still = [k for k, p in whole.named_parameters() if torch.equal(p, before[k])]
    assert not still


@pytest.mark.parametrize("classes", [2, 5])
def test_unequal_class_counts_are_refused(classes: int) -> None:
    with pytest.raises(UserError, match=rf"{classes} classes, the student 3"):
        distiller({"logits": Logits()}, teacher=Stages(classes=classes).double())


NUMBERS = images("stages").double()
UNFIT: dict[str, tuple[Any, Any, str]] = {
    "bytes": (NUMBERS.byte(), LABELS, "`images`: expected normalised images as a tensor of float"),
    "no tensor": (NUMBERS.tolist(), LABELS, "`images`: .* got list"),
    "one image": (NUMBERS[0], LABELS[:1], "axes of a batch.*unsqueeze"),
    "with time": (
        NUMBERS.expand(2, *NUMBERS.shape),
        LABELS,
        "5; give them without an axis of time",
    ),
    "other channels": (NUMBERS[:, :1].repeat(1, 7, 1, 1), LABELS, "channels, it has 7"),
    "numbers as labels": (NUMBERS, LABELS.float(), "indices as int64, got torch.float32"),
    "one-hot labels": (NUMBERS, F.one_hot(LABELS), "one class index for each of the"),
    "fewer labels": (NUMBERS, LABELS[1:], "one class index for each of the"),
    "a list of labels": (NUMBERS, LABELS.tolist(), "class indices as a tensor, got list"),
    "another class": (NUMBERS, LABELS + 3, "class indices from 0 to 2, found"),
}


@pytest.mark.parametrize("name", UNFIT)
def test_a_batch_that_does_not_fit_is_one_sentence(name: str) -> None:
    x, labels, said = UNFIT[name]
    with pytest.raises(UserError, match=said):
        distiller().double()(x, labels)


def test_labels_that_count_in_no_loss_are_taken() -> None:
    labels = LABELS.clone()
    labels[0] = -100
    assert torch.isfinite(distiller().double()(NUMBERS, labels)[0])


def test_student_and_teacher_swapped_are_told() -> None:
    with pytest.raises(UserError, match="`student`: it has no neurons, and the teacher has"):
        Distiller(network("stages"), student("stages"), terms={"ce": CrossEntropy()})


def test_no_teacher_is_enough_for_labels() -> None:
    whole = Distiller(student("stages", calibrated=True), terms={"ce": CrossEntropy()})
    loss, parts = whole.double()(images("stages"), LABELS)
    assert whole.teacher is None
    assert set(parts) == {"ce"}
    loss.backward()


def test_an_ann_is_taught_by_the_same_class() -> None:
    model = network("stages")
    whole = Distiller(
        model, terms={"ce": CrossEntropy()}, execute=ann, encode=Direct(1), example=images("stages")
    ).train()
    loss, _ = whole(images("stages"), LABELS)
    expected = F.cross_entropy(network("stages").train()(images("stages")), LABELS)
    torch.testing.assert_close(loss.detach().double(), expected.detach(), rtol=1e-5, atol=1e-6)
    loss.backward()
    assert all(p.grad is not None for p in model.parameters())


def test_an_example_is_needed_once() -> None:
    with pytest.raises(UserError, match="example"):
        Distiller(student("stages"), terms={"ce": CrossEntropy()})


def test_no_terms_is_an_error_of_the_user() -> None:
    with pytest.raises(UserError, match="terms"):
        whole = Distiller(student("stages"), terms={}, example=images("stages"))
        whole(images("stages"), LABELS)


# ---- teachers of every kind -------------------------------------------------------------------


class Opaque(nn.Module):
    """`Stages` behind a branch on data: torch.fx cannot trace it."""

    def __init__(self) -> None:
        super().__init__()
        self.net = network("stages")

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x) if x.sum() > -1e9 else x


def test_a_teacher_that_cannot_be_traced() -> None:
    """Logits work; taps are its modules' outputs, named by the user; cuts are refused."""
    model = Opaque()
    named = {"logits": Logits(), "relation": Relation(on=["layer2=net.layer2"])}
    whole = distiller(named, teacher=model).eval()
    _, parts = whole(images("stages"), LABELS)
    _, same = distiller({"logits": Logits(), "relation": Relation(on=["layer2"])}).eval()(
        images("stages"), LABELS
    )
    for name in named:
        torch.testing.assert_close(parts[name], same[name], rtol=1e-6, atol=1e-9)
    with pytest.raises(UserError, match=r"cannot trace it.*logits"):
        distiller({"hybrid": Hybrid(on=["layer2=net.layer2"])}, teacher=model)
    with pytest.raises(UserError, match="name places"):
        distiller({"relation": Relation()}, teacher=model)
    assert not any(m._forward_hooks for m in whole.teacher.modules())


def test_a_potential_of_a_teacher_that_cannot_be_traced_is_refused() -> None:
    with pytest.raises(UserError):
        distiller({"a": Affine(on=["layer2=net.layer2"], feature="potential")}, teacher=Opaque())


def test_a_spiking_teacher() -> None:
    teacher = student("stages", calibrated=True)
    whole = distiller({"logits": Logits(), "affine": Affine(on="all")}, teacher=teacher).eval()
    loss, parts = whole(images("stages"), LABELS)
    assert float(parts["logits"]) == pytest.approx(0, abs=1e-6)
    assert float(parts["affine"]) < 1e-2
    assert all(not p.requires_grad for p in whole.teacher.parameters())
    loss.backward()


@pytest.mark.parametrize(
    "terms",
    [
        {"ce": CrossEntropy()},
        {"logits": Logits()},
        {"relation": Relation(), "affine": Affine(on="all")},
        {"hybrid": Hybrid()},
    ],
    ids=lambda terms: "-".join(terms),
)
@pytest.mark.parametrize("given", ["model", "graph"])
def test_a_joint_teacher_learns_from_labels_only(terms: dict, given: str) -> None:
    """Its gradient is that of its own cross entropy; it is trained in training mode, once.

    A term that runs the teacher's suffix on the student's features is refused.
    """
    model = network("stages").train()
    if given == "graph":
        model = capture(model)
    pairs = [(place, place) for place in ("layer1", "relu", "layer3")]
    if "hybrid" in terms:
        with pytest.raises(UserError, match="joint"):
            distiller(terms, teacher=model, joint=True, pairs=pairs)
        return
    whole = distiller(terms, teacher=model, joint=True, pairs=pairs)
    assert all(m.training for m in model.modules()), "building leaves the teacher's mode"
    whole.train()
    loss, parts = whole(images("stages"), LABELS)
    assert set(parts) == {*terms, "teacher"}
    found = gradients(whole, loss)
    prefix = "joint."
    ours = {k.removeprefix(prefix): g for k, g in found.items() if k.startswith(prefix)}
    reference = network("stages").train()
    own = F.cross_entropy(reference(images("stages")), LABELS)
    expected = gradients(reference, own)
    assert ours.keys() == expected.keys()
    for key, value in expected.items():
        torch.testing.assert_close(ours[key], value, rtol=1e-5, atol=1e-7, msg=key)
    assert float(parts["teacher"]) == pytest.approx(float(own.detach()), rel=1e-5)
    for key, value in reference.state_dict().items():
        torch.testing.assert_close(model.state_dict()[key], value, msg=key)


def test_nothing_of_the_student_reaches_a_joint_teacher() -> None:
    model = capture(network("stages"))
    whole = distiller({"logits": Logits(), "ce": CrossEntropy()}, teacher=model, joint=True)
    alone = distiller({"logits": Logits(), "ce": CrossEntropy()}).train()
    _, parts = whole.eval()(images("stages"), LABELS)
    _, same = alone.eval()(images("stages"), LABELS)
    torch.testing.assert_close(parts["logits"], same["logits"], rtol=1e-6, atol=1e-9)


ON_LOGITS = {
    "ce": CrossEntropy(weight=0.1),
    "logits": Logits(weight=0.9, tau=4.0),
    "two temperatures": Logits(tau=4.0, student_tau=2.0),
}
ON_STEPS = {
    "each": CrossEntropy(per_step=True),
    "step logits": StepLogits(weight=0.2),
    "step ensemble": StepEnsemble(weight=0.5),
}


@pytest.mark.parametrize("kind", ["ann", "spiking"])
@pytest.mark.parametrize(
    ("terms", "execute"),
    [(ON_LOGITS, rate), (ON_LOGITS, bptt), (ON_LOGITS | ON_STEPS, bptt)],
    ids=["rate", "bptt", "bptt-steps"],
)
def test_terms_on_logits_beside_a_joint_teacher(kind: str, terms: dict, execute) -> None:
    """The teacher's gradient is its own labels' alone, the student's that of a frozen teacher."""
    spiking = kind == "spiking"
    model = student("stages", seed=2) if spiking else network("stages", seed=2)
    fields = {"pairs": [], "execute": execute}
    whole = distiller(terms, copy.deepcopy(model), joint=True, **fields).eval()
    loss, parts = whole(images("stages"), LABELS)
    found = gradients(whole, loss)
    model = model.eval()
    z = rate(model, Direct(2)(images("stages"))).mean_logits if spiking else model(images("stages"))
    own = gradients(model, F.cross_entropy(z, LABELS))
    still = distiller(terms, model, **fields).eval()
    fixed, same = still(images("stages"), LABELS)
    expected = gradients(still, fixed) | {f"joint.{k}": g for k, g in own.items()}
    assert found.keys() == expected.keys()
    for key, value in expected.items():
        torch.testing.assert_close(found[key], value, rtol=1e-5, atol=1e-7, msg=key)
    for name, value in same.items():
        torch.testing.assert_close(parts[name], value)


# ---- pairs ------------------------------------------------------------------------------------


def test_pairs_of_equal_networks_are_their_stages() -> None:
    whole = distiller({"relation": Relation(on="all")})
    assert whole.pairs == (("layer1_2", "layer1_2"), ("relu", "relu"), ("layer3_2", "layer3_2"))


def test_pairs_of_unequal_networks_have_equal_resolution() -> None:
    class Other(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stem = nn.Sequential(nn.Conv2d(2, 3, 3, padding=1), nn.ReLU())
            self.shrink = nn.Sequential(nn.Conv2d(3, 5, 4, 4), nn.ReLU())
            self.linear = nn.Linear(5, 3)

        def forward(self, x: Tensor) -> Tensor:
            return self.linear(self.shrink(self.stem(x)).mean((2, 3)))

    net = convert(scattered(Other().double()), IF())
    pairs = match(net, freeze(network("stages")), images("stages"))
    assert pairs == (("stem_1", "layer1_2"), ("shrink_1", "layer3_2"))
    assert match(net, None, images("stages")) == ()
    assert match(net, Opaque(), images("stages")) == ()


@pytest.mark.parametrize("function", [False, True])
def test_a_teacher_whose_norm_refuses_a_single_image(function: bool) -> None:
    """Two are shown where there are two, else a norm that is a layer is left out."""
    teacher, x = Untracked(function), torch.randn(6, 6)
    net = convert(Untracked(), IF(), calibrate=x)
    whole = Distiller(net, teacher, terms={"relation": Relation()}, encode=Direct(2), example=x)
    assert whole.pairs == (("relu", "relu"),)
    loss, _ = whole.train()(x, LABELS.new_tensor([0, 1, 2, 0, 1, 2]))
    assert bool(loss.isfinite())
    if not function:
        assert match(net, freeze(teacher), x[:1]) == whole.pairs


def test_pairs_can_be_named() -> None:
    pairs = [("layer1", "layer1"), ("layer2", "layer2")]
    whole = distiller({"affine": Affine(on="all"), "hybrid": Hybrid()}, pairs=pairs)
    assert whole.pairs == tuple(pairs)
    assert set(whole._student_taps) == {"layer1", "layer2"}


# ---- options ----------------------------------------------------------------------------------


def test_divided_gradients_reach_the_student_only_once() -> None:
    """With cross entropy alone the student's gradient is divided by T, the value is not."""
    found, losses = [], []
    for execute in (rate, partial(rate, divide_by_steps=True)):
        whole = distiller({"ce": CrossEntropy()}, execute=execute).train()
        loss, _ = whole(images("stages"), LABELS)
        losses.append(float(loss.detach()))
        found.append(gradients(whole, loss))
    assert losses[0] == losses[1]
    for key in found[0]:
        torch.testing.assert_close(2 * found[1][key], found[0][key], rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("execute", [rate, bptt])
def test_autocast(execute: object) -> None:
    net = convert(network("stages").float(), IF(), calibrate=images("stages", 16).float())
    whole = Distiller(
        net, network("stages").float(), terms=ALL, execute=execute, encode=Direct(2)
    ).train()
    with torch.autocast("cpu", torch.bfloat16):
        loss, parts = whole(images("stages").float(), LABELS)
    assert loss.dtype == torch.float32
    assert all(bool(torch.isfinite(g).all()) for g in gradients(whole, loss).values())
    assert all(bool(torch.isfinite(v)) for v in parts.values())


@pytest.mark.parametrize("weight", [-1.0, float("nan"), float("inf")])
def test_a_weight_is_a_number_from_0_on(weight: float) -> None:
    with pytest.raises(UserError, match=r"terms.logits.weight"):
        distiller({"ce": CrossEntropy(), "logits": Logits(weight=weight)})


@pytest.mark.parametrize("progress", [0.0, 0.25, 1.0])
def test_a_term_that_fades_counts_less_and_less(progress: float) -> None:
    terms = {"ce": CrossEntropy(), "logits": Logits(weight=0.5, fade=1.0), "affine": Affine(fade=2)}
    whole = distiller(terms).eval()
    for given in (progress, torch.tensor(progress, dtype=torch.float64)):
        loss, parts = whole(images("stages"), LABELS, progress=given)
        left = 1 - progress
        expected = parts["ce"] + 0.5 * left * parts["logits"] + left**2 * parts["affine"]
        torch.testing.assert_close(loss.detach(), expected)
    with pytest.raises(UserError, match=r"terms.logits.fade"):
        distiller({"ce": CrossEntropy(), "logits": Logits(fade=-1.0)})
    with pytest.raises(UserError, match=r"terms = ce, logits.*every term fades"):
        distiller({"ce": CrossEntropy(fade=1.0), "logits": Logits(fade=2.0)})
