"""Pairs of layers: transport between all of them, centered W2, and the correlation score.

A translation does not change which coupling is optimal: with m = mean(y - x), u = x - mean x and
v = y - mean y, ``W2^2(x, y) = |m|^2 + W2^2(u, v)``. Centered values are therefore computed without
solving again, unless subtracting |m|^2 would lose too many digits.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import combinations, pairwise

import numpy as np
from jaxtyping import Float, Int

from ..arrays.rows import (
    LazyRows,
    as_float64,
    map_rows,
    materialize,
    mean_of,
    select_rows,
    sum_over_rows,
)
from ..trajectory import Segment
from ..transport import Solver, Status, TransportResult, wasserstein
from .paths import machine_epsilon
from .result import NullScore, Pairs, Score

Ends = tuple[int, int]  # the indices of two layers of a segment
_MAX_LAYERS = 10  # 45 pairs; in a longer segment, 9 evenly spaced layers are compared
_SAME_COST = 1e-6  # relative difference up to which two costs count as equal
_ROUGH = 1e-3  # relative error of the cost that an approximate solver may make
_ROUNDING = 4  # an interval at most this many rounding bounds wide is only rounding error
_RUNS = (2, 4, 8)
# Largest sum of n^2 (d + 100) over pairs: about half a minute on one core. A pair of 2,000 samples
# of 64 features takes about 0.4 s. The 100 is the cost of the sparse problem, for any width d.
_WORK = 4e10
_UNIT = float(np.finfo(np.float64).eps) / 2
# Width of the interval of W2^2(u, v), relative to sd_x^2 + sd_y^2, above which digits were lost.
_CANCELLED = 1e-6


@dataclass(frozen=True, eq=False)
class CenteredPair:
    """Two centered layers."""

    transport: TransportResult  # W2(u, v), with potentials if kept
    squared_shift: float  # |m|^2
    corr_score: Score | None  # see `Optimality`


@dataclass(frozen=True, eq=False)
class Moments:
    """First and second moments of the layers of one space."""

    arrays: Sequence[Float[np.ndarray, "n d"]]
    centers: Float[np.ndarray, "l d"]  # the layers' means, rounded to float64
    rest: Float[np.ndarray, "l d"]  # mean of x - center, the rounding error of a center
    products: Float[np.ndarray, "l l"]  # mean <u_i, u_j> of the centered features
    floor: float  # spread that rounding can cause; a layer of no larger spread counts as a point

    @classmethod
    def of(cls, arrays: Sequence[Float[np.ndarray, "n d"]], floor: float) -> Moments:
        """Compute the moments in two passes over every layer, some rows at a time."""
        count, (n, d) = len(arrays), arrays[0].shape
        centers = np.stack([mean_of(array) for array in arrays])

        def terms(_: slice, *parts: np.ndarray) -> list[np.ndarray]:
            centered = np.stack(parts) - centers[:, None]
            flat = centered.reshape(count, -1)
            return [centered.sum(1), flat @ flat.T]

        rest, products = (s / n for s in sum_over_rows(terms, *arrays, width=d * count))
        return cls(arrays, centers, rest, products - rest @ rest.T, floor)

    @property
    def spread(self) -> Float[np.ndarray, " l"]:
        """Root mean square distance of each layer's samples from their mean."""
        spread = np.sqrt(np.maximum(np.diag(self.products), 0.0))
        return np.where(spread > self.floor, spread, 0.0)

    def mean_shift(self, i: int, j: int) -> Float[np.ndarray, " d"]:
        """Return the mean of layer j minus the mean of layer i."""
        return (self.centers[j] - self.centers[i]) + (self.rest[j] - self.rest[i])

    def pair(
        self, i: int, j: int, result: TransportResult, *, potentials: bool = False
    ) -> CenteredPair:
        """Return the centered pair of layers i and j, from W2 between the layers themselves."""
        result = result if potentials else replace(result, potentials=None)
        shift, error = self._squared_shift(i, j)
        total = float(self.products[i, i] + self.products[j, j])
        low, high = result.lower**2 - shift - error, result.upper**2 - shift + error
        if result.status is Status.CERTIFIED and shift > total and high - low > _CANCELLED * total:
            return replace(self._solve_again(i, j, result), squared_shift=shift)
        transport = self._without_shift(i, j, result, shift, (max(low, 0.0), max(high, 0.0)))
        return CenteredPair(transport, shift, self._corr_score(i, j, transport.cost, (low, high)))

    def _squared_shift(self, i: int, j: int) -> tuple[float, float]:
        """Return |m|^2 and a bound on its rounding error."""
        n, d = self.arrays[0].shape
        length = float(np.linalg.norm(self.mean_shift(i, j)))
        # The means of x - center have up to n rounding errors, relative to the spreads; m has one.
        error = 2 * _UNIT * (length + (n + 8) * float(self.spread[i] + self.spread[j]))
        return length**2, 2 * length * error + error**2 + 2 * _UNIT * (d + 8) * length**2

    def _corr_score(
        self, i: int, j: int, cost: float, interval: tuple[float, float]
    ) -> Score | None:
        sd_x, sd_y = self.spread[[i, j]]
        if not (sd_x > 0 and sd_y > 0):
            return None
        n, d = self.arrays[0].shape
        relative = 2 * _UNIT * (n * d + 64)  # twice the worst-case error of a sum over a layer
        bound = sd_x * sd_y  # upper bound for every coupling (Cauchy and Schwarz)
        total, error = sd_x**2 + sd_y**2, relative * (sd_x**2 + sd_y**2)
        paired, paired_error = float(self.products[i, j]), relative * bound
        paired_low, paired_high = paired - paired_error, paired + paired_error
        # Bounds on the largest mean <u, v> over all couplings. The given pairing (`paired`) and the
        # independent coupling (0) are lower bounds.
        low = max((total - interval[1] - error) / 2, paired_low, 0.0)
        high = max(min((total - interval[0] + error) / 2, bound + paired_error), low)
        if high == 0 or (paired_low < 0 and low == 0):
            return None  # nothing bounds the score from below
        lowest = paired_low / (high if paired_low >= 0 else low)
        highest = min(paired_high / (low if paired_high >= 0 else high), 1.0) if low > 0 else 1.0
        best = min(max((total - cost) / 2, low), high)
        value = paired / best if best > 0 else 1.0
        return float(min(max(value, lowest), highest)), float(lowest), float(highest)

    def _without_shift(
        self, i: int, j: int, result: TransportResult, shift: float, interval: tuple[float, float]
    ) -> TransportResult:
        """Return W2 between the centered clouds, whose square lies in `interval`."""
        low, high = interval
        potentials = result.potentials
        if potentials is not None:
            vector, (center_x, center_y) = self.mean_shift(i, j), self.centers[[i, j]]
            along_x, along_y = map_rows(
                lambda _, a, b: [(a - center_x) @ vector, (b - center_y) @ vector],
                self.arrays[i],
                self.arrays[j],
            )
            f, g = map(as_float64, potentials)
            potentials = (f + 2 * along_x - shift, g - 2 * along_y)
        return replace(
            result,
            cost=min(max(result.cost - shift, low), high),
            lower=float(np.sqrt(low)),
            upper=float(np.sqrt(high)),
            potentials=potentials,
        )

    def _solve_again(self, i: int, j: int, result: TransportResult) -> CenteredPair:
        """Solve between the centered clouds with `Exact`, starting from the known coupling."""

        def centered(layer: int) -> np.ndarray:
            array, center = self.arrays[layer], self.centers[layer]
            rows = LazyRows(array.shape, lambda part: as_float64(array[part]) - center)
            return materialize(self.arrays, rows)

        clouds = centered(i), centered(j)
        start = result.coupling
        permutation = isinstance(start, np.ndarray) and start.ndim == 1
        solution = wasserstein(*clouds, coupling=start if permutation else None)
        keep = result.potentials is not None
        return Moments.of(clouds, self.floor).pair(0, 1, solution, potentials=keep)


def solved_pair(x: np.ndarray, y: np.ndarray, solver: Solver | None = None) -> CenteredPair:
    """Solve W2 between x and y, and score the pairing of row i of x with row i of y."""
    moments = Moments.of((x, y), rounding_of((x, y)))
    return moments.pair(0, 1, wasserstein(x, y, solver=solver))


def rounding_of(arrays: Sequence[np.ndarray]) -> float:
    """Return the largest W2, or spread, that rounding of the features alone can cause."""
    square = max(
        sum_over_rows(lambda _, part: [float(np.vdot(part, part))], a)[0] / len(a) for a in arrays
    )
    return 4 * machine_epsilon(arrays) * float(np.sqrt(square))


def evenly_spaced(blocks: int, runs: int) -> list[int]:
    """Return `runs` + 1 evenly spaced layers of 0, ..., `blocks`, including both ends.

    Consecutive ones enclose a run of blocks. The layers for k runs are also layers for 2k runs, so
    the path over 2k runs is at least as long as that over k runs.
    """
    return [(2 * j * blocks + runs) // (2 * runs) for j in range(runs + 1)]


def compared_layers(segment: Segment) -> list[int]:
    """Return the layers of a segment that are compared pairwise."""
    count = len(segment.arrays)
    return list(range(count)) if count <= _MAX_LAYERS else evenly_spaced(count - 1, _RUNS[-1])


def missing_pairs(segment: Segment, pairs: bool | None) -> list[Ends]:
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
    blocks: int, solutions: Mapping[Ends, TransportResult]
) -> dict[int, float | None]:
    """Return {k: L(k) / D} of `SegmentStraightness` for each k whose distances are all known.

    The ratios are None if D is 0.
    """
    end = solutions[0, blocks].distance
    ratios: dict[int, float | None] = {}
    for runs in [*(k for k in _RUNS if k < blocks), blocks]:
        steps = list(pairwise(evenly_spaced(blocks, runs)))
        if all(step in solutions for step in steps):
            length = sum(solutions[step].distance for step in steps)
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


def is_optimal_permutation(result: TransportResult, segment: Segment, floor: float) -> bool:
    """Return whether the coupling is a permutation, proved optimal up to tolerance or rounding."""
    match = result.coupling
    proved = result.status is Status.CERTIFIED or result.upper - result.lower <= _ROUNDING * floor
    if not (proved and isinstance(match, np.ndarray) and match.ndim == 1):
        return False
    cost = paired_cost(segment.arrays[0], segment.arrays[-1], match)
    return abs(cost - result.cost) <= _SAME_COST * max(cost, result.cost)


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
    solutions: Mapping[Ends, TransportResult],
    centered: Mapping[Ends, CenteredPair],
    null: Mapping[Ends, Sequence[NullScore]],
) -> Pairs | None:
    """Return the results as matrices; None for only two layers, or if a pair was not solved."""
    layers = compared_layers(segment)
    if len(layers) < 3 or any(ends not in solutions for ends in combinations(layers, 2)):
        return None

    def matrix(values: Mapping[Ends, float | None], diagonal: float | None) -> tuple:
        return tuple(
            tuple(diagonal if i == j else values.get((min(i, j), max(i, j))) for j in layers)
            for i in layers
        )

    transport = {
        name: matrix({key: getattr(result, name) for key, result in solutions.items()}, 0.0)
        for name in ("distance", "lower", "upper")
    }
    scores = {key: pair.corr_score for key, pair in centered.items()}
    value, low, high = (
        matrix({key: score and score[end] for key, score in scores.items()}, 1.0)
        for end in range(3)
    )
    highest = {
        key: max(each.score[2] for each in scores_) for key, scores_ in null.items() if scores_
    }
    return Pairs(
        layers=tuple(segment.names[i] for i in layers),
        **transport,
        corr_score=value,
        corr_low=low,
        corr_high=high,
        null=matrix(highest, None) if highest else None,
    )
