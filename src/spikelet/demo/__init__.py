"""The demo: teach, distil, measure and report on handwritten digits, in minutes on two cores."""

from spikelet.demo.digits import Settings, run

__all__ = ["Settings", "run"]
