"""Sentences on the comparison with a reference, on collapse, and on how to decide the rest."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from ...text import counted
from .sentence import THRESHOLDS, Record, Sentence
from .wording import OVER_IMAGES, listed, ranged, rounded, segment_ends


def reference(record: Record) -> Iterator[Sentence]:
    reference = record.get("reference") or {}
    rows = reference.get("segments") or []
    for k, row in enumerate(rows):
        networks, images = len(reference.get("networks") or []), reference.get("images")
        yield _against_fresh(row, networks, images, len(rows), explained=k > 0)
    for row in reference.get("tests") or []:
        yield against_network(row, reference.get("kind") or "network")


def against_network(row: Record, kind: str = "network") -> Sentence:
    """State the result of `wgeo.straighter_than` for one segment of two networks, over images.

    The statement is about these two networks only. Two training runs with different seeds usually
    differ as clearly, so nothing is stated about recipes, whatever the p-value.
    """
    low, high = row["interval"]
    is_centered = row["statistic"].endswith("_centred")
    name = row["statistic"].removesuffix("_centred").replace("_shape", "-shape").replace("_", " ")
    differs = row.get("direction", "neither") != "neither"
    other, scope = _SCOPE["shuffled" if kind == "shuffled" else "network"]
    outcome = scope if differs else "These images do not show a difference"
    return Sentence(
        "reference",
        f"{segment_ends(row)} the {name}{' of the centered paths' if is_centered else ''} is "
        f"{rounded(row['value'])} for this network and {rounded(row['reference'])} for {other}, a "
        f"difference of {row['difference']:+.3g} ({low:+.3g} to {high:+.3g}{OVER_IMAGES}). "
        f"{outcome}.",
        dict(row),
        "shown" if differs else "undecided",
    )


_SCOPE = {  # the other network, and the meaning of a difference over images
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


def _against_fresh(
    row: Record, networks: int, images: int | None, segments: int, explained: bool
) -> Sentence:
    subject = segment_ends(row)
    evidence = {
        key: row.get(key) for key in ("layers", "value", "median", "low", "high", "adjusted_p")
    } | {"networks": networks}
    ratio = (
        f"line-shape ratio{'' if explained else _LINE_SHAPE} {rounded(row['value'])}, compared "
        f"with a median of {rounded(row['median'])} (range {rounded(row['low'])} to "
        f"{rounded(row['high'])}) of the others"
    )
    direction = row.get("direction")
    differs = direction in ("straighter", "less straight")
    outcome = f"{direction} than" if differs else "not distinguishable in straightness from"
    on_images = "" if images is None else f", on {images:,} of these images"
    adjusted = f", adjusted for {segments} segments by their maximum" if segments > 1 else ""
    extreme = networks and row["adjusted_p"] <= 1.001 / (networks + 1)
    return Sentence(
        "reference",
        f"{subject} the network is {outcome} {networks} randomly initialized networks of this "
        f"architecture{on_images}: {ratio}; p = {row['adjusted_p']:.2g}, from its rank among all "
        f"{networks + 1}{adjusted}"
        f"{' (the smallest possible p)' if extreme else ''}.",
        evidence,
        "shown" if differs else "undecided",
    )


_MOST_NAMED = 3  # layers at which NC1 rises; more are counted
_LINE_SHAPE = (
    " (length of an image's own centered path over the distance between its ends, averaged over "
    "images; 1 is a straight line)"
)


def collapse(record: Record) -> Iterator[Sentence]:
    layers = [layer for layer in record.get("layers") or [] if layer.get("collapse")]
    trend = (record.get("progress") or {}).get("nc1") or {}
    inner = [layer for layer in layers if layer.get("stage") is not None]
    if not inner:
        return
    last = inner[-1]
    end, _ = _nc1(last)
    if end is None:
        reason = (last["collapse"].get("undefined") or {}).get("nc1", "it is undefined")
        yield Sentence(
            "collapse",
            f"Whether the classes collapse is undecided: NC1 is undefined at {last['name']} "
            f"({reason}).",
            {"layer": last["name"]},
            "undecided",
        )
        return
    samples = last["collapse"].get("samples_per_class")
    if samples and samples < THRESHOLDS["few_a_class"] and not _is_corrected(last):
        yield Sentence(
            "collapse",
            f"Whether the classes collapse is undecided: with {counted(samples, 'sample')} in the "
            f"smallest class, the class means at {last['name']} are too uncertain to correct the "
            f"bias of NC1 ({rounded(end)}). More images per class would decide.",
            {"layer": last["name"], "nc1": end, "samples_per_class": samples},
            "undecided",
        )
        return
    if end > THRESHOLDS["rounding"] ** -2:
        yield Sentence(
            "collapse",
            f"At {last['name']} the class means of these images cannot be distinguished: their "
            "scatter is rounding error relative to the scatter within classes, so nothing has "
            "collapsed.",
            {"layer": last["name"], "nc1": end},
            "undecided",
        )
        return
    yield _collapse_sentence(layers, inner, trend)


def _collapse_sentence(
    layers: Sequence[Record], inner: Sequence[Record], trend: Record
) -> Sentence:
    first, last = layers[0], inner[-1]
    end, interval = _nc1(last)
    is_corrected = _is_corrected(last)
    start = _nc1(first)[0] if _is_corrected(first) == is_corrected else None  # not comparable
    lower, upper = (_level(value) for value in (interval or (end, end)))
    level = lower if lower == upper else f"between {lower} and {upper}"
    initial = "" if start is None else f"; at {first['name']} it is {rounded(start)}"
    evidence = {
        "nc1": last["collapse"].get("nc1"),
        **({"nc1_corrected": end} if is_corrected else {}),
        "interval": interval,
        "layer": last["name"],
        "level": [lower] if lower == upper else [lower, upper],
        "nc1_first": start,
        "first": first["name"],
        "kendall_tau": trend.get("kendall_tau"),
        "kendall_interval": trend.get("interval"),
        "violations": trend.get("violations"),
        "increases": trend.get("increases"),
    }
    corrected = ", corrected for few samples per class," if is_corrected else ""
    value = (
        "cannot be distinguished from 0"
        if end < THRESHOLDS["rounding"] ** 2
        else f"is {_with_interval(end, interval)}"
    )
    return Sentence(
        "collapse",
        f"At {last['name']} the classes of these images are {level}: NC1 (variability within "
        f"classes over that between them, 0 at complete collapse){corrected} {value}"
        f"{_uncorrected(last)}{initial}{_trend(trend, inner[0])}.",
        evidence,
        "suggested" if interval is None or lower != upper else "shown",
    )


def _level(nc1: float) -> str:
    if nc1 <= THRESHOLDS["collapsed"]:
        return "collapsed"
    return "partly collapsed" if nc1 <= THRESHOLDS["partly_collapsed"] else "not collapsed"


def _with_interval(value: float, interval: Any) -> str:
    """Format a value and its interval, which is corrected for bias and may not contain it."""
    outside = interval is not None and not interval[0] <= value <= interval[1]
    note = f"{OVER_IMAGES}{', corrected for bias' if outside else ''}"
    return ranged(value, interval, note=note)


def _is_corrected(layer: Record) -> bool:
    return layer["collapse"].get("nc1_corrected") is not None


def _nc1(layer: Record) -> tuple[Any, Any]:
    """Return NC1 with its interval; for few samples per class, the corrected estimate."""
    key = "nc1_corrected" if _is_corrected(layer) else "nc1"
    return layer["collapse"].get(key), (layer["collapse"].get("intervals") or {}).get(key)


def _uncorrected(layer: Record) -> str:
    """Format the uncorrected value, which is biased for few samples per class."""
    value = layer["collapse"].get("nc1")
    relevant = _is_corrected(layer) and value is not None
    return f" [uncorrected: {rounded(value)}]" if relevant else ""


def _trend(trend: Record, first: Record) -> str:
    tau, rises = trend.get("kendall_tau"), trend.get("violations")
    if tau is None or rises is None:
        return ""
    if rises == 0:
        return f"; from {first['name']} onward it falls at every layer"
    if tau < 0:
        names = trend.get("increases") or ()  # absent from records of wgeo 0.1
        where = listed(names) if 0 < len(names) <= _MOST_NAMED else counted(rises, "layer")
        return f"; from {first['name']} onward it falls with depth except at {where}"
    return "; it does not fall with depth"


def next_steps(record: Record, body: Sequence[Sentence]) -> Iterator[Sentence]:
    undecided = {s.claim for s in body if s.strength == "undecided"}
    open_claims = [c for c in _QUESTIONS if any(s.claim == c and _leaves_open(s) for s in body)]
    if not open_claims:
        return
    provenance = record.get("provenance") or {}
    ways = ["more images"]
    if provenance.get("pool") == "gap":
        ways.append("less pooling of the features (`pool='grid:2'`)")
    tested = any((b.get("brenier") or {}).get("points") for b in record.get("blocks") or [])
    if not tested:
        ways.append("the Jacobians (`brenier=16`)")
    questions = listed([_QUESTIONS[claim] for claim in open_claims])
    yield Sentence(
        "next",
        f"{questions[:1].upper()}{questions[1:]} could be decided by {listed(ways, 'or')}.",
        {"open": sorted(undecided), "questions": open_claims, "tested": tested},
        "undecided",
    )


_QUESTIONS = {  # the claims that more evidence could decide, in the order of the verdict
    "straightness": "whether the path is straight",
    "optimality": "from which layer the map to the last layer is optimal",
    "blocks": "whether the undecided blocks are optimal maps",
}


def _leaves_open(sentence: Sentence) -> bool:
    """Return whether a sentence leaves a question open that more evidence could decide."""
    evidence = sentence.evidence
    if sentence.claim == "straightness":
        return bool(evidence.get("turns_unseen"))
    parts = any(b["kind"] == "undecided" for b in evidence.get("blocks", []))
    return sentence.strength == "undecided" or bool(evidence.get("later_undecided")) or parts
