"""Points on a line: the monotone coupling is optimal, and its labels are known too."""

from __future__ import annotations

import numpy as np
from jaxtyping import Float, Int
from scipy.sparse import csr_array

from .arcs import Labels
from .geometry import Geometry
from .column_generation import Solution, verify


def solve_line(geometry: Geometry) -> Solution:
    """Optimal coupling of points on a line, of any weights, with its labels.

    Sorted points are coupled in order (Peyre, Cuturi 2019, Section 2.6); since convex costs have
    the Monge property, labels that neighbours agree on suit everybody.
    """
    x, y = (side.points[: side.n, 0].cpu().numpy() for side in (geometry.double_precision.x, geometry.double_precision.y))
    in_x, in_y = np.argsort(x, kind="stable"), np.argsort(y, kind="stable")
    p, q = np.empty(len(x)), np.empty(len(y))
    if geometry.clouds.pairing is not None:
        p[in_x], q[in_y] = _between_neighbours(x[in_x], y[in_y])
        coupling = np.empty(len(x), np.int64)
        coupling[in_x] = in_y
        arcs = len(x)
    else:
        a, b = geometry.weights
        i, j, mass = northwest_corner(a[in_x], b[in_y])
        p[in_x], q[in_y] = _along_stairs(x[in_x], y[in_y], i, j)
        some = mass > 0
        places = in_x[i[some]], in_y[j[some]]
        coupling = csr_array((mass[some], places), shape=(len(x), len(y)))
        arcs = len(mass)
    labels = Labels(p, q)
    return Solution(coupling, labels, verify(geometry, labels, 0.0), arcs, 0)


def northwest_corner(
    a: Float[np.ndarray, " n"], b: Float[np.ndarray, " m"]
) -> tuple[Int[np.ndarray, " k"], Int[np.ndarray, " k"], Float[np.ndarray, " k"]]:
    """North-west corner rule: n + m - 1 pairs (i, j) in order, and the mass of each."""
    cuts = np.concatenate([a.cumsum()[:-1], b.cumsum()[:-1]])
    order = np.argsort(cuts, kind="stable")
    of_a = order < len(a) - 1
    i = np.append(0, of_a.cumsum())
    j = np.append(0, (~of_a).cumsum())
    ends = np.append(cuts[order], max(1.0, cuts.max(initial=0.0)))
    return i, j, np.diff(ends, prepend=0.0)


def _between_neighbours(
    x: Float[np.ndarray, " n"], y: Float[np.ndarray, " n"]
) -> tuple[np.ndarray, np.ndarray]:
    """Labels of x_k -> y_k, both sorted: halfway between the least and the most allowed.

    ``c[k+1, k] - c[k, k] >= p[k] - p[k+1] >= c[k+1, k+1] - c[k, k+1]``.
    """
    falls = np.diff(x) * (x[1:] + x[:-1] - y[1:] - y[:-1])
    p = -np.append(0.0, falls.cumsum())
    return p, p + (x - y) ** 2


def _along_stairs(
    x: Float[np.ndarray, " n"],
    y: Float[np.ndarray, " m"],
    i: Int[np.ndarray, " k"],
    j: Int[np.ndarray, " k"],
) -> tuple[np.ndarray, np.ndarray]:
    """Labels for which every pair of a staircase is tight: each step settles one more."""
    p, q = np.zeros(len(x)), np.zeros(len(y))
    in_x = np.diff(i) > 0
    to, at = i[1:][in_x], j[1:][in_x]
    p[to] = -(x[to] - x[to - 1]) * (x[to] + x[to - 1] - 2 * y[at])
    to, at = j[1:][~in_x], i[1:][~in_x]
    q[to] = (y[to] - y[to - 1]) * (y[to] + y[to - 1] - 2 * x[at])
    return p.cumsum(), q.cumsum() + (x[0] - y[0]) ** 2
