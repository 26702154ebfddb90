"""Sentences on optimality.

Segments are judged by their correlation scores. Blocks are judged by their Jacobians or, if these
were not computed, by their correlation scores.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

from ...storage.record import Block, Brenier, Optimality, Record, Score, Segment
from ...text import counted
from ...thresholds import clearly_above, margin
from .sentence import THRESHOLDS, Sentence
from .wording import ends, few_carrying, listed, ranged, segment_ends, spreads, start_of, unmoved

_SCORE = (
    " (A map takes each sample's features at one layer to those at a later one. Its correlation "
    "score is 1 if no other pairing of the samples at both ends makes transport cheaper, and 0 on "
    "average for an unrelated pairing. The map is called optimal if the lower bound of its score "
    f"is at least {THRESHOLDS['optimal']}, and nearly optimal if it is at least "
    f"{THRESHOLDS['nearly_optimal']}, provided that it clearly exceeds the scores of null maps.)"
)

_NULL_MAPS = "the same displacements, rotated or assigned to the wrong samples"


def optimality(record: Record) -> Iterator[Sentence]:
    explained = False
    for segment in record.segments:
        if unmoved(segment) or segment.relative_displacement is None:
            continue
        if segment.corr_score is not None:
            sentence = _end_to_end(segment, segment.corr_score, record.blocks)
            yield sentence if explained else replace(sentence, words=sentence.words + _SCORE)
            explained = True
        elif _has_point_end(segment):
            yield Sentence(
                "optimality",
                f"{segment_ends(segment.layers)} any map would be optimal, because all samples "
                "have the same features at one end.",
                {"layers": ends(segment.layers), "spread": segment.spread},
                "shown",
            )


def _has_point_end(segment: Segment) -> bool:
    spread = spreads(segment)
    return min(spread[0], spread[-1]) <= THRESHOLDS["rounding"] * max(spread)


def _end_to_end(segment: Segment, score: Score, blocks: Sequence[Block]) -> Sentence:
    """Name the first layer from which the map to the last is optimal or nearly optimal, if any."""
    scores = _scores_to_end(segment, score)
    first = scores[0]
    evidence: dict[str, Any] = {
        "layers": ends(segment.layers),
        "scores": [each.evidence() for each in scores],
    }
    subject = segment_ends(segment.layers)
    optimal = next((each for each in scores if each.word), None)
    tail = _near_point(segment)
    few = few_carrying(segment)
    if few and (optimal is not None or not _refuted(first)):
        return Sentence(
            "optimality",
            f"{subject} {few} the correlation score ({_score(first)}), so it is "
            f"undecided whether the map is optimal for the others.{tail}",
            {**evidence, "effective_samples": segment.effective_samples},
            "undecided",
        )
    if optimal is not None:
        rest = "" if optimal is first else f"; {_below(first, segment)}"
        start = subject if optimal is first else f"From {optimal.start} to {segment.layers[-1]}"
        rest += _excluded_by_jacobians(optimal.start, segment, blocks)
        return Sentence(
            "optimality",
            f"{start} the map is {optimal.word} for these samples (correlation score "
            f"{_score(optimal)}; {_NULL_MAPS}: at most {optimal.null:.3f}){rest}.{tail}",
            evidence,
            "shown",
        )
    if not _refuted(first):
        return Sentence(
            "optimality", f"{subject} {_undecided(first)}.{tail}", evidence, "undecided"
        )
    if few:
        tail = f" {few.capitalize()} this score.{tail}"
    later = next((each for each in scores if not _refuted(each)), None)
    evidence["later_undecided"] = later is not None
    rest = _best(scores) if later is None else f"; from {later.start} onward {_undecided(later)}"
    return Sentence(
        "optimality",
        f"{subject} the map is not optimal (correlation score {_score(first)}){rest}.{tail}",
        evidence,
        "shown",
    )


def _excluded_by_jacobians(start: str, segment: Segment, blocks: Sequence[Block]) -> str:
    """Name the blocks of an optimal map whose Jacobians show that they are not optimal."""
    inner = segment.layers[segment.layers.index(start) + 1 :]
    kinds = {block.target: _block_kind(block) for block in blocks}
    excluded = [name for name in inner if kinds.get(name) in ("not gradient", "nearly gradient")]
    if not excluded:
        return ""
    count = len(excluded)
    what = "this block is not an exactly optimal map"
    if count > 1:
        what = "these blocks are not exactly optimal maps"
    many = f"all its {count} blocks" if count == len(inner) else f"{count} of its blocks"
    named = listed(excluded) if count < 4 else many
    return f"; but the Jacobians of {named}, computed before pooling, show that {what}"


def _refuted(map_score: MapScore) -> bool:
    """Return whether the certified upper bound excludes even a nearly optimal map."""
    return map_score.score.high < THRESHOLDS["nearly_optimal"]


def _undecided(map_score: MapScore) -> str:
    """State why it is undecided whether a map is optimal or nearly optimal."""
    score = f"correlation score {_score(map_score)}"
    null = map_score.null
    if map_score.score.low < THRESHOLDS["nearly_optimal"]:
        reason = "the bounds of the score are too wide"
    elif null is None:
        reason = f"{_NULL_MAPS}, were not scored"
    else:
        needed = f"a score is evidence only if it is higher by at least {map_score.margin:.2f}"
        if null + map_score.margin > 1:
            needed += ", which no score can be"
        reason = f"{_NULL_MAPS}, score {null:.3f}, and {needed}"
    if map_score.score.high < THRESHOLDS["optimal"]:
        return (
            f"the map is not exactly optimal ({score}), and these samples do not show whether it "
            f"is nearly optimal: {reason}"
        )
    return f"these samples do not show whether the map is optimal ({score}): {reason}"


def _best(scores: Sequence[MapScore]) -> str:
    best = max(scores, key=lambda each: each.score.value)
    if len(scores) < 2 or best is scores[0]:
        return ""
    highest = f"at most {best.score.value:.3f}, from {best.start}"
    return f", and neither is the map from any later layer ({highest})"


def _below(first: MapScore, segment: Segment) -> str:
    start = start_of(segment.layers)
    if not _refuted(first):
        return f"from {start} this is undecided ({_score(first)})"
    return f"from {start} it is not ({_score(first)})"


def _score(map_score: MapScore) -> str:
    value, low, high = map_score.score
    return ranged(value, (low, high), certified=True)


def _scores_to_end(segment: Segment, score: Score) -> list[MapScore]:
    """Return the scores of the maps from each layer to the last."""
    scores = [MapScore.of(segment.layers[0], score, segment.highest_null, segment)]
    pairs = segment.pairs
    for i, name in enumerate(pairs.layers[1:-1], 1):
        value, low, high = (m[i][-1] for m in (pairs.corr_score, pairs.corr_low, pairs.corr_high))
        if value is not None and low is not None and high is not None:
            null = pairs.null[i][-1] if pairs.null else None
            scores.append(MapScore.of(name, Score(value, low, high), null, segment))
    return scores


@dataclass(frozen=True)
class MapScore:
    """The correlation score of the map from the layer `start`, and the highest score of null maps.

    The score is evidence (`clear`) only if it exceeds that of null maps by more than `margin`. This
    margin is for all distinct samples. That of the record's `power` is for the samples on which
    null maps were scored, which can be fewer.
    """

    start: str
    score: Score
    null: float | None
    margin: float
    clear: bool | None

    @classmethod
    def of(cls, start: str, score: Score, null: float | None, row: Optimality) -> MapScore:
        """Compare the score of a segment or block (`row`) with that of null maps, if any."""
        samples = row.independent
        clear = None if null is None else bool(clearly_above(score.low, null, samples))
        return cls(start, score, null, float(margin(samples)), clear)

    @property
    def word(self) -> Literal["optimal", "nearly optimal"] | None:
        """What the map is called; None if these samples show neither."""
        low = self.score.low
        if not self.clear or low < THRESHOLDS["nearly_optimal"]:
            return None
        return "optimal" if low >= THRESHOLDS["optimal"] else "nearly optimal"

    def evidence(self) -> dict[str, Any]:
        """Return the values as the evidence of a sentence."""
        return {
            "from": self.start,
            **self.score._asdict(),
            "null": self.null,
            "margin": self.margin,
            "power": self.clear,
            "word": self.word,
            "optimal": self.word == "optimal",
        }


def _near_point(segment: Segment) -> str:
    ratio = segment.spread_ratio
    if ratio is None or ratio < THRESHOLDS["nearly_a_point"]:
        return ""
    return (
        f" The spread of the features at {start_of(segment.layers)} is {ratio:,.0f} times smaller "
        f"than at {segment.layers[-1]}. If the first cloud is nearly a point, almost any map has a "
        "high OT score (the score of the papers), so the OT score of this segment is not evidence."
    )


def blocks(record: Record) -> Iterator[Sentence]:
    blocks = [block for block in record.blocks if block.corr_score is not None]
    if not blocks:
        return
    kinds = [_block_kind(block) for block in blocks]
    evidence = {
        "blocks": [
            {"target": block.target, "kind": kind, "corr_score": block.corr_score}
            for block, kind in zip(blocks, kinds, strict=True)
        ]
    }
    clauses = [_clause(kinds, kind) for kind in _KINDS if kind in kinds]
    whole = "The one block" if len(blocks) == 1 else f"Of {counted(len(blocks), 'block')},"
    undecided = kinds.count("undecided") == len(kinds)
    tests = [block.brenier for block in blocks if block.brenier]
    few = any((test.points or 0) < THRESHOLDS["fewest_samples"] for test in tests)
    yield Sentence(
        "blocks",
        f"{whole} {listed(clauses)}{_jacobians(tests)}.",
        evidence,
        "undecided" if undecided else "suggested" if few else "shown",
    )


def _clause(kinds: Sequence[str], kind: str) -> str:
    """Return a clause such as ``2 are optimal maps``, or ``none is ...``."""
    number = kinds.count(kind)
    one, several, none = _KINDS[kind]
    if len(kinds) == 1:
        return one
    if number < len(kinds):
        return f"{number} {one if number == 1 else several}"
    if none:
        return f"{'neither' if number == 2 else 'none'} {none}"
    return f"{'both' if number == 2 else 'all'} {several}"


def _jacobians(tests: Sequence[Brenier]) -> str:
    asymmetry = _from_to([test.asymmetry for test in tests])
    eigenvalue = _from_to([test.relative_eigenvalue for test in tests])
    if not asymmetry:
        return ""
    smallest = eigenvalue and f", smallest eigenvalue {eigenvalue} of the largest"
    intervals = all(test.intervals for test in tests)
    judged = ", judged by 95 % intervals over these images" if intervals else ""
    return (
        " (Jacobians: derivatives of a block's output with respect to its input, before pooling, "
        f"at {counted(tests[0].points or 0, 'image')}{judged}; asymmetry {asymmetry}{smallest}; an "
        "optimal map has asymmetry 0 and no eigenvalue below 0)"
    )


def _from_to(numbers: Sequence[float | None]) -> str:
    """Return the range of the defined values, such as ``0.06 to 0.49``; "" if there are none."""
    values = [value for value in numbers if value is not None]
    if not values:
        return ""
    low, high = f"{min(values):.2g}", f"{max(values):.2g}"
    return low if low == high else f"{low} to {high}"


_KINDS = {  # predicates for one block and for several, and one after "none" in place of a negation
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
        "has Jacobians consistent with a nearly optimal map but not with an optimal one",
        "have Jacobians consistent with a nearly optimal map but not with an optimal one",
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


def _block_kind(block: Block) -> str:
    if unmoved(block):
        return "unmoved"
    test = block.brenier
    if test.excluded is not None:
        if not test.excluded:
            return "gradient"
        return "nearly gradient" if _nearly_gradient(test) else "not gradient"
    if block.corr_score is None:
        return "undecided"
    score = MapScore.of(block.source, block.corr_score, block.highest_null, block)
    if _refuted(score):
        return "not optimal"
    return "undecided" if score.word is None or few_carrying(block) else score.word


def _nearly_gradient(test: Brenier) -> bool:
    """Return whether the intervals allow Jacobians of a nearly optimal map."""
    threshold = THRESHOLDS["nearly_gradient_map"]
    asymmetry, eigenvalue = test.interval("asymmetry"), test.interval("relative_eigenvalue")
    low = asymmetry.low if asymmetry else test.asymmetry
    high = eigenvalue.high if eigenvalue else test.relative_eigenvalue
    if low is None or high is None:
        return False
    return low <= threshold and high >= -threshold
