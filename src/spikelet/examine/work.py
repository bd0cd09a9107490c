"""Measures of one run, one after the other; each is written to the run folder when it is done."""

from __future__ import annotations

import math
import tempfile
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from spikelet.errors import UserError
from spikelet.examine.subject import Subject
from spikelet.examine.table import MEASURES, Tell, images_of
from spikelet.recipe import resolve
from spikelet.train import write_json
from spikelet.train.stored import stored_object

FOLDER, LEFT_OUT = "measures", "left-out.json"
Measure = Callable[[Subject, Tell], dict[str, Any]]
Telling = Callable[[str], AbstractContextManager[Tell]]


def work(
    subject: Subject, names: Sequence[str], images: int | None, telling: Telling
) -> tuple[dict[str, dict[str, Any]], dict[str, Exception]]:
    """(what each measure found, what went wrong in those that failed), by name.

    A measure that fails does not keep the others from being computed and written.

    Args:
        subject: the run, with all the images of the measured part.
        names: measures of the table, or import paths.
        images: how many images to use; None for each measure's own number.
        telling: gives a measure's name a context with the function that takes its progress.

    Raises:
        UserError: before anything is computed, for a measure that cannot be imported, and a run
            that cannot be written to or holds one of the measures on more images.
    """
    functions = {name: function(name) for name in names}
    _require_place(subject.loaded.path)
    for name in names:
        _require_more(subject, name, images)
    found: dict[str, dict[str, Any]] = {}
    failed: dict[str, Exception] = {}
    for name, measure in functions.items():
        mine = subject.cut(images_of(name, images))
        try:
            with telling(name) as tell:
                result = finite(measure(mine, tell))
            whole = len(subject.dataset.test)
            result = marked(result, len(mine.dataset.test), whole)
            result = {**result, "settings": settings(mine, whole), "date": _today()}
            stored = {"schema": 1, "measure": name, **result}
            write_json(file_of(subject.loaded.path, name), stored)
            found[name] = result
        except Exception as error:
            failed[name] = error
    _note_left_out(subject.loaded.path, list(found), failed)
    return found, failed


def _require_place(run: Path) -> None:
    """Raises, before anything is computed, where its results cannot be stored."""
    try:
        (run / FOLDER).mkdir(exist_ok=True)
        with tempfile.TemporaryFile(dir=run / FOLDER):
            pass
    except OSError as error:
        what = f"nothing can be written there ({error.strerror}), and measures are kept in the run"
        raise UserError(str(run / FOLDER), what, "measure a copy of the run elsewhere") from error


def _require_more(subject: Subject, name: str, images: int | None) -> None:
    """Raises where a measure on more images of the same part would be written over."""
    file, asked = file_of(subject.loaded.path, name), images_of(name, images)
    if images is None or not file.exists():
        return
    known = stored_object(file, "delete it").get("settings") or {}
    whole = known.get("images", 0)
    if known.get("split") == subject.split and asked is not None and asked < whole:
        what = f"{name} is stored for {whole} images, which fewer would replace"
        raise UserError(f"--images {images}", what, f"ask for {whole} or more, or delete {file}")


def left_out(run: Path) -> dict[str, str]:
    """The measures that do not suit a run, each with the sentence why."""
    file = run / FOLDER / LEFT_OUT
    stored = stored_object(file, "delete it") if file.exists() else {}
    return {str(k): str(v) for k, v in (stored.get("left_out") or {}).items()}


def _note_left_out(run: Path, found: Sequence[str], failed: Mapping[str, Exception]) -> None:
    """Notes which measures do not suit a run, so that nobody is sent to measure them again."""
    before = left_out(run)
    known = {name: words for name, words in before.items() if name not in found}
    known |= {name: str(e) for name, e in failed.items() if isinstance(e, UserError)}
    if known != before:
        write_json(run / FOLDER / LEFT_OUT, {"schema": 1, "left_out": known})


def function(name: str) -> Measure:
    """The function of a measure's name or import path.

    Raises:
        UserError: if there is none.
    """
    measure: Measure = resolve("measure", name, MEASURES)
    if not callable(measure):
        raise UserError(f"measure {name}", "it is no function", "name a function")
    return measure


def file_of(run: Path, name: str) -> Path:
    """Where a measure of a run is stored."""
    return run / FOLDER / f"{name.replace(':', '.')}.json"


def settings(subject: Subject, whole: int | None = None) -> dict[str, Any]:
    """What a measure was taken with; `of` is how many images the whole part has."""
    images = len(subject.dataset.test)
    return {
        "images": images,
        "of": images if whole is None else whole,
        "split": subject.split,
        "steps": subject.steps,
        "over": list(subject.over),
        "seed": subject.seed,
        "versus": {
            each.name: None if each.run is None else str(Path(each.run).absolute())
            for each in subject.others
        },
        "device": subject.device.type,
    }


def marked(found: dict[str, Any], images: int, whole: int) -> dict[str, Any]:
    """What was found, with `images` in each row where these are not the whole part."""
    if images == whole or "rows" not in found:
        return found
    return {**found, "rows": [{**row, "images": images} for row in found["rows"]]}


def finite(value: Any) -> Any:
    """The same data without infinities and NaN, which JSON does not have, and keys as strings."""
    if isinstance(value, Mapping):
        return {str(key): finite(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [finite(each) for each in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value


def _today() -> str:
    return f"{datetime.now(UTC):%Y-%m-%d}"
