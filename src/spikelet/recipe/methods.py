"""The methods offered, as the terms they add up, and the recipe each data set starts with."""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Container, Mapping, Sequence
from typing import Any

from spikelet.errors import unknown
from spikelet.recipe.recipe import Recipe, Training
from spikelet.recipe.tables import NEURONS, Spec

CE: Spec = {"kind": "cross-entropy"}
KD: Spec = {"kind": "logits", "tau": 3.0}

METHODS: Mapping[str, dict[str, Spec]] = {
    "none": {"ce": CE},
    "convert": {"ce": CE},
    "qann": {"ce": CE, "logits": KD},
    "logits": {"ce": CE, "logits": KD},
    "hybrid": {"ce": CE, "logits": KD, "hybrid": {"kind": "hybrid", "weight": 0.3}},
    "affine": {"ce": CE, "affine": {"kind": "affine"}},
    "kdsnn-response": {
        "ce": {**CE, "weight": 0.1},
        "logits": {"kind": "logits", "weight": 0.9, "tau": 4.0},
    },
    "kdsnn-feature": {"ce": CE, "feature": {"kind": "feature"}},
    "fading": {
        "ce": CE,
        "logits": {**KD, "fade": 1.0},
        "feature": {"kind": "feature", "weight": 1.0, "fade": 1.0, "on": "any"},
    },
    "supersnn": {"ce": CE, "relation": {"kind": "relation"}},
    "heterogeneous-temperature": {
        "ce": CE,
        "logits": {"kind": "logits", "tau": 4.0, "student_tau": 2.0},
    },
    "twkd": {
        "ce": {**CE, "per_step": True},
        "logits": {"kind": "step-logits", "weight": 0.2, "tau": 3.0},
        "ensemble": {"kind": "step-ensemble", "weight": 0.5, "tau": 3.0},
    },
    "ckd": {"ce": CE, "logits": {**KD, "tau": 1.0}, "semantic": {"kind": "semantic"}},
    "distilling-spikes": {"ce": CE, "spikes": {"kind": "spike-windows"}},
}
UNROLLED: dict[str, Any] = {"execute": {"kind": "bptt"}}
FIELDS: Mapping[str, dict[str, Any]] = {
    "qann": {"execute": {"kind": "quantised"}},
    "ckd": {"encode": {"kind": "direct", "sliding": 0.25}},
    "twkd": UNROLLED,
    "distilling-spikes": UNROLLED,
}
STRONG: dict[str, float] = {"weight": 10.0, "fade": 4.0}
"""Of the features of `fading` from T = 3 on: much at the start, soon nothing (docs/recipe.md)."""
FUSED = ("rate", "bptt")  # ways of running that can compile their neurons
DEFAULT_METHOD = "fading"
FINE = 3  # T from which on strong features have paid (docs/recipe.md)
FEW, LONGER = 2, 2  # T up to which training is so many times as long: about the price of T = 4
QUICK = 0.99  # AdamW's second beta at T = 1, as a student's gradients shrink with its terms
ALWAYS, OFTEN = (2,), (3, 4)  # T at which gradients through time pay (docs/recipe.md),
SMALL = 32  # the latter on images of at most so many pixels a side: all steps lie in memory
SIDES = {"digits": 8, "mnist": 28, "fashion-mnist": 28, "cifar10": 32, "cifar100": 32}
DITHER = 0.125  # of the threshold: enough for uniform areas, no loss elsewhere (docs/recipe.md)

# Distillation starts near a solution: adaptive steps, with the gradient's norm clipped, keep it.
TEACH: Mapping[str, dict[str, Any]] = {
    "imagenet": {
        "epochs": 90,
        "batch": 32,
        "learning_rate": 0.1 / 8,
        "weight_decay": 1e-4,
        "warmup_epochs": 5.0,
    },
    "digits": {"epochs": 80, "batch": 64, "learning_rate": 0.2, "clip": 1.0},
    "mnist": {"epochs": 3, "learning_rate": 0.1},
    "fashion-mnist": {"epochs": 10, "learning_rate": 0.1},
    "nmnist": {"epochs": 20, "batch": 64, "learning_rate": 0.1, "clip": 1.0},
}
# ImageNet's hyper-parameters are the published ones for 8 processes: 8 x 64 images at a rate of 0.2
# for students (rate-based backpropagation, arXiv 2410.11488; TWKD, arXiv 2501.15925), 8 x 32 at 0.1
# for teachers (torchvision's reference); fewer processes learn slower in proportion.
DISTILL: Mapping[str, dict[str, Any]] = {
    "imagenet": {
        "epochs": 100,
        "batch": 64,
        "optimiser": "sgd",
        "learning_rate": 0.2 / 8,
        "weight_decay": 2e-5,
        "clip": None,
    },
    "digits": {"epochs": 40, "batch": 64, "learning_rate": 0.03},
    "mnist": {"epochs": 2},
    "fashion-mnist": {"epochs": 3},
    "cifar10": {"epochs": 3},
}
# Of the ANN that a student of another architecture begins as, under the student's teacher.
ANN: Mapping[str, dict[str, Any]] = {
    "imagenet": {**TEACH["imagenet"], "optimiser": "sgd", "clip": None},
    "digits": {"epochs": 40, "batch": 64, "learning_rate": 0.03},
    "mnist": {"epochs": 3, "learning_rate": 2e-2},
    "fashion-mnist": {"epochs": 6, "learning_rate": 1e-2},
}
LONG: dict[str, Any] = {"epochs": 30, "learning_rate": 0.1}
SHORT: dict[str, Any] = {"epochs": 10}
ENOUGH = {"teach": 500, "distill": 400}  # steps: what small data take, seen more often
GENTLE: dict[str, Any] = {"optimiser": "adamw", "learning_rate": 4e-3, "clip": 1.0}
FROZEN = 1e-3  # a rate that norms which keep their statistics bear; more ends at chance
RATE = "training.learning_rate"
# What the machine asks for, alike for a student and the ANN it begins as.
ALIKE = ("precision", "graph", "accumulate", "processes", "checkpoint_minutes", "tensorboard")


def terms_of(method: str) -> dict[str, Spec]:
    """The terms of a method, as specs that may be changed.

    Raises:
        UserError: for an unknown method, with the nearest ones.
    """
    if method not in METHODS:
        raise unknown("method", method, METHODS)
    return {name: dict(spec) for name, spec in METHODS[method].items()}


def completed(
    recipe: Recipe, chosen: Collection[str] = (), size: Sequence[int] | None = None
) -> Recipe:
    """A student's recipe with the defaults that depend on several of its parts.

    They are the way of its gradient, the learning rates, where an ANN of its own is trained first,
    how long it trains and, in a converted teacher from T = 3 on, how much the features of `fading`
    count. What is among the leaves that were chosen stays. It is added once: to a recipe that
    `default_recipe` gave. `size` (height, width) is that of the images, where the data do not say.
    """
    recipe = alike_trained(recipe, chosen)
    ways = {path for path in chosen if path.startswith("execute.")} - {"execute.fuse"}
    if recipe.execute["kind"] == "rate" and not ways and _exactly(recipe, size):
        recipe = dataclasses.replace(recipe, execute={**recipe.execute, "kind": "bptt"})
    fading = recipe.method == "fading" and not _of_features(chosen)
    converted = recipe.model is None and recipe.start == "converted"
    if fading and converted and recipe.steps >= FINE and _plain(recipe):
        terms = {**recipe.terms, "feature": {**recipe.terms["feature"], **STRONG}}
        recipe = dataclasses.replace(recipe, terms=terms)
    return gentler(_of_few_steps(recipe, chosen), chosen)


def _of_few_steps(recipe: Recipe, chosen: Collection[str]) -> Recipe:
    """At T = 1 and 2, where an epoch is cheap, a student sees its images more often.

    The published training of ImageNet stays.
    """
    training = recipe.training
    if recipe.steps > FEW or recipe.data["kind"] == "imagenet":
        return recipe
    wanted: dict[str, Any] = {}
    if "training.epochs" not in chosen:
        wanted = {n: LONGER * getattr(training, n) for n in ("epochs", "least_steps")}
    if training.optimiser == "adamw" and recipe.steps == 1:
        wanted["beta2"] = QUICK
    fields = {name: v for name, v in wanted.items() if f"training.{name}" not in chosen}
    return dataclasses.replace(recipe, training=dataclasses.replace(training, **fields))


def alike_trained(recipe: Recipe, chosen: Collection[str]) -> Recipe:
    """The recipe whose ANN is trained on the same machine as the student.

    What the machine asks for is that of the student's own training, and so is a chosen batch.
    """
    if not isinstance(recipe.ann, Training):
        return recipe
    names = [*ALIKE, *(["batch"] if "training.batch" in chosen else [])]
    same = {n: getattr(recipe.training, n) for n in names if f"ann.{n}" not in chosen}
    return dataclasses.replace(recipe, ann=dataclasses.replace(recipe.ann, **same))


def _of_features(chosen: Collection[str]) -> bool:
    """Whether a choice says how much features count, or that they are another term."""
    said = {f"terms.feature.{name}" for name in ("kind", *STRONG)}
    return not said.isdisjoint(chosen)


def _exactly(recipe: Recipe, known: Sequence[int] | None) -> bool:
    """Whether gradients through time buy more than the epochs they cost (measured: docs/log.md).

    A current that is learned for each step has no other.
    """
    data = recipe.data
    if recipe.neuron.get("step_bias"):
        return True
    kind, told = str(data.get("kind")), data.get("size")
    sides: Sequence[Any] = told if isinstance(told, list | tuple) else [told or SIDES.get(kind)]
    vague = not all(isinstance(each, int) for each in sides)
    if vague or (known and ":" in kind):  # an argument `size` of one's own may be anything
        sides = known or [SMALL + 1]
    side = max(sides)
    return recipe.steps in ALWAYS or (recipe.steps in OFTEN and _plain(recipe) and side <= SMALL)


def _plain(recipe: Recipe) -> bool:
    """Whether all layers begin at once with binary spikes, and every batch has T steps."""
    neuron = recipe.neuron
    unsigned = not (neuron.get("signed") or neuron.get("delay"))
    return unsigned and recipe.encode["kind"] == "direct"


def gentler(recipe: Recipe, chosen: Container[str]) -> Recipe:
    """A recipe at a rate that its norms bear, unless the rate is among the leaves that were chosen.

    It is that of adaptive steps; who chooses another optimiser chooses its rate as well.
    """
    training = recipe.training
    if recipe.norm_kind != "frozen" or RATE in chosen or training.optimiser != "adamw":
        return recipe
    rate = min(training.learning_rate, FROZEN)
    return dataclasses.replace(recipe, training=dataclasses.replace(training, learning_rate=rate))


def ann_training(data: str) -> Training:
    """How the ANN is trained that a student of another architecture begins as."""
    return Training(**{"least_steps": ENOUGH["teach"], **GENTLE, **ANN.get(data, SHORT)})


def another_kind(place: str, kind: str, spec: Spec | None) -> Spec:
    """The spec of another kind in a place of the recipe: it starts with its own defaults.

    Whether neurons are compiled stays as it was, and so does their dither, where the kind is one
    that takes it.
    """
    takes = {"execute": ("fuse", FUSED), "neuron": ("dither", NEURONS)}
    name, kinds = takes.get(place, ("", ()))
    kept = {name: spec[name]} if spec and name in spec and kind in kinds else {}
    return {"kind": kind, **kept}


def default_recipe(task: str, data: Spec, method: str = DEFAULT_METHOD, **fields: Any) -> Recipe:
    """The recipe a run starts from; `fields` replace whole fields of it, `completed` adds to it.

    Args:
        task: "teach" or "distill".
        data: spec of the data set.
        method: name of the method, for "distill".
    """
    kind = str(data.get("kind"))
    teach = task == "teach"
    training = TEACH.get(kind, LONG) if teach else GENTLE | DISTILL.get(kind, SHORT)
    values: dict[str, Any] = {
        "task": task,
        "data": data,
        "method": "none" if teach else method,
        "terms": terms_of("none" if teach else method),
        "training": Training(**{"least_steps": ENOUGH[task], **training}),
    }
    if not teach:
        values |= {"neuron": {"kind": "IF", "dither": DITHER}}
        values |= {"execute": {"kind": "rate"}} | FIELDS.get(method, {})
        if kind != "digits" and values["execute"]["kind"] in FUSED:
            values["execute"] = {**values["execute"], "fuse": True}
    if not teach and fields.get("model") and fields.get("start", "converted") == "converted":
        values |= {"ann": ann_training(kind)}
    if teach:
        values |= {"execute": {"kind": "ann"}, "steps": 1, "calibrate": 0}
    return Recipe(**(values | fields))
