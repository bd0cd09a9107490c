"""What one run of a network leaves behind."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from torch import Tensor

from spikelet.errors import UserError

FIELDS = ("mean", "spikes", "current", "potential")
Taps = Mapping[str, tuple[str, ...]] | Iterable[str]


@dataclass(frozen=True)
class Tap:
    """The values at one place of the network.

    Attributes:
        mean: "B ...", the mean over time of what propagates from here (theta * s for a neuron).
        spikes: "T B ...", binary (or signed) spikes, if asked for.
        current: "T B ...", the neuron's input current, or an ANN's pre-activation.
        potential: "T B ...", the pre-reset potential, or an ANN's pre-activation.
    """

    mean: Tensor
    spikes: Tensor | None = None
    current: Tensor | None = None
    potential: Tensor | None = None


@dataclass(frozen=True)
class Trace:
    """One run: logits "T B K" and the taps asked for, by the path they were asked by."""

    logits: Tensor
    taps: Mapping[str, Tap] = field(default_factory=dict)

    @property
    def mean_logits(self) -> Tensor:
        """The time-averaged logits "B K": what the network answers."""
        return self.logits.mean(0)


def fields_of(taps: Taps) -> dict[str, tuple[str, ...]]:
    """Taps as path -> fields; a plain list of paths asks for the mean of each.

    Raises:
        UserError: for a field that does not exist.
    """
    asked = dict(taps) if isinstance(taps, Mapping) else dict.fromkeys(taps, ("mean",))
    for path, names in asked.items():
        for name in names:
            if name not in FIELDS:
                raise UserError(
                    f"taps[{path!r}]", f"field {name!r} is not known", f"use {', '.join(FIELDS)}"
                )
    return asked
