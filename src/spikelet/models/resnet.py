"""Residual networks for small images that activate after each sum, or (SEW) before it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Final, Literal, final

from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional

from spikelet.models.initial import conv3x3, initialise

Shortcut = Callable[[int, int, int], nn.Module]
Block = Callable[[int, int, int, Shortcut], nn.Module]


@final
class Subsample(nn.Module):
    """Shortcut without parameters: every n-th pixel, missing channels zero (option A)."""

    stride: Final[int]

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.stride = stride
        before = (outputs - inputs) // 2
        self.padding = (0, 0, 0, 0, before, outputs - inputs - before)

    def forward(self, x: Float[Tensor, "B C H W"]) -> Float[Tensor, "B D h w"]:
        """ "B C H W" to "B D h w" with h = H / stride, w = W / stride, rounded up."""
        return functional.pad(x[:, :, :: self.stride, :: self.stride], self.padding)


def projection(inputs: int, outputs: int, stride: int) -> nn.Module:
    """Shortcut as a 1x1 convolution with batch norm where the shape changes (option B)."""
    if stride == 1 and inputs == outputs:
        return nn.Identity()
    return nn.Sequential(
        nn.Conv2d(inputs, outputs, 1, stride=stride, bias=False), nn.BatchNorm2d(outputs)
    )


def subsampling(inputs: int, outputs: int, stride: int) -> nn.Module:
    """Shortcut without parameters where the shape changes (option A)."""
    if stride == 1 and inputs == outputs:
        return nn.Identity()
    return Subsample(inputs, outputs, stride)


def activated_projection(inputs: int, outputs: int, stride: int) -> nn.Module:
    """A projection that fires: 1x1 convolution, batch norm, ReLU, where the shape changes."""
    if stride == 1 and inputs == outputs:
        return nn.Identity()
    return nn.Sequential(
        nn.Conv2d(inputs, outputs, 1, stride=stride, bias=False),
        nn.BatchNorm2d(outputs),
        nn.ReLU(),
    )


@final
class BasicBlock(nn.Module):
    """Two 3x3 convolutions around a shortcut (He et al., 2016)."""

    def __init__(self, inputs: int, outputs: int, stride: int, shortcut: Shortcut) -> None:
        super().__init__()
        self.conv1 = conv3x3(inputs, outputs, stride)
        self.bn1 = nn.BatchNorm2d(outputs)
        self.relu1 = nn.ReLU()
        self.conv2 = conv3x3(outputs, outputs)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.shortcut = shortcut(inputs, outputs, stride)
        self.relu2 = nn.ReLU()

    def forward(self, x: Float[Tensor, "B C H W"]) -> Float[Tensor, "B D h w"]:
        """relu(bn(conv(relu(bn(conv(x))))) + shortcut(x))."""
        inner = self.relu1(self.bn1(self.conv1(x)))
        return self.relu2(self.bn2(self.conv2(inner)) + self.shortcut(x))


@final
class SewBlock(nn.Module):
    """Spike-element-wise block with g = ADD (Fang et al., 2021): a sum of activations.

    Nothing activates the sum: a student's sums are small whole multiples of theta, not binary.
    """

    def __init__(self, inputs: int, outputs: int, stride: int, shortcut: Shortcut) -> None:
        super().__init__()
        self.conv1 = conv3x3(inputs, outputs, stride)
        self.bn1 = nn.BatchNorm2d(outputs)
        self.relu1 = nn.ReLU()
        self.conv2 = conv3x3(outputs, outputs)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.relu2 = nn.ReLU()
        self.shortcut = shortcut(inputs, outputs, stride)

    def forward(self, x: Float[Tensor, "B C H W"]) -> Float[Tensor, "B D h w"]:
        """relu(bn(conv(relu(bn(conv(x)))))) + shortcut(x)."""
        inner = self.relu1(self.bn1(self.conv1(x)))
        return self.relu2(self.bn2(self.conv2(inner))) + self.shortcut(x)


@final
class ResNet(nn.Module):
    """Stem, stages `layer1`.. of blocks, mean over pixels, classifier `linear`.

    The first stage keeps the resolution, each later one halves it. With `hidden` a layer `fc` of
    that width and a ReLU come before the classifier.
    """

    def __init__(
        self,
        classes: int,
        channels: int,
        widths: Sequence[int],
        blocks: Sequence[int],
        shortcut: Shortcut,
        hidden: int | None = None,
        block: Block = BasicBlock,
    ) -> None:
        super().__init__()
        self.conv1 = conv3x3(channels, widths[0])
        self.bn1 = nn.BatchNorm2d(widths[0])
        self.relu = nn.ReLU()
        self.stages = tuple(f"layer{number}" for number in range(1, len(blocks) + 1))
        inputs = widths[0]
        for number, (name, width, count) in enumerate(
            zip(self.stages, widths, blocks, strict=True)
        ):
            stage = nn.Sequential()
            for position in range(count):
                stride = 2 if number and not position else 1
                stage.append(block(inputs, width, stride, shortcut))
                inputs = width
            self.add_module(name, stage)
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.flatten = nn.Flatten()
        if hidden is None:
            self.linear = nn.Linear(inputs, classes)
        else:
            self.fc = nn.Linear(inputs, hidden)
            self.relu_fc = nn.ReLU()
            self.linear = nn.Linear(hidden, classes)
        self.hidden = hidden
        initialise(self)

    def forward(self, x: Float[Tensor, "B C H W"]) -> Float[Tensor, "B K"]:
        """Images "B C H W" to logits "B K"."""
        x = self.relu(self.bn1(self.conv1(x)))
        for name in self.stages:
            x = self.get_submodule(name)(x)
        x = self.flatten(self.pool(x))
        if self.hidden is not None:
            x = self.relu_fc(self.fc(x))
        return self.linear(x)


SHORTCUTS: dict[str, Shortcut] = {"projection": projection, "subsampling": subsampling}


def doubling(width: int) -> list[int]:
    """The widths of four stages: `width` times 1, 2, 4, 8."""
    return [width, 2 * width, 4 * width, 8 * width]


def resnet18(classes: int, channels: int = 3, width: int = 64) -> nn.Module:
    """ResNet-18 with a 3x3 stem: 2-2-2-2 blocks of `width` times 1, 2, 4, 8 channels."""
    return ResNet(classes, channels, doubling(width), [2, 2, 2, 2], projection)


def resnet34(classes: int, channels: int = 3, width: int = 64) -> nn.Module:
    """ResNet-34 with a 3x3 stem: 3-4-6-3 blocks of `width` times 1, 2, 4, 8 channels."""
    return ResNet(classes, channels, doubling(width), [3, 4, 6, 3], projection)


def sew_resnet18(classes: int, channels: int = 3, width: int = 64) -> nn.Module:
    """SEW-ResNet-18 (Fang et al., 2021, arXiv 2102.04159), g = ADD, as its ANN.

    Differs from the paper by a 3x3 stem without max pooling, for small images.
    """
    return ResNet(
        classes, channels, doubling(width), [2, 2, 2, 2], activated_projection, block=SewBlock
    )


def sew_resnet34(classes: int, channels: int = 3, width: int = 64) -> nn.Module:
    """SEW-ResNet-34: as SEW-ResNet-18, with 3-4-6-3 blocks."""
    return ResNet(
        classes, channels, doubling(width), [3, 4, 6, 3], activated_projection, block=SewBlock
    )


def resnet19(classes: int, channels: int = 3, width: int = 128) -> nn.Module:
    """ResNet-19 of the spiking literature: 3-3-2 blocks, two linear layers (Zheng et al., 2021)."""
    widths = [width, 2 * width, 4 * width]
    return ResNet(classes, channels, widths, [3, 3, 2], projection, hidden=2 * width)


def resnet20(
    classes: int,
    channels: int = 3,
    width: int = 16,
    shortcut: Literal["projection", "subsampling"] = "subsampling",
) -> nn.Module:
    """ResNet-20 for CIFAR: 3-3-3 blocks of `width` times 1, 2, 4 channels (He et al., 2016)."""
    return ResNet(classes, channels, [width, 2 * width, 4 * width], [3] * 3, SHORTCUTS[shortcut])


def resnet56(
    classes: int,
    channels: int = 3,
    width: int = 16,
    shortcut: Literal["projection", "subsampling"] = "subsampling",
) -> nn.Module:
    """ResNet-56 for CIFAR: 9-9-9 blocks of `width` times 1, 2, 4 channels (He et al., 2016)."""
    return ResNet(classes, channels, [width, 2 * width, 4 * width], [9] * 3, SHORTCUTS[shortcut])
