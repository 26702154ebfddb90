"""Sentences on straightness: the centered length ratio, compared with orthogonal steps."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any, NamedTuple

from ...text import printable
from .sentence import THRESHOLDS, Record, Sentence, Strength
from .wording import (
    OVER_IMAGES,
    ends,
    few_carrying,
    least_motion,
    percent,
    ranged,
    rounded,
    segment_ends,
    unmoved,
)

NO_COMMON_SPACE = (
    "No two consecutive layers share a feature space (their widths differ and no shortcut leads "
    "from one to the next), so transport and straightness are left out; collapse is measured "
    "layer by layer. Name layers of one width, or embed them in one space with `embed='pad'` or "
    "`embed='pca:D'`."
)
"""The reason why a record has no transport, stored as its ``transport_skipped``."""


def straightness(record: Record) -> Iterator[Sentence]:
    if record.get("transport_skipped"):
        yield Sentence("straightness", record["transport_skipped"], {}, "undecided")
    pool = (record.get("provenance") or {}).get("pool")
    terms = Terms(
        f" ({f'{printable(str(pool))} features; ' if pool else ''}each layer's mean is subtracted)",
        ", the shortest path in Wasserstein distance,",
    )
    for segment in record.get("segments") or []:
        sentence = _path(segment, terms)
        if "length_ratio_centred" in sentence.evidence:
            terms = Terms()
        yield sentence


class Terms(NamedTuple):
    """Explanations of terms for the first sentence that uses them; empty for later ones."""

    centered: str = ""
    geodesic: str = ""


def _path(segment: Record, terms: Terms) -> Sentence:
    subject = segment_ends(segment)
    spread = max(segment.get("spread") or [1.0])
    if spread == 0:
        return _silent(
            segment, f"{subject} all samples have the same features.", {"spread": spread}
        )
    if unmoved(segment):
        return _unmoved(segment, subject, spread)
    if len(segment["layers"]) < 3:
        return _silent(
            segment, f"{subject} there is only one block, whose path is a single step.", {}
        )
    centered = segment.get("centred") or {}
    ratio = centered.get("length_ratio")
    shift = segment.get("shift_share")
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
    return _judged_path(segment, subject, centered, terms)


def _unmoved(segment: Record, subject: str, spread: float) -> Sentence:
    """State that the samples do not move, or that each returns to its starting point."""
    moved = segment["relative_displacement"]
    length = segment.get("length") or 0.0
    returned = length > least_motion(segment) * spread * (len(segment["layers"]) - 1)
    return _silent(
        segment,
        f"{subject} the features move and every sample returns to its starting point, so there is "
        "no geodesic to compare with."
        if returned
        else f"{subject} the features do not move by more than rounding error ({rounded(moved)} of "
        "their spread).",
        {"relative_displacement": moved, "length": length},
    )


def _silent(segment: Record, words: str, evidence: dict[str, Any]) -> Sentence:
    return Sentence("straightness", words, {**_place(segment), **evidence}, "undecided")


def _place(segment: Record) -> dict[str, Any]:
    return {"layers": ends(segment), "stage": segment.get("stage")}


def _judged_path(segment: Record, subject: str, centered: Record, terms: Terms) -> Sentence:
    ratio = centered["length_ratio"]
    interval = (centered.get("intervals") or {}).get("length_ratio")
    bound = centered.get("sqrt_moving_blocks") or segment.get("sqrt_moving_blocks")
    word, strength, names = _shape(segment, interval, bound)
    evidence = {
        **_place(segment),
        "length_ratio_centred": ratio,
        "interval": interval,
        "length_ratio": segment.get("length_ratio"),
        "shape": names,
        "sqrt_moving_blocks": bound,
        "null_length_ratio": centered.get("null_length_ratio"),
        "length_ratio_at_most": centered.get("length_ratio_at_most"),
        "turns_unseen": word == _UNSEEN,
        "effective_samples": segment.get("effective_samples"),
        "shift_share": segment.get("shift_share"),
    }
    length = (
        f"{subject} the path of the centered features{terms.centered} is "
        f"{ranged(ratio, interval, note=OVER_IMAGES)} times as long as the geodesic"
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


_STRAIGHT = 2  # number of categories of `_category` that count as straight


def _shape(segment: Record, interval: Any, bound: float | None) -> tuple[str, Strength, list[str]]:
    """Describe the shape of a path, if its interval lies in one category and well below sqrt(B).

    A path is called straight only if there is also evidence that the samples would show a turn.
    The last item contains the names of the categories that the interval reaches; it is empty if the
    shape is undecided.
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
        if interval[1] > reach:
            return ": short, but not clearly straighter than steps at right angles", "undecided", []
        high = max(high, _category(_unseen(segment["centred"], interval[1])))
        if high[0] >= _STRAIGHT:
            return _UNSEEN, "undecided", []
    if low != high:
        return f": between {low[1]} and {high[1]}", "suggested", [low[1], high[1]]
    return f": {low[1]}", "shown", [low[1]]


def _unseen(centered: Record, ratio: float) -> float:
    """Bound the ratio of a turn hidden by sparse samples; 1 if null maps would show such a turn."""
    null, bound = centered.get("null_length_ratio"), centered.get("length_ratio_at_most")
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


def _shift(segment: Record) -> str:
    share, raw = segment.get("shift_share"), segment.get("length_ratio")
    if share is None or raw is None or share < THRESHOLDS["mostly_shift"]:
        return ""
    return (
        f" {percent(share, 0)} of the squared displacement is one shift common to all samples, "
        "which the centered path leaves out; with it the ratio is "
        f"{ranged(raw, (segment.get('intervals') or {}).get('length_ratio'))}."
    )
