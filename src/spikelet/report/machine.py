"""What the numbers were computed on, in words."""

from __future__ import annotations

import os
import platform
from pathlib import Path

CPU_FILE = Path("/proc/cpuinfo")


def hardware() -> str:
    """Processor, usable cores and operating system, such as "2 cores of X, Linux x86_64"."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    name = _processor() or platform.processor() or "an unnamed processor"
    return f"{cores} cores of {name}, {platform.system()} {platform.machine()}"


def _processor() -> str:
    """The processor's name where Linux tells it, else nothing."""
    try:
        lines = CPU_FILE.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return ""
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else ""
