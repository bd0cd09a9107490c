"""Short names of the measures and the import paths they stand for; nothing is imported here."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from spikelet.errors import UserError, unknown
from spikelet.recipe import Table

Tell = Callable[[int, int, str], None]
"""Takes progress: how much is done, of how much, and in words what comes next."""

MEASURES: Table = {
    "steps": "spikelet.examine.steps:examine",
    "noise": "spikelet.examine.noise:examine",
    "saliency": "spikelet.examine.saliency:examine",
    "energy": "spikelet.examine.energy:examine",
    "health": "spikelet.examine.health:examine",
    "evenness": "spikelet.examine.evenness:examine",
}
NEED_SPIKES = ("health", "evenness")
NEED_ANOTHER = ("saliency",)  # a teacher, or another run to compare with
IMAGES = 1000  # images that a measure uses by default; `steps` uses all there are


def suits(name: str, spiking: bool, compared: bool) -> bool:
    """Whether a measure tells anything about a network.

    Args:
        name: of the table.
        spiking: whether the network has spikes.
        compared: whether there is another one beside it, such as its teacher.
    """
    return (spiking or name not in NEED_SPIKES) and (compared or name not in NEED_ANOTHER)


def chosen(names: Sequence[str], spiking: bool = True, compared: bool = True) -> tuple[str, ...]:
    """The measures named, each once, in the order of the table; without names all that suit.

    Raises:
        UserError: for a name that is neither known nor an import path, with the nearest ones.
    """
    if not names:
        return tuple(name for name in MEASURES if suits(name, spiking, compared))
    for name in names:
        if name not in MEASURES and (Path(name) / "recipe.json").exists():
            what, fix = f"{name} is another run", f"measure it by itself, or --versus {name}"
            raise UserError("measure", f"{what}, and one is measured at a time", fix)
        if name not in MEASURES and ":" not in name:
            raise unknown("measure", name, MEASURES)
    return (*(name for name in MEASURES if name in names), *_own(names))


def _own(names: Sequence[str]) -> tuple[str, ...]:
    """The names that are import paths, each once."""
    return tuple(dict.fromkeys(name for name in names if name not in MEASURES))


def images_of(name: str, asked: int | None) -> int | None:
    """How many images a measure uses; None for all.

    Raises:
        UserError: if fewer than 1 were asked for.
    """
    if asked is not None and asked < 1:
        raise UserError(f"--images {asked}", "expected 1 or more", "give how many images to use")
    return asked if asked is not None or name == "steps" else IMAGES
