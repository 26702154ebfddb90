"""Do the blocks of a network compute the same map to first order? Compare their Jacobians.

Along a Wasserstein geodesic x_t = x_0 + t g(x_0) of constant speed, H = Dg is symmetric, and the
block from t to t + dt has the residual Jacobian dt H (I + t H)^-1. All blocks then share the
eigenvectors of H. For an eigenvalue lambda > 0, the block's singular value s satisfies
dt / s = 1 / lambda + t.
"""

from .measure import alignment
from .result import Alignment, BlockJacobian, PairAlignment, SegmentAlignment

__all__ = ["Alignment", "BlockJacobian", "PairAlignment", "SegmentAlignment", "alignment"]
