"""What a run is: plain data, stored as JSON; every choice is a spec `{"kind": name, **fields}`."""

from spikelet.recipe.methods import (
    DEFAULT_METHOD,
    DITHER,
    METHODS,
    another_kind,
    completed,
    default_recipe,
    gentler,
    terms_of,
)
from spikelet.recipe.recipe import Recipe, Training
from spikelet.recipe.specs import MISSING, build, import_path, kind_of, plain, resolve, validated
from spikelet.recipe.tables import (
    AUGMENTS,
    DATA,
    ENCODERS,
    EXECUTES,
    MODELS,
    NEURONS,
    SURROGATES,
    TERMS,
    Spec,
    Table,
)

__all__ = [
    "AUGMENTS",
    "DATA",
    "DEFAULT_METHOD",
    "DITHER",
    "ENCODERS",
    "EXECUTES",
    "METHODS",
    "MISSING",
    "MODELS",
    "NEURONS",
    "SURROGATES",
    "TERMS",
    "Recipe",
    "Spec",
    "Table",
    "Training",
    "another_kind",
    "build",
    "completed",
    "default_recipe",
    "gentler",
    "import_path",
    "kind_of",
    "plain",
    "resolve",
    "terms_of",
    "validated",
]
