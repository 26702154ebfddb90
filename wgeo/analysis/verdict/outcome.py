"""Sentences on the comparison with a reference, on collapse, and on what to measure next."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from ...storage.record import Comparison, Interval, Layer, Rank, Record, Reference, Trend
from ...text import counted
from .sentence import THRESHOLDS, Sentence
from .wording import OVER_IMAGES, listed, ranged, rounded, segment_ends


def reference(record: Record) -> Iterator[Sentence]:
    reference = record.reference
    for k, row in enumerate(reference.segments):
        yield _against_fresh(row, reference, explained=k > 0)
    for test in reference.tests:
        yield against_network(test, reference.kind or "network")


def against_network(test: Any, kind: str = "network") -> Sentence:
    """State the result of `wgeo.straighter_than` over images, for one segment of two networks.

    `test` is a `StraighterThan` or a row of a record's ``reference.tests``, and `kind` is
    ``network`` or ``shuffled``. Two training runs of one recipe usually differ as clearly, so
    nothing is stated about recipes.
    """
    row = Comparison.of(test)
    low, high = row.interval or (float("nan"),) * 2
    is_centered = row.statistic.endswith("_centred")
    name = row.statistic.removesuffix("_centred").replace("_shape", "-shape").replace("_", " ")
    differs = row.direction != "neither"
    other, scope = _SCOPE["shuffled" if kind == "shuffled" else "network"]
    outcome = scope if differs else "These images do not show a difference"
    return Sentence(
        "reference",
        f"{segment_ends(row.layers)} the {name}{' of the centered paths' if is_centered else ''} "
        f"is {rounded(row.value)} for this network and {rounded(row.reference)} for {other}, a "
        f"difference of {row.difference:+.3g} ({low:+.3g} to {high:+.3g}{OVER_IMAGES}). "
        f"{outcome}.",
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
    p = float("nan") if row.adjusted_p is None else row.adjusted_p
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


_MOST_NAMED = 3  # if NC1 rises at more layers, they are counted and not named
_LINE_SHAPE = (
    " (length of an image's own centered path over the distance between its ends, averaged over "
    "images; 1 is a straight line)"
)


def collapse(record: Record) -> Iterator[Sentence]:
    layers = [layer for layer in record.layers if layer.collapse]
    inner = [layer for layer in layers if layer.stage is not None]
    if not inner:
        return
    last = inner[-1]
    end, _ = _nc1(last)
    if end is None:
        reason = last.collapse.undefined.get("nc1", "it is undefined")
        yield Sentence(
            "collapse",
            f"Whether the classes collapse is undecided: NC1 is undefined at {last.name} "
            f"({reason}).",
            {"layer": last.name},
            "undecided",
        )
        return
    samples = last.collapse.measure("samples_per_class")
    if samples and samples < THRESHOLDS["few_a_class"] and not _is_corrected(last):
        yield Sentence(
            "collapse",
            f"Whether the classes collapse is undecided: with {counted(samples, 'sample')} in the "
            f"smallest class, the class means at {last.name} are too uncertain to correct the "
            f"bias of NC1 ({rounded(end)}). More images per class would decide.",
            {"layer": last.name, "nc1": end, "samples_per_class": samples},
            "undecided",
        )
        return
    if end > THRESHOLDS["rounding"] ** -2:
        yield Sentence(
            "collapse",
            f"At {last.name} the class means of these images cannot be distinguished: their "
            "scatter is rounding error relative to the scatter within classes, so nothing has "
            "collapsed.",
            {"layer": last.name, "nc1": end},
            "undecided",
        )
        return
    yield _collapse_sentence(layers[0], inner[0], last, end, record.trend("nc1"))


def _collapse_sentence(
    first: Layer, stem: Layer, last: Layer, end: float, trend: Trend
) -> Sentence:
    interval = _nc1(last)[1]
    is_corrected = _is_corrected(last)
    start = _nc1(first)[0] if _is_corrected(first) == is_corrected else None  # not comparable
    lower, upper = (_level(value) for value in (interval or (end, end)))
    level = lower if lower == upper else f"between {lower} and {upper}"
    initial = "" if start is None else f"; at {first.name} it is {rounded(start)}"
    evidence = {
        "nc1": last.collapse.measure("nc1"),
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
    corrected = ", corrected for few samples per class," if is_corrected else ""
    value = (
        "cannot be distinguished from 0"
        if end < THRESHOLDS["rounding"] ** 2
        else f"is {_with_interval(end, interval)}"
    )
    return Sentence(
        "collapse",
        f"At {last.name} the classes of these images are {level}: NC1 (variability within "
        f"classes over that between them, 0 at complete collapse){corrected} {value}"
        f"{_uncorrected(last)}{initial}{_trend(trend, stem)}.",
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
    """Return NC1, or its corrected estimate for few samples per class, and the interval."""
    key = "nc1_corrected" if _is_corrected(layer) else "nc1"
    return layer.collapse.measure(key), layer.collapse.interval(key)


def _uncorrected(layer: Layer) -> str:
    value = layer.collapse.measure("nc1")
    relevant = _is_corrected(layer) and value is not None
    return f" [uncorrected: {rounded(value)}]" if relevant else ""


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


def next_steps(record: Record, body: Sequence[Sentence]) -> Iterator[Sentence]:
    undecided = {s.claim for s in body if s.strength == "undecided"}
    open_claims = [c for c in _QUESTIONS if any(s.claim == c and _leaves_open(s) for s in body)]
    if not open_claims:
        return
    ways = ["more images"]
    if record.provenance.pool == "gap":
        ways.append("less pooling of the features (`pool='grid:2'`)")
    tested = any(block.brenier.points for block in record.blocks)
    if not tested:
        ways.append("the Jacobians (`brenier=16`)")
    questions = listed([_QUESTIONS[claim] for claim in open_claims])
    yield Sentence(
        "next",
        f"{questions[:1].upper()}{questions[1:]} could be decided by {listed(ways, 'or')}.",
        {"open": sorted(undecided), "questions": open_claims, "tested": tested},
        "undecided",
    )


_QUESTIONS = {  # claims that more evidence could decide
    "straightness": "whether the path is straight",
    "optimality": "from which layer the map to the last layer is optimal",
    "blocks": "whether the undecided blocks are optimal maps",
}


def _leaves_open(sentence: Sentence) -> bool:
    """Return whether more evidence could decide what a sentence leaves undecided."""
    evidence = sentence.evidence
    if sentence.claim == "straightness":
        return bool(evidence.get("turns_unseen"))
    parts = any(b["kind"] == "undecided" for b in evidence.get("blocks", []))
    return sentence.strength == "undecided" or bool(evidence.get("later_undecided")) or parts
