"""Which parameters are stepped how: groups, optimisers, the learning rate over time."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import nn

from spikelet.errors import UserError
from spikelet.recipe import Training

UNDECAYED = ("step_biases", "threshold", "leak", "bias", "offset")


def learning_rate(training: Training, step: int, per_epoch: int) -> float:
    """The rate of a step counted from 0: linear warm-up, then cosine to 0 or constant."""
    warm, total = training.warmup_epochs * per_epoch, training.epochs * per_epoch
    peak = training.peak
    if step < warm:
        return peak * min(1.0, (step + 1) / warm)
    if training.schedule == "constant":
        return peak
    fraction = min(1.0, (step - warm) / max(1.0, total - warm))
    return peak * (1 + math.cos(math.pi * fraction)) / 2


def parameter_groups(module: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """Two groups: weights, and what is not decayed (norms, biases, thresholds, leaks)."""
    decayed: list[nn.Parameter] = []
    free: list[nn.Parameter] = []
    for name, parameter in module.named_parameters():
        if parameter.requires_grad:
            undecayed = parameter.ndim <= 1 or name.endswith(UNDECAYED)
            (free if undecayed else decayed).append(parameter)
    if not decayed and not free:
        raise UserError("distiller", "it has no parameter to train", "call requires_grad_(True)")
    return [
        {"params": decayed, "weight_decay": weight_decay},
        {"params": free, "weight_decay": 0.0},
    ]


def optimiser(module: nn.Module, training: Training) -> torch.optim.Optimizer:
    """SGD with momentum, or AdamW with the momentum as its first beta and `beta2`."""
    groups, rate = parameter_groups(module, training.weight_decay), training.peak
    if training.optimiser == "sgd":
        return torch.optim.SGD(groups, lr=rate, momentum=training.momentum)
    return torch.optim.AdamW(groups, lr=rate, betas=(training.momentum, training.beta2))
