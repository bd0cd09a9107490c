"""Batch-first classifiers: our own by name, timm's, torchvision's and the user's."""

from spikelet.models.build import DEFAULT_MODEL, build_model, default_model
from spikelet.models.feedforward import small_cnn, vgg11, vgg16
from spikelet.models.resnet import resnet18, resnet19, resnet20, resnet56
from spikelet.models.weights import load_weights, read_weights

__all__ = [
    "DEFAULT_MODEL",
    "build_model",
    "default_model",
    "load_weights",
    "read_weights",
    "resnet18",
    "resnet19",
    "resnet20",
    "resnet56",
    "small_cnn",
    "vgg11",
    "vgg16",
]
