"""Short names and the import paths they stand for; nothing is imported here."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

Spec = dict[str, Any]
Table = Mapping[str, str]

NEURONS: Table = {"IF": "spikelet.neuron:IF", "LIF": "spikelet.neuron:LIF"}
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
    "relation": "spikelet.terms:Relation",
    "hybrid": "spikelet.terms:Hybrid",
}
EXECUTES: Table = {
    "ann": "spikelet.execute:ann",
    "bptt": "spikelet.execute:bptt",
    "rate": "spikelet.execute:rate",
}
ENCODERS: Table = {"direct": "spikelet.encode:Direct"}
DATA: Table = {
    "digits": "spikelet.data:digits",
    "mnist": "spikelet.data:mnist",
    "fashion-mnist": "spikelet.data:fashion_mnist",
    "cifar10": "spikelet.data:cifar10",
    "cifar100": "spikelet.data:cifar100",
    "imagefolder": "spikelet.data:imagefolder",
}
AUGMENTS: Table = {
    "crop": "spikelet.data:Crop",
    "flip": "spikelet.data:Flip",
    "cutout": "spikelet.data:Cutout",
    "autoaugment": "spikelet.data:AutoAugment",
    "randaugment": "spikelet.data:RandAugment",
}
MODELS: Table = {
    "small-cnn": "spikelet.models:small_cnn",
    "resnet18": "spikelet.models:resnet18",
    "resnet19": "spikelet.models:resnet19",
    "resnet20": "spikelet.models:resnet20",
    "resnet56": "spikelet.models:resnet56",
    "vgg11": "spikelet.models:vgg11",
    "vgg16": "spikelet.models:vgg16",
}
NESTED: Mapping[str, Table] = {"surrogate": SURROGATES, "neuron": NEURONS}
