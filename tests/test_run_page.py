"""The page about finished runs: complete, harmless, and with the numbers that the runs hold."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import re
import shlex
import shutil
import sys
from collections import Counter
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
import torch

pytest.importorskip("sklearn", reason="scikit-learn is not installed: no digits")
pytest.importorskip("jinja2")
pytest.importorskip("matplotlib")

from finished import FOLDER, SCRIPT, make, quiet
from spikelet.checkpoint import save_weights
from spikelet.cli.again import command_of
from spikelet.cli.arguments import parse
from spikelet.cli.distill import recipe_of
from spikelet.cli.leaves import Leaf, overridden, split
from spikelet.cli.report import beside
from spikelet.errors import UserError
from spikelet.examine import MEASURES
from spikelet.examine.subject import subject
from spikelet.examine.work import left_out, work
from spikelet.measure.saliency import input_gradients
from spikelet.neuron import per_channel, scan
from spikelet.recipe import METHODS, Recipe, default_recipe
from spikelet.report import grid_page
from spikelet.report.charts import accuracy_chart
from spikelet.report.findings import signed
from spikelet.report.page import picture
from spikelet.report.parts import Section
from spikelet.report.plots import Line, lines_chart
from spikelet.story.accuracy import _notes as accuracy_notes
from spikelet.story.cast import Chapter, cast_of
from spikelet.story.live import _coloured, firing
from spikelet.story.made import wrapped
from spikelet.story.rivals import findings
from spikelet.story.told import Source, Told, called, colours, read, sources
from spikelet.story.write import ranked, write
from spikelet.train import load, read_recipe
from spikelet.train.examples import EXAMPLES_FILE, stored_examples
from test_report import ROWS, Reader, full

MEASURED = ("steps", "noise", "saliency", "energy", "health", "evenness")
ALL = (
    "Accuracy over time steps",
    "Training",
    "Energy and accuracy",
    "Noise",
    "What the networks look at",
    "Spikes, step by step",
    "What uneven spikes cost",
    "Health of the layers",
    "How it was made",
)


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Finished runs; `hybrid` is measured beside `none`."""
    return make(tmp_path_factory.mktemp("page"))


@pytest.fixture(scope="module")
def text(runs: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> str:
    """The page of two runs."""
    out = tmp_path_factory.mktemp("out") / "two.html"
    assert quiet("report", str(runs["hybrid"]), str(runs["none"]), "--out", str(out)) == 0
    return out.read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def found(runs: dict[str, Path]) -> dict[str, Any]:
    """What was measured of `hybrid`."""
    folder = runs["hybrid"] / "measures"
    return {name: json.loads((folder / f"{name}.json").read_text()) for name in MEASURED}


class Tables(HTMLParser):
    """Every row of every table as the words of its cells, and the titles of sections."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.rows: list[list[str]] = []
        self.titles: list[str] = []
        self.within: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag == "tr":
            self.rows.append([])
        if tag in ("td", "th"):
            self.rows[-1].append("")
        if tag == "h2":
            self.titles.append("")
        if tag in ("td", "th", "h2"):
            self.within.append(tag)

    def handle_endtag(self, tag: str) -> None:
        if tag in ("td", "th", "h2"):
            self.within.pop()

    def handle_data(self, data: str) -> None:
        if self.within and self.within[-1] == "h2":
            self.titles[-1] += data
        elif self.within:
            self.rows[-1][-1] += data.replace("\N{NO-BREAK SPACE}", " ")

    def row(self, *first: str, head: str | None = None) -> list[str]:
        """The cells of the row that begins so, of the table whose head begins so."""
        started = head is None
        for row in self.rows:
            started = started or row[:1] == [head]
            if started and tuple(row[: len(first)]) == first:
                return row
        raise AssertionError(f"no row {first}")


def minus(text: str) -> str:
    return text.replace("-", "\N{MINUS SIGN}")


# ---- what every page is -------------------------------------------------------------------


def test_page_is_well_formed_and_needs_nothing_else(text: str) -> None:
    reader = Reader(text)
    tags = {tag for tag, _, _ in reader.attributes}
    assert not tags & {"script", "iframe", "object", "embed", "form", "base"}
    for tag, name, value in reader.attributes:
        assert not name.startswith("on"), (tag, name)
        if name in ("src", "href", "xlink:href", "srcset", "data", "action", "poster"):
            assert value.startswith(("#", "data:")), (tag, name, value)
    bare = re.sub(r'xmlns(:\w+)?="[^"]*"', "", text)
    assert "://" not in bare and "@import" not in bare
    assert all(value.startswith("#") for value in re.findall(r"url\(([^)]*)\)", bare))


def test_every_figure_is_there_and_described(text: str) -> None:
    titles = Tables(text).titles
    assert [title for title in titles if title in ALL] == list(ALL)
    parts = dict(sections(text))
    for title in ALL[:-1]:
        assert parts[title].count("<svg") >= (1 if title == "What uneven spikes cost" else 3), title
        assert 'class="look"' in parts[title], title
    for opening in re.findall(r"<figure[^>]*>", text):
        assert re.search(r'role="img" aria-label="[^"]{8,}"', opening), opening
    assert text.count("<svg") == text.count("<figure")
    pictures = re.findall(r"<img[^>]*>", text)
    assert len(pictures) == 6 * 4 + 2  # images, teacher and two students; what two students see
    assert all(re.search(r'alt="[^"]{8,}"', picture) for picture in pictures)


def sections(text: str) -> Iterator[tuple[str, str]]:
    """Title and markup of each section."""
    for part in text.split("<section>")[1:]:
        whole = part.partition("</section>")[0]
        yield re.search(r"<h2>(.*?)</h2>", whole)[1], whole  # type: ignore[index]


def test_ids_are_unique(text: str) -> None:
    ids = Counter(value for _, name, value in Reader(text).attributes if name == "id")
    assert ids and max(ids.values()) == 1


def test_drawings_are_short_and_whole(text: str) -> None:
    """Of the letters that a drawing program writes those that nothing needs are gone."""
    drawings = re.findall(r"<svg.*?</svg>", text, re.S)
    for svg in drawings:
        known = set(re.findall(r'\bid="([^"]*)"', svg))
        used = set(re.findall(r'(?:href="|url\()#([^")]*)', svg))
        assert used <= known
        assert "font-family" not in svg and "none; opacity: 0" not in svg and "<g></g>" not in svg
        assert not re.search(r'\bd="[^"]*\.\d{3}', svg)
    assert sum(map(len, drawings)) / len(drawings) < 7500


def test_words_of_the_user_do_no_harm(text: str, runs: dict[str, Path]) -> None:
    reader = Reader(text)
    alts = [value for tag, name, value in reader.attributes if (tag, name) == ("img", "alt")]
    assert f"test image labelled {SCRIPT}" in alts
    assert "<script" not in text and "alert(1)" in text
    assert "<img src=x" not in text and "<b>run" not in text
    words = " ".join(reader.words)
    for each in (FOLDER, 'no "licence" <i>', "few<img src=x>"):
        assert each in words, each


def test_style_follows_the_scheme_and_the_width(text: str) -> None:
    assert "prefers-color-scheme: dark" in text and 'name="viewport"' in text
    for chart in re.findall(r"<svg.*?</svg>", text, re.S):
        assert not re.findall(r"#[0-9a-fA-F]{6}\b", chart)
        used = set(re.findall(r"var\((--[\w-]+)\)", chart))
        assert used and all(f"{name}:" in text for name in used)


# ---- the numbers --------------------------------------------------------------------------


def test_accuracies_are_those_of_the_results(text: str, runs: dict[str, Path]) -> None:
    tables = Tables(text)
    for name in ("hybrid", "none"):
        rows = json.loads((runs[name] / "results.json").read_text())["rows"]
        known = {r["steps"]: r["accuracy"] for r in rows if r["method"] == name}
        cells = tables.row(name, head="accuracy, %")
        assert cells[1:] == ["\N{EN DASH}", *(f"{100 * known[t]:.1f}" for t in (1, 2))]
    teacher = next(r["accuracy"] for r in rows if r["method"] == "teacher")
    assert tables.row("teacher", head="accuracy, %")[1] == f"{100 * teacher:.1f}"
    lead = text.partition('class="lead">')[2].partition("<")[0].replace("\N{NO-BREAK SPACE}", " ")
    for name in ("hybrid", "none"):
        assert f"{name} {tables.row(name, head='accuracy, %')[3]} % at T = 2" in lead


def test_noise_is_what_was_measured(text: str, found: dict[str, Any]) -> None:
    tables, noise = Tables(text), found["noise"]
    for name, each in noise["networks"].items():
        cells = tables.row(name, head="noise on images")[1:]
        assert cells == [f"{100 * each[key]:.1f}" for key in ("clean", "noisy", "area", "drop")]
    kept = noise["versus"]["none"]["all"]["kept"]
    mean, low, high = (minus(signed(100 * kept[key], 1)) for key in ("mean", "low", "high"))
    assert tables.row("hybrid less none")[-1] == f"{mean} ({low} to {high})"
    assert all(f"Accuracy under {kind} over its level" in text for kind in noise["kinds"])


def test_energy_is_what_was_measured(text: str, found: dict[str, Any]) -> None:
    tables, energy = Tables(text), found["energy"]
    (head,) = (row[0] for row in tables.rows if row and row[0].endswith("per image, fp32"))
    size = {"pJ": 1.0, "nJ": 1e3, "µJ": 1e6, "mJ": 1e9}[head.split()[0]]  # one unit for all
    known = {each["network"]: each["accuracy"] for each in energy["networks"]}
    for row in energy["energy"]:
        if row["precision"] == "fp32" and row["assumption"] != "recomputed":
            share, *cells = tables.row(f"{row['network']}, {row['assumption']}", head=head)[1:]
            assert share == f"{100 * known[row['network']]:.1f}"
            for cell, value in zip(cells, row["sums"].values(), strict=True):
                assert float(cell) == pytest.approx(value / size, rel=6e-3, abs=1e-9)
    words = " ".join(Reader(text).words).replace("\N{NO-BREAK SPACE}", " ")
    for rival in dict.fromkeys(row["rival"] for row in energy["against"]):
        rows = [r for r in energy["against"] if r["rival"] == rival]
        main = next(
            row
            for row in rows
            if (row["assumption"], row["precision"], row["accounting"])
            == ("strict", "fp32", "arithmetic")
        )
        less = "less" if main["student"] < main["other"] else "more"
        assert f"hybrid needs {less} energy than {rival} by all arithmetic" in words
        count = sum(r["student"] < r["other"] for r in rows)
        assert f"It needs less in {count} of {len(rows)} ways to count." in words
    assert " uJ" not in words and "accountings" not in words
    assert {f"costs-0-{n}" for n in range(4)} <= set(re.findall(r"costs-0-\d", text))
    axes = re.findall(r">(\S+) per image</text>", text)
    assert len(axes) == 4 and set(axes) == {head.split()[0]}
    layers = energy["networks"][0]["layers"]
    cells = tables.row(layers[1]["path"], layers[1]["kind"], layers[1]["input"])
    assert cells[3:5] == [f"{layers[1]['dense']:,.0f}", f"{layers[1]['arrivals']:,.0f}"]


def test_saliency_and_health_are_what_was_measured(text: str, found: dict[str, Any]) -> None:
    tables = Tables(text)
    for row in found["saliency"]["similarity"]:
        cells = tables.row(row["network"], head="maps like those of teacher")[1:]
        for cell, key in zip(cells, ("cosine", "spearman", "overlap"), strict=True):
            assert cell.startswith(minus(f"{row[key]['mean']:.2f} ("))
    for number, (path, layer) in enumerate(found["health"]["layers"].items(), 1):
        cells = tables.row(f"{number} {path}")
        assert cells[1] == f"{layer['rate']:.3f}" and cells[2] == f"{100 * layer['dead']:.0f}"
        assert cells[-1] == f"{layer['similarity']['cka']:.2f}"
    count = found["health"]["counts"]["layers"]
    assert re.search(rf"hybrid [\d.]+.%( \(by neuron [\d.]+.%\))? on {count} images", text)
    even = {(r["way"], r["steps"]): r["accuracy"] for r in found["evenness"]["rows"]}
    cells = tables.row("if spikes arrived evenly")
    assert cells[1:] == [f"{100 * even['even spikes', t]:.1f}" for t in (1, 2)]
    lost, count = found["evenness"]["lost"], found["evenness"]["n"]
    shares = even["as it is", 2], even["even spikes", 2]
    chance = 2 * (sum(share * (1 - share) for share in shares) / count) ** 0.5
    near = abs(lost) < chance and round(100 * lost, 1) != 0
    assert (f"no more than chance may give on {count} images" in text) == near
    steps = found["steps"]["networks"]["hybrid"]["by_steps"][-1]
    cells = tables.row("hybrid", "2")
    assert cells[3] == f"{100 * steps['calibration_error']:.1f}"
    assert cells[5] == f"{100 * steps['agreement']:.1f}"


def test_curves_of_training_are_drawn_where_they_lie(text: str, runs: dict[str, Path]) -> None:
    """As many points as epochs, and as far apart as the losses are."""
    epochs = [json.loads(x) for x in (runs["hybrid"] / "metrics.jsonl").read_text().splitlines()]
    part = dict(sections(text))["Training"]
    assert f"hybrid: {len(epochs)} epochs" in part
    row = json.loads((runs["hybrid"] / "results.json").read_text())["rows"][-1]
    price = f"{row['ann_epochs']:.1f} by time and {row['ann_epochs_macs']:.1f} by multiply"
    assert f"in epochs of training the teacher {price}" in part
    charts = re.findall(r"<figure.*?</figure>", part, re.S)
    chart = next(each for each in charts if "loss that is minimised" in each)
    paths = re.findall(r'<path d="([^"]*)" clip-path[^>]*var\(--series-1\)', chart)
    points = [tuple(map(float, xy)) for xy in re.findall(r"([\d.]+) ([\d.]+)", paths[0])]
    assert len(points) == len(epochs)
    losses = [epoch["loss"] for epoch in epochs]
    scale = (points[0][1] - points[-1][1]) / (losses[0] - losses[-1])
    assert scale < 0  # upwards is less in a drawing
    for (_, y), loss in zip(points, losses, strict=True):
        assert y == pytest.approx(points[0][1] + scale * (loss - losses[0]), abs=0.02)


# ---- what the networks show themselves ----------------------------------------------------


def test_a_lost_record_of_the_training_is_said(runs: dict[str, Path], tmp_path: Path) -> None:
    run = tmp_path / "run"
    shutil.copytree(runs["none"], run)
    for content in ('{"epoch": 1, "lo', "[]\n", None):
        (run / "metrics.jsonl").unlink()
        if content is not None:
            (run / "metrics.jsonl").write_text(content)
        said = "its record of the training (metrics.jsonl) is lost or damaged"
        assert said in told_by(run, tmp_path)
        (run / "metrics.jsonl").touch()


def test_maps_are_the_networks_own(runs: dict[str, Path], text: str) -> None:
    loaded = load(runs["none"])
    mine = subject(loaded, loaded.dataset())
    test = mine.dataset.test
    index = [(test.labels == k).nonzero()[0].item() for k in range(6)]
    pixels = mine.normalise(test.images[index].float() / 255)
    maps = input_gradients(mine.student.answer, pixels, test.labels[index])
    for each in maps:
        shown = _coloured(each).float().sum(0)
        assert shown.argmax() == each.argmax()
        order = each.flatten().argsort()
        assert (shown.flatten()[order].diff() >= -1.5).all()  # brighter where it is larger
    assert all(picture(_coloured(each)) in text for each in maps)


def test_drawn_spikes_are_those_of_the_neurons(runs: dict[str, Path]) -> None:
    """Each neuron again by its own scan; it fires where its potential reaches the threshold."""
    loaded = load(runs["hybrid"])
    mine = subject(loaded, loaded.dataset())
    shown = firing(mine)
    images = mine.dataset.test.images
    first = int((mine.dataset.test.labels == 0).nonzero()[0])
    x = mine.normalise(images[first : first + 1].float() / 255)
    net = dict(loaded.net.named_modules())
    path = shown.layers[0].path
    before = [net[f"{path.rpartition('.')[0]}.{place}"] for place in (0, 1)]
    current = before[1](before[0](x))
    neuron = net[path]
    with torch.no_grad():
        run = scan(neuron, torch.stack([current] * mine.steps))
    counts = run.spikes[:, 0].flatten(2).sum(0).amax(1)
    drawn = torch.tensor(shown.layers[0].spikes)
    torch.testing.assert_close(drawn.sum(1), counts[: len(drawn)])
    assert shown.layers[0].neurons == run.spikes[0].numel()
    levels = run.potential / per_channel(neuron.theta, current)
    assert ((levels >= 1) == (run.spikes == 1)).all()
    for trace in shown.traces:
        assert [p >= 1 for p in trace.potentials] == [s == 1 for s in trace.spikes]


def older(run: Path, out: Path) -> Path:
    """A run as earlier versions left it: without images of its own, without sums."""
    copied = shutil.copytree(run, out)
    (copied / EXAMPLES_FILE).unlink()
    results = json.loads((copied / "results.json").read_text())
    results.pop("sums")
    (copied / "results.json").write_text(json.dumps(results))
    return copied


def test_other_data_than_the_run_knew_are_not_shown(
    runs: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = older(runs["none"], tmp_path / "run")
    card = json.loads((run / "card.json").read_text())
    card["data"]["hashes"]["test"] = "0" * 64
    (run / "card.json").write_text(json.dumps(card))
    assert main_report(run) == 0
    assert "the test images are not those of the run" in capsys.readouterr().err
    titles = Tables((run / "report.html").read_text()).titles
    assert "Spikes, step by step" not in titles and "Accuracy over time steps" in titles


def test_images_that_a_run_keeps_are_those_of_its_data(runs: dict[str, Path]) -> None:
    for name in ("teacher", "none"):
        dataset = load(runs[name]).dataset()
        kept = stored_examples(runs[name], len(dataset.classes))
        assert kept is not None
        for image, label in zip(kept.images, kept.labels, strict=True):
            index = int((dataset.test.labels == label).nonzero()[0])
            assert torch.equal(image, dataset.test.images[index])
        assert len(kept) == 6


def test_pictures_need_no_data_that_a_run_was_made_with(
    runs: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They are drawn from the images in the run's folder, the same as from its data."""
    whole, few = tmp_path / "whole.html", tmp_path / "few.html"
    assert main_report(older(runs["none"], tmp_path / "older"), "--out", whole) == 0
    monkeypatch.setattr("finished.few", lambda: 1 / 0)
    assert main_report(runs["none"], "--out", few) == 0
    pictures = [re.findall(r"data:image/png[^\"]*", f.read_text()) for f in (whole, few)]
    assert len(pictures[0]) > 12 and pictures[0] == pictures[1]
    drawn = [sections(f.read_text()) for f in (whole, few)]
    assert dict(drawn[0])["Spikes, step by step"] == dict(drawn[1])["Spikes, step by step"]


def test_a_page_at_the_end_says_how_to_get_pictures_of_older_runs(
    runs: dict[str, Path], tmp_path: Path
) -> None:
    run = older(runs["none"], tmp_path / "run")
    write([run], tmp_path / "page.html", lambda recipe, out: None, live=None)
    text = (tmp_path / "page.html").read_text()
    assert "Spikes, step by step" not in Tables(text).titles
    assert f"spikelet report {shlex.quote(str(run))}" in " ".join(Reader(text).words)


@pytest.mark.parametrize("name", ["model.safetensors", "teacher.safetensors"])
def test_damaged_weights_are_refused_and_what_is_stored_is_not(
    runs: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str
) -> None:
    """One bit is enough; exit 2 says the user can mend it."""
    run = shutil.copytree(runs["none"], tmp_path / "run")
    content = bytearray((run / name).read_bytes())
    content[-5] ^= 1
    (run / name).write_bytes(content)
    (run / "report.html").unlink()
    assert main_report(run) == 2
    said = capsys.readouterr().err
    assert name in said and "damaged" in said and "--stored" in said
    assert not (run / "report.html").exists()
    assert main_report(run, "--stored") == 0
    assert "Spikes, step by step" not in Tables((run / "report.html").read_text()).titles
    (run / name).unlink()  # to save space: a page without pictures
    assert main_report(run) == 0
    assert "could not be run" in capsys.readouterr().err


def test_damaged_images_of_a_run_are_left_out(runs: dict[str, Path], tmp_path: Path) -> None:
    run = shutil.copytree(runs["none"], tmp_path / "run")
    (run / EXAMPLES_FILE).write_bytes(b"no tensors")
    assert main_report(run) == 0  # its data are at hand
    save_weights(run / EXAMPLES_FILE, {"images": torch.zeros(2, 3), "labels": torch.zeros(2)})
    with pytest.raises(UserError, match="no labelled images"):
        stored_examples(run, 10)
    assert stored_examples(runs["none"], 10) is not None
    with pytest.raises(UserError, match="no labelled images"):
        stored_examples(runs["none"], 3)


# ---- what every figure says -----------------------------------------------------------------


def without_a_sentence(text: str) -> list[str]:
    """Titles of the sections that have a figure or pictures and no word on what to look for."""
    found = []
    for part in re.findall(r"<section>(.*?)</section>", text, re.S):
        figure = min((part.find(each) for each in FIGURES if each in part), default=-1)
        look = part.find('<p class="look">Look for ')
        if figure >= 0 and not 0 <= look < figure:
            found.append(re.findall(r"<h2>(.*?)</h2>", part)[0])
    return found


FIGURES = ("<figure", '<table class="gallery', '<span class="bar">', '<table class="answers')


def test_every_figure_says_what_to_look_for(text: str, runs: dict[str, Path]) -> None:
    """Of pages about runs, of a demo's page and of a grid's."""
    assert without_a_sentence(text) == []
    assert without_a_sentence((runs["teacher"] / "report.html").read_text()) == []
    assert without_a_sentence(full()) == []
    none = dict.fromkeys(("difference", "low", "high", "verdict"))
    costs = {"rate": 0.2, "seconds": 1.0, "peak_mib": 9.0}
    rows = [{**row, "kind": "snn", **none, **costs} for row in ROWS if row["steps"]]
    assert without_a_sentence(grid_page(rows, title="A grid")) == []
    bare = re.sub(r'<p class="look">.*?</p>', "", text)
    assert len(without_a_sentence(bare)) >= 8


def test_words_come_before_the_figures(text: str) -> None:
    for page_ in (text, full()):
        assert page_.index("What the words mean") < page_.index("<figure")
        assert page_.count("What the words mean</h2>") == 1


def test_no_axis_of_shares_goes_beyond_a_hundred(text: str) -> None:
    """A network that is always right has room above it and no tick there."""
    assert not re.findall(r">10[1-9](?:\.\d)?</text>", text)
    rows = [{**row, "accuracy": 1.0} for row in ROWS]
    drawn = (
        accuracy_chart(rows, {"none": 0}),
        lines_chart("a", [Line([1, 2, 3], [99.0, 100.0, 100.0], 1)], along="T", up="accuracy, %"),
    )
    for svg in drawn:
        ticks = [float(t) for t in re.findall(r">([\d.]+)</text>", svg)]
        assert max(ticks) == 100


# ---- one network shows nothing of a method --------------------------------------------------


def test_one_pair_of_networks_is_called_that(text: str, found: dict[str, Any]) -> None:
    words = " ".join(Reader(text).words).replace("\N{NO-BREAK SPACE}", " ")
    said = re.findall(r"hybrid beside (\S+), one trained network each:", words)
    assert set(said) == {"teacher", "none"}
    assert words.count("Another seed of the training may turn this around.") == len(said)
    assert "not what another seed of the training would" in words
    assert "beside single networks (another seed may differ), none:" in words
    assert "it keeps" not in words


def test_an_interval_over_seeds_replaces_that_of_a_pair(
    runs: dict[str, Path], tmp_path: Path
) -> None:
    """Stored as `measure RUN noise --versus` with two seeds of both stores it."""
    run = shutil.copytree(runs["hybrid"], tmp_path / "run")
    file = run / "measures" / "noise.json"
    stored = json.loads(file.read_text())
    part = {"mean": 0.02, "low": -0.01, "high": 0.05}
    for name in ("hybrid (2)", "none (2)"):
        stored["networks"][name] = stored["networks"]["none"]
        for kind in stored["kinds"].values():
            kind["networks"][name] = kind["networks"]["none"]
        stored["versus"][name] = stored["versus"]["none"]
    pairs = [["hybrid", "none"], ["hybrid (2)", "none (2)"]]
    row = {"method": "hybrid", "minus": "none", "seeds": [0, 1], "networks": pairs}
    stored["over_seeds"] = [{**row, "clean": part, "noisy": part, "kept": part}]
    stored["notes"] = ["A file is not used: <b>why."]
    file.write_text(json.dumps(stored))
    text = told_by(run, tmp_path)
    part_of_noise = dict(sections(text))["Noise"]
    words = " ".join(Reader(text).words).replace("\N{NO-BREAK SPACE}", " ")
    assert "hybrid beside none over 2 seeds: no difference shown: 2.0 points more" in words
    assert re.findall(r"beside (\S+), one trained", words) == ["teacher"]
    assert Tables(part_of_noise).row("hybrid less none")[1] == "2"
    assert "hybrid (2)" not in part_of_noise.partition("<details>")[0]
    assert "A file is not used: <b>why." in words


def test_a_network_that_does_not_win_is_said_plainly() -> None:
    common = {"assumption": "strict", "precision": "fp32", "accounting": "arithmetic"}
    rows = [
        {**common, "rival": "teacher (dense)", "wins": True},
        {**common, "rival": "mine with 3 levels", "wins": False},
    ]
    dearer = {**rows[0], "accounting": "arithmetic and SRAM", "wins": False}
    run = Told(Path(), default_recipe("distill", {"kind": "digits"}), [], [], {}, {}, {}, "a", "t")
    (both,) = findings(Source(run, {"against": rows}, {}))
    assert "a needs less energy than teacher (dense) in 1 of 1 ways to count;" in both
    assert "it does not win against mine with 3 levels, where it needs more" in both
    (only,) = findings(Source(run, {"against": rows[:1]}, {}))
    assert "does not win" not in only
    (moved,) = findings(Source(run, {"against": [rows[0], dearer]}, {}))
    assert "in 1 of 2 ways to count (with memory 0 of 1)." in moved
    (never,) = findings(Source(run, {"against": rows[1:]}, {}))
    assert "counts, a does not win against mine" in never


def main_report(*words: Path | str) -> int:
    from spikelet.cli import main

    return main(["report", *map(str, words)])


# ---- what is missing ----------------------------------------------------------------------


def test_only_few_findings_are_in_sight(text: str) -> None:
    shown = re.search(r"What it shows</h2>(.*?)</section>", text, re.S)
    assert shown is not None
    seen, _, folded = shown[1].partition("<details>")
    assert seen.count("<li>") == 6 and "its teacher" in seen
    assert f"<summary>{folded.count('<li>')} more</summary>" in folded


def test_first_of_each_chapter_is_told_first() -> None:
    empty = Section("", "", [])
    told = [Chapter(empty, ["a1", "a2", "a3"]), Chapter(empty), Chapter(empty, ["b1", "b2"])]
    assert ranked(told) == ["a1", "b1", "a2", "b2", "a3"]


def test_networks_with_levels_have_a_colour_of_their_own(runs: dict[str, Path]) -> None:
    cast = cast_of(read([runs["hybrid"], runs["none"]]))
    named = ("hybrid", "none", "convert", "hybrid with 3 levels")
    assert len({cast.colour(name) for name in named}) == 4


def test_what_does_not_suit_is_not_asked_for(runs: dict[str, Path], tmp_path: Path) -> None:
    """Saliency of an ANN alone by what it is; what a measure refused by what that left."""
    text = told_by(runs["teacher"], tmp_path)
    line = " ".join(Reader(dict(sections(text))["Not measured yet"]).words)
    assert "noise" in line and "saliency" not in line and "evenness" not in line
    run = shutil.copytree(runs["none"], tmp_path / "run")
    loaded = load(run)
    few = subject(loaded, loaded.dataset()).cut(20)

    def telling(name: str) -> Any:
        return contextlib.nullcontext(lambda done, total, words: None)

    def refused(*_: object) -> dict[str, Any]:
        raise UserError("measure noise", "<b>no", "leave it")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("spikelet.examine.noise.examine", refused)
        assert set(work(few, ["noise"], None, telling)[1]) == {"noise"}
    text = told_by(run, tmp_path)
    line = " ".join(Reader(dict(sections(text))["Not measured yet"]).words)
    assert "noise of none was left out: `measure noise`: <b>no; leave it." in line
    assert "noise" not in line[line.index("spikelet measure") :]
    assert set(work(few, ["energy"], None, telling)[0]) == {"energy"}
    assert set(left_out(run)) == {"noise"}


def told_by(run: Path, folder: Path) -> str:
    """The page of a run from what is stored."""
    out = folder / "page.html"
    assert quiet("report", str(run), "--stored", "--out", str(out)) == 0
    return out.read_text(encoding="utf-8")


def test_a_measure_of_few_images_is_marked(runs: dict[str, Path], tmp_path: Path) -> None:
    run = shutil.copytree(runs["none"], tmp_path / "run")
    assert quiet("measure", str(run), "steps", "--images", "20") == 0
    stored = json.loads((run / "measures" / "steps.json").read_text())
    assert {row["images"] for row in stored["rows"]} == {20}
    assert (stored["settings"]["images"], stored["settings"]["of"]) == (20, 100)
    text = told_by(run, tmp_path)
    assert "on the first 20 of 100 test images" in text
    whole = json.loads((run / "results.json").read_text())["rows"][-1]["accuracy"]
    assert Tables(text).row("none", head="accuracy, %")[-1] == f"{100 * whole:.1f}"


def test_page_of_a_teacher_has_its_training_and_its_line(runs: dict[str, Path]) -> None:
    """`teach` wrote it."""
    text = (runs["teacher"] / "report.html").read_text()
    assert {"Accuracy", "Training", "How it was made"} <= set(Tables(text).titles)
    words = " ".join(Reader(text).words)
    assert "spikelet teach" in words and "small-cnn of width 4" in words


def test_distill_leaves_a_page_that_names_what_is_missing(runs: dict[str, Path]) -> None:
    text = (runs["none"] / "report.html").read_text()
    titles = Tables(text).titles
    assert {"Accuracy over time steps", "Training", "Health of the layers"} <= set(titles)
    assert {"What the networks look at", "Spikes, step by step"} <= set(titles)
    assert not {"Noise", "Energy and accuracy"} & set(titles)
    line = " ".join(Reader(dict(sections(text))["Not measured yet"]).words)
    words = shlex.split(line[line.index("spikelet measure") :].replace("\\\n", " "))
    assert words[2] == str(runs["none"]) and words[3:] == list(MEASURES)


def test_page_of_an_ann_and_of_quantised_activations(runs: dict[str, Path]) -> None:
    for name, kind in (("teacher", "an ordinary network"), ("qann", "a quantised network")):
        assert quiet("report", str(runs[name])) == 0
        text = (runs[name] / "report.html").read_text()
        titles = Tables(text).titles
        assert "Training" in titles
        assert not {"Spikes, step by step", "Health of the layers"} & set(titles)
        assert kind in text and "health" not in dict(sections(text))["Not measured yet"]
        Reader(text)


def test_json_names_the_file(
    runs: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "deep" / "page.html"
    assert main_report(runs["qann"], "--out", out, "--stored", "--json") == 0
    assert json.loads(capsys.readouterr().out) == {"schema": 1, "file": str(out)}
    assert out.exists()


@pytest.mark.parametrize(
    "words, said",
    [
        (("teacher", "none"), "--out"),
        (("none", "none", "--out", "x.html"), "named twice"),
        (("nowhere",), "there is no run in this folder"),
        (("none", "--out", "."), "it is a folder"),
        ((), "RUN"),
    ],
)
def test_mistakes_are_told(
    runs: dict[str, Path], words: tuple[str, ...], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main_report(*(runs.get(word, word) for word in words)) == 2
    assert said in capsys.readouterr().err


def test_a_measure_of_another_kind_is_named(
    runs: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = shutil.copytree(runs["none"], tmp_path / "run")
    (run / "measures").mkdir()
    (run / "measures" / "noise.json").write_text('{"measure": "noise", "kinds": 1}')
    assert main_report(run, "--stored") == 2
    assert "noise.json" in capsys.readouterr().err
    (run / "measures" / "noise.json").write_text("{")
    assert main_report(run, "--stored") == 2
    assert "noise.json" in capsys.readouterr().err


def test_a_measure_of_the_users_own_is_shown(runs: dict[str, Path], tmp_path: Path) -> None:
    run = shutil.copytree(runs["none"], tmp_path / "run")
    (run / "measures").mkdir()
    content = {"measure": "mine:of", "value": "<i>4711</i>"}
    (run / "measures" / "mine.of.json").write_text(json.dumps(content))
    assert main_report(run, "--stored") == 0
    text = (run / "report.html").read_text()
    assert "&lt;i&gt;4711" in text and "<i>4711" not in text


@pytest.mark.parametrize("package", ["jinja2", "matplotlib"])
def test_without_its_packages_a_run_stays_finished(
    runs: dict[str, Path], package: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from rich.console import Console

    run = shutil.copytree(runs["none"], tmp_path / "run")
    (run / "report.html").unlink()
    monkeypatch.setitem(sys.modules, package, None)
    console = Console(record=True, width=300)
    assert beside(str(run), console) is None
    said = console.export_text().splitlines()
    assert len(said) == 1 and f"{package} is not installed" in said[0]
    assert not (run / "report.html").exists()


# ---- names --------------------------------------------------------------------------------


def told(path: str, method: str, steps: int, guide: str, task: str = "distill") -> Told:
    """A run of which only what names it is known."""
    data = {"kind": "digits"}
    fields = {} if task == "teach" else {"teacher": {"run": "t"}, "steps": steps}
    recipe = default_recipe(task, data, method, **fields)
    card = {"sha256": guide} if task == "teach" else {"sha256": path, "teacher": {"sha256": guide}}
    return Told(Path(path), recipe, [], [], card, {}, {}, "", None)


def test_runs_have_names_of_their_own() -> None:
    named = called([told("a", "hybrid", 4, "x"), told("b", "none", 4, "x")])
    assert [run.label for run in named] == ["hybrid", "none"]
    assert {run.teacher for run in named} == {"teacher"}
    named = called([told("a", "hybrid", 4, "x"), told("b", "hybrid", 2, "x")])
    assert [run.label for run in named] == ["hybrid (T = 4)", "hybrid (T = 2)"]
    late = told("c", "hybrid", 2, "x")
    late = dataclasses.replace(
        late, recipe=dataclasses.replace(late.recipe, neuron={"kind": "IF", "delay": 1})
    )
    assert late.single and not told("a", "hybrid", 2, "x").single
    named = called([told("a", "hybrid", 2, "x"), late])
    assert [run.label for run in named] == ["hybrid", "hybrid (layers 1 step late)"]
    biased = dataclasses.replace(late.recipe, neuron={"kind": "IF", "step_bias": True})
    assert dataclasses.replace(late, recipe=biased).traits == "a bias for each step"
    named = called([told("a", "hybrid", 2, "x"), told("b", "hybrid", 4, "x"), late])
    labels = ["hybrid (T = 2)", "hybrid (T = 4)", "hybrid (layers 1 step late)"]
    assert [run.label for run in named] == labels
    (note,) = accuracy_notes(cast_of(named))
    assert f"{labels[2]}: layers begin late, so that only the T of the training" in str(note)
    drawn = dataclasses.replace(
        late, recipe=dataclasses.replace(late.recipe, encode={"kind": "mixed", "least": 2}, steps=4)
    )
    assert not drawn.single
    named = called([told("a", "hybrid", 4, "x"), drawn])
    traits = "layers 1 step late, trained for T = 2 to 4"
    assert [run.label for run in named] == ["hybrid", f"hybrid ({traits})"]
    named = called([told("p/a", "hybrid", 4, "x"), told("q/a", "hybrid", 4, "y")])
    assert [run.label for run in named] == ["hybrid (1)", "hybrid (2)"]
    assert [run.teacher for run in named] == ["teacher (1)", "teacher (2)"]
    named = called([told("t", "", 1, "x", "teach"), told("b", "none", 4, "x")])
    assert [run.label for run in named] == ["teacher", "none"]
    assert colours(named) == {"teacher": 0, "none": 1}


def test_networks_in_a_measure_are_those_of_the_page(tmp_path: Path) -> None:
    """Whatever the folder was called from where it was measured."""
    found = {"settings": {"versus": {"hybrid (b)": "runs/b", "none": "elsewhere"}}}
    pair = [told(str(tmp_path / "runs" / name), "hybrid", 4, "x") for name in "ab"]
    mine = dataclasses.replace(pair[0], measures={"noise": found})
    (source,) = sources(called([mine, pair[1]]), "noise")
    assert source.label("hybrid") == "hybrid (a)"
    assert source.label("hybrid (b)") == "hybrid (b)"
    assert source.label("hybrid with 5 levels") == "hybrid (a) with 5 levels"
    assert (source.label("none"), source.label("teacher")) == ("none", "teacher")


# ---- the command that makes a run again ---------------------------------------------------


def recipes(runs: dict[str, Path]) -> Iterator[Recipe]:
    """Recipes of every method, with leaves of every kind."""
    data, teacher = {"kind": "digits", "train": 200}, {"run": str(runs["teacher"])}
    changes = (
        "--training.clip none --training.ema 0.99 --training.precision bf16 --norm frozen",
        "--neuron.kind LIF --neuron.tau 1.5 --neuron.surrogate.kind arctangent",
        "--augment none --execute.kind bptt --encode.kind latency --joint True",
        "--terms.extra.kind relation --terms.extra.weight 2.5 --start scratch --calibrate 64",
    )
    for number, method in enumerate(METHODS):
        recipe = default_recipe("distill", data, method, teacher=teacher, seed=number)
        if method != "qann":  # which has its own way of running
            recipe = overridden(recipe, leaves_of(changes[number % len(changes)]))
        yield recipe


def leaves_of(line: str) -> list[Leaf]:
    """The leaves of a line of flags, dotless ones of the recipe itself too."""
    flags = [part.split() for part in f" {line}".split(" --")[1:]]
    return [Leaf(name.replace("-", "_"), tuple(words), f"--{name}") for name, *words in flags]


def test_command_describes_the_same_recipe(runs: dict[str, Path]) -> None:
    for recipe in recipes(runs):
        line = command_of(recipe, "a folder")
        assert line is not None, recipe
        for words in (shlex.split(line), shlex.split(wrapped(line).replace("\\\n", ""))):
            assert words[:2] == ["spikelet", "distill"] and words[-1] == "a folder"
            rest, leaves = split(words[2:])
            again = recipe_of(parse("distill", rest), leaves)
            assert dataclasses.replace(again, method=recipe.method) == recipe


def test_the_control_of_a_run_is_named_until_it_is_there(
    runs: dict[str, Path], tmp_path: Path
) -> None:
    def words(text: str) -> str:
        return " ".join(Reader(text).words).replace("\N{NO-BREAK SPACE}", " ")

    said = "seen beside the same training on the labels alone"
    alone = words(told_by(runs["hybrid"], tmp_path))
    assert said in alone and "--method none --steps 2" in alone
    assert said not in words(told_by(runs["none"], tmp_path))
    both = tmp_path / "both.html"
    assert quiet("report", *map(str, (runs["hybrid"], runs["none"])), "--out", str(both)) == 0
    assert said not in words(both.read_text(encoding="utf-8"))


def test_command_of_the_runs_and_of_what_no_flag_says(runs: dict[str, Path]) -> None:
    for name, run in runs.items():
        line = command_of(read_recipe(run), "out")
        assert line is not None and line.startswith("spikelet"), name
    recipe = read_recipe(runs["none"])
    fewer = default_recipe("distill", recipe.data, "logits", teacher=recipe.teacher)
    fewer = dataclasses.replace(fewer, terms={"ce": {"kind": "cross-entropy"}})
    assert command_of(fewer, "out") is None
    gone = dataclasses.replace(recipe, teacher={"run": "/nowhere/at/all"})
    assert command_of(gone, "out") is None


def test_unfinished_run_is_told_how_to_go_on(runs: dict[str, Path], tmp_path: Path) -> None:
    run = shutil.copytree(runs["none"], tmp_path / "run")
    (run / "results.json").unlink()
    with pytest.raises(UserError, match="--resume"):
        read([run])


def test_a_place_that_cannot_be_written_is_one_sentence(
    capsys: pytest.CaptureFixture[str], runs: dict[str, Path]
) -> None:
    from spikelet.cli import main

    first = str(next(iter(runs.values())))
    assert main(["report", first, "--stored", "--out", "/dev/null/x.html"]) == 2
    assert "--out" in capsys.readouterr().err
