"""Accuracy over time steps, how sure and how faithful the answers are, and leaving early."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from spikelet.report.charts import accuracy_chart
from spikelet.report.findings import listed
from spikelet.report.names import named
from spikelet.report.parts import Block, Chart, Fold, Note, Panels, Rows, Section
from spikelet.report.plots import Line, lines_chart
from spikelet.story.cast import CONVERT, Cast, Chapter, networks
from spikelet.story.numbers import NONE, percent, plain, points, settings_words, share
from spikelet.story.told import TEACHER, Row, Source, Told
from spikelet.train.rows import BEGUN

LOOK = (
    "Look for how few time steps come close to the dashed line, the teacher: every step costs time "
    "and energy; a ring marks the knee, the first T within half a point of the best."
)
ALONE = (
    "Look for how few time steps come close to the most accurate point: every step costs time and "
    "energy; a ring marks the knee, the first T within half a point of the best."
)
STILL = "An ordinary network answers in one pass: it has one accuracy and no time steps."
SAME = 0.002  # accuracies of the same images, on another machine
BEHAVIOUR = (
    "Calibration error: how far confidence and accuracy are apart, 0 is best. Agreement: on how "
    "many images the network answers as its teacher does, right or wrong. Early exit: an image is "
    "answered as soon as the network is sure enough; each point is one level of confidence, with "
    "the steps used on average. Log loss in the table: how surprised the network is by the right "
    "answer, 0 is best."
)


def accuracy(cast: Cast) -> Chapter:
    """Accuracy of every run over T, its knee, calibration, agreement and early exit."""
    rows, found = rows_of(cast), measured(cast)
    spiking = [row for row in rows if row["steps"] is not None]
    blocks: list[Block] = []
    if spiking:
        known = {row["method"] for row in spiking}
        series = {n: cast.colours[n] - 1 for n in cast.colours if n in known}
        knees = {name: found[name]["knee"] for name in found if "knee" in found[name]}
        label = "Accuracy of each network over time steps; the numbers are in the table below"
        blocks.append(Chart(accuracy_chart(rows, series, knees, "accuracy-runs"), label))
    blocks.append(table([*rows, *_beginnings(cast)], cast))
    blocks += _notes(cast)
    if found:
        blocks += _behaviour(cast, found)
    taught = any(row["method"] == TEACHER for row in rows)
    look = (LOOK if taught else ALONE) if spiking else STILL
    title = "Accuracy over time steps" if spiking else "Accuracy"
    return Chapter(Section(title, look, blocks), _findings(cast, found))


def rows_of(cast: Cast) -> list[dict[str, Any]]:
    """The rows of all runs under the names of the page, each network once at each T."""
    found: dict[tuple[str, int | None], dict[str, Any]] = {}
    for run in cast.runs:
        apart = {row["method"] for row in run.rows if _differs(row, found)}
        for row in run.rows:
            name = _name(run, row, row["method"] in apart)
            found.setdefault((name, row["steps"]), _renamed(row, name))
    for source in cast.sources("steps"):
        if not _of_all_images(source):
            continue
        for own, network in source.found["networks"].items():
            name = source.label(own)
            for point in network["by_steps"]:
                row = {"steps": point["steps"], "accuracy": point["accuracy"], "std": None}
                found.setdefault((name, point["steps"]), _renamed(row, name))
    return list(found.values())


def _of_all_images(source: Source) -> bool:
    """Whether `steps` was measured on all test images; an older one finds the same accuracies."""
    settings = source.found.get("settings") or {}
    if settings.get("of") is not None:
        return bool(settings["images"] == settings["of"] and settings.get("split") == "test")
    own, points = source.run.own, source.found["networks"][source.run.own]["by_steps"]
    pairs = [(point, source.run.row(own, point["steps"])) for point in points]
    apart = [abs(point["accuracy"] - row["accuracy"]) for point, row in pairs if row is not None]
    return bool(apart) and max(apart) < SAME and settings.get("split") == "test"


def _differs(row: Row, found: Mapping[tuple[str, int | None], Row]) -> bool:
    """Whether another run has other numbers under the name of a row."""
    same = found.get((row["method"], row["steps"]))
    return same is not None and abs(same["accuracy"] - row["accuracy"]) > 1e-9


def _name(run: Told, row: Row, apart: bool) -> str:
    """What the page calls a row's network; conversions that differ at any T are told apart."""
    method = str(row["method"])
    if method == TEACHER:
        return str(run.teacher if run.taught else run.label)
    if method == run.own:
        return run.label
    return f"{method} of {run.label}" if apart else method


def _renamed(row: Row, name: str) -> dict[str, Any]:
    """A row under a name; several teachers stay teachers, with a number behind the word."""
    if not name.startswith(TEACHER):
        return {**row, "method": name}
    aside = [name.removeprefix(TEACHER).strip(" ()"), str(row.get("note") or "")]
    return {**row, "method": TEACHER, "note": ", ".join(word for word in aside if word)}


def measured(cast: Cast) -> dict[str, Mapping[str, Any]]:
    """What `steps` found for each network, by its name on the page."""
    where = networks(cast, cast.sources("steps"), lambda found: list(found["networks"]))
    return {label: source.found["networks"][name] for label, (source, name) in where.items()}


def accuracies(cast: Cast) -> dict[str, float]:
    """Each network's accuracy at the T of its training, of an ANN its only one, where known."""
    found = {run.label: run.accuracy for run in cast.runs}
    for run in cast.runs:
        row = run.row(TEACHER, None)
        if run.taught and row is not None:
            found.setdefault(str(run.teacher), row["accuracy"])
    for source in cast.sources("steps"):
        at = (source.found.get("settings") or {}).get("steps")
        for name, network in source.found["networks"].items():
            for point in network["by_steps"]:
                if point["steps"] in (None, at):
                    found.setdefault(source.label(name), point["accuracy"])
    return {name: value for name, value in found.items() if value is not None}


def table(rows: Sequence[Row], cast: Cast) -> Rows:
    """A line per network, a column per number of steps."""
    steps = sorted({row["steps"] for row in rows if row["steps"] is not None})
    columns = [None, *steps] if any(row["steps"] is None for row in rows) else list(steps)
    lines = list(dict.fromkeys(named(row) for row in rows))
    cells = {(named(row), row["steps"]): share(row["accuracy"]) for row in rows}
    body = [[name, *(cells.get((name, t), NONE) for t in columns)] for name in lines]
    head = ["accuracy, %", *("ANN" if t is None else f"T = {t}" for t in columns)]
    return Rows(head, body, colours=[cast.colours.get(name, 0) for name in lines])


def _notes(cast: Cast) -> list[Block]:
    """What the numbers were taken on."""
    words = "On the test part at the end of training, one run each: one run gives no interval."
    if any(row["method"] == CONVERT for run in cast.runs for row in run.rows):
        whose = " and ".join(sorted(_converted(cast)))
        words += f" convert is {whose} with spiking neurons, calibrated for each T, not trained."
    apart = [run.label for run in cast.runs if run.single]
    if apart:
        words += f" {listed(apart)}: layers begin late, so that only the T of the training counts."
    return [Note(words)]


def _converted(cast: Cast) -> set[str]:
    """Which networks the conversions on the page were made of."""
    rows = [row for run in cast.runs for row in run.rows if row["method"] == CONVERT]
    return {"the student's own ANN" if row.get("note") == BEGUN else "the teacher" for row in rows}


def _beginnings(cast: Cast) -> list[dict[str, Any]]:
    """Rows of the ANNs that students of another architecture began as."""
    known = [(run.label, run.rows[-1].get("accuracy_ann")) for run in cast.runs if run.rows]
    common = {"steps": None, "std": None}
    return [
        {"method": f"ANN of {label}", "accuracy": value, **common}
        for label, value in known
        if value is not None
    ]


def _behaviour(cast: Cast, found: Mapping[str, Mapping[str, Any]]) -> list[Block]:
    """Calibration, agreement and early exit: charts over T and a table of all."""
    charts = []
    over = {name: [p for p in each["by_steps"] if p["steps"]] for name, each in found.items()}
    kinds = (("calibration_error", "calibration error"), ("agreement", "agreement with teacher"))
    for key, title in kinds:
        lines = [
            Line([p["steps"] for p in each], [100 * p[key] for p in each], cast.colour(name))
            for name, each in over.items()
            if len(each) > 1 and all(key in p for p in each)
        ]
        if lines:
            up = "points" if key == "calibration_error" else "% of images"
            drawn = lines_chart(key, lines, along="time steps T", up=up, steps=True)
            charts.append(Chart(drawn, f"{title} over time steps", title))
    exits = [
        Line([p["steps"] for p in e], [100 * p["accuracy"] for p in e], cast.colour(name))
        for name, each in found.items()
        if (e := each.get("early_exit"))
    ]
    if exits:
        drawn = lines_chart("early-exit", exits, along="mean steps used", up="accuracy, %")
        charts.append(Chart(drawn, "Accuracy over mean steps used with early exit", "early exit"))
    shown = [name for name in found if over[name]]
    blocks: list[Block] = [Panels(charts, cast.keys(shown)), Note(BEHAVIOUR)] if charts else []
    return [*blocks, _fold(cast, found), *_sources(cast)]


def _fold(cast: Cast, found: Mapping[str, Mapping[str, Any]]) -> Fold:
    """The numbers behind the charts."""
    head = ["network", "T", "accuracy, %", "calibration error, points", "log loss, nats"]
    head.append("agreement, %")
    body = [
        [
            name,
            NONE if p["steps"] is None else str(p["steps"]),
            share(p["accuracy"]),
            plain(100 * p["calibration_error"], 1),
            plain(p["negative_log_likelihood"]),
            share(p.get("agreement")),
        ]
        for name, each in found.items()
        for p in each["by_steps"]
    ]
    leaving = [
        [name, _sure(p["threshold"]), plain(p["steps"], 2), share(p["accuracy"])]
        for name, each in found.items()
        for p in each.get("early_exit", ())
    ]
    blocks: list[Block] = [Rows(head, body)]
    if leaving:
        columns = ["early exit", "sure enough from", "mean steps", "accuracy, %"]
        blocks.append(Rows(columns, leaving))
    return Fold("numbers: calibration, agreement, early exit", blocks)


def _sure(threshold: float) -> str:
    """A level of confidence; above 1 nobody leaves early."""
    return plain(threshold) if threshold <= 1 else "never"


def _sources(cast: Cast) -> list[Note]:
    words = (f"{s.run.label}: {settings_words(s.found)}" for s in cast.sources("steps"))
    return [Note("; ".join(words) + ".")]


def _findings(cast: Cast, found: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """Each student beside its teacher and the conversion, its knee, and leaving early."""
    said = []
    for run in cast.runs:
        t, value = run.recipe.steps, run.accuracy
        if not run.taught or value is None:
            continue
        guide, plainly = _shared(cast, run, TEACHER, None), _shared(cast, run, CONVERT, t)
        parts = [] if guide is None else [_apart(value - guide["accuracy"], "its teacher")]
        if plainly is not None and run.own != CONVERT:
            parts.append(_apart(value - plainly["accuracy"], "the untrained conversion"))
        if parts:
            at = "" if run.label.endswith(f"T = {t})") else f" at T = {t}"
            said.append(f"{run.label}{at} is {' and '.join(parts)}")
    runs = "one run" if len(said) == 1 else "one run each"
    said = [f"{'; '.join(said)} ({runs})."] if said else []
    mine = {run.label: found[run.label] for run in cast.runs if run.label in found}
    knees = [f"{name} from T = {each['knee']} on" for name, each in mine.items() if "knee" in each]
    if knees:
        said.append(f"Accuracy is within half a point of its best: {listed(knees)}.")
    return said + [words for name, each in mine.items() for words in _leaving(name, each)]


def _shared(cast: Cast, run: Told, method: str, steps: int | None) -> Row | None:
    """A control's row of a run, or of another with the same teacher and seed."""
    same = [r for r in cast.runs if r.taught and r.teacher == run.teacher]
    same = [r for r in same if steps is None or r.recipe.seed == run.recipe.seed]
    rows = (each.row(method, steps) for each in (run, *same))
    return next((row for row in rows if row is not None), None)


def _apart(difference: float, other: str) -> str:
    """A difference in words."""
    if round(100 * difference, 1) == 0:
        return f"level with {other}"
    size = points(abs(difference)).lstrip("+")
    return f"{size} points {'above' if difference > 0 else 'below'} {other}"


def _leaving(name: str, network: Mapping[str, Any]) -> list[str]:
    """The fewest mean steps of an early exit that costs no more than half a point."""
    points_, whole = network.get("early_exit") or [], network["by_steps"][-1]
    good = [p for p in points_ if p["accuracy"] >= whole["accuracy"] - 0.005]
    best = min(good, key=lambda p: p["steps"], default=None)
    if best is None or best["steps"] >= whole["steps"]:
        return []
    return [
        f"If {name} answers as soon as it is sure, {best['steps']:.2f} steps on average give "
        f"{percent(best['accuracy'])} (all {whole['steps']} steps: {percent(whole['accuracy'])})."
    ]
