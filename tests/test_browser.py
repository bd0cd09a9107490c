"""Every kind of page in a real browser: silent, alone, and no wider than the screen."""

from __future__ import annotations

import base64
import re
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

pytest.importorskip("sklearn", reason="scikit-learn is not installed: no digits")
pytest.importorskip("jinja2")
pytest.importorskip("matplotlib")

from chromium import Page, found, opened
from finished import make, quiet
from spikelet.report import grid_page
from spikelet.report.parts import Section
from spikelet.story import close_up
from test_report import full

PROGRAM = found()
NAMES = ("run", "runs", "teacher", "comparison", "grid")
# text that is wider than its own box and neither wraps nor scrolls
SPILLED = """
[...document.querySelectorAll('main *')].filter(e => {
  const box = e.getBoundingClientRect();
  if (!box.width || e.closest('.wide, pre, svg')) return false;
  return box.right > document.documentElement.clientWidth + 1 || box.left < -1;
}).map(e => e.tagName + ': ' + e.textContent.slice(0, 40))
"""
SMALLEST = """
Math.min(...[...document.querySelectorAll('svg text')].filter(e => e.textContent.trim())
  .map(e => e.getBoundingClientRect().height))
"""
CUT = """
[...document.querySelectorAll('svg')].flatMap(svg => {
  const box = svg.getBoundingClientRect();
  return [...svg.querySelectorAll('text')].filter(text => {
    const own = text.getBoundingClientRect();
    return own.left < box.left - 2 || own.right > box.right + 2 || own.bottom > box.bottom + 2;
  }).map(text => text.textContent);
})
"""
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(PROGRAM is None, reason="no Chromium here: apt-get install chromium"),
]


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A page of each kind."""
    folder = tmp_path_factory.mktemp("pages")
    runs = make(folder)
    pages = {name: folder / f"{name}.html" for name in NAMES}
    assert quiet("report", str(runs["hybrid"]), "--out", str(pages["run"])) == 0
    both = str(runs["hybrid"]), str(runs["none"])
    assert quiet("report", *both, "--out", str(pages["runs"])) == 0
    pages["teacher"].write_bytes((runs["teacher"] / "report.html").read_bytes())
    closer = close_up([runs["hybrid"], runs["none"]], look="Two runs.")
    pages["comparison"].write_text(full(closer), encoding="utf-8")
    pages["grid"].write_text(grid(closer), encoding="utf-8")
    return pages


def grid(closer: Sequence[Section]) -> str:
    """The page of a small grid."""
    common = {"n": 3, "seed": None, "split": "test", "rate": 0.2, "seconds": 1.0, "peak_mib": 9.0}
    rows = [
        {"method": m, "steps": 2, "accuracy": 0.8, "std": 0.01, "kind": "snn", **common, **more}
        for m, more in {
            "none": dict.fromkeys(("difference", "low", "high", "verdict")),
            "hybrid": {"difference": 0.01, "low": 0.005, "high": 0.02, "verdict": "better"},
        }.items()
    ]
    return grid_page(rows, title="A grid", made={"data": "digits"}, sections=closer)


@pytest.fixture(scope="module")
def page() -> Iterator[Page]:
    """An open browser."""
    assert PROGRAM is not None
    with opened(PROGRAM) as shown:
        yield shown


def printed(page: Page, state: str) -> int:
    """How many sheets of paper a page is, with its folds open or not."""
    page.value(f"document.querySelectorAll('details').forEach(d => d.open = {state})")
    pdf = base64.b64decode(page.ask("Page.printToPDF", printBackground=True)["data"])
    return len(re.findall(rb"/Type\s*/Page\b", pdf))


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [1280, 390])
@pytest.mark.parametrize("name", NAMES)
def test_page_in_a_browser(
    page: Page, files: dict[str, Path], name: str, width: int, scheme: str
) -> None:
    page.show(files[name], width, scheme)
    assert page.complaints == []
    own = files[name].resolve().as_uri()
    assert own in page.requests
    assert all(address == own or address.startswith("data:") for address in page.requests)
    for state in (False, True):
        folds = f"document.querySelectorAll('details').forEach(d => d.open = {str(state).lower()})"
        page.value(folds)
        assert page.value("document.documentElement.scrollWidth") == width
        assert page.value(SPILLED) == []
    assert page.value(CUT) == []
    assert page.value(SMALLEST) >= (6 if name in ("comparison", "grid") else 9)
    assert page.value("[...document.images].every(i => i.complete && i.naturalWidth > 0)")


def test_a_bad_page_is_noticed(page: Page, tmp_path: Path) -> None:
    """What the checks above look for, all in one page."""
    bad = tmp_path / "bad.html"
    bad.write_text(
        "<main><p style='width: 3000px'>wide</p><svg width=50 height=20 style='overflow: visible'>"
        "<text x=48 y=10 font-size=3>beyond</text></svg><img src='http://127.0.0.1:9/x.png'>"
        "<script>console.error('no')</script></main>"
    )
    page.show(bad, 390, "light")
    assert any("no" in words for words in page.complaints)
    assert "http://127.0.0.1:9/x.png" in page.requests
    assert page.value("document.documentElement.scrollWidth") > 390
    assert page.value(SPILLED) and page.value(CUT) == ["beyond"] and page.value(SMALLEST) < 6


@pytest.mark.parametrize("name", NAMES)
def test_text_stands_out_in_both_schemes(page: Page, files: dict[str, Path], name: str) -> None:
    """Contrast of 4.5 and more (WCAG 2, AA) of ink, muted words, findings and series."""
    papers = {}
    for scheme in ("light", "dark"):
        page.show(files[name], 1280, scheme)
        papers[scheme] = colour(page, "--paper")
        names = ("ink", "muted", "good", "bad", *(f"series-{n}" for n in range(1, 7)))
        for each in names:
            ratio = contrast(colour(page, f"--{each}"), papers[scheme])
            assert ratio >= 4.5, (scheme, each, ratio)
    assert luminance(papers["light"]) > 0.8 and luminance(papers["dark"]) < 0.1


def colour(page: Page, variable: str) -> str:
    """A colour of the page, as #rrggbb."""
    wanted = f"getComputedStyle(document.documentElement).getPropertyValue('{variable}').trim()"
    return str(page.value(wanted))


def luminance(colour: str) -> float:
    """Relative luminance of #rrggbb (WCAG 2)."""
    parts = [int(colour[place : place + 2], 16) / 255 for place in (1, 3, 5)]
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in parts]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def contrast(one: str, other: str) -> float:
    dark, light = sorted(luminance(each) for each in (one, other))
    return (light + 0.05) / (dark + 0.05)


def test_page_prints_on_light_paper_what_is_open(page: Page, files: dict[str, Path]) -> None:
    page.show(files["run"], 1280, "dark")
    page.ask("Emulation.setEmulatedMedia", media="print")
    assert luminance(colour(page, "--paper")) > 0.8
    shut, wide = (printed(page, state) for state in ("false", "true"))
    assert 3 <= shut <= 12 < wide
    page.ask("Emulation.setEmulatedMedia", media="")
