"""The network of one case and the way it runs."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, final

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from spikelet import kernels
from spikelet.bench.foreign import PACKAGES, run_foreign, with_foreign_neurons
from spikelet.bench.setting import Case, Setting
from spikelet.compiling import compiles
from spikelet.convert import convert
from spikelet.distill import Distiller
from spikelet.encode import Direct, repeat
from spikelet.execute import ann, bptt, rate
from spikelet.models import build_model
from spikelet.neuron import IF
from spikelet.recipe import MODELS, TERMS, build, resolve
from spikelet.recipe.methods import terms_of

CLASSES, CHANNELS = 10, 3
CALIBRATED = 16


@final
@dataclass(frozen=True)
class Subject:
    """A network, random images and the way it runs over them.

    Attributes:
        net: the network, in train mode.
        images: "B C H W".
        labels: "B".
        logits: images to logits "T B K" of that network.
        precision: fp32, or bf16 by autocast.
        objective: images and labels to a loss, where it is not the cross entropy of mean logits.
    """

    net: nn.Module
    images: Tensor
    labels: Tensor
    logits: Callable[[Tensor], Tensor]
    precision: str
    objective: Callable[[Tensor, Tensor], Tensor] | None = None

    @property
    def device(self) -> torch.device:
        """Where everything is."""
        return self.images.device

    def run(self) -> Tensor:
        """Logits "T B K" in the precision of the case."""
        with self._precise():
            return self.logits(self.images)

    def loss(self) -> Tensor:
        """Cross entropy of the mean logits, or the objective."""
        if self.objective is None:
            return F.cross_entropy(self.run().mean(0).float(), self.labels)
        with self._precise():
            return self.objective(self.images, self.labels)

    def _precise(self) -> torch.autocast:
        lowered = self.precision == "bf16"
        return torch.autocast(self.device.type, torch.bfloat16, enabled=lowered)


def model_of(setting: Setting) -> nn.Module:
    """The ANN, with initial weights."""
    return build_model(
        setting.model,
        classes=CLASSES,
        channels=CHANNELS,
        size=setting.size,
        width=setting.width,
        seed=0,
    )


def width_of(setting: Setting) -> int | None:
    """The width given, else the model's own, if it has one."""
    if setting.width is not None or setting.model.startswith(("timm:", "torchvision:")):
        return setting.width
    known = inspect.signature(resolve("--model", setting.model, MODELS)).parameters.get("width")
    usable = known is not None and isinstance(known.default, int)
    return known.default if known is not None and usable else None


def fuses(device: torch.device) -> bool:
    """Whether the fused scan can run here: a GPU with Triton, or a compiler that works."""
    if device.type == "cuda" and kernels.triton is not None:
        return True
    return compiles(device)


def subject(setting: Setting, case: Case) -> Subject:
    """The network of a case: the same initial weights for all engines.

    All run channels-last, but for fp32 on a GPU, where tensors are contiguous.
    """
    device = torch.device(setting.device)
    generator = torch.Generator().manual_seed(0)
    shape = (setting.batch, CHANNELS, setting.size, setting.size)
    images = torch.randn(shape, generator=generator).to(device)
    labels = torch.randint(CLASSES, (setting.batch,), generator=generator).to(device)
    last = device.type != "cuda" or case.precision == "bf16"
    layout: Any = {"memory_format": torch.channels_last if last else torch.contiguous_format}
    model: Any = model_of(setting).to(device)
    net: Any = _network(case, model.to(**layout), images)
    net = net.to(device).to(**layout)
    runs: dict[str, Callable[..., Tensor]] = {
        "ann": _ann,
        "rate": partial(_ours, execute=partial(rate, fuse=case.fused)),
        "bptt": partial(_ours, execute=partial(bptt, fuse=case.fused)),
        "hybrid": _distilled,
    }
    logits = partial(runs.get(case.engine, run_foreign), net, steps=case.steps)
    objective = partial(_objective, net) if case.engine == "hybrid" else None
    return Subject(net.train(), images.to(**layout), labels, logits, case.precision, objective)


def _network(case: Case, model: nn.Module, images: Tensor) -> nn.Module:
    if case.engine == "ann":
        return model
    if case.engine in PACKAGES:
        return with_foreign_neurons(case.engine, model, case.steps)
    student = convert(model, IF(), steps=case.steps, calibrate=images[:CALIBRATED])
    if case.engine != "hybrid":
        return student
    terms = {name: build(name, spec, TERMS) for name, spec in terms_of("hybrid").items()}
    execute, encode = partial(rate, fuse=case.fused), Direct(case.steps)
    return Distiller(
        student, model, terms=terms, execute=execute, encode=encode, example=images[:CALIBRATED]
    )


def _objective(distiller: nn.Module, images: Tensor, labels: Tensor) -> Tensor:
    loss, _ = distiller(images, labels)
    return loss


def _distilled(distiller: Any, images: Tensor, steps: int) -> Tensor:
    return distiller.execute(distiller.student, repeat(images, steps)).logits


def _ann(net: nn.Module, images: Tensor, steps: int) -> Tensor:
    return ann(net, repeat(images, steps)).logits


def _ours(net: nn.Module, images: Tensor, execute: Any, steps: int) -> Tensor:
    return execute(net, repeat(images, steps)).logits
