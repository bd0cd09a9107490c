"""What every test shares: few threads, fixed seeds, and where real data lie."""

from __future__ import annotations

import os
import random
from pathlib import Path

os.environ.setdefault("MPLBACKEND", "Agg")

import numpy
import pytest
import torch

torch.set_num_threads(1)  # tiny networks: more threads only wait for each other


@pytest.fixture(autouse=True)
def seeds() -> None:
    """Fix every global random generator, so that each test is the same alone and in a suite."""
    random.seed(0)
    numpy.random.seed(0)
    torch.manual_seed(0)


@pytest.fixture
def generator() -> torch.Generator:
    """A fresh generator on the CPU with a fixed seed."""
    return torch.Generator().manual_seed(0)


@pytest.fixture(scope="session")
def data_root() -> Path:
    """The folder of real data sets: `SPIKELET_DATA`, else ./.data; skips where there is none."""
    named = os.environ.get("SPIKELET_DATA")
    folder = Path(named) if named else Path(__file__).parents[1] / ".data"
    if not folder.is_dir():
        pytest.skip(f"no real data at {folder}; set SPIKELET_DATA to the folder that holds them")
    return folder
