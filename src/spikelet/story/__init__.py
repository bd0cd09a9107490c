"""The story of finished runs: what their folders hold, read back and told on one page."""

from spikelet.story.write import close_up, write

__all__ = ["close_up", "write"]
