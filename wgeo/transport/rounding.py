"""Bounds on W2 from the solution of an entropic problem: its potentials and its plan.

A plan is *rounded* to exact marginals: its columns are scaled down, and the mass that is then
missing is coupled separately (Altschuler, Weed, Rigollet 2017).
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import torch
from jaxtyping import Float, Int
from scipy.optimize import linear_sum_assignment
from scipy.sparse import coo_array, csr_array

from .annealing import SinkhornState
from .kernel import Kernel, PlanSummary
from .plans import MAX_ENTRIES, couple_along
from .point_clouds import DIRECTION_POINTS, UNIT_ROUNDOFF, PointClouds, principal_directions
from .tiles import squared_distances

_MAX_UNASSIGNED = 1024  # largest number of rows without a column that are assigned exactly


@dataclass(frozen=True, eq=False)
class Bounds:
    """Bounds on W2^2 between the clouds as given, with their proofs, and a summary of the plan.

    `potentials` prove `lower`, and `coupling` proves `upper`. If `upper_from` is ``plan``,
    `coupling` is None until `with_plan` forms the rounded plan from the state `rounded`.
    """

    lower: float
    upper: float
    potentials: tuple[np.ndarray, np.ndarray]
    coupling: Int[np.ndarray, " n"] | csr_array | None
    upper_from: str
    plan: PlanSummary
    rounded: SinkhornState

    def tighten(self, other: Bounds | None) -> Bounds:
        """Return the larger lower and the smaller upper bound of both, with this plan's summary."""
        if other is None:
            return self
        best = self
        if other.lower > best.lower:
            best = replace(best, lower=other.lower, potentials=other.potentials)
        if other.upper < best.upper:
            best = replace(
                best,
                upper=other.upper,
                coupling=other.coupling,
                upper_from=other.upper_from,
                rounded=other.rounded,
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
    rest = clouds.plan_cost(couple_in_order(clouds, plan.missing_x, plan.missing_y), centered=True)
    upper, coupling, origin = _plan_bound(clouds, plan.cost + rest), None, "plan"
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
        rounded=replace(state, f=f, log_ratio=log_ratio),
    )


def with_plan(clouds: PointClouds, bounds: Bounds) -> Bounds:
    """Return the bounds with the rounded plan as their coupling, if `upper` is its cost.

    Negligible entries are left out, so that the plan is sparse if epsilon is small. If more than
    `MAX_ENTRIES` entries remain, `coupling` remains None.
    """
    if bounds.upper_from != "plan":
        return bounds
    state = bounds.rounded
    kernel = Kernel(clouds, reused=False)
    entries = kernel.entries(state.f, state.g, state.log_ratio, state.eps, MAX_ENTRIES)
    if entries is None:
        return bounds
    a, b = clouds.a, clouds.b
    missing = (
        (w - torch.from_numpy(np.bincount(index, entries.mass, len(w))).to(w)).clamp_(min=0)
        for index, w in ((entries.i, a), (entries.j, b))
    )
    rest = couple_in_order(clouds, *missing)
    mass = np.concatenate((entries.mass, rest.data))
    i = np.concatenate((entries.i, rest.coords[0]))
    j = np.concatenate((entries.j, rest.coords[1]))
    upper = _plan_bound(clouds, entries.cost + clouds.plan_cost(rest, centered=True))
    plan = csr_array((mass, (i, j)), shape=(len(a), len(b)))
    plan.eliminate_zeros()  # entries of rows of weight 0
    return replace(bounds, upper=upper, coupling=plan)


def couple_in_order(
    clouds: PointClouds, a: Float[torch.Tensor, " n"], b: Float[torch.Tensor, " m"]
) -> coo_array:
    """Couple masses of equal sums (up to rounding) in order along the leading principal direction.

    This has fewer pairs than the product of a and b, and usually costs less.
    """
    total, sum_a = float(b.sum()), float(a.sum())
    if not (total > 0 and sum_a > 0):
        return coo_array((len(a), len(b)))
    head = slice(0, DIRECTION_POINTS)
    x, y = (z.centered(torch.float64, head) for z in (clouds.source, clouds.target))
    return couple_along(clouds, principal_directions(x, y, 1).T, a * (total / sum_a), b)


def _plan_bound(clouds: PointClouds, cost: float) -> float:
    """Return an upper bound of W2^2 from a coupling's centered cost; it allows for rounding."""
    terms = 4 * (len(clouds.x) + len(clouds.y))
    slack = clouds.rounding + terms * UNIT_ROUNDOFF * clouds.total_variance
    return clouds.translation_cost + cost + slack


def to_permutation(clouds: PointClouds, plan: PlanSummary) -> Int[np.ndarray, " n"] | None:
    """Return a permutation near the plan: each row goes to the column with most of its mass.

    If rows compete for a column, the one with the largest mass gets it. The others are assigned to
    the free columns at least cost. Return None if there are too many, because epsilon is too large.
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
