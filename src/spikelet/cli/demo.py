"""`spikelet demo`: the whole path on handwritten digits."""

from __future__ import annotations

import dataclasses
from argparse import Namespace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from spikelet.errors import UserError

if TYPE_CHECKING:
    from rich.console import Console


def run(options: Namespace, console: Console) -> dict[str, Any]:
    """Run the demo, which shows its own table on the console; the object for --json."""
    for flag, value in (("--epochs", options.epochs), ("--steps", options.steps)):
        if value is not None and value < 1:
            fix = "leave it out for what the demo is made for"
            raise UserError(f"{flag} {value}", "expected 1 or more", fix)
    from spikelet.demo import run as demonstrate

    return demonstrate(Path(options.out), options.seeds, console, **overrides(options))


def overrides(options: Namespace) -> dict[str, Any]:
    """The settings of the demo that the flags replace."""
    from spikelet.demo import Settings

    asked: dict[str, Any] = {} if options.steps is None else {"steps": options.steps}
    if options.epochs is not None:
        usual = Settings()
        for task in ("teach", "distill"):
            asked[task] = dataclasses.replace(getattr(usual, task), epochs=options.epochs)
    return asked
