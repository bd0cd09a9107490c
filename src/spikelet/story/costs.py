"""Energy by operation counts beside accuracy: every network, every rival, every accounting."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from spikelet.report.findings import listed
from spikelet.report.parts import (
    Block,
    Chart,
    Facts,
    Fold,
    Heading,
    Key,
    Note,
    Panels,
    Points,
    Rows,
    Section,
)
from spikelet.report.plots import Cost, costs_chart
from spikelet.story.accuracy import accuracies
from spikelet.story.cast import Cast, Chapter, Where, grouped, networks
from spikelet.story.numbers import NONE, joules, plain, settings_words
from spikelet.story.told import Found, Source

LOOK = (
    "Look for networks up and to the left: more accurate for less energy. Each panel adds up more "
    "of what a chip would have to do; a bar joins what a network costs at worst (filled: strict, "
    "or dense) and at best (hollow)."
)
PRECISION = "fp32"
LEFT_OUT = "recomputed"
CAPTIONS = {
    "synapses": "synapses alone",
    "arithmetic": "all arithmetic",
    "arithmetic and SRAM": "and memory on the chip",
    "arithmetic and DRAM": "and memory off the chip",
}


def costs(cast: Cast, levels: Mapping[str, float] | None = None) -> Chapter | None:
    """Energy of the runs' networks and their rivals; None where it was not measured.

    Args:
        cast: who is on the page.
        levels: name -> accuracy of a student's own network with quantised activations, if known.
    """
    found = cast.sources("energy")
    if not found:
        return None
    blocks: list[Block] = []
    groups = grouped(found, lambda each: (each["images"], *_sums(each)))
    for number, group in enumerate(groups):
        if len(groups) > 1:
            blocks.append(Heading(", ".join(source.own for source in group)))
        blocks += _group(cast, group, number, levels or {})
    for source in found:
        blocks += _sentences(source)
    blocks += [Fold("what the words mean, constants, what is left out", _definitions(found))]
    said = [words for source in found for words in _findings(source)]
    return Chapter(Section("Energy and accuracy", LOOK, blocks), said)


def _sums(found: Found) -> list[str]:
    return list(found["energy"][0]["sums"])


def _group(
    cast: Cast, group: Sequence[Source], number: int, levels: Mapping[str, float]
) -> list[Block]:
    """Panels and tables of measures that were taken in the same way."""
    where = networks(cast, group, lambda found: [each["network"] for each in found["networks"]])
    known = {**accuracies(cast), **levels}
    dots = {
        accounting: [
            _cost(cast, label, source.found, name, accounting, known.get(label))
            for label, (source, name) in where.items()
        ]
        for accounting in _sums(group[0].found)
    }
    charts = [
        Chart(
            costs_chart(f"costs-{number}-{place}", each),
            f"Energy per image and accuracy, {accounting}; the numbers are in the table below",
            CAPTIONS.get(accounting, accounting),
        )
        for place, (accounting, each) in enumerate(dots.items())
    ]
    blocks: list[Block] = [Panels(charts, _keys(cast, where, known), large=True)]
    words = "Diamonds are networks without spikes."
    if any(label not in known for label in where):
        words += " A dotted line upwards: the accuracy of this network was not measured."
    blocks.append(Note(words))
    blocks.append(_table(cast, where))
    blocks.append(Note(f"{_unit(group[0])}; means {settings_words(group[0].found)}."))
    return [*blocks, *_folds(where)]


def _unit(source: Source) -> str:
    estimate = str(source.found["estimate"])
    return estimate[:1].upper() + estimate[1:]


def _cost(
    cast: Cast, label: str, found: Found, name: str, accounting: str, accuracy: float | None
) -> Cost:
    rows = [r for r in found["energy"] if r["network"] == name and r["precision"] == PRECISION]
    values = {r["assumption"]: r["sums"][accounting] for r in rows if r["assumption"] != LEFT_OUT}
    spikes = _way(found, name) == "spiking"
    return Cost(label, values, accuracy, cast.colour(label), spikes)


def _way(found: Found, name: str) -> str:
    return str(next(each["way"] for each in found["networks"] if each["network"] == name))


def _keys(cast: Cast, where: Where, known: Mapping[str, float]) -> list[Key]:
    """The legend: a network with quantised activations has its student's colour."""
    return [Key(n, cast.colour(n), "" if n in known else "dotted") for n in where]


def _table(cast: Cast, where: Where) -> Rows:
    """Picojoules of every network under every assumption, at one precision."""
    body, colours = [], []
    for label, (source, name) in where.items():
        for row in source.found["energy"]:
            if row["network"] == name and row["precision"] == PRECISION:
                body.append([f"{label}, {row['assumption']}", *map(joules, row["sums"].values())])
                colours.append(cast.colour(label))
    some = next(iter(where.values()))[0].found
    head = [f"per image, {PRECISION}", *(CAPTIONS.get(s, s) for s in _sums(some))]
    return Rows(head, body, colours=colours)


def _folds(where: Where) -> list[Block]:
    """What is shown on request: other precisions, and each network's layers."""
    rows = [
        [label, row["assumption"], row["precision"], *map(joules, row["sums"].values())]
        for label, (source, name) in where.items()
        for row in source.found["energy"]
        if row["network"] == name
    ]
    some = next(iter(where.values()))[0].found
    head = ["network", "assumption", "precision", *_sums(some)]
    layers: list[Block] = []
    for label, (source, name) in where.items():
        layers += [Heading(label), _layers(source.found, name)]
    return [
        Fold("every precision and assumption", [Rows(head, rows)]),
        Fold("operations, layer by layer", layers),
    ]


def _layers(found: Found, name: str) -> Rows:
    """What arrives at each layer of a network, means per image."""
    network = next(each for each in found["networks"] if each["network"] == name)
    body = [
        [
            layer["path"],
            layer["kind"],
            layer["input"],
            f"{layer['dense']:,.0f}",
            f"{layer['arrivals']:,.0f}",
            plain(layer["arrivals"] / layer["dense"] if layer["dense"] else None, 2),
        ]
        for layer in network["layers"]
    ]
    head = ["layer", "kind", "input", "dense multiplications", "operations done", "ratio"]
    return Rows(head, body)


def _sentences(source: Source) -> list[Block]:
    """The plain sentences of a spiking run about each rival, and every accounting folded."""
    if not source.found.get("sentences"):
        return []
    rows = [
        [
            each["rival"],
            each["precision"],
            each["assumption"],
            each["accounting"],
            joules(each["student"]),
            joules(each["other"]),
            plain(each["break_even"]),
            "yes" if each["wins"] else "no",
        ]
        for each in source.found["against"]
    ]
    head = ["rival", "precision", "assumption", "accounting", source.own, "rival's"]
    head += ["same cost at rate", "cheaper"]
    counts = [
        [each["name"], f"{each['accumulates']:,.0f}", f"{each['macs']:,.0f}", each["what"]]
        for each in source.found.get("definitions", ())
    ]
    fold: list[Block] = [Rows(head, rows)]
    if counts:
        names = ["counted by", "accumulates", "multiply-accumulates", "what is counted"]
        fold.append(Rows(names, counts, wordy=True))
    title = f"{source.own}: every accounting, and what other tools would count"
    return [Heading(f"{source.own} against each rival"), Points(source.found["sentences"]),
            Fold(title, fold)]


def _definitions(found: Sequence[Source]) -> list[Block]:
    """The words of the accountings, where the constants come from, and what is not counted."""
    first = found[0].found
    constants = first.get("constants") or {}
    said = [f"Constants: {constants.get('source', NONE)}."]
    said += [note for source in found for note in source.found.get("notes") or ()]
    return [Facts(dict(first.get("words") or {})), *(Note(words) for words in said)]


def _findings(source: Source) -> list[str]:
    """In how many accountings a spiking run is cheaper than each network that could replace it."""
    rows = source.found.get("against") or []
    rivals = list(dict.fromkeys(row["rival"] for row in rows))
    won: list[str] = []
    for rival in rivals:
        mine = [row for row in rows if row["rival"] == rival]
        count = f"{sum(row['wins'] for row in mine)} of {len(mine)} ways to count"
        won.append(f"{source.label(rival)} in {count if not won else count.partition(' of')[0]}")
    if not won:
        return []
    said = f"Estimated from operation counts, {source.own} needs less energy than {listed(won)}."
    return [said]
