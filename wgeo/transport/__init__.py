"""Optimal transport between point clouds: W2, and an interval that contains it, always.

`wasserstein` solves one pair, `chain` every block of a trajectory. Solvers are small frozen
objects: `Exact` (certified optimum), `Sinkhorn` (entropic, streamed, differentiable), `Gaussian`
(Bures closed form, a lower bound) and `Sliced` (random lines, an interval in a moment).
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from .entry import Solver, wasserstein
from .result import Status, TransportResult

if TYPE_CHECKING:
    from .chain import Chain, chain
    from .closed_form import Gaussian, Sliced
    from .exact import Exact
    from .sinkhorn import Sinkhorn, sinkhorn_divergence

_HOME = {
    "Chain": "chain",
    "chain": "chain",
    "Exact": "exact",
    "Gaussian": "closed_form",
    "Sliced": "closed_form",
    "Sinkhorn": "sinkhorn",
    "sinkhorn_divergence": "sinkhorn",
}

__all__ = [
    "Chain",
    "Exact",
    "Gaussian",
    "Sinkhorn",
    "Sliced",
    "Solver",
    "Status",
    "TransportResult",
    "chain",
    "sinkhorn_divergence",
    "wasserstein",
]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f".{_HOME[name]}", __name__), name)
