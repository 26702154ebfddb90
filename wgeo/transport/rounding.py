"""Bounds on W2 from the potentials of an entropic problem."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import torch
from jaxtyping import Int
from scipy.optimize import linear_sum_assignment

from .annealing import SinkhornState
from .geometry import squared_distances
from .kernel import Kernel, PlanSummary
from .point_clouds import UNIT_ROUNDOFF, PointClouds

_MAX_UNASSIGNED = 1024  # number of rows up to which those without a column are assigned exactly


@dataclass(frozen=True, eq=False)
class Bounds:
    """Bounds on W2^2 (translation included), their potentials and coupling, and the plan."""

    lower: float
    upper: float
    potentials: tuple[np.ndarray, np.ndarray]
    coupling: Int[np.ndarray, " n"] | None
    upper_from: str
    plan: PlanSummary

    def tighten(self, other: Bounds | None) -> Bounds:
        """Return the larger lower and the smaller upper bound of the two; keep this plan."""
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


def compute_bounds(clouds: PointClouds, state: SinkhornState) -> Bounds:
    """Bound W2^2 by c-transforms of the potentials and by couplings derived from the plan."""
    kernel = Kernel(clouds)
    f, log_ratio = kernel.softmin(state.g, state.eps)
    plan = kernel.round_plan(f, state.g, log_ratio, state.eps)
    hard_f = kernel.c_transform(torch.where(clouds.b > 0, state.g, -torch.inf))
    del kernel
    hard_g = Kernel(clouds.transposed, reused=False).c_transform(hard_f)
    dual = float(clouds.a @ hard_f + clouds.b @ hard_g)
    lower_slack = clouds.rounding + 16 * UNIT_ROUNDOFF * float(
        hard_f.abs().max() + hard_g.abs().max()
    )
    # Marginals are sums of at most n + m terms, each with a relative error of UNIT_ROUNDOFF.
    upper_slack = (
        clouds.rounding
        + 4 * (len(clouds.x) + len(clouds.y)) * UNIT_ROUNDOFF * clouds.total_variance
    )
    upper, coupling, origin = clouds.translation_cost + plan.cost + upper_slack, None, "plan"
    if clouds.pairing is not None:
        for name, permutation in (
            ("pairing", clouds.pairing),
            ("permutation", to_permutation(clouds, plan)),
        ):
            if permutation is not None and (cost := clouds.permutation_cost(permutation)) < upper:
                upper, coupling, origin = cost, permutation, name
    return Bounds(
        lower=clouds.translation_cost + dual - lower_slack,
        upper=upper,
        potentials=clouds.original_potentials(hard_f, hard_g),
        coupling=coupling,
        upper_from=origin,
        plan=plan,
    )


def to_permutation(clouds: PointClouds, plan: PlanSummary) -> Int[np.ndarray, " n"] | None:
    """Return a permutation near the plan: each row goes to the column with most of its mass.

    If several rows share a column, the one with the largest mass gets it; the others are assigned
    to the free columns at least cost. None if these are more than `_MAX_UNASSIGNED`, because
    epsilon is too large.
    """
    heaviest, mass = plan.heaviest.cpu().numpy(), plan.heaviest_mass.cpu().numpy()
    n = len(heaviest)
    order = np.argsort(-mass, kind="stable")
    columns, first = np.unique(heaviest[order], return_index=True)
    permutation = np.full(n, -1)
    permutation[order[first]] = columns
    rows = np.flatnonzero(permutation < 0)
    if len(rows) > _MAX_UNASSIGNED:
        return None
    free = np.setdiff1d(np.arange(n), columns)
    cost = squared_distances(clouds.x[rows].double(), clouds.y[free].double()).cpu().numpy()
    i, j = linear_sum_assignment(cost)
    permutation[rows[i]] = free[j]
    return permutation
