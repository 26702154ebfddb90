"""Optimal transport between point clouds: W2, and an interval that contains it, always.

`wasserstein` solves one pair, `chain` every block of a trajectory. Solvers are small frozen
objects: `Exact` (certified optimum), `Sinkhorn` (entropic, streamed, differentiable), `Gaussian`
(Bures closed form, a lower bound) and `Sliced` (random lines, an interval in a moment).
"""

from __future__ import annotations

from .chain import Chain, chain
from .closed_form import Gaussian, Sliced
from .entry import Solver, wasserstein
from .exact import Exact
from .result import Status, TransportResult

__all__ = [
    "Chain",
    "Exact",
    "Gaussian",
    "Sliced",
    "Solver",
    "Status",
    "TransportResult",
    "chain",
    "wasserstein",
]
