"""Equal clouds of equal weights: an optimal permutation and the labels that prove it."""

from __future__ import annotations

import numpy as np
from jaxtyping import Float, Int
from scipy.sparse import csr_array
from scipy.sparse.csgraph import min_weight_full_bipartite_matching

from .arcs import Arcs, Labels, shortest_path_labels
from .geometry import Geometry
from .multiscale import estimate_potentials
from .column_generation import Solution, add_nearest, verify, negligible, refine

_FEW = 1 << 14  # pairs that are all taken at once
_COLD = 0.5  # share of columns at fault from which the pairing given is no useful start
# Steps as shares of what labels have to move: at first close together, since much is to be done.
_FIRST: tuple[float, ...] = (2.0**-4, 2.0**-7, 2.0**-10)
_LATER: tuple[float, ...] = (2.0**-6,)
_FALL = 2.0**14  # from one step to the next after those
_FLOOR = 2.0**-40  # the last step, as a share of the mean cost
_TRUST = 2.0**-10  # of the upper bound: a guess below is no measure of the optimum
_LARGEST = 2.0**50  # whole numbers that float64 adds exactly


def solve_assignment(geometry: Geometry, start: Float[np.ndarray, " n"] | None = None) -> Solution:
    """Improve the costs' own pairing (place i with place i) until no pair objects.

    The pairing is optimal exactly when labels exist with ``p_j + c_jj <= p_i + c_ij``. A scan at
    ``p = start`` counts the columns that object. Where few do, the pairs they name are enough to
    begin with; else potentials are guessed anew (`multiscale`) and each point names its nearest. Of
    small clouds all pairs are taken.
    """
    n = geometry.x.n
    pairing = np.arange(n)
    arcs = Arcs(geometry)
    arcs.add(pairing, pairing)
    labels = Labels(p := geometry.start() if start is None else start, p + arcs.cost)
    upper = min(float(arcs.cost.mean()), float((geometry.x.norms + geometry.y.norms).mean()))
    tolerance = _FLOOR * upper
    found = verify(geometry, labels, tolerance)
    if len(found.i) > 0 and n * n <= _FEW:
        arcs.add(np.repeat(pairing, n), np.tile(pairing, n))
    elif len(np.unique(found.j)) > _COLD * n:
        labels = add_nearest(geometry, arcs, estimate_potentials(geometry, upper))
        lower = float(labels.q.mean() - labels.p.mean())
        tolerance = _FLOOR * min(max(lower, _TRUST * upper), upper)
    elif arcs.add(found.i, found.j) == 0:
        return Solution(pairing, labels, found, len(arcs), 0)
    reach, shares = upper, _FIRST

    def solve(labels: Labels) -> tuple[np.ndarray, Labels, float]:
        nonlocal reach, shares
        reach = max(reach, -float(arcs.slack(labels).min()))
        steps = decreasing_steps(reach, max(tolerance, negligible(labels)), shares)
        reach, shares = 0.0, _LATER
        return *assign(arcs, labels, steps), tolerance

    return refine(geometry, arcs, labels, solve)


def assign(arcs: Arcs, labels: Labels, steps: list[float]) -> tuple[Int[np.ndarray, " n"], Labels]:
    """Optimal assignment on the arcs, i -> column, and labels near those given that prove it.

    Shortest augmenting paths (Jonker, Volgenant 1987) of slacks rounded down to multiples of a
    step, for each of falling `steps`: with coarse costs few distances differ and searches end
    early, and each solution's labels leave little for the next. (On exact slacks the same code
    takes up to thirty times as long; and where two arcs differ by next to nothing its bids rise by
    as little, and need not end.) The answer is optimal to the last step a point.
    """
    columns = np.arange(arcs.shape[1])
    rows = columns
    for step in steps:
        slack = np.floor(arcs.slack(labels) / step)
        weight = np.minimum(slack - slack.min(), _LARGEST) + 1  # a zero would be an absent arc
        graph = csr_array((weight, arcs.i, arcs.pointers), shape=arcs.shape[::-1])
        _, rows = min_weight_full_bipartite_matching(graph)
        change = shortest_path_labels(arcs, slack, arcs.at(rows, columns), 0.0)
        labels = Labels(labels.p + step * change.p, labels.q + step * change.q)
    permutation = np.empty(len(rows), np.int64)
    permutation[rows] = columns
    return permutation, labels


def decreasing_steps(reach: float, floor: float, shares: tuple[float, ...]) -> list[float]:
    """Steps for labels that have to move by `reach`: shares of it, then down to the floor."""
    steps = [reach * share for share in shares if reach * share > 2 * floor]
    while steps and steps[-1] > _FALL * floor:
        steps.append(steps[-1] / _FALL)
    return [*steps, floor] if floor > 0 else [1.0]
