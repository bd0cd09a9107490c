"""Energy by operation counts beside accuracy: every network, every rival, every way to count."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from spikelet.report.parts import (
    Block,
    Chart,
    Facts,
    Fold,
    Heading,
    Key,
    Note,
    Panels,
    Rows,
    Section,
)
from spikelet.report.plots import Cost, costs_chart, unit_of
from spikelet.story.accuracy import accuracies
from spikelet.story.cast import Cast, Chapter, Where, grouped, networks
from spikelet.story.numbers import NONE, joules, plain, settings_words, share
from spikelet.story.rivals import CAPTIONS, PRECISION, findings, rivals
from spikelet.story.told import Found, Source

LOOK = (
    "Look for networks up and to the left: more accurate for less energy. Each panel adds up more "
    "of what a chip would have to do. Dots spike, diamonds do not; a bar joins the ways to count "
    "one network, from its dearest (filled) to what is counted in its favour (hollow)."
)
LEFT_OUT = "recomputed"
READING = {
    "1. to 4.": "what a spike, or a number, makes a chip do: add or multiply a weight; then also "
    "the sums, thresholds and resets of the neurons; then also reading and writing numbers in a "
    "memory on the chip, or in a far dearer one beside it",
    "strict, favourable": "two ways to count a spiking network, as it is not known which chip it "
    "will run on. Strict: sums and averages of spikes are multiplied, and all layers work step by "
    "step. Favourable: each spike is one addition, and a layer does all its steps at once, so "
    "that it reads its weights once",
    "dense, zero-skipping": "two ways to count a network without spikes: every number is "
    "multiplied, or those that are zero are skipped",
    "bit by bit": "a network with few levels adds a shifted weight for each bit of a level "
    "instead of multiplying",
}
LEVELS = (
    "the fair rival of a spiking network: the same weights without spikes and without time, where "
    "a neuron passes on one of T + 1 levels: as much as 0 to T spikes say"
)


def costs(cast: Cast) -> Chapter | None:
    """Energy of the runs' networks and their rivals; None where it was not measured."""
    found = cast.sources("energy")
    if not found:
        return None
    blocks: list[Block] = []
    groups = grouped(found, lambda each: (each["images"], *_sums(each)))
    for number, group in enumerate(groups):
        if len(groups) > 1:
            blocks.append(Heading(", ".join(source.own for source in group)))
        blocks += _group(cast, group, number)
    blocks.append(Facts(_reading(groups)))
    for source in found:
        blocks += rivals(source)
    blocks += [Fold("constants, exact definitions, what is left out", _definitions(found))]
    said = [words for source in found for words in findings(source)]
    return Chapter(Section("Energy and accuracy", LOOK, blocks), said)


def _sums(found: Found) -> list[str]:
    return list(found["energy"][0]["sums"])


def _where(cast: Cast, group: Sequence[Source]) -> Where:
    return networks(cast, group, lambda found: [each["network"] for each in found["networks"]])


def _reading(groups: Sequence[Sequence[Source]]) -> dict[str, str]:
    """What the words of the figures and tables mean."""
    names = [
        str(each["network"]).partition(" with ")[2]
        for group in groups
        for source in group
        for each in source.found["networks"]
        if each["way"] == "quantised"
    ]
    levels = {f"with {name}": LEVELS for name in names if name}
    return {**READING, **levels}


def _group(cast: Cast, group: Sequence[Source], number: int) -> list[Block]:
    """Panels and tables of measures that were taken in the same way."""
    where, known = _where(cast, group), _known(cast, group)
    dots = {
        accounting: [
            _cost(cast, label, source.found, name, accounting, known.get(label))
            for label, (source, name) in where.items()
        ]
        for accounting in _sums(group[0].found)
    }
    unit = unit_of([each for costs in dots.values() for each in costs])
    charts = [
        Chart(
            costs_chart(f"costs-{number}-{place}", each, unit),
            f"Energy per image and accuracy, {accounting}; the numbers are in the table below",
            CAPTIONS.get(accounting, accounting),
        )
        for place, (accounting, each) in enumerate(dots.items())
    ]
    blocks: list[Block] = [Panels(charts, _keys(cast, where, known), large=True)]
    if any(label not in known for label in where):
        words = "A dotted line upwards: the accuracy of this network was not measured."
        blocks.append(Note(words))
    blocks.append(_table(cast, where, known, unit))
    where_from = settings_words(group[0].found)
    same = " Accuracies are those of the same images." if _same_images(group) else ""
    blocks.append(Note(f"{_unit(group[0])}; {where_from}.{same}"))
    return [*blocks, *_folds(where)]


def _known(cast: Cast, group: Sequence[Source]) -> dict[str, float]:
    """Each network's accuracy on the images that its operations were counted on, else on all."""
    found = {
        label: next(e for e in source.found["networks"] if e["network"] == name).get("accuracy")
        for label, (source, name) in _where(cast, group).items()
    }
    return {**accuracies(cast), **{k: v for k, v in found.items() if v is not None}}


def _same_images(group: Sequence[Source]) -> bool:
    return all("accuracy" in each for source in group for each in source.found["networks"])


def _unit(source: Source) -> str:
    estimate = str(source.found["estimate"])
    return estimate[:1].upper() + estimate[1:]


def _cost(
    cast: Cast, label: str, found: Found, name: str, accounting: str, accuracy: float | None
) -> Cost:
    rows = [r for r in found["energy"] if r["network"] == name and r["precision"] == PRECISION]
    values = {r["assumption"]: r["sums"][accounting] for r in rows if r["assumption"] != LEFT_OUT}
    return Cost(label, values, accuracy, cast.colour(label), _spikes(found, name))


def _spikes(found: Found, name: str) -> bool:
    way = next(each["way"] for each in found["networks"] if each["network"] == name)
    return bool(way == "spiking")


def _keys(cast: Cast, where: Where, known: Mapping[str, float]) -> list[Key]:
    """The legend, with the mark of each network."""
    marks = {n: "dot" if _spikes(s.found, own) else "diamond" for n, (s, own) in where.items()}
    return [Key(n, cast.colour(n), marks[n] if n in known else "dotted") for n in where]


def _table(cast: Cast, where: Where, known: Mapping[str, float], unit: tuple[str, float]) -> Rows:
    """Energy and accuracy of every network, at one precision and in one unit."""
    body, colours = [], []
    for label, (source, name) in where.items():
        for row in source.found["energy"]:
            wanted = row["network"] == name and row["precision"] == PRECISION
            if wanted and row["assumption"] != LEFT_OUT:
                values = [f"{value / unit[1]:#.3g}".rstrip(".") for value in row["sums"].values()]
                body.append([f"{label}, {row['assumption']}", share(known.get(label)), *values])
                colours.append(cast.colour(label))
    some = next(iter(where.values()))[0].found
    head = [f"{unit[0]} per image, {PRECISION}", "accuracy, %"]
    return Rows([*head, *(CAPTIONS.get(s, s) for s in _sums(some))], body, colours=colours)


def _folds(where: Where) -> list[Block]:
    """What is shown on request: other precisions, and each network's layers."""
    rows = [
        [label, row["assumption"], row["precision"], *map(joules, row["sums"].values())]
        for label, (source, name) in where.items()
        for row in source.found["energy"]
        if row["network"] == name
    ]
    some = next(iter(where.values()))[0].found
    head = ["network", "counted", "precision", *(CAPTIONS.get(s, s) for s in _sums(some))]
    layers: list[Block] = []
    for label, (source, name) in where.items():
        layers += [Heading(label), *_layers(source.found, name)]
    return [
        Fold("every precision and way to count", [Rows(head, rows)]),
        Fold("operations and memory, layer by layer", layers),
    ]


def _layers(found: Found, name: str) -> list[Block]:
    """What arrives at each layer of a network, what its neurons do, and what moves, per image."""
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
    return [Rows(head, body), _cells(network), _memory(network)]


def _cells(network: Found) -> Rows:
    """Neurons and sums: how many are computed, and how much of it is not zero."""
    steps = network["steps"]
    what = "neurons" if network["way"] == "spiking" else "activations"
    body = [
        [cell["path"], what, f"{cell['count'] * steps:,.0f}", f"{cell['spikes']:,.0f}"]
        for cell in network["neurons"]
    ]
    body += [
        [
            each["path"],
            f"sum, one side of which is {each['kind']}",
            f"{each['entries'] * steps:,.0f}",
            f"{each['arrivals']:,.0f}",
        ]
        for each in network["additions"]
    ]
    return Rows(["neurons and sums", "kind", "updates", "not zero"], body)


def _memory(network: Found) -> Rows:
    """What moves through memory."""
    kinds = network["traffic"]
    body = [
        [part, *(f"{each[part] / 8192:,.1f}" for each in kinds.values())]
        for part in ("weights", "potentials", "signals")
    ]
    return Rows(["memory traffic, KiB", *kinds], body)


def _definitions(found: Sequence[Source]) -> list[Block]:
    """The words as the measure defines them, the constants' source, and what is not counted."""
    first = found[0].found
    constants = first.get("constants") or {}
    said = [f"Constants: {constants.get('source', NONE)}."]
    said += [note for source in found for note in source.found.get("notes") or ()]
    return [Facts(dict(first.get("words") or {})), *(Note(words) for words in said)]
