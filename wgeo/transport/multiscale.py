"""An estimate of the potentials: entropic transport of growing samples, with epsilon decreasing.

At a large epsilon potentials are smooth, and few points determine them; at the epsilon that needs
all points, only one or two passes over all pairs are left to do.
"""

from __future__ import annotations

import operator
from functools import partial

import torch
from jaxtyping import Float

from ..runtime import processes
from .all_pairs import c_transform, softmin
from .geometry import Geometry, PointCloud

# Points of a sample; the fraction of W2^2 at which epsilon ends there; the factor of each step.
_LEVELS = ((512, 2.0**-4.5, 2.0**-0.5), (2048, 2.0**-7, 0.5))
_MAX_ITERATIONS = 40  # at one level

Weights = Float[torch.Tensor, " _"] | None


def estimate_potentials(
    geometry: Geometry, scale: float, a: Weights = None, b: Weights = None
) -> torch.Tensor:
    """Return potentials f of the first cloud, (n,), near-optimal to about a percent.

    Parameters
    ----------
    scale : float
        Upper bound of the optimal cost, and the first epsilon.
    a, b : Tensor, optional
        Weights in the geometry's order; None if uniform.
    """
    x, y = geometry.x, geometry.y
    eps = scale
    f, g = x.norms[:0], y.norms[:0]
    for size, last, factor in _LEVELS:
        xs, ys = x.head(min(size, x.n)), y.head(min(size, y.n))
        aw, bw = _head_weights(a, xs.n), _head_weights(b, ys.n)
        if len(f) == 0:
            f = torch.zeros_like(xs.norms)
            g = c_transform(geometry, ys, xs, f)
        elif len(f) < xs.n or len(g) < ys.n:
            f, g = (
                _extend(geometry, xs, f, y.head(len(g)), g, eps, _head_weights(b, len(g))),
                _extend(geometry, ys, g, x.head(len(f)), f, eps, _head_weights(a, len(f))),
            )
        for _ in range(_MAX_ITERATIONS):
            g = softmin(geometry, ys, xs, f, g, eps, aw)
            f = softmin(geometry, xs, ys, g, f, eps, bw)
            value = _mean(f, aw) + _mean(g, bw)
            if processes.on_rank_zero(partial(operator.le, eps, last * max(value, 1e-6 * scale))):
                break
            eps *= factor
    return _extend(geometry, x, f, y.head(len(g)), g, eps, _head_weights(b, len(g)))


def _extend(
    geometry: Geometry,
    target: PointCloud,
    f: torch.Tensor,
    source: PointCloud,
    g: torch.Tensor,
    eps: float,
    b: Weights,
) -> torch.Tensor:
    """Extend potentials f of the first points of `target` to all, from those of `source`."""
    start = len(f)
    if start == target.n:
        return f
    first = torch.cat([f, c_transform(geometry, target, source, g, start)])
    return softmin(geometry, target, source, g, first, eps, b, start)


def _head_weights(weights: Weights, n: int) -> Weights:
    """Weights of the first n points, summing to 1."""
    if weights is None or n == len(weights):
        return weights
    head = weights[:n]
    total = float(head.sum())
    return head / total if total > 0 else torch.full_like(head, 1 / n)


def _mean(values: torch.Tensor, weights: Weights) -> float:
    return float(values.mean() if weights is None else weights @ values)
