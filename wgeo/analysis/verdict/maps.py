"""Sentences on maps: are they optimal, and do the blocks' Jacobians agree?

Segments are judged by their correlation scores. Blocks are judged by their Jacobians or, if these
were not computed, by their correlation scores.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

from ...storage.record import (
    AlignedSegment,
    Block,
    Brenier,
    Interval,
    Optimality,
    Record,
    Score,
    Segment,
)
from ...text import counted, percent
from ...thresholds import clearly_above, margin
from .sentence import (
    THRESHOLDS,
    Sentence,
    Strength,
    ends,
    few_carrying,
    listed,
    ranged,
    segment_ends,
    spreads,
    start_of,
    unmoved,
)

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
        spread = spreads(segment)
        if segment.corr_score is not None:
            sentence = _end_to_end(segment, segment.corr_score, record.blocks)
            yield sentence if explained else replace(sentence, words=sentence.words + _SCORE)
            explained = True
        elif min(spread[0], spread[-1]) <= THRESHOLDS["rounding"] * max(spread):
            yield Sentence(
                "optimality",
                f"{segment_ends(segment.layers)} any map would be optimal, because all samples "
                "have the same features at one end.",
                {"layers": ends(segment.layers), "spread": segment.spread},
                "shown",
            )


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
    strength: Strength = "undecided"
    if few and (optimal is not None or not _refuted(first)):
        evidence["effective_samples"] = segment.effective_samples
        words = (
            f"{subject} {few} the correlation score ({_score(first)}), so it is undecided whether "
            "the map is optimal for the others"
        )
    elif optimal is not None:
        strength, rest = "shown", ""
        if optimal is not first:
            outcome = "it is not" if _refuted(first) else "this is undecided"
            rest = f"; from {start_of(segment.layers)} {outcome} ({_score(first)})"
            subject = f"From {optimal.start} to {segment.layers[-1]}"
        words = (
            f"{subject} the map is {optimal.word} for these samples (correlation score "
            f"{_score(optimal)}; {_NULL_MAPS}: at most {optimal.null:.3f}){rest}"
            f"{_excluded_by_jacobians(optimal.start, segment, blocks)}"
        )
    elif not _refuted(first):
        words = f"{subject} {_undecided(first)}"
    else:
        later = next((each for each in scores if not _refuted(each)), None)
        evidence["later_undecided"] = later is not None
        rest = f"; from {later.start} onward {_undecided(later)}" if later else _best(scores)
        strength = "shown"
        words = f"{subject} the map is not optimal (correlation score {_score(first)}){rest}"
        if few:
            tail = f" {few.capitalize()} this score.{tail}"
    return Sentence("optimality", f"{words}.{tail}", evidence, strength)


def _excluded_by_jacobians(start: str, segment: Segment, blocks: Sequence[Block]) -> str:
    """Name blocks whose Jacobians exclude an optimal map, if the whole map is called optimal."""
    inner = segment.layers[segment.layers.index(start) + 1 :]
    kinds = {block.target: _block_kind(block) for block in blocks}
    excluded = [name for name in inner if kinds.get(name) in ("not gradient", "nearly gradient")]
    if not excluded:
        return ""
    count = len(excluded)
    what = "this block is not an exactly optimal map"
    if count > 1:
        what = "these blocks are not exactly optimal maps"
    named = f"all its {count} blocks" if count == len(inner) else f"{count} of its blocks"
    if count < 4:
        named = listed(excluded)
    return f"; but the Jacobians of {named}, computed before pooling, show that {what}"


def _refuted(map_score: MapScore) -> bool:
    """Return whether the certified upper bound excludes even a nearly optimal map."""
    return map_score.score.high < THRESHOLDS["nearly_optimal"]


def _undecided(map_score: MapScore) -> str:
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
    if best is scores[0]:
        return ""
    highest = f"at most {best.score.value:.3f}, from {best.start}"
    return f", and neither is the map from any later layer ({highest})"


def _score(map_score: MapScore) -> str:
    value, low, high = map_score.score
    return ranged(value, (low, high), certified=True)


def _scores_to_end(segment: Segment, score: Score) -> list[MapScore]:
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
    margin is computed from the number of all distinct samples, whereas the record's `power` uses
    the number of samples on which null maps were scored, which can be smaller.
    """

    start: str
    score: Score
    null: float | None
    margin: float
    clear: bool | None

    @classmethod
    def of(cls, start: str, score: Score, null: float | None, row: Optimality) -> MapScore:
        samples = row.independent
        clear = None if null is None else clearly_above(score.low, null, samples)
        return cls(start, score, null, margin(samples), clear)

    @property
    def word(self) -> Literal["optimal", "nearly optimal"] | None:
        """What the map is called; None if these samples show neither."""
        low = self.score.low
        if not self.clear or low < THRESHOLDS["nearly_optimal"]:
            return None
        return "optimal" if low >= THRESHOLDS["optimal"] else "nearly optimal"

    def evidence(self) -> dict[str, Any]:
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
    """Return a clause such as ``2 are optimal maps of these samples``, or ``none is ...``."""
    number = kinds.count(kind)
    one, several, none, rest = _KINDS[kind]
    if len(kinds) == 1:
        verb = one
    elif number < len(kinds):
        verb = f"{number} {one if number == 1 else several}"
    elif none:
        verb = f"{'neither' if number == 2 else 'none'} {none}"
    else:
        verb = f"{'both' if number == 2 else 'all'} {several}"
    return f"{verb} {rest}"


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


# For each kind, the beginning of its clause for one block, for several, and after "none" (empty if
# the clause is not negative); then the rest of the clause.
_KINDS = {
    "unmoved": (
        *("does not move", "do not move", "moves"),
        "these samples by more than rounding error",
    ),
    "gradient": ("has", "have", "", "Jacobians consistent with an optimal map"),
    "nearly gradient": (
        *("has", "have", ""),
        "Jacobians consistent with a nearly optimal map but not with an optimal one",
    ),
    "not gradient": ("has", "have", "", "Jacobians that exclude even a nearly optimal map"),
    "not optimal": (
        *("is not an optimal map", "are not optimal maps", "is an optimal map"),
        "of these samples",
    ),
    "optimal": ("is an optimal map", "are optimal maps", "", "of these samples"),
    "nearly optimal": (
        *("is a nearly optimal map", "are nearly optimal maps", ""),
        "of these samples",
    ),
    "undecided": ("is", "are", "", "undecided with these samples"),
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
    value, slope, slopes = segment.overlap_uv, segment.slope, segment.interval("slope")
    word, decided = _aligned(low, high, chance)
    definition = growth = ""
    if not explained:
        directions = counted(segment.vectors or 0, "direction")
        definition = (
            f" (overlap of the leading {directions} of one block's output with those of another's "
            "input)"
        )
    if slope is not None and slopes is not None:
        growth = (
            "; over depth, the length of a block's step divided by its largest singular value has "
            f"the slope {ranged(slope, slopes)}; a geodesic that expands has the slope 1"
        )
    words = (
        f"{segment_ends(segment.blocks)} the residual Jacobians of the blocks are "
        f"{word}{definition}: the overlap is {percent(value)} ({percent(low)} to {percent(high)}, "
        f"95 % interval over {counted(points, 'image')}), and {percent(chance, 2)} for random "
        f"directions{growth}."
    )
    evidence: dict[str, Any] = {
        "blocks": ends(segment.blocks),
        "overlap_uv": value,
        "chance": chance,
        "slope": slope,
        "intervals": {"overlap_uv": bounds, "slope": slopes},
        "points": points,
    }
    few = points < THRESHOLDS["fewest_samples"]
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
