"""From run folders to the page: reads, runs what must be run, and puts the chapters in order."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from spikelet.checkpoint import replacing
from spikelet.errors import UserError
from spikelet.measure import mean_rates
from spikelet.report import run_page
from spikelet.report.findings import listed, percent
from spikelet.report.page import METHODS, SHOWN, WORDS
from spikelet.report.parts import Block, Facts, Fold, Points, Section
from spikelet.story.accuracy import accuracy
from spikelet.story.cast import CONVERT, Cast, Chapter, cast_of
from spikelet.story.costs import costs
from spikelet.story.evenness import evenness
from spikelet.story.inside import health, layers_of, spikes
from spikelet.story.kept import at_hand, require_whole
from spikelet.story.live import Live, see
from spikelet.story.looks import looks
from spikelet.story.made import Again, made, missing, model_words, own_measures
from spikelet.story.noise import noise
from spikelet.story.told import TEACHER, Told, read
from spikelet.story.training import training
from spikelet.train.rows import BEGUN
from spikelet.train.told import HARDLY

MOST_TILES = 6


def write(
    paths: Sequence[Path],
    out: Path,
    again: Again,
    *,
    live: bool | None = True,
    root: Path | None = None,
    tell: Callable[[str], None] = lambda words: None,
) -> Path:
    """Writes the page about one run or several; where it was written.

    Args:
        paths: run folders.
        out: the file.
        again: gives the command line that makes a run of a recipe in a folder.
        live: whether networks are run for what only they can show; None for where images of their
            data are at hand.
        root: folder of the data where they have moved.
        tell: takes a sentence for each thing that could not be shown.

    Raises:
        UserError: if a folder is no finished run, weights or a stored measure are not what was
            written, or jinja2 or matplotlib is missing.
    """
    cast = cast_of(read(paths))
    wanted = at_hand(cast.runs) if live is None else live
    if wanted:
        require_whole(cast.runs)
    seen = see(cast.runs, root) if wanted else Live()
    for words in seen.troubles:
        tell(words)
    text = page_of(cast, seen, again, pictures=wanted)
    out.parent.mkdir(parents=True, exist_ok=True)
    with replacing(out) as temporary:
        temporary.write_text(text, encoding="utf-8")
    return out


def page_of(cast: Cast, seen: Live, again: Again, pictures: bool = True) -> str:
    """The page as text; without `pictures` it says how to get them."""
    end = missing(cast, again, pictures)
    told = [*chapters(cast, seen), made(cast, again), *([] if end is None else [end])]
    glossary = Section("What the words mean", "", [Facts(_glossary(cast))])
    return run_page(
        [glossary, *(each.section for each in told)],
        title=title(cast),
        lead=headline(cast.runs[0]) if len(cast.runs) == 1 else together(cast),
        tiles=tiles(cast),
        findings=ranked(told),
    )


def close_up(
    paths: Sequence[Path],
    *,
    look: str,
) -> list[Section]:
    """The chapters about some runs, for a page of something larger that they are part of.

    Args:
        paths: run folders; networks are run for what only they can show where images of their
            data are at hand.
        look: sentences about which runs these are.

    Raises:
        UserError: as `write`.
    """
    cast = cast_of(read(paths))
    told = chapters(cast, see(cast.runs) if at_hand(cast.runs) else Live())
    names = listed(run.label for run in cast.runs)
    blocks: list[Block] = []
    found = ranked(told)
    if found:
        blocks.append(Points(found[:SHOWN]))
    if found[SHOWN:]:
        blocks.append(Fold(f"{len(found) - SHOWN} more", [Points(found[SHOWN:])]))
    return [Section(f"A closer look: {names}", look, blocks), *(each.section for each in told)]


def ranked(told: Sequence[Chapter]) -> list[str]:
    """The findings of all chapters: the first of each, the second of each, and so on."""
    most = max((len(each.findings) for each in told), default=0)
    return [each.findings[n] for n in range(most) for each in told if n < len(each.findings)]


def _glossary(cast: Cast) -> dict[str, str]:
    """What the words mean, with the methods of the page among them."""
    methods = dict.fromkeys(str(row["method"]) for run in cast.runs for row in run.rows)
    named = {name: METHODS[name] for name in methods if name in METHODS and name != TEACHER}
    return {**WORDS, **named}


def chapters(cast: Cast, seen: Live) -> list[Chapter]:
    """What there is to tell about some runs, in order."""
    notes = [*seen.notes, *(f"{words}." for words in seen.troubles)]
    every = [
        accuracy(cast),
        training(cast),
        _read("energy", lambda: costs(cast), cast),
        _read("noise", lambda: noise(cast), cast),
        _read("saliency", lambda: looks(cast, seen.galleries, notes), cast),
        spikes(cast, seen.firing),
        _read("evenness", lambda: evenness(cast), cast),
        _read("health", lambda: health(cast), cast),
        own_measures(cast),
    ]
    return [each for each in every if each is not None]


def _read(name: str, chapter: Callable[[], Chapter | None], cast: Cast) -> Chapter | None:
    """A chapter from stored measures, or the sentence that they are not what we write.

    Raises:
        UserError: if they are not.
    """
    try:
        return chapter()
    except (KeyError, TypeError, IndexError, AttributeError) as error:
        runs = [run.path for run in cast.runs if name in run.measures]
        file = f"{runs[0] if runs else cast.runs[0].path}/measures/{name}.json"
        what = f"it is not what this version writes ({type(error).__name__}: {error})"
        raise UserError(file, what, f"measure again with `spikelet measure RUN {name}`") from error


def title(cast: Cast) -> str:
    """What the page is about, in a few words."""
    data = listed(dict.fromkeys(_data(run) for run in cast.runs))
    names = listed(run.label for run in cast.runs)
    if len(cast.runs) > 1:
        return f"{data}: {names} side by side"
    run = cast.runs[0]
    if not run.taught:
        return f"{data}: an ordinary network, {model_words(run)}"
    kind = "a spiking network" if run.spikes else "a quantised network"
    return f"{data}: {kind} trained with {names}, T = {run.recipe.steps}"


def _data(run: Told) -> str:
    return str((run.card.get("data") or {}).get("name") or run.recipe.data["kind"])


def together(cast: Cast) -> str:
    """Several runs in a sentence: how well each does, beside their teachers."""
    guides: dict[str, float] = {}
    parts = []
    for run in cast.runs:
        guide = run.row(TEACHER, None)
        if run.taught and guide is not None:
            guides.setdefault(str(run.teacher), guide["accuracy"])
        if run.accuracy is not None:
            at = f" at T = {run.recipe.steps}" if run.taught and "T =" not in run.label else ""
            parts.append(f"{run.label} {percent(run.accuracy)}{at}")
    shown = {run.label for run in cast.runs}
    beside = [f"{name} {percent(value)}" for name, value in guides.items() if name not in shown]
    data = listed(dict.fromkeys(map(_data, cast.runs)))
    said = "; ".join(listed(each) for each in (parts, beside) if each)
    return f"Accuracy on the test images of {data}: {said}."


def headline(run: Told) -> str:
    """One run in a sentence: which network, which data, how well, beside teacher and conversion."""
    classes = len((run.card.get("data") or {}).get("classes") or ())
    value = "an unknown share" if run.accuracy is None else percent(run.accuracy)
    among = f"{classes} classes (guessing: {percent(1 / classes)})" if classes else "its classes"
    sorts = f"sorts {value} of the test images of {_data(run)} rightly into {among}"
    if not run.taught:
        return f"{model_words(run)}, an ordinary network ({run.label}), {sorts}."
    kind = "a spiking" if run.spikes else "a quantised, not spiking,"
    traits = f" ({run.traits})" if run.traits else ""
    words = f"{run.label}, {kind} {model_words(run)}{traits} at T = {run.recipe.steps}, {sorts}"
    guide, plainly = run.row(TEACHER, None), run.row(CONVERT, run.recipe.steps)
    if guide is not None:
        words += f"; its teacher {percent(guide['accuracy'])}"
        if classes and guide["accuracy"] < HARDLY / classes:
            words += ", hardly better than guessing, so that it had nothing to teach"
    if plainly is not None and run.own != CONVERT:
        whose = "its own ANN" if plainly.get("note") == BEGUN else "the teacher"
        words += f", and {whose} converted without training {percent(plainly['accuracy'])}"
    return words + "."


def tiles(cast: Cast) -> list[dict[str, Any]]:
    """The headline numbers: teachers, conversion, and each run."""
    found: dict[str, Any] = {}
    for run in cast.runs:
        guide = run.row(TEACHER, None)
        if run.taught and guide is not None:
            found.setdefault(str(run.teacher), guide["accuracy"])
        plainly = run.row(CONVERT, run.recipe.steps)
        if plainly is not None and run.own != CONVERT and len(cast.runs) == 1:
            found.setdefault(f"converted, T = {run.recipe.steps}", plainly["accuracy"])
    for run in cast.runs:
        if run.accuracy is not None:
            at = f", T = {run.recipe.steps}" if run.taught and "T =" not in run.label else ""
            found.setdefault(run.label + at, run.accuracy)
        layers = layers_of(run) if run.spikes and len(cast.runs) == 1 else {}
        if layers:
            own = run.row(run.own, run.recipe.steps) or {}
            by_layer = own.get("rate_by_layer") or mean_rates(layers)["rate_by_layer"]
            found["spikes per neuron and time step (firing rate by layer)"] = f"{by_layer:.3f}"
    return [{"name": name, "value": value} for name, value in found.items()][:MOST_TILES]
