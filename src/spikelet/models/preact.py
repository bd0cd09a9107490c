"""Residual networks that activate before they convolve, so that their sums are of currents.

PreAct-ResNet, wide residual networks (WRN), MS-ResNet and PyramidNet, all with a 3x3 stem at
stride 1 for small images.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Final, final

from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional

from spikelet.models.initial import conv3x3, initialise
from spikelet.models.resnet import doubling, projection

Block = Callable[[int, int, int], nn.Module]


@final
class PreActBlock(nn.Module):
    """Pre-activation block (He et al., 2016b, figure 4e).

    x + conv(relu(bn(conv(relu(bn(x)))))); where the shape changes, a 1x1 convolution of
    relu(bn(x)) stands for x.
    """

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.bn1 = nn.BatchNorm2d(inputs)
        self.relu1 = nn.ReLU()
        self.conv1 = conv3x3(inputs, outputs, stride)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.relu2 = nn.ReLU()
        self.conv2 = conv3x3(outputs, outputs)
        self.shortcut: nn.Module | None = None
        if stride > 1 or inputs != outputs:
            self.shortcut = nn.Conv2d(inputs, outputs, 1, stride=stride, bias=False)

    def forward(self, x: Float[Tensor, "B C H W"]) -> Float[Tensor, "B D h w"]:
        """The block's sum of currents."""
        active = self.relu1(self.bn1(x))
        inner = self.conv2(self.relu2(self.bn2(self.conv1(active))))
        return inner + (x if self.shortcut is None else self.shortcut(active))


@final
class MembraneBlock(nn.Module):
    """Membrane-shortcut block (Hu et al., arXiv 2112.08954).

    bn(conv(relu(bn(conv(relu(x)))))) + shortcut(x): the shortcut adds currents, so it carries
    values where everything else carries spikes.
    """

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.relu1 = nn.ReLU()
        self.conv1 = conv3x3(inputs, outputs, stride)
        self.bn1 = nn.BatchNorm2d(outputs)
        self.relu2 = nn.ReLU()
        self.conv2 = conv3x3(outputs, outputs)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.shortcut = projection(inputs, outputs, stride)

    def forward(self, x: Float[Tensor, "B C H W"]) -> Float[Tensor, "B D h w"]:
        """The block's sum of currents."""
        inner = self.relu2(self.bn1(self.conv1(self.relu1(x))))
        return self.bn2(self.conv2(inner)) + self.shortcut(x)


@final
class Widening(nn.Module):
    """Shortcut without parameters: mean over stride x stride pixels, then channels of zeros."""

    stride: Final[int]

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.stride = stride
        self.padding = (0, 0, 0, 0, 0, outputs - inputs)

    def forward(self, x: Float[Tensor, "B C H W"]) -> Float[Tensor, "B D h w"]:
        """ "B C H W" to "B D h w" with h = H / stride, w = W / stride, rounded up."""
        if self.stride > 1:
            x = functional.avg_pool2d(x, self.stride, ceil_mode=True)
        return functional.pad(x, self.padding)


@final
class PyramidBlock(nn.Module):
    """Pyramidal block (Han et al., arXiv 1610.02915, figure 6d).

    bn(conv(relu(bn(conv(bn(x)))))) + x with zeros for the channels that are new.
    """

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.bn1 = nn.BatchNorm2d(inputs)
        self.conv1 = conv3x3(inputs, outputs, stride)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.relu = nn.ReLU()
        self.conv2 = conv3x3(outputs, outputs)
        self.bn3 = nn.BatchNorm2d(outputs)
        self.shortcut = Widening(inputs, outputs, stride)

    def forward(self, x: Float[Tensor, "B C H W"]) -> Float[Tensor, "B D h w"]:
        """The block's sum of currents."""
        inner = self.relu(self.bn2(self.conv1(self.bn1(x))))
        return self.bn3(self.conv2(inner)) + self.shortcut(x)


@final
class PreActNet(nn.Module):
    """Stem, stages `layer1`.. of blocks, ReLU, mean over pixels, classifier `linear`.

    `widths` names the output channels of every block by stage; each stage but the first halves
    the resolution. Whether batch norm follows the stem and precedes the last ReLU depends on what
    the blocks begin and end with.
    """

    def __init__(
        self,
        classes: int,
        channels: int,
        stem: int,
        widths: Sequence[Sequence[int]],
        block: Block,
        norm_first: bool,
        norm_last: bool,
    ) -> None:
        super().__init__()
        self.conv1 = conv3x3(channels, stem)
        self.bn1 = nn.BatchNorm2d(stem) if norm_first else nn.Identity()
        self.stages = tuple(f"layer{number}" for number in range(1, len(widths) + 1))
        inputs = stem
        for number, (name, outputs) in enumerate(zip(self.stages, widths, strict=True)):
            stage = nn.Sequential()
            for position, width in enumerate(outputs):
                stage.append(block(inputs, width, 2 if number and not position else 1))
                inputs = width
            self.add_module(name, stage)
        self.bn = nn.BatchNorm2d(inputs) if norm_last else nn.Identity()
        self.relu = nn.ReLU()
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.flatten = nn.Flatten()
        self.linear = nn.Linear(inputs, classes)
        initialise(self)

    def forward(self, x: Float[Tensor, "B C H W"]) -> Float[Tensor, "B K"]:
        """Images "B C H W" to logits "B K"."""
        x = self.bn1(self.conv1(x))
        for name in self.stages:
            x = self.get_submodule(name)(x)
        return self.linear(self.flatten(self.pool(self.relu(self.bn(x)))))


def _stages(widths: Sequence[int], blocks: Sequence[int]) -> list[list[int]]:
    return [[width] * count for width, count in zip(widths, blocks, strict=True)]


def preact_resnet18(classes: int, channels: int = 3, width: int = 64) -> nn.Module:
    """PreAct-ResNet-18 (He et al., 2016b): 2-2-2-2 blocks of `width` times 1, 2, 4, 8 channels."""
    stages = _stages(doubling(width), [2, 2, 2, 2])
    return PreActNet(classes, channels, width, stages, PreActBlock, False, True)


def preact_resnet34(classes: int, channels: int = 3, width: int = 64) -> nn.Module:
    """PreAct-ResNet-34 (He et al., 2016b): 3-4-6-3 blocks of `width` times 1, 2, 4, 8 channels."""
    stages = _stages(doubling(width), [3, 4, 6, 3])
    return PreActNet(classes, channels, width, stages, PreActBlock, False, True)


def ms_resnet18(classes: int, channels: int = 3, width: int = 64) -> nn.Module:
    """MS-ResNet-18 (Hu et al., arXiv 2112.08954), as its ANN: 2-2-2-2 membrane-shortcut blocks.

    Differs from the paper by a 3x3 stem without pooling, for small images.
    """
    stages = _stages(doubling(width), [2, 2, 2, 2])
    return PreActNet(classes, channels, width, stages, MembraneBlock, True, False)


def ms_resnet34(classes: int, channels: int = 3, width: int = 64) -> nn.Module:
    """MS-ResNet-34: as MS-ResNet-18, with 3-4-6-3 blocks."""
    stages = _stages(doubling(width), [3, 4, 6, 3])
    return PreActNet(classes, channels, width, stages, MembraneBlock, True, False)


def wrn16_2(classes: int, channels: int = 3, width: int = 16) -> nn.Module:
    """WRN-16-2 (Zagoruyko & Komodakis, 2016), without dropout; `width` of its stem."""
    return _wide(classes, channels, width, blocks=2, factor=2)


def wrn28_4(classes: int, channels: int = 3, width: int = 16) -> nn.Module:
    """WRN-28-4 (Zagoruyko & Komodakis, 2016), without dropout; `width` of its stem."""
    return _wide(classes, channels, width, blocks=4, factor=4)


def _wide(classes: int, channels: int, width: int, blocks: int, factor: int) -> nn.Module:
    """Three stages of pre-activation blocks, `factor` times wider than ResNet's."""
    stages = _stages([width * factor * scale for scale in (1, 2, 4)], [blocks] * 3)
    return PreActNet(classes, channels, width, stages, PreActBlock, False, True)


def pyramidnet18(classes: int, channels: int = 3, width: int = 64, alpha: int = 48) -> nn.Module:
    """PyramidNet-18 (Han et al., arXiv 1610.02915): every block is alpha / 8 channels wider.

    From `width` to `width + alpha` channels, rounded, over 2-2-2-2 blocks. The layers are those
    of the paper's 18-layer form for ImageNet; differs by a 3x3 stem without pooling.
    """
    wide = [round(width + alpha * number / 8) for number in range(1, 9)]
    stages = [wide[first : first + 2] for first in range(0, 8, 2)]
    return PreActNet(classes, channels, width, stages, PyramidBlock, True, True)
