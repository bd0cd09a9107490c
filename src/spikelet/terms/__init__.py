"""Terms: the losses of distillation, one file per family."""

from spikelet.terms.affine import Affine
from spikelet.terms.feature import Feature
from spikelet.terms.hybrid import Hybrid
from spikelet.terms.logits import CrossEntropy, Logits
from spikelet.terms.relation import Relation
from spikelet.terms.semantic import Semantic
from spikelet.terms.steps import SpikeWindows, StepEnsemble, StepLogits
from spikelet.terms.term import Binding, Reads, Step, Term

__all__ = [
    "Affine",
    "Binding",
    "CrossEntropy",
    "Feature",
    "Hybrid",
    "Logits",
    "Reads",
    "Relation",
    "Semantic",
    "SpikeWindows",
    "Step",
    "StepEnsemble",
    "StepLogits",
    "Term",
]
