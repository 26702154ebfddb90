"""Can the samples show that a path is straight? Effective sample size and a bound by moments.

A single distant sample can make a whole path look straight; the effective number of samples detects
this. In many dimensions, samples can be so far apart that transport cannot distinguish a rotation
from straight motion; a bound from second moments can.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from jaxtyping import Float, Int
from scipy.special import ndtri

from ..arrays.rows import map_rows, select_rows
from ..transport import TransportResult
from .correlation import Moments
from .paths import PathMeasures
from .resampling import LEVEL

Ends = tuple[int, int]  # the indices of two layers of a segment
_FOLDS = 5
_SHRINKAGE = (1e-3, 1e-2, 1e-1)  # weights of a multiple of the identity in a shrunk covariance
_SMALLEST = 1e-30  # least mean square of a cloud, absolute and relative to the other cloud's
_MAX_WIDTH = 256  # number of features up to which covariances are estimated
_MIN_SAMPLES = 20


def effective_number(
    weights: Float[np.ndarray, " n"], groups: Int[np.ndarray, " n"] | None = None
) -> float | None:
    """Return (sum w)^2 / sum w^2, the effective number of samples in a sum of weights w >= 0.

    It is n for equal weights, 1 if one sample has all the weight, and None if all weights are 0.
    Samples with the same number in `groups` are copies and count as one.
    """
    if groups is not None:
        weights = np.bincount(np.unique(groups, return_inverse=True)[1], weights)
    largest = weights.max(initial=0.0)
    if not largest > 0:
        return None
    shares = weights / largest
    return float(shares.sum() ** 2 / (shares**2).sum())


def effective_samples(
    path: PathMeasures,
    squared_distances: Mapping[Ends, Float[np.ndarray, " n"]],
    i: int,
    j: int,
    groups: Int[np.ndarray, " n"] | None = None,
) -> float | None:
    """Return the effective number of samples in the values of layers i to j.

    It is the smallest effective number for three weights of a sample: ||u|| ||v||, which bounds its
    contribution to the correlation score; its transport cost from end to end; and the total
    transport cost of its steps. `path` measures the centered layers; `squared_distances` are
    `costs` between consecutive layers and from i to j.
    """
    steps = np.sum([squared_distances[k, k + 1] for k in range(i, j)], axis=0)
    weights = [np.sqrt(path.square[:, i] * path.square[:, j]), squared_distances[i, j], steps]
    numbers = [effective_number(w, groups) for w in weights]
    return min((number for number in numbers if number is not None), default=None)


def costs(
    moments: Moments, i: int, j: int, result: TransportResult, paired: Float[np.ndarray, " n"]
) -> Float[np.ndarray, " n"]:
    """Return the squared distance over which the optimal coupling moves every centered sample.

    If the coupling is not a permutation, return `paired`, the same for the network's own pairing.
    """
    coupling = result.coupling
    if not (isinstance(coupling, np.ndarray) and coupling.ndim == 1):
        return paired
    x, y, shift = moments.arrays[i], moments.arrays[j], moments.mean_shift(i, j)
    (squared,) = map_rows(
        lambda _, a, b: [((b - a - shift) ** 2).sum(1)], x, select_rows(y, coupling)
    )
    return squared


def length_ratio_at_most(
    u: Float[np.ndarray, "n d"],
    v: Float[np.ndarray, "n d"],
    steps: Float[np.ndarray, "n L"],
    *,
    seed: int = 0,
) -> float | None:
    r"""Return a one-sided 95 % bound on the length ratio of the population's centered path.

    No step of a path is longer than its paired distance, and for every positive definite A (by
    Young's inequality; Gelbrich 1990 for the best A)

    .. math:: W_2^2(u, v) \ge E\|u\|^2 + E\|v\|^2 - E\, u^T A u - E\, v^T A^{-1} v.

    Therefore sum_l sqrt(E ||step_l||^2), divided by the square root of the right side, is an upper
    bound on the ratio. Only second moments are estimated, so a few samples suffice even in many
    dimensions. To avoid overfitting, A is fitted to four fifths of the samples and evaluated on
    the remaining fifth, for each of the five fifths.

    `u` and `v` are centered features at the two ends; `steps` are the squared lengths of every
    sample's centered steps. None for fewer than 20 samples, or if the lower bound on W2 or the
    length is not positive.
    """
    if len(u) < _MIN_SAMPLES:
        return None
    terms = _bound_terms(u, v, np.random.default_rng(seed))
    chord, lengths = terms.mean(), np.sqrt(steps.mean(0))
    total = lengths.sum()
    if not (chord > 0 and total > 0):
        return None
    slopes = np.divide(1, 2 * lengths, out=np.zeros_like(lengths), where=lengths > 0)
    influence = steps @ slopes / total - terms / (2 * chord)  # of log(total / sqrt(chord))
    error = ndtri(LEVEL) * influence.std(ddof=1) / np.sqrt(len(u))
    return float(max(total / np.sqrt(chord), 1.0) * np.exp(error))


def _bound_terms(
    u: Float[np.ndarray, "n d"], v: Float[np.ndarray, "n d"], rng: np.random.Generator
) -> Float[np.ndarray, " n"]:
    """Return ||u||^2 + ||v||^2 - u^T A u - v^T A^-1 v for every sample, with A fitted to others."""
    n, d = u.shape
    squares = [(x**2).sum(1) for x in (u, v)]
    shrinkage = _SHRINKAGE if d <= _MAX_WIDTH else ()
    products = np.zeros((1 + len(shrinkage), n))
    for held_out in np.array_split(rng.permutation(n), _FOLDS):
        rest = np.setdiff1d(np.arange(n), held_out)
        floor = max(_SMALLEST * max(square.mean() for square in squares), _SMALLEST)
        mean_u, mean_v = (max(square[rest].mean(), floor) for square in squares)
        scale = np.sqrt(mean_v / mean_u)  # here A is a multiple of the identity
        products[0, held_out] = (scale * squares[0] + squares[1] / scale)[held_out]
        if shrinkage:
            cov_u, cov_v = (x[rest].T @ x[rest] / len(rest) for x in (u, v))
        for k, weight in enumerate(shrinkage, 1):
            forward, inverse = _gaussian_map(
                _shrink(cov_u, mean_u / d, weight), _shrink(cov_v, mean_v / d, weight)
            )
            for x, matrix in ((u[held_out], forward), (v[held_out], inverse)):
                products[k, held_out] += ((x @ matrix) * x).sum(1)
    return squares[0] + squares[1] - products[products.mean(1).argmin()]


def _shrink(covariance: Float[np.ndarray, "d d"], mean: float, weight: float) -> np.ndarray:
    return (1 - weight) * covariance + weight * mean * np.eye(len(covariance))


def _gaussian_map(
    x: Float[np.ndarray, "d d"], y: Float[np.ndarray, "d d"]
) -> tuple[Float[np.ndarray, "d d"], Float[np.ndarray, "d d"]]:
    """Return the optimal map A from covariance x to y (A x A = y, A > 0), and its inverse."""
    root, inverse = _roots(x)
    middle, middle_inverse = _roots(root @ y @ root)
    return inverse @ middle @ inverse, root @ middle_inverse @ root


def _roots(matrix: Float[np.ndarray, "d d"]) -> tuple[np.ndarray, np.ndarray]:
    """Return the square root of a positive definite matrix, and the inverse of the root."""
    values, vectors = np.linalg.eigh(matrix)
    roots = np.sqrt(np.maximum(values, np.finfo(float).eps * values[-1]))
    return (vectors * roots) @ vectors.T, (vectors / roots) @ vectors.T
