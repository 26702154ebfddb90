"""Sentences on straightness, of the network itself and compared with a reference."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

from ...storage.record import Centred, Comparison, Interval, Rank, Record, Reference, Segment
from ...text import percent, printable
from .sentence import (
    OVER_IMAGES,
    THRESHOLDS,
    Sentence,
    Strength,
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
    features = f"{printable(pool)} features; " if pool else ""
    # Explanations of "centered" and "geodesic", for the first sentence that judges a path.
    terms = (
        f" ({features}each layer's mean is subtracted)",
        ", the shortest path in Wasserstein distance,",
    )
    for segment in record.segments:
        sentence = _path(segment, terms)
        if "shape" in sentence.evidence:
            terms = ("", "")
        yield sentence


def _path(segment: Segment, terms: tuple[str, str]) -> Sentence:
    subject = segment_ends(segment.layers)
    spread = max(spreads(segment))
    if spread == 0:
        words = f"{subject} all samples have the same features."
        return _silent(segment, words, {"spread": spread})
    if unmoved(segment):
        return _unmoved(segment, subject, spread)
    if len(segment.layers) < 3:
        words = f"{subject} there is only one block, whose path is a single step."
        return _silent(segment, words, {})
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
    """Return a sentence on a segment whose path has no shape."""
    return Sentence("straightness", words, {**_place(segment), **evidence}, "undecided")


def _place(segment: Segment) -> dict[str, Any]:
    return {"layers": ends(segment.layers), "stage": segment.stage}


def _judged_path(segment: Segment, subject: str, ratio: float, terms: tuple[str, str]) -> Sentence:
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
    words = (
        f"{subject} the path of the centered features{terms[0]} is "
        f"{'' if times in ('1', '1.00') else f'{times} times '}as long as the geodesic{terms[1]} "
        "between its ends"
    )
    if bound is not None:
        words += f" (steps of the same sizes at right angles to each other would give {bound:.2f})"
    return Sentence("straightness", f"{words}{word}.{_shift(segment)}", evidence, strength)


def _shape(
    segment: Segment, interval: Interval | None, bound: float | None
) -> tuple[str, Strength, list[str]]:
    """Return the wording of a path's shape, its strength, and the names of possible shapes.

    A path is called straight, or close to straight, only if its interval is well below sqrt(B) and
    there is evidence that these samples would show a turn. There are no names if the shape is
    undecided or not classified.
    """
    if interval is None:
        return "; without an interval (`bootstrap=0`) its shape is not classified", "suggested", []
    few = few_carrying(segment)
    if few:
        return f"; {few} this value, so it says nothing about the others", "undecided", []
    if bound is not None and bound < THRESHOLDS["few_moving"]:
        words = "; one block accounts for nearly all of the path, so this value says little"
        return words, "undecided", []
    low, high = interval
    if high <= THRESHOLDS["close"]:
        reach = math.inf if bound is None else 1 + THRESHOLDS["orthogonal"] * (bound - 1)
        if high > reach:
            return ": short, but not clearly straighter than steps at right angles", "undecided", []
        high = max(high, _unseen(segment.centred, high))
        if high > THRESHOLDS["close"]:
            return _UNSEEN, "undecided", []
    first, last = _category(low), _category(high)
    if first != last:
        return f': between "{first}" and "{last}"', "suggested", [first, last]
    return f": {first}", "shown", [first]


def _unseen(centered: Centred, ratio: float) -> float:
    """Return how large the true length ratio can be if sparse samples hide turns.

    The result is 1 if null maps show that the samples would reveal a turn: the true ratio is then
    no larger than measured. The result is infinite if no bound is known.
    """
    null, bound = centered.null_length_ratio, centered.length_ratio_at_most
    if null is not None and null > ratio + THRESHOLDS["power_margin"]:
        return 1.0
    return math.inf if bound is None else bound


_UNSEEN = ": short, but these samples are too sparse to tell a straight path from one that turns"


def _category(ratio: float) -> str:
    if ratio <= THRESHOLDS["straight"]:
        return f"straight to within {percent(THRESHOLDS['straight'] - 1, 0)}"
    if ratio <= THRESHOLDS["close"]:
        return "close to straight"
    return "bent" if ratio <= THRESHOLDS["bent"] else "far from straight"


def _shift(segment: Segment) -> str:
    share, raw = segment.shift_share, segment.length_ratio
    if share is None or raw is None or share < THRESHOLDS["mostly_shift"]:
        return ""
    return (
        f" {percent(share, 0)} of the squared displacement is one shift common to all samples, "
        "which the centered path leaves out; with it the ratio is "
        f"{ranged(raw, segment.interval('length_ratio'))}."
    )


def reference(record: Record) -> Iterator[Sentence]:
    reference = record.reference
    for k, row in enumerate(reference.segments):
        yield _against_fresh(row, reference, explained=k > 0)
    for test in reference.tests:
        yield against_network(test, reference.kind or "network")


def against_network(test: Any, kind: str = "network") -> Sentence:
    """State the result of `wgeo.straighter_than` over images, for one segment of two networks.

    `test` is a `StraighterThan` or a row of a record's ``reference.tests``, and `kind` is that of
    the record's ``reference``. Two runs of one training recipe usually differ as clearly, so
    nothing is stated about recipes.
    """
    row = Comparison.of(test)
    difference = "an undefined difference"
    if row.difference is not None:
        difference = f"a difference of {row.difference:+.3g}"
    if row.interval is not None:
        difference += f" ({row.interval.low:+.3g} to {row.interval.high:+.3g}{OVER_IMAGES})"
    is_centered = row.statistic.endswith("_centred")
    name = row.statistic.removesuffix("_centred").replace("_shape", "-shape").replace("_", " ")
    differs = row.direction != "neither"
    other, scope = _SCOPE.get(kind, _SCOPE["network"])
    outcome = scope if differs else "These images do not show a difference"
    return Sentence(
        "reference",
        f"{segment_ends(row.layers)} the {name}{' of the centered paths' if is_centered else ''} "
        f"is {rounded(row.value)} for this network and {rounded(row.reference)} for {other}, "
        f"{difference}. {outcome}.",
        row.json,
        "shown" if differs else "undecided",
    )


_SCOPE = {  # names of the other network, and what a difference over images means
    "network": (
        "the network it is compared with",
        "This is about these two networks on these images, not about how they were trained: two "
        "runs of one recipe with different seeds usually differ as clearly",
    ),
    "shuffled": (
        "its own layers in another order",
        "So on these images the path depends on the order of the layers",
    ),
}


def _against_fresh(row: Rank, reference: Reference, explained: bool) -> Sentence:
    networks, segments = len(reference.networks), len(reference.segments)
    keys = ("layers", "value", "median", "low", "high", "adjusted_p")
    ratio = (
        f"line-shape ratio{'' if explained else _LINE_SHAPE} {rounded(row.value)}, compared "
        f"with a median of {rounded(row.median)} (range {rounded(row.low)} to "
        f"{rounded(row.high)}) of the others"
    )
    differs = row.direction in ("straighter", "less straight")
    outcome = f"{row.direction} than" if differs else "not distinguishable in straightness from"
    images = reference.images
    on_images = "" if images is None else f", on {images:,} of these images"
    adjusted = f", adjusted for testing {segments} segments" if segments > 1 else ""
    p = math.nan if row.adjusted_p is None else row.adjusted_p
    extreme = networks and p <= 1.001 / (networks + 1)
    return Sentence(
        "reference",
        f"{segment_ends(row.layers)} the network is {outcome} {networks} randomly initialized "
        f"networks of this architecture{on_images}: {ratio}; p = {p:.2g}, from its rank among all "
        f"{networks + 1}{adjusted}"
        f"{' (the smallest possible p)' if extreme else ''}.",
        {**row.only(*keys), "networks": networks},
        "shown" if differs else "undecided",
    )


_LINE_SHAPE = (
    " (length of an image's own centered path over the distance between its ends, averaged over "
    "images; 1 is a straight line)"
)
