"""Benchmarks: time and memory of training, and inference, beside the ANN and other packages."""

from spikelet.bench.run import bench
from spikelet.bench.setting import ENGINES, KINDS, Case, Setting

__all__ = ["ENGINES", "KINDS", "Case", "Setting", "bench"]
