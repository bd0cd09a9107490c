"""Recipes: round trips, specs built, and the sentence for every way to get one wrong."""

from __future__ import annotations

import dataclasses
import functools
import json
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

from spikelet.errors import UserError
from spikelet.recipe import (
    AUGMENTS,
    DATA,
    ENCODERS,
    EXECUTES,
    MODELS,
    NEURONS,
    SURROGATES,
    TERMS,
    Recipe,
    Training,
    build,
    completed,
    default_recipe,
    resolve,
)


@dataclass(frozen=True)
class Thing:
    """Something to describe by a spec."""

    size: tuple[int, int]
    weight: float = 1.0
    name: str | None = None


class Plain:
    """A class whose fields are its constructor's parameters."""

    def __init__(self, count: int = 2, surrogate: object = None) -> None:
        self.count, self.surrogate = count, surrogate


def run(net: object, x: object, taps: object = (), windows: int = 1) -> tuple[object, ...]:
    """Shaped like an executor."""
    return net, x, taps, windows


THING, PLAIN, RUN = (f"{__name__}:{name}" for name in ("Thing", "Plain", "run"))


def distil() -> Recipe:
    """A recipe with a value of every kind in it."""
    return Recipe(
        "distill",
        {"kind": "cifar10", "protocol": "batch5", "root": Path("data")},
        model={"kind": "timm:resnet18", "size": (3, 32, 32)},
        teacher={"run": "runs/teacher"},
        method="affine",
        neuron={"kind": "LIF", "tau": 1.25, "surrogate": {"kind": "triangle"}},
        terms={"ce": {"kind": "cross-entropy"}, "own": {"kind": "my.package:Term", "weight": 2.0}},
        execute={"kind": "rate", "windows": 2},
        augment=({"kind": "crop", "padding": 4}, {"kind": "flip"}),
        training=Training(optimiser="adamw", learning_rate=1e-3, ema=0.999, clip=1.0),
    )


def test_a_recipe_survives_json() -> None:
    recipe = distil()
    assert Recipe.from_json(recipe.to_json()) == recipe
    assert recipe.augment == [{"kind": "crop", "padding": 4}, {"kind": "flip"}]
    assert recipe.data["root"] == "data"


@pytest.mark.parametrize("table", [AUGMENTS, DATA, ENCODERS, EXECUTES, MODELS, NEURONS, TERMS])
def test_every_kind_survives_json(table: dict[str, str]) -> None:
    fields = {
        "data": ({"kind": kind} for kind in DATA),
        "model": ({"kind": kind} for kind in MODELS),
        "neuron": ({"kind": kind} for kind in NEURONS),
        "execute": ({"kind": kind} for kind in EXECUTES),
        "encode": ({"kind": kind} for kind in ENCODERS),
        "terms": ({"only": {"kind": kind}} for kind in TERMS),
        "augment": ([{"kind": kind}] for kind in AUGMENTS),
    }
    tables = {"data": DATA, "model": MODELS, "neuron": NEURONS, "execute": EXECUTES}
    tables |= {"encode": ENCODERS, "terms": TERMS, "augment": AUGMENTS}
    name = next(key for key, each in tables.items() if each is table)
    for value in fields[name]:
        recipe = dataclasses.replace(distil(), **{name: value})
        assert Recipe.from_json(recipe.to_json()) == recipe


def test_defaults_may_be_left_out_of_the_json() -> None:
    recipe = Recipe.from_json('{"task": "teach", "data": {"kind": "digits"}}')
    assert recipe == Recipe("teach", {"kind": "digits"})


WRONG = [
    ({"steps": 0}, "steps = 0", "at least 1"),
    ({"steps": "many"}, "steps = 'many'", "whole number"),
    ({"stepz": 4}, "stepz", "steps"),
    ({"task": "distil"}, "task", "distill"),
    ({"seed": -1}, "seed = -1", "0 or more"),
    ({"neuron": {"kind": "LIFF"}}, "neuron", "LIF"),
    ({"neuron": 3}, "neuron = 3", "dictionary"),
    ({"model": {"kind": "resnet81"}}, "model", "resnet18"),
    ({"terms": {"a": {"weight": 1}}}, "terms.a", "kind"),
    ({"augment": [{"kind": "crap"}]}, "augment.0", "crop"),
    ({"training": {"learning_rat": 1}}, "training.learning_rat", "learning_rate"),
    ({"training": {"learning_rate": "x"}}, "training.learning_rate = 'x'", "number"),
    ({"training": {"learning_rate": 0}}, "learning_rate = 0.0", "above 0"),
    ({"training": {"optimiser": "sdg"}}, "training.optimiser", "sgd"),
    ({"training": {"batch": 0}}, "batch = 0", "at least 1"),
    ({"training": {"ema": 1.0}}, "ema = 1.0", "between 0 and 1"),
    ({"training": {"clip": 0.0}}, "clip = 0.0", "above 0"),
    ({"training": {"beta2": 1.0}}, "beta2 = 1.0", "0 or more and below 1"),
    ({"training": 3}, "training", "object"),
]


@pytest.mark.parametrize(("change", "argument", "says"), WRONG)
def test_a_wrong_field_is_named(change: dict[str, object], argument: str, says: str) -> None:
    fields = json.loads(distil().to_json()) | change
    with pytest.raises(UserError) as caught:
        Recipe.from_json(json.dumps(fields))
    assert caught.value.argument == argument
    assert says in str(caught.value)


def test_what_is_no_recipe_is_refused() -> None:
    for text in ("{", "[]"):
        with pytest.raises(UserError, match="recipe"):
            Recipe.from_json(text)
    with pytest.raises(UserError, match="cannot be stored"):
        Recipe("teach", {"kind": "digits", "root": object()})
    with pytest.raises(UserError, match=r"schedule.*cosine"):
        Training(schedule="cosinus")  # type: ignore[arg-type]


def test_build_converts_json_types_and_adds_what_the_program_gives() -> None:
    assert build("thing", {"kind": THING, "size": [1, 2]}, {}) == Thing((1, 2))
    assert build("thing", {"kind": THING, "weight": 3}, {}, size=(4, 5)) == Thing((4, 5), 3.0)
    assert build("thing", {"kind": "short", "size": [1, 2]}, {"short": THING}) == Thing((1, 2))


def test_build_makes_nested_specs_first() -> None:
    plain = build("neuron", {"kind": PLAIN, "surrogate": {"kind": THING, "size": [1, 2]}}, {})
    assert plain.surrogate == Thing((1, 2))
    assert plain.count == 2


def test_build_binds_executors() -> None:
    bound = build("execute", {"kind": RUN, "windows": 3}, EXECUTES)
    assert isinstance(bound, functools.partial)
    assert bound("net", "x") == ("net", "x", (), 3)
    with pytest.raises(UserError, match=r"execute\.window.*windows"):
        build("execute", {"kind": RUN, "window": 3}, EXECUTES)
    with pytest.raises(UserError, match=r"execute\.net"):
        build("execute", {"kind": RUN, "net": 3}, EXECUTES)


@pytest.mark.parametrize(
    ("spec", "says"),
    [
        ({"kind": THING, "siez": [1, 2]}, r"`thing\.siez`.*size"),
        ({"kind": THING}, r"`thing\.size`.*missing"),
        ({"kind": THING, "size": [1, 2], "weight": "heavy"}, r"`thing\.weight = 'heavy'`"),
        ({"kind": THING, "size": [1, "b"]}, r"`thing\.size\.1 = 'b'`"),
        ({"size": [1, 2]}, "kind"),
        ({"kind": "shrot"}, "short"),
        ({"kind": "no.such.module:Thing"}, "cannot be imported"),
        ({"kind": f"{__name__}:Thin"}, "Thing"),
        ({"kind": PLAIN, "surrogate": {"kind": "sigmod"}}, r"thing\.surrogate.*sigmoid"),
    ],
)
def test_build_names_what_is_wrong(spec: dict[str, object], says: str) -> None:
    with pytest.raises(UserError, match=says):
        build("thing", spec, {"short": THING})


@pytest.mark.parametrize(
    ("table", "names"), [(NEURONS, NEURONS), (SURROGATES, SURROGATES), (ENCODERS, ENCODERS)]
)
def test_the_names_lead_somewhere(table: dict[str, str], names: dict[str, str]) -> None:
    for name in names:
        assert callable(resolve("kind", name, table))


def test_neurons_are_built_with_their_surrogate() -> None:
    spec = {"kind": "LIF", "tau": 3, "surrogate": {"kind": "triangle", "width": 2}}
    neuron = build("neuron", spec, NEURONS)
    assert (neuron.tau, neuron.surrogate.width) == (3.0, 2.0)


def test_importing_recipes_is_cheap() -> None:
    code = "import sys, spikelet.recipe; print({'torch', 'pydantic'} & sys.modules.keys())"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"


@pytest.mark.parametrize(
    ("steps", "data", "more", "chosen", "kind"),
    [
        (1, {"kind": "mnist"}, {}, (), "rate"),
        (2, {"kind": "mnist"}, {}, (), "bptt"),
        (4, {"kind": "mnist"}, {}, (), "bptt"),
        (8, {"kind": "mnist"}, {}, (), "rate"),
        (4, {"kind": "imagefolder"}, {}, (), "rate"),
        (4, {"kind": "imagefolder", "size": 32}, {}, (), "bptt"),
        (4, {"kind": "mnist", "size": 64}, {}, (), "rate"),
        (4, {"kind": "mine:data", "size": [12, 20]}, {}, (), "bptt"),
        (4, {"kind": "mine:data", "size": [12, 48]}, {}, (), "rate"),
        (2, {"kind": "imagenet"}, {}, (), "bptt"),
        (4, {"kind": "mnist"}, {"neuron": {"kind": "IF", "delay": 1}}, (), "rate"),
        (4, {"kind": "mnist"}, {"neuron": {"kind": "IF", "signed": True}}, (), "rate"),
        (4, {"kind": "mnist"}, {"encode": {"kind": "mixed"}}, (), "rate"),
        (8, {"kind": "mnist"}, {"neuron": {"kind": "IF", "step_bias": True}}, (), "bptt"),
        (4, {"kind": "mnist"}, {}, ("execute.kind",), "rate"),
        (4, {"kind": "mnist"}, {}, ("execute.windows",), "rate"),
        (4, {"kind": "mnist"}, {}, ("execute.fuse", "steps"), "bptt"),
    ],
)
def test_the_gradient_of_a_default(
    steps: int, data: dict[str, Any], more: dict[str, Any], chosen: tuple[str, ...], kind: str
) -> None:
    """Through time where that pays, unless a way was chosen."""
    recipe = default_recipe("distill", data, steps=steps, **more)
    assert recipe.execute == {"kind": "rate", "fuse": True}
    assert completed(recipe, chosen).execute == {"kind": kind, "fuse": True}
    for method, way in (("qann", "quantised"), ("twkd", "bptt")):
        found = completed(default_recipe("distill", data, method, steps=steps), chosen)
        assert found.execute["kind"] == way


@pytest.mark.parametrize(
    ("data", "size", "kind"),
    [
        ({"kind": "mine:data"}, None, "rate"),
        ({"kind": "mine:data"}, [8, 8], "bptt"),
        ({"kind": "mine:data"}, [32, 48], "rate"),
        ({"kind": "mine:data", "size": "small"}, [8, 8], "bptt"),  # a word of the function's own
        ({"kind": "mine:data", "size": 8}, [64, 64], "rate"),
        ({"kind": "imagefolder"}, [28, 28], "bptt"),
        ({"kind": "imagefolder", "size": 64}, [28, 28], "rate"),
        ({"kind": "imagefolder", "size": [28, 32]}, None, "bptt"),
    ],
)
def test_how_large_images_are_the_teacher_tells(
    data: dict[str, Any], size: list[int] | None, kind: str
) -> None:
    recipe = default_recipe("distill", data, steps=4)
    assert completed(recipe, (), size).execute["kind"] == kind


@pytest.mark.parametrize(
    ("steps", "data", "chosen", "expected"),
    [
        (1, "mnist", (), (4, 800, 0.99)),
        (1, "digits", (), (80, 800, 0.99)),
        (1, "mine:data", ("terms.logits.tau",), (20, 800, 0.99)),
        (1, "mnist", ("training.epochs",), (2, 400, 0.99)),
        (1, "mnist", ("training.least_steps",), (4, 400, 0.99)),
        (1, "mnist", ("training.beta2",), (4, 800, 0.999)),
        (1, "imagenet", (), (100, 400, 0.999)),
        (2, "mnist", (), (4, 800, 0.999)),
        (2, "mnist", ("training.epochs",), (2, 400, 0.999)),
        (2, "imagenet", (), (100, 400, 0.999)),
        (3, "mnist", (), (2, 400, 0.999)),
    ],
)
def test_few_steps_are_trained_longer(
    steps: int, data: str, chosen: tuple[str, ...], expected: tuple[float, ...]
) -> None:
    """By default: what was chosen, and what is published, stays."""
    for method in ("fading", "none", "qann"):
        recipe = default_recipe("distill", {"kind": data}, method, steps=steps)
        found = completed(recipe, chosen).training
        assert (found.epochs, found.least_steps, found.beta2) == expected


@pytest.mark.parametrize(
    ("steps", "more", "chosen", "strong"),
    [
        (2, {}, (), False),
        (3, {}, (), True),
        (4, {}, ("terms.logits.tau", "epochs"), True),
        (8, {}, (), True),
        (4, {}, ("terms.feature.weight",), False),
        (4, {}, ("terms.feature.fade",), False),
        (4, {}, ("terms.feature.kind",), False),
        (4, {"start": "scratch"}, (), False),
        (4, {"model": {"kind": "small-cnn"}}, (), False),
        (4, {"neuron": {"kind": "IF", "delay": 3}}, (), False),
        (4, {"neuron": {"kind": "IF", "signed": True}}, (), False),
        (4, {"encode": {"kind": "mixed"}}, (), False),
    ],
)
def test_features_count_much_at_the_start_where_that_was_measured(
    steps: int, more: dict[str, Any], chosen: tuple[str, ...], strong: bool
) -> None:
    before = default_recipe("distill", {"kind": "mnist"}, steps=steps, **more)
    feature = completed(before, chosen).terms["feature"]
    weights = {"weight": 10.0, "fade": 4.0} if strong else {"weight": 1.0, "fade": 1.0}
    assert feature == {"kind": "feature", "on": "any", **weights}
    assert before.terms["feature"]["fade"] == 1.0  # what it was made of stays
    other = default_recipe("distill", {"kind": "mnist"}, "kdsnn-feature", steps=4)
    assert completed(other).terms == other.terms
