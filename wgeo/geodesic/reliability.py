"""Can these samples show that a map is optimal, or that a path is straight?

In many dimensions, samples are sparse: any small displacement may look optimal, and a rotation may
look like straight motion. Null maps show whether this happens. An upper bound on the length ratio
holds even for sparse samples. A single distant sample can also make a whole path look straight; the
effective number of samples detects this.

Let u_i = x_i - mean x and v_i = y_i - mean y be the centered clouds. A null map permutes or rotates
their displacements s_i = v_i - u_i, and is scored like the network's pairing:

* *dealt* (permuted): x_i + s_p(i), with p a random permutation;
* *turned* (rotated): x_i + A s_i, with A a random orthogonal antisymmetric matrix. An optimal map
  has a symmetric Jacobian I + M, but its null map has the Jacobian I + A M, which in general is not
  symmetric.

If the score of a null map is as high as that of the network's own pairing, the samples cannot show
whether the pairing is optimal.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from jaxtyping import Float, Int
from scipy.special import ndtri

from ..arrays.rows import as_float64, map_rows, select_rows
from ..thresholds import clearly_above
from ..transport import TransportResult
from .pairs import Ends, Moments, solved_pair
from .paths import PathMeasures
from .resampling import LEVEL
from .result import NullScore, Score

MAX_SAMPLES = 2000  # if there are more, a random subset is scored
_ENTRIES = 2**22  # largest number of entries of a scored cloud
_MIN_SCORED = 100  # number of samples that are scored even if they have more entries
_TURNED_WIDTH = 1024  # largest width for turned maps; wider QR decompositions take too long
_FOLDS = 5
_SHRINKAGE = (1e-3, 1e-2, 1e-1)  # weights of a multiple of the identity in a shrunk covariance
_SMALLEST = 1e-30  # least mean square of a cloud, absolute and relative to the other cloud's
_MAX_WIDTH = 256  # number of features up to which covariances are estimated
_MIN_SAMPLES = 20


def null_scores(
    x: Float[np.ndarray, "n d"],
    y: Float[np.ndarray, "n d"],
    *,
    own: Score | None = None,
    draws: int = 1,
    seed: Sequence[int] = (0,),
    groups: Int[np.ndarray, " n"] | None = None,
) -> tuple[NullScore, ...]:
    """Return the scores of `draws` null maps of each kind, with the displacements y - x.

    `own` is the network's score on all samples, if known. One sample of each of the `groups` is
    used. If there are more than `MAX_SAMPLES` samples, or if features are very wide, a random
    subset of the samples is used, and the network's score is computed on the same subset. There are
    no turned maps for more than 1024 features. The result is empty for no draws, for fewer than two
    samples, or if the network's score is undefined.
    """
    rng = np.random.default_rng(seed)
    rows = distinct_rows(len(x), x.shape[1], groups, rng)
    if draws < 1 or len(rows) < 2:
        return ()
    complete = len(rows) == len(x)
    x, y = as_float64(x[rows]), as_float64(y[rows])
    own = own if own is not None and complete else solved_pair(x, y).corr_score
    if own is None:
        return ()
    step = y - x
    step -= step.mean(0)
    scores = {"dealt": [_scores(x, step[rng.permutation(len(x))]) for _ in range(draws)]}
    if x.shape[1] <= _TURNED_WIDTH:
        if x.shape[1] % 2:  # a zero coordinate makes the width even
            x, step = (np.pad(part, ((0, 0), (0, 1))) for part in (x, step))
        turns = (antisymmetric(x.shape[1], rng).T for _ in range(draws))
        scores["turned"] = [_scores(x, step @ turn) for turn in turns]
    return tuple(_summary(kind, draws_of, own, len(x)) for kind, draws_of in scores.items())


def has_power(null: Sequence[NullScore]) -> bool | None:
    """Return whether the network's lower bound clearly exceeds the null scores' upper bounds.

    None without null scores.
    """
    if not null:
        return None
    highest = max(each.score[2] for each in null)
    return bool(clearly_above(null[0].own[1], highest, null[0].samples))


def antisymmetric(width: int, rng: np.random.Generator) -> Float[np.ndarray, "d d"]:
    """Return a random rotation by 90 degrees in each of width / 2 planes, for an even width."""
    frame = np.linalg.qr(rng.standard_normal((width, width)))[0]
    half = frame[:, ::2] @ frame[:, 1::2].T
    return half - half.T


def null_bytes(n: int, d: int) -> int:
    """Return the bytes of memory that `null_scores` needs."""
    return 10 * 8 * min(n, _limit(d)) * d + 2**28


def distinct_rows(
    n: int, d: int, groups: Int[np.ndarray, " n"] | None, rng: np.random.Generator
) -> Int[np.ndarray, " m"]:
    """Return one row of every group; without groups, all rows.

    If there are more than `_limit(d)` of them, return that many at random.
    """
    rows = np.arange(n) if groups is None else np.unique(groups, return_index=True)[1]
    limit = _limit(d)
    return np.sort(rows if len(rows) <= limit else rng.choice(rows, limit, replace=False))


def _limit(d: int) -> int:
    """Return the largest number of samples of width d that are scored."""
    return min(MAX_SAMPLES, max(_MIN_SCORED, _ENTRIES // d))


def _scores(x: Float[np.ndarray, "n d"], step: Float[np.ndarray, "n d"]) -> tuple[Score, float]:
    """Return the correlation score of x -> x + step, and an upper bound on its OT score.

    If the correlation score is undefined, it is replaced by 0 with the interval [0, 1].
    """
    pair = solved_pair(x, x + step)
    upper, paired = pair.transport.upper**2, np.vdot(step, step) / len(x)
    return pair.corr_score or (0.0, 0.0, 1.0), float(upper / paired) if upper < paired else 1.0


def _summary(kind: str, scores: list[tuple[Score, float]], own: Score, samples: int) -> NullScore:
    correlations, costs = zip(*scores, strict=True)
    values, lows, highs = zip(*correlations, strict=True)
    score = (max(values), min(lows), max(highs))
    return NullScore(kind, score, tuple(values), own, samples, max(costs))


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
    groups: Int[np.ndarray, " n"] | None,
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

    If the coupling is not a permutation, return `paired`, which is for the network's own pairing.
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
    r"""Return a one-sided 95 % upper bound on the length ratio of the population's centered path.

    W2 between two layers is at most their paired distance, and for every positive definite A (by
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
    """Return ||u||^2 + ||v||^2 - u^T A u - v^T A^-1 v of each sample, with A fitted to others."""
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
