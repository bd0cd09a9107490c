"""A spiking network beside the networks without spikes that could do its work, in sentences."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from spikelet.report.findings import listed
from spikelet.report.parts import Block, Fold, Heading, Note, Points, Rows
from spikelet.story.numbers import joules, plain
from spikelet.story.told import Source

PRECISION = "fp32"
CAPTIONS = {
    "synapses": "1. weights alone",
    "arithmetic": "2. all arithmetic",
    "arithmetic and SRAM": "3. and memory on the chip",
    "arithmetic and DRAM": "4. and memory off the chip",
}
WITHOUT_MEMORY = ("synapses", "arithmetic")


def rivals(source: Source) -> list[Block]:
    """A plain sentence of a spiking run about each rival, and every way to count folded."""
    rows = source.found.get("against") or []
    if not rows:
        return []
    cells = [
        [
            source.label(each["rival"]),
            each["precision"],
            each["assumption"],
            CAPTIONS.get(each["accounting"], each["accounting"]),
            joules(each["student"]),
            joules(each["other"]),
            plain(each["break_even"]),
            "yes" if each["wins"] else "no",
        ]
        for each in rows
    ]
    head = ["rival", "precision", "counted", "what", source.own, "rival's"]
    head += ["same cost at firing rate", "cheaper"]
    counts = [
        [each["name"], f"{each['accumulates']:,.0f}", f"{each['macs']:,.0f}", each["what"]]
        for each in source.found.get("definitions", ())
    ]
    fold: list[Block] = [Rows(head, cells)]
    if counts:
        names = ["counted by", "accumulates", "multiply-accumulates", "what is counted"]
        fold.append(Rows(names, counts, wordy=True))
    title = f"{source.own}: every way to count, and what other tools would count"
    said = [
        _sentence(source, [each for each in rows if each["rival"] == rival])
        for rival in dict.fromkeys(each["rival"] for each in rows)
    ]
    heading = Heading(f"{source.own} beside each rival")
    return [heading, Points(said), Note(_ways(rows)), Fold(title, fold)]


def _ways(rows: Sequence[Mapping[str, Any]]) -> str:
    """How many ways to count there are, and what they are."""
    kinds = {key: list(dict.fromkeys(r[key] for r in rows)) for key in ("assumption", "precision")}
    sums = len(dict.fromkeys(row["accounting"] for row in rows))
    return (
        f"Ways to count: {listed(kinds['assumption'])}, each with numbers of "
        f"{listed(kinds['precision'])}, each as the {sums} sums above. Firing rates are by neuron: "
        "spikes per neuron and time step, each neuron counted the same."
    )


def _sentence(source: Source, rows: Sequence[Mapping[str, Any]]) -> str:
    """Who is cheaper, by how much, and in how many ways to count."""
    strict = [r for r in rows if r["assumption"] == "strict" and r["precision"] == PRECISION]
    main, moved = (
        next(row for row in strict if row["accounting"] == name)
        for name in ("arithmetic", "arithmetic and SRAM")
    )
    less, still = ("less" if each["wins"] else "more" for each in (main, moved))
    won = sum(row["wins"] for row in rows)
    link = "and" if main["wins"] == moved["wins"] else "but"
    return (
        f"{source.own} needs {less} energy than {source.label(main['rival'])} by all arithmetic "
        f"({joules(main['student'])} against {joules(main['other'])} per image, strict, "
        f"{PRECISION}), {link} {still} with memory on the chip ({joules(moved['student'])} against "
        f"{joules(moved['other'])}). By arithmetic it is {main['why']}; its own is "
        f"{plain(main['rate'])}. It needs less in {won} of {len(rows)} ways to count."
    )


def findings(source: Source) -> list[str]:
    """In how many ways to count a spiking run is cheaper than each network in its place."""
    rows = source.found.get("against") or []
    rivals = list(dict.fromkeys(row["rival"] for row in rows))
    won: list[str] = []
    lost: list[str] = []
    for rival in rivals:
        mine = [row for row in rows if row["rival"] == rival]
        moved = [row for row in mine if row["accounting"] not in WITHOUT_MEMORY]
        count, still = (sum(row["wins"] for row in each) for each in (mine, moved))
        ways, of = ("", "") if won else (f" of {len(mine)} ways to count", f" of {len(moved)}")
        memory = f" (with memory {still}{of})" if moved else ""
        if count:
            won.append(f"{source.label(rival)} in {count}{ways}{memory}")
        else:
            lost.append(source.label(rival))
    said = []
    if won:
        said.append(f"{source.own} needs less energy than {listed(won)}")
    if lost:
        who = "it" if won else source.own
        said.append(
            f"{who} does not win against {listed(lost)}, where it needs more however one counts"
        )
    return [f"Estimated from operation counts, {'; '.join(said)}."] if said else []
