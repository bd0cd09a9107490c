"""Every model passes one table; names, weights and misfits through `build_model`."""

from __future__ import annotations

import copy
import importlib.util

import numpy as np
import pytest
import safetensors.torch
import torch
from torch import nn
from torch.nn import functional

from spikelet import models
from spikelet.data import Batches, cifar10
from spikelet.errors import UserError
from spikelet.models.resnet import Subsample
from spikelet.recipe import DATA, MODELS

# name, channels, size, width, stages, parameters at the default width with 10 classes and RGB
TABLE = [
    ("small-cnn", 1, 8, 8, 3, 29_418),
    ("small-cnn", 3, 32, 8, 3, 29_418),
    ("resnet18", 3, 32, 8, 4, 11_173_962),
    ("resnet18", 1, 28, 8, 4, 11_173_962),
    ("resnet19", 3, 32, 8, 3, 12_697_994),
    ("resnet20", 3, 32, 8, 3, 269_722),
    ("resnet56", 3, 32, 4, 3, 853_018),
    ("vgg11", 3, 32, 8, 5, 9_228_362),
    ("vgg16", 3, 32, 8, 5, 14_724_042),
]


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


def test_every_dataset_has_a_default_model():
    assert set(DATA) <= set(models.DEFAULT_MODEL)
    assert all(name in MODELS for name, _ in models.DEFAULT_MODEL.values())
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
        ("resnet81", {}, "did you mean resnet18|resnet18"),
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
