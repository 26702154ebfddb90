"""Null maps: can these samples distinguish an optimal map from one that is not optimal?

In many dimensions, samples are sparse, and any small displacement may look optimal. Null maps show
whether it does. Let u_i = x_i - mean x and v_i = y_i - mean y be the centered clouds. A null map
permutes or rotates their displacements s_i = v_i - u_i, and is scored like the network's pairing:

* *dealt* (permuted): x_i + s_p(i), with p a random permutation;
* *turned* (rotated): x_i + A s_i, with A a random orthogonal antisymmetric matrix. An optimal map
  has a symmetric Jacobian I + M, but its null map has the Jacobian I + A M, which in general is not
  symmetric.

If the score of a null map is as high as that of the network's own pairing, the samples cannot show
whether the pairing is optimal.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float, Int

from ..arrays.rows import as_float64
from ..thresholds import clearly_above
from ..transport import Exact
from .correlation import pair_score, solved_pair
from .result import NullScore, Score

MAX_SAMPLES = 2000  # if there are more, a random subset is scored
_ENTRIES = 2**22  # largest number of entries of a cloud; limits the samples of wide features
_MIN_SAMPLES = 100  # at least this number of samples is scored, for any width
_TURNED_WIDTH = 1024  # largest width for turned maps; wider QR decompositions take too long


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
    used. From more than `MAX_SAMPLES` samples, or of very wide features, a random subset is used,
    on which the network's score is computed too. There are no turned maps for more than 1024
    features. The result is empty for no draws, for fewer than two samples, or if the network's
    score is undefined.
    """
    rng = np.random.default_rng(seed)
    rows = distinct_rows(len(x), x.shape[1], groups, rng)
    if draws < 1 or len(rows) < 2:
        return ()
    complete = len(rows) == len(x)
    x, y = as_float64(x[rows]), as_float64(y[rows])
    own = own if own is not None and complete else pair_score(x, y, Exact())
    if own is None:
        return ()
    step = y - x
    step -= step.mean(0)
    scores = {"dealt": [_scores(x, step[rng.permutation(len(x))]) for _ in range(draws)]}
    if x.shape[1] <= _TURNED_WIDTH:
        scores["turned"] = [_scores(*_turned(x, step, rng)) for _ in range(draws)]
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
    """Return a row of every group (of every sample without groups), at most `_limit(d)` of them."""
    rows = np.arange(n) if groups is None else np.unique(groups, return_index=True)[1]
    limit = _limit(d)
    return np.sort(rows if len(rows) <= limit else rng.choice(rows, limit, replace=False))


def _limit(d: int) -> int:
    """Return the largest number of samples of width d that are scored."""
    return min(MAX_SAMPLES, max(_MIN_SAMPLES, _ENTRIES // d))


def _turned(
    x: Float[np.ndarray, "n d"], step: Float[np.ndarray, "n d"], rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    if x.shape[1] % 2:  # a zero coordinate makes the width even
        x, step = (np.pad(part, ((0, 0), (0, 1))) for part in (x, step))
    return x, step @ antisymmetric(x.shape[1], rng).T


def _scores(x: Float[np.ndarray, "n d"], step: Float[np.ndarray, "n d"]) -> tuple[Score, float]:
    """Return the correlation score of x -> x + step, and an upper bound on its OT score.

    If the correlation score is undefined, it is replaced by 0 with the interval [0, 1].
    """
    pair = solved_pair(x, x + step, Exact())
    upper, paired = pair.transport.upper**2, np.vdot(step, step) / len(x)
    return pair.corr_score or (0.0, 0.0, 1.0), float(upper / paired) if upper < paired else 1.0


def _summary(kind: str, scores: list[tuple[Score, float]], own: Score, samples: int) -> NullScore:
    correlations, costs = zip(*scores, strict=True)
    values, lows, highs = zip(*correlations, strict=True)
    score = (max(values), min(lows), max(highs))
    return NullScore(kind, score, tuple(values), own, samples, max(costs))
