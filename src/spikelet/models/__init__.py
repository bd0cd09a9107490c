"""Batch-first classifiers: our own by name, timm's, torchvision's and the user's."""

from spikelet.models.build import DEFAULT_MODEL, build_model, default_model
from spikelet.models.feedforward import small_cnn, vgg9, vgg11, vgg16, vggsnn
from spikelet.models.preact import (
    ms_resnet18,
    ms_resnet34,
    preact_resnet18,
    preact_resnet34,
    pyramidnet18,
    wrn16_2,
    wrn28_4,
)
from spikelet.models.resnet import (
    resnet18,
    resnet19,
    resnet20,
    resnet34,
    resnet56,
    sew_resnet18,
    sew_resnet34,
)
from spikelet.models.weights import load_weights, read_weights

__all__ = [
    "DEFAULT_MODEL",
    "build_model",
    "default_model",
    "load_weights",
    "ms_resnet18",
    "ms_resnet34",
    "preact_resnet18",
    "preact_resnet34",
    "pyramidnet18",
    "read_weights",
    "resnet18",
    "resnet19",
    "resnet20",
    "resnet34",
    "resnet56",
    "sew_resnet18",
    "sew_resnet34",
    "small_cnn",
    "vgg9",
    "vgg11",
    "vgg16",
    "vggsnn",
    "wrn16_2",
    "wrn28_4",
]
