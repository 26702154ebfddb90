"""Column generation: solve on few pairs, test all pairs, add the violated ones, and repeat."""

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

_CANDIDATES = 8  # arcs that each point contributes at first
_MAX_ROUNDS = 100
_SOLVING = 100  # pairs that are tested in the time in which one arc is solved for, about
_MANY = 0.5  # fraction of undecided columns that float32 is too coarse for
_SHOW_PROGRESS = 10**9  # pairs from which progress is worth showing


@dataclass(frozen=True, eq=False)
class Solution:
    """A coupling, potentials, and the constraints that these violate.

    Attributes
    ----------
    plan : sparse array, (n, m)
        Of the geometry's masses, in its order.
    potentials : Potentials
    violations : Violations
        ``(f, g - violations.excess)`` is feasible.
    arcs, rounds : int
        Number of pairs in the last sparse problem, and of problems solved.
    """

    plan: coo_array
    potentials: Potentials
    violations: Violations
    arcs: int
    rounds: int

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
    """Call ``solve(potentials)`` on more and more `arcs`, until its potentials satisfy all pairs.

    It returns a plan, potentials close to those given and feasible on the arcs, and the slack
    that counts as zero. (The potentials of a sparse solver itself leave points with few arcs
    undetermined, and take tens of rounds.) One process solves; all test.
    """
    rounds: Iterator[int] = count(1)
    if geometry.x.n * geometry.y.n >= _SHOW_PROGRESS:
        rounds = track(rounds, "optimal coupling: solving, testing all pairs")
    while True:
        done = next(rounds)
        raise_if_interrupted()
        before = potentials.f
        plan, potentials, tolerance = processes.on_rank_zero(partial(solve, potentials))
        arcs.add(plan.row, plan.col)  # those of a dense problem may be new
        last = done >= _MAX_ROUNDS
        # If f did not rise, a row's slacks fell only by what g rose, which is little.
        raised = np.flatnonzero(potentials.f > before)
        n, m = arcs.shape
        if 0 < len(raised) * m < n * m - _SOLVING * len(arcs):
            threshold = max(tolerance, negligible(potentials))
            violations = find_violations(geometry, potentials, threshold, rows=raised)
            if arcs.add(violations.i, violations.j) > 0 and not last:
                continue
        violations, new = verify(geometry, arcs, potentials, tolerance, complete=last)
        if violations.dtype is torch.float64:  # float32 would again be too coarse
            geometry = geometry.double_precision
        if new == 0 or last:
            return Solution(plan, potentials, violations, len(arcs), done)


def verify(
    geometry: Geometry,
    arcs: Arcs,
    potentials: Potentials,
    tolerance: float,
    complete: bool = False,
) -> tuple[Violations, int]:
    """Test all pairs, add those that are violated, and return how many of them are new.

    Slack below zero by less than `tolerance`, or than rounding, adds no pair; it counts as excess.
    Where float32 cannot decide, float64 does; and it lists all of very many tight pairs only if the
    excess of others matters, or must be `complete`.
    """
    threshold = max(tolerance, negligible(potentials))
    precise = geometry.double_precision
    violations = find_violations(geometry, potentials, threshold)
    new = arcs.add(violations.i, violations.j)
    undecided = violations.undecided.mean()
    if undecided > 0 and (new == 0 or complete or (undecided > _MANY and new < geometry.y.n)):
        if geometry.dtype is torch.float32:
            violations = find_violations(precise, potentials, threshold)
            new += arcs.add(violations.i, violations.j)
        if violations.excess.max() > threshold and (new == 0 or complete):
            violations = find_violations(precise, potentials, threshold, thorough=True)
            new += arcs.add(violations.i, violations.j)
    return violations, new


def add_nearest(geometry: Geometry, arcs: Arcs, f: Float[torch.Tensor, " n"]) -> Potentials:
    """Add each point's pairs of least slack under potentials f; return their c-transforms."""
    g, i, j = nearest(geometry, geometry.y, geometry.x, f, _CANDIDATES)
    arcs.add(i, j)
    f, j, i = nearest(geometry, geometry.x, geometry.y, g, _CANDIDATES)
    arcs.add(i, j)
    return Potentials(f.cpu().numpy(), g.cpu().numpy())


def negligible(potentials: Potentials) -> float:
    """Slack that is zero up to rounding."""
    return ROUNDING * float(abs(potentials.f).max() + abs(potentials.g).max())
