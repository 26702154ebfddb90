"""A cheap guess of the potentials: entropic transport of ever larger samples, epsilon falling.

While epsilon is large potentials are smooth and few points know them; by the time they must follow
single points only a pass or two over many points remain to be made.
"""

from __future__ import annotations

import operator
from functools import partial

import torch
from jaxtyping import Float

from ..runtime import processes
from .geometry import Geometry, PointCloud
from .all_pairs import least, softmin

# Points of a sample; the share of W2^2 at which epsilon ends there; the factor by which it falls.
_LEVELS = ((512, 2.0**-4.5, 2.0**-0.5), (2048, 2.0**-7, 0.5))
_MOST = 40  # iterations at one level

Weights = Float[torch.Tensor, " _"] | None


def estimate_potentials(geometry: Geometry, scale: float, a: Weights = None, b: Weights = None) -> torch.Tensor:
    """Return potentials f of the first cloud, (n,), near-optimal to about a percent.

    Parameters
    ----------
    scale : float
        Upper bound of the optimal cost: where epsilon begins.
    a, b : Tensor, optional
        Weights in the costs' order; None where uniform.
    """
    x, y = geometry.x, geometry.y
    eps = scale
    f, g = x.norms[:0], y.norms[:0]
    for size, last, fall in _LEVELS:
        xs, ys = x.head(min(size, x.n)), y.head(min(size, y.n))
        aw, bw = _share(a, xs.n), _share(b, ys.n)
        if len(f) == 0:
            f = torch.zeros_like(xs.norms)
            g = least(geometry, ys, xs, -f)
        elif len(f) < xs.n or len(g) < ys.n:
            f, g = (
                _extend(geometry, xs, f, y.head(len(g)), g, eps, _share(b, len(g))),
                _extend(geometry, ys, g, x.head(len(f)), f, eps, _share(a, len(f))),
            )
        for _ in range(_MOST):
            g = softmin(geometry, ys, xs, f, g, eps, aw)
            f = softmin(geometry, xs, ys, g, f, eps, bw)
            value = _mean(f, aw) + _mean(g, bw)
            if processes.on_rank_zero(partial(operator.le, eps, last * max(value, 1e-6 * scale))):
                break
            eps *= fall
    return _extend(geometry, x, f, y.head(len(g)), g, eps, _share(b, len(g)))


def _extend(
    geometry: Geometry, at: PointCloud, known: torch.Tensor, over: PointCloud, g: torch.Tensor, eps: float, b: Weights
) -> torch.Tensor:
    """Potentials of all points of `at`, of which the first are known, from those of `over`."""
    start = len(known)
    if start == at.n:
        return known
    first = torch.cat([known, least(geometry, at, over, -g, start)])
    return softmin(geometry, at, over, g, first, eps, b, start)


def _share(weights: Weights, n: int) -> Weights:
    """Weights of the first n points, summing to 1."""
    if weights is None or n == len(weights):
        return weights
    head = weights[:n]
    total = float(head.sum())
    return head / total if total > 0 else torch.full_like(head, 1 / n)


def _mean(values: torch.Tensor, weights: Weights) -> float:
    return float(values.mean() if weights is None else weights @ values)
