"""One measurement in a process of its own, whose resident size is then that measurement's."""

from __future__ import annotations

import dataclasses
import json
import subprocess
import sys
from typing import Any

from spikelet.bench.setting import Case, Setting


def measure_alone(setting: Setting, case: Case) -> dict[str, Any]:
    """`memory.measure` in a fresh process.

    Raises:
        RuntimeError: the last line that the process said, where it fails.
    """
    question = json.dumps([dataclasses.asdict(setting), dataclasses.asdict(case)])
    done = subprocess.run(
        [sys.executable, "-c", "from spikelet.bench.alone import main; main()"],
        input=question,
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        said = done.stderr.strip().splitlines()
        raise RuntimeError(said[-1] if said else f"it ended with status {done.returncode}")
    answer: dict[str, Any] = json.loads(done.stdout.strip().splitlines()[-1])
    return answer


def main() -> None:
    """Read a setting and a case from standard input, print the measurement."""
    import torch

    from spikelet.bench.memory import measure
    from spikelet.heap import keep_freed_memory

    fields, case = json.loads(sys.stdin.read())
    setting = Setting.from_json(fields)
    if setting.threads is not None:
        torch.set_num_threads(setting.threads)
    if setting.device == "cpu":
        keep_freed_memory()
    print(json.dumps(measure(setting, Case(**case))))
