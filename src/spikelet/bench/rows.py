"""Rows of a benchmark: one for each case, relative to the ANN and to the floor of T steps."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from spikelet.bench.clock import Mark, first, intervals
from spikelet.bench.foreign import PACKAGES, implementation
from spikelet.bench.memory import MIB, peak_bytes, saved_bytes
from spikelet.bench.setting import Case, Setting
from spikelet.bench.subject import Subject, width_of
from spikelet.measure.accuracy import evaluating

Row = dict[str, Any]
TIMES = (
    "seconds_min", "seconds_median", "seconds_forward", "seconds_first", "images_per_second",
)  # fmt: skip
REST = ("ratio_to_ann", "ratio_to_floor", "saved_mib", "peak_mib")


def blank(setting: Setting, case: Case) -> Row:
    """What a row says of its case, and every measured key, without a value."""
    return {
        "kind": setting.kind,
        "engine": case.engine,
        "precision": case.precision,
        "model": setting.model,
        "width": width_of(setting),
        "size": setting.size,
        "steps": case.steps,
        "batch": setting.batch,
        "fused": case.fused,
        "n": setting.repeats,
        "threads": torch.get_num_threads(),
        **dict.fromkeys((*TIMES, *REST)),
    }


def training(setting: Setting, case: Case, made: Subject) -> Row:
    """Forward and backward of one batch: seconds, and what is kept in between."""

    def step(mark: Callable[[], Mark]) -> list[Mark]:
        made.net.zero_grad(set_to_none=True)
        begin = mark()
        loss = made.loss()
        middle = mark()
        loss.backward()
        return [begin, middle, mark()]

    cold = first(step, made.device)
    measured = intervals(step, setting.repeats, made.device)
    row = blank(setting, case) | _seconds([sum(each) for each in measured], setting.batch)
    row["seconds_first"] = cold
    row["seconds_forward"] = statistics.median(each[0] for each in measured)
    row["saved_mib"] = saved_bytes(made.loss) / MIB
    if made.device.type == "cuda":  # on a CPU only a process of its own can tell
        row["peak_mib"] = (peak_bytes(made) or 0) / MIB
    return row | _foreign(case, made)


def inference(setting: Setting, case: Case, made: Subject) -> Row:
    """One run without gradients in eval mode that answers at every step 1..T.

    The answer after t steps is the mean of the first t logits.
    """

    def step(mark: Callable[[], Mark]) -> list[Mark]:
        begin = mark()
        answers_so_far(made.run())
        return [begin, mark()]

    with evaluating(made.net):
        cold = first(step, made.device)
        measured = intervals(step, setting.repeats, made.device)
    row = blank(setting, case) | _seconds([each[0] for each in measured], setting.batch)
    row["seconds_first"] = cold
    row["seconds_forward"] = row["seconds_median"]
    return row | _foreign(case, made)


def answers_so_far(logits: Tensor) -> Tensor:
    """Mean of the first t logits for each t = 1..T, "T B K", from the logits of each step."""
    logits = logits.float()
    counts = torch.arange(1, len(logits) + 1, device=logits.device)
    return logits.cumsum(0) / counts.reshape(-1, 1, 1)


def _seconds(seconds: Sequence[float], batch: int) -> Row:
    median = statistics.median(seconds)
    return {
        "seconds_min": min(seconds),
        "seconds_median": median,
        "images_per_second": batch / median,
    }


def _foreign(case: Case, made: Subject) -> Row:
    """What a row of SpikingJelly says besides."""
    return {"implementation": implementation(made.device)} if case.engine == "jelly" else {}


def related(rows: Sequence[Row]) -> list[Row]:
    """The rows with one ANN per precision, the faster of those measured, and ratios to it.

    The floor of T steps in training is T forwards of the ANN and one backward; without gradients
    T forwards. A precision without an ANN keeps its ratios empty.
    """
    fastest: dict[str, Row] = {}
    for row in rows:
        if row["engine"] == "ann" and row["seconds_median"] is not None:
            best = fastest.setdefault(row["precision"], row)
            if row["seconds_median"] < best["seconds_median"]:
                fastest[row["precision"]] = row
    kept: list[Row] = []
    for row in rows:
        base = fastest.get(row["precision"])
        if base is None:
            kept.append(row)
        elif row["engine"] != "ann":
            kept.append(row | _ratios(row, base, rows))
        elif all(r["engine"] != "ann" or r["precision"] != row["precision"] for r in kept):
            kept.append(base | _ratios(base, base, rows))
    return kept


def _ratios(row: Row, ann: Row, rows: Sequence[Row]) -> Row:
    """Times relative to the ANN's, to its floor, and to others' BPTT of the same T."""
    whole, forward = ann["seconds_median"], ann["seconds_forward"]
    floor = row["steps"] * forward + (whole - forward)
    seconds = row["seconds_median"]
    ratios = {"ratio_to_ann": seconds / whole, "ratio_to_floor": seconds / floor}
    for other in rows:
        same = all(other[key] == row[key] for key in ("precision", "steps"))
        if same and other["engine"] in PACKAGES and row["engine"] != "ann":
            ratios[f"ratio_to_{other['engine']}"] = seconds / other["seconds_median"]
    return ratios
