"""Sentences on straightness."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any, NamedTuple

from ...storage.record import Centred, Interval, Record, Segment
from ...text import percent, printable
from .sentence import THRESHOLDS, Sentence, Strength
from .wording import (
    OVER_IMAGES,
    ends,
    few_carrying,
    least_motion,
    ranged,
    rounded,
    segment_ends,
    spreads,
    unmoved,
)

NO_COMMON_SPACE = (
    "No two consecutive layers share a feature space (their widths differ and no shortcut leads "
    "from one to the next), so transport and straightness are left out; collapse is measured "
    "layer by layer. Name layers of one width, or embed them in one space with `embed='pad'` or "
    "`embed='pca:D'`."
)
"""The reason why a record has no transport (``transport_skipped``)."""


def straightness(record: Record) -> Iterator[Sentence]:
    if record.transport_skipped:
        yield Sentence("straightness", record.transport_skipped, {}, "undecided")
    pool = record.provenance.pool
    terms = Terms(
        f" ({f'{printable(pool)} features; ' if pool else ''}each layer's mean is subtracted)",
        ", the shortest path in Wasserstein distance,",
    )
    for segment in record.segments:
        sentence = _path(segment, terms)
        if "length_ratio_centred" in sentence.evidence:
            terms = Terms()
        yield sentence


class Terms(NamedTuple):
    """Explanations of terms, for the first sentence that uses them."""

    centered: str = ""
    geodesic: str = ""


def _path(segment: Segment, terms: Terms) -> Sentence:
    subject = segment_ends(segment.layers)
    spread = max(spreads(segment))
    if spread == 0:
        return _silent(
            segment, f"{subject} all samples have the same features.", {"spread": spread}
        )
    if unmoved(segment):
        return _unmoved(segment, subject, spread)
    if len(segment.layers) < 3:
        return _silent(
            segment, f"{subject} there is only one block, whose path is a single step.", {}
        )
    ratio, shift = segment.centred.length_ratio, segment.shift_share
    if ratio is None:
        is_shift = shift is not None and shift > 1 - THRESHOLDS["rounding"]
        return _silent(
            segment,
            f"{subject} all samples move by the same vector and the cloud keeps its shape, so "
            "there is no path to judge."
            if is_shift
            else f"{subject} the features return to their initial distribution, so there is no "
            "geodesic to compare with.",
            {"shift_share": shift},
        )
    if ratio > THRESHOLDS["returned"]:
        return _silent(
            segment,
            f"{subject} the features move but end nearly where they began, at a distance of "
            f"1/{ratio:,.0f} of the length of their path, so there is no geodesic to compare with.",
            {"length_ratio_centred": ratio},
        )
    return _judged_path(segment, subject, ratio, terms)


def _unmoved(segment: Segment, subject: str, spread: float) -> Sentence:
    moved = segment.relative_displacement
    length = segment.length or 0.0
    returned = length > least_motion(segment) * spread * (len(segment.layers) - 1)
    return _silent(
        segment,
        f"{subject} the features move and every sample returns to its starting point, so there is "
        "no geodesic to compare with."
        if returned
        else f"{subject} the features do not move by more than rounding error ({rounded(moved)} of "
        "their spread).",
        {"relative_displacement": moved, "length": length},
    )


def _silent(segment: Segment, words: str, evidence: dict[str, Any]) -> Sentence:
    return Sentence("straightness", words, {**_place(segment), **evidence}, "undecided")


def _place(segment: Segment) -> dict[str, Any]:
    return {"layers": ends(segment.layers), "stage": segment.stage}


def _judged_path(segment: Segment, subject: str, ratio: float, terms: Terms) -> Sentence:
    centered = segment.centred
    interval = centered.interval("length_ratio")
    bound = centered.sqrt_moving_blocks or segment.sqrt_moving_blocks
    word, strength, names = _shape(segment, interval, bound)
    evidence = {
        **_place(segment),
        "length_ratio_centred": ratio,
        "interval": interval,
        "length_ratio": segment.length_ratio,
        "shape": names,
        "sqrt_moving_blocks": bound,
        "null_length_ratio": centered.null_length_ratio,
        "length_ratio_at_most": centered.length_ratio_at_most,
        "turns_unseen": word == _UNSEEN,
        "effective_samples": segment.effective_samples,
        "shift_share": segment.shift_share,
    }
    times = ranged(ratio, interval, note=OVER_IMAGES)
    length = (
        f"{subject} the path of the centered features{terms.centered} is "
        f"{'' if times in ('1', '1.00') else f'{times} times '}as long as the geodesic"
        f"{terms.geodesic} between its ends"
    )
    orthogonal = (
        ""
        if bound is None
        else f" (steps of the same sizes at right angles to each other would give {bound:.2f})"
    )
    return Sentence(
        "straightness", f"{length}{orthogonal}{word}.{_shift(segment)}", evidence, strength
    )


_STRAIGHT = 2  # the first categories of `_category`, straight and close to straight


def _shape(
    segment: Segment, interval: Interval | None, bound: float | None
) -> tuple[str, Strength, list[str]]:
    """Return words for the shape of a path, their strength, and the names of possible shapes.

    A path is called straight only if its interval is well below sqrt(B) and there is evidence that
    these samples would show a turn. There are no names if the shape is not classified.
    """
    if interval is None:
        return "; without an interval (`bootstrap=0`) its shape is not classified", "suggested", []
    few = few_carrying(segment)
    if few:
        return f"; {few} this value, so it says nothing about the others", "undecided", []
    if bound is not None and bound < THRESHOLDS["few_moving"]:
        return "; one block accounts for nearly all of it, so this says little", "undecided", []
    low, high = (_category(end) for end in interval)
    if high[0] < _STRAIGHT:
        reach = math.inf if bound is None else 1 + THRESHOLDS["orthogonal"] * (bound - 1)
        if interval.high > reach:
            return ": short, but not clearly straighter than steps at right angles", "undecided", []
        high = max(high, _category(_unseen(segment.centred, interval.high)))
        if high[0] >= _STRAIGHT:
            return _UNSEEN, "undecided", []
    if low != high:
        return f": between {low[1]} and {high[1]}", "suggested", [low[1], high[1]]
    return f": {low[1]}", "shown", [low[1]]


def _unseen(centered: Centred, ratio: float) -> float:
    """Return how large the true length ratio can be if the samples are too sparse to show it.

    It is 1 if null maps show that the samples would reveal a turn, and infinite if it is unknown.
    """
    null, bound = centered.null_length_ratio, centered.length_ratio_at_most
    if null is not None and null > ratio + THRESHOLDS["power_margin"]:
        return 1.0
    return math.inf if bound is None else bound


_UNSEEN = ": short, but these samples are too sparse to tell a straight path from one that turns"


def _category(ratio: float) -> tuple[int, str]:
    names = (
        ("straight", f"straight to within {percent(THRESHOLDS['straight'] - 1, 0)}"),
        ("close", "close to straight"),
        ("bent", "bent"),
    )
    for k, (bound, name) in enumerate(names):
        if ratio <= THRESHOLDS[bound]:
            return k, name
    return len(names), "far from straight"


def _shift(segment: Segment) -> str:
    share, raw = segment.shift_share, segment.length_ratio
    if share is None or raw is None or share < THRESHOLDS["mostly_shift"]:
        return ""
    return (
        f" {percent(share, 0)} of the squared displacement is one shift common to all samples, "
        "which the centered path leaves out; with it the ratio is "
        f"{ranged(raw, segment.interval('length_ratio'))}."
    )
