"""What a comparison shows, in numbers and in plain sentences; nothing more than it shows."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from spikelet.measure import paired_interval
from spikelet.report.names import spiking_steps

Row = Mapping[str, Any]
NOT_SHOWN = "no difference shown"


def comparison(
    method: str,
    versus: str,
    steps: int | None,
    a: Sequence[float],
    b: Sequence[float],
    level: float = 0.95,
) -> dict[str, Any]:
    """The paired difference of two methods' accuracies by seed, a - b, with its t interval.

    Raises:
        UserError: with fewer than two pairs.
    """
    mean, low, high = paired_interval(a, b, level)
    numbers = {"mean": mean, "low": low, "high": high, "n": len(a), "level": level}
    names = {"method": method, "versus": versus, "steps": steps}
    return {**names, **numbers, "verdict": verdict(low, high)}


def verdict(low: float, high: float) -> str:
    """ "better", "worse" or, where the interval contains 0, "no difference shown".

    Accuracies are counts: where all differences happen to be equal, their scatter is unknown, and
    an interval of no width shows nothing.
    """
    if high - low < 1e-9:
        return NOT_SHOWN
    if low > 0:
        return "better"
    return "worse" if high < 0 else NOT_SHOWN


def sentences(rows: Sequence[Row], comparisons: Sequence[Row], default: str) -> list[str]:
    """The findings about the method `default`, one sentence each."""
    teacher = next((row for row in rows if row["method"] == "teacher"), None)
    own = [row for row in rows if row["method"] == default]
    found = []
    if teacher is not None:
        spiking = spiking_steps(teacher)
        what = "an ordinary network" if spiking is None else f"a spiking network at T = {spiking}"
        found.append(
            f"The teacher, {what}, answers {percent(teacher['accuracy'])} of the "
            f"{teacher['split']} images correctly{_spread(teacher)}."
        )
    if own:
        parts = [f"{percent(row['accuracy'])} at T = {row['steps']}" for row in own]
        found.append(f"The spiking student trained with {default} reaches {listed(parts)}.")
    found += [_against(default, versus, comparisons) for versus in _versus(comparisons)]
    if own and not comparisons:
        found.append("One run gives no interval, so nothing is claimed about differences.")
    return found


def percent(share: float) -> str:
    """0.9642 as "96.4 %"."""
    return f"{100 * share:.1f} %"


def signed(value: float, digits: int = 2) -> str:
    """A number with its sign, "+1.20"; what rounds to 0 has none."""
    text = f"{value:+.{digits}f}"
    return text if float(text) else text[1:]


def points(difference: float) -> str:
    """0.0123 as "+1.2"."""
    value = round(100 * difference, 1)
    return "0.0" if value == 0 else f"{value:+.1f}".replace("-", "\N{MINUS SIGN}")


def listed(parts: Iterable[str]) -> str:
    """Words joined as in a sentence: "a, b and c"."""
    *front, last = parts
    return f"{', '.join(front)} and {last}" if front else last


def kept_of_a_pair(mine: str, other: str, found: Mapping[str, Any]) -> str:
    """How two trained networks stand noise, and that two networks are no more than that.

    Args:
        found: the differences over all kinds of noise, as the noise measure has them.
    """
    kept, images = found["kept"], found["images_both_right"]
    return (
        f"{mine} beside {other}, one trained network each: "
        f"{_noise_costs(kept)}{_more(kept['mean'])} of the {images} images that both answer "
        f"rightly without noise stay right (95 % interval over images {_ends(kept)}). Another seed "
        "of the training may turn this around."
    )


def kept_over_seeds(mine: str, other: str, seeds: int, kept: Mapping[str, float]) -> str:
    """How two ways of training stand noise, over several seeds."""
    return (
        f"{mine} beside {other} over {seeds} seeds: {_noise_costs(kept)}{_more(kept['mean'])} of "
        "the images that both answer rightly without noise stay right (95 % interval over seeds "
        f"and images {_ends(kept)})."
    )


def _noise_costs(kept: Mapping[str, float]) -> str:
    """Which side an interval lies on, in words."""
    if verdict(kept["low"], kept["high"]) == NOT_SHOWN:
        return f"{NOT_SHOWN}: "
    return f"noise costs it {'less' if kept['low'] > 0 else 'more'}: "


def _more(difference: float) -> str:
    """0.031 as "3.1 points more"."""
    size = points(abs(difference)).lstrip("+")
    return "as many" if size == "0.0" else f"{size} points {'more' if difference > 0 else 'fewer'}"


def _ends(found: Mapping[str, float]) -> str:
    return f"{points(found['low'])} to {points(found['high'])}"


def _versus(comparisons: Sequence[Row]) -> list[str]:
    return list(dict.fromkeys(row["versus"] for row in comparisons))


def _spread(row: Row) -> str:
    if row["std"] is None:
        return ""
    return f" (mean of {row['n']} seeds, standard deviation {100 * row['std']:.1f} points)"


def _against(default: str, versus: str, comparisons: Sequence[Row]) -> str:
    """One sentence about a control: where better, where worse, where nothing is shown."""
    mine = [row for row in comparisons if row["versus"] == versus]
    parts = [_shown(row) for row in mine if row["verdict"] != NOT_SHOWN]
    silent = [f"{row['steps']}" for row in mine if row["verdict"] == NOT_SHOWN]
    if silent:
        parts.append(f"{NOT_SHOWN} at T = {listed(silent)}")
    return f"Against {versus}, {default}: {'; '.join(parts)}."


def _shown(row: Row) -> str:
    level = f"{100 * row['level']:.0f} % interval {points(row['low'])} to {points(row['high'])}"
    return f"{row['verdict']} at T = {row['steps']} ({points(row['mean'])} points, {level})"
