"""Sentences on class separation over depth, and on the alignment of residual Jacobians."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from ...storage.record import AlignedSegment, Interval, Record, SegmentLaw
from ...text import counted, percent
from .sentence import THRESHOLDS, Sentence, Strength
from .wording import OVER_IMAGES, ends, ranged, segment_ends

_D = (
    " (D = tr(Sigma_W pinv(Sigma_B)), NC1 times the number of classes; if it falls by the same "
    "factor at every layer, ln D is a straight line over depth)"
)


def separation_law(record: Record) -> Iterator[Sentence]:
    law = record.separation_law
    explained = False
    if (law.samples_per_class or 0) < THRESHOLDS["few_a_class"]:
        return
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
    evidence = {
        "layers": ends(segment.layers),
        "rate": segment.rate,
        "correlation": correlation,
        "curvature": curvature,
        "intervals": segment.intervals,
    }

    def sentence(words: str, strength: Strength) -> Sentence:
        return Sentence(
            "separation", f"{segment_ends(segment.layers)} {words}.", evidence, strength
        )

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


def alignment(record: Record) -> Iterator[Sentence]:
    if record.alignment.reset_statistics:
        return
    explained = False
    for segment in record.alignment.segments:
        bounds, chance = segment.interval("overlap_uv"), segment.chance
        if len(segment.blocks) > 2 and bounds is not None and chance is not None:
            yield _alignment(segment, bounds, chance, record.alignment.points, explained)
            explained = True


def _alignment(
    segment: AlignedSegment, bounds: Interval, chance: float, points: int, explained: bool
) -> Sentence:
    low, high = bounds
    value = segment.overlap_uv
    word, decided = _aligned(low, high, chance)
    definition = "" if explained else _OVERLAP.format(counted(segment.vectors or 0, "direction"))
    words = (
        f"{segment_ends(segment.blocks)} the residual Jacobians of the blocks are "
        f"{word}{definition}: the overlap is {percent(value)} ({percent(low)} to {percent(high)}, "
        f"95 % interval over {counted(points, 'image')}), and {percent(chance, 2)} for random "
        f"directions{_slope(segment)}."
    )
    few = points < THRESHOLDS["fewest_samples"]
    evidence: dict[str, Any] = {
        "blocks": ends(segment.blocks),
        "overlap_uv": value,
        "chance": chance,
        "slope": segment.slope,
        "intervals": {key: segment.interval(key) for key in ("overlap_uv", "slope")},
        "points": points,
    }
    strength: Strength = "undecided" if not decided else "suggested" if few else "shown"
    return Sentence("alignment", words, evidence, strength)


def _aligned(low: float, high: float, chance: float) -> tuple[str, bool]:
    """Return words for the interval of an overlap, and whether they are a decision."""
    # The excess over chance is 0 for random directions, and 1 for equal ones.
    lower, upper = ((end - chance) / (1 - chance) if chance < 1 else 0.0 for end in (low, high))
    if lower >= THRESHOLDS["aligned"]:
        return "aligned", True
    if lower >= THRESHOLDS["partly_aligned"]:
        return "partly aligned", True
    if upper >= THRESHOLDS["partly_aligned"]:
        return "perhaps aligned, but these images cannot tell", False
    if low <= chance:
        return "aligned no more than random ones", True
    more = low > THRESHOLDS["above_chance"] * chance
    return f"hardly aligned{', though more than random ones' if more else ''}", True


_OVERLAP = " (overlap of the leading {} of one block's output with those of another's input)"


def _slope(segment: AlignedSegment) -> str:
    bounds = segment.interval("slope")
    if segment.slope is None or bounds is None:
        return ""
    return (
        "; over depth, the length of a block's step divided by its largest singular value has the "
        f"slope {ranged(segment.slope, bounds)}; a geodesic that expands has the slope 1"
    )
