"""A subject of measures without a run: small networks beside each other on random images."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor, nn

from spikelet.data.dataset import Dataset, Split
from spikelet.encode import repeat
from spikelet.examine.subject import Seen, Subject
from spikelet.execute import ann, bptt
from spikelet.quantise import quantised
from spikelet.recipe import Recipe
from spikelet.train.load import Loaded

STEPS = 4


def seen(name: str, net: nn.Module, way: str = "spiking") -> Seen:
    """A network as it answers at four steps: "spiking", "quantised" or "ann"."""
    execute = {"spiking": bptt, "quantised": quantised, "ann": ann}[way]

    def answer(images: Tensor) -> Tensor:
        return execute(net, repeat(images, STEPS)).mean_logits

    return Seen(name, net.eval(), way == "spiking", None, answer, execute, repeat)


def watched(
    student: Seen,
    teacher: Seen | None,
    count: int = 12,
    others: tuple[Seen, ...] = (),
    labels: Tensor | None = None,
) -> Subject:
    """A subject of random images; their labels are what the teacher, or student, says."""
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (count, 2, 8, 8), generator=generator, dtype=torch.uint8)
    if labels is None:
        with torch.no_grad():
            labels = (teacher or student).answer((images.float() / 255 - 0.5) / 0.25).argmax(1)
    split = Split(images, labels)
    dataset = Dataset(
        "random", split, None, split, ("a", "b", "c"), (0.5, 0.5), (0.25, 0.25), "none", {}
    )
    recipe = Recipe("distill", {"kind": "digits"}, steps=STEPS)
    loaded = Loaded(recipe, student.net, "student", {}, Path())
    return Subject(loaded, student, teacher, others, dataset, STEPS, torch.device("cpu"), 0)
