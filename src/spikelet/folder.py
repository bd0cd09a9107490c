"""A folder that one process at a time writes to: whole files or none, a lock, plain sentences."""

from __future__ import annotations

import errno
import hashlib
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO

from spikelet.errors import UserError

try:
    import fcntl
except ImportError:  # not on this system: nothing keeps two from one folder
    fcntl = None  # type: ignore[assignment]

LOCK_FILE = ".lock"
PATIENCE = 1.0  # seconds that a process which was just killed may take to be gone
FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
CLOSED = (errno.EROFS, errno.EACCES, errno.EPERM, errno.EIO, errno.ENOTDIR)


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A temporary sibling to write to, which takes the place of `path` once on the disk.

    Raises:
        OSError: with `path` as its file name; what was there before is still there.
    """
    temporary = path.with_name(f".{path.name}.new")
    with _about(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            temporary.unlink(missing_ok=True)
            temporary.touch()
            mode = temporary.stat().st_mode  # as the umask has it; safetensors leaves 0600
            yield temporary
            temporary.chmod(mode)
            _flush(temporary)
            temporary.replace(path)
        finally:
            with suppress(OSError):
                temporary.unlink(missing_ok=True)
        _flush(path.parent)


def append(path: Path, text: str) -> None:
    """Add to a text file.

    Raises:
        OSError: with `path` as its file name.
    """
    with _about(path), path.open("a", encoding="utf-8") as file:
        file.write(text)


def digest(path: Path | str) -> str:
    """The sha256 of a file, for lineage."""
    with Path(path).open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def sweep(folder: Path) -> None:
    """Delete what a killed process left half written, ours and that of safetensors."""
    for pattern in (".*.new", ".tmp??????"):
        for left in folder.glob(pattern):
            with suppress(OSError):
                left.unlink()


@contextmanager
def alone_in(folder: Path, argument: str) -> Iterator[None]:
    """Keeps other processes out of a folder; the lock is the system's and ends with the process.

    Raises:
        UserError: naming `argument` and the process that is at work there.
        OSError: if nothing can be written there.
    """
    path = folder / LOCK_FILE
    file = _locked(path, argument)
    try:
        with suppress(OSError):  # a full disk has no room for the number: the lock still holds
            file.truncate(0)
            file.write(str(os.getpid()))
            file.flush()
        yield
    finally:
        with suppress(OSError):
            path.unlink(missing_ok=True)
        with suppress(OSError):
            file.close()


def require_free(folder: Path, argument: str) -> None:
    """Raise the sentence of `alone_in` where another process is at work; nothing is written."""
    if (folder / LOCK_FILE).exists():
        with suppress(OSError), alone_in(folder, argument):
            pass


@contextmanager
def storing(folder: Path, line: Callable[[], str | None]) -> Iterator[None]:
    """Makes one sentence of a full disk and of a folder that cannot be used.

    Args:
        folder: what is written within the block.
        line: gives the command that continues, if something was begun by then.
    """
    try:
        yield
    except OSError as error:
        told = unwritable(error, folder, line())
        if told is None:
            raise
        raise told from error


def unwritable(error: OSError, folder: Path, line: str | None) -> UserError | None:
    """The sentence about an error of the disk in a folder; None for any other error."""
    if error.errno not in FULL + CLOSED or error.filename is None:
        return None
    place = Path(os.fsdecode(error.filename)).absolute()
    if not place.is_relative_to(folder.absolute()):
        return None
    mend = "free some space" if error.errno in FULL else "make it writable"
    more = "or name another folder" if line is None else f"then continue with `{line}`"
    what = f"{place.name} cannot be written there ({error.strerror})"
    return UserError(f"run = {folder}", what, f"{mend}, {more}")


def _locked(path: Path, argument: str) -> IO[str]:
    """The open lock file, locked by this process."""
    until = time.monotonic() + PATIENCE
    while True:
        file = path.open("a+", encoding="ascii")
        if _taken(file):
            if _is_at(file, path):
                return file
        elif time.monotonic() > until:
            file.seek(0)
            holder = file.read(20).strip()
            file.close()
            who = f"process {holder}" if holder.isdecimal() else "another process"
            what = f"{who} is at work in this folder"
            raise UserError(argument, what, "wait for it, or name another folder")
        else:
            time.sleep(0.05)
        file.close()


def _taken(file: IO[str]) -> bool:
    """Whether the lock is ours now; so it is where the system or file system has none."""
    if fcntl is None:
        return True
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:
        return True
    return True


def _is_at(file: IO[str], path: Path) -> bool:
    """Whether the file is still the one of that name: who had it before may have deleted it."""
    try:
        return os.path.samestat(os.fstat(file.fileno()), path.stat())
    except FileNotFoundError:
        return False


@contextmanager
def _about(path: Path) -> Iterator[None]:
    """Gives an error of the disk the name of the file that was to be written."""
    try:
        yield
    except OSError as error:
        if error.errno is None or error.filename == str(path):
            raise
        raise OSError(error.errno, error.strerror or os.strerror(error.errno), str(path)) from error


def _flush(path: Path) -> None:
    """Wait until a file or the names in a folder are on the disk."""
    try:
        descriptor = os.open(path, os.O_RDONLY)
    except PermissionError:  # folders cannot be opened on Windows
        return
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
