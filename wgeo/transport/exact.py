"""Exact: the optimal coupling of two point clouds, with a proof."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import ot
import scipy.sparse as sp
import torch

from ..arrays import as_points
from ..errors import ArgumentError
from .cost import squared_distances
from .result import Status, TransportResult


@dataclass(frozen=True)
class Exact:
    """Optimal transport with squared Euclidean cost, solved exactly and certified.

    Parameters
    ----------
    tolerance : float
        Relative width of the interval at which a result counts as certified.
    memory : str or int
        What the solver may hold beside the features, as bytes or ``"1GiB"``.
    device : str
        Where the dense passes run: ``"auto"``, ``"cpu"`` or ``"cuda"``.
    """

    tolerance: float = 1e-6
    memory: str | int = "1GiB"
    device: str = "auto"
    name: ClassVar[str] = "exact"

    def solve(
        self,
        x: Any,
        y: Any,
        a: np.ndarray | None = None,
        b: np.ndarray | None = None,
        coupling: np.ndarray | None = None,
        potentials: tuple[np.ndarray, np.ndarray] | None = None,
    ) -> TransportResult:
        """Return W2 between the clouds `x` (n, d) and `y` (m, d) with weights `a` and `b`."""
        began = time.perf_counter()
        x = as_points(x, name="x", dtype=torch.float64)
        y = as_points(y, name="y", dtype=torch.float64)
        if x.shape[1] != y.shape[1]:
            raise ArgumentError(
                f"x has {x.shape[1]} features and y {y.shape[1]}: W2 needs one space. "
                "Pad or project the narrower cloud first."
            )
        n, m = len(x), len(y)
        cost = squared_distances(x.cpu(), y.cpu()).numpy()
        uniform = a is None and b is None and n == m
        a = np.full(n, 1 / n) if a is None else a
        b = np.full(m, 1 / m) if b is None else b
        plan, log = ot.emd(a, b, cost, numItermax=10**9, log=True)
        f = np.asarray(log["u"])
        g = (cost - f[:, None]).min(0)
        f = (cost - g).min(1)
        margin = 4 * np.finfo(float).eps * (np.abs(f).max() + np.abs(g).max())
        dual = float(a @ f + b @ g) - margin
        if uniform:
            pairing = plan.argmax(1)
            primal = float(cost[np.arange(n), pairing].mean())
        else:
            pairing = sp.csr_array(plan)
            primal = float((plan * cost).sum())
        rounding = (x.shape[1] + 8) * np.finfo(float).eps
        upper = float(np.sqrt(primal) * (1 + rounding))
        lower = min(float(np.sqrt(max(dual * (1 - rounding), 0.0))), upper)
        certified = upper - lower <= self.tolerance * upper
        return TransportResult(
            cost=primal,
            lower=lower,
            upper=upper,
            status=Status.CERTIFIED if certified else Status.BOUNDED,
            solver=self.name,
            seconds=time.perf_counter() - began,
            coupling=pairing,
            potentials=(f, g),
        )
