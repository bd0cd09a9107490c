"""Time and memory over T as one SVG file that stands alone."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from typing import Any

from spikelet.errors import UserError
from spikelet.report.charts import (
    GRID,
    INK,
    MARKERS,
    MUTED,
    SERIES,
    STYLE,
    steps_axis,
)

Row = Mapping[str, Any]
PANELS = {
    "train": (("seconds_median", "seconds per step"), ("saved_mib", "MiB kept for backward")),
    "memory": (("saved_mib", "MiB kept for backward"), ("peak_mib", "MiB at the peak")),
    "infer": (("seconds_median", "seconds per batch"), ("images_per_second", "images per second")),
}
NAMES = {"jelly": "SpikingJelly", "snntorch": "snnTorch", "ann": "ANN"}
DASHES = {"fp32": "-", "bf16": (0, (4, 2))}
# a file cannot follow the page around it: the colours of the light page, on its paper
PAPER = "#fdfdfc"
COLOURS = {INK: "#1d1f22", MUTED: "#5f656d", GRID: "#dfe0dd"} | dict(
    zip(SERIES, ("#9a5b00", "#0b7a75", "#2457c5", "#8a3ea8", "#a8324a", "#5d6b1d"), strict=True)
)


def chart(kind: str, rows: Sequence[Row]) -> str:
    """The SVG of a benchmark's rows: a line per engine, dashed in bf16, the ANN and the floor.

    Raises:
        UserError: if matplotlib is not installed.
    """
    try:
        import matplotlib
        from matplotlib.figure import Figure
    except ImportError as error:
        fix = "run `pip install 'spikelet[report]'`"
        raise UserError("report", "matplotlib is not installed", fix) from error
    panels = [each for each in PANELS[kind] if any(row[each[0]] is not None for row in rows)]
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(4.6 * len(panels), 3.8), layout="constrained", facecolor=PAPER)
        for place, (key, label) in enumerate(panels, 1):
            axes = figure.add_subplot(1, len(panels), place, facecolor=PAPER)
            _panel(axes, key, label, rows)
        figure.suptitle(_title(rows[0]), fontsize=9.5)
        handles, labels = figure.axes[0].get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside lower center", ncols=4, fontsize=8.5)
        file = io.StringIO()
        none = dict.fromkeys(("Date", "Creator", "Format", "Type"))
        figure.savefig(file, format="svg", metadata=none)
    drawn = file.getvalue()
    for placeholder, colour in COLOURS.items():
        drawn = drawn.replace(placeholder, colour)
    return drawn


def _title(row: Row) -> str:
    width = f", width {row['width']}" if row["width"] else ""
    return f"{row['model']}{width}, {row['size']}x{row['size']}, batch {row['batch']}"


def _panel(axes: Any, key: str, label: str, rows: Sequence[Row]) -> None:
    """One measured quantity over T, both axes logarithmic."""
    from matplotlib.ticker import LogLocator

    for name, precision, mine in lines(rows, key):
        style: dict[str, Any] = {"ls": DASHES[precision], "label": f"{name}, {precision}"}
        if name == "ANN":
            axes.axhline(mine[0][1], color=INK, lw=1.2, **style)
        elif name == "floor":
            axes.plot(*zip(*mine, strict=True), color=MUTED, lw=1.2, **style)
        else:
            colour = names_of(rows).index(name) % len(SERIES)
            style |= {"color": SERIES[colour], "marker": MARKERS[colour]}
            axes.plot(*zip(*mine, strict=True), **style)
    axes.set_yscale("log")
    axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.yaxis.set_major_formatter("{x:g}")
    axes.minorticks_off()
    steps = [row["steps"] for row in rows if row["engine"] != "ann"]
    steps_axis(axes, steps or [1])
    axes.set_ylabel(label)


def names_of(rows: Sequence[Row]) -> list[str]:
    """The engines over time as the plot calls them, in order of appearance."""
    return list(dict.fromkeys(_name(row) for row in rows if row["engine"] != "ann"))


def _name(row: Row) -> str:
    engine = str(row["engine"])
    return NAMES.get(engine, engine) + (", fused" if row["fused"] else "")


def lines(rows: Sequence[Row], key: str) -> list[tuple[str, str, list[tuple[int, float]]]]:
    """(name, precision, points (T, value) in order of T) of each line of a panel."""
    found: dict[tuple[str, str], dict[int, float]] = {}
    for row in rows:
        if row[key] is not None:
            found.setdefault((_name(row), row["precision"]), {})[row["steps"]] = row[key]
        if key == "seconds_median" and row["ratio_to_floor"] and row["engine"] != "ann":
            floor = found.setdefault(("floor", row["precision"]), {})
            floor[row["steps"]] = row[key] / row["ratio_to_floor"]
    return [(*who, sorted(points.items())) for who, points in found.items()]
