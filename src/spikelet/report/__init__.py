"""The report: one self-contained HTML page about a comparison, and its findings in sentences."""

from spikelet.report.findings import NOT_SHOWN, comparison, sentences, verdict
from spikelet.report.grid import grid_page
from spikelet.report.machine import hardware
from spikelet.report.names import at, named, spiking_steps
from spikelet.report.page import Example, page

__all__ = [
    "NOT_SHOWN",
    "Example",
    "at",
    "comparison",
    "grid_page",
    "hardware",
    "named",
    "page",
    "sentences",
    "spiking_steps",
    "verdict",
]
