"""What the run of a teacher, or of an ANN to begin as, knew: held against the data of a student."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from spikelet.data import Dataset
from spikelet.errors import UserError
from spikelet.train.load import Loaded
from spikelet.train.stored import stored_object

OFF = 0.1  # deviations that means, or shares that deviations, may differ by unsaid


def _data(run: Path) -> dict[str, Any]:
    """What a run's card says of its data; nothing where there is none, as of a model's weights."""
    card = run / "card.json"
    found = stored_object(card).get("data") if card.exists() else None
    return found if isinstance(found, dict) else {}


def require_classes(run: Path, dataset: Dataset, argument: str = "teacher") -> None:
    """Refuses a run whose classes have other names, or another order, than those of the data.

    Its answers would be read as those of other classes, and no number would say so.
    """
    theirs, ours = _data(run).get("classes"), list(dataset.classes)
    if not isinstance(theirs, list) or len(theirs) != len(ours) or theirs == ours:
        return
    first = next(i for i, (a, b) in enumerate(zip(theirs, ours, strict=True)) if a != b)
    raise UserError(
        f"{argument} = {run}",
        f"its class {first} is {theirs[first]!r}, in the data {dataset.name} it is {ours[first]!r}",
        "use one that was trained on these classes in this order, or name them as it has them",
    )


def other_test_part(run: Path, dataset: Dataset) -> str | None:
    """A sentence where data of one name have another test part than a run's had.

    A folder whose images are split by their number is split anew when one is added or taken away.
    """
    known = _data(run)
    hashes = known.get("hashes")
    then = hashes.get("test") if isinstance(hashes, dict) else None
    same = dataset.frames is not None or then in (None, dataset.hashes.get("test"))
    if same or known.get("name") != dataset.name:
        return None
    return (
        f"the test images of {dataset.name} are others than those of the run {run}, which may have "
        "been trained on some of them: accuracies flatter. Teach one on these images, or keep the "
        "test apart in folders of its own (DIR/train, DIR/test)"
    )


def seen_otherwise(run: Path, dataset: Dataset) -> str | None:
    """A sentence where a run's images were normalised by other statistics than the data have."""
    known = _data(run)
    mean, std = _numbers(known.get("mean")), _numbers(known.get("std"))
    if not len(mean) == len(std) == len(dataset.mean):
        return None
    shifts = [abs(a - b) / max(s, 1e-6) for a, b, s in zip(mean, dataset.mean, std, strict=True)]
    scales = [abs(b / max(a, 1e-6) - 1) for a, b in zip(std, dataset.std, strict=True)]
    if max(*shifts, *scales) <= OFF:
        return None
    return (
        f"the teacher was trained on images of mean {_shown(mean)} and deviation {_shown(std)}, "
        f"the data {dataset.name} have {_shown(dataset.mean)} and {_shown(dataset.std)}: each is "
        "normalised by its own, so the teacher sees others than it knew"
    )


def _numbers(found: Any) -> list[float]:
    """A list of numbers; an empty one for anything else."""
    listed = found if isinstance(found, list) else []
    return listed if all(isinstance(each, int | float) for each in listed) else []


def _shown(values: Sequence[float]) -> str:
    return " ".join(f"{value:.3g}" for value in values)


def another(teacher: Loaded, dataset: Dataset) -> list[str]:
    """Sentences on what a student's data and training have other than its teacher had."""
    told = [other_test_part(teacher.path, dataset), seen_otherwise(teacher.path, dataset)]
    frozen = [name for name, each in teacher.net.named_parameters() if not each.requires_grad]
    if frozen and len(frozen) < len(list(teacher.net.parameters())):
        told.append(f"{len(frozen)} weights that are frozen in the teacher train in the student")
    return [each for each in told if each is not None]
