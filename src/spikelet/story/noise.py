"""Accuracy under noise: a small chart for each kind, and what clean accuracy does not explain."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from spikelet.report.findings import kept_of_a_pair, kept_over_seeds
from spikelet.report.parts import Block, Chart, Facts, Fold, Heading, Note, Panels, Rows, Section
from spikelet.report.plots import Line, lines_chart
from spikelet.story.cast import Cast, Chapter, Where, grouped, networks
from spikelet.story.numbers import (
    NONE,
    percent,
    plain,
    point_spread,
    settings_words,
    share,
)
from spikelet.story.told import Found, Source

LOOK = (
    "Look for curves that fall later than the others: the further to the right, the stronger the "
    "noise. A network that starts higher also ends higher; the last column of the second table "
    "counts only images that both networks answer rightly without noise."
)
PAIRS = (
    "Differences of two trained networks on the same images. Intervals are over images: what other "
    "images would change, not what another seed of the training would, which may be more."
)
SEEDS = (
    "Differences of two ways of training, each with several seeds, paired by seed and image. "
    "Intervals are over seeds and images both."
)
PLACES = {"image": "", "file": " (files)", "network": " (inside)"}


def noise(cast: Cast) -> Chapter | None:
    """Curves of all networks by kind of noise, areas, and differences; None if not measured."""
    found = cast.sources("noise")
    if not found:
        return None
    blocks: list[Block] = []
    groups = grouped(found, _alike)
    for number, group in enumerate(groups):
        if len(groups) > 1:
            blocks.append(Heading(", ".join(source.own for source in group)))
        blocks += _group(cast, group, number)
    blocks += [*_seeds(found), *_versus(found)]
    words = Facts(dict(found[0].found["definitions"]))
    blocks += [_by_kind(cast, groups[0]), *_kept(found), Fold("what the words mean", [words])]
    return Chapter(Section("Noise", LOOK, blocks), _findings(cast, found))


def _alike(found: Found) -> tuple[Any, ...]:
    kinds = tuple((name, *kind["levels"]) for name, kind in found["kinds"].items())
    settings = found.get("settings") or {}
    return (found["n"], settings.get("split"), settings.get("seed"), kinds)


def _where(cast: Cast, group: Sequence[Source]) -> Where:
    """The networks that are shown: of several seeds the run's own alone."""
    more = {name for source in group for name in source.later}

    def names(found: Found) -> list[str]:
        return [name for name in found["networks"] if name not in more]

    return networks(cast, group, names)


def _group(cast: Cast, group: Sequence[Source], number: int) -> list[Block]:
    """Panels and the table of the whole, of measures that were taken in the same way."""
    where = _where(cast, group)
    charts = [
        Chart(
            _drawn(cast, where, name, kind, f"noise-{number}-{place}"),
            f"Accuracy under {name} over its level ({kind['unit']})",
            f"{name}{PLACES.get(kind['where'], '')}",
        )
        for place, (name, kind) in enumerate(group[0].found["kinds"].items())
    ]
    body = [
        [
            label,
            *(share(source.found["networks"][name][key]) for key in ("clean", "noisy", "area")),
            share(source.found["networks"][name]["drop"]),
        ]
        for label, (source, name) in where.items()
    ]
    head = ["noise on images", "clean, %", "noisy, %", "area, %", "share lost, %"]
    words = f"Accuracy {settings_words(group[0].found, group[0].found['n'])}; a network that a "
    words += "kind means nothing for has no line there. Clean: without noise. Noisy: mean over all "
    words += "kinds and levels of noise on the images. Area: mean over all levels, the clean one "
    words += "among them. Share lost: what part of the clean accuracy noise takes away."
    colours = [cast.colour(label) for label in where]
    return [Panels(charts, cast.keys(list(where))), Rows(head, body, colours=colours), Note(words)]


def _drawn(cast: Cast, where: Where, name: str, kind: Found, drawing: str) -> str:
    """Every network's accuracy over the levels of one kind, as far apart as they are named."""
    lines = []
    for label, (source, own) in where.items():
        network = source.found["kinds"][name]["networks"].get(own)
        if network is not None:
            values = [100 * value for value in network["accuracy"]]
            places = range(len(values))
            lines.append(Line(places, values, cast.colour(label), cast.line(label)))
    ticks = [f"{level:g}".removeprefix("0") or "0" for level in kind["levels"]]
    if kind["levels"] != sorted(kind["levels"]):
        ticks[0] = "all"  # such as bits: level 0 is without noise
    axes = {"along": kind["unit"], "up": "accuracy, %"}
    return lines_chart(drawing, lines, **axes, ticks=ticks, within=(-3, 103))


def _pairs(found: Sequence[Source]) -> list[tuple[Source, str]]:
    """(measure, other's name in it), each pair once; not those that an interval over seeds has."""
    seen, pairs = set(), []
    for source in found:
        for other in source.found["versus"]:
            pair = frozenset((source.own, source.label(other)))
            if pair not in seen and other not in source.repeated:
                seen.add(pair)
                pairs.append((source, other))
    return pairs


def _versus(found: Sequence[Source]) -> list[Block]:
    """Differences over all noise on images, with intervals, paired by image."""
    body = []
    for source, other in _pairs(found):
        each = source.found["versus"][other]["all"]
        cells = [point_spread(each[key]) for key in ("clean", "noisy", "kept")]
        body.append([f"{source.own} less {source.label(other)}", *cells])
    if not body:
        return []
    head = ["points (95 % interval)", "clean", "under noise", "not from clean accuracy"]
    return [Rows(head, body), Note(PAIRS)]


def _seeds(found: Sequence[Source]) -> list[Block]:
    """Differences over seeds, where several runs of each way of training were measured."""
    body = [
        [
            f"{row['method']} less {row['minus']}",
            str(len(row["seeds"])),
            *(point_spread(row[key]) for key in ("clean", "noisy", "kept")),
        ]
        for source in found
        for row in source.over_seeds
    ]
    if not body:
        return []
    head = ["points (95 % interval)", "seeds", "clean", "under noise", "not from clean accuracy"]
    return [Rows(head, body), Note(SEEDS)]


def _by_kind(cast: Cast, group: Sequence[Source]) -> Fold:
    """The area of every network under every kind."""
    where = _where(cast, group)
    body = []
    for kind in group[0].found["kinds"]:
        cells = []
        for source, name in where.values():
            network = source.found["kinds"][kind]["networks"].get(name)
            cells.append(NONE if network is None else share(network["area"]))
        body.append([kind, *cells])
    return Fold("area by kind of noise", [Rows(["area, %", *where], body)])


def _kept(found: Sequence[Source]) -> list[Block]:
    """The part that clean accuracy does not explain, by kind."""
    folds: list[Block] = []
    for source, other in _pairs(found):
        kinds = source.found["versus"][other]
        body = [
            [kind, point_spread(each["kept"]), plain(each["images_both_right"], 0)]
            for kind, each in kinds.items()
        ]
        head = ["kind", "not from clean accuracy, points", "images"]
        title = f"{source.own} less {source.label(other)}, by kind of noise"
        folds.append(Fold(title, [Rows(head, body)]))
    return folds


def _findings(cast: Cast, found: Sequence[Source]) -> list[str]:
    said = []
    for source in found:
        mine = source.found["networks"][source.run.own]
        said.append(
            f"Under noise on the images {source.own} answers {percent(mine['noisy'])} rightly "
            f"({percent(mine['clean'])} of the same images without noise)."
        )
    said += [
        kept_over_seeds(row["method"], row["minus"], len(row["seeds"]), row["kept"])
        for source in found
        for row in source.over_seeds
        if row["kept"]["mean"] is not None
    ]
    for source, other in _pairs(found):
        every = source.found["versus"][other]["all"]
        if every["kept"]["mean"] is not None:
            said.append(kept_of_a_pair(source.own, source.label(other), every))
    return [*said, *dict.fromkeys(note for s in found for note in s.found.get("notes") or ())]
