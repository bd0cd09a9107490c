"""`saliency`: whether a student looks at the pixels that its teacher looks at."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from spikelet.encode import still
from spikelet.errors import UserError
from spikelet.examine.seeds import matched
from spikelet.examine.subject import Seen, Subject
from spikelet.examine.table import Tell
from spikelet.execute import bptt
from spikelet.measure.immunity import crossed
from spikelet.measure.interval import paired_interval
from spikelet.measure.masking import SHARES, Curve, curves, ends, random_order
from spikelet.measure.saliency import (
    SHARE,
    Answer,
    chance,
    input_gradients,
    integrated_gradients,
    randomised,
    ranking,
    similarities,
)

BATCH = 50
IMAGES = 200  # that all networks answer rightly; enough for intervals of a point or two
INTEGRATED, POINTS = 50, 8  # images and points of integrated gradients, which cost as many passes
RANDOM, SHUFFLED = "random", "{} with shuffled weights"
DEFINITIONS = {
    "map": "|dz_y/dx| summed over channels, y the label; of a spiking network the surrogate "
    "gradient of the mean logit",
    "integrated": f"the same of integrated gradients from the mean colour, {POINTS} points, on the "
    f"first {INTEGRATED} images",
    "cosine": "of two maps, pixel by pixel; maps have one sign, so it is high by chance: compare "
    "with the shuffled weights",
    "spearman": "correlation of the ranks of the pixels",
    "overlap": f"intersection over union of the {100 * SHARE:g} % most salient pixels; `chance` is "
    "what rankings that have nothing in common are expected to have",
    "deletion": "the most salient pixels are replaced first; a small area means they matter",
    "insertion": "the most salient pixels are shown first; a large area means they suffice",
    "fill": "a pixel that is not shown has the mean colour of the images measured",
    "images": "the first that every network answers rightly, so that accuracy is equal",
    "interval": "95 % of Student's t over images; differences are paired by image. They are about "
    "these trained networks: what other images would change, not another seed of training",
    "over_seeds": "the run's way of training less another, paired by seed and image, where two or "
    "more runs of each were measured; 95 % intervals over seeds and images",
}


@dataclass(frozen=True)
class Looked:
    """The images that were chosen, and what every network looks at in them.

    Attributes:
        images: normalised, "B C H W".
        maps: input gradients by network, "B H W".
        integrated: integrated gradients by network, of the first images.
        examined: how many images were looked through to find these.
        fill: the mean colour, normalised, "C 1 1".
    """

    images: Tensor
    maps: Mapping[str, Tensor]
    integrated: Mapping[str, Tensor]
    examined: int
    fill: Tensor


def examine(subject: Subject, tell: Tell) -> dict[str, Any]:
    """Similarity of maps to the teacher's, and deletion and insertion curves, with intervals."""
    looked = look(subject, tell)
    first = subject.networks[0].name
    return {
        "n": len(looked.images),
        "examined": looked.examined,
        "reference": first,
        "share": SHARE,
        "chance": chance(looked.images.shape[-2:].numel()),
        **_alike(looked.maps, first, subject.student.name),
        "over_seeds": _over_seeds(looked.maps, first, subject),
        "integrated": _alike(looked.integrated, first, subject.student.name),
        **_masked(subject, looked, tell),
        "definitions": DEFINITIONS,
    }


def look(subject: Subject, tell: Tell) -> Looked:
    """Chooses images and takes the maps of all networks and of the shuffled student.

    Raises:
        UserError: if fewer than two images are answered rightly by all networks, or the answer of
            one has no derivative by the image.
    """
    images, labels, examined = _all_right(subject, tell)
    if len(images) < 2:
        what = f"{len(images)} of {examined} images are answered rightly by every network"
        raise UserError("measure saliency", what, "measure more images or better networks")
    answers = {seen.name: seen.answer for seen in subject.networks}
    answers[SHUFFLED.format(subject.student.name)] = _shuffled(subject, subject.student)
    fill, few = _mean_colour(subject), slice(INTEGRATED)
    maps, integrated = {}, {}
    for number, (name, answer) in enumerate(answers.items()):
        tell(number, len(answers), f"maps of {name}")
        pairs = zip(images.split(BATCH), labels.split(BATCH), strict=True)
        maps[name] = torch.cat([input_gradients(answer, x, y) for x, y in pairs]).cpu()
        where = (images[few], labels[few], fill)
        integrated[name] = integrated_gradients(answer, *where, points=POINTS).cpu()
    return Looked(images, maps, integrated, examined, fill)


def _mean_colour(subject: Subject) -> Tensor:
    """The mean of the images measured, per channel, normalised: "C 1 1"."""
    sums = [still(pixels).mean((2, 3)).sum(0) for pixels, _ in subject.pixels()]
    mean = torch.stack(sums).sum(0) / len(subject.dataset.test)
    return subject.normalise(mean.view(-1, 1, 1))


def _all_right(subject: Subject, tell: Tell) -> tuple[Tensor, Tensor, int]:
    """The first images that all networks answer rightly, their labels, how many were tried."""
    kept: list[tuple[Tensor, Tensor]] = []
    found = examined = 0
    for images, labels in subject.batches(BATCH):
        tell(found, IMAGES, "images that all answer rightly")
        with torch.no_grad():
            hits = [seen.answer(images).argmax(1) == labels for seen in subject.networks]
        right = torch.stack(hits).all(0)
        kept.append((images[right], labels[right]))
        found, examined = found + int(right.sum()), examined + len(images)
        if found >= IMAGES:
            break
    images, labels = (torch.cat(each)[:IMAGES] for each in zip(*kept, strict=True))
    return images, labels, examined


def _shuffled(subject: Subject, seen: Seen) -> Answer:
    """How a network answers once its weights are shuffled within each layer."""
    net = randomised(seen.net, torch.Generator().manual_seed(subject.seed))
    way = bptt if seen.spiking else seen.execute
    return lambda images: way(net, seen.encode(images, subject.steps)).mean_logits


def _alike(maps: Mapping[str, Tensor], first: str, student: str) -> dict[str, Any]:
    """How similar every network's maps are to the first one's, and the student less the others."""
    alike = {name: similarities(map_, maps[first]) for name, map_ in maps.items() if name != first}
    differences = [
        {"minus": name, **_intervals(alike[student], found)}
        for name, found in alike.items()
        if name != student and student in alike
    ]
    return {
        "similarity": [{"network": name, **_intervals(found)} for name, found in alike.items()],
        "similarity_differences": differences,
    }


def _over_seeds(maps: Mapping[str, Tensor], first: str, subject: Subject) -> list[dict[str, Any]]:
    """The run's way of training less each other one, where both have several seeds."""
    rows = []
    for each in matched(subject):
        names = list(each.networks.values())
        pairs = [[similarities(maps[name], maps[first]) for name in pair] for pair in names]
        found = {
            measure: crossed(torch.stack([one[measure] - two[measure] for one, two in pairs]))
            for measure in pairs[0][0]
        }
        who = {"method": each.method, "minus": each.minus, "seeds": list(each.networks)}
        rows.append({**who, "networks": [list(pair) for pair in names], **found})
    return rows


def _intervals(
    values: Mapping[str, Tensor], less: Mapping[str, Tensor] | None = None
) -> dict[str, Any]:
    """Mean and interval of each measure over images, or of its paired difference.

    Measures lie between -1 and 1; so do the ends of their intervals.
    """
    none = {name: torch.zeros_like(value) for name, value in values.items()}
    most = 1.0 if less is None else 2.0
    return {name: _interval(value, (less or none)[name], most) for name, value in values.items()}


def _interval(values: Tensor, less: Tensor, most: float) -> dict[str, Any]:
    """Over the images where both are defined; None where these are fewer than two."""
    there = ~(values.isnan() | less.isnan())
    count = int(there.sum())
    if count < 2:
        return {"mean": None, "low": None, "high": None, "n": count}
    mean, low, high = paired_interval(values[there].tolist(), less[there].tolist())
    return {"mean": mean, "low": max(low, -most), "high": min(high, most), "n": count}


def _masked(subject: Subject, looked: Looked, tell: Tell) -> dict[str, Any]:
    """Curves of every network under its own ranking, the reference's, the student's and none."""
    generator = torch.Generator().manual_seed(subject.seed)
    orders = {name: ranking(found) for name, found in looked.maps.items()}
    orders[RANDOM] = random_order(looked.images, generator)
    areas: dict[tuple[str, str, str], dict[str, Tensor]] = {}
    rows = []
    for number, seen in enumerate(subject.networks):
        tell(number, len(subject.networks), f"masks over what {seen.name} sees")
        for by, kind, found in _curves_of(seen, looked, orders, _rankers(subject, seen)):
            areas[seen.name, by, kind] = found.areas
            rows.append(_row(seen.name, by, kind, found))
    return {
        "shares": list(SHARES),
        "curves": rows,
        "curve_differences": list(_curve_differences(subject, areas)),
    }


def _rankers(subject: Subject, seen: Seen) -> tuple[str, ...]:
    """Whose ranking a network is shown under."""
    reference, student = subject.networks[0].name, subject.student.name
    across = student if seen.name == reference else reference
    return tuple(dict.fromkeys((seen.name, across, RANDOM)))


def _curves_of(
    seen: Seen, looked: Looked, orders: Mapping[str, Tensor], rankers: Sequence[str]
) -> Iterator[tuple[str, str, Curve]]:
    """(ranking, kind, curve) of one network, of all images."""
    parts: dict[tuple[str, str], list[Curve]] = {}
    start = 0
    for images in looked.images.split(BATCH):
        known = ends(seen.answer, images, looked.fill)
        for by in rankers:
            order = orders[by][start : start + len(images)].to(images.device)
            found = curves(seen.answer, images, order, looked.fill, known)
            for kind, each in found.items():
                parts.setdefault((by, kind), []).append(each)
        start += len(images)
    for (by, what), pieces in parts.items():
        yield by, what, _whole(pieces)


def _whole(parts: Sequence[Curve]) -> Curve:
    """One curve of the images of several batches."""
    fields = [[getattr(part, name) for part in parts] for name in ("probability", "agreement")]
    return Curve(parts[0].shares, *(torch.cat(each) for each in fields))


def _row(network: str, by: str, kind: str, found: Curve) -> dict[str, Any]:
    return {
        "network": network,
        "ranked_by": by,
        "kind": kind,
        "probability": found.probability.mean(0).tolist(),
        "agreement": found.agreement.mean(0).tolist(),
        "areas": _intervals(found.areas),
    }


def _curve_differences(
    subject: Subject, areas: Mapping[tuple[str, str, str], dict[str, Tensor]]
) -> Iterator[dict[str, Any]]:
    """Paired differences of areas: the student less another, own ranking less another."""
    student = subject.student.name
    for (network, by, kind), found in areas.items():
        own = areas[network, network, kind]
        if by != network:
            what = {"network": network, "ranked_by": network, "minus_ranked_by": by}
            yield {**what, "kind": kind, **_intervals(own, found)}
        elif network != student:
            mine = areas[student, student, kind]
            what = {"network": student, "minus": network, "ranked_by": "each its own"}
            yield {**what, "kind": kind, **_intervals(mine, found)}


def say(found: Mapping[str, Any]) -> list[str]:
    """What was found, in sentences."""
    lines = [
        f"{row['network']}: maps like those of {found['reference']} to a rank correlation of "
        f"{_shown(row['spearman'])}, overlap of the {100 * found['share']:g} % most salient "
        f"pixels {_shown(row['overlap'])} (chance {found['chance']:.2f})"
        for row in found["similarity"]
    ]
    what = "images that every network answers rightly (intervals over images, single networks)"
    over = [
        f"{row['method']} less {row['minus']} over {len(row['seeds'])} seeds: rank correlation "
        f"{_shown(row['spearman'])}, interval over seeds and images"
        for row in found.get("over_seeds", ())
    ]
    return [f"on {found['n']} {what}", *lines, *over]


def _shown(interval: Mapping[str, Any]) -> str:
    if interval["mean"] is None:
        return "unknown"
    return f"{interval['mean']:.2f} ({interval['low']:.2f} to {interval['high']:.2f})"
