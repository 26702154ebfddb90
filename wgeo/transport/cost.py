"""Squared Euclidean costs, in blocks: the only place that knows how wgeo computes ||x - y||^2."""

from __future__ import annotations

import torch
from jaxtyping import Float


def squared_distances(
    x: Float[torch.Tensor, "n d"], y: Float[torch.Tensor, "m d"]
) -> Float[torch.Tensor, "n m"]:
    """Return ||x_i - y_j||^2 from differences: relative error (d + 2) u, u the unit roundoff.

    Slower than by a matrix product, and right where points nearly coincide.
    """
    return torch.cdist(x, y, compute_mode="donot_use_mm_for_euclid_dist").square_()
