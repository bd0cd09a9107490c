"""Frames of a whole data set, built once and kept beside the recordings."""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
import os
import tempfile
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from spikelet.data.dataset import Split
from spikelet.data.events.frames import Framing, framed
from spikelet.data.events.stream import Events
from spikelet.errors import UserError

try:
    import fcntl
except ImportError:  # not on this system: several processes may then build the same frames
    fcntl = None  # type: ignore[assignment]

FOLDER, LOCK = ".frames", ".lock"
VERSION = 1  # of what readers and framing make of the same files
THREADS = 8


@dataclass(frozen=True)
class Source:
    """A file with one recording or several.

    Attributes:
        path: of the file.
        read: what gives its recordings, each with the index of its class.
        beside: other files that the result depends on.
    """

    path: Path
    read: Callable[[Path], Sequence[tuple[Events, int]]]
    beside: tuple[Path, ...] = ()


def split_of(name: str, sources: Sequence[Source], framing: Framing, root: Path) -> Split:
    """The frames and labels of some files in their order, from the cache where it has them.

    The cache is a file in ROOT/.frames, or in the user's cache where that cannot be written, named
    by a hash of the settings and of the files' names, sizes and times. Of several processes one
    builds, and the others wait for it.

    Raises:
        UserError: if a recording cannot be decoded, or there are none.
    """
    file = f"{name}-{_key(name, sources, framing, root)}.npz"
    stored = _found(file, root)
    if stored is not None:
        return stored
    with _in_turn(root):
        stored = _found(file, root)
        if stored is not None:
            return stored
        images, labels = _built(sources, framing)
        if not len(labels):
            raise UserError(f"data_root={root}", f"no recordings of {name} found", "add some")
        for folder in _folders(root):
            with contextlib.suppress(OSError):
                _store(folder / file, images, labels)
                break
    return Split(torch.from_numpy(images), torch.from_numpy(labels))


def _found(file: str, root: Path) -> Split | None:
    """What the cache has under a name."""
    for folder in _folders(root):
        stored = _stored(folder / file)
        if stored is not None:
            return stored
    return None


@contextlib.contextmanager
def _in_turn(root: Path) -> Iterator[None]:
    """One process after the other, in the first folder of the cache that can be written to."""
    with contextlib.ExitStack() as stack:
        for folder in _folders(root) if fcntl is not None else ():
            with contextlib.suppress(OSError):
                folder.mkdir(parents=True, exist_ok=True)
                file = stack.enter_context((folder / LOCK).open("ab"))
                fcntl.flock(file, fcntl.LOCK_EX)
                break
        yield


def _folders(root: Path) -> Iterator[Path]:
    yield root / FOLDER
    yield Path("~/.cache/spikelet").expanduser() / FOLDER


def _key(name: str, sources: Sequence[Source], framing: Framing, root: Path) -> str:
    """A hash of all that the frames depend on."""
    files = [file for source in sources for file in (source.path, *source.beside)]
    listing = []
    for file in files:
        state = file.stat()
        listing.append([os.path.relpath(file, root), state.st_size, state.st_mtime_ns])
    content = [VERSION, name, dataclasses.asdict(framing), listing]
    return hashlib.sha256(json.dumps(content).encode()).hexdigest()[:16]


def _built(
    sources: Sequence[Source], framing: Framing
) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    """Frames "N T 2 H W" and labels "N", decoded by several threads."""

    def work(source: Source) -> tuple[list[NDArray[np.uint8]], list[int]]:
        found = source.read(source.path)
        return [framed(events, framing) for events, _ in found], [label for _, label in found]

    pool = ThreadPoolExecutor(min(os.cpu_count() or 1, THREADS))
    try:
        parts = list(pool.map(work, sources))  # raises what the first failure raised
    finally:
        pool.shutdown(cancel_futures=True)
    frames = [frame for images, _ in parts for frame in images]
    labels = np.array([label for _, part in parts for label in part], np.int64)
    shape = (framing.frames, 2, *framing.size)
    return np.stack(frames) if frames else np.empty((0, *shape), np.uint8), labels


def _stored(path: Path) -> Split | None:
    """What a file of the cache holds; None where it is missing or damaged."""
    if not path.is_file():
        return None
    try:
        with np.load(path, allow_pickle=False) as content:
            return Split(torch.from_numpy(content["images"]), torch.from_numpy(content["labels"]))
    except Exception:  # whatever a damaged archive does: it is built again
        return None


def _store(path: Path, images: NDArray[np.uint8], labels: NDArray[np.int64]) -> None:
    """Writes a file of the cache in one rename."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(dir=path.parent, suffix=".part")
    try:
        with os.fdopen(handle, "wb") as file:
            np.savez(file, images=images, labels=labels)
        Path(temporary).replace(path)
    finally:
        Path(temporary).unlink(missing_ok=True)
