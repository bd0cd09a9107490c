"""Methods compared honestly: one teacher, methods x steps x seeds, one table; resumable."""

from spikelet.compare.grid import CONTROLS, TUNING_SEED, Cell, Grid
from spikelet.compare.run import compare

__all__ = ["CONTROLS", "TUNING_SEED", "Cell", "Grid", "compare"]
