"""Feature distillation through a connector: plain squared error, or margin ReLU and partial L2."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, final

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn
from torch.nn.modules.batchnorm import _BatchNorm

from spikelet.graph import is_activation, resolve
from spikelet.neuron import Neuron, per_channel
from spikelet.norm import FrozenNorm
from spikelet.terms.mapping import Places, Pointwise, normalised, ridge
from spikelet.terms.term import Binding, Pair, Pairs, Reads, Step, Term, check_places, full, select
from spikelet.trace import Tap

NEGLIGIBLE = 1e-3
"""Share of negative values below which a margin is three deviations."""


def gaussian_margin(beta: Tensor, gamma: Tensor) -> Tensor:
    """E[x | x < 0] of x ~ N(beta, gamma^2), channel by channel: the margin behind a batch norm.

    beta - |gamma| phi(beta / |gamma|) / Phi(-beta / |gamma|); -3 |gamma| where a share of less
    than 0.001 is negative (Heo et al., ICCV 2019).
    """
    deviation = full(gamma).abs()
    z = full(beta) / deviation.clamp_min(1e-12)
    share = torch.special.ndtr(-z)
    density = torch.exp(-0.5 * z.square()) / math.sqrt(2 * math.pi)
    mean = full(beta) - deviation * density / share.clamp_min(NEGLIGIBLE)
    return torch.where(share > NEGLIGIBLE, mean, -3 * deviation)


def observed_margin(values: Tensor) -> Tensor:
    """The mean of the negative ones among values "B C ...", channel by channel.

    Three deviations below zero where a share of less than 0.001 is negative.
    """
    x = full(values).transpose(0, 1).flatten(1)
    negative = x < 0
    mean = (x * negative).sum(1) / negative.sum(1).clamp_min(1)
    rare = -3 * x.std(1, unbiased=False)
    return torch.where(negative.to(x.dtype).mean(1) > NEGLIGIBLE, mean, rare)


def partial_error(source: Tensor, target: Tensor) -> Tensor:
    """Squared error of "B ..." where source > target or target > 0, over the number of elements.

    What lies below a target that is negative anyway is no error.
    """
    s, t = full(source), full(target)
    counts = (s > t) | (t > 0)
    return ((s - t).square() * counts).mean()


def variance_of_images(features: Tensor) -> Tensor:
    """How much features "B ..." differ between images: a scalar, the mean over elements."""
    return full(features).var(0, unbiased=False).mean().clamp_min(1e-12)


def norm_before(net: nn.Module | None, path: str) -> nn.Module | None:
    """The batch norm whose output is what the activation at `path` sees.

    None where the network is no graph, the place no activation, or something else stands in
    front of it, such as a residual sum or a pooling.
    """
    if not isinstance(net, fx.GraphModule):
        return None
    modules, node = dict(net.named_modules()), resolve(net, path)
    called = modules.get(str(node.target)) if node.op == "call_module" else None
    if not isinstance(called, Neuron) and not is_activation(node, modules):
        return None
    while isinstance(node.args[0], fx.Node) and node.args[0].op == "call_module":
        node = node.args[0]
        called = modules[str(node.target)]
        if not isinstance(called, (nn.Identity, nn.Dropout)):
            return called if isinstance(called, (_BatchNorm, FrozenNorm)) else None
    return None


@final
class Connector(nn.Module):
    """The mapping of one pair, dropped after training, the margin and variance of its target."""

    margin: Tensor | None
    spread: Tensor | None

    def __init__(
        self, mapping: nn.Module, margin: Tensor | None, spread: Tensor | None = None
    ) -> None:
        super().__init__()
        self.mapping = mapping
        self.register_buffer("margin", margin)
        self.register_buffer("spread", spread)

    def forward(self, x: Tensor) -> Tensor:
        return self.mapping(x)


@final
@dataclass(frozen=True)
class Feature(Term):
    """Feature distillation of KDSNN (Xu et al., CVPR 2023, arXiv 2304.05627).

    The student's mean feature goes through a connector to the teacher's width. "simple": squared
    error against the teacher's feature. "strict" adds the construction it builds on (Heo et al.,
    ICCV 2019): the target is max(t, m_c) with t the teacher's pre-activation and m_c the mean of
    its negative values, and errors count only where source > target or target > 0. m_c follows
    from the batch norm in front of the activation. Behind a residual sum, where no single norm
    stands, it is the mean of the negative values on the examples (the published code takes the
    norm of the residual branch alone).

    Errors are averaged over elements, so that their size does not depend on resolution: the
    published sum per image is C H W times ours.

    Args:
        weight: of the sum over places.
        on: "last", "all", "inner", "any" or names of places, `student=teacher` where they differ;
            "strict" needs activations there. With "any" the loss is 0 where no places match.
        form: "simple" or "strict".
        stage_weights: weigh stage i of n by 1 / 2^(n - i - 1), in the strict form.
        connector: "conv" is a 1x1 convolution with bias, "conv-norm" one without bias and a batch
            norm; both start at a ridge fit. "auto" is "conv" for "simple", "conv-norm" for
            "strict".
        relative: whether the error of each place is divided by the variance of its target over
            images (the mean over elements, on the examples), so that the weight means the same for
            features of any size.
    """

    weight: float = 1.0
    on: str | Sequence[str] = "all"
    form: Literal["simple", "strict"] = "simple"
    stage_weights: bool = True
    connector: Literal["auto", "conv-norm", "conv"] = "auto"
    relative: bool = False

    def taps(self, pairs: Pairs) -> Reads:
        chosen = select("feature.on", self.on, pairs)
        fields = ("mean", "current") if self.form == "strict" else ("mean",)
        return Reads({s: ("mean",) for s, _ in chosen}, {t: fields for _, t in chosen})

    def init(self, binding: Binding) -> nn.Module:
        assert binding.teacher is not None
        chosen = select("feature.on", self.on, binding.pairs)
        return Places(chosen, [self._connector(binding, pair) for pair in chosen])

    def _connector(self, binding: Binding, pair: Pair) -> Connector:
        assert binding.teacher is not None
        source, tap = binding.student.taps[pair[0]].mean, binding.teacher.taps[pair[1]]
        margin = None
        if self.form == "strict":
            margin = _margin(norm_before(binding.teacher_net, pair[1]), _before(tap))
        target = _target(tap, margin)
        check_places("feature.on", source, target, pair)
        spread = variance_of_images(target) if self.relative else None
        if self.connector == "conv" or (self.connector, self.form) == ("auto", "simple"):
            return Connector(Pointwise(*ridge(source, target)), margin, spread)
        return Connector(normalised(source, target), margin, spread)

    def __call__(self, own: nn.Module, step: Step) -> Tensor:
        assert isinstance(own, Places)
        strict, losses = self.form == "strict", []
        for i, (connector, (s, t)) in enumerate(zip(own, own.pairs, strict=True)):
            assert isinstance(connector, Connector)
            source = connector(step.student.taps[s].mean)
            target = _target(step.taught.taps[t], connector.margin)
            if strict:
                share = 0.5 ** (len(own) - i - 1) if self.stage_weights else 1.0
                loss = share * partial_error(source, target)
            else:
                loss = F.mse_loss(full(source), full(target))
            losses.append(loss if connector.spread is None else loss / connector.spread)
        return torch.stack(losses).sum() if losses else full(step.student.mean_logits).new_zeros(())


def _before(tap: Tap) -> Tensor:
    """The mean pre-activation "B ..."; a spiking teacher's mean current."""
    assert tap.current is not None
    return tap.current.mean(0)


def _target(tap: Tap, margin: Tensor | None) -> Tensor:
    """The teacher's feature, or (given a margin "C") its pre-activation cut at the margin."""
    if margin is None:
        return tap.mean
    before = _before(tap)
    return before.maximum(per_channel(margin.to(before), before))


def _margin(norm: nn.Module | None, before: Tensor) -> Tensor:
    """The margin "C" from the norm in front of the activation, else from its values "B C ..."."""
    if norm is None:
        return observed_margin(before)
    ones = torch.ones(before.shape[1], device=before.device)
    gamma = getattr(norm, "weight", None)
    beta = getattr(norm, "bias", None)
    gamma = ones if gamma is None else gamma.detach()
    beta = torch.zeros_like(ones) if beta is None else beta.detach()
    return gaussian_margin(beta, gamma)
