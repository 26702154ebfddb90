"""Null maps: could these samples tell an optimal map from one that is not?

A sample is sparse in many dimensions, and then any small displacement looks optimal. So the same
centred displacements s_i = v_i - u_i are given to the wrong samples, and scored in the same way:

* *dealt*: x_i + s_p(i), p a random permutation; no map at all;
* *turned*: x_i + A s_i, A a random orthogonal antisymmetric matrix. A map so made of an optimal one
  has Jacobian I + A M with M symmetric, as far from symmetric as the step is large.

Where a null scores as highly as the network's own pairing, the sample cannot tell.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float, Int

from ..arrays.rows import as_float64
from ..transport import Exact
from .correlation import pair_score, solved_pair
from .result import NullScore, Score

SAMPLES = 2000  # of more, so many at random are scored
POWER_MARGIN = 0.05
_ENTRIES = 2**22  # numbers a cloud may have: fewer samples of wide features
_FEWEST = 100  # samples, however wide
_TURNED_WIDTH = 1024  # widest features that are turned: one QR decomposition of this size


def null_scores(
    x: Float[np.ndarray, "n d"],
    y: Float[np.ndarray, "n d"],
    *,
    own: Score | None = None,
    draws: int = 1,
    seed: Sequence[int] = (0,),
    groups: Int[np.ndarray, " n"] | None = None,
) -> tuple[NullScore, ...]:
    """Return the correlation scores of null maps of the displacements y - x, as certified solves.

    Parameters
    ----------
    x, y : ndarray, (n, d)
    own : (value, low, high), optional
        The score of the pairing itself on all samples, where it is known.
    draws : int
        Null maps of each kind; 0 for none.
    seed : sequence of int
    groups : ndarray of int, (n,), optional
        Copies of one image; one sample of each is taken.

    Notes
    -----
    Of more than `SAMPLES` samples, or of very wide features, a random part is taken, and the
    pairing's own score is that of the same part. Features of more than 1024 dimensions are not
    turned; those of an odd number get one coordinate of zeros.
    """
    rng = np.random.default_rng(seed)
    rows = chosen_rows(len(x), x.shape[1], groups, rng)
    if draws < 1 or len(rows) < 2:
        return ()
    all_ = len(rows) == len(x)
    x, y = as_float64(x[rows]), as_float64(y[rows])
    known = own if own is not None and all_ else pair_score(x, y, Exact())
    if known is None:
        return ()
    step = y - x
    step -= step.mean(0)
    found = {"dealt": [_scores(x, step[rng.permutation(len(x))]) for _ in range(draws)]}
    if x.shape[1] <= _TURNED_WIDTH:
        found["turned"] = [_scores(*_turned(x, step, rng)) for _ in range(draws)]
    return tuple(_gathered(kind, scores, known, len(x)) for kind, scores in found.items())


def powerful(null: Sequence[NullScore]) -> bool | None:
    """Return whether the own score is clearly above every null's; None without null scores.

    The rule: own low > highest null high + max(`POWER_MARGIN`, 1 / sqrt(n)). 1 / sqrt(n) is what
    the score of an unrelated pairing varies by at worst, in one dimension; 0.05 = 1 - cos(18
    degrees) is what a rotation has to lose for it to count as seen.
    """
    if not null:
        return None
    margin = max(POWER_MARGIN, 1 / np.sqrt(null[0].samples))
    return bool(null[0].own[1] > max(each.score[2] for each in null) + margin)


def antisymmetric(width: int, rng: np.random.Generator) -> Float[np.ndarray, "d d"]:
    """Return a random orthogonal antisymmetric matrix: a right angle in `width` / 2 planes."""
    frame = np.linalg.qr(rng.standard_normal((width, width)))[0]
    half = frame[:, ::2] @ frame[:, 1::2].T
    return half - half.T


def chosen_rows(
    n: int, d: int, groups: Int[np.ndarray, " n"] | None, rng: np.random.Generator
) -> Int[np.ndarray, " m"]:
    """Distinct samples, at most `SAMPLES` of them, drawn at random from more."""
    rows = np.arange(n) if groups is None else np.unique(groups, return_index=True)[1]
    most = min(SAMPLES, max(_FEWEST, _ENTRIES // d))
    return np.sort(rows if len(rows) <= most else rng.choice(rows, most, replace=False))


def _turned(
    x: Float[np.ndarray, "n d"], step: Float[np.ndarray, "n d"], rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    if x.shape[1] % 2:
        x, step = (np.pad(part, ((0, 0), (0, 1))) for part in (x, step))
    return x, step @ antisymmetric(x.shape[1], rng).T


def _scores(x: Float[np.ndarray, "n d"], step: Float[np.ndarray, "n d"]) -> tuple[Score, float]:
    """The scores of x -> x + step: correlation, and the highest that the OT score may be.

    If nothing bounds a correlation from below, the highest interval.
    """
    pair = solved_pair(x, x + step, Exact())
    upper, paired = pair.transport.upper**2, np.vdot(step, step) / len(x)
    return pair.corr_score or (0.0, 0.0, 1.0), float(upper / paired) if upper < paired else 1.0


def _gathered(kind: str, scores: list[tuple[Score, float]], own: Score, samples: int) -> NullScore:
    correlations, costs = zip(*scores, strict=True)
    values, lows, highs = zip(*correlations, strict=True)
    score = (max(values), min(lows), max(highs))
    return NullScore(kind, score, tuple(values), own, samples, max(costs))
