"""Terms on the logits: cross entropy with the labels, KL divergence from the teacher."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal, final

import torch.nn.functional as F
from torch import Tensor, nn

from spikelet.errors import UserError
from spikelet.terms.term import Step, Term, full


def warm(argument: str, tau: float | None) -> None:
    """Refuses a temperature that is not above 0; None stands for another one's."""
    if tau is not None and not tau > 0:
        raise UserError(f"{argument} = {tau}", "expected a temperature above 0", "try 3")


def kl(teacher: Tensor, student: Tensor, tau: float, student_tau: float | None = None) -> Tensor:
    """tau_T tau_S KL(softmax(z_T / tau_T) || softmax(z_S / tau_S)) of logits "... K", batch mean.

    Hinton et al. 2015 with equal temperatures; the factor keeps the scale of the gradient.
    """
    other = tau if student_tau is None else student_tau
    p = F.log_softmax(full(teacher) / tau, -1)
    q = F.log_softmax(full(student) / other, -1)
    return tau * other * (p.exp() * (p - q)).sum(-1).mean()


@final
@dataclass(frozen=True)
class CrossEntropy(Term):
    """Cross entropy with the labels, of the mean logits or (`per_step`) the mean over steps."""

    weight: float = 1.0
    label_smoothing: float = 0.0
    per_step: bool = False
    taught: ClassVar[bool] = False

    @property
    def time(self) -> Literal["mean", "windows", "steps"]:
        return "steps" if self.per_step else "mean"

    def __call__(self, own: nn.Module, step: Step) -> Tensor:
        logits = step.student.logits if self.per_step else step.student.mean_logits.unsqueeze(0)
        labels = step.labels.expand(len(logits), -1).flatten()
        smoothing = self.label_smoothing
        return F.cross_entropy(full(logits.flatten(0, 1)), labels, label_smoothing=smoothing)


@final
@dataclass(frozen=True)
class Logits(Term):
    """KL divergence of the student's mean logits from the teacher's, with tau squared.

    Weight 0.9 at tau 4, beside cross entropy of weight 0.1, has the gradient of KDSNN's response
    form (arXiv 2304.05627), whose cross entropy of soft targets is larger by their entropy.

    Args:
        weight: of the divergence.
        tau: the teacher's temperature, above 0.
        student_tau: the student's own (heterogeneous temperatures, Lee et al., arXiv 2106.07172);
            None takes the teacher's.
    """

    weight: float = 1.0
    tau: float = 3.0
    student_tau: float | None = None

    def __post_init__(self) -> None:
        warm("logits.tau", self.tau)
        warm("logits.student_tau", self.student_tau)

    def __call__(self, own: nn.Module, step: Step) -> Tensor:
        teacher = step.taught.mean_logits
        return kl(teacher, step.student.mean_logits, self.tau, self.student_tau)
