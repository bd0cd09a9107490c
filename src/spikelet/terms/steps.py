"""Terms on single time steps: their logits, and their spikes in sliding windows."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal, final

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from spikelet.errors import UserError
from spikelet.terms.logits import kl, warm
from spikelet.terms.mapping import Places, Pointwise, ridge
from spikelet.terms.term import Binding, Pairs, Reads, Step, Term, check_places, full, select
from spikelet.trace import Tap

Time = Literal["mean", "windows", "steps"]
SPIKING = "name a spiking teacher, or use method affine, which compares rates"


@final
@dataclass(frozen=True)
class StepLogits(Term):
    """KL divergence of every step's logits from the teacher's (TWKD, arXiv 2501.15925).

    L = (1/T) sum_t KL_tau(z_A || z_S(t)), with tau squared. It is at least the divergence of the
    mean logits, and trains each step to answer by itself.

    Args:
        weight: of the mean over steps; the paper's is 0.2.
        tau: temperature of both sides.
        teacher: "mean" compares with the teacher's mean logits, "step" step t with a spiking
            teacher's step t.
    """

    weight: float = 1.0
    tau: float = 3.0
    teacher: Literal["mean", "step"] = "mean"

    def __post_init__(self) -> None:
        warm("logits.tau", self.tau)

    @property
    def time(self) -> Time:
        return "steps"

    def init(self, binding: Binding) -> nn.Module:
        assert binding.teacher is not None
        ours, theirs = len(binding.student.logits), len(binding.teacher.logits)
        if self.teacher == "step" and ours != theirs:
            raise UserError(
                "logits.teacher = 'step'",
                f"the teacher answers at {theirs} step{'s' * (theirs > 1)}, the student at {ours}",
                "use 'mean', or a spiking teacher",
            )
        return nn.Identity()

    def __call__(self, own: nn.Module, step: Step) -> Tensor:
        taught = step.taught
        target = taught.mean_logits if self.teacher == "mean" else taught.logits
        return kl(target, step.student.logits, self.tau)


def reliable(logits: Tensor, labels: Tensor) -> Tensor:
    """Mean of logits "T B K" over the steps that answer correctly: "B K", zeros where none does."""
    correct = (logits.argmax(-1) == labels).to(logits.dtype).unsqueeze(-1)
    return (correct * logits).sum(0) / correct.sum(0).clamp_min(1)


@final
@dataclass(frozen=True)
class StepEnsemble(Term):
    """KL divergence of every step's logits from their ensemble (TWSD, arXiv 2501.15925).

    L = (1/T) sum_t KL_tau(stop(z_ens) || z_S(t)), with tau squared: self-distillation, without a
    teacher. The paper's z_ens is the mean over all steps; its released code takes the mean over
    the steps that classify the image correctly, and zeros, a uniform target, where none does.

    Args:
        weight: of the mean over steps; the paper's is 0.5.
        tau: temperature of both sides.
        target: "mean" as in the paper's text, "correct" as in its code.
    """

    weight: float = 1.0
    tau: float = 3.0
    target: Literal["mean", "correct"] = "mean"
    taught: ClassVar[bool] = False

    def __post_init__(self) -> None:
        warm("ensemble.tau", self.tau)

    @property
    def time(self) -> Time:
        return "steps"

    def __call__(self, own: nn.Module, step: Step) -> Tensor:
        z = full(step.student.logits)
        ensemble = z.mean(0) if self.target == "mean" else reliable(z, step.labels)
        return kl(ensemble.detach(), z, self.tau)


def window_sums(spikes: Tensor, window: int, stride: int = 1) -> Tensor:
    """n_k = s(k r) + ... + s(k r + w - 1), window w, stride r, of "T B ...": a row for each k."""
    return full(spikes).unfold(0, window, stride).sum(-1)


def distance(student: Tensor, teacher: Tensor, compare: Literal["sum", "softmax"]) -> Tensor:
    """Mean squared error of window sums "N B C ...", or |p_S - p_T|^2 of their softmax over C.

    The second is summed over the channels, whose shares shrink as they become more.
    """
    if compare == "softmax":
        return (student.softmax(2) - teacher.softmax(2)).square().sum(2).mean()
    return F.mse_loss(student, teacher)


@final
@dataclass(frozen=True)
class SpikeWindows(Term):
    """Spike trains of a spiking teacher, compared in sliding windows ("Distilling Spikes").

    Kushawaha et al., arXiv 2005.00288: L2 between the student's and the teacher's spike tensors,
    summed over windows in time. Places, window, stride and what is compared are not known for
    sure, so each is an option; the error is averaged over windows, batch and positions. Unequal
    widths meet through a learned 1x1 map of the student's sums that starts at a ridge fit.

    Args:
        weight: of the sum over places.
        on: "last", "all", "inner" or names of places, which must be neurons on both sides.
        window: steps in a window; None takes all T, which the gradient of the mean can train.
        stride: steps from one window to the next.
        compare: "sum" compares spike counts, "softmax" their softmax over channels.
    """

    weight: float = 1.0
    on: str | Sequence[str] = "all"
    window: int | None = 2
    stride: int = 1
    compare: Literal["sum", "softmax"] = "sum"

    def __post_init__(self) -> None:
        for name in ("window", "stride"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise UserError(f"spikes.{name} = {value}", "expected at least 1 step", "raise it")

    @property
    def time(self) -> Time:
        return "mean" if self.window is None else "steps"

    def taps(self, pairs: Pairs) -> Reads:
        chosen, fields = select("spikes.on", self.on, pairs), ("mean", "spikes")
        return Reads(dict.fromkeys([s for s, _ in chosen], fields),
                     dict.fromkeys([t for _, t in chosen], fields))  # fmt: skip

    def init(self, binding: Binding) -> nn.Module:
        assert binding.teacher is not None
        self._check_window(len(binding.student.logits))
        chosen, modules = select("spikes.on", self.on, binding.pairs), []
        for pair in chosen:
            ours = self._sums(_firing(binding.student.taps[pair[0]], "student", "use execute=bptt"))
            theirs = self._sums(_firing(binding.teacher.taps[pair[1]], "teacher", SPIKING))
            check_places("spikes.on", ours[0], theirs[0], pair)
            modules.append(_meeting(ours.flatten(0, 1), theirs.flatten(0, 1)))
        return Places(chosen, modules)

    def _check_window(self, steps: int) -> None:
        if self.window is not None and self.window > steps:
            raise UserError(
                f"spikes.window = {self.window}",
                f"it is longer than the {steps} steps of the run",
                f"use at most {steps}",
            )

    def _sums(self, tap: Tap) -> Tensor:
        assert tap.spikes is not None
        return window_sums(tap.spikes, self.window or len(tap.spikes), self.stride)

    def __call__(self, own: nn.Module, step: Step) -> Tensor:
        assert isinstance(own, Places)
        losses = []
        for mapping, (s, t) in zip(own, own.pairs, strict=True):
            ours = self._sums(step.student.taps[s])
            theirs = self._sums(step.taught.taps[t])
            mapped = mapping(ours.flatten(0, 1)).unflatten(0, ours.shape[:2])
            losses.append(distance(mapped, theirs, self.compare))
        return torch.stack(losses).sum()


def _firing(tap: Tap, side: str, fix: str) -> Tap:
    if tap.spikes is None:
        raise UserError(side, "it runs without spikes, and spike trains are compared", fix)
    return tap


def _meeting(source: Tensor, target: Tensor) -> nn.Module:
    """What brings sums like source "B C ..." to the width of target "B D ..."."""
    if source.shape[1] == target.shape[1]:
        return nn.Identity()
    return Pointwise(*ridge(source, target))
