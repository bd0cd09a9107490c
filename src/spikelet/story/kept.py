"""What a run's folder keeps for its page: its weights, and a few images of its test part."""

from __future__ import annotations

from collections.abc import Sequence

from spikelet.data import Dataset, Split
from spikelet.errors import UserError
from spikelet.story.told import Told
from spikelet.train import Loaded
from spikelet.train.examples import stored_examples
from spikelet.train.load import MODEL_FILE, TEACHER_FILE, statistics
from spikelet.train.run import digest
from spikelet.train.stored import COPY, damaged, stored_object

QUICK = ("digits", "mnist", "fashion-mnist", "cifar10", "cifar100")  # read in a second or two


def at_hand(runs: Sequence[Told]) -> bool:
    """Whether pictures of runs need no data that take long to read."""
    return all(run.recipe.data["kind"] in QUICK or kept_images(run) is not None for run in runs)


def require_whole(runs: Sequence[Told]) -> None:
    """Raises for weights that are not those which a run has written.

    Raises:
        UserError: naming the file, and how to get a page without running its network.
    """
    for run in runs:
        taught = run.card.get("teacher") or {}
        known = {MODEL_FILE: run.card.get("sha256"), TEACHER_FILE: taught.get("sha256")}
        for name, sha256 in known.items():
            file = run.path / name
            if sha256 is not None and file.exists() and digest(file) != sha256:
                fix = f"{COPY}; `--stored` tells what was measured before without running it"
                raise damaged(file, "its sha256 is not that of the run", fix)


def kept_images(run: Told) -> Split | None:
    """The test images that a run keeps; None for older runs, and where they are damaged."""
    try:
        return stored_examples(run.path, len((run.card.get("data") or {}).get("classes") or ()))
    except UserError:
        return None


def few(loaded: Loaded, kept: Split) -> Dataset:
    """The images that a run keeps as its data set, described by its card."""
    card = stored_object(loaded.path / "card.json").get("data") or {}
    mean, std = statistics(loaded.path / "card.json")
    return Dataset(
        name=str(card.get("name")),
        train=kept,
        validation=None,
        test=kept,
        classes=tuple(map(str, card["classes"])),
        mean=tuple(mean),
        std=tuple(std),
        licence=str(card.get("licence")),
        hashes={},
    )
