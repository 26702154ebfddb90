"""Optimal transport between point clouds: W2, always with an interval that contains it.

`wasserstein` compares two clouds, `distances` compares all pairs of several clouds, and `chain`
measures every block and every segment of a trajectory. Solvers are small frozen objects: `Exact`
(the optimum, certified), `Sinkhorn` (entropic), `Gaussian` (a lower bound in closed form) and
`Sliced` (random lines, a fast but wide interval). `sinkhorn_divergence` is differentiable.
"""

from __future__ import annotations

from .chains import Chain, chain
from .closed_form import Gaussian, Sliced
from .divergence import sinkhorn_divergence
from .entry import Solver, wasserstein
from .exact import Exact
from .matrix import Distances, distances
from .result import Status, TransportResult
from .sinkhorn import Sinkhorn
from .verification import Verification

__all__ = [
    "Chain",
    "Distances",
    "Exact",
    "Gaussian",
    "Sinkhorn",
    "Sliced",
    "Solver",
    "Status",
    "TransportResult",
    "Verification",
    "chain",
    "distances",
    "sinkhorn_divergence",
    "wasserstein",
]
