"""Column generation: solve on few pairs, test all pairs, add those that are violated, and repeat.

A pair is a column of the linear program. It is violated if f_i + g_j > c_ij, that is, if its slack
is negative.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from itertools import count

import numpy as np
import torch
from jaxtyping import Float
from scipy.sparse import coo_array

from ..runtime import processes
from ..runtime.progress import track
from ..runtime.threads import raise_if_interrupted
from .all_pairs import Violations, find_violations, nearest
from .arcs import ROUNDING, Arcs, Potentials
from .geometry import Geometry

_CANDIDATES = 8  # pairs that each point contributes at first
_MAX_ROUNDS = 100
_PAIRS_PER_ARC = 100  # number of pairs tested in the time that the sparse solver takes per arc
_MAX_UNDECIDED = 0.5  # fraction of undecided points y above which float32 is too coarse
_PROGRESS_FROM = 10**9  # number of pairs from which progress is shown


@dataclass(frozen=True, eq=False)
class Solution:
    """A coupling, potentials, and the constraints that the potentials violate."""

    plan: coo_array  # (n, m), between the masses of the geometry, in its order
    potentials: Potentials
    violations: Violations
    arcs: int  # number of pairs in the last sparse problem
    rounds: int  # number of problems solved

    @property
    def feasible(self) -> Potentials:
        """Feasible potentials (f, g - excess)."""
        return Potentials(self.potentials.f, self.potentials.g - self.violations.excess)


def generate_columns(
    geometry: Geometry,
    arcs: Arcs,
    potentials: Potentials,
    solve: Callable[[Potentials], tuple[coo_array, Potentials, float]],
) -> Solution:
    """Call ``solve(potentials)`` on more and more `arcs` until no pair is violated.

    `solve` returns a plan, potentials that are feasible on the arcs and close to those given, and
    the slack that counts as zero. (The simplex's own potentials are arbitrary at points with few
    arcs, and would need tens of rounds.) One process solves, and all processes test pairs. After
    `_MAX_ROUNDS` rounds, pairs may remain violated.
    """
    rounds: Iterator[int] = count(1)
    if geometry.x.n * geometry.y.n >= _PROGRESS_FROM:
        rounds = track(rounds, "optimal coupling: solving, testing all pairs")
    while True:
        number = next(rounds)
        raise_if_interrupted()
        before = potentials.f
        plan, potentials, tolerance = processes.on_rank_zero(partial(solve, potentials))
        arcs.add(plan.row, plan.col)  # new if `solve` used pairs that are not arcs
        last = number >= _MAX_ROUNDS
        # Rows whose f rose are tested first. In other rows, slacks fall only as much as g rises,
        # which is little.
        raised = np.flatnonzero(potentials.f > before)
        n, m = arcs.shape
        if 0 < len(raised) * m < n * m - _PAIRS_PER_ARC * len(arcs):
            threshold = max(tolerance, negligible(potentials))
            violations = find_violations(geometry, potentials, threshold, rows=raised)
            if arcs.add(violations.i, violations.j) > 0 and not last:
                continue
        violations, new = verify(geometry, arcs, potentials, tolerance, complete=last)
        if violations.dtype is torch.float64:  # float32 would again be too coarse
            geometry = geometry.double_precision
        if new == 0 or last:
            return Solution(plan, potentials, violations, len(arcs), number)


def verify(
    geometry: Geometry,
    arcs: Arcs,
    potentials: Potentials,
    tolerance: float,
    complete: bool = False,
) -> tuple[Violations, int]:
    """Test all pairs, add violated ones to `arcs`, and return the violations and how many are new.

    A pair whose slack is negative by less than `tolerance`, or by less than the rounding error, is
    not added, but counts as excess.

    Points y with very many pairs of nearly zero slack are undecided. If no new pair was found, or
    the result must be `complete`, all pairs are then tested again with products in float64, and
    thoroughly if an excess above the threshold remains. The test in float64 is also made if most
    points are undecided and few new pairs were found.
    """
    threshold = max(tolerance, negligible(potentials))
    precise = geometry.double_precision
    violations = find_violations(geometry, potentials, threshold)
    new = arcs.add(violations.i, violations.j)
    undecided = violations.undecided.mean()
    if undecided > 0 and (
        new == 0 or complete or (undecided > _MAX_UNDECIDED and new < geometry.y.n)
    ):
        if geometry.dtype is torch.float32:
            violations = find_violations(precise, potentials, threshold)
            new += arcs.add(violations.i, violations.j)
        if violations.excess.max() > threshold and (new == 0 or complete):
            violations = find_violations(precise, potentials, threshold, thorough=True)
            new += arcs.add(violations.i, violations.j)
    return violations, new


def add_nearest(geometry: Geometry, arcs: Arcs, f: Float[torch.Tensor, " n"]) -> Potentials:
    """Add each point's pairs of least slack; return the c-transform g of f, and that of g."""
    g, i, j = nearest(geometry, geometry.y, geometry.x, f, _CANDIDATES)
    arcs.add(i, j)
    f, j, i = nearest(geometry, geometry.x, geometry.y, g, _CANDIDATES)
    arcs.add(i, j)
    return Potentials(f.cpu().numpy(), g.cpu().numpy())


def negligible(potentials: Potentials) -> float:
    """Return a bound on the negative slack that rounding alone can cause."""
    return ROUNDING * float(abs(potentials.f).max() + abs(potentials.g).max())
