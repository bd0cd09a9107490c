"""The command line; `main` is its entry point."""

from spikelet.cli.command import main

__all__ = ["main"]
