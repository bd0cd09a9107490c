"""The report: self-contained HTML pages about runs and comparisons, and findings in sentences."""

from spikelet.report.findings import NOT_SHOWN, comparison, sentences, verdict
from spikelet.report.grid import grid_page
from spikelet.report.machine import hardware
from spikelet.report.names import at, named, spiking_steps
from spikelet.report.page import Example, page
from spikelet.report.run import run_page

__all__ = [
    "NOT_SHOWN",
    "Example",
    "at",
    "comparison",
    "grid_page",
    "hardware",
    "named",
    "page",
    "run_page",
    "sentences",
    "spiking_steps",
    "verdict",
]
