"""Points on a line: the monotone coupling is optimal, and its potentials have a closed form."""

from __future__ import annotations

import numpy as np
import torch
from jaxtyping import Float, Int
from scipy.sparse import coo_array

from .arcs import Arcs, Potentials
from .column_generation import Solution, verify
from .geometry import Geometry
from .plans import northwest_corner


def solve_line(geometry: Geometry) -> Solution:
    """Return the optimal coupling of points on a line, with any weights, and its potentials.

    Sorted points are coupled in order (Peyre, Cuturi 2019, Section 2.6). Convex functions of
    x_i - y_j have the Monge property, so that potentials with zero slack on this coupling satisfy
    all constraints if they satisfy those of neighbors.
    """
    precise = geometry.double_precision
    x, y = (cloud.points[: cloud.n, 0].cpu().numpy() for cloud in (precise.x, precise.y))
    order_x, order_y = np.argsort(x, kind="stable"), np.argsort(y, kind="stable")
    f, g = np.empty(len(x)), np.empty(len(y))
    a, b = geometry.masses
    if geometry.clouds.pairing is not None:
        f[order_x], g[order_y] = _matching_potentials(x[order_x], y[order_y])
        pairs, mass = (order_x, order_y), np.ones(len(x))
    else:
        sorted_a, sorted_b = torch.from_numpy(a[order_x]), torch.from_numpy(b[order_y])
        i, j, mass = (each.numpy() for each in northwest_corner(sorted_a, sorted_b))
        f[order_x], g[order_y] = _plan_potentials(x[order_x], y[order_y], i, j)
        pairs = order_x[i], order_y[j]
    plan = coo_array((mass, pairs), shape=(len(x), len(y)))
    plan.eliminate_zeros()
    potentials = Potentials(f, g)
    violations, _ = verify(geometry, Arcs(geometry), potentials, 0.0, complete=True)
    return Solution(plan, potentials, violations, len(mass), 0)


def _matching_potentials(
    x: Float[np.ndarray, " n"], y: Float[np.ndarray, " n"]
) -> tuple[np.ndarray, np.ndarray]:
    """Return potentials of the sorted pairs (x_k, y_k), midway between the extreme feasible ones.

    They are feasible if ``c[k+1, k] - c[k, k] >= f[k+1] - f[k] >= c[k+1, k+1] - c[k, k+1]``.
    """
    differences = np.diff(x) * (x[1:] + x[:-1] - y[1:] - y[:-1])
    f = np.append(0.0, differences.cumsum())
    return f, (x - y) ** 2 - f


def _plan_potentials(
    x: Float[np.ndarray, " n"],
    y: Float[np.ndarray, " m"],
    i: Int[np.ndarray, " k"],
    j: Int[np.ndarray, " k"],
) -> tuple[np.ndarray, np.ndarray]:
    """Return potentials for which all pairs of a monotone plan have zero slack."""
    f, g = np.zeros(len(x)), np.zeros(len(y))
    new_row = np.diff(i) > 0
    row, column = i[1:][new_row], j[1:][new_row]
    f[row] = (x[row] - x[row - 1]) * (x[row] + x[row - 1] - 2 * y[column])
    column, row = j[1:][~new_row], i[1:][~new_row]
    g[column] = (y[column] - y[column - 1]) * (y[column] + y[column - 1] - 2 * x[row])
    return f.cumsum(), g.cumsum() + (x[0] - y[0]) ** 2
