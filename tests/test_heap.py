"""Freed memory that stays with the process."""

from __future__ import annotations

import subprocess
import sys

import pytest

from spikelet.heap import keep_freed_memory

COUNT = """
import resource, sys, torch
from spikelet.heap import keep_freed_memory

def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(8):
        torch.ones(16 * 2**20)  # 64 MiB
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

torch.set_num_threads(1)
first = faults()
told = keep_freed_memory()
faults(), faults()  # blocks settle where they are taken again
print(first, faults(), int(told))
"""


@pytest.mark.skipif(sys.platform != "linux", reason="other systems manage memory in another way")
def test_large_blocks_are_not_taken_anew() -> None:
    """In a process of its own, as it cannot be told back: pages touched for the first time."""
    done = subprocess.run([sys.executable, "-c", COUNT], capture_output=True, text=True, check=True)
    first, then, told = map(int, done.stdout.split())
    if not told:
        pytest.skip("the C library is not glibc")
    assert first > 8 * 30  # at the very least huge pages
    assert then < first / 10


def test_other_systems_are_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("spikelet.heap.sys.platform", "darwin")
    assert keep_freed_memory() is False
