"""The result of every transport solver: a distance, and an interval that contains it."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

import numpy as np

from ..results import Result, plain


class Status(StrEnum):
    """Whether a result is certified to the solver's tolerance."""

    CERTIFIED = "certified"
    BOUNDED = "bounded"


@dataclass(frozen=True, eq=False, repr=False)
class TransportResult(Result):
    """W2 between two point clouds, with an interval that contains it and its proof.

    ``lower <= W2 <= upper`` always: ``upper`` from a feasible coupling, ``lower`` from feasible
    dual potentials (Kantorovich duality), both evaluated in float64.

    Attributes
    ----------
    cost : float
        W2^2, the mean squared Euclidean displacement under the optimal coupling (never halved).
    lower, upper : float
        Interval that contains W2, in the units of the features.
    status : Status
        ``certified`` if (upper - lower) / upper is within the solver's tolerance, else
        ``bounded``.
    solver : str
    seconds : float
        Wall-clock time of the solver.
    coupling : ndarray of int, (n,), or scipy sparse array, (n, m), or None
        The permutation i -> coupling[i] if the coupling is one, else the transport plan.
    potentials : tuple of ndarray (n,), (m,), or None
        Feasible duals: f_i + g_j <= ||x_i - y_j||^2 for all i, j.
    divergence : float or None
        The debiased Sinkhorn divergence, if the solver estimates it.
    stats : mapping
        Diagnostics of the solver: passes, arcs, epsilon, marginal errors.
    """

    cost: float
    lower: float
    upper: float
    status: Status
    solver: str
    seconds: float
    coupling: Any = field(default=None, repr=False)
    potentials: tuple[np.ndarray, np.ndarray] | None = field(default=None, repr=False)
    divergence: float | None = None
    stats: dict[str, Any] = field(default_factory=dict, repr=False)

    @property
    def distance(self) -> float:
        """W2, the square root of `cost`."""
        return float(np.sqrt(max(self.cost, 0.0)))

    @property
    def gap(self) -> float:
        """Relative width of the interval, (upper - lower) / upper; 0 if upper is 0."""
        return (self.upper - self.lower) / self.upper if self.upper > 0 else 0.0

    def to_dict(self) -> dict[str, Any]:
        """Return the plain values, ready for JSON, without coupling and potentials."""
        return {"distance": self.distance, **super().to_dict(), "stats": plain(self.stats)}

    def _record(self) -> dict[str, Any]:
        return {"blocks": [{"source": "x", "target": "x → y", "stage": 0, **self.to_dict()}]}

    def _table(self) -> list[dict[str, Any]]:
        values = self.to_dict()
        del values["stats"]
        return [values]

    def _description(self) -> str:
        debiased = self.divergence
        divergence = "" if debiased is None else f"; Sinkhorn divergence {debiased:.4g}"
        return (
            f"W2 = {self.distance:.6g} in [{self.lower:.6g}, {self.upper:.6g}], {self.status}, by "
            f"{self.solver} in {self.seconds:.2g} s{divergence}"
        )
