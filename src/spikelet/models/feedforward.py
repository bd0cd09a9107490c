"""Networks without skips: a small one for small images, VGG-9, VGGSNN, VGG-11 and VGG-16."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, final

from jaxtyping import Float
from torch import Tensor, nn

from spikelet.errors import unknown
from spikelet.models.initial import conv3x3, initialise


@final
class FeedForward(nn.Module):
    """Stages `layer1`.. of convolution, batch norm, ReLU; mean over pixels; classifier `linear`.

    `layers` names the widths of each stage's convolutions; `pools` whether a pooling by two opens
    the stage. Pooling comes first so that a stage ends with an activation. With `hidden` a layer
    `fc` of that width and a ReLU come before the classifier.
    """

    def __init__(
        self,
        classes: int,
        channels: int,
        layers: Sequence[Sequence[int]],
        pools: Sequence[bool],
        pool: Literal["average", "max"] = "average",
        hidden: int | None = None,
    ) -> None:
        super().__init__()
        if pool not in POOLS:
            raise unknown("pool", pool, POOLS)
        self.stages = tuple(f"layer{number}" for number in range(1, len(layers) + 1))
        inputs = channels
        for name, widths, pooled in zip(self.stages, layers, pools, strict=True):
            stage = nn.Sequential()
            if pooled:
                stage.append(POOLS[pool](2))
            for width in widths:
                stage.extend([conv3x3(inputs, width), nn.BatchNorm2d(width), nn.ReLU()])
                inputs = width
            self.add_module(name, stage)
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.flatten = nn.Flatten()
        if hidden is not None:
            self.fc = nn.Linear(inputs, hidden)
            self.relu_fc = nn.ReLU()
        self.linear = nn.Linear(hidden or inputs, classes)
        self.hidden = hidden
        initialise(self)

    def forward(self, x: Float[Tensor, "B C H W"]) -> Float[Tensor, "B K"]:
        """Images "B C H W" to logits "B K"."""
        for name in self.stages:
            x = self.get_submodule(name)(x)
        x = self.flatten(self.pool(x))
        if self.hidden is not None:
            x = self.relu_fc(self.fc(x))
        return self.linear(x)


POOLS: dict[str, type[nn.Module]] = {"average": nn.AvgPool2d, "max": nn.MaxPool2d}


def small_cnn(classes: int, channels: int, width: int = 32) -> nn.Module:
    """Three convolutions of `width` times 1, 1, 2 channels, average pooling, any size from 8x8."""
    return FeedForward(classes, channels, [[width], [width], [2 * width]], [False, False, True])


def vgg9(
    classes: int,
    channels: int = 3,
    width: int = 64,
    pool: Literal["average", "max"] = "average",
) -> nn.Module:
    """VGG-9 of the spiking literature: 7 convolutions, 2 linear layers (Lee et al., 2020).

    64-64, 128-128, 256-256-256 channels, then 1024 hidden units. With batch norm, and the mean
    over pixels where the paper flattens 4x4 of them, so that any size from 8x8 fits.
    """
    layers, pools = [[1, 1], [2, 2], [4, 4, 4]], [False, True, True]
    return FeedForward(classes, channels, _scaled(layers, width), pools, pool, hidden=16 * width)


def vggsnn(
    classes: int,
    channels: int = 3,
    width: int = 64,
    pool: Literal["average", "max"] = "average",
) -> nn.Module:
    """VGGSNN, the network for event data of Deng et al., 2022 (arXiv 2202.11946): 8 convolutions.

    64-128, 256-256, 512-512, 512-512 channels with average pooling between them. The mean over
    pixels stands for the paper's last pooling and flattening of 48x48 frames, so that any size
    from 8x8 fits.
    """
    layers = [[1, 2], [4, 4], [8, 8], [8, 8]]
    return FeedForward(classes, channels, _scaled(layers, width), [False] + [True] * 3, pool)


def vgg11(
    classes: int,
    channels: int = 3,
    width: int = 64,
    pool: Literal["average", "max"] = "average",
) -> nn.Module:
    """VGG-11 with batch norm and one linear layer, for 32x32 and up; `width` of its first layer."""
    layers = [[1], [2], [4, 4], [8, 8], [8, 8]]
    return FeedForward(classes, channels, _scaled(layers, width), [False] + [True] * 4, pool)


def vgg16(
    classes: int,
    channels: int = 3,
    width: int = 64,
    pool: Literal["average", "max"] = "average",
) -> nn.Module:
    """VGG-16 with batch norm and one linear layer, for 32x32 and up; `width` of its first layer."""
    layers = [[1, 1], [2, 2], [4, 4, 4], [8, 8, 8], [8, 8, 8]]
    return FeedForward(classes, channels, _scaled(layers, width), [False] + [True] * 4, pool)


def _scaled(layers: Sequence[Sequence[int]], width: int) -> list[list[int]]:
    return [[width * factor for factor in stage] for stage in layers]
