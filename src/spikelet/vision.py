"""The one door to torchvision and timm, and the rewrite of timm's fused layers into plain ones."""

from __future__ import annotations

import copy
import functools
import importlib
import importlib.util
import sys
from collections import OrderedDict
from pathlib import Path
from types import ModuleType

import torch
from torch import nn

from spikelet.errors import UserError

SCHEMAS = {
    "nms": "nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
    "qnms": "qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
}


@functools.cache
def torchvision() -> ModuleType:
    """The torchvision package, importable also beside a CPU-only torch.

    Raises:
        UserError: it is not installed.
    """
    if "torchvision" not in sys.modules:
        _declare_operators()
    return _imported("torchvision", "pip install torchvision")


@functools.cache
def timm() -> ModuleType:
    """The timm package.

    Raises:
        UserError: it is not installed.
    """
    torchvision()
    return _imported("timm", "pip install 'spikelet[timm]'")


def _imported(name: str, command: str) -> ModuleType:
    if importlib.util.find_spec(name) is None:
        raise UserError(name, "this package is not installed", f"run `{command}`")
    return importlib.import_module(name)


@functools.cache
def _declare_operators() -> torch.library.Library | None:
    """Declares what torchvision's import asks for, where its compiled library cannot load.

    The cache keeps the library object, and with it the declarations, alive.
    """
    spec = importlib.util.find_spec("torchvision")
    if spec is None or spec.origin is None or _loads(Path(spec.origin).parent):
        return None
    library = torch.library.Library("torchvision", "FRAGMENT")
    for name, schema in SCHEMAS.items():
        if not hasattr(torch.ops.torchvision, name):
            library.define(schema)
    return library


def _loads(package: Path) -> bool:
    """Whether a compiled operator library of torchvision is there and loads."""
    files = [file for pattern in ("_C*.so", "_C*.pyd") for file in package.glob(pattern)]
    for file in files:
        try:
            torch.ops.load_library(str(file))
        except (OSError, ImportError):
            continue
        return True
    return False


def plain(model: nn.Module) -> nn.Module:
    """A deep copy in which timm's fused layers are sequences of plain ones.

    BatchNormAct2d becomes `bn`, `drop`, `act` (only the batch norm where the others do nothing);
    ConvMlp becomes `fc1`, `norm`, `act`, `drop`, `fc2`. Outputs and running statistics stay the
    same in train and eval mode; torch.fx would otherwise freeze the mode at trace time.
    """
    try:
        model = copy.deepcopy(model)
    except Exception as error:  # torch.nn.utils.weight_norm keeps a tensor that cannot be copied
        reason = str(error).partition(". ")[0]
        raise UserError(
            f"model {type(model).__name__}",
            f"it cannot be copied ({reason})",
            "take what it keeps besides parameters and buffers off: weight_norm by "
            "torch.nn.utils.remove_weight_norm",
        ) from error
    if "timm" not in sys.modules:
        return model
    layers = importlib.import_module("timm.layers")
    rewrites = {layers.BatchNormAct2d: _batch_norm_act, layers.ConvMlp: _convolution_mlp}
    done: dict[nn.Module, nn.Module] = {}

    def rewritten(module: nn.Module) -> nn.Module:
        if module in done:
            return done[module]
        done[module] = module
        for name, child in list(module._modules.items()):
            if child is not None:
                setattr(module, name, rewritten(child))
        rewrite = rewrites.get(type(module))
        done[module] = module if rewrite is None else rewrite(module)
        return done[module]

    return rewritten(model)


def _batch_norm_act(old: nn.Module) -> nn.Module:
    """The same parameters and buffers in an nn.BatchNorm2d, then dropout and activation."""
    assert isinstance(old, nn.BatchNorm2d)
    norm = nn.BatchNorm2d(
        old.num_features, old.eps, old.momentum, old.affine, old.track_running_stats, device="meta"
    )
    norm._parameters = dict(old._parameters)
    norm._buffers = dict(old._buffers)
    norm.training = old.training
    drop, act = old.get_submodule("drop"), old.get_submodule("act")
    if isinstance(drop, nn.Identity) and isinstance(act, nn.Identity):
        return norm
    return _sequence(old, bn=norm, drop=drop, act=act)


def _convolution_mlp(old: nn.Module) -> nn.Module:
    names = ("fc1", "norm", "act", "drop", "fc2")
    return _sequence(old, **{name: old.get_submodule(name) for name in names})


def _sequence(old: nn.Module, **children: nn.Module) -> nn.Module:
    sequence = nn.Sequential(OrderedDict(children))
    sequence.training = old.training
    return sequence
