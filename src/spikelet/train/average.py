"""The exponential moving average of the parameters."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import get_ema_multi_avg_fn


class Average:
    """Averaged copies of a module's trainable parameters; buffers stay the module's own.

    The decay of update n is min(decay, (1 + n) / (10 + n)), so that the start is soon forgotten.
    """

    def __init__(self, module: nn.Module, decay: float) -> None:
        self.module, self.decay, self.updates = module, decay, 0
        self.values = {name: p.detach().clone() for name, p in self._parameters().items()}

    def _parameters(self) -> dict[str, nn.Parameter]:
        return {name: p for name, p in self.module.named_parameters() if p.requires_grad}

    @torch.no_grad()
    def update(self) -> None:
        """Take one step towards the module's present parameters."""
        decay = min(self.decay, (1 + self.updates) / (10 + self.updates))
        present: list[Tensor] = [p.detach() for p in self._parameters().values()]
        get_ema_multi_avg_fn(decay)(list(self.values.values()), present, self.updates)
        self.updates += 1

    @torch.no_grad()
    def load(self, values: Mapping[str, Tensor], updates: int) -> None:
        """Continue from stored averages."""
        self.updates = updates
        for name, value in self.values.items():
            value.copy_(values[name])

    @torch.no_grad()
    def put_on(self) -> None:
        """Copy the averages into the module."""
        for name, parameter in self._parameters().items():
            parameter.copy_(self.values[name])

    @contextmanager
    def worn(self) -> Iterator[None]:
        """The module with averaged parameters, for the length of a `with`."""
        own = {name: p.detach().clone() for name, p in self._parameters().items()}
        self.put_on()
        try:
            yield
        finally:
            with torch.no_grad():
                for name, parameter in self._parameters().items():
                    parameter.copy_(own[name])
