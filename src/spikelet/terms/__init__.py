"""Terms: the losses of distillation, one file per family."""

from spikelet.terms.features import Affine, Relation
from spikelet.terms.hybrid import Hybrid
from spikelet.terms.logits import CrossEntropy, Logits
from spikelet.terms.term import Binding, Reads, Step, Term

__all__ = [
    "Affine",
    "Binding",
    "CrossEntropy",
    "Hybrid",
    "Logits",
    "Reads",
    "Relation",
    "Step",
    "Term",
]
