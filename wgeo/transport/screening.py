"""Low-dimensional lower bounds on squared distances, which screen pairs of wide points.

With orthonormal columns V, x -> (V^T x, ||x - V V^T x||) keeps norms, and by Cauchy and Schwarz

    <x, y> <= <V^T x, V^T y> + ||x - V V^T x|| ||y - V V^T y||,

so distances between the reduced points are lower bounds. If the slack is nonnegative under such a
bound, it is nonnegative.
"""

from __future__ import annotations

import math

import torch
from jaxtyping import Float

from .point_clouds import UNIT_ROUNDOFF

_SAMPLE = 512  # points of each cloud from which the directions are computed
_ITERATIONS = 4


def principal_directions(
    x: Float[torch.Tensor, "n d"], y: Float[torch.Tensor, "m d"], count: int
) -> Float[torch.Tensor, "d count"]:
    """Approximate the leading principal directions of two centered clouds (subspace iteration)."""
    samples = x[:_SAMPLE], y[:_SAMPLE]
    generator = torch.Generator().manual_seed(0)
    v = torch.randn(x.shape[1], count, generator=generator, dtype=x.dtype).to(x.device)
    for _ in range(_ITERATIONS):
        v = torch.linalg.qr(sum(z.T @ (z @ v) for z in samples)).Q
    return torch.linalg.qr(v.double()).Q


def inner_product_error(v: Float[torch.Tensor, "d count"]) -> float:
    """Bound how far 2 <x, y> of reduced points may fall short, relative to ||x||^2 + ||y||^2.

    The bound accounts for the measured difference of V^T V from the identity, for the rounding
    error of this measurement, and for the rounding of each inner product with a column of V.
    """
    d, count = v.shape
    skew = v.T @ v - torch.eye(count, dtype=v.dtype, device=v.device)
    rounding = (count + 2.5 * math.sqrt(count)) * (d + 2) * UNIT_ROUNDOFF
    return 1.1 * (float(skew.norm()) + rounding)


def reduce_dimension(
    points: Float[torch.Tensor, "rows d"], v: Float[torch.Tensor, "d count"], error: float
) -> Float[torch.Tensor, "rows reduced"]:
    """Return (V^T x, r) of float64 rows, with r at least the distance of x from V's range.

    The error of ||x||^2 - ||V^T x||^2 is at most `error` plus the rounding of the sums. For two
    points in the range of V, the product r_x r_y is then at most the product of the square roots of
    two such errors, which is of the size of one such error.
    """
    projection = points @ v
    square = points.square().sum(1)
    rest = square - projection.square().sum(1)
    rest += (error + 2 * sum(v.shape) * UNIT_ROUNDOFF) * square
    return torch.cat([projection, rest.clamp_(min=0).sqrt_()[:, None]], 1)
