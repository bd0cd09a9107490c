"""The report page: complete in itself, readable by machines, and saying only what is shown."""

from __future__ import annotations

import base64
import io
import re
import sys
from collections import Counter
from collections.abc import Sequence
from html.parser import HTMLParser
from typing import Any

import pytest
import torch

from spikelet.errors import UserError
from spikelet.report import Example, at, comparison, hardware, named, page, sentences, verdict
from spikelet.report.charts import accuracy_chart, dots_chart
from spikelet.report.findings import signed
from spikelet.report.page import picture
from spikelet.report.parts import Section
from spikelet.report.plots import (
    Cost,
    Line,
    costs_chart,
    lines_chart,
    raster_chart,
    traces_chart,
    unit_of,
)

pytest.importorskip("jinja2")
pytest.importorskip("matplotlib")

VOID = {"meta", "link", "img", "br", "hr", "path", "use", "line", "rect"}


def row(
    method: str, steps: int | None, accuracy: float, std: float | None = 0.01
) -> dict[str, Any]:
    common = {"n": 5 if std is not None else 1, "seed": None, "split": "test"}
    return {"method": method, "steps": steps, "accuracy": accuracy, "std": std, **common}


ROWS = [row("teacher", None, 0.9712)] + [
    row(method, t, base + 0.01 * t)
    for method, base in (("convert", 0.81), ("none", 0.85), ("hybrid", 0.87))
    for t in (1, 2, 4)
]
DIFFERENCES = [
    comparison("hybrid", "none", 1, [0.90, 0.91, 0.92], [0.88, 0.89, 0.901]),
    comparison("hybrid", "none", 2, [0.90, 0.91, 0.92], [0.91, 0.90, 0.921]),
    comparison("hybrid", "convert", 1, [0.80, 0.81, 0.82], [0.90, 0.91, 0.921]),
]
HEALTH = {"layer1.2": {"rate": 0.25, "dead": 0.125, "saturated": 0.0}}
EXAMPLE = Example(
    torch.arange(64, dtype=torch.uint8).view(1, 8, 8), "3", {"teacher": "3", "T = 1": "8"}
)


@pytest.fixture(scope="module")
def text() -> str:
    return full()


def full(sections: Sequence[Section] = ()) -> str:
    return page(
        ROWS,
        DIFFERENCES,
        {"none": [0.5, 0.7], "hybrid": [0.6, 0.8]},
        HEALTH,
        title="A <b>title</b>",
        lead="What was done.",
        findings=sentences(ROWS, DIFFERENCES, "hybrid"),
        default="hybrid",
        examples={"Some images:": [EXAMPLE]},
        notes={"accuracy": "On 10 images."},
        made={"command": "spikelet demo", "seeds": "5"},
        sections=sections,
    )


class Reader(HTMLParser):
    """Collects tags, attributes and text, and checks that tags close in order."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.attributes: list[tuple[str, str, str]] = []
        self.words: list[str] = []
        self.feed(text)
        assert not self.open

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.attributes += [(tag, name, value or "") for name, value in attrs]
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.attributes += [(tag, name, value or "") for name, value in attrs]

    def handle_endtag(self, tag: str) -> None:
        if tag not in VOID:
            assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.words.append(data)


def test_page_is_well_formed_and_needs_nothing_else(text: str) -> None:
    reader = Reader(text)
    assert "script" not in {tag for tag, _, _ in reader.attributes} and "<script" not in text
    for tag, name, value in reader.attributes:
        if name in ("src", "href", "xlink:href", "srcset", "data"):
            assert value.startswith(("#", "data:")), (tag, name, value)
    bare = re.sub(r'xmlns(:\w+)?="[^"]*"', "", text)
    assert "://" not in bare and "@import" not in bare
    assert all(value.startswith("#") for value in re.findall(r"url\(([^)]*)\)", bare))


def test_ids_are_unique(text: str) -> None:
    ids = Counter(value for _, name, value in Reader(text).attributes if name == "id")
    assert ids and max(ids.values()) == 1


def test_charts_take_their_colours_from_the_page(text: str) -> None:
    charts = re.findall(r"<svg.*?</svg>", text, re.S)
    assert len(charts) == 3
    for chart in charts:
        assert not re.findall(r"#[0-9a-fA-F]{6}\b", chart)
        used = set(re.findall(r"var\((--[\w-]+)\)", chart))
        assert used and all(f"{name}:" in text for name in used)


def test_words_of_the_user_are_escaped(text: str) -> None:
    assert "<b>title" not in text and "A &lt;b&gt;title" in text


def test_page_says_every_number(text: str) -> None:
    words = " ".join(Reader(text).words)
    for each in ROWS:
        assert f"{100 * each['accuracy']:.1f}" in words
    for each in ("Wrong answers are underlined", "0.250", "spikelet demo", "On 10 images."):
        assert each in words


def test_page_is_the_same_each_time(text: str) -> None:
    assert full() == text


def test_page_of_a_teacher_alone_and_of_one_seed() -> None:
    Reader(page([row("teacher", None, 0.9, None)], title="teacher"))
    single = [row("teacher", None, 0.9, None), row("logits", 4, 0.8, None)]
    text = page(single, title="one seed", default="logits")
    assert "±" not in text.replace("± standard", "") and "80.0" in text
    Reader(text)


def test_settings_of_matplotlib_are_put_back() -> None:
    import matplotlib

    before = dict(matplotlib.rcParams)
    page(ROWS, title="t")
    assert dict(matplotlib.rcParams) == before


@pytest.mark.parametrize("package", ["jinja2", "matplotlib"])
def test_a_missing_package_is_named(monkeypatch: pytest.MonkeyPatch, package: str) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(UserError, match=f"{package} is not installed"):
        page(ROWS, title="t")


@pytest.mark.parametrize("channels", [1, 3])
def test_picture_is_a_png_of_the_image(channels: int) -> None:
    from matplotlib.image import imread

    image = torch.randint(256, (channels, 5, 7), dtype=torch.uint8)
    kind, _, data = picture(image).partition(",")
    assert kind == "data:image/png;base64"
    read = torch.from_numpy(imread(io.BytesIO(base64.b64decode(data)), format="png"))
    expected = image.float().div(255).permute(1, 2, 0).squeeze(2)
    torch.testing.assert_close(read, expected)


def test_picture_refuses_other_tensors() -> None:
    with pytest.raises(UserError, match="uint8"):
        picture(torch.zeros(1, 8, 8))


@pytest.mark.parametrize(
    "low, high, expected",
    [
        (0.1, 0.2, "better"),
        (-0.2, -0.1, "worse"),
        (-0.1, 0.2, "no difference shown"),
        (0.0, 0.2, "no difference shown"),
        (0.0, 0.0, "no difference shown"),
        (0.1, 0.1, "no difference shown"),
    ],
)
def test_verdict_needs_an_interval_without_zero(low: float, high: float, expected: str) -> None:
    assert verdict(low, high) == expected


def test_sentences_say_what_is_shown_and_what_is_not() -> None:
    said = sentences(ROWS, DIFFERENCES, "hybrid")
    assert said[0].startswith("The teacher, an ordinary network, answers 97.1 % of the test images")
    assert said[1] == (
        "The spiking student trained with hybrid reaches "
        "88.0 % at T = 1, 89.0 % at T = 2 and 91.0 % at T = 4."
    )
    assert "better at T = 1 (+2.0 points" in said[2] and "no difference shown at T = 2" in said[2]
    assert said[3].startswith("Against convert, hybrid: worse at T = 1")


def test_spiking_teacher_is_called_one() -> None:
    """Never an ANN, and in the part of its own T alone."""
    taught = [{**row("teacher", None, 0.5 + t / 100), "kind": f"snn, T = {t}"} for t in (1, 2)]
    still = {**row("teacher", None, 0.9), "kind": "ann"}
    assert [named(each) for each in (*taught, still, row("none", 1, 0.5))] == [
        "teacher (spiking, T = 1)",
        "teacher (spiking, T = 2)",
        "teacher",
        "none",
    ]
    noted = {**taught[0], "note": "after joint training"}
    assert named(noted) == "teacher (spiking, T = 1, after joint training)"
    students = [row("none", t, 0.5) for t in (1, 2)]
    assert at(2, [*taught, *students]) == [taught[1], students[1]]
    assert at(2, [still, *students]) == [still, students[1]]
    assert "a spiking network at T = 1, answers" in sentences(taught, [], "none")[0]
    words = " ".join(Reader(page([taught[0], *students], title="t", default="none")).words)
    assert "ordinary network (ANN) that" not in words and "without time steps" not in words
    assert "teacher (spiking, T\N{NO-BREAK SPACE}=\N{NO-BREAK SPACE}1)" in words
    words = " ".join(Reader(page([still, *students], title="t", default="none")).words)
    assert "ordinary network" in words and "without time steps" in words


def test_bars_of_accuracy_end_with_its_scale() -> None:
    """An interval of two seeds may go beyond 100 %; the axis does not."""
    dots = [{"name": "none", "value": 0.9, "half": 3.0, "filled": True}]
    drawn = [dots_chart("a", dots, within=within) for within in (None, (0, 100))]
    ticks = [[float(x) for x in re.findall(r">(\d+)</text>", text)] for text in drawn]
    assert max(ticks[0]) > 100 and max(ticks[1]) == 100


def texts(svg: str) -> list[str]:
    """The words in a drawing."""
    return re.findall(r">([^<>]+)</text>", svg)


def test_labels_of_many_steps_do_not_run_into_each_other() -> None:
    rows = [row("none", t, 0.5 + t / 100, None) for t in range(1, 33)]
    named_steps = [int(word) for word in texts(accuracy_chart(rows, {"none": 0})) if word.isdigit()]
    shown = sorted(t for t in named_steps if t <= 32)
    assert {1, 2, 4, 8, 16, 32} <= set(shown) and len(shown) < 20
    few = accuracy_chart([row("none", t, 0.5, None) for t in (1, 2, 3, 4)], {"none": 0})
    assert {"1", "2", "3", "4"} <= set(texts(few))


def test_knee_has_a_ring_and_names_may_hold_dollars() -> None:
    rows = [row("$a^b$", t, 0.5 + t / 100, None) for t in (1, 2)]
    plain, ringed = (accuracy_chart(rows, {"$a^b$": 0}, knees) for knees in (None, {"$a^b$": 2}))
    assert "$a^b$" in texts(plain) and "$a^b$" in texts(ringed)
    assert ringed.count("<use ") == plain.count("<use ") + 1


def test_spikes_are_drawn_one_by_one_and_those_taken_back_apart() -> None:
    spikes = [[1, 0, -1, 1], [0, 0, 0, 0], [1, 1, 0, 0]]
    drawn = raster_chart("raster", spikes, 1)
    bars = re.findall(r'<path d="M [\d.]+ [\d.]+\s+L [\d.]+ [\d.]+\s+" clip-path[^>]*', drawn)
    colours = Counter(re.search(r"--series-\d", bar)[0] for bar in bars)  # type: ignore[index]
    assert colours == {"--series-1": 4, "--series-5": 1}


def test_trace_marks_where_a_neuron_fires() -> None:
    drawn = traces_chart("trace", [0.4, 1.3, 1.1, -0.2], [0, 1, 1, -1], 2)
    filled = drawn.count("fill: var(--series-2)")
    empty = drawn.count("fill: none") + drawn.count('fill="none"')
    assert filled >= 2 and empty >= 2


def test_costs_have_a_unit_that_suits_them() -> None:
    strict, loose = {"strict": 2e6, "favourable": 4e5}, {"dense": 9e6}
    costs = [Cost("snn", strict, 0.9, 1), Cost("ann", loose, None, 0, spikes=False)]
    drawn = costs_chart("costs", costs)
    assert "µJ per image" in texts(drawn) and "1" in texts(drawn)
    assert "nJ per image" in texts(costs_chart("costs", [Cost("snn", {"strict": 9e5}, 0.5, 1)]))


def test_lines_leave_out_what_is_not_known_and_stand_on_zero() -> None:
    lines = [Line([0, 1, 2], [None, 0.0, 0.0], 1)]
    drawn = lines_chart("lines", lines, along="layer", up="%", ticks=["1", "", "3"], grounded=True)
    values = [float(word.replace("\N{MINUS SIGN}", "-")) for word in texts(drawn) if "." in word]
    assert min(values) == 0 and max(values) == 1
    drawn = lines_chart("lines", [Line([0, 1], [-0.5, 1.0], 1)], along="a", up="b", grounded=True)
    assert "\N{MINUS SIGN}0.5" in texts(drawn)


def test_one_run_claims_no_difference() -> None:
    assert "nothing is claimed" in sentences(ROWS, [], "hybrid")[-1]


def test_hardware_is_named() -> None:
    assert re.match(r"\d+ cores of .+, \w+ \w+", hardware())


@pytest.mark.parametrize(
    "value, digits, said", [(-0.001, 2, "0.00"), (0.0, 1, "0.0"), (-0.06, 1, "-0.1"), (2, 0, "+2")]
)
def test_nothing_has_no_sign(value: float, digits: int, said: str) -> None:
    assert signed(value, digits) == said


def test_costs_of_several_charts_have_one_unit() -> None:
    small, large = Cost("snn", {"strict": 9e5}, 0.5, 1), Cost("snn", {"strict": 9e6}, 0.5, 1)
    unit = unit_of([small, large])
    assert unit == ("µJ", 1e6)
    assert all("µJ per image" in texts(costs_chart("c", [each], unit)) for each in (small, large))
