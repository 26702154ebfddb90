"""Straightness of each sample's path through the layers, and the resolution of the samples.

None of these measures needs optimal transport; `measure` adds those that do.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Int

from ..arrays.rows import as_float64, map_rows, mean_of, row_ranges, spaced_rows, sum_over_rows
from ..runtime import processes

_COINCIDENT = 1e-12  # squared distance, relative to the squared norms, below which points coincide
_MAX_QUERIES = 4096  # samples whose nearest neighbor is computed


@dataclass(frozen=True, eq=False)
class PathMeasures:
    """Straightness of every sample's path x_0, ..., x_L; NaN if a measure is undefined.

    Write Delta_l = x_{l+1} - x_l. A step, or the chord x_L - x_0, counts as zero if it is within
    the rounding of the features, 4 eps max_l ||x_l||. A path is closed if its chord is zero.

    Attributes
    ----------
    line_shape_ratio : ndarray, (n,), in [1, inf)
        LSR = sum_l ||Delta_l|| / ||x_L - x_0||. Undefined if the path is closed.
    line_shape_score : ndarray, (n,), in [1, inf)
        LSS = M / ||sum_l Delta_l / ||Delta_l|| || over the M steps that are not zero (Gai and
        Zhang 2021, arXiv 2102.09235). Undefined if the path is closed or its unit steps cancel.
    turning_angle : ndarray, (n,), degrees in [0, 180]
        Mean angle between consecutive non-zero steps. Undefined if there are fewer than two.
    orthogonal_share : ndarray, (n,), in [0, 1)
        sum_l ||Delta_l - <Delta_l, e> e||^2 / sum_l ||Delta_l||^2, with e the chord's direction.
        Undefined if the path is closed.
    step_cost : ndarray, (n, L)
        ||Delta_l||^2, in squared units of the features.
    chord_cost : ndarray, (n,)
        ||x_L - x_0||^2.
    square : ndarray, (n, L + 1)
        ||x_l||^2.
    """

    line_shape_ratio: Float[np.ndarray, " n"]
    line_shape_score: Float[np.ndarray, " n"]
    turning_angle: Float[np.ndarray, " n"]
    orthogonal_share: Float[np.ndarray, " n"]
    step_cost: Float[np.ndarray, "n L"]
    chord_cost: Float[np.ndarray, " n"]
    square: Float[np.ndarray, "n l"]


def path_measures(
    arrays: Sequence[Float[np.ndarray, "n d"]],
    *,
    centres: Float[np.ndarray, "l d"] | None = None,
) -> PathMeasures:
    """Return the straightness of each sample's path through at least two layers of one space.

    `centres` are points to subtract from the layers, for example their means.
    """
    eps = machine_epsilon(arrays)

    def measures(_: slice, *layers: np.ndarray) -> tuple[np.ndarray, ...]:
        path = np.stack(layers)
        tolerance = 4 * eps * np.linalg.norm(path, axis=2).max(0)  # rounding of the features
        if centres is not None:
            path -= centres[:, None]
        return _measure(path, tolerance)

    return PathMeasures(*map_rows(measures, *arrays, width=arrays[0].shape[1] * len(arrays)))


def machine_epsilon(arrays: Sequence[np.ndarray]) -> float:
    """Return the largest machine epsilon of the arrays' types; integers count as float64."""
    return max(
        float(np.finfo(a.dtype).eps) if a.dtype.kind == "f" else np.finfo(float).eps for a in arrays
    )


def _measure(path: np.ndarray, tolerance: np.ndarray) -> tuple[np.ndarray, ...]:
    """Return the fields of `PathMeasures`, in order, for one chunk (L + 1, rows, d)."""
    steps = np.diff(path, axis=0)
    chord = path[-1] - path[0]
    lengths, chord_length = np.linalg.norm(steps, axis=2), np.linalg.norm(chord, axis=1)
    moved, open_ = lengths > tolerance, chord_length > tolerance
    with np.errstate(divide="ignore", invalid="ignore"):
        units = np.where(moved[..., None], steps / lengths[..., None], 0.0)
        along = np.where(open_[:, None], chord / chord_length[:, None], 0.0)
        # The error of a unit step is at most tolerance / length, that of their sum at most `blur`.
        blur = np.where(moved, tolerance / lengths, 0.0).sum(0)
        unit_sum = np.linalg.norm(units.sum(0), axis=1)
        score = np.where(open_ & (unit_sum > blur), np.maximum(moved.sum(0) / unit_sum, 1), np.nan)
        ratio = np.where(open_, np.maximum(lengths.sum(0) / chord_length, 1), np.nan)
        across = steps - np.einsum("lrd,rd->lr", steps, along)[..., None] * along
        share = np.where(open_, (across**2).sum((0, 2)) / (lengths**2).sum(0), np.nan)
    turning, square = _turning(units, moved), (path**2).sum(2)
    return ratio, score, turning, share, (lengths**2).T, chord_length**2, square.T


def _turning(units: np.ndarray, moved: np.ndarray) -> np.ndarray:
    """Return each sample's mean angle between consecutive non-zero unit steps, in degrees."""
    rows = units.shape[1]
    total, turns = np.zeros(rows), np.zeros(rows)
    last, started = units[0].copy(), moved[0].copy()
    for unit, moves in zip(units[1:], moved[1:], strict=True):
        # Kahan's angle between unit vectors, accurate even for nearly equal vectors.
        angle = 2 * np.arctan2(
            np.linalg.norm(unit - last, axis=1), np.linalg.norm(unit + last, axis=1)
        )
        turned = moves & started
        total[turned] += np.degrees(angle[turned])
        turns += turned
        last[moves] = unit[moves]
        started |= moves
    with np.errstate(invalid="ignore"):
        return np.where(turns > 0, total / turns, np.nan)


def neighbor_distance(x: Float[np.ndarray, "n d"]) -> float:
    """Return the median, over samples, of the distance to the nearest *distinct* sample.

    Coincident samples can be exchanged without cost, so they do not affect which couplings are
    optimal. NaN if all samples coincide. The median is over at most `_MAX_QUERIES` evenly spaced
    samples, each compared with all others.
    """
    n, d = x.shape
    center = mean_of(x)
    queries = spaced_rows(n, _MAX_QUERIES)
    nearest, local_rows = np.zeros(len(queries)), processes.shard(len(queries))
    nearest[local_rows] = np.inf
    # The queries are read again for every part, so parts have twice the usual size.
    half = -(-d // 2)
    for part in row_ranges(n, half):
        others = as_float64(x[part]) - center
        norms = (others**2).sum(1)
        factor = np.vstack([-2 * others.T, norms])  # one product gives ||y||^2 - 2 <x, y>
        for chunk in row_ranges(local_rows.stop, max(half, len(others)), local_rows.start):
            points = as_float64(x[queries[chunk]]) - center
            own = queries[chunk] - part.start
            least = _least_distinct(points, own, factor, norms)
            nearest[chunk] = np.minimum(nearest[chunk], least)
    nearest = processes.all_reduce_sum(nearest)
    finite = np.isfinite(nearest)
    return float(np.sqrt(np.median(nearest[finite]))) if finite.any() else float("nan")


def _least_distinct(
    points: Float[np.ndarray, "q d"],
    own: Int[np.ndarray, " q"],
    factor: Float[np.ndarray, "d1 n"],
    norms: Float[np.ndarray, " n"],
) -> Float[np.ndarray, " q"]:
    """Return the least ||x_i - y_j||^2 over the y_j distinct from x_i."""
    squares = (points**2).sum(1)
    squared = np.column_stack([points, np.ones(len(points))]) @ factor
    inside = (own >= 0) & (own < len(norms))
    squared[np.flatnonzero(inside), own[inside]] = np.inf
    least = squared.min(1) + squares
    # Search only the rows whose least entry may belong to a coincident point.
    for i in np.flatnonzero(least <= _COINCIDENT * (squares + norms.max())):
        row = squared[i] + squares[i]
        least[i] = row[row > _COINCIDENT * (squares[i] + norms)].min(initial=np.inf)
    return least


def resolution(
    x: Float[np.ndarray, "n d"],
    y: Float[np.ndarray, "n d"],
    *,
    neighbours: float | None = None,
) -> float | None:
    """Return the resolution: can these samples distinguish an optimal map from another?

    resolution = median_i ||(y_i - x_i) - mean(y - x)|| / median_i min_{x_j != x_i} ||x_i - x_j||.
    A translation does not change which coupling is optimal, so the mean displacement is subtracted.
    If every remaining displacement is at most half the nearest-neighbor distance, the pairing of
    x_i with y_i is optimal, whatever the map. Below `LOW_RESOLUTION` = 1/2, an ot_score of 1 is
    therefore not evidence of an optimal map. None if all samples of x coincide.

    `neighbours` is `neighbor_distance(x)`, if already known.
    """
    spacing = neighbor_distance(x) if neighbours is None else neighbours
    if not spacing > 0:
        return None
    (mean,) = sum_over_rows(lambda _, a, b: [(b - a).sum(0) / len(x)], x, y)
    (moved,) = map_rows(lambda _, a, b: [np.linalg.norm(b - a - mean, axis=1)], x, y)
    return float(np.median(moved)) / spacing
