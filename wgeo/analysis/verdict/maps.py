"""Sentences on optimality: segments are judged by correlation scores, blocks by their Jacobians.

If the Jacobians of a block were not computed, the block is judged by its correlation score.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

from ...geodesic.nulls import clearly_above, margin
from ...text import counted
from .sentence import THRESHOLDS, Record, Sentence
from .wording import ends, few_carrying, listed, ranged, segment_ends, start_of, unmoved

_SCORE = (
    " (A map takes each sample's features at one layer to those at a later one. Its correlation "
    "score is 1 if no other pairing of the samples at both ends makes transport cheaper, and 0 on "
    f"average for an unrelated pairing. The map is called optimal if its score is at least "
    f"{THRESHOLDS['optimal']}, and nearly optimal if it is at least "
    f"{THRESHOLDS['nearly_optimal']}.)"
)


def optimality(record: Record) -> Iterator[Sentence]:
    explained = False
    for segment in record.get("segments") or []:
        if unmoved(segment) or segment.get("relative_displacement") is None:
            continue
        if segment.get("corr_score") is not None:
            sentence = _end_to_end(segment, record.get("blocks") or [])
            yield sentence if explained else replace(sentence, words=sentence.words + _SCORE)
            explained = True
        elif _ends_in_point(segment):
            yield Sentence(
                "optimality",
                f"{segment_ends(segment)} any map would be optimal, because all samples have the "
                "same features at one end.",
                {"layers": ends(segment), "spread": segment["spread"]},
                "shown",
            )


def _ends_in_point(segment: Record) -> bool:
    spread = segment.get("spread") or [1.0]
    return bool(min(spread[0], spread[-1]) <= THRESHOLDS["rounding"] * max(spread))


def _end_to_end(segment: Record, blocks: Sequence[Record]) -> Sentence:
    """State the first layer from which the map to the segment's last layer is optimal."""
    scores = _scores_to_end(segment)
    first = scores[0]
    evidence = {"layers": ends(segment), "scores": scores}
    subject = segment_ends(segment)
    optimal = next((row for row in scores if row["optimal"]), None)
    tail = _near_point(segment)
    few = few_carrying(segment)
    if few and (optimal is not None or not _refuted(first)):
        return Sentence(
            "optimality",
            f"{subject} {few} the correlation score ({_score(first)}), so it is "
            f"open whether the map is optimal for the others.{tail}",
            {**evidence, "effective_samples": segment["effective_samples"]},
            "undecided",
        )
    if optimal is not None:
        rest = "" if optimal is first else f"; {_below(first, segment)}"
        start = (
            subject if optimal is first else f"From {optimal['from']} to {segment['layers'][-1]}"
        )
        rest += _excluded_by_jacobians(optimal["from"], segment, blocks)
        return Sentence(
            "optimality",
            f"{start} the map is {optimal['word']} for these samples (correlation score "
            f"{_score(optimal)}; the same displacements given to the wrong samples: at most "
            f"{optimal['null']:.3f}){rest}.{tail}",
            evidence,
            "shown",
        )
    if not _refuted(first):
        return Sentence(
            "optimality", f"{subject} {_undecided(first)}.{tail}", evidence, "undecided"
        )
    if few:
        tail = f" {few.capitalize()} this score.{tail}"
    later = next((row for row in scores if not _refuted(row)), None)
    evidence["later_undecided"] = later is not None
    rest = _best(scores) if later is None else f"; from {later['from']} onward {_undecided(later)}"
    return Sentence(
        "optimality",
        f"{subject} the map is not optimal (correlation score {_score(first)}){rest}.{tail}",
        evidence,
        "shown",
    )


def _excluded_by_jacobians(start: str, segment: Record, blocks: Sequence[Record]) -> str:
    """Name the blocks inside an optimal map whose own Jacobians exclude an optimal map."""
    inner = segment["layers"][segment["layers"].index(start) + 1 :]
    kinds = {block["target"]: _block_kind(block) for block in blocks}
    excluded = [name for name in inner if kinds.get(name) in ("not gradient", "nearly gradient")]
    if not excluded:
        return ""
    count = len(excluded)
    several = count > 1
    many = f"all its {count} blocks" if count == len(inner) else f"{count} of its blocks"
    named = listed(excluded) if count < 4 else many
    return (
        f"; but the Jacobians of {named}, computed before pooling, show that "
        f"{'they are not exactly optimal maps' if several else 'it is not an exactly optimal map'}"
    )


def _refuted(row: Record) -> bool:
    """Return whether the certified interval excludes a nearly optimal map."""
    return bool(row["high"] < THRESHOLDS["nearly_optimal"])


def _undecided(row: Record) -> str:
    """State why it is undecided whether a map is optimal, or whether it is nearly optimal."""
    score = f"correlation score {_score(row)}"
    if row["low"] < THRESHOLDS["nearly_optimal"]:
        reason = "the bounds of the score are too wide"
    elif row["null"] is None:
        reason = "the same displacements given to the wrong samples were not scored"
    else:
        needed = f"a score is evidence only if it is higher by at least {row['margin']:.2f}"
        if row["null"] + row["margin"] > 1:
            needed += ", which no score can be"
        reason = (
            f"the same displacements given to the wrong samples score {row['null']:.3f}, and "
            f"{needed}"
        )
    if row["high"] < THRESHOLDS["optimal"]:
        return (
            f"the map is not exactly optimal ({score}), and these samples do not show whether it "
            f"is nearly optimal: {reason}"
        )
    return f"these samples do not show whether the map is optimal ({score}): {reason}"


def _best(scores: Sequence[Record]) -> str:
    best = max(scores, key=lambda row: row["value"])
    if len(scores) < 2 or best is scores[0]:
        return ""
    highest = f"at most {best['value']:.3f}, from {best['from']}"
    return f", and neither is the map from any later layer ({highest})"


def _below(first: Record, segment: Record) -> str:
    if not _refuted(first):
        return f"from {start_of(segment)} this is undecided ({_score(first)})"
    return f"from {start_of(segment)} it is not ({_score(first)})"


def _score(row: Record) -> str:
    return ranged(row["value"], (row["low"], row["high"]), certified=True)


def _scores_to_end(segment: Record) -> list[dict[str, Any]]:
    """Return the correlation scores of the maps from each layer to the last, with null scores."""
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
    samples = segment.get("samples")
    power = None if null is None else clearly_above(low, null, samples)
    word = "optimal" if low >= THRESHOLDS["optimal"] else "nearly optimal"
    return {
        "from": name,
        "value": value,
        "low": low,
        "high": high,
        "null": null,
        "margin": margin(samples),
        "power": power,
        "word": word,
        "optimal": bool(power) and low >= THRESHOLDS["nearly_optimal"],
    }


def _null(row: Record) -> float | None:
    """Return the highest certified bound of the null scores."""
    return max(
        (null["score"][2] for null in row.get("null") or [] if null.get("score")), default=None
    )


def _near_point(segment: Record) -> str:
    ratio = segment.get("spread_ratio")
    if ratio is None or ratio < THRESHOLDS["nearly_a_point"]:
        return ""
    return (
        f" The spread of the features at {start_of(segment)} is {ratio:,.0f} times smaller than "
        f"at {segment['layers'][-1]}. If the first cloud is nearly a point, almost any map has a "
        "high OT score (the score of the papers), so the OT score of this segment is not evidence."
    )


def blocks(record: Record) -> Iterator[Sentence]:
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
    clauses = [_clause(kinds, kind) for kind in _KINDS if kind in kinds]
    whole = "The one block" if len(blocks) == 1 else f"Of {counted(len(blocks), 'block')},"
    undecided = kinds.count("undecided") == len(kinds)
    points = [block["brenier"]["points"] for block in blocks if block.get("brenier")]
    few = bool(points) and min(points) < THRESHOLDS["fewest_samples"]
    yield Sentence(
        "blocks",
        f"{whole} {listed(clauses)}{_jacobians(blocks)}.",
        evidence,
        "undecided" if undecided else "suggested" if few else "shown",
    )


def _clause(kinds: Sequence[str], kind: str) -> str:
    """Return a clause such as ``2 are undecided``; if all blocks are negated, ``none is ...``."""
    number = kinds.count(kind)
    one, several, none = _KINDS[kind]
    if len(kinds) == 1:
        return one
    if number < len(kinds):
        return f"{number} {one if number == 1 else several}"
    if none:
        return f"{'neither' if number == 2 else 'none'} {none}"
    return f"{'both' if number == 2 else 'all'} {several}"


def _jacobians(blocks: Sequence[Record]) -> str:
    """State the result of the Brenier test, which uses the features before pooling."""
    tests = [block["brenier"] for block in blocks if block.get("brenier")]
    asymmetry = _from_to(tests, "asymmetry")
    eigenvalue = _from_to(tests, "relative_eigenvalue")
    if not asymmetry:
        return ""
    smallest = eigenvalue and f", smallest eigenvalue {eigenvalue} of the largest"
    intervals = all(test.get("intervals") for test in tests)
    judged = ", judged by 95 % intervals over these images" if intervals else ""
    return (
        " (Jacobians: derivatives of a block's output with respect to its input, before pooling, "
        f"at {counted(tests[0]['points'], 'image')}{judged}; asymmetry {asymmetry}{smallest}; an "
        "optimal map has asymmetry 0 and no eigenvalue below 0)"
    )


def _from_to(rows: Sequence[Record], key: str) -> str:
    """Return the range of several blocks' values, such as ``0.06 to 0.49``; empty if undefined."""
    values = [row[key] for row in rows if row.get(key) is not None]
    if not values:
        return ""
    low, high = f"{min(values):.2g}", f"{max(values):.2g}"
    return low if low == high else f"{low} to {high}"


_KINDS = {  # the predicate for one block, for several, and after "none" if it is a negation
    "unmoved": (
        "does not move these samples by more than rounding error",
        "do not move these samples by more than rounding error",
        "moves these samples by more than rounding error",
    ),
    "gradient": (
        "has Jacobians consistent with an optimal map",
        "have Jacobians consistent with an optimal map",
        "",
    ),
    "nearly gradient": (
        "has Jacobians consistent with a nearly optimal map, but not with an optimal one",
        "have Jacobians consistent with a nearly optimal map, but not with an optimal one",
        "",
    ),
    "not gradient": (
        "has Jacobians that exclude even a nearly optimal map",
        "have Jacobians that exclude even a nearly optimal map",
        "",
    ),
    "not optimal": (
        "is not an optimal map of these samples",
        "are not optimal maps of these samples",
        "is an optimal map of these samples",
    ),
    "optimal": ("is an optimal map of these samples", "are optimal maps of these samples", ""),
    "nearly optimal": (
        "is a nearly optimal map of these samples",
        "are nearly optimal maps of these samples",
        "",
    ),
    "undecided": ("is undecided with these samples", "are undecided with these samples", ""),
}


def _block_kind(block: Record) -> str:
    """Classify a block: by its Jacobians if they were tested, else by its correlation score."""
    if unmoved(block):
        return "unmoved"
    test = block.get("brenier") or {}
    if test.get("excluded") is not None:
        if not test["excluded"]:
            return "gradient"
        return "nearly gradient" if _nearly_gradient(test) else "not gradient"
    score = _row(block.get("source", ""), block["corr_score"], _null(block), block)
    if _refuted(score):
        return "not optimal"
    return score["word"] if score["optimal"] and not few_carrying(block) else "undecided"


def _nearly_gradient(test: Record) -> bool:
    """Return whether the intervals allow a nearly symmetric and positive semi-definite Jacobian."""
    intervals, threshold = test.get("intervals") or {}, THRESHOLDS["nearly_gradient_map"]
    asymmetry, eigenvalue = test.get("asymmetry"), test.get("relative_eigenvalue")
    low = intervals.get("asymmetry", [asymmetry])[0]
    high = intervals.get("relative_eigenvalue", [eigenvalue])[-1]
    if low is None or high is None:
        return False
    return bool(low <= threshold and high >= -threshold)
