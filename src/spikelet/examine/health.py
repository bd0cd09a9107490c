"""`health`: how the neurons of a spiking network live, and how alike to the teacher they see."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor, fx

from spikelet.cuts import stages
from spikelet.errors import UserError
from spikelet.examine.subject import Subject
from spikelet.examine.table import Tell
from spikelet.execute import ann, bptt
from spikelet.graph import capture, shapes
from spikelet.measure.accuracy import evaluating
from spikelet.measure.health import mean_rates
from spikelet.measure.similarity import linear_cka
from spikelet.measure.vitals import gradient_norms, neuron_count, vitals
from spikelet.neuron import Neuron

MOST, FEWEST = 250, 8  # images
ROOM = 2**28  # values that the neurons of all layers may have over all steps and images
LEARNING = 64  # images of the gradient
UNHEALTHY = 0.5  # share of dead or saturated channels from which a layer is named


def examine(subject: Subject, tell: Tell) -> dict[str, Any]:
    """What the student's neurons do, what its weights would learn, how like the teacher's it is.

    `layers` by neuron path: `vitals`, and `similarity` {"teacher": tap, "cka": value} where the
    teacher has such a place. `rate_by_layer` and `rate_by_neuron`: `mean_rates` of them.
    `gradients` by layer with weights: `gradient_norms`. `counts` says on
    how many each was taken.

    Raises:
        UserError: for a network without spikes.
    """
    seen = subject.student
    if not seen.spiking or not isinstance(seen.net, fx.GraphModule):
        raise UserError("measure health", "the network has no spikes", "measure a student's run")
    images, labels = next(subject.batches(MOST))
    if len(images) < 2:
        what = "measure health compares features over images: expected 2 or more, got 1"
        raise UserError("images", what, "raise --images")
    images = images[: fitting(seen.net, images, subject.steps)]
    tell(0, 3, "firing")
    layers = vitals(seen.net, images, subject.steps, seen.encode)
    tell(1, 3, "gradients")
    few = images[:LEARNING]
    gradients = gradient_norms(seen.net, few, labels[: len(few)], subject.steps, seen.encode)
    tell(2, 3, "similarity to the teacher")
    for path, found in similarities(subject, images).items():
        layers[path]["similarity"] = found
    counts = {"layers": len(images), "gradients": len(few)}
    return {"layers": layers, **mean_rates(layers), "gradients": gradients, "counts": counts}


def fitting(net: fx.GraphModule, images: Tensor, steps: int) -> int:
    """How many images at once keep the values of all neurons within bounds."""
    values = neuron_count(net, images) * steps
    return min(max(ROOM // max(values, 1), FEWEST), len(images))


def similarities(subject: Subject, images: Tensor) -> dict[str, dict[str, Any]]:
    """Linear CKA of the mean over time at each neuron with the teacher there, by neuron path.

    Places are those of the same name, or for another architecture the ends of stages of the same
    resolution. Empty without a teacher, or for one that torch.fx cannot trace.
    """
    seen, guide = subject.student, subject.teacher
    if guide is None:
        return {}
    try:
        theirs = capture(guide.net)
    except UserError:
        return {}
    assert isinstance(seen.net, fx.GraphModule)
    pairs = places(seen.net, theirs, images[:2])
    execute = bptt if guide.spiking else ann
    mine = {path: standing(seen.net, path) for path in pairs}
    yours = {path: standing(theirs, tap) for path, tap in pairs.items()}
    with evaluating(seen.net), evaluating(theirs):
        ours = bptt(seen.net, seen.encode(images, subject.steps), [*mine.values()]).taps
        other = execute(theirs, guide.encode(images, subject.steps), [*yours.values()]).taps
    return {
        path: {"teacher": tap, "cka": linear_cka(ours[mine[path]].mean, other[tap].mean)}
        for path, tap in yours.items()
    }


def standing(net: fx.GraphModule, path: str) -> str:
    """Where a place is tapped: of a ReLU that moved behind max pooling, the pooled activation."""
    moved = net.meta["moved"]
    place = moved.get(path) or moved.get(path.replace(".", "_"))
    return path if place is None else standing(net, place)


def places(net: fx.GraphModule, other: fx.GraphModule, example: Tensor) -> dict[str, str]:
    """Neuron paths of a student, each with the place of its teacher that it is compared with."""
    modules = dict(net.named_modules())
    neurons = {
        node.name: str(node.target)
        for node in net.graph.nodes
        if node.op == "call_module" and isinstance(modules[str(node.target)], Neuron)
    }
    mine, theirs = shapes(net, example), shapes(other, example)
    same = {path: name for name, path in neurons.items() if theirs.get(name) == mine[name]}
    if len(same) == len(neurons):
        return same
    ends = stages(net, example), stages(other, example)
    shared = {size: ends[0][size] for size in ends[0] if size in ends[1]}
    return {neurons[name]: ends[1][size] for size, name in shared.items() if name in neurons}


def say(found: Mapping[str, Any]) -> list[str]:
    """What was found, in sentences."""
    layers = found["layers"]
    rates = mean_rates(layers)
    lines = [
        f"{len(layers)} layers of neurons; firing rate by layer {rates['rate_by_layer']:.3f}, by "
        f"neuron {rates['rate_by_neuron']:.3f}: spikes per neuron and time step, each layer, or "
        "each neuron, counted the same"
    ]
    for word in ("dead", "saturated"):
        named = [path for path, layer in layers.items() if layer[word] >= UNHEALTHY]
        if named:
            lines.append(f"at least half of the channels are {word} in {', '.join(named)}")
    alike = [
        (layer["similarity"]["cka"], path)
        for path, layer in layers.items()
        if layer.get("similarity", {}).get("cka") is not None
    ]
    if alike:
        least = min(alike)
        lines.append(f"least like the teacher (CKA {least[0]:.2f}) is {least[1]}")
    return lines
