"""`steps`: what each number of time steps gives: accuracy, calibration, agreement, early exit."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from spikelet.examine.subject import Seen, Subject
from spikelet.examine.table import Tell
from spikelet.execute import ann
from spikelet.measure import accuracy, answers_over_steps, evaluating, late
from spikelet.measure.calibration import (
    WITHIN,
    agreement,
    calibration_error,
    knee,
    negative_log_likelihood,
)
from spikelet.measure.early import early_exit
from spikelet.train.load import ANN, begun_as, teacher
from spikelet.train.prepare import calibration
from spikelet.train.rows import LEARNED, apart, control_rows, evaluation, learning, row
from spikelet.train.running import kind

Answers = dict[int, Tensor]


def examine(subject: Subject, tell: Tell) -> dict[str, Any]:
    """`rows` of accuracy as every command gives them, and for each network more of the same run.

    `networks` has for each network `by_steps`, a list over T (T is None for an ANN) of `accuracy`,
    `calibration_error`, `negative_log_likelihood`, and beside a teacher `agreement` and
    `agreement_where_right`; for those that spike also `knee` and `early_exit`.
    """
    total = len(subject.networks) + 1
    tell(0, total, "the untrained conversion")
    ann = None if subject.loaded.kind == ANN else begun_as(subject.loaded)
    source = None if ann is None else ann.net.to(subject.device)
    rows = _controls(subject, source)
    labels = subject.dataset.test.labels
    answers: dict[str, Answers] = {}
    for done, seen in enumerate(subject.networks, 1):
        tell(done, total, seen.name)
        answers[seen.name] = _answers(subject, seen)
    guide = None if subject.teacher is None else _last(answers["teacher"])
    found = {
        seen.name: _network(answers[seen.name], seen, labels, guide) for seen in subject.networks
    }
    for seen in subject.networks:  # T steps are a whole recording, or no prefix of longer runs
        if subject.dataset.frames is not None or late(seen.net):
            found[seen.name].pop("early_exit", None)
    rows = [{**each, "split": subject.split} for each in [*rows, *_own(subject, found, source)]]
    return {"rows": rows, "networks": found, "n": len(labels), "knee_within": WITHIN}


def _controls(subject: Subject, source: nn.Module | None) -> list[dict[str, Any]]:
    """Rows of the teacher and of its conversion calibrated for each T; none for an ANN's run."""
    recipe = subject.loaded.recipe
    if subject.loaded.kind == ANN:
        return []
    images = calibration(subject.dataset, recipe.calibrate, recipe.seed, subject.device)
    given, note = teacher(subject.loaded), LEARNED if learning(recipe) else None
    steps = list(subject.over) or apart(subject.steps)
    return control_rows(recipe, subject.dataset, given, steps, images, note, source)


def _asked(subject: Subject) -> list[int]:
    """The numbers of steps: those asked for, or 1 to those of the training."""
    return list(subject.over) or list(range(1, subject.steps + 1))


def _own(
    subject: Subject, found: Mapping[str, Mapping[str, Any]], source: nn.Module | None
) -> list[dict[str, Any]]:
    """The rows of the run's own network; an untrained conversion has its rows already."""
    recipe, seen = subject.loaded.recipe, subject.student
    points = found[seen.name]["by_steps"]
    if subject.loaded.kind == ANN:
        return [row(ANN, None, points[0]["accuracy"], recipe.seed, kind="ann")]
    if recipe.method == "convert":
        return []
    known = {"kind": kind(recipe)}
    rows = [row(recipe.method, p["steps"], p["accuracy"], recipe.seed, **known) for p in points]
    if source is not None:
        batches = evaluation(subject.dataset.test, subject.dataset, subject.device)
        rows[-1]["accuracy_ann"] = accuracy(source, batches)
    return rows


def _answers(subject: Subject, seen: Seen) -> Answers:
    """Logits "N K" on the CPU after each number of steps; those of an ANN at 0."""
    if seen.execute is ann:
        batches = evaluation(subject.dataset.test, subject.dataset, subject.device)
        with evaluating(seen.net):
            return {0: torch.cat([seen.answer(images).float().cpu() for images, _ in batches])}
    steps = _levels(subject, seen)
    found: dict[int, list[Tensor]] = {t: [] for t in steps}
    for images, _ in evaluation(subject.dataset.test, subject.dataset, subject.device):
        run = answers_over_steps(seen.net, images, steps, seen.execute, seen.encode)
        for t, logits in run.items():
            found[t].append(logits.cpu())
    return {t: torch.cat(parts) for t, parts in found.items()}


def _levels(subject: Subject, seen: Seen) -> list[int]:
    """Steps to run a network for; one of quantised activations has those of its training."""
    own = seen.spiking and seen.run is not None  # a teacher that spikes answers as it taught
    return _asked(subject) if own else [subject.steps]


def _last(answers: Answers) -> Tensor:
    """The logits after the most steps."""
    return answers[max(answers)]


def _network(answers: Answers, seen: Seen, labels: Tensor, guide: Tensor | None) -> dict[str, Any]:
    """What a network's logits at each T come to; `guide` are the teacher's."""
    beside = None if seen.run is None else guide
    points = [_point(t, logits, labels, beside) for t, logits in answers.items()]
    if not seen.spiking or len(answers) < 2:
        return {"by_steps": points}
    shares = {point["steps"]: point["accuracy"] for point in points}
    return {"by_steps": points, "knee": knee(shares), "early_exit": early_exit(answers, labels)}


def _point(t: int, logits: Tensor, labels: Tensor, guide: Tensor | None) -> dict[str, Any]:
    """One number of steps; 0 stands for an ANN."""
    found: dict[str, Any] = {
        "steps": t or None,
        "accuracy": float((logits.argmax(1) == labels).double().mean()),
        "calibration_error": calibration_error(logits, labels),
        "negative_log_likelihood": negative_log_likelihood(logits, labels),
    }
    if guide is not None:
        equal, among = agreement(logits, guide, labels)
        found |= {"agreement": equal, "agreement_where_right": among}
    return found


def say(found: Mapping[str, Any]) -> list[str]:
    """What was found, in sentences."""
    lines = []
    for name, network in found["networks"].items():
        last = network["by_steps"][-1]
        line = f"{name}: expected calibration error {100 * last['calibration_error']:.1f} points"
        if "agreement" in last:
            line += f", agrees with the teacher on {100 * last['agreement']:.1f} % of the images"
        if "knee" in network:
            line += f", within half a point of its best from T = {network['knee']} on"
        lines.append(line + _leaving(network.get("early_exit", []), last["accuracy"]))
    return lines


def _leaving(points: Sequence[Mapping[str, float]], whole: float) -> str:
    """The fewest steps of an early exit that costs no more than half a point."""
    good = [each for each in points if each["accuracy"] >= whole - WITHIN]
    if not good:
        return ""
    best = min(good, key=lambda each: each["steps"])
    if best["threshold"] > 1:
        return "; no early exit stays within half a point"
    return f"; leaving once {best['threshold']:g} sure takes {best['steps']:.2f} steps on average"
