"""Short names and the import paths they stand for; nothing is imported here."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

Spec = dict[str, Any]
Table = Mapping[str, str]

NEURONS: Table = {
    "IF": "spikelet.neuron:IF",
    "LIF": "spikelet.neuron:LIF",
    "PLIF": "spikelet.neuron:PLIF",
}
SURROGATES: Table = {
    "sigmoid": "spikelet.spike:Sigmoid",
    "arctangent": "spikelet.spike:Arctangent",
    "triangle": "spikelet.spike:Triangle",
    "rectangle": "spikelet.spike:Rectangle",
}
TERMS: Table = {
    "cross-entropy": "spikelet.terms:CrossEntropy",
    "logits": "spikelet.terms:Logits",
    "affine": "spikelet.terms:Affine",
    "feature": "spikelet.terms:Feature",
    "relation": "spikelet.terms:Relation",
    "hybrid": "spikelet.terms:Hybrid",
    "semantic": "spikelet.terms:Semantic",
    "step-logits": "spikelet.terms:StepLogits",
    "step-ensemble": "spikelet.terms:StepEnsemble",
    "spike-windows": "spikelet.terms:SpikeWindows",
}
EXECUTES: Table = {
    "ann": "spikelet.execute:ann",
    "bptt": "spikelet.execute:bptt",
    "rate": "spikelet.execute:rate",
    "quantised": "spikelet.quantise:quantised",
}
ENCODERS: Table = {
    "direct": "spikelet.encode:Direct",
    "poisson": "spikelet.encode:Poisson",
    "latency": "spikelet.encode:Latency",
    "mixed": "spikelet.encode:Mixed",
}
DATA: Table = {
    "digits": "spikelet.data:digits",
    "mnist": "spikelet.data:mnist",
    "fashion-mnist": "spikelet.data:fashion_mnist",
    "cifar10": "spikelet.data:cifar10",
    "cifar100": "spikelet.data:cifar100",
    "tiny-imagenet": "spikelet.data:tiny_imagenet",
    "imagenet": "spikelet.data:imagenet",
    "imagefolder": "spikelet.data:imagefolder",
    "nmnist": "spikelet.data:nmnist",
    "cifar10-dvs": "spikelet.data:cifar10_dvs",
    "dvs-gesture": "spikelet.data:dvs_gesture",
    "n-caltech101": "spikelet.data:n_caltech101",
}
AUGMENTS: Table = {
    "crop": "spikelet.data:Crop",
    "resized-crop": "spikelet.data:ResizedCrop",
    "flip": "spikelet.data:Flip",
    "roll": "spikelet.data:Roll",
    "event-drop": "spikelet.data:EventDrop",
    "cutout": "spikelet.data:Cutout",
    "autoaugment": "spikelet.data:AutoAugment",
    "randaugment": "spikelet.data:RandAugment",
}
MODELS: Table = {
    "small-cnn": "spikelet.models:small_cnn",
    "resnet18": "spikelet.models:resnet18",
    "resnet19": "spikelet.models:resnet19",
    "resnet34": "spikelet.models:resnet34",
    "resnet20": "spikelet.models:resnet20",
    "resnet56": "spikelet.models:resnet56",
    "preact-resnet18": "spikelet.models:preact_resnet18",
    "preact-resnet34": "spikelet.models:preact_resnet34",
    "ms-resnet18": "spikelet.models:ms_resnet18",
    "ms-resnet34": "spikelet.models:ms_resnet34",
    "sew-resnet18": "spikelet.models:sew_resnet18",
    "sew-resnet34": "spikelet.models:sew_resnet34",
    "wrn16-2": "spikelet.models:wrn16_2",
    "wrn28-4": "spikelet.models:wrn28_4",
    "pyramidnet18": "spikelet.models:pyramidnet18",
    "vgg9": "spikelet.models:vgg9",
    "vgg11": "spikelet.models:vgg11",
    "vgg16": "spikelet.models:vgg16",
    "vggsnn": "spikelet.models:vggsnn",
}
NESTED: Mapping[str, Table] = {"surrogate": SURROGATES, "neuron": NEURONS}
