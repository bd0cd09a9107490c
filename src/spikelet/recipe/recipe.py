"""The frozen dataclasses that describe a whole run, and their JSON."""

from __future__ import annotations

import dataclasses
import json
import math
import typing
from dataclasses import dataclass, field
from typing import Any, Literal

from spikelet.errors import UserError, require_numbers, unknown
from spikelet.recipe.specs import import_path, kind_of, plain, validated
from spikelet.recipe.tables import AUGMENTS, DATA, ENCODERS, EXECUTES, MODELS, NEURONS, TERMS, Spec


def _require(holds: bool, argument: str, expected: str, value: Any, fix: str) -> None:
    """Raise the sentence about `argument` unless it holds."""
    if not holds:
        raise UserError(f"{argument} = {value!r}", f"expected {expected}", fix)


def _chosen(argument: str, owner: type, name: str, value: str) -> None:
    """Raise unless `value` is one of the literals `owner` declares for the field `name`."""
    choices = typing.get_args(typing.get_type_hints(owner)[name])
    if value not in choices:
        raise unknown(argument, str(value), choices)


@dataclass(frozen=True)
class Training:
    """How the weights are found. `clip` is the largest gradient norm, `ema` the decay per step.

    `momentum` is SGD's, and AdamW's first beta; `beta2` its second, the share that the mean of
    squared gradients keeps from step to step (Kingma and Ba, arXiv 1412.6980).

    Small data are seen more often than `epochs` times, until `least_steps` steps were taken.
    `graph` replays whole steps from a CUDA graph: on a GPU small networks get several times faster.
    `accumulate` takes a batch in so many parts, one after the other, to save memory: its gradient
    is the same, but for norms that train and terms that couple the batch, which see a part at a
    time. `batch` counts the images of one process; where `processes` share each step, the learning
    rate grows with the images of all by the rule `scaling`: in proportion ("linear"), by the square
    root ("root"), not ("none"), or "auto", which is "linear" for SGD and "root" for AdamW
    (docs/processes.md).
    """

    epochs: int = 10
    least_steps: int = 0
    batch: int = 128
    optimiser: Literal["sgd", "adamw"] = "sgd"
    learning_rate: float = 0.1
    momentum: float = 0.9
    beta2: float = 0.999
    weight_decay: float = 5e-4
    warmup_epochs: float = 0.0
    schedule: Literal["cosine", "constant"] = "cosine"
    clip: float | None = None
    ema: float | None = None
    precision: Literal["fp32", "bf16"] = "fp32"
    graph: bool = False
    accumulate: int = 1
    processes: int = 1
    scaling: Literal["auto", "linear", "root", "none"] = "auto"
    checkpoint_minutes: float = 10.0
    tensorboard: bool = False

    def __post_init__(self) -> None:
        require_numbers(self)
        for name in ("optimiser", "schedule", "precision", "scaling"):
            _chosen(name, Training, name, getattr(self, name))
        positive, rate = "a number above 0", self.learning_rate
        _require(
            self.epochs >= 0, "epochs", "0 or more", self.epochs, "give how often to see the data"
        )
        least = self.least_steps
        _require(least >= 0, "least_steps", "0 or more", least, "give steps of the optimiser")
        _require(self.batch >= 1, "batch", "at least 1", self.batch, "give the images per step")
        _require(0 < rate < math.inf, "learning_rate", positive, rate, "try 0.1")
        for name, usual in (("momentum", "try 0.9"), ("beta2", "try 0.99")):
            share = getattr(self, name)
            _require(0 <= share < 1, name, "0 or more and below 1", share, usual)
        _require(
            0 <= self.weight_decay < math.inf,
            "weight_decay",
            "0 or more",
            self.weight_decay,
            "try 5e-4",
        )
        _require(
            0 <= self.warmup_epochs < math.inf,
            "warmup_epochs",
            "0 or more",
            self.warmup_epochs,
            "try 1",
        )
        if self.clip is not None:
            _require(self.clip > 0, "clip", positive, self.clip, "leave it out for no clipping")
        if self.ema is not None:
            _require(0 < self.ema < 1, "ema", "a decay between 0 and 1", self.ema, "try 0.999")
        for name in ("accumulate", "processes"):
            _require(getattr(self, name) >= 1, name, "1 or more", getattr(self, name), "give 1")
        together = self.accumulate > 1 or self.processes > 1
        what = "neither several processes nor batches in parts"
        _require(not (self.graph and together), "graph", what, self.graph, "leave it out")
        minutes = self.checkpoint_minutes
        _require(minutes > 0, "checkpoint_minutes", positive, minutes, "try 10")

    @property
    def peak(self) -> float:
        """The largest learning rate, grown with the processes.

        In proportion to the images of a step (Goyal et al., arXiv 1706.02677), or by the square
        root, as adaptive steps want it (Malladi et al., arXiv 2205.10287).
        """
        rule = {"sgd": "linear", "adamw": "root"}[self.optimiser]
        rule = rule if self.scaling == "auto" else self.scaling
        power = {"linear": 1.0, "root": 0.5, "none": 0.0}[rule]
        return self.learning_rate * self.processes**power

    def lasting(self, per_epoch: int) -> Training:
        """The same with as many epochs as `least_steps` take, at so many steps an epoch."""
        enough = math.ceil(self.least_steps / per_epoch) if self.epochs else 0
        return dataclasses.replace(self, epochs=max(self.epochs, enough))


@dataclass(frozen=True)
class Recipe:
    """A whole run. `teacher` is `{"run": folder}` or a model spec.

    `norm` says what batch norms do in training: "train" uses the batch's statistics, "settled"
    does so from a start that computes what conversion calibrated, "frozen" keeps the teacher's;
    "auto" is "frozen" for signed spikes, "settled" where the batch's statistics would spoil the
    conversion, else "train".

    `calibrate` training images set thresholds, and `estimate` augmented ones give norms that train
    their statistics anew before each measurement; of both as many are taken as one pass has room
    for. With an `estimate` of 0 statistics are the running average of training. `joint` trains an
    ANN teacher along on the labels.

    `augment` is None for the data set's own augmentations.

    A student of another architecture, `model`, that starts "converted" begins as an ANN: `ann` is
    how it is trained, under the same teacher, before it is converted, or `{"run": folder}` where it
    is trained already. Without, its weights are fresh, as with "scratch".
    """

    task: Literal["teach", "distill"]
    data: Spec
    model: Spec | None = None
    teacher: Spec | None = None
    method: str = "none"
    neuron: Spec = field(default_factory=lambda: {"kind": "IF"})
    terms: dict[str, Spec] = field(default_factory=lambda: {"ce": {"kind": "cross-entropy"}})
    execute: Spec = field(default_factory=lambda: {"kind": "rate"})
    encode: Spec = field(default_factory=lambda: {"kind": "direct"})
    steps: int = 4
    start: Literal["converted", "scratch"] = "converted"
    calibrate: int = 512
    norm: Literal["auto", "train", "settled", "frozen"] = "auto"
    estimate: int = 1024
    joint: bool = False
    training: Training = field(default_factory=Training)
    ann: Training | Spec | None = None
    seed: int = 0
    augment: list[Spec] | None = None

    def __post_init__(self) -> None:
        require_numbers(self)
        for name in ("task", "start", "norm"):
            _chosen(name, Recipe, name, getattr(self, name))
        _require(self.steps >= 1, "steps", "at least 1", self.steps, "use 1 to 4 time steps")
        _require(self.calibrate >= 0, "calibrate", "0 or more images", self.calibrate, "try 512")
        _require(self.estimate >= 0, "estimate", "0 or more images", self.estimate, "try 1024")
        whole = "0 or more, below 2**63"
        _require(0 <= self.seed < 2**63, "seed", whole, self.seed, "give a non-negative number")
        own = self.task == "distill" and self.model is not None and self.start == "converted"
        if self.ann is not None and not own:
            what = "only a student of another architecture that starts converted begins as an ANN"
            fix = "leave it out, or name an architecture, and no start from scratch"
            raise UserError("ann", what, fix)
        if isinstance(self.ann, dict) and list(self.ann) != ["run"]:
            what = f"expected a training or the folder of a run, found {self.ann!r}"
            raise UserError("ann", what, 'give {"run": folder}')
        for name in ("data", "model", "teacher", "neuron", "terms", "execute", "encode", "augment"):
            object.__setattr__(self, name, plain(name, getattr(self, name)))
        self._check_kinds()

    def _check_kinds(self) -> None:
        """Every kind is an import path or a name we know; nothing is imported for that."""
        specs = [
            ("data", self.data, DATA),
            ("neuron", self.neuron, NEURONS),
            ("execute", self.execute, EXECUTES),
            ("encode", self.encode, ENCODERS),
        ]
        specs += [(f"terms.{name}", spec, TERMS) for name, spec in self.terms.items()]
        augments = enumerate(self.augment or [])
        specs += [(f"augment.{index}", spec, AUGMENTS) for index, spec in augments]
        if self.model is not None:
            specs.append(("model", self.model, MODELS))
        if self.teacher is not None and "run" not in self.teacher:
            specs.append(("teacher", self.teacher, MODELS))
        for argument, spec, table in specs:
            import_path(argument, kind_of(argument, spec), table)

    @property
    def norm_kind(self) -> Literal["auto", "train", "settled", "frozen"]:
        """What "auto" comes to as far as the recipe alone decides (measured: docs/log.md)."""
        return "frozen" if self.norm == "auto" and self.neuron.get("signed") else self.norm

    def to_json(self) -> str:
        """The recipe as readable JSON; `from_json` gives an equal one back."""
        return json.dumps(dataclasses.asdict(self), indent=2)

    @staticmethod
    def from_json(text: str) -> Recipe:
        """The recipe in `text`; raises UserError naming the field that is wrong or unknown."""
        try:
            return Recipe._of(json.loads(text))
        except RecursionError as error:
            raise UserError("recipe", "it is nested too deeply", "mend the file") from error
        except UserError:
            raise
        except ValueError as error:  # no JSON, or a number of too many digits
            raise UserError("recipe", f"not readable as JSON ({error})", "mend the file") from error

    @staticmethod
    def _of(fields: Any) -> Recipe:
        """The recipe of plain data."""
        if not isinstance(fields, dict):
            raise UserError("recipe", "expected a JSON object", "mend the file")
        training = fields.pop("training", {})
        if not isinstance(training, dict):
            raise UserError("training", f"expected an object, found {training!r}", "mend the file")
        ann = fields.pop("ann", None)
        if not isinstance(ann, dict | None):
            raise UserError("ann", f"expected an object, found {ann!r}", "mend the file")
        values = {
            "training": Training(**validated("training", Training, training)),
            "ann": _training_or_run(ann),
        }
        return Recipe(**validated("", Recipe, fields, given=values))


def _training_or_run(ann: dict[str, Any] | None) -> Training | Spec | None:
    """What `ann` of a stored recipe is."""
    if ann is None or "run" in ann:
        return ann
    return Training(**validated("ann", Training, ann))
