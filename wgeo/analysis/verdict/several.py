"""The headline of a series: changes from the first analysis to the last, or ranges."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from ...storage.record import AnalysisRow, Segment
from ...text import counted, percent, printable
from .sentence import Sentence
from .wording import decimals_of, listed, rounded


def series_headline(analyses: Sequence[Any], axis: str) -> Sentence:
    """Return one sentence about the differences between the analyses of a series.

    It states changes from the first to the last of `analyses`. If `axis` is ``name`` and there are
    more than two networks, their order has no meaning, and it states ranges.
    """
    rows = [AnalysisRow.of(analysis) for analysis in analyses]
    as_ranges = len(rows) > 2 and axis != "epoch"
    changes = _ranges(rows) if as_ranges else _changes(rows[0], rows[-1])
    if as_ranges:
        start = f"Among these {len(rows)} networks"
    elif axis == "epoch":
        epochs = [f"{row.epoch:g}" for row in (rows[0], rows[-1])]
        start = f"From epoch {epochs[0]} to epoch {epochs[1]}"
    else:
        start = f"From {_name(rows[0])} to {_name(rows[-1])}"
    words = f"{start}, {listed(changes) if changes else 'no measure can be compared'}"
    at_chance = [
        f"epoch {row.epoch:g}" if axis == "epoch" else _name(row)
        for row in rows
        if row.trust.at_chance and not (axis == "epoch" and row.provenance.is_initialization)
    ]
    if at_chance:
        words += f"; the accuracy of {listed(at_chance)} is at chance"
    return Sentence("headline", f"{words}.", {"analyses": len(rows), "axis": axis}, "suggested")


def _name(row: AnalysisRow) -> str:
    return printable(row.name)


_MEASURES: tuple[tuple[str, Callable[[AnalysisRow], Any], Callable[[float], str]], ...] = (
    ("accuracy", lambda row: row.accuracy, percent),
    ("NC1 at the last layer", lambda row: row.last_layer.measure("nc1"), rounded),
)


def _changes(first: AnalysisRow, last: AnalysisRow) -> list[str]:
    parts = []
    for what, value, show in _MEASURES:
        start, end = value(first), value(last)
        if start is None or end is None:
            continue
        before, after = show(start), show(end)
        parts.append(
            f"{what} stays at {before}"
            if before == after
            else f"{what} {'rises' if end > start else 'falls'} from {before} to {after}"
        )
    return parts + _straighter(first, last)


def _straighter(first: AnalysisRow, last: AnalysisRow) -> list[str]:
    """State in how many stages the path becomes straighter or less straight."""
    if len(first.segments) != len(last.segments):
        return []
    outcomes = [_change(*pair) for pair in zip(first.segments, last.segments, strict=True)]
    comparable = [outcome for outcome in outcomes if outcome]
    parts = [
        f"the path becomes {word}{_in_stages(comparable.count(word), len(outcomes))}"
        for word in ("straighter", "less straight")
        if word in comparable
    ]
    if parts and len(outcomes) == 1:
        parts[0] += _ratios(first.segments[0], last.segments[0])
    if not parts and comparable:
        parts = ["no stage becomes clearly straighter or less straight"]
    return parts


def _ratios(first: Segment, last: Segment) -> str:
    before, after = (each.centred.length_ratio for each in (first, last))
    if before is None or after is None:
        return ""
    decimals = decimals_of(before, after)
    return f" (length ratio, centered, from {before:.{decimals}f} to {after:.{decimals}f})"


def _in_stages(number: int, total: int) -> str:
    return f" in {number} of {counted(total, 'stage')}" if total > 1 else ""


def _change(first: Segment, last: Segment) -> str:
    """Compare two intervals: "unclear" if they overlap, "" if one is missing."""
    before, after = (each.centred.interval("length_ratio") for each in (first, last))
    if before is None or after is None:
        return ""
    if after.high < before.low:
        return "straighter"
    return "less straight" if before.high < after.low else "unclear"


def _ranges(rows: Sequence[AnalysisRow]) -> list[str]:
    parts = []
    for what, value, show in _MEASURES:
        measured = [row for row in rows if value(row) is not None]
        if len(measured) < 2:
            continue
        low, high = min(measured, key=value), max(measured, key=value)
        parts.append(
            f"{what} ranges from {show(value(low))} ({_name(low)}) to {show(value(high))} "
            f"({_name(high)})"
        )
    return parts
