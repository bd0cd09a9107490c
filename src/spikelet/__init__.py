"""Accurate spiking networks with one to four time steps, distilled from trained ANNs.

Every public name is imported on first use, so `import spikelet` loads neither torch nor numpy.
"""

from __future__ import annotations

import sys
from importlib import import_module
from types import ModuleType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from spikelet import measure as measure
    from spikelet.compare import Grid as Grid
    from spikelet.compare import compare as compare
    from spikelet.convert import convert as convert
    from spikelet.distill import Distiller as Distiller
    from spikelet.encode import Direct as Direct
    from spikelet.encode import Latency as Latency
    from spikelet.encode import Mixed as Mixed
    from spikelet.encode import Poisson as Poisson
    from spikelet.encode import repeat as repeat
    from spikelet.errors import UserError as UserError
    from spikelet.execute import ann as ann
    from spikelet.execute import bptt as bptt
    from spikelet.execute import rate as rate
    from spikelet.neuron import IF as IF
    from spikelet.neuron import LIF as LIF
    from spikelet.neuron import PLIF as PLIF
    from spikelet.quantise import quantised as quantised
    from spikelet.recipe import Recipe as Recipe
    from spikelet.recipe import Training as Training
    from spikelet.terms import Affine as Affine
    from spikelet.terms import CrossEntropy as CrossEntropy
    from spikelet.terms import Feature as Feature
    from spikelet.terms import Hybrid as Hybrid
    from spikelet.terms import Logits as Logits
    from spikelet.terms import Relation as Relation
    from spikelet.terms import Semantic as Semantic
    from spikelet.terms import SpikeWindows as SpikeWindows
    from spikelet.terms import StepEnsemble as StepEnsemble
    from spikelet.terms import StepLogits as StepLogits
    from spikelet.terms import Term as Term
    from spikelet.trace import Trace as Trace
    from spikelet.train.fit import fit as fit
    from spikelet.train.load import load as load

__version__ = "0.1.0"

# public name -> "module:attribute"; a target without a colon is the module itself
_PUBLIC = {
    "IF": "spikelet.neuron:IF",
    "LIF": "spikelet.neuron:LIF",
    "PLIF": "spikelet.neuron:PLIF",
    "convert": "spikelet.convert:convert",
    "ann": "spikelet.execute:ann",
    "bptt": "spikelet.execute:bptt",
    "rate": "spikelet.execute:rate",
    "quantised": "spikelet.quantise:quantised",
    "Trace": "spikelet.trace:Trace",
    "repeat": "spikelet.encode:repeat",
    "Direct": "spikelet.encode:Direct",
    "Poisson": "spikelet.encode:Poisson",
    "Latency": "spikelet.encode:Latency",
    "Mixed": "spikelet.encode:Mixed",
    "Distiller": "spikelet.distill:Distiller",
    "CrossEntropy": "spikelet.terms:CrossEntropy",
    "Logits": "spikelet.terms:Logits",
    "Affine": "spikelet.terms:Affine",
    "Relation": "spikelet.terms:Relation",
    "Semantic": "spikelet.terms:Semantic",
    "Hybrid": "spikelet.terms:Hybrid",
    "Feature": "spikelet.terms:Feature",
    "StepLogits": "spikelet.terms:StepLogits",
    "StepEnsemble": "spikelet.terms:StepEnsemble",
    "SpikeWindows": "spikelet.terms:SpikeWindows",
    "Term": "spikelet.terms:Term",
    "Recipe": "spikelet.recipe:Recipe",
    "Training": "spikelet.recipe:Training",
    "UserError": "spikelet.errors:UserError",
    "fit": "spikelet.train.fit:fit",
    "load": "spikelet.train.load:load",
    "Grid": "spikelet.compare:Grid",
    "compare": "spikelet.compare:compare",
    "measure": "spikelet.measure",
}


class _Face(ModuleType):
    """The package, keeping `spikelet.convert` the verb once the module of that name is loaded.

    Importing a submodule binds it on its package, which would hide the public function of the
    same name; such a binding is dropped. The module stays reachable as `spikelet.convert` in
    `sys.modules`, so `from spikelet.convert import ...` works as ever.
    """

    def __setattr__(self, name: str, value: object) -> None:
        hidden = ":" in _PUBLIC.get(name, "") and isinstance(value, ModuleType)
        if not hidden:
            super().__setattr__(name, value)


def __getattr__(name: str) -> Any:
    if name not in _PUBLIC:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    module, _, attribute = _PUBLIC[name].partition(":")
    loaded = import_module(module)
    value = getattr(loaded, attribute) if attribute else loaded
    setattr(sys.modules[__name__], name, value)
    return value


def __dir__() -> list[str]:
    return sorted({*_PUBLIC, "__version__", "__doc__", "__file__", "__name__", "__path__"})


sys.modules[__name__].__class__ = _Face
