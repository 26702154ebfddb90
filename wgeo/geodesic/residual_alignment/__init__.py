"""Do the blocks of a network compute the same map to first order? Compare their Jacobians.

Along a Wasserstein geodesic x_t = x_0 + t g(x_0) of constant speed, with H = Dg symmetric, the
block from t to t + dt has the residual Jacobian dt H (I + t H)^-1. All blocks then share the
eigenvectors of H, and dt / s_t = 1 / lambda + t for the singular value s_t of an eigenvalue
lambda > 0.
"""

from .measure import alignment
from .result import Alignment, BlockJacobian, PairAlignment, SegmentAlignment

__all__ = ["Alignment", "BlockJacobian", "PairAlignment", "SegmentAlignment", "alignment"]
