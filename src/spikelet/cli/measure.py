"""`spikelet measure RUN steps`: teacher, untrained conversion and student over time steps."""

from __future__ import annotations

import dataclasses
from argparse import Namespace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from spikelet.cli.runs import absolute, device_of
from spikelet.errors import UserError, unknown

if TYPE_CHECKING:
    from rich.console import Console

    from spikelet.data import Dataset
    from spikelet.train import Loaded

MEASURES = ("steps",)


def run(options: Namespace, console: Console) -> dict[str, Any]:
    """Measure; the object for --json."""
    if options.what not in MEASURES:
        raise unknown("measure", options.what, MEASURES)
    steps = sorted(set(options.steps or ()))
    if steps and steps[0] < 1:
        raise UserError(
            f"--steps {steps[0]}", "expected 1 or more", "give time steps such as 1 2 4"
        )
    device = device_of(options)
    from spikelet.train import load

    loaded = load(Path(options.run))
    dataset = _measured(_dataset(loaded, options.data_root), options.split)
    console.print(
        f"measuring on {len(dataset.test)} {options.split} images of {dataset.name}",
        highlight=False,
    )
    rows = _rows(loaded, dataset, steps, device)
    rows = [{**row, "split": options.split} for row in rows]
    return {"run": str(options.run), "rows": rows}


def _dataset(loaded: Loaded, root: str | None) -> Dataset:
    """The run's data, from `root` where they have moved."""
    if root is not None and "root" in loaded.recipe.data:
        moved = {**loaded.recipe.data, "root": absolute(root)}
        loaded = dataclasses.replace(loaded, recipe=dataclasses.replace(loaded.recipe, data=moved))
    return loaded.dataset()


def _measured(dataset: Dataset, split: str) -> Dataset:
    """The data set with the split to measure in the place of its test."""
    if split == "test":
        return dataset
    if dataset.validation is None:
        raise UserError("--split validation", "the run held no images out", "use --split test")
    return dataclasses.replace(dataset, test=dataset.validation)


def _rows(
    loaded: Loaded, dataset: Dataset, steps: list[int], device: str | None
) -> list[dict[str, Any]]:
    """Rows of accuracy; only the network itself for the run of an ANN."""
    import torch

    from spikelet.measure import accuracy
    from spikelet.train.load import ANN, teacher
    from spikelet.train.prepare import calibration
    from spikelet.train.rows import evaluation, measured, row

    recipe, place = loaded.recipe, torch.device(device or _usual())
    net = loaded.net.to(place)
    if loaded.kind == ANN:
        value = accuracy(net, evaluation(dataset.test, dataset, place))
        return [row(ANN, None, value, recipe.seed, kind="ann")]
    images = calibration(dataset, recipe.calibrate, recipe.seed, place)
    asked = steps or list(range(1, recipe.steps + 1))
    return measured(recipe, dataset, teacher(loaded), net, asked, images)


def _usual() -> str:
    import torch

    return "cuda" if torch.cuda.is_available() else "cpu"
