"""Numbers as the page writes them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from spikelet.report.findings import percent, points

NONE = "\N{EN DASH}"
TO = "\N{NO-BREAK SPACE}to\N{NO-BREAK SPACE}"  # an interval stays on one line


def share(value: float | None) -> str:
    """0.9642 as "96.4"."""
    return NONE if value is None else f"{100 * value:.1f}"


def plain(value: float | None, digits: int = 3) -> str:
    """A number with so many digits behind the point, with a minus sign."""
    if value is None:
        return NONE
    text = f"{value:.{digits}f}"
    return text.replace("-", "\N{MINUS SIGN}") if float(text) else text.lstrip("-")


def counted(number: int, what: str) -> str:
    """ "1 epoch", "2 epochs"."""
    return f"{number} {what}{'' if number == 1 else 's'}"


def spread(found: Mapping[str, Any], digits: int = 2) -> str:
    """A mean with its interval: "0.60 (0.59 to 0.62)"."""
    if found["mean"] is None:
        return NONE
    mean, low, high = (plain(found[name], digits) for name in ("mean", "low", "high"))
    return f"{mean} ({low}{TO}{high})"


def point_spread(found: Mapping[str, Any]) -> str:
    """A difference of shares in points, with its interval."""
    if found["mean"] is None:
        return NONE
    return f"{points(found['mean'])} ({points(found['low'])}{TO}{points(found['high'])})"


def joules(picojoules: float) -> str:
    """An energy per image in nanojoules, microjoules or millijoules."""
    for unit, size in (("nJ", 1e3), ("µJ", 1e6), ("mJ", 1e9)):
        if picojoules < 1000 * size or unit == "mJ":
            return f"{picojoules / size:#.3g}".rstrip(".") + f" {unit}"
    raise AssertionError(picojoules)


def shown(found: Mapping[str, Any]) -> str | None:
    """ "more" or "less" where an interval lies on one side of 0; None where nothing is shown."""
    low, high = found["low"], found["high"]
    if low is None or high is None or (low <= 0 <= high):
        return None
    return "more" if low > 0 else "less"


def settings_words(found: Mapping[str, Any], images: int | None = None) -> str:
    """What a measure was taken on: "on the first 500 of 1397 test images, measured 2026-11-20"."""
    settings = found.get("settings") or {}
    count = images if images is not None else settings.get("images")
    whole, kind = settings.get("of"), f"{settings.get('split', '')} images".strip()
    few = whole is not None and count is not None and count < whole
    parts = [f"on the first {count} of {whole} {kind}" if few else f"on {count} {kind}"]
    if found.get("date"):
        parts.append(f"measured {found['date']}")
    return ", ".join(parts)


__all__ = [
    "NONE",
    "counted",
    "joules",
    "percent",
    "plain",
    "point_spread",
    "points",
    "settings_words",
    "share",
    "shown",
    "spread",
]
