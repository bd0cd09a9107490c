"""One table over every term: what each must do, whatever its mathematics."""

from __future__ import annotations

import copy
import dataclasses
import itertools

import pytest
import torch
from torch import nn

from small import Stages, gradients, images, network, scattered, student
from spikelet.convert import convert
from spikelet.distill import Distiller
from spikelet.encode import Direct
from spikelet.errors import UserError
from spikelet.execute import ann, bptt, rate
from spikelet.graph import capture
from spikelet.neuron import IF
from spikelet.terms import Affine, CrossEntropy, Feature, Hybrid, Logits, Relation, Semantic, Term
from spikelet.terms.steps import SpikeWindows, StepEnsemble, StepLogits

TERMS: dict[str, Term] = {
    "cross entropy": CrossEntropy(),
    "cross entropy, smoothed": CrossEntropy(weight=0.5, label_smoothing=0.1),
    "logits": Logits(),
    "logits, two temperatures": Logits(tau=4.0, student_tau=2.0),
    "affine": Affine(),
    "affine, all": Affine(on="all"),
    "affine, low rank": Affine(on="inner", rank=2),
    "affine, potential": Affine(on=["layer1", "layer2"], feature="potential"),
    "affine, channels": Affine(on="all", normalise="channel"),
    "affine, plain": Affine(normalise="none", rank=1),
    "relation": Relation(),
    "relation, pooled": Relation(on="all", pool=2),
    "relation, centred": Relation(weight=1.0, form="centred"),
    "relation, similarity-preserving": Relation(weight=3000.0, form="similarity-preserving"),
    "relation, distance": Relation(weight=25.0, form="distance", pool=0),
    "relation, angle": Relation(weight=50.0, form="angle"),
    "feature": Feature(),
    "feature, last": Feature(on="last", connector="conv-norm"),
    "feature, strict": Feature(form="strict", on=["layer1", "layer3"]),
    "feature, strict, plain": Feature(form="strict", stage_weights=False, connector="conv"),
    "semantic": Semantic(until=1.0),
    "semantic, all": Semantic(on="all", pool=2, mapping="conv", until=0.7),
    "hybrid": Hybrid(),
    "hybrid, sampled": Hybrid(sample=True),
    "hybrid, convolution": Hybrid(on=["layer1", "layer3"], mapping="conv"),
    "hybrid, norm": Hybrid(mapping="conv-norm-relu", ce=0.0),
    "hybrid, identity": Hybrid(mapping="identity", kl=0.0),
    "hybrid, curriculum": Hybrid(on="all", curriculum=True, sample=True),
    "hybrid, weighted": Hybrid(on=["layer2"], branch_weights=(0.5,)),
}
PER_STEP: dict[str, Term] = {
    "cross entropy, per step": CrossEntropy(per_step=True),
    "relation, time kept": Relation(on=["layer1", "layer3"], keep_time=True),
    "step logits": StepLogits(),
    "step ensemble": StepEnsemble(),
    "step ensemble, correct": StepEnsemble(weight=0.5, target="correct"),
    "spike windows": SpikeWindows(),
    "spike windows, softmax": SpikeWindows(on="last", window=1, compare="softmax"),
}
NAMES = ("logits", "affine", "relation", "feature", "semantic", "hybrid")
ZERO = [name for name in TERMS if name.startswith(NAMES)]
ZERO = [name for name in ZERO if "strict" not in name]  # compares means with pre-activations
LABELS = torch.tensor([0, 1, 2, 0])


def bound(term: Term, execute=rate, narrow: bool = False, seed: int = 0) -> Distiller:
    """A Distiller with this one term, after the same random numbers every time."""
    if narrow:
        torch.manual_seed(1)
        net = convert(scattered(Stages(width=3).double()), IF(), calibrate=images("stages", 16))
    else:
        net = student("stages", calibrated=True)
    spiking = isinstance(term, SpikeWindows)
    teacher = student("stages", seed=1, calibrated=True) if spiking else network("stages")
    torch.manual_seed(seed)
    return Distiller(
        net, teacher, terms={"term": term}, execute=execute, encode=Direct(2),
        example=images("stages", 16),
    ).double()  # fmt: skip


def generator() -> torch.Generator:
    return torch.Generator().manual_seed(0)


@pytest.mark.parametrize(
    ("name", "execute"),
    [*itertools.product(TERMS, (rate, bptt)), *itertools.product(PER_STEP, (bptt,))],
)
def test_common_table(name: str, execute) -> None:
    """Scalar, finite, weighted, differentiable; copies and states give the same."""
    term = {**TERMS, **PER_STEP}[name]
    whole = bound(term, execute).eval()
    assert whole.teacher is not None
    before = copy.deepcopy(whole.teacher.state_dict())
    x = images("stages")
    loss, parts = whole(x, LABELS, 0.5, generator())
    assert (loss.shape, list(parts)) == ((), ["term"])
    assert bool(torch.isfinite(loss))
    assert not parts["term"].requires_grad
    torch.testing.assert_close(loss.detach(), term.weight * parts["term"])
    found = gradients(whole, loss)
    assert all(bool(torch.isfinite(g).all()) for g in found.values())
    assert float(found["student.layer1.0.weight"].abs().max()) > 0
    assert all(torch.equal(v, before[k]) for k, v in whole.teacher.state_dict().items())
    for other in (copy.deepcopy(whole), bound(term, execute, seed=9).eval()):
        other.load_state_dict(whole.state_dict())
        again, _ = other(x, LABELS, 0.5, generator())
        torch.testing.assert_close(again, loss, rtol=1e-6, atol=1e-9)
        for key, value in gradients(other, again).items():
            torch.testing.assert_close(value, found[key], rtol=1e-5, atol=1e-8, msg=key)


@pytest.mark.parametrize("name", [n for n in (*TERMS, *PER_STEP) if n != "hybrid, identity"])
def test_unequal_widths(name: str) -> None:
    """A narrower student is paired by stages; a mapping is learned where one is needed."""
    execute = bptt if name in PER_STEP else rate
    whole = bound({**TERMS, **PER_STEP}[name], execute, narrow=True).train()
    loss, _ = whole(images("stages"), LABELS, 0.0, generator())
    found = gradients(whole, loss)
    assert float(found["student.layer1.0.weight"].abs().max()) > 0


@pytest.mark.parametrize("name", TERMS)
def test_vectors(name: str) -> None:
    """Networks without feature maps, with as many stages as activations."""
    term = TERMS[name]
    if isinstance(term, (Affine, Feature, Hybrid)) and not isinstance(term.on, str):
        term = dataclasses.replace(term, on=["2"])
    whole = Distiller(
        student("mlp"), network("mlp"), terms={"term": term}, encode=Direct(2),
        example=images("mlp", 16),
    ).double()  # fmt: skip
    loss, _ = whole(images("mlp"), LABELS, 0.0, generator())
    assert bool(torch.isfinite(loss))
    assert float(gradients(whole, loss)["student.0.weight"].abs().max()) > 0


@pytest.mark.parametrize("name", ZERO)
def test_a_copy_of_the_teacher_has_nothing_to_learn(name: str) -> None:
    """The teacher distilled into its own copy: feature, relation and KL losses vanish.

    A projector's fit is shrunk by its ridge, so that a thousandth may be left.
    """
    term = TERMS[name]
    if isinstance(term, Hybrid):
        term = dataclasses.replace(term, ce=0.0, kl=1.0, mapping="auto")
    if isinstance(term, Logits):
        term = dataclasses.replace(term, student_tau=None)
    if isinstance(term, Affine):
        term = dataclasses.replace(term, rank=None)
    x = images("stages", 16)
    whole = Distiller(
        capture(network("stages")), network("stages"), terms={"term": term}, execute=ann,
        encode=Direct(1), example=x,
    ).double().eval()  # fmt: skip
    _, parts = whole(x, torch.zeros(16, dtype=torch.int64), 0.0, generator())
    assert abs(float(parts["term"])) < (3e-3 if isinstance(term, (Affine, Feature)) else 1e-6)


@pytest.mark.parametrize("name", ZERO)
def test_a_taught_term_wants_a_teacher(name: str) -> None:
    with pytest.raises(UserError, match=r"teacher = None.*term 'term' needs a teacher"):
        Distiller(student("stages"), terms={"term": TERMS[name]}, example=images("stages"))


@pytest.mark.parametrize("name", [*TERMS, *PER_STEP])
def test_terms_are_frozen_values(name: str) -> None:
    term = {**TERMS, **PER_STEP}[name]
    assert isinstance(term, Term)
    assert term.weight > 0
    with pytest.raises(dataclasses.FrozenInstanceError):
        term.weight = 3.0
    assert copy.deepcopy(term) == term
    assert dataclasses.replace(term) == term
    assert type(term).__doc__
    assert term.coupled == isinstance(term, (Relation, Semantic))
    assert term.taught != isinstance(term, (CrossEntropy, StepEnsemble))
    assert (term.time == "steps") == (name in PER_STEP)


@pytest.mark.parametrize("make", [Affine, Relation, Feature, Hybrid])
def test_places(make: type[Term]) -> None:
    """One place by its name, several, pairs of names; a misspelt choice is answered."""
    for on in ("layer2", ["layer2"], "layer2=layer2", ["layer2=layer2", "layer1"]):
        whole = bound(make(on=on)).eval()
        assert "layer2" in whole._student_taps, on
        assert bool(torch.isfinite(whole(images("stages"), LABELS)[0]))
    with pytest.raises(UserError, match="did you mean last"):
        bound(make(on="lst"))
    with pytest.raises(UserError, match="layer9"):
        bound(make(on=["layer9"]))


@pytest.mark.parametrize("make", [Affine, Feature, Hybrid])
def test_places_of_unequal_resolution_are_refused(make: type[Term]) -> None:
    with pytest.raises(UserError, match=r"layer1 has positions \(8, 8\).*layer2 \(4, 4\)"):
        bound(make(on=["layer1=layer2"]))


@pytest.mark.parametrize("name", PER_STEP)
def test_per_step_terms_name_the_way_that_gives_steps(name: str) -> None:
    with pytest.raises(UserError, match="bptt"):
        bound(PER_STEP[name], rate)
    assert isinstance(bound(PER_STEP[name], bptt), nn.Module)


def test_all_but_the_last_of_a_single_place_is_none() -> None:
    """The sentence names the one there is, and how to take it."""
    with pytest.raises(UserError, match=r"there is one alone, layer1; give --terms.hybrid.on all"):
        Hybrid().taps((("layer1", "body1"),))
    assert Hybrid(on="all").taps((("layer1", "body1"),)).student == {"layer1": ("mean",)}
