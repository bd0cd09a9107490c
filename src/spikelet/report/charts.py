"""Charts as inline SVG whose colours follow the page, light or dark."""

from __future__ import annotations

import io
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from spikelet.errors import UserError
from spikelet.report.names import named

Row = Mapping[str, Any]

INK, MUTED, GRID = "#010101", "#020202", "#030303"
SERIES = ("#040401", "#040402", "#040403", "#040404", "#040405", "#040406")
VARIABLES = {INK: "--ink", MUTED: "--muted", GRID: "--line"} | {
    colour: f"--series-{number}" for number, colour in enumerate(SERIES, 1)
}
MARKERS = ("o", "s", "^", "D", "v", "P")
STYLE: Any = {
    "svg.fonttype": "none",
    "svg.hashsalt": "spikelet",
    "text.parse_math": False,  # a name may hold a dollar sign
    "font.size": 9.5,
    "text.color": INK,
    "axes.edgecolor": GRID,
    "axes.labelcolor": MUTED,
    "axes.grid": True,
    "axes.axisbelow": True,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.spines.left": False,
    "grid.color": GRID,
    "grid.linewidth": 0.8,
    "xtick.color": GRID,
    "ytick.color": GRID,
    "xtick.labelcolor": MUTED,
    "ytick.labelcolor": MUTED,
    "ytick.left": False,
    "legend.frameon": False,
    "lines.linewidth": 1.8,
    "lines.markersize": 5,
    "errorbar.capsize": 2.5,
}


def series_of(rows: Sequence[Row]) -> dict[str, int]:
    """Which of the six colours each method has, in order of appearance; the teacher has none."""
    methods = dict.fromkeys(row["method"] for row in rows if row["method"] != "teacher")
    return {method: number % len(SERIES) for number, method in enumerate(methods)}


def accuracy_chart(
    rows: Sequence[Row],
    series: Mapping[str, int],
    knees: Mapping[str, int] | None = None,
    name: str = "accuracy",
) -> str:
    """Accuracy in % over time steps, a line per method with deviations, and the teacher.

    `knees` are numbers of steps to draw a ring around, by method; `name` is unique on its page.
    """
    with drawing(name, 3.3) as (axes, drawn):
        for method, number in series.items():
            mine = sorted((r for r in rows if r["method"] == method), key=lambda r: r["steps"])
            shift = 1 + 0.022 * (number - (len(series) - 1) / 2)
            axes.errorbar(
                [row["steps"] * shift for row in mine],
                [100 * row["accuracy"] for row in mine],
                yerr=[100 * (row["std"] or 0) for row in mine],
                color=SERIES[number],
                marker=MARKERS[number],
                label=method,
            )
            for row in mine:
                if (knees or {}).get(method) == row["steps"]:
                    place = row["steps"] * shift, 100 * row["accuracy"]
                    axes.plot(*place, "o", markersize=13, mfc="none", mec=SERIES[number], mew=1.2)
        for row in rows:
            if row["method"] == "teacher":
                axes.axhline(
                    100 * row["accuracy"], color=INK, ls=(0, (5, 3)), lw=1.2, label=named(row)
                )
        steps_axis(axes, [row["steps"] for row in rows if row["steps"]])
        axes.set_ylabel("accuracy, %")
        within_percent(axes)
        _legend_below(axes)
    return drawn[0]


def difference_chart(comparisons: Sequence[Row], series: Mapping[str, int]) -> str:
    """Differences in points with their intervals over time steps, a colour per control."""
    controls = list(dict.fromkeys(row["versus"] for row in comparisons))
    with drawing("difference", 3.0) as (axes, drawn):
        axes.axhline(0, color=INK, lw=1.2)
        for place, versus in enumerate(controls):
            mine = [row for row in comparisons if row["versus"] == versus]
            number = series.get(versus)
            shift = 1 + 0.07 * (place - (len(controls) - 1) / 2)
            axes.errorbar(
                [row["steps"] * shift for row in mine],
                [100 * row["mean"] for row in mine],
                yerr=[100 * (row["high"] - row["mean"]) for row in mine],
                color=INK if number is None else SERIES[number],
                marker="o" if number is None else MARKERS[number],
                ls="none",
                label=f"minus {versus}",
            )
        steps_axis(axes, [row["steps"] for row in comparisons])
        axes.set_ylabel("difference, points")
        _legend_below(axes)
    return drawn[0]


def curve_chart(curves: Mapping[str, Sequence[float]], series: Mapping[str, int]) -> str:
    """Validation accuracy in % over epochs, a line per method."""
    with drawing("curves", 2.7) as (axes, drawn):
        for method, values in curves.items():
            axes.plot(
                range(1, len(values) + 1),
                [100 * value for value in values],
                color=SERIES[series.get(method, 0)],
                label=method,
            )
        axes.set_xlabel("epoch")
        axes.set_ylabel("validation accuracy, %")
        within_percent(axes)
        _legend_below(axes)
    return drawn[0]


def dots_chart(
    name: str,
    dots: Sequence[Row],
    single: Mapping[str, Sequence[float]] | None = None,
    *,
    line: float | None = None,
    label: str = "accuracy, %",
    within: tuple[float, float] | None = None,
) -> str:
    """Shares in % as dots with their intervals, a method a line, and a line to compare with.

    Args:
        name: of the drawing, unique on its page.
        dots: `name`, `value`, `half` of the interval or None, `filled`.
        single: method -> values of single seeds, drawn small.
        line: where the reference is: the teacher's accuracy, no difference.
        label: of the axis.
        within: what the axis may show at most; a bar that goes on beyond is cut off there.
    """
    with drawing(name, 0.75 + 0.27 * len(dots)) as (axes, drawn):
        if line is not None:
            axes.axvline(100 * line, color=INK, ls=(0, (5, 3)), lw=1.2)
        for place, dot in enumerate(dots):
            values = [100 * value for value in (single or {}).get(dot["name"], ())]
            axes.plot(values, [place] * len(values), "|", color=MUTED, markersize=7, lw=0)
            axes.errorbar(
                100 * dot["value"],
                place,
                xerr=None if dot["half"] is None else 100 * dot["half"],
                color=SERIES[2],
                marker="o",
                markerfacecolor=SERIES[2] if dot["filled"] else "none",
            )
        axes.set_yticks(range(len(dots)), [dot["name"] for dot in dots])
        axes.set_ylim(len(dots) - 0.5, -0.5)
        axes.grid(False, axis="y")
        axes.set_xlabel(label)
        if within is not None:
            low, high = axes.get_xlim()
            axes.set_xlim(max(low, within[0] - 1), min(high, within[1] + 1))
    return drawn[0]


def within_percent(axes: Any) -> None:
    """Shares in % end at 100: an axis that goes beyond has no ticks there."""
    low, high = axes.get_ylim()
    axes.set_ylim(max(low, -3.0), min(high, 103.0))
    axes.set_yticks([t for t in axes.get_yticks() if max(low, 0) <= t <= min(high, 100)])


def _legend_below(axes: Any) -> None:
    """The legend under the axes, where it covers no line."""
    names = axes.get_legend_handles_labels()[1]
    columns = max(1, min(4, 60 // max(map(len, names), default=1)))
    axes.figure.legend(loc="outside lower center", ncols=columns)


def steps_axis(axes: Any, steps: Sequence[int], room: int = 16) -> None:
    """Time steps on a logarithmic axis, labelled as they are where there is room for it.

    `room` is how many labels the axis is wide.
    """
    axes.set_xscale("log", base=2)
    ticks = sorted(set(steps))
    named = _apart(ticks, room)
    axes.set_xticks(ticks, [f"{t}" if t in named else "" for t in ticks])
    axes.minorticks_off()
    axes.grid(False, axis="x")
    axes.set_xlabel("time steps T")


def _apart(ticks: Sequence[int], room: int) -> set[int]:
    """Those that are far enough apart for their labels, the last among them, powers of 2 first."""
    least = math.log2(ticks[-1] / ticks[0]) / room if ticks else 0
    chosen: list[int] = []
    for tick in [*ticks[-1:], *(t for t in ticks if t & (t - 1) == 0), *ticks]:
        if all(abs(math.log2(tick / other)) > least for other in chosen):
            chosen.append(tick)
    return set(chosen)


@contextmanager
def drawing(
    name: str, height: float, width: float = 5.4, style: Mapping[str, Any] | None = None
) -> Iterator[tuple[Any, list[str]]]:
    """Axes to draw on; afterwards the list holds the SVG. Matplotlib's settings are put back.

    Args:
        name: unique on its page: the first part of the drawing's ids.
        height, width: in inches of 72 units.
        style: settings that differ from those of all charts.
    """
    try:
        import matplotlib
        from matplotlib.figure import Figure
    except ImportError as error:
        raise UserError(
            "report", "matplotlib is not installed", "run `pip install 'spikelet[report]'`"
        ) from error
    drawn: list[str] = []
    settings: Any = {**STYLE, **(style or {})}
    with matplotlib.rc_context(settings):
        figure = Figure(figsize=(width, height), layout="constrained")
        figure.patch.set_alpha(0)
        axes = figure.add_subplot()
        axes.patch.set_alpha(0)
        yield axes, drawn
        file = io.StringIO()
        none = dict.fromkeys(("Date", "Creator", "Format", "Type"))
        figure.savefig(file, format="svg", metadata=none)
    drawn.append(_inline(file.getvalue(), name))


def _inline(svg: str, name: str) -> str:
    """An SVG file as an element of the page: no prologue, own ids, its size and colours ours."""
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.S)
    svg = re.sub(r'(<svg[^>]*?) width="[^"]*"', r"\1", svg, count=1)
    svg = re.sub(r'(<svg[^>]*?) height="[^"]*"', r"\1", svg, count=1)
    svg = re.sub(r'(\bid="|url\(#|href="#)', rf"\g<1>{name}-", svg)
    svg = re.sub(r"font: ([\d.]+px) [^;\"]*", r"font-size: \1", svg)
    for colour, variable in VARIABLES.items():
        svg = svg.replace(colour, f"var({variable})")
    return _shorter(svg.strip())


def _shorter(svg: str) -> str:
    """The same drawing in fewer letters: a page holds dozens."""
    svg = re.sub(r'<path d="[^"]*" style="fill: none; opacity: 0"/>', "", svg)  # backgrounds
    svg = re.sub(r' font-family: [^;"]*;', "", svg)  # that of the page
    svg = re.sub(r' transform="rotate\(-0 [^"]*"', "", svg)
    svg = re.sub(r'<g id="[^"]*"', "<g", svg)
    svg = re.sub(r'\b(?:d|x|y|transform)="[^"]*"', _rounded, svg)
    svg = re.sub(r">\s+<", "><", svg)
    while (bare := re.sub(r"<g></g>", "", svg)) != svg:
        svg = bare
    return svg


def _rounded(attribute: re.Match[str]) -> str:
    """Coordinates to a hundredth of a point, on one line."""
    words = " ".join(attribute[0].split())
    return re.sub(r"-?\d+\.\d+", lambda number: f"{float(number[0]):.2f}", words)
