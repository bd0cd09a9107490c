"""Every model passes one table; names, weights and misfits through `build_model`."""

from __future__ import annotations

import copy
import importlib.util
import re

import numpy as np
import pytest
import safetensors.torch
import torch
from torch import nn
from torch.nn import functional

from small import gradients, scattered
from spikelet import models
from spikelet.convert import convert
from spikelet.cuts import stages
from spikelet.data import Batches, cifar10
from spikelet.distill import match
from spikelet.encode import repeat
from spikelet.errors import UserError
from spikelet.execute import ann, bptt, rate
from spikelet.graph import capture
from spikelet.models import preact
from spikelet.models.resnet import SewBlock, Subsample, activated_projection
from spikelet.recipe import DATA, MODELS

# name, channels, size, width, stages, parameters at the default width with 10 classes and RGB
TABLE = [
    ("small-cnn", 1, 8, 8, 3, 29_418),
    ("small-cnn", 3, 32, 8, 3, 29_418),
    ("resnet18", 3, 32, 8, 4, 11_173_962),
    ("resnet18", 1, 28, 8, 4, 11_173_962),
    ("resnet19", 3, 32, 8, 3, 12_697_994),
    ("resnet20", 3, 32, 8, 3, 269_722),
    ("resnet34", 3, 32, 4, 4, 21_282_122),
    ("resnet56", 3, 32, 4, 3, 853_018),
    ("preact-resnet18", 3, 32, 4, 4, 11_172_170),
    ("preact-resnet34", 2, 30, 4, 4, 21_280_330),
    ("ms-resnet18", 1, 28, 4, 4, 11_173_962),
    ("ms-resnet34", 3, 32, 4, 4, 21_282_122),
    ("sew-resnet18", 3, 64, 4, 4, 11_173_962),
    ("sew-resnet34", 1, 28, 4, 4, 21_282_122),
    ("wrn16-2", 3, 64, 4, 3, 691_674),
    ("wrn28-4", 3, 32, 2, 3, 5_849_050),
    ("pyramidnet18", 3, 30, 4, 4, 1_187_850),
    ("vgg9", 1, 28, 8, 3, 2_010_058),
    ("vggsnn", 3, 64, 4, 4, 9_228_362),
    ("vgg11", 3, 32, 8, 5, 9_228_362),
    ("vgg16", 3, 32, 8, 5, 14_724_042),
]
NAMES = sorted({row[0] for row in TABLE})


def built(name: str, channels: int, size: int, width: int | None, **options) -> nn.Module:
    return models.build_model(
        name, classes=10, channels=channels, size=size, width=width, **options
    )


def test_the_table_covers_every_model():
    assert {row[0] for row in TABLE} == set(MODELS)


@pytest.mark.parametrize(("name", "channels", "size", "width", "stages", "_count"), TABLE)
def test_every_model(name, channels, size, width, stages, _count):
    model = built(name, channels, size, width, seed=1)
    images = torch.randn(4, channels, size, size)
    assert model.training
    logits = model(images)
    assert logits.shape == (4, 10)
    assert logits.dtype == torch.float32

    same, other = built(name, channels, size, width, seed=1), built(name, channels, size, width)
    assert all(map(torch.equal, model.parameters(), same.parameters()))
    assert not torch.equal(model.conv1.weight, other.conv1.weight) if "res" in name else True

    functional.cross_entropy(logits, torch.arange(4)).backward()
    for path, parameter in model.named_parameters():
        assert parameter.grad is not None, path
        assert parameter.grad.isfinite().all(), path

    copied = copy.deepcopy(model).eval()
    same.load_state_dict(model.state_dict())
    traced = torch.fx.symbolic_trace(model).eval()
    model.eval()
    with torch.no_grad():
        expected = model(images)
        for twin in (copied, same.eval(), traced):
            assert torch.equal(twin(images), expected)
    assert not expected.isnan().any()

    for stage in range(1, stages + 1):
        assert isinstance(model.get_submodule(f"layer{stage}"), nn.Sequential)
        assert any(f"layer{stage}_" in node.name for node in traced.graph.nodes)
    assert isinstance(model.linear, nn.Linear)
    activations = [m for m in model.modules() if type(m).__module__.endswith("activation")]
    assert activations
    assert all(type(module) is nn.ReLU for module in activations)
    functions = {node.target for node in traced.graph.nodes if node.op == "call_function"}
    assert not functions & {torch.relu, functional.relu}


@pytest.mark.parametrize(("name", "count"), sorted({(row[0], row[5]) for row in TABLE}))
def test_sizes_at_default_width(name, count):
    with torch.device("meta"):
        model = models.build_model(name, classes=10, channels=3, size=32)
    assert sum(parameter.numel() for parameter in model.parameters()) == count


def test_seed_leaves_the_global_generator_alone():
    torch.manual_seed(3)
    expected = torch.rand(1)
    torch.manual_seed(3)
    built("small-cnn", 1, 8, 4, seed=7)
    assert torch.equal(torch.rand(1), expected)


def test_option_a_shortcut_by_hand():
    images = torch.randn(2, 4, 5, 6)
    wanted = torch.zeros(2, 8, 3, 3)
    for row in range(3):
        for column in range(3):
            wanted[:, 2:6, row, column] = images[:, :, 2 * row, 2 * column]
    assert torch.equal(Subsample(4, 8, 2)(images), wanted)


# ---------------------------------------------------------------- conversion


@pytest.mark.parametrize("name", NAMES)
def test_every_model_converts(name):
    """Its graph is the model; unrolled and rate passes agree; every parameter gets a gradient."""
    model = scattered(built(name, 3, 28, 2, seed=0).double())
    images = torch.randn(2, 3, 28, 28, dtype=torch.float64)
    teacher = capture(model).eval()
    reference = ann(teacher, images.unsqueeze(0))
    torch.testing.assert_close(reference.mean_logits, model.eval()(images))

    fresh, student = convert(model).double(), convert(model, steps=2, calibrate=images).double()
    assert fresh.state_dict().keys() == student.state_dict().keys()
    assert rate(fresh, repeat(images, 2)).logits.isfinite().all()
    assert all(type(m) is not nn.ReLU for m in student.modules())
    places = stages(student, images[:1])
    assert places == stages(teacher, images[:1])
    assert len(places) == next(row[4] for row in TABLE if row[0] == name) - (name == "small-cnn")
    assert match(student, teacher, images) == tuple((p, p) for p in places.values())
    runs = [e(student.eval(), repeat(images, 2), list(places.values())) for e in (bptt, rate)]
    torch.testing.assert_close(runs[1].logits, runs[0].logits)
    for place in places.values():
        torch.testing.assert_close(runs[1].taps[place].mean, runs[0].taps[place].mean)
    logits = rate(student.train(), repeat(images, 2)).mean_logits
    for path, grad in gradients(student, functional.cross_entropy(logits, torch.arange(2))).items():
        assert grad.isfinite().all(), path


def test_stages_of_different_architectures_pair_by_resolution():
    teacher = capture(built("resnet34", 3, 32, 2))
    student = convert(built("wrn16-2", 3, 32, 2))
    pairs = match(student, teacher, torch.zeros(1, 3, 32, 32))
    assert pairs == (
        ("layer2_0_relu1", "layer1_2_relu2"),
        ("layer3_0_relu1", "layer2_3_relu2"),
        ("relu", "layer3_5_relu2"),
    )


# ---------------------------------------------------------------- the papers' blocks


def plainly(norm: nn.BatchNorm2d, x: torch.Tensor) -> torch.Tensor:
    """Batch norm in eval mode by its formula."""
    mean, variance, weight, bias = (
        value.reshape(1, -1, 1, 1)
        for value in (norm.running_mean, norm.running_var, norm.weight, norm.bias)
    )
    return (x - mean) / (variance + norm.eps).sqrt() * weight + bias


def convolved(conv: nn.Conv2d, x: torch.Tensor) -> torch.Tensor:
    """A convolution as sums over shifted images."""
    size, stride = conv.kernel_size[0], conv.stride[0]
    padded = functional.pad(x, [conv.padding[0]] * 4)
    rows, columns = ((padded.shape[d] - size) // stride + 1 for d in (2, 3))
    total = 0
    for i in range(size):
        for j in range(size):
            seen = padded[:, :, i : i + stride * rows : stride, j : j + stride * columns : stride]
            total = total + torch.einsum("bchw,dc->bdhw", seen, conv.weight[:, :, i, j])
    return total


def preact_by_hand(b, x, changed):
    active = plainly(b.bn1, x).clamp(min=0)
    inner = convolved(b.conv2, plainly(b.bn2, convolved(b.conv1, active)).clamp(min=0))
    return inner + (convolved(b.shortcut, active) if changed else x)


def membrane_by_hand(b, x, changed):
    inner = plainly(b.bn1, convolved(b.conv1, x.clamp(min=0))).clamp(min=0)
    way = plainly(b.shortcut[1], convolved(b.shortcut[0], x)) if changed else x
    return plainly(b.bn2, convolved(b.conv2, inner)) + way


def pyramid_by_hand(b, x, changed):
    inner = plainly(b.bn2, convolved(b.conv1, plainly(b.bn1, x))).clamp(min=0)
    total = plainly(b.bn3, convolved(b.conv2, inner))
    for row in range(total.shape[2]):
        for column in range(total.shape[3]):
            step = 2 if changed else 1
            square = x[:, :, step * row : step * (row + 1), step * column : step * (column + 1)]
            total[:, : x.shape[1], row, column] += square.mean((2, 3))
    return total


def sew_by_hand(b, x, changed):
    inner = plainly(b.bn1, convolved(b.conv1, x)).clamp(min=0)
    way = plainly(b.shortcut[1], convolved(b.shortcut[0], x)).clamp(min=0) if changed else x
    return plainly(b.bn2, convolved(b.conv2, inner)).clamp(min=0) + way


BLOCKS = {
    "preact": (preact.PreActBlock, preact_by_hand),
    "membrane": (preact.MembraneBlock, membrane_by_hand),
    "pyramid": (preact.PyramidBlock, pyramid_by_hand),
    "sew": (lambda *shape: SewBlock(*shape, activated_projection), sew_by_hand),
}


@pytest.mark.parametrize("size", [6, 5])
@pytest.mark.parametrize("shape", [(3, 3, 1), (3, 5, 2)])
@pytest.mark.parametrize("name", BLOCKS)
def test_blocks_by_hand(name, shape, size):
    make, by_hand = BLOCKS[name]
    block = scattered(make(*shape).double()).eval()
    x = torch.randn(2, 3, size, size, dtype=torch.float64)
    with torch.no_grad():
        torch.testing.assert_close(block(x), by_hand(block, x, shape[2] > 1))


@pytest.mark.parametrize("name", sorted(set(NAMES) - {"small-cnn", "vgg11", "vgg16"}))
def test_layers_are_as_many_as_the_name_says(name):
    """3x3 convolutions and linear layers; a wide network counts its convolutions of any size."""
    model = built(name, 3, 32, 2)
    convolutions = [m for m in model.modules() if isinstance(m, nn.Conv2d)]
    linear = sum(isinstance(m, nn.Linear) for m in model.modules())
    counted = sum(conv.kernel_size == (3, 3) for conv in convolutions) + linear
    if name.startswith("wrn"):
        counted = len(convolutions)
    digits = re.search(r"\d+", name.removeprefix("wrn"))
    assert counted == (9 if name == "vggsnn" else int(digits[0]))


def test_a_pyramid_widens_by_the_same_number_in_every_block():
    model = models.pyramidnet18(10, width=8, alpha=20)
    blocks = [block for name in model.stages for block in model.get_submodule(name)]
    assert [block.conv1.in_channels for block in blocks] == [8, 10, 13, 16, 18, 20, 23, 26]
    assert blocks[-1].conv2.out_channels == model.linear.in_features == 28
    assert [block.conv1.stride[0] for block in blocks] == [1, 1, 2, 1, 2, 1, 2, 1]


def test_every_dataset_has_a_default_model():
    assert set(DATA) <= set(models.DEFAULT_MODEL)
    names = [name for name, _ in models.DEFAULT_MODEL.values()]
    assert all(name in MODELS or name == "torchvision:resnet34" for name in names)
    assert models.default_model("digits") == ("small-cnn", 16)
    assert models.default_model("somebody's") == ("resnet18", 64)


# ---------------------------------------------------------------- weights


def saved(model: nn.Module, path, **extra):
    state = {**model.state_dict(), **extra}
    if path.suffix == ".npz":
        np.savez(path, **{name: value.numpy() for name, value in state.items()})
    elif path.suffix == ".safetensors":
        safetensors.torch.save_file(state, path)
    else:
        torch.save({"state_dict": {f"module.{k}": v for k, v in state.items()}, "epoch": 3}, path)
    return path


@pytest.mark.parametrize("suffix", [".npz", ".safetensors", ".pth", ".pt"])
def test_weight_files_round_trip(tmp_path, suffix):
    model = built("small-cnn", 1, 8, 4)
    loaded = built("small-cnn", 1, 8, 4, weights=saved(model, tmp_path / f"w{suffix}"))
    assert all(map(torch.equal, model.state_dict().values(), loaded.state_dict().values()))


def test_names_of_wrapped_models(tmp_path):
    model = built("small-cnn", 1, 8, 4)
    state = model.state_dict()
    torch.save({f"_orig_mod.{name}": value for name, value in state.items()}, tmp_path / "w.pt")
    loaded = built("small-cnn", 1, 8, 4, weights=tmp_path / "w.pt")
    assert all(map(torch.equal, state.values(), loaded.state_dict().values()))
    torch.save({f"module.{name}": value for name, value in state.items()}, tmp_path / "m.pt")
    parallel = torch.nn.DataParallel(built("small-cnn", 1, 8, 4))
    models.load_weights(parallel, tmp_path / "m.pt")
    assert all(map(torch.equal, state.values(), parallel.module.state_dict().values()))


def sentence(caught: pytest.ExceptionInfo[UserError]) -> str:
    text = str(caught.value)
    assert "\n" not in text
    assert text.endswith(".")
    assert not text.endswith("..")
    return text


def test_weight_files_that_cannot_be_read(tmp_path):
    for name, content in (("w.pth", b"junk"), ("w.npz", b"junk"), ("w.safetensors", b"junk")):
        (tmp_path / name).write_bytes(content)
    torch.save(nn.Linear(1, 1), tmp_path / "whole.pt")
    torch.save({"epoch": 3}, tmp_path / "empty.pt")
    (tmp_path / "notes.txt").write_text("hello")
    expected = {
        "absent.pth": "no such file",
        "notes.txt": "weight files end in",
        ".": "this is a folder",
        "w.pth": "cannot be read",
        "w.npz": "cannot be read",
        "w.safetensors": "cannot be read",
        "whole.pt": "whole pickled model",
        "empty.pt": "no state dict",
    }
    for name, message in expected.items():
        with pytest.raises(UserError, match=message) as caught:
            built("small-cnn", 1, 8, 4, weights=tmp_path / name)
        assert str(tmp_path) in sentence(caught)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"classes": 7}, "classifier has 7 classes, the data 10"),
        ({"width": 8}, "layer1.0.weight has shape"),
        ({"channels": 3}, r"\(4, 3, 3, 3\), the model's is \(4, 1, 3, 3\)"),
        ({"name": "resnet20"}, "missing layer1.0.weight, .* and 12 more, unexpected bn1.bias"),
    ],
)
def test_weights_that_do_not_fit(tmp_path, change, message):
    options = {"name": "small-cnn", "classes": 10, "channels": 1, "size": 8, "width": 4, **change}
    file = saved(models.build_model(**options), tmp_path / "w.safetensors")
    with pytest.raises(UserError, match=message) as caught:
        built("small-cnn", 1, 8, 4, weights=file)
    sentence(caught)


# ---------------------------------------------------------------- names


def segmenter(classes: int, channels: int) -> nn.Module:
    return nn.Conv2d(channels, classes, 1)


def fixed(classes: int) -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 3))


def flat(num_classes: int, size: int, depth: int = 1) -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.Linear(size * size, num_classes))


def nothing() -> int:
    return 3


def test_the_users_own_function():
    model = models.build_model("test_models:flat", classes=4, channels=1, size=8, depth=2)
    assert model(torch.zeros(2, 1, 8, 8)).shape == (2, 4)


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("resnet81", {}, "did you mean .*resnet18"),
        ("test_models:segmenter", {}, r"not \(2, 10, 8, 8\)"),
        ("test_models:fixed", {}, r"not \(2, 3\)"),
        ("test_models:nothing", {}, "it made a int"),
        ("test_models:absent", {}, "absent"),
        ("no.such.package:thing", {}, "cannot be imported"),
        ("test_models:flat", {"width": 3}, "width"),
        ("small-cnn", {"widht": 3}, "width"),
        ("small-cnn", {"pretrained": True}, "no published weights"),
        ("vgg11", {}, "fails on images of 1x8x8"),
        ("vgg11", {"pool": "mean"}, "pool"),
        ("torchvision:resnet81", {}, "torchvision:resnet18"),
        ("torchvision:resnet18", {}, "it takes 3 channels"),
        ("torchvision:resnet18", {"width": 3}, "fixed width"),
        ("timm:resnet81", {}, "timm:resnet18"),
    ],
)
def test_names_and_options_that_do_not_work(name, options, message):
    with pytest.raises(UserError, match=message) as caught:
        models.build_model(name, classes=10, channels=1, size=8, **options)
    sentence(caught)


def test_models_of_the_zoos():
    model = models.build_model("torchvision:resnet18", classes=7, channels=3, size=32, seed=0)
    assert model.fc.out_features == 7
    if importlib.util.find_spec("timm") is None:
        pytest.skip("timm is not installed")
    model = models.build_model("timm:resnet18", classes=7, channels=1, size=32, seed=0)
    assert model.conv1.in_channels == 1


# ---------------------------------------------------------------- real weights on real images


@pytest.mark.parametrize(("name", "right"), [("resnet20", 932)])
def test_published_weights_reach_their_accuracy(data_root, name, right):
    file = (
        next((path for path in (data_root / "pretrained", data_root) if path.is_dir()), data_root)
        / f"cifar10_{name}.npz"
    )
    if not file.is_file() or not (data_root / "cifar-10-batches-py").is_dir():
        pytest.skip(f"needs {file} and CIFAR-10 in {data_root}")
    data = cifar10(root=data_root, normalise="imagenet")
    model = built(name, 3, 32, None, weights=file).eval()
    with torch.no_grad():
        correct = sum(
            int((model(images).argmax(1) == labels).sum())
            for images, labels in Batches(data.test, data, 128, shuffle=False).epoch()
        )
    assert len(data.test) == 1017
    assert correct == pytest.approx(right, abs=1)


@pytest.mark.parametrize("name", ["resnet20", "resnet56"])
def test_published_names_are_ours(name):
    model = models.build_model(name, classes=10, channels=3, size=32)
    names = [key for key in model.state_dict() if not key.endswith("num_batches_tracked")]
    norms = ["weight", "bias", "running_mean", "running_var"]
    blocks = {"resnet20": 3, "resnet56": 9}[name]
    wanted = ["conv1.weight", *(f"bn1.{n}" for n in norms)]
    for stage in (1, 2, 3):
        for block in range(blocks):
            for part in (1, 2):
                path = f"layer{stage}.{block}."
                wanted += [f"{path}conv{part}.weight", *(f"{path}bn{part}.{n}" for n in norms)]
    assert names == [*wanted, "linear.weight", "linear.bias"]
