"""What the networks look at: saliency maps, how alike they are, and whether they matter."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from typing import Any

from spikelet.report.parts import (
    Block,
    Chart,
    Facts,
    Fold,
    Gallery,
    Heading,
    Key,
    Note,
    Panels,
    Rows,
    Section,
)
from spikelet.report.plots import Line, lines_chart
from spikelet.story.cast import Cast, Chapter
from spikelet.story.numbers import NONE, plain, settings_words, shown, spread
from spikelet.story.told import Source

LOOK = (
    "Look for bright spots in the same places: bright pixels are those that the answer depends on "
    "most."
)
TABLE = (
    " In the table a student's row should be far above that of the same network with shuffled "
    "weights, which has learned nothing."
)
MEASURES = {"cosine": "cosine", "spearman": "rank correlation", "overlap": "shared top pixels"}
RANDOM, SHUFFLED = "pixels in random order", " with shuffled weights"
CURVES = {
    "deletion": "most salient pixels taken away first: a faster fall means that they matter",
    "insertion": "most salient pixels shown first: a faster rise means that they suffice",
}


def looks(
    cast: Cast, galleries: Sequence[Gallery] = (), notes: Sequence[str] = ()
) -> Chapter | None:
    """Maps beside images, their similarity, deletion and insertion; None if there is nothing.

    Args:
        cast: who is on the page.
        galleries: images with maps, computed from the runs' data.
        notes: how the images were chosen, or why there are none.
    """
    found = cast.sources("saliency")
    if not found and not galleries:
        return None
    blocks: list[Block] = [*galleries, *(Note(words) for words in notes)]
    groups = _groups(found)
    for number, group in enumerate(groups):
        if len(groups) > 1:
            blocks.append(Heading(", ".join(source.own for source in group)))
        blocks += _alike(cast, group)
        blocks += _curves(cast, group, number)
    if found:
        words = dict(found[0].found.get("definitions") or {})
        blocks.append(Fold("what the words mean", [Facts(words)]))
    said = [words for source in found for words in _findings(source)]
    return Chapter(Section("What the networks look at", LOOK + TABLE * bool(found), blocks), said)


def _groups(found: Sequence[Source]) -> list[list[Source]]:
    """Measures of the same networks, which were therefore shown the same images."""
    groups: dict[Hashable, list[Source]] = {}
    for source in found:
        names = (row["network"] for row in source.found["curves"])
        settings = source.found.get("settings") or {}
        key = (frozenset(map(source.label, names)), source.found["n"], settings.get("split"))
        groups.setdefault((*key, source.label(source.found["reference"])), []).append(source)
    return list(groups.values())


def _alike(cast: Cast, group: Sequence[Source]) -> list[Block]:
    """The table of similarities to the reference's maps, its controls, and differences folded."""
    found, source = group[0].found, group[0]
    similar = {
        s.label(row["network"]): row
        for s in group
        for row in s.found["similarity"]
        if row["network"] not in s.later
    }
    names = sorted(similar, key=lambda name: SHUFFLED in name)
    rows = [[name, *(spread(similar[name][key]) for key in MEASURES)] for name in names]
    rows.append(["by chance", NONE, plain(0.0, 2), plain(found["chance"], 2)])
    colours: list[int | None] = [None if SHUFFLED in n else cast.colour(n) for n in names]
    head = [f"maps like those of {source.label(found['reference'])}", *MEASURES.values()]
    words = (
        f"Mean with 95 % interval over {found['n']} images that every network answers rightly "
        f"({settings_words(found, found['examined'])}), of single trained networks: with another "
        "seed of the training more may change. Rank correlation: 1 where two maps put the pixels "
        "in the same order, 0 where the order of one says nothing about the other. Shared top "
        f"pixels: of the {100 * found['share']:g} % brightest of each, the part that both have. "
        "Cosine: 1 for equal maps, but high by chance too, as maps have one sign."
    )
    fold = Fold("differences, and another kind of map", [_more(group)])
    return [Rows(head, rows, colours=[*colours, None]), Note(words), *_seeds(group), fold]


def _seeds(group: Sequence[Source]) -> list[Block]:
    """Differences of similarity over seeds, where several runs of each way were measured."""
    body = [
        [
            f"{row['method']} less {row['minus']}",
            str(len(row["seeds"])),
            *(spread(row[key]) for key in MEASURES),
        ]
        for source in group
        for row in source.over_seeds
    ]
    if not body:
        return []
    words = "Differences paired by seed and image; intervals are over seeds and images both."
    return [Rows(["over seeds", "seeds", *MEASURES.values()], body), Note(words)]


def _more(group: Sequence[Source]) -> Rows:
    """Paired differences of similarity, and similarity of integrated gradients."""
    body: dict[str, list[str]] = {}
    for source in group:
        parts = (
            (f"{source.own} less ", "minus", source.found["similarity_differences"]),
            ("integrated gradients, ", "network", source.found["integrated"]["similarity"]),
        )
        for words, key, rows in parts:
            for row in rows:
                name = f"{words}{source.label(row[key])}"
                body.setdefault(name, [name, *(spread(row[m]) for m in MEASURES)])
    return Rows(["mean with interval", *MEASURES.values()], list(body.values()))


def _curves(cast: Cast, group: Sequence[Source], number: int) -> list[Block]:
    """Deletion and insertion: a panel for each network, a line for each ranking."""
    rows = {
        (s.label(row["network"]), _ranker(s, row), row["kind"]): row
        for s in reversed(group)
        for row in s.found["curves"]
        if row["network"] not in s.later
    }
    shares = group[0].found["shares"]
    place = {name: number for number, name in enumerate(cast.colours)}
    names = sorted({name for name, _, _ in rows}, key=lambda name: place.get(name, len(place)))
    rankers = dict.fromkeys(by for _, by, _ in rows)
    blocks: list[Block] = [Panels((), [_key(cast, by) for by in rankers])]
    for kind, words in CURVES.items():
        charts = []
        for where, name in enumerate(names):
            lines = [
                _line(cast, by, shares, row["probability"])
                for (network, by, what), row in rows.items()
                if (network, what) == (name, kind)
            ]
            drawn = lines_chart(
                f"{kind}-{number}-{where}",
                lines,
                along="% of pixels",
                up="probability, %",
                within=(-3, 103),
            )
            text = f"{kind.capitalize()}: probability of the answer of {name} by share of pixels"
            charts.append(Chart(drawn, text, name))
        blocks += [Note(f"{kind.capitalize()}, {words}."), Panels(charts)]
    return [*blocks, _areas(rows)]


def _ranker(source: Source, row: Mapping[str, Any]) -> str:
    return RANDOM if row["ranked_by"] == "random" else source.label(row["ranked_by"])


def _key(cast: Cast, by: str) -> Key:
    if by == RANDOM:
        return Key(by, 0, "dotted")
    return Key(f"pixels as {by} ranks them", cast.colour(by), cast.line(by))


def _line(cast: Cast, by: str, shares: Sequence[float], values: Sequence[float]) -> Line:
    colour, line = (0, "dotted") if by == RANDOM else (cast.colour(by), cast.line(by))
    x, y = [100 * share for share in shares], [100 * value for value in values]
    return Line(x, y, colour, line, marked=by != RANDOM)


def _areas(rows: Mapping[tuple[str, str, str], Mapping[str, Any]]) -> Fold:
    """The areas under the curves, with intervals."""
    body = [
        [name, kind, by, spread(row["areas"]["probability"]), spread(row["areas"]["agreement"])]
        for (name, by, kind), row in rows.items()
    ]
    head = ["network", "curve", "ranking of", "area, probability", "area, same answer"]
    return Fold("areas under the curves", [Rows(head, body)])


def _findings(source: Source) -> list[str]:
    """How like the reference's a student's maps are, beside the control and other students."""
    found = source.found
    by_name: Mapping[str, Mapping[str, Mapping[str, float]]] = {
        row["network"]: row for row in found["similarity"]
    }
    mine = by_name.get(source.run.own)
    if mine is None or mine["spearman"]["mean"] is None:
        return []
    reference = source.label(found["reference"])
    text = (
        f"The maps of {source.own} rank pixels as {reference}'s do with a correlation of "
        f"{plain(mine['spearman']['mean'], 2)}"
    )
    control = by_name.get(f"{source.run.own} with shuffled weights")
    if control is not None and control["spearman"]["mean"] is not None:
        text += f" (with shuffled weights {plain(control['spearman']['mean'], 2)})"
    single = []
    for row in found["similarity_differences"]:
        if row["minus"] in source.repeated:
            continue
        if " with shuffled weights" not in row["minus"] and row["spearman"]["mean"] is not None:
            side = shown(row["spearman"])
            verdict = "no difference shown" if side is None else f"{side} alike"
            single.append(f"{source.label(row['minus'])}: {verdict}")
    known = (row for row in source.over_seeds if row["spearman"]["mean"] is not None)
    several = [_over_seeds(row) for row in known]
    if single:
        text += f"; beside single networks (another seed may differ), {', '.join(single)}"
    return [text + ".", *several]


def _over_seeds(row: Mapping[str, Any]) -> str:
    """Two ways of training over several seeds."""
    side = shown(row["spearman"])
    verdict = "no difference shown" if side is None else f"{side} like the teacher's"
    ends = spread(row["spearman"])
    return (
        f"Maps of {row['method']} beside those of {row['minus']} over {len(row['seeds'])} seeds: "
        f"{verdict}, a difference of rank correlations of {ends}, interval over seeds and images."
    )
