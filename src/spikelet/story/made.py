"""How the runs were made, how to make them again, and what is not measured yet."""

from __future__ import annotations

import json
import shlex
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from typing import Any

from spikelet.examine import MEASURES, suits
from spikelet.recipe import Recipe, terms_of
from spikelet.report.parts import Block, Code, Facts, Fold, Heading, Note, Section
from spikelet.story.cast import Cast, Chapter
from spikelet.story.numbers import NONE, counted
from spikelet.story.told import Found, Told

Again = Callable[[Recipe, str], str | None]
"""Gives the command line that makes a run of a recipe in a folder; None where there is none."""
NO_LINE = (
    "No command line says all of this recipe, or its teacher's folder is gone; the recipe below "
    "holds every setting."
)
CONTROLS = ("none", "convert", "qann")
TOLD = ("steps", "noise", "saliency", "energy", "health", "evenness")  # have their own chapters
LONGEST = 6000  # characters of a measure of the user's own


def made(cast: Cast, again: Again) -> Chapter:
    """Settings, versions, hashes, licence, the command line and the recipe of each run."""
    blocks: list[Block] = []
    for run in cast.runs:
        line = again(run.recipe, f"{run.path}-again")
        name = run.path.resolve().name
        both = len(cast.runs) > 1 and run.label != name
        blocks.append(Heading(f"{run.label}: {name}" if both else name))
        blocks.append(Facts(_facts(run)))
        blocks.append(Note("The command that makes it again, with all its settings:"))
        blocks.append(Note(NO_LINE) if line is None else Code(wrapped(line)))
        blocks.append(Fold("the whole recipe", _recipe(json.loads(run.recipe.to_json()))))
        blocks.append(Fold("versions, commit, digests of data and weights", [Facts(_exact(run))]))
    look = "Everything here is read from the run folders; nothing was typed in."
    return Chapter(Section("How it was made", look, blocks))


def _facts(run: Told) -> dict[str, str]:
    """What a run's card and environment say, in words."""
    data, card, env = run.card.get("data") or {}, run.card, run.env
    training = run.recipe.training
    facts = {
        "intended use": str(card.get("intended_use", "")),
        "data": f"{data.get('name', run.recipe.data['kind'])}; licence: {data.get('licence', '?')}",
        "network": model_words(run),
        "teacher": _teacher(run),
        "training": f"{counted(len(run.epochs), 'epoch')} of {training.optimiser}, learning rate "
        f"{training.learning_rate:g}, batch {training.batch}, {training.precision}"
        if run.epochs
        else "none",
        "seed": str(run.recipe.seed),
        "computed on": ", ".join(
            str(env[key]) for key in ("device", "platform", "cuda") if env.get(key)
        ),
    }
    return {name: words for name, words in facts.items() if words}


def _recipe(fields: Mapping[str, Any]) -> list[Block]:
    """Every setting by the name of its flag, and the file itself."""
    plain = {name: value for name, value in fields.items() if not isinstance(value, dict)}
    blocks: list[Block] = [Facts({name: _setting(value) for name, value in plain.items()})]
    for name, value in fields.items():
        if isinstance(value, dict) and value:
            blocks += [Heading(name), Facts(dict(_leaves(value)))]
    return [*blocks, Fold("as recipe.json has it", [Code(json.dumps(fields, indent=2))])]


def _leaves(fields: Mapping[str, Any], before: str = "") -> Iterator[tuple[str, str]]:
    """Nested settings by their dotted names."""
    for name, value in fields.items():
        if isinstance(value, dict) and value:
            yield from _leaves(value, f"{before}{name}.")
        else:
            yield f"{before}{name}", _setting(value)


def _setting(value: Any) -> str:
    """A setting in words; what is not set has a dash."""
    if value is None or value in ({}, []):
        return NONE
    if isinstance(value, bool):
        return "yes" if value else "no"
    return value if isinstance(value, str) else json.dumps(value)


def _exact(run: Told) -> dict[str, str]:
    """With what exactly a run was made."""
    data, card, env = run.card.get("data") or {}, run.card, run.env
    facts = {
        "versions": ", ".join(f"{k} {v}" for k, v in (env.get("versions") or {}).items()),
        "commit": _commit(env),
        **{f"sha256 of {k} images": v for k, v in (data.get("hashes") or {}).items()},
        "sha256 of the weights": str(card.get("sha256") or ""),
        "sha256 of the teacher's weights": str((card.get("teacher") or {}).get("sha256") or ""),
    }
    return {name: words for name, words in facts.items() if words}


def model_words(run: Told) -> str:
    """The architecture of a run's network: "small-cnn of width 16"."""
    model: Mapping[str, Any] = run.recipe.model or run.card.get("model") or {}
    model = model or run.model or run.card.get("teacher") or {}
    width = model.get("width")
    return str(model.get("kind", "network")) + ("" if width is None else f" of width {width}")


def _teacher(run: Told) -> str:
    guide = run.card.get("teacher") or {}
    if not run.taught or not guide:
        return ""
    width = "" if guide.get("width") is None else f" of width {guide['width']}"
    return f"{guide.get('kind', '?')}{width}"


def _commit(env: Found) -> str:
    git = env.get("git")
    return "" if not git else git["commit"] + (" with changes" if git["changed"] else "")


def _comparable(other: Told, run: Told) -> bool:
    """Whether a student was tested on the same images, so that it may be measured beside."""
    parts = [((r.card.get("data") or {}).get("hashes") or {}).get("test") for r in (other, run)]
    return other.taught and parts[0] == parts[1]


def wrapped(line: str, width: int = 84) -> str:
    """A command over several lines that a shell still reads as one; a flag keeps its values."""
    groups: list[str] = []
    for word in map(shlex.quote, shlex.split(line)):
        if word.startswith("-") or not groups:
            groups.append(word)
        else:
            groups[-1] += f" {word}"
    lines = [groups[0]]
    for group in groups[1:]:
        if len(lines[-1]) + len(group) < width:
            lines[-1] += f" {group}"
        else:
            lines.append(f"    {group}")
    return " \\\n".join(lines)


def own_measures(cast: Cast) -> Chapter | None:
    """What a user's own measures found, as it was stored; None where there are none."""
    blocks: list[Block] = []
    for run in cast.runs:
        for name, found in run.measures.items():
            if name not in TOLD:
                text = json.dumps(found, indent=2)
                cut = text if len(text) <= LONGEST else text[:LONGEST] + "\n..."
                blocks.append(Fold(f"{run.label}: {name}", [Code(cut)]))
    look = "Measures that this page has no chapter for, as they were stored."
    return Chapter(Section("Other measures", look, blocks)) if blocks else None


def _control(cast: Cast, again: Again) -> Iterator[Block]:
    """The command for the same training without the teacher's terms, for each T that has none."""
    plain = {_place(run) for run in cast.runs if run.recipe.method == "none"}
    for run in cast.runs:
        if run.taught and run.recipe.method not in CONTROLS and _place(run) not in plain:
            plain.add(_place(run))
            out = f"{run.path}-none"
            fields: dict[str, Any] = {"method": "none", "terms": terms_of("none"), "joint": False}
            line = again(replace(run.recipe, **fields), out)
            if line is not None:
                others = [str(each.path) for each in cast.runs]
                page = shlex.join(["spikelet", "report", *others, out, "--out", "both.html"])
                words = (
                    f"Whether its teacher's losses helped {run.label} is seen beside the same "
                    "training on the labels alone; several seeds of both give an interval."
                )
                yield from (Note(words), Code(f"{wrapped(line)}\n{wrapped(page)}"))


def _place(run: Told) -> tuple[str, int]:
    """What a control has to share with a run."""
    return json.dumps([run.recipe.data, run.recipe.teacher, run.recipe.neuron]), run.recipe.steps


def missing(cast: Cast, again: Again, pictures: bool = True) -> Chapter | None:
    """What is not measured yet, and the command for it; None where nothing is missing."""
    blocks: list[Block] = []
    if not pictures:
        line = shlex.join(["spikelet", "report", *(str(run.path) for run in cast.runs)])
        words = (
            "What the networks look at and their spikes are not shown: the run is older than this "
            "version and keeps no images, and its data take time to read."
        )
        blocks += [Note(words), Code(wrapped(line))]
    for run in cast.runs:
        for name, why in run.left_out.items():
            blocks.append(Note(f"{name} of {run.label} was left out: {why}"))
        others = [str(r.path) for r in cast.runs if r is not run and _comparable(r, run)]
        names = [n for n in MEASURES if n not in run.measures and n not in run.left_out]
        names = [n for n in names if suits(n, run.spikes, run.taught)]
        if names:
            versus = ["--versus", *others] if others and run.taught else []
            line = shlex.join(["spikelet", "measure", str(run.path), *names, *versus])
            blocks += [Note(f"{run.label}: {', '.join(names)}."), Code(wrapped(line))]
    blocks += _control(cast, again)
    if not blocks:
        return None
    if not any(isinstance(block, Code) for block in blocks):
        return Chapter(Section("Not measured", "", blocks))
    look = "Run these lines, then `spikelet report` again, and the page has these sections too."
    return Chapter(Section("Not measured yet", look, blocks))
