"""What a straight path rests on: enough of its samples, and more than their being sparse.

One distant sample can make a whole path straight, and samples in many dimensions are so far apart
that a turn of all of them costs as much as a straight motion. Against the first stands the number
of samples that carry a value, against the second a bound from second moments alone.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from jaxtyping import Float, Int
from scipy.special import ndtri

from ..arrays.rows import blocks, picked
from ..runtime import processes
from ..transport import TransportResult
from .correlation import Moments
from .paths import PathFigures
from .resampling import LEVEL

Ends = tuple[int, int]  # two layers of a segment, by their numbers
_FOLDS = 5
_SHRUNK = (1e-3, 1e-2, 1e-1)  # shares of a multiple of the identity in a covariance
_SMALLEST = 1e-30  # mean square of a cloud, relative to the other, that counts as positive
_WIDEST = 256  # features that a covariance is estimated of
_FEWEST = 20  # samples


def effective_number(
    weights: Float[np.ndarray, " n"], groups: Int[np.ndarray, " n"] | None = None
) -> float | None:
    """Return (sum w)^2 / sum w^2, the number of samples that carry a sum of weights >= 0.

    n for equal weights, 1 if one sample has them all; None if all are 0. Copies, of one number in
    `groups`, count together.
    """
    if groups is not None:
        weights = np.bincount(np.unique(groups, return_inverse=True)[1], weights)
    largest = weights.max(initial=0.0)
    if not largest > 0:
        return None
    shares = weights / largest
    return float(shares.sum() ** 2 / (shares**2).sum())


def effective_samples(
    path: PathFigures,
    moved: Mapping[Ends, Float[np.ndarray, " n"]],
    i: int,
    j: int,
    groups: Int[np.ndarray, " n"] | None = None,
) -> float | None:
    """Return the number of samples that carry the values of layers i to j.

    The least of the effective numbers of ||u|| ||v||, which bounds a sample's part of the
    correlation score, of the cost of moving it from end to end, and of that of all its steps.

    Parameters
    ----------
    path : PathFigures
        Of the centred layers.
    moved : {(i, j): ndarray, (n,)}
        Squared distances over which transport moves the samples; see `costs`.
    """
    steps = np.sum([moved[k, k + 1] for k in range(i, j)], axis=0)
    weights = [np.sqrt(path.square[:, i] * path.square[:, j]), moved[i, j], steps]
    numbers = [effective_number(each, groups) for each in weights]
    return min((each for each in numbers if each is not None), default=None)


def costs(
    moments: Moments, i: int, j: int, result: TransportResult, own: Float[np.ndarray, " n"]
) -> Float[np.ndarray, " n"]:
    """Return ||v_c(k) - u_k||^2 of every sample k, c the optimal coupling; `own` without one."""
    coupling = result.coupling
    if not (isinstance(coupling, np.ndarray) and coupling.ndim == 1):
        return own
    x, y, shift = moments.arrays[i], moments.arrays[j], moments.shift(i, j)
    found = np.zeros(len(x))
    for rows, (a, b) in blocks(x, picked(y, coupling), within=processes.shard(len(x))):
        found[rows] = ((b - a - shift) ** 2).sum(1)
    return processes.all_reduce_sum(found)


def length_ratio_at_most(
    u: Float[np.ndarray, "n d"],
    v: Float[np.ndarray, "n d"],
    steps: Float[np.ndarray, "n L"],
    *,
    seed: int = 0,
) -> float | None:
    r"""Return a one-sided 95 % bound on the length ratio of the population's centred path.

    No step of a path is longer than the network's own pairing makes it, and for every positive
    definite A (Young's inequality; Gelbrich 1990 for the best A)

    .. math:: W_2^2(u, v) \ge E\|u\|^2 + E\|v\|^2 - E\, u^T A u - E\, v^T A^{-1} v.

    So sum_l sqrt(E ||step_l||^2) over the root of the right side bounds the ratio, whatever the
    samples cannot see: only second moments are estimated. A is fitted to four fifths of the samples
    and used on the rest, in turn, so that it is not fitted to the noise it is judged by.

    Parameters
    ----------
    u, v : ndarray, (n, d)
        Centred features at the two ends.
    steps : ndarray, (n, L)
        Squared lengths of the samples' own centred steps.
    seed : int

    Returns
    -------
    float, or None with fewer than 20 samples, or if moments bound the distance by nothing.
    """
    if len(u) < _FEWEST:
        return None
    gain = _least_cost(u, v, np.random.default_rng(seed))
    chord, lengths = gain.mean(), np.sqrt(steps.mean(0))
    total = lengths.sum()
    if not (chord > 0 and total > 0):
        return None
    slopes = np.divide(1, 2 * lengths, out=np.zeros_like(lengths), where=lengths > 0)
    influence = steps @ slopes / total - gain / (2 * chord)  # of log(total / sqrt(chord))
    error = ndtri(LEVEL) * influence.std(ddof=1) / np.sqrt(len(u))
    return float(max(total / np.sqrt(chord), 1.0) * np.exp(error))


def _least_cost(
    u: Float[np.ndarray, "n d"], v: Float[np.ndarray, "n d"], rng: np.random.Generator
) -> Float[np.ndarray, " n"]:
    """||u||^2 + ||v||^2 - u^T A u - v^T A^-1 v of every sample, A fitted to other samples."""
    n, d = u.shape
    squares = [(x**2).sum(1) for x in (u, v)]
    shrunk = _SHRUNK if d <= _WIDEST else ()
    costs = np.zeros((1 + len(shrunk), n))
    for held_out in np.array_split(rng.permutation(n), _FOLDS):
        rest = np.setdiff1d(np.arange(n), held_out)
        least = max(_SMALLEST * max(square.mean() for square in squares), _SMALLEST)
        mean_u, mean_v = (max(square[rest].mean(), least) for square in squares)
        scale = np.sqrt(mean_v / mean_u)  # A a multiple of the identity
        costs[0, held_out] = (scale * squares[0] + squares[1] / scale)[held_out]
        if shrunk:
            of_u, of_v = (x[rest].T @ x[rest] / len(rest) for x in (u, v))
        for k, share in enumerate(shrunk, 1):
            forth, back = _gaussian_map(
                _shrunk(of_u, mean_u / d, share), _shrunk(of_v, mean_v / d, share)
            )
            for x, matrix in ((u[held_out], forth), (v[held_out], back)):
                costs[k, held_out] += ((x @ matrix) * x).sum(1)
    return squares[0] + squares[1] - costs[costs.mean(1).argmin()]


def _shrunk(covariance: Float[np.ndarray, "d d"], mean: float, share: float) -> np.ndarray:
    return (1 - share) * covariance + share * mean * np.eye(len(covariance))


def _gaussian_map(
    x: Float[np.ndarray, "d d"], y: Float[np.ndarray, "d d"]
) -> tuple[Float[np.ndarray, "d d"], Float[np.ndarray, "d d"]]:
    """A with A x A = y, positive definite, and its inverse: the optimal map of two Gaussians."""
    root, inverse = _powers(x)
    middle, of_middle = _powers(root @ y @ root)
    return inverse @ middle @ inverse, root @ of_middle @ root


def _powers(matrix: Float[np.ndarray, "d d"]) -> tuple[np.ndarray, np.ndarray]:
    """The square root of a positive definite matrix, and its inverse."""
    values, vectors = np.linalg.eigh(matrix)
    roots = np.sqrt(np.maximum(values, np.finfo(float).eps * values[-1]))
    return (vectors * roots) @ vectors.T, (vectors / roots) @ vectors.T
