"""From potentials of an entropic problem to an interval for W2: a proof from either side."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import torch
from jaxtyping import Int
from scipy.optimize import linear_sum_assignment

from .annealing import Potentials
from .geometry import squared_distances
from .kernel import Kernel, Plan
from .clouds import UNIT_ROUNDOFF, PointClouds

_LEFT_OVER = 1024  # rows without a partner that are assigned exactly


@dataclass(frozen=True, eq=False)
class Bounds:
    """Squared bounds of W2 (shift included), what proves them, and the plan they came from."""

    lower: float
    upper: float
    potentials: tuple[np.ndarray, np.ndarray]
    coupling: Int[np.ndarray, " n"] | None
    upper_from: str
    plan: Plan

    def tightened(self, other: Bounds | None) -> Bounds:
        """The better of each side of two proofs about one pair; the plan is this one's."""
        if other is None:
            return self
        best = self
        if other.lower > best.lower:
            best = replace(best, lower=other.lower, potentials=other.potentials)
        if other.upper < best.upper:
            best = replace(
                best, upper=other.upper, coupling=other.coupling, upper_from=other.upper_from
            )
        return best


def bound(clouds: PointClouds, state: Potentials) -> Bounds:
    """Bound W2^2 by hard c-transforms of the potentials and by couplings made of the plan."""
    kernel = Kernel(clouds)
    f, log_ratio = kernel.softmin(state.g, state.eps)
    plan = kernel.plan(f, state.g, log_ratio, state.eps)
    hard_f = kernel.c_transform(torch.where(clouds.b > 0, state.g, -torch.inf))
    del kernel
    hard_g = Kernel(clouds.transposed, reused=False).c_transform(hard_f)
    dual = float(clouds.a @ hard_f + clouds.b @ hard_g)
    slack = clouds.rounding + 16 * UNIT_ROUNDOFF * float(hard_f.abs().max() + hard_g.abs().max())
    # Marginals are sums of at most n + m terms, each wrong by u relative to its mass.
    loss = clouds.rounding + 4 * (len(clouds.x) + len(clouds.y)) * UNIT_ROUNDOFF * clouds.total_variance
    upper, coupling, origin = clouds.translation_cost + plan.cost + loss, None, "plan"
    if clouds.pairing is not None:
        for name, permutation in (
            ("pairing", clouds.pairing),
            ("permutation", to_permutation(clouds, plan)),
        ):
            if permutation is not None and (cost := clouds.permutation_cost(permutation)) < upper:
                upper, coupling, origin = cost, permutation, name
    return Bounds(
        lower=clouds.translation_cost + dual - slack,
        upper=upper,
        potentials=clouds.original_potentials(hard_f, hard_g),
        coupling=coupling,
        upper_from=origin,
        plan=plan,
    )


def to_permutation(clouds: PointClouds, plan: Plan) -> Int[np.ndarray, " n"] | None:
    """Send each row where most of its mass goes; assign rows that lose their column exactly.

    None where more than `_LEFT_OVER` rows are left over: epsilon is too large to tell partners.
    """
    wanted, mass = plan.heaviest.cpu().numpy(), plan.heaviest_mass.cpu().numpy()
    n = len(wanted)
    order = np.argsort(-mass, kind="stable")
    columns, first = np.unique(wanted[order], return_index=True)
    permutation = np.full(n, -1)
    permutation[order[first]] = columns
    rows = np.flatnonzero(permutation < 0)
    if len(rows) > _LEFT_OVER:
        return None
    free = np.setdiff1d(np.arange(n), columns)
    cost = squared_distances(clouds.x[rows].double(), clouds.y[free].double()).cpu().numpy()
    at, to = linear_sum_assignment(cost)
    permutation[rows[at]] = free[to]
    return permutation
