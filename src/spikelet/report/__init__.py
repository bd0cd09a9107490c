"""The report: one self-contained HTML page about a comparison, and its findings in sentences."""

from spikelet.report.findings import comparison, sentences, verdict
from spikelet.report.machine import hardware
from spikelet.report.page import Example, page

__all__ = ["Example", "comparison", "hardware", "page", "sentences", "verdict"]
