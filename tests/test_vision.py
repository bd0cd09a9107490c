"""torchvision and timm beside any torch, and timm's fused layers as plain ones."""

from __future__ import annotations

import importlib.util
import subprocess
import sys

import pytest
import torch
from torch import nn

from spikelet import vision
from spikelet.errors import UserError


def test_torchvision_imports_and_works():
    package = vision.torchvision()
    image = torch.arange(12, dtype=torch.uint8).view(1, 3, 4)
    flipped = package.transforms.functional.hflip(image)
    assert torch.equal(flipped, image.flip(2))
    assert vision.torchvision() is package


def test_importing_spikelet_vision_imports_neither_package():
    code = (
        "import sys, spikelet.vision; print(*(n in sys.modules for n in ('torchvision', 'timm')))"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.split() == ["False", "False"]


@pytest.mark.parametrize(
    ("open_package", "name"), [("torchvision", "torchvision"), ("timm", "timm")]
)
def test_a_missing_package_is_one_sentence(monkeypatch, open_package, name):
    find = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda n, *rest: None if n == name else find(n, *rest)
    )
    with pytest.raises(UserError, match="pip install") as caught:
        getattr(vision, open_package).__wrapped__()
    assert "\n" not in str(caught.value)


with_timm = pytest.mark.skipif(
    importlib.util.find_spec("timm") is None, reason="timm is not installed"
)


def paired_steps(model: nn.Module, other: nn.Module, images: torch.Tensor) -> None:
    """Two training forwards, then one in eval mode: outputs and running statistics agree."""
    for one in (model, other):
        one.train()
    for part in images.chunk(2):
        torch.testing.assert_close(model(part), other(part))
    first = [m for m in model.modules() if isinstance(m, nn.BatchNorm2d)]
    second = [m for m in other.modules() if isinstance(m, nn.BatchNorm2d)]
    assert len(first) == len(second) > 0
    for mine, theirs in zip(first, second, strict=True):
        torch.testing.assert_close(mine.running_mean, theirs.running_mean)
        torch.testing.assert_close(mine.running_var, theirs.running_var)
        assert mine.num_batches_tracked == theirs.num_batches_tracked == 2
    with torch.no_grad():
        torch.testing.assert_close(model.eval()(images), other.eval()(images))


def fused(model: nn.Module) -> int:
    kinds = ("BatchNormAct2d", "ConvMlp")
    return sum(type(module).__name__ in kinds for module in model.modules())


@with_timm
@pytest.mark.parametrize(
    ("name", "uses"),
    [
        ("resnet18", False),
        ("regnetx_002", True),
        ("mobilenetv3_small_050", True),
        ("convnext_atto", False),
    ],
)
def test_plain_equals_the_original_and_its_trace_switches_modes(name, uses):
    model = vision.timm().create_model(name, num_classes=5)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    rewritten = vision.plain(model)
    assert (fused(model) > 0) is uses
    assert fused(rewritten) == 0
    assert list(model.state_dict()) == list(before)
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    assert sum(p.numel() for p in rewritten.parameters()) == sum(
        p.numel() for p in model.parameters()
    )
    ours = {id(p) for p in rewritten.parameters()}
    assert not any(id(p) in ours for p in model.parameters())
    if any(isinstance(module, nn.BatchNorm2d) for module in model.modules()):
        traced = torch.fx.symbolic_trace(rewritten)
        paired_steps(model, traced, torch.randn(4, 3, 64, 64))


class Fused(nn.Module):
    """Both fused layers, one of them shared by two names."""

    def __init__(self) -> None:
        super().__init__()
        layers = __import__("timm.layers", fromlist=["layers"])
        self.norm = layers.BatchNormAct2d(3, momentum=None)
        self.quiet = layers.BatchNormAct2d(3, apply_act=False)
        self.mlp = layers.ConvMlp(3, 5, 4, norm_layer=layers.BatchNormAct2d)
        self.again = self.norm

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.mlp(self.quiet(self.norm(x)))


@with_timm
def test_plain_rewrites_shared_nested_and_cumulative_layers():
    vision.timm()
    model = Fused()
    rewritten = vision.plain(model)
    assert rewritten.again is rewritten.norm
    assert type(rewritten.quiet) is nn.BatchNorm2d
    assert [name for name, _ in rewritten.mlp.named_children()] == [
        *("fc1", "norm", "act", "drop", "fc2")
    ]
    assert rewritten.norm.bn.momentum is None
    paired_steps(model, torch.fx.symbolic_trace(rewritten), torch.randn(8, 3, 6, 6))


def test_plain_keeps_the_mode_and_copies_other_models():
    model = nn.Sequential(nn.Conv2d(1, 1, 1), nn.BatchNorm2d(1)).eval()
    copied = vision.plain(model)
    assert copied is not model
    assert not copied.training
    assert not copied[1].training
