"""The signatures of the nouns, word for word: a promise that changes with a log entry only."""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Callable

import pytest

import spikelet
from spikelet.encode import Direct
from spikelet.neuron import LIF, Neuron, Scan
from spikelet.norm import estimate_norms
from spikelet.terms import Affine, CrossEntropy, Hybrid, Logits, Relation
from spikelet.terms.term import Binding, Reads, Step, Term
from spikelet.trace import FIELDS, Tap, Trace


def signature(function: Callable) -> str:
    """Names, kinds and defaults of the parameters, without their types."""
    given = inspect.signature(function)
    empty = inspect.Parameter.empty
    plain = [p.replace(annotation=empty) for p in given.parameters.values()]
    return str(given.replace(parameters=plain, return_annotation=inspect.Signature.empty))


SIGNATURES = {
    "Neuron": "(threshold=1.0, initial=0.0, learn_threshold=False)",
    "Neuron.start": "(self, current)",
    "Neuron.step": "(self, state, current)",
    "Neuron.forward": "(self, currents)",
    "IF": (
        "(threshold=1.0, initial=0.0, learn_threshold=False, reset='soft', v_reset=0.0, "
        "detach=None, surrogate=None, signed=False, dither=0.0, delay=0, step_bias=False)"
    ),
    "LIF": (
        "(tau=2.0, input_decay=False, threshold=1.0, initial=0.0, learn_threshold=False, "
        "reset='soft', v_reset=0.0, detach=None, surrogate=None, signed=False, dither=0.0)"
    ),
    "ann": "(net, x, taps=())",
    "bptt": "(net, x, taps=(), *, fuse=False)",
    "rate": ("(net, x, taps=(), *, divide_by_steps=False, fuse=False, windows=1, order='layers')"),
    "Term.taps": "(self, pairs)",
    "Term.init": "(self, binding)",
    "Term.__call__": "(self, own, step)",
    "Distiller": (
        "(student, teacher=None, *, terms, execute=RATE, encode=None, pairs=None, example=None, "
        "joint=False, paired=None, labels=None, shown=None)"
    ),
    "Distiller.forward": "(self, images, labels, progress=0.0, generator=None, shown=None)",
    "convert": "(model, neuron=None, *, steps=4, calibrate=None, sweeps=2)",
    "repeat": "(images, steps)",
    "Direct": "(steps=4, sliding=0.0)",
    "Direct.__call__": "(self, images)",
    "CrossEntropy": "(weight=1.0, label_smoothing=0.0, per_step=False, *, fade=0.0)",
    "Logits": "(weight=1.0, tau=3.0, student_tau=None, *, fade=0.0)",
    "Affine": (
        "(weight=1.0, on='last', feature='spikes', rank=None, normalise='energy', *, fade=0.0)"
    ),
    "Feature": (
        "(weight=1.0, on='all', form='simple', stage_weights=True, connector='auto', "
        "relative=False, *, fade=0.0)"
    ),
    "Semantic": "(weight=10.0, on='last', pool=1, mapping='auto', until=0.5, *, fade=0.0)",
    "Relation": "(weight=10.0, on='last', pool=1, form='cosine', keep_time=False, *, fade=0.0)",
    "Hybrid": (
        "(weight=1.0, on='inner', ce=1.0, kl=1.0, tau=3.0, mapping='auto', sample=False, "
        "curriculum=False, branch_weights=None, *, fade=0.0)"
    ),
    "StepLogits": "(weight=1.0, tau=3.0, teacher='mean', *, fade=0.0)",
    "StepEnsemble": "(weight=1.0, tau=3.0, target='mean', *, fade=0.0)",
    "SpikeWindows": "(weight=1.0, on='all', window=2, stride=1, compare='sum', *, fade=0.0)",
    "compare": "(grid, out, *, jobs=1, devices=None, budget_minutes=None, console=None)",
    "quantised": "(net, x, taps=())",
    "estimate_norms": "(net, batches, run)",
    "UserError": "(argument, message, fix)",
}
THINGS: dict[str, object] = {
    "Neuron": Neuron, "Term": Term, "IF": spikelet.IF, "LIF": LIF, "ann": spikelet.ann,
    "bptt": spikelet.bptt, "rate": spikelet.rate, "Distiller": spikelet.Distiller,
    "convert": spikelet.convert, "repeat": spikelet.repeat, "Direct": Direct,
    "CrossEntropy": CrossEntropy, "Logits": Logits, "Affine": Affine, "Relation": Relation,
    "Hybrid": Hybrid, "UserError": spikelet.UserError, "Feature": spikelet.Feature,
    "StepLogits": spikelet.StepLogits, "StepEnsemble": spikelet.StepEnsemble,
    "SpikeWindows": spikelet.SpikeWindows, "Semantic": spikelet.Semantic,
    "compare": spikelet.compare,
    "quantised": spikelet.quantised, "estimate_norms": estimate_norms,
}  # fmt: skip

FIELDS_OF = {
    Tap: ("mean", "spikes", "current", "potential"),
    Trace: ("logits", "taps"),
    Step: ("student", "teacher", "labels", "progress", "generator"),
    Binding: ("student", "teacher", "pairs", "suffix", "teacher_net"),
    Reads: ("student", "teacher"),
    spikelet.Grid: (
        *("data", "methods", "steps", "seeds", "teacher", "model", "epochs", "batch"),
        *("teacher_epochs", "tune", "tune_rates", "tune_epochs", "overrides"),
    ),
}


@pytest.mark.parametrize("name", SIGNATURES)
def test_signature(name: str) -> None:
    noun, _, method = name.partition(".")
    thing = getattr(THINGS[noun], method) if method else THINGS[noun]
    found = signature(thing).replace(repr(spikelet.rate), "RATE")
    assert found == SIGNATURES[name]


@pytest.mark.parametrize("noun", FIELDS_OF, ids=lambda noun: noun.__name__)
def test_fields(noun: type) -> None:
    assert tuple(f.name for f in dataclasses.fields(noun)) == FIELDS_OF[noun]
    assert noun.__dataclass_params__.frozen


def test_names() -> None:
    assert FIELDS == ("mean", "spikes", "current", "potential")
    assert Scan._fields == ("spikes", "potential")
    assert isinstance(Trace.mean_logits, property)
    assert isinstance(Binding.classifier, property)
    assert isinstance(Step.taught, property)
    assert isinstance(Term.time, property)
    assert isinstance(Term.fixed, property)
    assert (Term.coupled, Term.taught) == (False, True)
    assert Neuron.elementwise is True
    assert Neuron.delay == 0
    assert Term.fade == 0
    assert spikelet.rate.gives == spikelet.quantised.gives == "mean"
    assert spikelet.quantised.unrolled is False
    assert issubclass(spikelet.UserError, ValueError)


@pytest.mark.parametrize(
    "term",
    [
        *(CrossEntropy, Logits, Affine, Relation, Hybrid, spikelet.Feature),
        *(spikelet.StepLogits, spikelet.StepEnsemble, spikelet.SpikeWindows),
    ],
)
def test_terms_are_frozen_and_final(term: type) -> None:
    assert term.__dataclass_params__.frozen
    assert term.__final__
    assert dataclasses.fields(term)[0].name == "weight"
