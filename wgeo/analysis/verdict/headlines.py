"""Headlines: one sentence on an analysis, or on the differences between those of a series."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from ...storage.record import AnalysisRow, Segment, Trust
from ...text import counted, percent, printable, stage_number
from .opening import silenced
from .sentence import Sentence, Strength, decimals_of, listed, rounded


def compose(verdict: Sequence[Sentence], trust: Trust) -> Sentence:
    """Return the headline of a verdict: shape of the path, collapse, certainty, and doubts."""
    if silenced(trust):
        return _silence(trust)
    paths = [s for s in verdict if s.claim == "straightness"]
    classes = [s for s in verdict if s.claim == "collapse"]
    statements = [*_straightness(paths), *_collapse(classes)]
    warnings = (s for s in verdict if s.strength == "warning")
    doubts = list(dict.fromkeys(_DOUBTS[s.claim](s) for s in warnings))
    decided = [s for s in (*paths, *classes) if s.evidence.get("shape") or s.evidence.get("level")]
    certainty, strength = _certainty(decided, len(decided) < len(paths) + len(classes), trust)
    words = f"{', and '.join(statements) or 'Nothing was measured'}{certainty}"
    if doubts:
        noun = "a reason" if len(doubts) == 1 else "reasons"
        words += f"; {noun} for doubt: {listed(doubts)}"
    evidence = {
        "shapes": [s.evidence.get("shape") for s in paths],
        "level": classes[0].evidence.get("level") if classes else None,
        "doubts": doubts,
    }
    return Sentence("headline", f"{words[:1].upper()}{words[1:]}.", evidence, strength)


def _silence(trust: Trust) -> Sentence:
    count = trust.samples or 0
    words = f"{counted(count, 'sample')} are too few to say anything about the network."
    if trust.at_chance:
        words = (
            f"The network does not classify these images: {percent(trust.accuracy)} of "
            f"{counted(count, 'image')} are classified correctly, no better than "
            f"guessing ({percent(trust.chance)}), so nothing else is said about it."
        )
    return Sentence("headline", words, {"samples": trust.samples}, "warning")


def _straightness(paths: Sequence[Sentence]) -> list[str]:
    """State the shape of the path in each stage; stages of the same shape are named together."""
    if not paths:
        return []
    if not paths[0].evidence:
        return ["straightness is not measured, because no two layers in a row share a space"]
    stages: dict[str, list[str]] = {}
    for i, path in enumerate(paths):
        number = stage_number(path.evidence.get("stage"), i)
        names = path.evidence.get("shape")
        shape = "not judged" if names is None else _between(names) or "of undecided shape"
        stages.setdefault(shape, []).append(str(number))
    if len(stages) > 1:
        shapes = [
            f"{shape} in stage{'s' * (len(numbers) > 1)} {listed(numbers)}"
            for shape, numbers in stages.items()
        ]
        return [f"the path of the features is {listed(shapes)}"]
    (shape,) = stages
    extent = f"in each of its {len(paths)} stages" if len(paths) > 1 else "through the network"
    return [f"the path of the features {extent} is {shape}"]


def _between(names: Sequence[str]) -> str:
    quoted = [f'"{name}"' for name in names]
    return f"between {listed(quoted)}" if len(names) > 1 else "".join(names)


def _collapse(classes: Sequence[Sentence]) -> list[str]:
    if not classes:
        return []
    evidence = classes[0].evidence
    if not evidence.get("level"):
        return ["whether the classes collapse is undecided"]
    return [f"the classes are {_between(evidence['level'])} at the last layer{_trend(evidence)}"]


def _trend(evidence: Mapping[str, Any]) -> str:
    """State whether the classes become tighter with depth, if Kendall's tau is clearly not 0."""
    ends = evidence.get("kendall_interval")
    tau = evidence.get("kendall_tau")
    if tau is None or not ends or ends[0] <= 0 <= ends[1]:
        return ""
    return f", having become {'tighter' if tau < 0 else 'wider'} with depth"


def _certainty(
    decided: Sequence[Sentence], some_undecided: bool, trust: Trust
) -> tuple[str, Strength]:
    if not decided:
        return "", "undecided"
    samples = trust.samples
    images = f" over {counted(samples, 'image')}" if samples else ""
    if any(s.evidence.get("interval") is None for s in decided):
        return " (suggested by a value without an interval)", "suggested"
    if any(s.strength != "shown" for s in decided):
        return f" (95 % intervals{images} do not settle all of this)", "suggested"
    what = "what is decided" if some_undecided else "this"
    return f" (95 % intervals{images} support {what})", "shown"


_DOUBTS = {  # a short reason for doubt for each claim that can be a warning
    "accuracy": lambda _: "the accuracy is lower than the file states",
    "normalization": lambda s: (
        "the pixels are probably normalized wrongly"
        if s.evidence.get("better")
        else "how pixels were normalized in training is an assumption"
    ),
    "classes": lambda _: "the images and the network have different numbers of classes",
    "samples": lambda s: (
        "some images are copies" if "duplicates" in s.evidence else "the smallest class is small"
    ),
}


def series_headline(analyses: Sequence[Any], axis: str) -> Sentence:
    """Return one sentence about the differences between the analyses of a series.

    It states how measures change from the first analysis to the last. If `axis` is ``name``, the
    order of more than two networks has no meaning, and the range of each measure is stated instead.
    """
    rows = [AnalysisRow.of(analysis) for analysis in analyses]
    if axis == "epoch":
        start = f"From epoch {rows[0].epoch:g} to epoch {rows[-1].epoch:g}"
    elif len(rows) > 2:
        start = f"Among these {len(rows)} networks"
    else:
        start = f"From {_name(rows[0])} to {_name(rows[-1])}"
    as_ranges = len(rows) > 2 and axis != "epoch"
    changes = _ranges(rows) if as_ranges else _changes(rows[0], rows[-1])
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
    total = len(outcomes)
    parts = []
    for word in ("straighter", "less straight"):
        number = comparable.count(word)
        if number:
            stages = f" in {number} of {counted(total, 'stage')}" if total > 1 else ""
            parts.append(f"the path becomes {word}{stages}")
    if parts and total == 1:
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
