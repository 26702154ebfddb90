"""Sentences on the classes: their collapse, and the law of their separation over depth."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from ...storage.record import Interval, Layer, Record, SegmentLaw, Trend
from ...text import counted
from .sentence import (
    OVER_IMAGES,
    THRESHOLDS,
    Sentence,
    Strength,
    ends,
    listed,
    ranged,
    rounded,
    segment_ends,
)

_MOST_NAMED = 3  # if NC1 rises at more layers, they are counted and not named


def collapse(record: Record) -> Iterator[Sentence]:
    layers = [layer for layer in record.layers if layer.collapse]
    inner = [layer for layer in layers if layer.stage is not None]
    if not inner:
        return
    last = inner[-1]
    end, _ = _nc1(last)
    samples = last.collapse.measure("samples_per_class")
    if end is None:
        reason = last.collapse.undefined.get("nc1", "it is undefined")
        yield _undecided(
            f"Whether the classes collapse is undecided: NC1 is undefined at {last.name} "
            f"({reason}).",
            {"layer": last.name},
        )
    elif samples and samples < THRESHOLDS["few_a_class"] and not _is_corrected(last):
        yield _undecided(
            f"Whether the classes collapse is undecided: with {counted(samples, 'sample')} in the "
            f"smallest class, the class means at {last.name} are too uncertain to correct the "
            f"bias of NC1 ({rounded(end)}). More images per class would decide.",
            {"layer": last.name, "nc1": end, "samples_per_class": samples},
        )
    elif end > THRESHOLDS["rounding"] ** -2:
        yield _undecided(
            f"At {last.name} the class means of these images cannot be distinguished: their "
            "scatter is rounding error relative to the scatter within classes, so nothing has "
            "collapsed.",
            {"layer": last.name, "nc1": end},
        )
    else:
        yield _collapse(layers[0], inner[0], last, end, record.trend("nc1"))


def _undecided(words: str, evidence: dict[str, Any]) -> Sentence:
    return Sentence("collapse", words, evidence, "undecided")


def _collapse(first: Layer, stem: Layer, last: Layer, end: float, trend: Trend) -> Sentence:
    interval = _nc1(last)[1]
    uncorrected = last.collapse.measure("nc1")
    is_corrected = _is_corrected(last)
    start = _nc1(first)[0] if _is_corrected(first) == is_corrected else None  # not comparable
    lower, upper = (_level(value) for value in (interval or (end, end)))
    level = lower if lower == upper else f"between {lower} and {upper}"
    evidence = {
        "nc1": uncorrected,
        **({"nc1_corrected": end} if is_corrected else {}),
        "interval": interval,
        "layer": last.name,
        "level": [lower] if lower == upper else [lower, upper],
        "nc1_first": start,
        "first": first.name,
        "kendall_tau": trend.kendall_tau,
        "kendall_interval": trend.interval,
        "violations": trend.violations,
        "increases": trend.json.get("increases"),
    }
    corrected = original = ""
    if is_corrected:
        corrected = ", corrected for few samples per class,"
        original = "" if uncorrected is None else f" [uncorrected: {rounded(uncorrected)}]"
    value = (
        "cannot be distinguished from 0"
        if end < THRESHOLDS["rounding"] ** 2
        else f"is {_with_interval(end, interval)}"
    )
    initial = "" if start is None else f"; at {first.name} it is {rounded(start)}"
    return Sentence(
        "collapse",
        f"At {last.name} the classes of these images are {level}: NC1 (variability within "
        f"classes over that between them, 0 at complete collapse){corrected} {value}"
        f"{original}{initial}{_trend(trend, stem)}.",
        evidence,
        "suggested" if interval is None or lower != upper else "shown",
    )


def _level(nc1: float) -> str:
    if nc1 <= THRESHOLDS["collapsed"]:
        return "collapsed"
    return "partly collapsed" if nc1 <= THRESHOLDS["partly_collapsed"] else "not collapsed"


def _with_interval(value: float, interval: Interval | None) -> str:
    """Format a value and its interval, which can exclude the value because of bias correction."""
    outside = interval is not None and not interval.low <= value <= interval.high
    note = f"{OVER_IMAGES}{', corrected for bias' if outside else ''}"
    return ranged(value, interval, note=note)


def _is_corrected(layer: Layer) -> bool:
    return layer.collapse.measure("nc1_corrected") is not None


def _nc1(layer: Layer) -> tuple[float | None, Interval | None]:
    """Return NC1, corrected for few samples per class if possible, and its interval."""
    key = "nc1_corrected" if _is_corrected(layer) else "nc1"
    return layer.collapse.measure(key), layer.collapse.interval(key)


def _trend(trend: Trend, first: Layer) -> str:
    tau, rises = trend.kendall_tau, trend.violations
    if tau is None or rises is None:
        return ""
    if rises == 0:
        return f"; from {first.name} onward it falls at every layer"
    if tau < 0:
        names = trend.increases  # absent from records of wgeo 0.1
        where = listed(names) if 0 < len(names) <= _MOST_NAMED else counted(rises, "layer")
        return f"; from {first.name} onward it falls with depth except at {where}"
    return "; it does not fall with depth"


_D = (
    " (D = tr(Sigma_W pinv(Sigma_B)), NC1 times the number of classes; if it falls by the same "
    "factor at every layer, ln D is a straight line over depth)"
)


def separation_law(record: Record) -> Iterator[Sentence]:
    law = record.separation_law
    if (law.samples_per_class or 0) < THRESHOLDS["few_a_class"]:
        return
    explained = False
    for segment in law.segments:
        long = len(segment.layers) >= THRESHOLDS["fewest_layers"]
        bounds = segment.interval("rate")
        # A fit over several stages is not judged, because their feature spaces differ.
        if segment.stage is None or not long or bounds is None:
            continue
        yield _law(segment, bounds, "" if explained else _D)
        explained = True


def _law(segment: SegmentLaw, bounds: Interval, definition: str) -> Sentence:
    rate = ranged(segment.rate, bounds, note=OVER_IMAGES)
    correlation, curvature = segment.correlation, segment.curvature

    def sentence(words: str, strength: Strength) -> Sentence:
        evidence = {
            "layers": ends(segment.layers),
            **segment.only("rate", "correlation", "curvature"),
            "intervals": segment.intervals,
        }
        words = f"{segment_ends(segment.layers)} {words}."
        return Sentence("separation", words, evidence, strength)

    if bounds.low > 1:
        return sentence(f"the separation of the classes{definition} gets worse", "shown")
    if bounds.high >= 1 or correlation is None or curvature is None:
        return sentence(
            f"these images do not show whether the classes separate with depth{definition}: D "
            f"changes by a factor of {rate} per layer",
            "undecided",
        )
    fit = f"r = {correlation:.4f}, curvature {curvature:+.2f}"
    curved, correlated = segment.interval("curvature"), segment.interval("correlation")
    constant = _constant(curved, correlated)
    if curved is None or constant is None:
        return sentence(
            f"the classes separate with depth{definition}, by a fitted factor of {rate} per "
            "layer; these images cannot tell whether the factor is the same at every layer "
            f"({fit})",
            "undecided",
        )
    if constant:
        return sentence(
            f"the classes separate at a nearly constant rate{definition}: D changes by a factor of "
            f"{rate} per layer ({fit})",
            "shown",
        )
    return sentence(
        f"the classes separate with depth{definition}, but not at a constant rate: "
        f"{_bend(curved)} ({fit}; a fitted factor of {rate} per layer)",
        "shown",
    )


def _constant(curvature: Interval | None, correlation: Interval | None) -> bool | None:
    """Return whether the intervals show a constant rate; None if they do not decide it."""
    max_curvature, max_correlation = THRESHOLDS["law_curvature"], -THRESHOLDS["law_correlation"]
    if curvature is None or correlation is None:
        return None
    low, high = curvature
    if -max_curvature <= low and high <= max_curvature and correlation.high <= max_correlation:
        return True
    excluded = low > max_curvature or high < -max_curvature or correlation.low > max_correlation
    return False if excluded else None


def _bend(curvature: Interval) -> str:
    low, high = curvature
    if low > THRESHOLDS["law_curvature"]:
        return "D falls faster at the first layers"
    if high < -THRESHOLDS["law_curvature"]:
        return "D falls faster at the last layers"
    return "ln D is not a straight line over depth"
