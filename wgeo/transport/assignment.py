"""Clouds of one size and equal weights: an optimal permutation and the potentials that prove it."""

from __future__ import annotations

import numpy as np
from jaxtyping import Int
from scipy.sparse import csr_array
from scipy.sparse.csgraph import min_weight_full_bipartite_matching

from .arcs import Arcs, Potentials, shortest_path_labels
from .column_generation import Solution, add_nearest, generate_columns, negligible, verify
from .geometry import Geometry
from .multiscale import estimate_potentials

_ALL_PAIRS = 1 << 14  # problems with at most this many pairs are solved on all of them
_POOR_START = 0.5  # fraction of violated columns from which the given pairing is not a useful start
# Steps as fractions of what potentials have to change: close together at first.
_FIRST_STEPS: tuple[float, ...] = (2.0**-4, 2.0**-7, 2.0**-10)
_LATER_STEPS: tuple[float, ...] = (2.0**-6,)
_STEP_RATIO = 2.0**14  # from one step to the next after those
_LAST_STEP = 2.0**-40  # as a fraction of the mean cost
_LEAST_BOUND = 2.0**-10  # fraction of the upper bound: a lower estimate says nothing of the optimum
_MAX_EXACT = 2.0**50  # integers that float64 adds exactly


def solve_assignment(geometry: Geometry) -> Solution:
    """Improve the geometry's own pairing (i with i) until no pair is violated.

    The pairing is optimal if and only if potentials exist with ``f_i + g_j <= c_ij``, and equality
    for i = j. First all pairs are tested under the potentials of a translation. If few columns are
    violated, their pairs suffice to begin with; else potentials are estimated (`multiscale`) and
    each point contributes its nearest. Small problems are solved on all pairs.
    """
    n = geometry.x.n
    pairing = np.arange(n)
    arcs = Arcs(geometry)
    arcs.add(pairing, pairing)
    f = geometry.translation_potential()
    potentials = Potentials(f, arcs.cost - f)
    upper = min(float(arcs.cost.mean()), float((geometry.x.norms + geometry.y.norms).mean()))
    tolerance = _LAST_STEP * upper
    violations = verify(geometry, potentials, tolerance)
    if len(violations.i) > 0 and n * n <= _ALL_PAIRS:
        arcs.add(np.repeat(pairing, n), np.tile(pairing, n))
    elif len(np.unique(violations.j)) > _POOR_START * n:
        potentials = add_nearest(geometry, arcs, estimate_potentials(geometry, upper))
        lower = float(potentials.g.mean() + potentials.f.mean())
        tolerance = _LAST_STEP * min(max(lower, _LEAST_BOUND * upper), upper)
    elif arcs.add(violations.i, violations.j) == 0:
        return Solution(pairing, potentials, violations, len(arcs), 0)
    change, fractions = upper, _FIRST_STEPS

    def solve(potentials: Potentials) -> tuple[np.ndarray, Potentials, float]:
        nonlocal change, fractions
        change = max(change, -float(arcs.slack(potentials).min()))
        steps = decreasing_steps(change, max(tolerance, negligible(potentials)), fractions)
        change, fractions = 0.0, _LATER_STEPS
        return *assign(arcs, potentials, steps), tolerance

    return generate_columns(geometry, arcs, potentials, solve)


def assign(
    arcs: Arcs, potentials: Potentials, steps: list[float]
) -> tuple[Int[np.ndarray, " n"], Potentials]:
    """Return the optimal assignment on the arcs, i -> column, and potentials that prove it.

    Shortest augmenting paths (Jonker, Volgenant 1987) on slacks rounded down to multiples of a
    step, for each of the decreasing `steps`: with coarse costs few distances differ and searches
    end early, and the potentials of each solution leave little to do for the next. (On exact slacks
    the same code takes up to thirty times as long; if two arcs nearly tie, its bids rise by next to
    nothing and may never end.) The assignment is optimal up to the last step per point.
    """
    columns = np.arange(arcs.shape[1])
    rows = columns
    for step in steps:
        slack = np.floor(arcs.slack(potentials) / step)
        weight = np.minimum(slack - slack.min(), _MAX_EXACT) + 1  # a zero would be an absent arc
        graph = csr_array((weight, arcs.i, arcs.pointers), shape=arcs.shape[::-1])
        _, rows = min_weight_full_bipartite_matching(graph)
        change = shortest_path_labels(arcs, slack, arcs.index_of(rows, columns), 0.0)
        potentials = Potentials(potentials.f + step * change.f, potentials.g + step * change.g)
    permutation = np.empty(len(rows), np.int64)
    permutation[rows] = columns
    return permutation, potentials


def decreasing_steps(change: float, last: float, fractions: tuple[float, ...]) -> list[float]:
    """Return steps from fractions of `change`, which potentials have to move by, down to `last`."""
    steps = [change * fraction for fraction in fractions if change * fraction > 2 * last]
    while steps and steps[-1] > _STEP_RATIO * last:
        steps.append(steps[-1] / _STEP_RATIO)
    return [*steps, last] if last > 0 else [1.0]
