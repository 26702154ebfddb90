"""Wide points folded into few features, so that inner products only grow.

With V of orthonormal columns, x -> (V^T x, ||x - V V^T x||) keeps norms, and by Cauchy and Schwarz

    <x, y> <= <V^T x, V^T y> + ||x - V V^T x|| ||y - V V^T y||,

so that distances of folded points are lower bounds. A test that they pass, the points pass.
"""

from __future__ import annotations

import math

import torch
from jaxtyping import Float

from .clouds import UNIT_ROUNDOFF

_SAMPLE = 512  # points of each cloud that the directions are made of
_ITERATIONS = 4


def directions(
    x: Float[torch.Tensor, "n d"], y: Float[torch.Tensor, "m d"], count: int, seed: int = 0
) -> Float[torch.Tensor, "d count"]:
    """About the leading principal directions of two centred clouds: subspace iteration."""
    samples = x[:_SAMPLE], y[:_SAMPLE]
    draw = torch.Generator().manual_seed(seed)
    v = torch.randn(x.shape[1], count, generator=draw, dtype=x.dtype).to(x.device)
    for _ in range(_ITERATIONS):
        v = torch.linalg.qr(sum(z.T @ (z @ v) for z in samples)).Q
    return torch.linalg.qr(v.double()).Q


def inner_product_error(v: Float[torch.Tensor, "d count"]) -> float:
    """How far twice an inner product may grow less than it should, beside ||x||^2 + ||y||^2.

    V^T V differs from 1 by what is measured here, and by its own rounding; folding rounds each
    inner product with a column of V.
    """
    d, count = v.shape
    skew = v.T @ v - torch.eye(count, dtype=v.dtype, device=v.device)
    return 1.1 * (float(skew.norm()) + (count + 2.5 * math.sqrt(count)) * (d + 2) * UNIT_ROUNDOFF)


def reduce_dimension(
    points: Float[torch.Tensor, "rows d"], v: Float[torch.Tensor, "d count"], inner_product_error: float
) -> Float[torch.Tensor, "rows folded"]:
    """Return (V^T x, r) of float64 rows, r never less than the distance of x to V's range.

    ||x||^2 - ||V^T x||^2 is wrong by at most the slip and the sums' own rounding. Two points in
    the range gain the product of two such errors' roots, which is again but one.
    """
    along = points @ v
    size = points.square().sum(1)
    rest = size - along.square().sum(1) + (inner_product_error + 2 * sum(v.shape) * UNIT_ROUNDOFF) * size
    return torch.cat([along, rest.clamp_(min=0).sqrt_()[:, None]], 1)
