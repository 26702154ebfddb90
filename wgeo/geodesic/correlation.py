"""The correlation score of a pair of layers, and W2 between centered clouds.

A translation does not change which coupling is optimal: with m = mean(y - x), u = x - mean x and
v = y - mean y, ``W2^2(x, y) = |m|^2 + W2^2(u, v)``. Centered values are therefore computed without
another solve, unless the subtraction of |m|^2 loses too many digits.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from jaxtyping import Float

from ..arrays.rows import LazyRows, as_float64, map_rows, materialize, mean_of, sum_over_rows
from ..transport import Solver, Status, TransportResult, wasserstein
from .paths import machine_epsilon
from .result import Score

_UNIT = float(np.finfo(np.float64).eps) / 2
# Width of the interval of W2^2(u, v), relative to sd_x^2 + sd_y^2, above which digits cancelled.
_CANCELLED = 1e-6


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
        """Return the centered pair of layers i and j from W2 between them."""
        result = result if potentials else replace(result, potentials=None)
        return CenteredPair.of(self, i, j, result)


@dataclass(frozen=True, eq=False)
class CenteredPair:
    """Two centered layers."""

    transport: TransportResult  # W2(u, v), with potentials if kept
    squared_shift: float  # |m|^2
    corr_score: Score | None  # see `Optimality`

    @classmethod
    def of(cls, moments: Moments, i: int, j: int, result: TransportResult) -> CenteredPair:
        """Subtract |m|^2 from a solved pair; solve again only if digits cancel."""
        shift, error = _squared_shift(moments, i, j)
        total = float(moments.products[i, i] + moments.products[j, j])
        low, high = result.lower**2 - shift - error, result.upper**2 - shift + error
        if result.status is Status.CERTIFIED and shift > total and high - low > _CANCELLED * total:
            return replace(_solve_again(moments, i, j, result), squared_shift=shift)
        transport = _without_shift(moments, i, j, result, shift, (low, high))
        score = _corr_score(moments, i, j, transport.cost, (low, high))
        return cls(transport, shift, score)


def pair_score(x: np.ndarray, y: np.ndarray, solver: Solver) -> Score | None:
    """Return the certified correlation score of the pairing of row i of x with row i of y."""
    return solved_pair(x, y, solver).corr_score


def solved_pair(x: np.ndarray, y: np.ndarray, solver: Solver) -> CenteredPair:
    """Return W2 between the centered rows of x and y, and their pairing's correlation score."""
    moments = Moments.of((x, y), rounding_of((x, y)))
    return moments.pair(0, 1, wasserstein(x, y, solver=solver))


def rounding_of(arrays: Sequence[np.ndarray]) -> float:
    """Return the largest W2, or spread, that rounding of the features alone can cause."""
    square = max(
        sum_over_rows(lambda _, part: [float(np.vdot(part, part))], a)[0] / len(a) for a in arrays
    )
    return 4 * machine_epsilon(arrays) * float(np.sqrt(square))


def _relative_error(moments: Moments) -> float:
    """Return twice the worst-case relative rounding error of a sum over a layer's entries."""
    n, d = moments.arrays[0].shape
    return 2 * _UNIT * (n * d + 64)


def _squared_shift(moments: Moments, i: int, j: int) -> tuple[float, float]:
    """Return |m|^2 and a bound on its rounding error."""
    n, d = moments.arrays[0].shape
    vector = moments.mean_shift(i, j)
    length = float(np.linalg.norm(vector))
    # Rounding errors: n, relative to the spreads, for the means of x - center; one for m.
    error = 2 * _UNIT * (length + (n + 8) * float(moments.spread[i] + moments.spread[j]))
    return length**2, 2 * length * error + error**2 + 2 * _UNIT * (d + 8) * length**2


def _corr_score(
    moments: Moments, i: int, j: int, cost: float, interval: tuple[float, float]
) -> Score | None:
    sd_x, sd_y = moments.spread[[i, j]]
    if not (sd_x > 0 and sd_y > 0):
        return None
    bound = sd_x * sd_y  # upper bound for every coupling (Cauchy and Schwarz)
    total, error = sd_x**2 + sd_y**2, _relative_error(moments) * (sd_x**2 + sd_y**2)
    paired, paired_error = float(moments.products[i, j]), _relative_error(moments) * bound
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
    moments: Moments,
    i: int,
    j: int,
    result: TransportResult,
    shift: float,
    interval: tuple[float, float],
) -> TransportResult:
    """Return W2 between the centered clouds, with potentials, from W2 between the clouds."""
    low, high = (max(end, 0.0) for end in interval)
    potentials = result.potentials
    if potentials is not None:
        along_x, along_y = _along_shift(moments, i, j)
        f, g = (np.asarray(part, dtype=np.float64) for part in potentials)
        potentials = (f + 2 * along_x - shift, g - 2 * along_y)
    return replace(
        result,
        cost=min(max(result.cost - shift, low), high),
        lower=float(np.sqrt(low)),
        upper=float(np.sqrt(high)),
        potentials=potentials,
    )


def _along_shift(
    moments: Moments, i: int, j: int
) -> tuple[Float[np.ndarray, " n"], Float[np.ndarray, " n"]]:
    """Return <m, u_i> and <m, v_i> for every sample."""
    x, y = moments.arrays[i], moments.arrays[j]
    vector, centers = moments.mean_shift(i, j), moments.centers
    of_x, of_y = map_rows(
        lambda _, a, b: [(a - centers[i]) @ vector, (b - centers[j]) @ vector], x, y
    )
    return of_x, of_y


def _solve_again(moments: Moments, i: int, j: int, result: TransportResult) -> CenteredPair:
    """Solve between the centered clouds with `Exact`, starting from the known coupling."""
    clouds = []
    for layer in (i, j):
        array, center = moments.arrays[layer], moments.centers[layer]

        def centered(
            part: slice, array: np.ndarray = array, center: np.ndarray = center
        ) -> np.ndarray:
            return as_float64(array[part]) - center

        clouds.append(materialize(moments.arrays, LazyRows(array.shape, centered)))
    start = result.coupling
    permutation = isinstance(start, np.ndarray) and start.ndim == 1
    solution = wasserstein(*clouds, coupling=start if permutation else None)
    keep = result.potentials is not None
    return Moments.of(clouds, moments.floor).pair(0, 1, solution, potentials=keep)
