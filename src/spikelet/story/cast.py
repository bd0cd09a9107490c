"""Who is on the page: its runs, and the colour of every network."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass

from spikelet.report.parts import Key, Section
from spikelet.story.told import Found, Source, Told, colours, sources

CONVERT = "convert"
Where = dict[str, tuple[Source, str]]
"""Name on the page -> the measure that a network is taken from, and its name there."""


@dataclass(frozen=True)
class Cast:
    """The runs of a page, and a colour for each network in them and in their measures.

    Attributes:
        runs: in order.
        colours: name on the page -> 1 to 6, or 0 for ink: the teachers.
    """

    runs: Sequence[Told]
    colours: dict[str, int]

    def colour(self, name: str) -> int:
        """The colour of a network, also of one with words behind its name."""
        fitting = [known for known in self.colours if name == known or name.startswith(f"{known} ")]
        return self.colours[max(fitting, key=len)] if fitting else 0

    def keys(self, names: Sequence[str]) -> list[Key]:
        """The legend of these networks."""
        return [Key(n, self.colour(n), "" if self.colour(n) else "dashed") for n in names]

    def line(self, name: str) -> str:
        """How the line of a network is drawn."""
        return "" if self.colour(name) else "dashed"

    def sources(self, measure: str) -> list[Source]:
        """A measure of every run that has it."""
        return sources(self.runs, measure)


@dataclass(frozen=True)
class Chapter:
    """A section of the page, and what it found in sentences."""

    section: Section
    findings: Sequence[str] = ()


def cast_of(runs: Sequence[Told]) -> Cast:
    """The cast of some runs: they, their teachers, and networks they were measured beside."""
    measures = dict.fromkeys(name for run in runs for name in run.measures)
    more = [
        source.label(str(name))
        for measure in measures
        for source in sources(runs, measure)
        for name in (source.found.get("settings") or {}).get("versus") or {}
        if name not in source.later
    ]
    if any(row["method"] == CONVERT for run in runs for row in run.rows):
        more.append(CONVERT)
    more += [
        source.label(str(each["network"]))
        for source in sources(runs, "energy")
        for each in source.found.get("networks") or ()
        if each.get("way") == "quantised"  # rivals of a run, as they would be with few levels
    ]
    return Cast(runs, colours(runs, more))


def grouped(found: Sequence[Source], alike: Callable[[Found], Hashable]) -> list[list[Source]]:
    """Measures that were taken in the same way, so that their networks stand on one chart."""
    groups: dict[Hashable, list[Source]] = {}
    for source in found:
        groups.setdefault(alike(source.found), []).append(source)
    return list(groups.values())


def networks(cast: Cast, group: Sequence[Source], names: Callable[[Found], Sequence[str]]) -> Where:
    """Every network of some measures, teachers first; a run's own is taken from its own measure.

    Args:
        cast: who is on the page.
        group: measures taken in the same way.
        names: of the networks in a measure.
    """
    own = [(s.own, (s, s.run.own)) for s in group if s.run.own in names(s.found)]
    every = [(s.label(name), (s, name)) for s in group for name in names(s.found)]
    found: Where = {}
    for label, where in [*own, *every]:
        found.setdefault(label, where)
    place = {name: number for number, name in enumerate(cast.colours)}
    return dict(sorted(found.items(), key=lambda item: place.get(item[0], len(place))))
