"""One training step, forward and backward, as a CUDA graph: a single launch instead of thousands.

Narrow networks at few time steps are bound by the launching of kernels, not by their work.
"""

from __future__ import annotations

from typing import Any, final

import torch
from torch import Tensor, nn

from spikelet.errors import UserError

WARM_UP = 3  # steps that let libraries choose and compile their kernels before the capture

Answer = tuple[Tensor, dict[str, Tensor]]


@final
class Graphed:
    """A distiller whose steps on batches of one shape are replayed from a CUDA graph.

    Gradients lie in memory of the graph's own, which parameters keep as their `.grad`.

    Args:
        distiller: in train mode, on a GPU.
        half: whether steps run in bf16 autocast.

    Raises:
        UserError: without a GPU, or if a term or the encoder does something else at each step.
    """

    def __init__(self, distiller: nn.Module, half: bool) -> None:
        self.distiller, self.half = distiller, half
        self.parameters = [p for p in distiller.parameters() if p.requires_grad]
        if self.parameters[0].device.type != "cuda":
            raise UserError("graph = True", "there is no CUDA GPU here", "leave it out")
        _require_fixed(distiller)
        self.graph: torch.cuda.CUDAGraph | None = None

    def takes(self, images: Tensor) -> bool:
        """Whether a batch has the shape of the capture; the first batch decides it."""
        return self.graph is None or images.shape == self.images.shape

    def step(self, images: Tensor, labels: Tensor, progress: float = 0.0) -> Answer:
        """Loss and parts of a batch; gradients are the parameters' own afterwards.

        `progress` is the share of the training that is done, 0 to 1.
        """
        if self.graph is None:
            self._capture(images, labels)
        assert self.graph is not None
        self.images.copy_(images)
        self.labels.copy_(labels)
        self.progress.fill_(progress)
        self.graph.replay()
        for parameter, gradient in zip(self.parameters, self.gradients, strict=True):
            parameter.grad = gradient
        return self.loss, self.parts

    def _capture(self, images: Tensor, labels: Tensor) -> None:
        self.images, self.labels = images.clone(), labels.clone()
        self.progress = torch.zeros((), device=images.device)
        kept = {name: b.detach().clone() for name, b in self.distiller.named_buffers()}
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            for _ in range(WARM_UP):
                self._run()
        torch.cuda.current_stream().wait_stream(side)
        with torch.no_grad():
            for name, buffer in self.distiller.named_buffers():
                buffer.copy_(kept[name])
        graph = torch.cuda.CUDAGraph()
        self._clear()
        with torch.cuda.graph(graph):
            self.loss, self.parts = self._run()
        self.gradients = [p.grad for p in self.parameters]
        self.graph = graph

    def _run(self) -> Answer:
        self._clear()
        half = torch.autocast("cuda", torch.bfloat16, enabled=self.half, cache_enabled=False)
        with half:
            loss, parts = self.distiller(self.images, self.labels, self.progress)
        loss.backward()
        return loss.detach(), parts

    def _clear(self) -> None:
        for parameter in self.parameters:
            parameter.grad = None


def _require_fixed(distiller: Any) -> None:
    """Refuses what a graph would freeze: randomness and schedules within a step."""
    for name, term in getattr(distiller, "terms", {}).items():
        if not getattr(term, "fixed", True):
            what = f"term {name!r} is another computation at each step"
            raise UserError("graph = True", what, "leave it out")
    if getattr(distiller, "paired", None) is not None:
        raise UserError("graph = True", "images are drawn at each step", "leave it out")
    if getattr(distiller, "draws", False):
        raise UserError("graph = True", "the encoder draws at each step", "leave it out")
