"""Transport between all pairs of layers of a segment, and path lengths over k runs of blocks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import combinations, pairwise

import numpy as np
from jaxtyping import Float, Int

from ..arrays.rows import select_rows, sum_over_rows
from ..trajectory import Segment
from ..transport import TransportResult
from .correlation import CenteredPair
from .result import NullScore, Pairs

MAX_LAYERS = 10  # 45 pairs; in a longer segment, 9 evenly spaced layers are compared
_ROUGH = 1e-3  # relative difference of costs up to which a solver may be inaccurate
SAME_COST = 1e-6  # relative difference up to which two costs count as equal
_RUNS = (2, 4, 8)
# Largest sum of n^2 (d + 100) over pairs: about half a minute on one core. A pair of 2,000 samples
# of 64 features takes about 0.4 s. The 100 is the cost of the sparse problem, for any width d.
_WORK = 4e10
Solutions = Mapping[tuple[int, int], TransportResult]


def evenly_spaced(blocks: int, runs: int) -> list[int]:
    """Return `runs` + 1 evenly spaced layers of 0, ..., `blocks`, including both ends.

    Layers for k runs are also layers for 2k runs, so the path over 2k runs is at least as long.
    """
    return [(2 * j * blocks + runs) // (2 * runs) for j in range(runs + 1)]


def compared_layers(segment: Segment) -> list[int]:
    """Return the layers of a segment that are compared pairwise."""
    count = len(segment.arrays)
    return list(range(count)) if count <= MAX_LAYERS else evenly_spaced(count - 1, _RUNS[-1])


def missing_pairs(segment: Segment, pairs: bool | None) -> list[tuple[int, int]]:
    """Return the pairs to solve beyond those of a chain; by default (None), only if affordable."""
    last = len(segment.arrays) - 1
    keys = [
        (i, j)
        for i, j in combinations(compared_layers(segment), 2)
        if j > i + 1 and (i, j) != (0, last)
    ]
    n, d = segment.arrays[0].shape
    affordable = len(keys) * n**2 * (d + 100) <= _WORK
    return keys if (affordable if pairs is None else pairs) else []


def length_over_runs(
    blocks: int, distances: Mapping[tuple[int, int], float]
) -> dict[int, float | None]:
    """Return {k: L(k) / D} for each k for which all distances are known; None if D is 0."""
    end = distances[0, blocks]
    ratios: dict[int, float | None] = {}
    for runs in [*(k for k in _RUNS if k < blocks), blocks]:
        steps = list(pairwise(evenly_spaced(blocks, runs)))
        if all(step in distances for step in steps):
            length = sum(distances[step] for step in steps)
            ratios[runs] = max(length / end, 1.0) if end > 0 else None
    return ratios


def is_result_of(
    result: TransportResult, x: Float[np.ndarray, "n d"], y: Float[np.ndarray, "n d"]
) -> bool:
    """Return whether a result can belong to two clouds, by its sizes and its permutation."""
    match = result.coupling
    sizes = {len(part) for part in result.potentials or ()} | {*getattr(match, "shape", ())}
    if sizes - {len(x)}:
        return False
    if not isinstance(match, np.ndarray) or match.ndim != 1 or match.dtype.kind not in "iu":
        return True
    cost = paired_cost(x, y, match)
    difference = min(abs(cost - result.cost), abs(cost - result.upper**2))
    return not difference > _ROUGH * cost  # NaN if the costs overflow


def paired_cost(
    x: Float[np.ndarray, "n d"], y: Float[np.ndarray, "n d"], match: Int[np.ndarray, " n"]
) -> float:
    """Return the mean of ||x_i - y_match(i)||^2."""
    (total,) = sum_over_rows(
        lambda _, a, b: [float(np.sum((a - b) ** 2))], x, select_rows(y, match)
    )
    return float(total) / len(x)


def as_matrices(
    segment: Segment,
    solutions: Solutions,
    centered: Mapping[tuple[int, int], CenteredPair],
    null: Mapping[tuple[int, int], Sequence[NullScore]],
) -> Pairs | None:
    """Return the results as matrices; None for only two layers, or if a pair was not solved."""
    layers = compared_layers(segment)
    if len(layers) < 3 or any(ends not in solutions for ends in combinations(layers, 2)):
        return None

    def matrix(values: Mapping[tuple[int, int], float | None], diagonal: float | None) -> tuple:
        return tuple(
            tuple(diagonal if i == j else values.get((min(i, j), max(i, j))) for j in layers)
            for i in layers
        )

    def scores(end: int) -> tuple:
        values = {key: pair.corr_score for key, pair in centered.items()}
        return matrix({key: value and value[end] for key, value in values.items()}, 1.0)

    highest = {
        key: max(each.score[2] for each in scores_) for key, scores_ in null.items() if scores_
    }
    return Pairs(
        layers=tuple(segment.names[i] for i in layers),
        distance=matrix({key: result.distance for key, result in solutions.items()}, 0.0),
        lower=matrix({key: result.lower for key, result in solutions.items()}, 0.0),
        upper=matrix({key: result.upper for key, result in solutions.items()}, 0.0),
        corr_score=scores(0),
        corr_low=scores(1),
        corr_high=scores(2),
        null=matrix(highest, None) if highest else None,
    )
