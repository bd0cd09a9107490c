"""Memory that is freed stays with the process, for tensors that come and go at every step.

The C library gives blocks above 32 MiB back to the system as soon as they are freed, and the
system hands each page out anew, zeroed, at its first touch. A network run over T steps in one batch
frees and takes many such blocks in every training step.
"""

from __future__ import annotations

import contextlib
import ctypes
import sys
from pathlib import Path

RESET = Path("/proc/self/clear_refs")
MMAP_MAX, TRIM_THRESHOLD = -4, -1  # of malloc.h


def keep_freed_memory() -> bool:
    """Tells glibc to keep what is freed, for this process; whether it could be told.

    What other C libraries do (musl, macOS, Windows) is left as it is. Nothing is lost: freed blocks
    are taken again first. The process just does not shrink between steps.
    """
    if sys.platform != "linux":
        return False
    try:
        library = ctypes.CDLL(None)
        library.gnu_get_libc_version  # noqa: B018
        tell = library.mallopt
    except (OSError, AttributeError):
        return False
    return bool(tell(MMAP_MAX, 0)) and bool(tell(TRIM_THRESHOLD, -1))


def forget_peak() -> bool:
    """Counts the process's largest resident memory anew from here; whether that can be (Linux).

    What was freed but kept is given back before, for it would hide what comes.
    """
    with contextlib.suppress(OSError, AttributeError, TypeError):  # another C library has no such
        ctypes.CDLL(None).malloc_trim(0)
    try:
        RESET.write_text("5\n", encoding="ascii")
    except OSError:
        return False
    return True
