"""The page of a whole grid: many methods against one control, a section for each T."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from spikelet.measure import t_quantile
from spikelet.report.charts import dots_chart
from spikelet.report.names import at, named
from spikelet.report.page import SHOWN, WORDS, described, template
from spikelet.report.parts import Section

Row = Mapping[str, Any]
MARKS = {
    "quantised ann": "quantised ANN, no spikes",
    "signed snn": "signed spikes",
    "delayed snn": "layers begin late",
    "delayed signed snn": "signed spikes, layers begin late",
    "ann": "ANN",
    "snn": "",
}
LOOK = (
    "Look for dots far to the right, near the dashed line of the teacher. In the figure below it, "
    "look for bars that do not touch the dashed line at 0: only these methods differ from none."
)
READING = {
    "accuracy": "on the test part at the end of training, mean ± standard deviation over n seeds; "
    "bars are 95 % intervals of Student's t, small ticks single seeds; the dashed line is the "
    "teacher; a hollow dot has no spikes",
    "to none": "differences to the same student without a teacher's help, paired by seed: an "
    "interval covers what another seed (order of the data, calibration images, fresh weights) "
    "would change, not another teacher or another set of test images",
    "finding": "each interval is at 95 % by itself: of twenty methods that change nothing, one is "
    "expected to look different",
    "firing rate": "spikes per neuron and time step; by layer: averaged so that each layer counts "
    "the same, by neuron: so that each neuron does",
    "training, s": "that of the steps alone, beside whatever else the machine did",
    "largest memory": "of the whole process, data and libraries too, or on a GPU of its tensors",
}


def grid_page(
    rows: Sequence[Row],
    seeds: Sequence[Row] = (),
    *,
    title: str,
    lead: str = "",
    findings: Sequence[str] = (),
    notes: Sequence[str] = (),
    tuned: Mapping[str, Any] | None = None,
    failed: Sequence[Row] = (),
    remaining: Sequence[str] = (),
    made: Mapping[str, str] | None = None,
    sections: Sequence[Section] = (),
) -> str:
    """One self-contained HTML page: no script, no request, light and dark.

    Args:
        rows: one for each method and T, with `difference`, `low`, `high`, `verdict` against `none`,
            `rate`, `seconds`, `peak_mib` and `kind`; the teacher's has no steps.
        seeds: the rows of single seeds.
        title, lead: headline, and what was done in a sentence.
        findings: sentences.
        notes: sentences about settings that not every row has.
        tuned: what was tried and chosen for each method.
        failed, remaining: cells that are not in the table.
        made: how it was made: data, training, versions, hardware.
        sections: further ones, about single runs.

    Raises:
        UserError: if jinja2 or matplotlib is missing.
    """
    steps = sorted({row["steps"] for row in rows if row["steps"] is not None})
    return template("grid.html.j2").render(
        title=title,
        lead=lead,
        tiles=[],
        findings=findings,
        shown=SHOWN,
        notes=notes,
        grid=[_part(t, rows, seeds) for t in steps],
        reading=READING,
        look=LOOK,
        tuned=tuned,
        failed=failed,
        remaining=remaining,
        made=made or {},
        words={**WORDS, **described(rows)},
        sections=sections,
    )


def _part(steps: int, rows: Sequence[Row], seeds: Sequence[Row]) -> dict[str, Any]:
    """Charts and table of one T; the teacher stands in each."""
    mine = [row for row in rows if row["steps"] == steps]
    shown = at(steps, rows)
    accuracies = [_dot(row["method"], row["accuracy"], _half(row), row) for row in mine]
    differences = [
        _dot(row["method"], row["difference"], _width(row), row)
        for row in mine
        if row["difference"] is not None
    ]
    single = {
        method: [r["accuracy"] for r in seeds if (r["method"], r["steps"]) == (method, steps)]
        for method in (row["method"] for row in mine)
    }
    teacher = next((row["accuracy"] for row in shown if row["steps"] is None), None)
    return {
        "steps": steps,
        "rows": [{**row, "mark": _mark(row)} for row in shown],
        "accuracy": dots_chart(
            f"accuracy-{steps}", accuracies, single, line=teacher, within=(0, 100)
        ),
        "difference": dots_chart(
            f"difference-{steps}", differences, line=0.0, label="difference to none, points"
        )
        if differences
        else "",
    }


def _mark(row: Row) -> str:
    """What stands under a row's method: a spiking teacher's T, or what has no spikes."""
    aside = named(row).removeprefix(row["method"]).strip(" ()")
    return aside or MARKS.get(row["kind"], str(row["kind"]))


def _dot(method: str, value: float, half: float | None, row: Row) -> dict[str, Any]:
    spikes = row["kind"] != "quantised ann"
    return {"name": method, "value": value, "half": half, "filled": spikes}


def _half(row: Row) -> float | None:
    """Half the 95 % interval of a mean accuracy."""
    if row["std"] is None:
        return None
    return t_quantile(0.95, row["n"] - 1) * float(row["std"]) / math.sqrt(row["n"])


def _width(row: Row) -> float | None:
    return None if row["low"] is None else row["high"] - row["difference"]
