"""Transport plans: products of weights, and plans between groups expanded to their points."""

from __future__ import annotations

import numpy as np
from jaxtyping import Float, Int
from scipy.sparse import csr_array

from .line import northwest_corner

MAX_ENTRIES = 1 << 22
"""Largest number of entries of a plan in a result: 48 MiB. Optimal plans have fewer than n + m."""


def product_plan(a: Float[np.ndarray, " n"], b: Float[np.ndarray, " m"]) -> csr_array | None:
    """Return the plan a_i b_j, which is zero only where a weight is; None if it is too large."""
    large = np.count_nonzero(a) * np.count_nonzero(b) > MAX_ENTRIES
    return None if large else csr_array(csr_array(a[:, None]) @ csr_array(b[None]))


def expand(
    i: Int[np.ndarray, " k"],
    j: Int[np.ndarray, " k"],
    mass: Float[np.ndarray, " k"],
    x: tuple[Int[np.ndarray, " n"], Float[np.ndarray, " n"]],
    y: tuple[Int[np.ndarray, " m"], Float[np.ndarray, " m"]],
) -> tuple[Int[np.ndarray, " l"], Int[np.ndarray, " l"], Float[np.ndarray, " l"]]:
    """Expand a plan that couples groups i with groups j to pairs of points and their mass.

    `x` and `y` are the group and the mass of each point. Mass is distributed to the points of a
    group in their order (the north-west corner rule), so that integers remain integers.
    """
    row, pair, mass = _distribute(i, mass, *x)
    column, part, mass = _distribute(j[pair], mass, *y)
    return row[part], column, mass


def _distribute(
    group: Int[np.ndarray, " k"],
    mass: Float[np.ndarray, " k"],
    point_group: Int[np.ndarray, " n"],
    point_mass: Float[np.ndarray, " n"],
) -> tuple[Int[np.ndarray, " l"], Int[np.ndarray, " l"], Float[np.ndarray, " l"]]:
    """Distribute pieces of mass over the points of their groups; return point, piece and mass.

    Rounding may assign a tiny mass to a point of the next group; it is dropped.
    """
    points, pieces = np.argsort(point_group, kind="stable"), np.argsort(group, kind="stable")
    p, k, piece_mass = northwest_corner(point_mass[points], mass[pieces])
    p, k = points[p], pieces[k]
    valid = (piece_mass > 0) & (point_group[p] == group[k])
    return p[valid], k[valid], piece_mass[valid]
