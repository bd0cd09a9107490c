"""Inside the networks: spikes and potentials on one image, and the health of every layer."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from spikelet.measure import mean_rates
from spikelet.report.findings import listed
from spikelet.report.parts import (
    Block,
    Cell,
    Chart,
    Fold,
    Gallery,
    Heading,
    Note,
    Panels,
    Rows,
    Section,
)
from spikelet.report.plots import Line, lines_chart, raster_chart, traces_chart
from spikelet.story.cast import Cast, Chapter
from spikelet.story.live import Firing
from spikelet.story.numbers import NONE, plain, settings_words, share
from spikelet.story.told import Found, Told

SPIKES = (
    "Look for few bars: each is one spike, and only spikes cost work in the next layer. Below, a "
    "neuron's potential grows with what arrives; where it reaches its threshold (dashed) the "
    "neuron fires (dot) and falls back before the next step."
)
IMAGE = "One test image, shown the whole time."
RECORDING = "One test recording, frame after frame; its picture is the sum of all."
HEALTH = (
    "Look for layers where many channels never fire (silent: they learn nothing) or fire at every "
    "step (always on: they say nothing), and for a likeness to the teacher that falls early."
)
Layers = Mapping[str, Mapping[str, Any]]
Read = Callable[[Mapping[str, Any]], float | None]
UNHEALTHY = 0.5
MORE = (
    "drift is the firing rate at the last step less that at the first; thresholds are mean "
    "(smallest to largest); potentials before each reset, mean ± deviation, in thresholds; "
    "likeness (CKA) is 1 where a layer arranges the images as the teacher's does, 0 where nothing "
    "is alike"
)


def spikes(cast: Cast, seen: Mapping[str, Firing]) -> Chapter | None:
    """Rasters and potentials of each spiking run; None where none could be run."""
    blocks: list[Block] = []
    for number, (label, firing) in enumerate(seen.items()):
        mine = _spikes(cast, label, firing, number)
        if number and len(seen) > 2:
            blocks.append(Fold(f"spikes of {label}", mine))
        else:
            blocks += [*([Heading(label)] if len(seen) > 1 else []), *mine]
    return Chapter(Section("Spikes, step by step", SPIKES, blocks)) if blocks else None


def _spikes(cast: Cast, label: str, firing: Firing, number: int) -> list[Block]:
    """One network on one image."""
    colour = cast.colour(label)
    cell = Cell(firing.image, f"test image labelled {firing.label}", firing.label)
    rasters = [
        Chart(
            raster_chart(f"raster-{number}-{place}", layer.spikes, colour),
            f"Spikes of {len(layer.spikes)} neurons of layer {layer.path} at each time step",
            layer.path,
        )
        for place, layer in enumerate(firing.layers)
    ]
    traces = [
        Chart(
            traces_chart(f"trace-{number}-{place}", trace.potentials, trace.spikes, colour),
            f"Potential of {trace.name} of layer {firing.where} over time steps",
            f"{firing.where}, {trace.name}",
        )
        for place, trace in enumerate(firing.traces)
    ]
    most = max(len(layer.spikes) for layer in firing.layers)
    words = (
        f"{RECORDING if firing.recording else IMAGE} Of each channel (the first {most} at most) "
        "the neuron that fires most; potentials of the one that fires most, one in the middle and "
        "the one that fires least."
    )
    if any(s < 0 for layer in firing.layers for row in layer.spikes for s in row):
        words += " A red bar, or a triangle, is a spike that takes an earlier one back."
    image = Gallery({f"what {label} sees": [cell]})
    return [image, Panels(rasters), Panels(traces), Note(words)]


def health(cast: Cast) -> Chapter | None:
    """Firing, thresholds, gradients and likeness of every layer; None for runs without spikes."""
    found = {run.label: layers_of(run) for run in cast.runs if run.spikes}
    found = {label: layers for label, layers in found.items() if layers}
    if not found:
        return None
    blocks: list[Block] = [Panels(_charts(cast, found), cast.keys(list(found)))]
    for run in cast.runs:
        if run.label in found:
            mine = _tables(run, found[run.label], alone=len(found) != 2)
            blocks += mine if len(found) < 3 else [Fold(f"layers of {run.label}", mine)]
    said = [_rates(cast, found)]
    said += [words for label, layers in found.items() for words in _findings(label, layers)]
    return Chapter(Section("Health of the layers", HEALTH, blocks), said)


def layers_of(run: Told) -> Layers:
    """What was measured of each layer, else what the last epoch of training stored."""
    stored: Layers = run.epochs[-1].get("health") or {} if run.epochs else {}
    return run.measures.get("health", {}).get("layers") or stored


def _likeness(layer: Mapping[str, Any]) -> float | None:
    return (layer.get("similarity") or {}).get("cka")


def _charts(cast: Cast, found: Mapping[str, Layers]) -> list[Chart]:
    """Rates, silent channels, drift and likeness over the layers, as far as they are known."""
    kinds: list[tuple[str, str, str, Read]] = [
        ("rate", "firing rate", "spikes per step", lambda layer: layer["rate"]),
        ("dead", "silent channels", "%", lambda layer: 100 * layer["dead"]),
        ("drift", "drift, last step less first", "spikes per step", lambda lay: lay.get("drift")),
        ("cka", "likeness to the teacher", "CKA", _likeness),
    ]
    charts = []
    for name, title, up, read in kinds:
        lines = [
            Line(range(len(layers)), [read(each) for each in layers.values()], cast.colour(label))
            for label, layers in found.items()
            if any(read(each) is not None for each in layers.values())
        ]
        if lines:
            drawn = lines_chart(
                f"health-{name}",
                lines,
                along="layer",
                up=up,
                ticks=_ticks(found),
                grounded=name != "cka",
            )
            charts.append(Chart(drawn, f"{title} of each layer; the numbers are below", title))
    return charts


def _ticks(found: Mapping[str, Layers]) -> list[str]:
    """The numbers of the layers, as many as there is room for."""
    count = max(len(layers) for layers in found.values())
    every = -(-count // 8)
    return [str(n + 1) if n % every == 0 else "" for n in range(count)]


def _tables(run: Told, layers: Layers, alone: bool) -> list[Block]:
    """A row per layer, and the gradients of the weights folded."""
    measured = run.measures.get("health", {})
    head = ["layer", "spikes per step", "silent, %", "always on, %"]
    more = ["drift", "threshold", "potential, thresholds", "likeness (CKA)"] if measured else []
    body = [_row(n, path, layer, bool(more)) for n, (path, layer) in enumerate(layers.items(), 1)]
    if measured:
        words = settings_words(measured, (measured.get("counts") or {}).get("layers"))
    else:
        words = "calibration images at the last epoch of training"
    words = f"{run.label}: {words}. Spikes are means per neuron and time step; silent and always "
    words += "on are shares of channels"
    words += f"; {MORE}." if measured else "."
    blocks: list[Block] = [] if alone else [Heading(run.label)]
    blocks += [Rows([*head, *more], body), Note(words)]
    return [*blocks, *_gradients(measured)]


def _row(number: int, path: str, layer: Mapping[str, Any], whole: bool) -> list[str]:
    cells = [
        f"{number}\N{NO-BREAK SPACE}{path}",
        plain(layer["rate"]),
        plain(100 * layer["dead"], 0),
        plain(100 * layer["saturated"], 0),
    ]
    if not whole:
        return cells
    theta, potential = layer.get("threshold"), layer.get("potential")
    return [
        *cells,
        plain(layer.get("drift")),
        NONE
        if theta is None
        else f"{plain(theta['mean'], 2)} ({plain(theta['min'], 2)} to {plain(theta['max'], 2)})",
        NONE
        if potential is None
        else f"{plain(potential['mean'], 2)} ± {plain(potential['deviation'], 2)}",
        plain(_likeness(layer), 2),
    ]


def _gradients(measured: Found) -> list[Block]:
    """How strongly each layer's weights would be pulled by the labels."""
    gradients = measured.get("gradients") or {}
    if not gradients:
        return []
    body = [
        [path, plain(each["gradient"]), plain(each["weight"]), plain(each["ratio"])]
        for path, each in gradients.items()
    ]
    head = ["weights", "gradient norm", "weight norm", "ratio"]
    count = (measured.get("counts") or {}).get("gradients")
    note = Note(f"Of cross entropy on {count} images, after training.")
    return [Fold("gradients of the weights", [Rows(head, body), note])]


def _rates(cast: Cast, found: Mapping[str, Layers]) -> str:
    """How often the neurons of each network fire, in a sentence."""
    parts = []
    measured = {run.label: run.measures.get("health") or {} for run in cast.runs}
    for label, layers in found.items():
        rates = mean_rates(layers)
        words = f"{label} {share(rates['rate_by_layer'])} %"
        if rates["rate_by_neuron"] is not None:
            words += f" (by neuron {share(rates['rate_by_neuron'])} %)"
        count = (measured[label].get("counts") or {}).get("layers")
        parts.append(words if count is None else f"{words} on {count:,} images")
    return f"Share of time steps at which neurons fire (firing rate by layer): {listed(parts)}."


def _findings(label: str, layers: Layers) -> list[str]:
    """Layers that are not well."""
    said = []
    for key, words in (("dead", "never fire"), ("saturated", "fire at nearly every step")):
        named = [path for path, layer in layers.items() if layer[key] >= UNHEALTHY]
        if named:
            said.append(f"At least half of the channels {words} in {_listed(named)} of {label}.")
    return said


def _listed(names: Sequence[str]) -> str:
    more = f" and {len(names) - 3} more" if len(names) > 3 else ""
    return ", ".join(names[:3]) + more
