"""How fresh networks start."""

from __future__ import annotations

from torch import nn


def initialise(model: nn.Module) -> nn.Module:
    """Convolutions and linear layers as in He et al., 2015 (fan out for convolutions)."""
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
        elif isinstance(module, nn.Linear):
            nn.init.kaiming_uniform_(module.weight, nonlinearity="linear")
            nn.init.zeros_(module.bias)
    return model


def conv3x3(inputs: int, outputs: int, stride: int = 1) -> nn.Conv2d:
    """A 3x3 convolution that keeps the size at stride 1; its bias belongs to the batch norm."""
    return nn.Conv2d(inputs, outputs, 3, stride=stride, padding=1, bias=False)
