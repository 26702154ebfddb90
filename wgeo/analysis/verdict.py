"""Every sentence that wgeo says about a network, each made from the evidence that supports it.

A sentence is a function of a record's numbers: `sentences` reads a record and returns them in the
order in which they are printed. They open with what speaks against trusting the rest. No other
module composes one, and `THRESHOLDS` holds every number at which the words change.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

from ..geodesic.nulls import POWER_MARGIN
from .wording import count, listed, percent, ranged, rounded, segment_ends

Record = Mapping[str, Any]
Strength = Literal["shown", "suggested", "undecided", "warning"]

THRESHOLDS: dict[str, float] = {
    "straight": 1.05,
    "close": 1.2,
    "bent": 1.5,
    "orthogonal": 0.5,
    "few_moving": 1.1,
    "optimal": 0.99,
    "nearly_optimal": 0.95,
    "power_margin": POWER_MARGIN,
    "nearly_a_point": 10.0,
    "mostly_shift": 0.5,
    "rounding": 1e-6,
    "fewest_samples": 20,
    "few_a_class": 20,
    "chance_level": 0.01,
    "below_claim": 0.05,
    "gradient_map": 0.01,
    "collapsed": 0.1,
    "partly_collapsed": 1.0,
    "significant": 0.05,
}
"""The numbers at which words change.

straight, close, bent
    Centred length ratios up to which a path is called straight, close to straight, and bent. A
    quarter circle has 1.11, a zigzag of 45 degrees 1.41.
orthogonal
    How far from 1 towards sqrt(B) a length ratio may lie and still be called straight, where B is
    the effective number of moving blocks: mutually orthogonal steps have exactly sqrt(B).
few_moving
    sqrt(B) below which one block makes nearly all of a path, and its length ratio says little.
optimal, nearly_optimal
    Correlation scores from which a map is called optimal, and nearly optimal.
power_margin
    How far a correlation score must lie above those of null maps for the samples to tell.
nearly_a_point
    Spread of the last cloud over that of the first from which the start is nearly a point, so that
    almost every coupling would be optimal.
mostly_shift
    Share of the squared displacement that is one common shift, from which it is mentioned.
rounding
    Displacements over the spread below which nothing is said.
fewest_samples, few_a_class
    Samples below which nothing is said, and samples a class below which it is a warning.
chance_level
    One-sided level of the binomial test of "better than chance".
below_claim
    How far below the accuracy that a file claims is a warning.
gradient_map
    Asymmetry of the Jacobian up to which a map is called a gradient map.
collapsed, partly_collapsed
    NC1 of the last layer up to which the classes are called collapsed, and partly collapsed.
significant
    Level of tests against a reference.
"""


@dataclass(frozen=True)
class Sentence:
    """One sentence of a verdict, with the numbers it rests on.

    Attributes
    ----------
    claim : str
        What it is about: ``accuracy``, ``normalization``, ``classes``, ``samples``,
        ``straightness``, ``optimality``, ``blocks``, ``collapse``, ``reference``, ``next``.
    words : str
    evidence : dict
        The numbers that decided the words.
    strength : {"shown", "suggested", "undecided", "warning"}
        ``shown``: an interval, a certificate or a test supports it; ``suggested``: a value alone;
        ``undecided``: these samples cannot tell; ``warning``: a reason to doubt the rest.
    """

    claim: str
    words: str
    evidence: Mapping[str, Any]
    strength: Strength

    def to_dict(self) -> dict[str, Any]:
        """Return plain values, for a record."""
        return asdict(self)


def sentences(record: Record) -> tuple[Sentence, ...]:
    """Return what a record's numbers support saying, in the order in which it is printed.

    Parameters
    ----------
    record : mapping
        As `wgeo.Analysis.record` holds it; `Straightness.to_dict()` or `Collapse.to_dict()` alone
        give the sentences on straightness or collapse.
    """
    trust = record.get("trust") or {}
    opening = [*_accuracy(trust), *_normalization(trust), *_classes(trust), *_samples(trust)]
    if _silenced(trust):
        return tuple(opening)
    body = [
        *_straightness(record),
        *_optimality(record),
        *_blocks(record),
        *_reference(record),
        *_collapse(record),
    ]
    return (*opening, *body, *_next(record, body))


def text(said: Sequence[Mapping[str, Any] | Sentence]) -> str:
    """Join the words of sentences, or of a record's ``verdict``."""
    words = (s.words if isinstance(s, Sentence) else str(s.get("words", "")) for s in said)
    return " ".join(part for part in words if part)


# --- what speaks against trusting the rest ------------------------------------------------------


def _silenced(trust: Record) -> bool:
    """Whether nothing is said of the network: it guesses, or there are too few samples."""
    samples = trust.get("samples")
    few = samples is not None and samples < THRESHOLDS["fewest_samples"]
    return bool(trust.get("at_chance")) or few


def _accuracy(trust: Record) -> Iterator[Sentence]:
    accuracy, chance, images = (trust.get(key) for key in ("accuracy", "chance", "samples"))
    if accuracy is None or chance is None or images is None:
        return
    evidence = {key: trust.get(key) for key in ("accuracy", "chance", "chance_p", "samples")}
    said = f"The network classifies {percent(accuracy)} of these {count(images, 'image')} correctly"
    if trust.get("at_chance"):
        yield Sentence(
            "accuracy",
            f"{said}, which is no better than guessing ({percent(chance)}): it does not classify "
            "these images, and nothing more is said about it.",
            evidence,
            "warning",
        )
    else:
        yield Sentence("accuracy", f"{said} (guessing: {percent(chance)}).", evidence, "shown")
    claimed = trust.get("claimed_accuracy")
    if claimed and claimed["value"] - accuracy > THRESHOLDS["below_claim"]:
        yield Sentence(
            "accuracy",
            f"Its file claims {percent(claimed['value'])} ({claimed['key']}): these may be other "
            "or altered images, or pixels normalized differently from those of its training.",
            {**evidence, "claimed_accuracy": claimed},
            "warning",
        )


_SOURCES = {
    "architecture": "published checkpoints of this architecture",
    "data": "the data set",
    "none": "nothing: pixels stay in [0, 1]",
}


def _normalization(trust: Record) -> Iterator[Sentence]:
    used = trust.get("normalization") or {}
    better = used.get("better")
    if better:
        tried = {row["name"]: row["accuracy"] for row in used["tried"]}
        yield Sentence(
            "normalization",
            f'With normalize="{better}" the network classifies {percent(tried[better])} of '
            f"{used['images']} of these images correctly, against {percent(tried[used['name']])} "
            f"as they were normalized ({used['name']}): the pixels are probably normalized wrongly,"
            " and then so are all numbers below.",
            {**used},
            "warning",
        )
    elif used.get("source") in ("data", "none"):
        origin = _SOURCES[used["source"]]
        what = "not normalized" if used["source"] == "none" else f"normalized as {used['name']}"
        yield Sentence(
            "normalization",
            f"The pixels were {what}, an assumption (from {origin}): neither the file nor the "
            "caller says how they were normalized in training."
            if used["source"] == "data"
            else "The pixels were not normalized, an assumption: nothing says how they were in "
            "training.",
            {key: used.get(key) for key in ("name", "mean", "std", "source")},
            "warning",
        )


def _classes(trust: Record) -> Iterator[Sentence]:
    classes = trust.get("classes") or {}
    present, head = classes.get("present"), classes.get("head")
    if not present or not head or present == head:
        return
    few = present < head
    yield Sentence(
        "classes",
        f"The images show {present} classes and the network tells {head} apart"
        + (
            ": what is said about classes is said about those that occur."
            if few
            else ", so some labels can never be predicted."
        ),
        dict(classes),
        "warning",
    )


def _samples(trust: Record) -> Iterator[Sentence]:
    images, smallest = trust.get("samples"), trust.get("samples_per_class")
    if images is not None and images < THRESHOLDS["fewest_samples"]:
        yield Sentence(
            "samples",
            f"There are {count(images, 'sample')}; with fewer than "
            f"{THRESHOLDS['fewest_samples']:.0f} nothing is said about the network.",
            {"samples": images},
            "warning",
        )
        return
    if smallest is not None and smallest < THRESHOLDS["few_a_class"]:
        yield Sentence(
            "samples",
            f"The smallest class has {count(smallest, 'sample')}: the metrics of collapse are "
            "biased with so few, and corrected estimates stand beside them."
            if smallest > 1
            else "One class has a single sample: within-class variability is undefined for it.",
            {"samples_per_class": smallest},
            "warning",
        )
    copies = trust.get("duplicates") or 0
    if copies:
        yield Sentence(
            "samples",
            f"{count(copies, 'image')} of {images:,} "
            f"{'is a copy' if copies == 1 else 'are copies'} of another; intervals resample "
            "distinct images.",
            {"duplicates": copies, "samples": images},
            "warning",
        )


# --- straightness -------------------------------------------------------------------------------


def _straightness(record: Record) -> Iterator[Sentence]:
    for segment in record.get("segments") or []:
        yield _path(segment)


def _path(segment: Record) -> Sentence:
    where = segment_ends(segment)
    moved = segment.get("relative_displacement")
    if moved is not None and moved < THRESHOLDS["rounding"]:
        return _silent(
            segment,
            f"{where} the features move by less than rounding can tell "
            f"({moved:.0e} of their spread).",
            {"relative_displacement": moved},
        )
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


def _silent(segment: Record, words: str, evidence: dict[str, Any]) -> Sentence:
    return Sentence("straightness", words, {"layers": _ends(segment), **evidence}, "undecided")


def _ends(segment: Record) -> list[str]:
    return [segment["layers"][0], segment["layers"][-1]]


def _judged_path(segment: Record, where: str, centred: Record) -> Sentence:
    ratio = centred["length_ratio"]
    interval = (centred.get("intervals") or {}).get("length_ratio")
    bound = centred.get("sqrt_moving_blocks") or segment.get("sqrt_moving_blocks")
    evidence = {
        "layers": _ends(segment),
        "length_ratio_centred": ratio,
        "interval": interval,
        "length_ratio": segment.get("length_ratio"),
        "sqrt_moving_blocks": bound,
        "shift_share": segment.get("shift_share"),
    }
    said = (
        f"{where} the path of the centred features is {ranged(ratio, interval)} times as long as "
        f"the geodesic between its ends{_over(interval)}"
    )
    word, strength = _shape(ratio, interval, bound)
    orthogonal = "" if bound is None else f" (orthogonal steps of the same sizes: {bound:.2f})"
    return Sentence(
        "straightness", f"{said}{orthogonal}{word}.{_shift(segment)}", evidence, strength
    )


def _over(interval: Any) -> str:
    return "" if interval is None else ", over images, for this network"


def _shape(ratio: float, interval: Any, bound: float | None) -> tuple[str, Strength]:
    """What a path is called: its interval must lie in one category, well below sqrt(B)."""
    if interval is None:
        return "; without an interval (bootstrap=0) it is not given a name", "suggested"
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


# --- is the map optimal? --------------------------------------------------------------------------


def _optimality(record: Record) -> Iterator[Sentence]:
    for segment in record.get("segments") or []:
        moved = segment.get("relative_displacement")
        if segment.get("corr_score") is None or (moved or 0) < THRESHOLDS["rounding"]:
            continue
        yield _end_to_end(segment)


def _end_to_end(segment: Record) -> Sentence:
    """From which layer on is the map to the segment's last layer optimal?"""
    scores = _scores_to_end(segment)
    first = scores[0]
    evidence = {"layers": _ends(segment), "scores": scores}
    where = segment_ends(segment)
    found = next((row for row in scores if row["optimal"]), None)
    tail = _dirac(segment)
    if found is not None:
        rest = "" if found is first else f"; {_below(first, segment)}"
        start = where if found is first else f"From {found['from']} to {segment['layers'][-1]}"
        return Sentence(
            "optimality",
            f"{start} the map is {found['word']} for these samples (correlation score "
            f"{_score(found)}; the same displacements given to the wrong samples: at most "
            f"{found['null']:.3f}){rest}.{tail}",
            evidence,
            "shown",
        )
    if any(row["low"] >= THRESHOLDS["nearly_optimal"] for row in scores):
        return Sentence(
            "optimality",
            f"{where} whether the map is optimal, these samples cannot tell: its correlation score "
            f"is {_score(first)}, and random displacements score as high where it is high.{tail}",
            evidence,
            "undecided",
        )
    return Sentence(
        "optimality",
        f"{where} the map is not optimal (correlation score {_score(first)}; 1 for an optimal "
        f"map){_best(scores)}.{tail}",
        evidence,
        "shown",
    )


def _best(scores: Sequence[Record]) -> str:
    best = max(scores, key=lambda row: row["value"])
    if len(scores) < 2 or best is scores[0]:
        return ""
    return f", nor is it from any later layer (at most {best['value']:.3f}, from {best['from']})"


def _below(first: Record, segment: Record) -> str:
    if first["low"] >= THRESHOLDS["nearly_optimal"]:
        return f"from {segment['layers'][0]} the samples cannot tell ({_score(first)})"
    return f"from {segment['layers'][0]} it is not ({_score(first)})"


def _score(row: Record) -> str:
    return ranged(row["value"], (row["low"], row["high"]), certified=True)


def _scores_to_end(segment: Record) -> list[dict[str, Any]]:
    """The correlation score of the map from each layer to the last, with its null."""
    rows = [_row(segment["layers"][0], segment["corr_score"], _null(segment), segment)]
    pairs = segment.get("pairs") or {}
    for i, name in enumerate((pairs.get("layers") or [])[1:-1], 1):
        score = tuple(pairs[key][i][-1] for key in ("corr_score", "corr_low", "corr_high"))
        if None not in score:
            null = pairs["null"][i][-1] if pairs.get("null") else None
            rows.append(_row(name, score, null, segment))
    return rows


def _row(name: str, score: Sequence[float], null: float | None, segment: Record) -> dict[str, Any]:
    value, low, high = score
    margin = max(THRESHOLDS["power_margin"], 1 / math.sqrt(segment.get("samples") or 1))
    power = None if null is None else low > null + margin
    word = "optimal" if low >= THRESHOLDS["optimal"] else "nearly optimal"
    known = {"from": name, "value": value, "low": low, "high": high, "null": null, "power": power}
    return {**known, "word": word, "optimal": bool(power) and low >= THRESHOLDS["nearly_optimal"]}


def _null(row: Record) -> float | None:
    """The highest certified bound of the null scores."""
    return max(
        (null["score"][2] for null in row.get("null") or [] if null.get("score")), default=None
    )


def _dirac(segment: Record) -> str:
    ratio = segment.get("spread_ratio")
    if ratio is None or ratio < THRESHOLDS["nearly_a_point"]:
        return ""
    return (
        f" Its first cloud is {ratio:.0f} times smaller than its last, nearly a point, from which "
        "almost any map would look optimal by the OT score."
    )


# --- single blocks ------------------------------------------------------------------------------


def _blocks(record: Record) -> Iterator[Sentence]:
    blocks = [b for b in record.get("blocks") or [] if b.get("corr_score") is not None]
    if not blocks:
        return
    kinds = [_block_kind(block) for block in blocks]
    evidence = {
        "blocks": [
            {"target": b["target"], "kind": kind, "corr_score": b["corr_score"]}
            for b, kind in zip(blocks, kinds, strict=True)
        ]
    }
    clauses = [
        f"{kinds.count(kind)} {words[kinds.count(kind) > 1]}"
        for kind, words in _KINDS.items()
        if kinds.count(kind)
    ]
    undecided = kinds.count("undecided") == len(kinds)
    yield Sentence(
        "blocks",
        f"Of {count(len(blocks), 'block')} in one space, {listed(clauses)}{_jacobians(blocks)}.",
        evidence,
        "undecided" if undecided else "shown",
    )


def _jacobians(blocks: Sequence[Record]) -> str:
    """What the Brenier test measured: of all features, whatever pooling the rest is about."""
    tested = [block["brenier"] for block in blocks if block.get("brenier")]
    known = [row["asymmetry"] for row in tested if row.get("asymmetry") is not None]
    if not known:
        return ""
    return (
        f" (unpooled, at {count(tested[0]['points'], 'image')}: asymmetry {min(known):.2g} to "
        f"{max(known):.2g}, 0 for a gradient map)"
    )


_KINDS = {  # of one block, of several
    "gradient": (
        "has Jacobians like those of an optimal map (symmetric, no negative eigenvalue)",
        "have Jacobians like those of optimal maps (symmetric, no negative eigenvalue)",
    ),
    "not gradient": (
        "cannot be an optimal map by its Jacobians",
        "cannot be optimal maps by their Jacobians",
    ),
    "not optimal": (
        "is not an optimal map of these samples",
        "are not optimal maps of these samples",
    ),
    "optimal": ("is an optimal map of these samples", "are optimal maps of these samples"),
    "undecided": (
        "moves the samples too little for them to tell",
        "move the samples too little for them to tell",
    ),
}


def _block_kind(block: Record) -> str:
    """What is known of a block: its Jacobians decide if they were tested, else the samples."""
    tested = block.get("brenier") or {}
    if tested.get("excluded") is not None:
        return "not gradient" if tested["excluded"] else "gradient"
    _, low, high = block["corr_score"]
    if high < THRESHOLDS["nearly_optimal"]:
        return "not optimal"
    return "optimal" if block.get("power") and low >= THRESHOLDS["optimal"] else "undecided"


# --- a reference --------------------------------------------------------------------------------


def _reference(record: Record) -> Iterator[Sentence]:
    reference = record.get("reference") or {}
    for row in reference.get("segments") or []:
        yield _against_fresh(row, len(reference.get("networks") or []))
    for row in reference.get("tests") or []:
        yield against_network(row)


def against_network(row: Record) -> Sentence:
    """Return what `wgeo.straighter_than` found of one segment: over images, of two networks."""
    low, high = row["interval"]
    better = row["effect_size"] > 0
    told = not low <= 0 <= high and (not better or row["p_value"] <= THRESHOLDS["significant"])
    outcome = (
        ("straighter than" if better else "less straight than") if told else "not told apart from"
    )
    name = row["statistic"].replace("_", " ")
    return Sentence(
        "reference",
        f"From {row['layers'][0]} to {row['layers'][-1]} the network is {outcome} the one it is "
        f"compared with, on these images: {name} {rounded(row['value'])} against "
        f"{rounded(row['reference'])}, difference {row['difference']:+.3g} ({low:+.3g} to "
        f"{high:+.3g}). Other trainings of the two may differ otherwise.",
        dict(row),
        "shown" if told else "undecided",
    )


def _against_fresh(row: Record, networks: int) -> Sentence:
    where = f"From {row['layers'][0]} to {row['layers'][-1]}"
    evidence = {
        key: row.get(key) for key in ("layers", "value", "median", "low", "high", "adjusted_p")
    } | {"networks": networks}
    known = (
        f"line-shape ratio of the centred paths {rounded(row['value'])}, against "
        f"{rounded(row['median'])} ({rounded(row['low'])} to {rounded(row['high'])})"
    )
    direction = row.get("direction")
    told = direction in ("straighter", "less straight")
    outcome = f"{direction} than" if told else "not told apart from"
    return Sentence(
        "reference",
        f"{where} the network is {outcome} {networks} networks of this architecture with fresh "
        f"weights ({known}; rank p = {row['adjusted_p']:.2g}, over networks).",
        evidence,
        "shown" if told else "undecided",
    )


# --- collapse -----------------------------------------------------------------------------------


def _collapse(record: Record) -> Iterator[Sentence]:
    layers = [layer for layer in record.get("layers") or [] if layer.get("collapse")]
    trend = (record.get("progress") or {}).get("nc1") or {}
    inner = [layer for layer in layers if layer.get("stage") is not None]
    if not inner:
        return
    last = inner[-1]
    end = last["collapse"].get("nc1")
    if end is None:
        why = (last["collapse"].get("undefined") or {}).get("nc1", "it is undefined")
        yield Sentence(
            "collapse",
            f"Whether the classes collapse cannot be said: NC1 is undefined at {last['name']} "
            f"({why}).",
            {"layer": last["name"]},
            "undecided",
        )
        return
    yield _collapse_sentence(layers, inner, trend)


def _collapse_sentence(
    layers: Sequence[Record], inner: Sequence[Record], trend: Record
) -> Sentence:
    first, last = layers[0], inner[-1]
    start, end = first["collapse"].get("nc1"), last["collapse"]["nc1"]
    interval = (last["collapse"].get("intervals") or {}).get("nc1")
    high = end if interval is None else interval[1]
    level = (
        "collapsed"
        if high <= THRESHOLDS["collapsed"]
        else "partly collapsed"
        if high <= THRESHOLDS["partly_collapsed"]
        else "not collapsed"
    )
    begun = "" if start is None else f" ({rounded(start)} at {first['name']})"
    evidence = {
        "nc1": end,
        "interval": interval,
        "nc1_first": start,
        "first": first["name"],
        "kendall_tau": trend.get("kendall_tau"),
        "violations": trend.get("violations"),
    }
    return Sentence(
        "collapse",
        f"At {last['name']} the classes of these images are {level}: within-class variability "
        f"NC1 is {ranged(end, interval)}{begun}{_trend(trend)}.",
        evidence,
        "suggested" if interval is None else "shown",
    )


def _trend(trend: Record) -> str:
    tau, rises = trend.get("kendall_tau"), trend.get("violations")
    if tau is None or rises is None:
        return ""
    if rises == 0:
        return "; from the first layer on it falls at every layer"
    if tau < 0:
        return f"; from the first layer on it falls with depth except at {count(rises, 'layer')}"
    return "; it does not fall with depth"


# --- what would decide it -----------------------------------------------------------------------


def _next(record: Record, body: Sequence[Sentence]) -> Iterator[Sentence]:
    open_claims = {s.claim for s in body if s.strength == "undecided"}
    partly = any(
        row["kind"] == "undecided"
        for s in body
        if s.claim == "blocks"
        for row in s.evidence["blocks"]
    )
    if not (open_claims & {"optimality", "straightness", "blocks", "reference"} or partly):
        return
    about = record.get("provenance") or {}
    ways = ["more images (samples)"]
    if about.get("pool") == "gap":
        ways.append('features with more room to move (pool="grid:2")')
    tested = any((b.get("brenier") or {}).get("points") for b in record.get("blocks") or [])
    if not tested:
        ways.append("the Jacobians (brenier=16)")
    yield Sentence(
        "next",
        f"What is left open could be decided by {listed(ways, 'or')}.",
        {"open": sorted(open_claims), "tested": tested},
        "undecided",
    )
