"""The page about finished runs: their sections as one HTML file that needs nothing else."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from spikelet.report.page import SHOWN, template, unbroken
from spikelet.report.parts import Section


def run_page(
    sections: Sequence[Section],
    *,
    title: str,
    lead: str = "",
    tiles: Sequence[Mapping[str, Any]] = (),
    findings: Sequence[str] = (),
) -> str:
    """One self-contained HTML page: no script, no request, light and dark.

    Args:
        sections: in order.
        title, lead: headline, and what was done in a sentence.
        tiles: `name`, and `value`: a share, or words.
        findings: sentences, the most important first: those behind the first few are folded.

    Raises:
        UserError: if jinja2 is missing.
    """
    return template("run.html.j2").render(
        title=unbroken(title),
        lead=unbroken(lead),
        tiles=tiles,
        findings=findings,
        shown=SHOWN,
        sections=sections,
        made={},
    )
