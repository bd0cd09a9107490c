"""One function that makes a classifier from a name, and the models each data set starts with."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import nn

from spikelet.errors import UserError, unknown
from spikelet.models.weights import load_weights
from spikelet.recipe import MODELS, build, resolve
from spikelet.vision import timm, torchvision

DEFAULT_MODEL: dict[str, tuple[str, int | None]] = {
    "digits": ("small-cnn", 16),
    "mnist": ("small-cnn", 32),
    "fashion-mnist": ("small-cnn", 32),
    "cifar10": ("resnet18", 64),
    "cifar100": ("resnet18", 64),
    "tiny-imagenet": ("resnet18", 32),
    "imagefolder": ("resnet18", 64),
    "imagenet": ("torchvision:resnet34", None),
    "nmnist": ("small-cnn", 32),
    "cifar10-dvs": ("resnet18", 32),
    "dvs-gesture": ("resnet18", 16),
    "n-caltech101": ("resnet18", 32),
}


def default_model(data: str) -> tuple[str, int | None]:
    """(name, width) of the model a data set starts with; ResNet-18 for unlisted ones."""
    return DEFAULT_MODEL.get(data, ("resnet18", 64))


def build_model(
    name: str,
    *,
    classes: int,
    channels: int,
    size: int | tuple[int, int],
    width: int | None = None,
    weights: Path | str | None = None,
    pretrained: bool = False,
    seed: int | None = None,
    **options: Any,
) -> nn.Module:
    """A classifier of images "B C H W" into logits "B K", in train mode.

    `name` is one of ours (`spikelet.recipe.MODELS`), `timm:NAME`, `torchvision:NAME` or
    `package.module:function`. `weights` is a file for it; `pretrained` fetches the zoo's own.
    `seed` decides the initial weights without touching torch's global generator; None draws from
    that.

    Raises:
        UserError: an unknown name, an option the model lacks, weights that do not fit, or a
            network that does not answer such images with one logit per class.
    """
    kind, _, rest = name.partition(":")
    with torch.random.fork_rng(devices=[], enabled=seed is not None):
        if seed is not None:
            torch.default_generator.manual_seed(seed)
        if kind in ("timm", "torchvision") and rest:
            if width is not None:
                raise UserError(f"width={width}", f"{name} has a fixed width", "leave it out")
            make = _from_timm if kind == "timm" else _from_torchvision
            model = make(rest, classes, channels, pretrained, options)
        else:
            model = _from_function(name, classes, channels, size, width, pretrained, options)
    if weights is not None:
        load_weights(model, weights)
    _check_classifier(name, model, classes, channels, size)
    return model


def _from_function(
    name: str,
    classes: int,
    channels: int,
    size: int | tuple[int, int],
    width: int | None,
    pretrained: bool,
    options: dict[str, Any],
) -> nn.Module:
    """Calls one of our functions or the user's with what its signature takes."""
    if pretrained:
        raise UserError(
            "pretrained=True", f"{name} has no published weights", "name a file with weights"
        )
    known = [*MODELS, "timm:NAME", "torchvision:NAME"]
    if ":" not in name and name not in MODELS:
        raise unknown("model", name, known)
    takes = inspect.signature(resolve("model", name, MODELS)).parameters
    offered = {"classes": classes, "num_classes": classes, "channels": channels, "size": size}
    given = {key: value for key, value in offered.items() if key in takes}
    chosen = options if width is None else {**options, "width": width}

    def make() -> Any:
        return build("model", {"kind": name, **chosen}, MODELS, **given)

    model = _made(name, make) if ":" in name else make()
    if not isinstance(model, nn.Module):
        raise UserError(
            f"model={name}", f"it made a {type(model).__name__}", "return a torch.nn.Module"
        )
    return model


def _from_timm(
    name: str, classes: int, channels: int, pretrained: bool, options: dict[str, Any]
) -> nn.Module:
    zoo = timm()
    architecture = name.partition(".")[0]
    if not zoo.is_model(architecture):
        raise unknown("model", f"timm:{name}", [f"timm:{known}" for known in zoo.list_models()])
    return _made(
        f"timm:{name}",
        lambda: zoo.create_model(
            name, pretrained=pretrained, num_classes=classes, in_chans=channels, **options
        ),
    )


def _from_torchvision(
    name: str, classes: int, channels: int, pretrained: bool, options: dict[str, Any]
) -> nn.Module:
    zoo = torchvision().models
    known = zoo.list_models(module=zoo)
    if name not in known:
        raise unknown("model", f"torchvision:{name}", [f"torchvision:{one}" for one in known])
    if channels != 3:
        raise UserError(
            f"model=torchvision:{name}",
            f"it takes 3 channels, the images have {channels}",
            f"use timm:{name} or one of {', '.join(MODELS)}",
        )
    if not pretrained:
        return _made(
            f"torchvision:{name}", lambda: zoo.get_model(name, num_classes=classes, **options)
        )
    model = _made(f"torchvision:{name}", lambda: zoo.get_model(name, weights="DEFAULT", **options))
    _replace_classifier(model, classes)
    return model


def _made(name: str, make: Callable[[], Any]) -> Any:
    """Runs a constructor that is not ours; what it raises becomes one sentence."""
    try:
        return make()
    except UserError:
        raise
    except Exception as error:
        reason = f"{type(error).__name__}: {error}".splitlines()[0][:150].rstrip(".:; ")
        raise UserError(
            f"model={name}", f"it cannot be made ({reason})", "check its options and the network"
        ) from error


def _replace_classifier(model: nn.Module, classes: int) -> None:
    """A fresh last linear layer where the class count differs."""
    names = [name for name, module in model.named_modules() if isinstance(module, nn.Linear)]
    old = model.get_submodule(names[-1])
    assert isinstance(old, nn.Linear)
    if old.out_features != classes:
        parent, _, leaf = names[-1].rpartition(".")
        setattr(model.get_submodule(parent), leaf, nn.Linear(old.in_features, classes))


def _check_classifier(
    name: str, model: nn.Module, classes: int, channels: int, size: int | tuple[int, int]
) -> None:
    """Feeds two black images in eval mode: one logit per class must come out."""
    height, width = (size, size) if isinstance(size, int) else size
    training = model.training
    model.eval()
    try:
        with torch.no_grad():
            logits = model(torch.zeros(2, channels, height, width))
    except Exception as error:
        reason = f"{type(error).__name__}: {error}".splitlines()[0][:150].rstrip(".:; ")
        raise UserError(
            f"model={name}",
            f"it fails on images of {channels}x{height}x{width} ({reason})",
            "choose a model for this size and these channels",
        ) from error
    finally:
        model.train(training)
    shape = tuple(logits.shape) if isinstance(logits, torch.Tensor) else type(logits).__name__
    if shape != (2, classes):
        raise UserError(
            f"model={name}",
            f"a classifier answers 2 images with logits of shape {(2, classes)}, not {shape}",
            "choose a classifier with that many classes"
            if isinstance(shape, tuple) and len(shape) == 2
            else "return logits of shape (batch, classes)",
        )
