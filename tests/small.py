"""Tiny networks and quick ways to run them, shared by the tests."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

from spikelet.convert import convert
from spikelet.neuron import IF, LIF, Neuron
from spikelet.spike import Arctangent, Rectangle, Sigmoid, Triangle

SURROGATES = {
    "sigmoid": Sigmoid(),
    "arctangent": Arctangent(),
    "triangle": Triangle(),
    "rectangle": Rectangle(),
}

RULES = [
    (reset, detach, rest)
    for reset, rest in (("soft", 0.0), ("hard", 0.0), ("hard", -0.2))
    for detach in (False, True)
]
"""Every reset rule: (reset, detach, v_reset)."""


def neurons(**fields: object) -> dict[str, Neuron]:
    """One of each neuron variant, by a speaking name; `fields` overrule those of all."""
    table: dict[str, Neuron] = {}
    for reset, detach, rest in RULES:
        rule = {"reset": reset, "detach": detach, "v_reset": rest, **fields}
        end = f"{reset}{rest:g}-{'detached' if detach else 'full'}"
        table[f"IF-{end}"] = IF(**rule)
        table[f"LIF-{end}"] = LIF(tau=1.8, **rule)
        table[f"LIF-decay-{end}"] = LIF(tau=1.8, input_decay=True, **rule)
    for detach in (False, True):
        end = "detached" if detach else "full"
        table[f"IF-signed-{end}"] = IF(signed=True, detach=detach, **fields)
        table[f"LIF-signed-{end}"] = LIF(signed=True, detach=detach, **fields)
    return table


class Untracked(nn.Module):
    """A norm that has no running statistics, twice, behind one value per channel."""

    def __init__(self, function: bool = False) -> None:
        super().__init__()
        self.layer, self.norm = nn.Linear(6, 8), nn.BatchNorm1d(8, track_running_stats=False)
        self.relu, self.linear, self.function = nn.ReLU(), nn.Linear(8, 3), function

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm(input=self.layer(x))
        x = F.batch_norm(x, None, None, training=True) if self.function else self.norm(x)
        return self.linear(self.relu(x))


class Residual(nn.Module):
    """conv-bn-ReLU, then conv-bn with a skip, ReLU, mean over positions, linear."""

    def __init__(self, channels: int = 2, width: int = 4, classes: int = 3) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, width, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.relu1 = nn.ReLU()
        self.conv2 = nn.Conv2d(width, width, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.relu2 = nn.ReLU()
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.linear = nn.Linear(width, classes)

    def forward(self, x: Tensor) -> Tensor:
        x = self.relu1(self.bn1(self.conv1(x)))
        x = self.relu2(self.bn2(self.conv2(x)) + x)
        return self.linear(torch.flatten(self.pool(x), 1))


class Stages(nn.Module):
    """Two or three stages of conv-bn-ReLU at 8x8, 4x4 and 2x2; the last two have a skip."""

    def __init__(self, channels: int = 2, width: int = 4, classes: int = 3) -> None:
        super().__init__()
        self.layer1 = block(channels, width)
        self.down = nn.AvgPool2d(2)
        self.layer2 = block(width, 2 * width)
        self.conv = nn.Conv2d(2 * width, 2 * width, 3, padding=1)
        self.relu = nn.ReLU()
        self.layer3 = block(2 * width, 2 * width)
        self.linear = nn.Linear(2 * width, classes)

    def forward(self, x: Tensor) -> Tensor:
        x = self.layer2(self.down(self.layer1(x)))
        x = self.relu(self.conv(x) + x)
        return self.linear(self.layer3(self.down(x)).mean((2, 3)))


class Concatenate(nn.Module):
    """Two branches, one of the input itself, joined by torch.cat."""

    def __init__(self) -> None:
        super().__init__()
        self.left = block(2, 3)
        self.right = nn.Conv2d(2, 3, 1)
        self.join = block(8, 4)
        self.linear = nn.Linear(4 * 64, 3)

    def forward(self, x: Tensor) -> Tensor:
        y = torch.cat([self.left(x), F.relu(self.right(x)), x], 1)
        y = self.join(y)
        return self.linear(y.view(y.size(0), -1))


class SizeOfInput(nn.Module):
    """The batch size is read from the input and used at the end."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = block(2, 3)
        self.linear = nn.Linear(3 * 64, 3)

    def forward(self, x: Tensor) -> Tensor:
        batch = x.shape[0]
        return self.linear(self.layer(x).view(batch, -1))


class FunctionalDropout(nn.Module):
    """Dropout as a function, which reads the module's mode when it is traced."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(6, 12), nn.Linear(12, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.first(x))
        return self.second(F.dropout(x, 0.5, training=self.training))


def block(inputs: int, outputs: int) -> nn.Sequential:
    """Convolution, batch norm, ReLU."""
    return nn.Sequential(
        nn.Conv2d(inputs, outputs, 3, padding=1, bias=False), nn.BatchNorm2d(outputs), nn.ReLU()
    )


def max_pooled() -> nn.Module:
    """ReLU, then max pooling, which conversion puts the other way round."""
    return nn.Sequential(
        *block(2, 4), nn.MaxPool2d(2), *block(4, 4), nn.Flatten(), nn.Linear(64, 3)
    )


def pooled_spikes() -> nn.Module:
    """Max pooling of a sum of activations: it acts on spikes."""
    return nn.Sequential(
        *block(2, 4), nn.AvgPool2d(1), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(64, 3)
    )


def dropped() -> nn.Module:
    """Dropout of channels and of units."""
    return nn.Sequential(
        *block(2, 4), nn.Dropout2d(0.3), nn.AvgPool2d(2), *block(4, 4), nn.Flatten(),
        nn.Dropout(0.4), nn.Linear(64, 3),
    )  # fmt: skip


def depthwise() -> nn.Module:
    """Grouped and depthwise convolutions, ReLU6, a nested Sequential."""
    return nn.Sequential(
        nn.Sequential(nn.Conv2d(2, 4, 3, 2, 1, groups=2), nn.BatchNorm2d(4), nn.ReLU6()),
        nn.Sequential(nn.Sequential(nn.Conv2d(4, 4, 3, padding=1, groups=4), nn.ReLU6())),
        nn.Conv2d(4, 6, 1, bias=False), nn.BatchNorm2d(6, affine=False), nn.ReLU6(),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(6, 3, bias=False),
    )  # fmt: skip


def mlp() -> nn.Module:
    """Linear layers with batch norm on vectors of 6."""
    return nn.Sequential(
        nn.Linear(6, 12), nn.BatchNorm1d(12), nn.ReLU(), nn.Linear(12, 8, bias=False), nn.ReLU(),
        nn.Linear(8, 3),
    )  # fmt: skip


def one_dimensional() -> nn.Module:
    """Convolutions along a line of 8."""
    return nn.Sequential(
        nn.Conv1d(2, 4, 3, padding="same"), nn.BatchNorm1d(4), nn.ReLU(), nn.AvgPool1d(2),
        nn.Conv1d(4, 4, 3, padding=1, padding_mode="circular"), nn.ReLU(), nn.Flatten(),
        nn.Linear(16, 3),
    )  # fmt: skip


PICTURE, VECTOR, LINE = (2, 8, 8), (6,), (2, 8)
MODELS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "residual": (Residual, PICTURE),
    "stages": (Stages, PICTURE),
    "concatenate": (Concatenate, PICTURE),
    "size of input": (SizeOfInput, PICTURE),
    "functional dropout": (FunctionalDropout, VECTOR),
    "max pool": (max_pooled, PICTURE),
    "max pool of spikes": (pooled_spikes, PICTURE),
    "dropout": (dropped, PICTURE),
    "depthwise": (depthwise, PICTURE),
    "mlp": (mlp, VECTOR),
    "one-dimensional": (one_dimensional, LINE),
}
EXACT = sorted(set(MODELS) - {"max pool of spikes"})
"""Networks in which nothing but neurons is non-linear in the spikes."""


def images(name: str = "residual", batch: int = 4, seed: int = 0) -> Tensor:
    """Random images of a network's size, float64."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(batch, *MODELS[name][1], generator=generator, dtype=torch.float64)


def network(name: str = "residual", seed: int = 0) -> nn.Module:
    """A network of MODELS, float64, with every parameter and statistic away from its default."""
    torch.manual_seed(seed)
    return scattered(MODELS[name][0]().double(), seed)


def scattered(model: nn.Module, seed: int = 0) -> nn.Module:
    """Moves a model's norms away from the identity, in place; without touching the global seed."""
    generator = torch.Generator().manual_seed(seed + 1)

    def uniform(like: Tensor) -> Tensor:
        return torch.rand(like.shape, generator=generator, dtype=torch.float64)

    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, nn.modules.batchnorm._BatchNorm):
                if module.affine:
                    module.weight.copy_(uniform(module.weight) + 0.5)
                    module.bias.copy_(uniform(module.bias) * 0.6)
                module.running_mean.copy_(uniform(module.running_mean) - 0.5)
                module.running_var.copy_(uniform(module.running_var) + 0.5)
    return model


def student(
    name: str = "residual", neuron: Neuron | None = None, seed: int = 0, calibrated: bool = False
) -> fx.GraphModule:
    """A spiking network of MODELS in float64; its thresholds differ from 1 by default."""
    neuron = IF(threshold=0.75, initial=0.25) if neuron is None else neuron
    examples = images(name, 16, seed + 7) if calibrated else None
    return convert(network(name, seed), neuron, calibrate=examples).double()


def moving(name: str = "residual", steps: int = 4, batch: int = 4, seed: int = 3) -> Tensor:
    """Random images that differ at each step, "T B ...", float64."""
    return torch.stack([images(name, batch, seed + t) for t in range(steps)])


def gradients(net: nn.Module, loss: Tensor) -> dict[str, Tensor]:
    """The gradient of a loss for every parameter, by name; zeros where there is none."""
    named = {name: p for name, p in net.named_parameters() if p.requires_grad}
    found = torch.autograd.grad(loss, list(named.values()), allow_unused=True)
    return {
        name: torch.zeros_like(p) if g is None else g
        for (name, p), g in zip(named.items(), found, strict=True)
    }


def assert_same(
    ours: dict[str, Tensor], theirs: dict[str, Tensor], tolerance: float = 1e-10
) -> None:
    """The same names, and values that are equal up to `tolerance` of the largest."""
    assert ours.keys() == theirs.keys()
    for name, value in ours.items():
        scale = max(float(theirs[name].abs().max()), 1.0)
        error = float((value - theirs[name]).abs().max()) / scale
        assert error <= tolerance, f"{name}: off by {error:.3g} of its largest value"


def spread(values: Sequence[Tensor]) -> float:
    """The largest absolute value among tensors."""
    return max(float(value.abs().max()) for value in values)
