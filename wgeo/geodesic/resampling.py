"""Uncertainty by resampling the samples: intervals, p-values, and pseudo-values.

Every measure of a segment is a smooth function of column means: of per-sample measures, of squared
displacements, and of the influence functions of W2^2. Its bootstrap draws and leave-one-out values
are values of the same function at other means, so no transport problem is solved again.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations, product

import numpy as np
import scipy
from jaxtyping import Float, Int
from scipy.special import ndtr, ndtri

from ..arrays.rows import as_float64, sums_by_class
from ..runtime.memory import limited_size
from ..trajectory import Segment, Trajectory
from ..transport import TransportResult
from .pairs import Moments, rounding_of
from .paths import PathMeasures, path_measures

TRAJECTORY_MEASURES = (
    "line_shape_score",
    "line_shape_ratio",
    "turning_angle",
    "orthogonal_share",
)
TRANSPORT_MEASURES = (
    "distance",
    "length",
    "length_ratio",
    "action_ratio",
    "speed_deviation",
    "ot_score",
)
MOVING = ("moving_blocks", "sqrt_moving_blocks")
LINEARIZED = (*TRANSPORT_MEASURES, *MOVING, "corr_score")
LEVEL = 0.95
ROUNDING = 1e-12  # relative difference of statistics that counts as rounding error
_QUANTILES = (0.05, 0.25, 0.5, 0.75, 0.95)
_MAX_WEIGHTS = 2**24  # resampling weights in memory
_LARGEST_LOG = 100.0  # largest logarithm of a factor within float64's range
_TIE = 1e-9  # relative to the draws' spread: a draw this near to the value counts as equal
Measures = Callable[[Float[np.ndarray, "m c"]], Mapping[str, Float[np.ndarray, " m"]]]


@dataclass(frozen=True, eq=False)
class SegmentSample:
    """A segment's samples as a table whose column means determine every measure.

    If `centered`, each layer's mean was subtracted, and there are correlation scores too. Resamples
    are centered by the mean of all samples, not by their own mean. The variation of the mean has
    only a second-order effect on every cost, and none on a line shape if centered paths are as
    likely as their mirror images.
    """

    path: PathMeasures
    steps: Sequence[TransportResult]  # between consecutive layers
    end: TransportResult  # between the first and last layer
    floor: float  # distance that rounding can cause; distances up to it count as zero
    centered: bool = False

    @classmethod
    def of(
        cls, segment: Segment, steps: Sequence[TransportResult], end: TransportResult
    ) -> SegmentSample:
        """Measure the paths of a segment."""
        return cls(path_measures(segment.arrays), steps, end, rounding_of(segment.arrays))

    @classmethod
    def centered_of(
        cls, moments: Moments, steps: Sequence[TransportResult], end: TransportResult
    ) -> SegmentSample:
        """Measure the paths between centered layers; `steps` and `end` are for these layers."""
        path = path_measures(moments.arrays, centres=moments.centers)
        return cls(path, steps, end, moments.floor, True)

    @property
    def linearized(self) -> bool:
        """Whether every distance has potentials, and therefore an influence function."""
        return all(result.potentials is not None for result in (*self.steps, self.end))

    def resampled(
        self, draws: int, seed: int, groups: Int[np.ndarray, " n"] | None = None
    ) -> Resampled:
        """Return the measures of all samples, of bootstraps, and with each sample left out."""
        return resample(self._columns(), self._measures, draws=draws, seed=seed, groups=groups)

    def quantiles(self, traj: Trajectory) -> dict[str, dict[str, list[float]]]:
        """Return quantiles of each measure over all samples and by class, if defined."""
        members_of = {"all": np.ones(len(traj), dtype=bool)}
        for k in np.unique(traj.labels):
            name = traj.class_names[k] if k < len(traj.class_names) else str(k)
            members_of[f"{name} ({k})" if name in members_of else name] = traj.labels == k
        return {
            name: {
                group: [float(q) for q in np.nanquantile(values[members], _QUANTILES)]
                for group, members in members_of.items()
                if not np.isnan(values[members]).all()
            }
            for name in TRAJECTORY_MEASURES
            for values in [getattr(self.path, name)]
        }

    def _columns(self) -> Float[np.ndarray, "n c"]:
        path = [getattr(self.path, name) for name in TRAJECTORY_MEASURES]
        defined = [~np.isnan(values) for values in path]
        filled = [np.nan_to_num(values) for values in path]
        transport = [_influence(result, len(path[0])) for result in (*self.steps, self.end)]
        square = [self.path.square] if self.centered else []
        costs = [self.path.step_cost, self.path.chord_cost]
        return np.column_stack([*filled, *defined, *costs, *square, *transport])

    def _measures(self, means: Float[np.ndarray, "m c"]) -> dict[str, Float[np.ndarray, " m"]]:
        count, blocks = len(TRAJECTORY_MEASURES), self.path.step_cost.shape[1]
        widths = [count, count, blocks + 1, (blocks + 1) * self.centered]
        sums, shares, moved, square, costs = np.split(means, np.cumsum(widths), axis=1)
        names = [*(f" {step}" for step in range(blocks)), ""]  # suffixes; "" is from end to end
        with np.errstate(divide="ignore", invalid="ignore"):
            paired, distance = self._length(moved), self._length(costs)
            measures = dict(zip(TRAJECTORY_MEASURES, (sums / shares).T, strict=True))
            measures |= _transport_measures(distance[:, :-1], distance[:, -1])
            ot_score = np.minimum(distance**2 / np.where(paired > 0, paired, np.nan) ** 2, 1.0)
            for k, name in enumerate(names):
                measures[f"paired{name}"] = paired[:, k]
                measures[f"distance{name}"] = distance[:, k]
                measures[f"ot_score{name}"] = ot_score[:, k]
            if self.centered:
                total = square[:, [*range(blocks), 0]] + square[:, [*range(1, blocks + 1), -1]]
                best = np.where(total - costs > self.floor**2, total - costs, np.nan)
                corr_score = np.minimum((total - moved) / best, 1.0)
                measures |= {f"corr_score{name}": corr_score[:, k] for k, name in enumerate(names)}
        return measures

    def _length(self, squared: np.ndarray) -> np.ndarray:
        length = np.sqrt(np.maximum(squared, 0.0))
        return np.where(length > self.floor, length, 0.0)


def _transport_measures(steps: np.ndarray, end: np.ndarray) -> dict[str, np.ndarray]:
    """Return the measures of W2 lengths `steps` (m, L) and `end` (m,)."""
    length, chord = steps.sum(1), np.where(end > 0, end, np.nan)
    count = steps.shape[1]
    moving = length**2 / np.where(length > 0, (steps**2).sum(1), np.nan)
    # A ratio can be below 1 only because of a solver's error or the linearization.
    return {
        "moving_blocks": moving,
        "sqrt_moving_blocks": np.sqrt(moving),
        "length": length,
        "length_ratio": np.maximum(length / chord, 1.0),
        "action_ratio": np.maximum(count * (steps**2).sum(1) / chord**2, 1.0),
        "speed_deviation": steps.std(1) / np.where(length > 0, length / count, np.nan),
    }


def _influence(result: TransportResult, n: int) -> Float[np.ndarray, " n"]:
    """Return n values with mean W2^2: f(x_i) + g(y_i), or W2^2 if the solver has no potentials.

    To first order, resampling f(x_i) + g(y_i) is exact (del Barrio and Loubes 2019, thm 4.1). The
    mean of these values is a lower bound on the cost; a shift makes it the computed cost.
    """
    if result.potentials is None:
        return np.full(n, result.cost)
    f, g = map(as_float64, result.potentials)
    influence = f + g
    return influence - influence.mean() + result.cost


@dataclass(frozen=True, eq=False)
class Resampled:
    """Measures of one sample and of its resamples, by name; NaN if undefined."""

    values: dict[str, float]
    draws: dict[str, np.ndarray]  # of bootstrap resamples (n of n samples, with replacement)
    left_out: dict[str, np.ndarray]  # with each sample, or each group, left out

    def interval(self, name: str) -> tuple[float, float] | None:
        """Return the BCa interval of a measure; None if it is undefined or there are no draws."""
        return bca_interval(self.values[name], self.draws[name], self.left_out[name])

    def pseudo_values(self, name: str) -> Float[np.ndarray, " n"]:
        """Return the jackknife pseudo-values n theta - (n - 1) theta_(-i) of a measure theta.

        For a mean, these are the samples' own values (Tukey 1958). For a smooth function of means,
        their mean is the measure up to O(1/n), and their spread gives its uncertainty.
        """
        left = self.left_out[name]
        return len(left) * self.values[name] - (len(left) - 1) * left


def resample(
    columns: Float[np.ndarray, "n c"],
    measures: Measures,
    *,
    draws: int,
    seed: int,
    groups: Int[np.ndarray, " n"] | None = None,
) -> Resampled:
    """Evaluate `measures` at the column means of the sample, and of its resamples.

    The resamples are `draws` bootstrap resamples, and the sample with each row left out. Rows of
    one group are copies of one sample, and are drawn or left out together.
    """
    mean = columns.mean(0, keepdims=True)
    sums, sizes = _by_group(columns, groups)
    n = len(sums)
    rng = np.random.default_rng(seed)
    batch = max(1, limited_size(8 * _MAX_WEIGHTS, 1 / 16) // (8 * n))
    means = []
    for k in range(0, draws, batch):
        weights = rng.multinomial(n, np.full(n, 1 / n), size=min(batch, draws - k))
        means.append(weights @ sums / (weights @ sizes)[:, None])
    rest = (len(columns) - sizes)[:, None]
    left = (len(columns) * mean - sums) / rest if n > 1 else np.full_like(sums, np.nan)
    with np.errstate(divide="ignore", invalid="ignore"):
        return Resampled(
            {name: float(value[0]) for name, value in measures(mean).items()},
            dict(measures(np.concatenate([np.empty((0, columns.shape[1])), *means]))),
            dict(measures(left)),
        )


def _by_group(
    columns: Float[np.ndarray, "n c"], groups: Int[np.ndarray, " n"] | None
) -> tuple[Float[np.ndarray, "g c"], Int[np.ndarray, " g"]]:
    """Return the sum of the rows of every group, and the number of its rows."""
    if groups is None:
        return columns, np.ones(len(columns), dtype=np.int64)
    indices = np.unique(groups, return_inverse=True)[1]
    sizes = np.bincount(indices)
    return sums_by_class(columns, indices, len(sizes)), sizes


def mean_interval(
    values: Float[np.ndarray, " n"], *, positive: bool = False
) -> tuple[float, float] | None:
    """Return Student's t interval for the mean of the values that are not NaN.

    None if there are fewer than two of them, or if one is infinite.

    If the values are `positive`, and therefore skewed, the interval is symmetric on a log scale:
    m exp(-+ t s / m), where s is the standard error of the mean m. For a few values, intervals from
    resamples are too narrow: 95 % BCa intervals of 4 values contain the mean in only 80 % of cases.
    """
    defined = values[~np.isnan(values)]
    n = len(defined)
    if n < 2 or np.isinf(defined).any():
        return None
    mean = float(defined.mean())
    quantile = float(scipy.stats.t.ppf((1 + LEVEL) / 2, n - 1))
    half = quantile * float(defined.std(ddof=1)) / math.sqrt(n)
    if not positive:
        return mean - half, mean + half
    factor = math.exp(min(half / mean, _LARGEST_LOG)) if mean > 0 else 1.0
    return mean / factor, mean * factor


def bca_interval(
    value: float, draws: Float[np.ndarray, " b"], left_out: Float[np.ndarray, " n"]
) -> tuple[float, float] | None:
    """Return the bias-corrected accelerated bootstrap interval (Efron 1987).

    The percentiles of `draws` are shifted by z0, the median bias of the draws, and by the
    acceleration a = sum u^3 / (6 (sum u^2)^(3/2)), which corrects for skewness; u is the influence
    of leaving a sample out. Finite-sample bias is not corrected. None if the value is not finite or
    there are no draws.
    """
    draws = draws[~np.isnan(draws)]
    if not np.isfinite(value) or len(draws) == 0:
        return None
    if np.ptp(draws) <= ROUNDING * abs(value):
        return value, value
    # Half of the draws that equal the value up to rounding count as below it.
    margin = _TIE * np.ptp(draws)
    below = ((draws < value - margin).sum() + (draws <= value + margin).sum()) / 2
    z0 = ndtri((below + 0.5) / (len(draws) + 1))
    u = np.nanmean(left_out) - left_out[~np.isnan(left_out)]
    spread = (u**2).sum() ** 1.5
    a = (u**3).sum() / (6 * spread) if spread > 0 else 0.0
    z = z0 + ndtri(np.array([(1 - LEVEL) / 2, (1 + LEVEL) / 2]))
    low, high = np.quantile(draws, ndtr(z0 + z / (1 - a * z)))
    return float(low), float(high)


def sign_flip_p_value(difference: Float[np.ndarray, " n"], *, draws: int, seed: int) -> float:
    """Return the one-sided p-value of paired samples; a small one means "mean difference > 0".

    Signs are flipped at random, or in all possible ways if there are at most `draws` of them. The
    test is exact if the two samples of a pair are exchangeable, and asymptotically valid whenever
    the mean difference is zero.
    """
    n = len(difference)
    if n == 0 or not np.any(difference):
        return 1.0
    # A margin for rounding, so that ties count as ties.
    threshold = difference.sum() - ROUNDING * np.abs(difference).sum()
    if 2**n <= draws:
        signs = np.array(list(product((1, -1), repeat=n)))
        return float((signs @ difference >= threshold).mean())
    rng = np.random.default_rng(seed)
    flipped = np.array(
        [np.where(rng.random(n) < 0.5, difference, -difference).sum() for _ in range(draws)]
    )
    return float((1 + (flipped >= threshold).sum()) / (1 + draws))


def permutation_p_value(
    a: Float[np.ndarray, " n"], b: Float[np.ndarray, " m"], *, draws: int, seed: int
) -> float:
    """Return the one-sided p-value of independent samples; a small one means "mean a > mean b".

    The statistic is Welch's t under random relabeling, or under all relabelings if there are at
    most `draws` of them. The test is exact if a and b have the same distribution, and
    asymptotically valid whenever their means agree (Janssen 1997).
    """
    n, m = len(a), len(b)
    pooled = np.concatenate([a, b])
    if n < 2 or m < 2 or np.ptp(pooled) == 0:
        return 1.0
    pooled = pooled - pooled.mean()
    square = (pooled**2).sum()
    rng = np.random.default_rng(seed)

    def welch(first: np.ndarray) -> float:
        total, squares = first.sum(), (first**2).sum()
        mean_a, mean_b = total / n, (pooled.sum() - total) / m
        within_a, within_b = squares / n - mean_a**2, (square - squares) / m - mean_b**2
        if within_a + within_b <= ROUNDING * square / (n + m):  # then the means differ
            return math.copysign(math.inf, mean_a - mean_b)
        return float((mean_a - mean_b) / np.sqrt(within_a / (n - 1) + within_b / (m - 1)))

    observed = welch(pooled[:n])
    threshold = observed * (1 - ROUNDING * np.sign(observed))
    if math.comb(n + m, n) <= draws:
        subsets = combinations(range(n + m), n)
        return float(np.mean([welch(pooled[list(rows)]) >= threshold for rows in subsets]))
    relabeled = np.array([welch(rng.permutation(pooled)[:n]) for _ in range(draws)])
    return float((1 + (relabeled >= threshold).sum()) / (1 + draws))
