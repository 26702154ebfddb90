"""Low-dimensional lower bounds on squared distances, which screen pairs of points.

If V has orthonormal columns, x -> (V^T x, ||x - V V^T x||) preserves norms. By the Cauchy-Schwarz
inequality,

    <x, y> <= <V^T x, V^T y> + ||x - V V^T x|| ||y - V V^T y||,

so distances between the reduced points are lower bounds. A pair whose slack is nonnegative for this
bound also has nonnegative slack for its cost.
"""

from __future__ import annotations

import math

import torch
from jaxtyping import Float

from .point_clouds import UNIT_ROUNDOFF

DIRECTION_POINTS = 512  # points of each cloud from which the directions are computed
_ITERATIONS = 4


def principal_directions(
    x: Float[torch.Tensor, "n d"], y: Float[torch.Tensor, "m d"], count: int
) -> Float[torch.Tensor, "d count"]:
    """Approximate the leading principal directions of two clouds by subspace iteration."""
    samples = x[:DIRECTION_POINTS], y[:DIRECTION_POINTS]
    generator = torch.Generator().manual_seed(0)
    v = torch.randn(x.shape[1], count, generator=generator, dtype=x.dtype).to(x.device)
    for _ in range(_ITERATIONS):
        v = torch.linalg.qr(sum(z.T @ (z @ v) for z in samples)).Q
    return torch.linalg.qr(v.double()).Q


def inner_product_error(v: Float[torch.Tensor, "d count"]) -> float:
    """Bound how far 2 <x, y> of reduced points can fall short, relative to ||x||^2 + ||y||^2.

    The causes are that V^T V is not exactly the identity, and the rounding of products with V.
    """
    d, count = v.shape
    skew = v.T @ v - torch.eye(count, dtype=v.dtype, device=v.device)
    rounding = (count + 2.5 * math.sqrt(count)) * (d + 2) * UNIT_ROUNDOFF
    return 1.1 * (float(skew.norm()) + rounding)


def reduce_dimension(
    points: Float[torch.Tensor, "rows d"], v: Float[torch.Tensor, "d count"], error: float
) -> Float[torch.Tensor, "rows reduced"]:
    """Return (V^T x, r) for float64 rows x, with r at least the distance of x from V's range.

    Therefore r^2 is ||x||^2 - ||V^T x||^2 plus a bound on its error: `error` and the rounding of
    the sums, relative to ||x||^2.
    """
    projection = points @ v
    square = points.square().sum(1)
    rest = square - projection.square().sum(1)
    rest += (error + 2 * sum(v.shape) * UNIT_ROUNDOFF) * square
    return torch.cat([projection, rest.clamp_(min=0).sqrt_()[:, None]], 1)
