"""Is the path straight? Its centred length, beside orthogonal steps of the same sizes."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from .sentence import THRESHOLDS, Record, Sentence, Strength
from .wording import OVER_IMAGES, ends, percent, ranged, segment_ends


def straightness(record: Record) -> Iterator[Sentence]:
    if record.get("transport_skipped"):
        yield Sentence("straightness", record["transport_skipped"], {}, "undecided")
    for segment in record.get("segments") or []:
        yield _path(segment)


def _path(segment: Record) -> Sentence:
    where = segment_ends(segment)
    moved = segment.get("relative_displacement")
    spread = max(segment.get("spread") or [1.0])
    if spread == 0:
        return _silent(segment, f"{where} all samples have the same features.", {"spread": spread})
    if moved is not None and moved < THRESHOLDS["rounding"]:
        return _unmoved(segment, where, moved, spread)
    if len(segment["layers"]) < 3:
        return _silent(segment, f"{where} there is one block, which has no shape to judge.", {})
    centred = segment.get("centred") or {}
    ratio = centred.get("length_ratio")
    shift = segment.get("shift_share")
    if ratio is None:
        common = shift is not None and shift > 1 - THRESHOLDS["rounding"]
        return _silent(
            segment,
            f"{where} all samples move by one common vector and the shape of the cloud stays: "
            "there is no path to judge."
            if common
            else f"{where} the features end in the distribution in which they began: there is no "
            "geodesic to compare with.",
            {"shift_share": shift},
        )
    return _judged_path(segment, where, centred)


def _unmoved(segment: Record, where: str, moved: float, spread: float) -> Sentence:
    """Each sample ends in its place, having stayed there or having been elsewhere."""
    length = segment.get("length") or 0.0
    returned = length > THRESHOLDS["rounding"] * spread
    return _silent(
        segment,
        f"{where} the features move and every sample comes back to its place: there is no geodesic "
        "to compare with."
        if returned
        else f"{where} the features move by less than rounding can tell ({moved:.0e} of their "
        "spread).",
        {"relative_displacement": moved, "length": length},
    )


def _silent(segment: Record, words: str, evidence: dict[str, Any]) -> Sentence:
    return Sentence("straightness", words, {"layers": ends(segment), **evidence}, "undecided")


def _judged_path(segment: Record, where: str, centred: Record) -> Sentence:
    ratio = centred["length_ratio"]
    interval = (centred.get("intervals") or {}).get("length_ratio")
    bound = centred.get("sqrt_moving_blocks") or segment.get("sqrt_moving_blocks")
    evidence = {
        "layers": ends(segment),
        "length_ratio_centred": ratio,
        "interval": interval,
        "length_ratio": segment.get("length_ratio"),
        "sqrt_moving_blocks": bound,
        "shift_share": segment.get("shift_share"),
    }
    said = (
        f"{where} the path of the centred features is "
        f"{ranged(ratio, interval, note=OVER_IMAGES)} times as long as the geodesic between its "
        "ends"
    )
    word, strength = _shape(ratio, interval, bound)
    orthogonal = (
        ""
        if bound is None
        else f" (if every step were orthogonal to the others, of the same sizes: {bound:.2f})"
    )
    return Sentence(
        "straightness", f"{said}{orthogonal}{word}.{_shift(segment)}", evidence, strength
    )


def _shape(ratio: float, interval: Any, bound: float | None) -> tuple[str, Strength]:
    """What a path is called: its interval must lie in one category, well below sqrt(B)."""
    if interval is None:
        return "; without an interval (`bootstrap=0`) it is not given a name", "suggested"
    if bound is not None and bound < THRESHOLDS["few_moving"]:
        return "; one block makes nearly all of it, so this says little", "undecided"
    low, high = (_category(end) for end in interval)
    if bound is not None and high[0] < 2:
        reach = 1 + THRESHOLDS["orthogonal"] * (bound - 1)
        if interval[1] > reach:
            return ": short, but not clearly straighter than orthogonal steps", "undecided"
    if low != high:
        return f": between {low[1]} and {high[1]}", "suggested"
    return f": {low[1]}", "shown"


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
        f"which the centred path leaves out; with it the ratio is {raw:.2f}."
    )
