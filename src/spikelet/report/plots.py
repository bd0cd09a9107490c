"""Small charts, several side by side: lines, spikes, potentials, costs."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from spikelet.report.charts import INK, MARKERS, MUTED, SERIES, drawing, steps_axis, within_percent

SMALL: Mapping[str, Any] = {
    "font.size": 8.5,
    "axes.labelsize": 8.5,
    "xtick.labelsize": 8.0,
    "ytick.labelsize": 8.0,
    "lines.linewidth": 1.4,
    "lines.markersize": 3.2,
    "xtick.major.pad": 2.0,
    "ytick.major.pad": 2.0,
}
WIDTH, HEIGHT = 2.05, 1.55
WRAPPED = 26  # letters under an axis before its name goes on in a second line
UNITS = (("pJ", 1.0), ("nJ", 1e3), ("µJ", 1e6), ("mJ", 1e9))  # and picojoules in them
DASHED, DOTTED = (0, (5, 3)), (0, (1.5, 2))
STYLES: Mapping[str, Any] = {"": "-", "dashed": DASHED, "dotted": DOTTED}


@dataclass(frozen=True)
class Line:
    """A line of a small chart: colour 1 to 6, or 0 for ink; `line` "", "dashed" or "dotted"."""

    x: Sequence[float]
    y: Sequence[float | None]
    colour: int
    line: str = ""
    marked: bool = True


@dataclass(frozen=True)
class Cost:
    """A network on two axes: what it costs under each assumption, and its accuracy if known.

    `costs` has names of assumptions with picojoules; `strict` names the one that is filled.
    """

    name: str
    costs: Mapping[str, float]
    accuracy: float | None
    colour: int
    spikes: bool = True


def colour_of(number: int) -> str:
    """The placeholder of a colour: 0 is ink, 1 to 6 the series."""
    return SERIES[(number - 1) % len(SERIES)] if number else INK


def lines_chart(
    name: str,
    lines: Sequence[Line],
    *,
    along: str,
    up: str,
    ticks: Sequence[str] | None = None,
    within: tuple[float, float] | None = None,
    steps: bool = False,
    grounded: bool = False,
    whole: bool = False,
) -> str:
    """Lines on small axes.

    Args:
        name: unique on its page.
        lines: each with as many x as y; a y of None is left out.
        along, up: what the axes are.
        ticks: labels of the places 0, 1, ... along the axis.
        within: what the axis upwards shows.
        steps: whether x are numbers of time steps, on a logarithmic axis.
        grounded: whether the axis upwards begins at 0, or below it where values are.
        whole: whether x are whole numbers.
    """
    with drawing(name, HEIGHT, WIDTH, SMALL) as (axes, drawn):
        for each in lines:
            there = [(x, y) for x, y in zip(each.x, each.y, strict=True) if y is not None]
            number = (each.colour - 1) % len(MARKERS)
            axes.plot(
                [x for x, _ in there],
                [y for _, y in there],
                color=colour_of(each.colour),
                ls=STYLES[each.line],
                marker=(MARKERS[number] if each.colour else "o") if each.marked else None,
            )
        if steps:
            steps_axis(axes, sorted({int(x) for each in lines for x in each.x}), room=9)
        if ticks is not None:
            axes.set_xticks(range(len(ticks)), ticks)
            axes.grid(False, axis="x")
        if within is not None:
            axes.set_ylim(*within)
        if grounded:
            low, high = axes.get_ylim()
            values = [y for each in lines for y in each.y if y is not None]
            top = high if max(values, default=0) > 0 else 1.0
            axes.set_ylim(min(low, 0) if min(values, default=0) < 0 else 0, top)
        if whole:
            axes.xaxis.get_major_locator().set_params(integer=True)
        if up.startswith("%") or up.endswith("%"):
            within_percent(axes)
        axes.set_xlabel(textwrap.fill(along, WRAPPED))
        axes.set_ylabel(up)
    return drawn[0]


def unit_of(costs: Sequence[Cost]) -> tuple[str, float]:
    """The unit that suits the largest of some energies, and picojoules in it."""
    largest = max(value for each in costs for value in each.costs.values())
    return next((u, s) for u, s in UNITS if largest < 2000 * s or u == UNITS[-1][0])


def costs_chart(name: str, costs: Sequence[Cost], unit: tuple[str, float] | None = None) -> str:
    """Energy per image (logarithmic) against accuracy in %; a bar joins a network's assumptions.

    Filled is the first assumption of each; a network whose accuracy is not known is a line upwards.

    Args:
        name: unique on its page.
        costs: the networks.
        unit: of the axis; the one that suits them by default.
    """
    word, size = unit_of(costs) if unit is None else unit
    with drawing(name, 2.3, 3.4, SMALL) as (axes, drawn):
        for each in costs:
            values = [value / size for value in each.costs.values()]
            colour = colour_of(each.colour)
            if each.accuracy is None:
                for value in values:
                    axes.axvline(value, color=colour, ls=DOTTED, lw=1.0)
                continue
            share = 100 * each.accuracy
            marker = MARKERS[(each.colour - 1) % len(MARKERS)] if each.spikes else "D"
            axes.plot([min(values), max(values)], [share, share], color=colour, lw=1.0)
            for place, value in enumerate(values):
                face = colour if place == 0 else "none"
                axes.plot(value, share, marker, color=colour, mfc=face, markersize=4.5)
        axes.set_xscale("log")
        low, high = axes.get_xlim()
        axes.set_xlim(low / 1.15, high * 1.15)
        _decades(axes)
        axes.yaxis.get_major_locator().set_params(nbins=5)
        within_percent(axes)
        axes.set_xlabel(f"{word} per image")
        axes.set_ylabel("accuracy, %")
    return drawn[0]


def _decades(axes: Any) -> None:
    """Ticks at 1, 2, 5 times powers of ten within a logarithmic axis, as plain numbers."""
    low, high = axes.get_xlim()
    ticks = [m * 10.0**e for e in range(-6, 16) for m in (1, 2, 5) if low <= m * 10.0**e <= high]
    if len(ticks) > 5:
        ticks = [t for t in ticks if f"{t:e}"[0] == "1"]
    axes.set_xticks(ticks, [f"{t:,.0f}" if t >= 1 else f"{t:g}" for t in ticks])
    axes.minorticks_off()


def raster_chart(name: str, spikes: Sequence[Sequence[float]], colour: int) -> str:
    """Spikes of neurons (rows) at each time step: a bar for each, in red for one taken back.

    Args:
        name: unique on its page.
        spikes: a row of T values -1, 0 or 1 for each neuron.
        colour: of the bars.
    """
    steps = len(spikes[0])
    with drawing(name, HEIGHT, WIDTH, SMALL) as (axes, drawn):
        for sign, shade in ((1, colour_of(colour)), (-1, SERIES[4])):
            fired = [[t + 1 for t, s in enumerate(row) if s * sign > 0] for row in spikes]
            if any(fired):
                places = range(1, len(fired) + 1)
                width = max(1.0, min(9.0, 40 / steps))
                axes.eventplot(
                    fired, lineoffsets=places, linelengths=0.8, colors=shade, linewidths=width
                )
        axes.set_xlim(0.5, steps + 0.5)
        axes.set_ylim(len(spikes) + 0.7, 0.3)
        axes.yaxis.get_major_locator().set_params(integer=True)
        _whole_steps(axes, steps)
        axes.grid(False)
        axes.set_ylabel("neuron")
    return drawn[0]


def traces_chart(
    name: str, potentials: Sequence[float], spikes: Sequence[float], colour: int
) -> str:
    """The potential of one neuron before each reset, in thresholds; a dot where it fires.

    Args:
        name: unique on its page.
        potentials: one for each time step, divided by the threshold.
        spikes: -1, 0 or 1 for each.
        colour: of the line.
    """
    steps, shade = len(potentials), colour_of(colour)
    with drawing(name, HEIGHT, WIDTH, SMALL) as (axes, drawn):
        axes.axhline(1, color=INK, ls=DASHED, lw=1.0)
        axes.axhline(0, color=MUTED, lw=0.6)
        axes.plot(range(1, steps + 1), potentials, color=shade)
        for t, (value, spike) in enumerate(zip(potentials, spikes, strict=True), 1):
            face = shade if spike > 0 else "none"
            axes.plot(t, value, "v" if spike < 0 else "o", color=shade, mfc=face, markersize=4.5)
        axes.set_xlim(0.5, steps + 0.5)
        low, high = axes.get_ylim()
        axes.set_ylim(min(low, -0.15), max(high, 1.25))
        _whole_steps(axes, steps)
        axes.set_ylabel("thresholds")
    return drawn[0]


def _whole_steps(axes: Any, steps: int) -> None:
    every = max(1, -(-steps // 8))
    axes.set_xticks(range(1, steps + 1, every))
    axes.set_xlabel("time step")
