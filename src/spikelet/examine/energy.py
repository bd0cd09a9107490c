"""`energy`: what a network costs by operation counts, beside the ANNs that could do its work."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from spikelet.errors import UserError
from spikelet.examine.subject import Seen, Subject
from spikelet.examine.table import Tell
from spikelet.measure.costs import HOROWITZ, PRECISIONS
from spikelet.measure.counts import Counts, Way, joined
from spikelet.measure.definitions import definitions
from spikelet.measure.energy import (
    ACCOUNTINGS,
    Against,
    Energy,
    against,
    of_ann,
    of_quantised,
    of_student,
)
from spikelet.measure.operations import operations
from spikelet.measure.traffic import traffic
from spikelet.neuron import Neuron
from spikelet.quantise import quantised
from spikelet.train.run import read_recipe

BATCH = 100
ESTIMATE = "an estimate from operation counts and published constants; nothing was measured"
WORDS = {
    "strict": "sums and averages of spikes are multiply-accumulates; step by step; an input that "
    "is constant in time is computed once",
    "favourable": "every spike of a sum is an accumulate of its own; all steps of a layer before "
    "the next, so that weights are read once and potentials stay in the neuron",
    "recomputed": "as strict, with every layer at every step",
    "dense": "an ANN that multiplies everything but padding",
    "zero-skipping": "an ANN that multiplies only where the input is not zero",
    "zero-skipping, bit by bit": "a quantised ANN that shifts and adds for each set bit of a level",
    "with levels": "the student's own network with quantised activations of T + 1 levels",
    "synapses": "accumulates and multiply-accumulates of convolutions and linear layers",
    "arithmetic": "with sums, pooling, biases, thresholds, leaks and resets; norms are folded",
    "arithmetic and SRAM": "with memory traffic at 100 pJ for 64 bits (1 MB on chip)",
    "arithmetic and DRAM": "with memory traffic at 1,300 pJ for 64 bits",
    "break_even": "the mean firing rate at which both cost the same, if all that spikes cause "
    "grows in proportion to it",
}
Costed = tuple[str, str, Counts]  # network, way, counts
LEVELS = "with {} levels"


def examine(subject: Subject, tell: Tell) -> dict[str, Any]:
    """Operation counts and energy of the student beside its rivals, means per image.

    - `networks`: per network `layers`, `neurons`, `additions` (counts), `total`, `traffic` (bits),
      `accuracy` on the same images, and of a spiking one its mean firing rate by neuron.
    - `energy`: a row for each network, assumption and precision, by part and by accounting.
    - of a spiking student also `definitions`, the same run as other tools count it; `against`, a
      row for each assumption, rival, precision and accounting; `sentences`, one for each rival.
    - `constants`, `precisions`, `words` (what each name means), `notes` (what is left out).
    """
    found, right, notes = _counted(subject, tell)
    tell(1, 1, "energy")
    mine = next((c for name, _, c in found if name == subject.student.name), found[-1][2])
    report = {
        "estimate": ESTIMATE,
        "unit": "picojoules per image",
        "images": len(mine.layers[0].arrivals) if mine.layers else 0,
        "steps": subject.steps,
        "networks": [
            {**_network(name, counts, subject.steps), "accuracy": right[name]}
            for name, _, counts in found
        ],
        "energy": [
            _energy_row(name, energy) for name, _, c in found for energy in _costs(c, subject.steps)
        ],
        "constants": dataclasses.asdict(HOROWITZ),
        "precisions": [_precision(p) for p in PRECISIONS],
        "words": WORDS,
        "notes": notes,
    }
    if mine.way != "spiking":
        return report
    compared = list(_against(subject, found, mine))
    return report | {
        "definitions": definitions(mine),
        "against": [_against_row(each) for each in compared],
        "sentences": sentences(compared),
    }


def _counted(subject: Subject, tell: Tell) -> tuple[list[Costed], dict[str, float], list[str]]:
    """Every network of a subject as it is, and the student as the ANN with T + 1 levels.

    With them the accuracy of each, and notes about what is left out.
    """
    found: list[Costed] = []
    right: dict[str, float] = {}
    notes: list[str] = []
    todo: list[tuple[str, Seen, Way]] = [(seen.name, seen, way(seen)) for seen in subject.networks]
    if subject.student.spiking:
        levels = f"{subject.student.name} {LEVELS.format(subject.steps + 1)}"
        todo.insert(-1, (levels, subject.student, "quantised"))
    images = len(subject.dataset.test)
    for number, (name, seen, how) in enumerate(todo):

        def told(done: int, number: int = number, name: str = name) -> None:
            tell(number * images + done, len(todo) * images, f"operations of {name}")

        try:
            counts, right[name] = _counts(subject, seen, how, told)
        except UserError as error:
            notes.append(f"{name} is left out: {error}")
            continue
        if counts.uncounted:
            notes.append(f"{name}: not counted are {', '.join(counts.uncounted)}")
        found.append((name, how, counts))
    if not found:
        raise UserError("measure energy", "; ".join(notes), "leave this measure out")
    return found, right, notes


def way(seen: Seen) -> Way:
    """How a network computes: with spikes, with levels, or as an ANN."""
    if seen.spiking:
        return "spiking"
    return "quantised" if any(isinstance(m, Neuron) for m in seen.net.modules()) else "ann"


def _counts(
    subject: Subject, seen: Seen, how: Way, told: Callable[[int], None]
) -> tuple[Counts, float]:
    """The counts of one network on all images of a subject, and its accuracy on them."""
    parts, done, hits = [], 0, 0
    shown = _shown(subject, seen)
    for images, labels in subject.batches(BATCH):
        told(done)
        x = seen.encode(images, subject.steps)
        parts.append(operations(seen.net, x, how, shown))
        hits += int((_answer(seen, how, images, x).argmax(1) == labels).sum())
        done += len(images)
    return joined(parts), hits / max(done, 1)


@torch.no_grad()
def _answer(seen: Seen, how: Way, images: Tensor, x: Tensor) -> Tensor:
    """Logits "B K" of a network, or of a spiking one with its neurons as levels."""
    levels = how == "quantised" and seen.spiking
    return quantised(seen.net, x).mean_logits if levels else seen.answer(images)


def _shown(subject: Subject, seen: Seen) -> Literal["image", "spikes"]:
    """What a network's encoder shows: images, or spikes of 0 and 1."""
    recipe = subject.loaded.recipe if seen.run is None else read_recipe(Path(seen.run))
    kind = recipe.encode.get("kind")
    coded = kind == "latency" or (kind == "poisson" and not recipe.encode.get("normalised"))
    return "spikes" if coded and seen.spiking else "image"


def _costs(counts: Counts, steps: int) -> Iterator[Energy]:
    """A network's cost at every precision and under every assumption."""
    for precision in PRECISIONS:
        if counts.way == "spiking":
            yield from of_student(counts, precision)
        elif counts.way == "quantised":
            yield from of_quantised(counts, precision, steps)
        else:
            yield from of_ann(counts, precision)


def _against(subject: Subject, found: Sequence[Costed], mine: Counts) -> Iterator[Against]:
    """The student, strict and favourable, against every network without spikes."""
    rivals = [
        (f"{name} ({cost.name})", cost)
        for name, _, counts in found
        if counts.way != "spiking"
        for cost in _costs(counts, subject.steps)
    ]
    for student in _costs(mine, subject.steps):
        if student.name == "recomputed":
            continue
        for name, rival in rivals:
            if rival.precision == student.precision:
                for accounting in ACCOUNTINGS:
                    yield against(student, rival, name, accounting, mine.rate)


def sentences(compared: Sequence[Against]) -> list[str]:
    """One plain sentence for each rival: who is cheaper, by how much, and how often."""
    return [
        _sentence([each for each in compared if each.rival == rival])
        for rival in dict.fromkeys(each.rival for each in compared)
    ]


def _sentence(rows: Sequence[Against]) -> str:
    strict = [row for row in rows if row.assumption == "strict" and row.precision == "fp32"]
    main, moved = (
        next(row for row in strict if row.accounting == name)
        for name in ("arithmetic", "arithmetic and SRAM")
    )
    verb = "costs less than" if main.wins else "does not win against"
    still = "costs less" if moved.wins else "does not win"
    won = sum(row.wins for row in rows)
    return (
        f"By operation counts the spiking network {verb} {main.rival}: {_joules(main.student)} "
        f"against {_joules(main.other)} per image (fp32, all arithmetic, strict; {main.why}, "
        f"measured {main.rate:.3f} by neuron); with memory traffic it {still} "
        f"({_joules(moved.student)} against {_joules(moved.other)}); it costs less in "
        f"{won} of {len(rows)} ways to count."
    )


def _joules(picojoules: float) -> str:
    """An energy in nanojoules or microjoules."""
    if picojoules < 1e6:
        return f"{picojoules / 1e3:.3g} nJ"
    return f"{picojoules / 1e6:.4g} µJ"


def _network(name: str, counts: Counts, steps: int) -> dict[str, Any]:
    """The counts of one network: per layer, per neuron layer, per sum, and what it moves."""
    return {
        "network": name,
        "way": counts.way,
        "steps": counts.steps,
        "rate": counts.rate if counts.way == "spiking" else None,
        "rate_by_neuron": counts.rate if counts.way == "spiking" else None,
        "layers": [_plain(layer) for layer in counts.layers],
        "neurons": [_plain(cell) for cell in counts.cells],
        "additions": [_plain(each) for each in counts.additions],
        "total": _total(counts),
        "traffic": {
            precision.name: dataclasses.asdict(traffic(counts, precision, steps))
            for precision in PRECISIONS
        },
    }


def _total(counts: Counts) -> dict[str, Any]:
    """Sums over layers: mean and deviation over images of what arrives, by kind of signal."""
    found: dict[str, Any] = {"dense": sum(layer.dense for layer in counts.layers)}
    found["inside"] = sum(layer.inside for layer in counts.layers)
    for kind in dict.fromkeys(layer.input for layer in counts.layers):
        each = [layer for layer in counts.layers if layer.input == kind]
        found[kind] = {
            name: _spread(sum(getattr(layer, name) for layer in each))
            for name in ("arrivals", "events")
        }
    return found


def _spread(per_image: Any) -> dict[str, float]:
    """Mean and standard deviation over images of counts "B"."""
    deviation = per_image.std() if len(per_image) > 1 else 0.0
    return {"mean": float(per_image.mean()), "std": float(deviation)}


def _plain(row: Any) -> dict[str, Any]:
    """A row with the mean over images in place of tensors."""
    fields = {f.name: getattr(row, f.name) for f in dataclasses.fields(row)}
    return {k: float(v.mean()) if isinstance(v, Tensor) else v for k, v in fields.items()}


def _energy_row(network: str, energy: Energy) -> dict[str, Any]:
    parts = {name: getattr(energy, name).total for name in ("synapses", "additions", "neurons")}
    return {
        "network": network,
        "assumption": energy.name,
        "precision": energy.precision,
        **parts,
        "sram": energy.sram.total,
        "dram": energy.dram.total,
        "sums": {name: energy.sum(name).total for name in ACCOUNTINGS},
    }


def _against_row(each: Against) -> dict[str, Any]:
    return {**dataclasses.asdict(each), "wins": each.wins}


def _precision(precision: Any) -> dict[str, Any]:
    fields = {f.name: getattr(precision, f.name) for f in dataclasses.fields(precision)}
    del fields["constants"]
    return fields | {"mac": precision.mac}
