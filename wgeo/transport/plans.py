"""Plans: products of weights, the north-west corner rule, and expansion of groups to points."""

from __future__ import annotations

import numpy as np
import torch
from jaxtyping import Float, Int
from scipy.sparse import coo_array, csr_array

from .point_clouds import PointClouds

MAX_ENTRIES = 1 << 22
"""Largest number of entries of a plan that may be dense: 48 MiB."""


def product_plan(a: Float[np.ndarray, " n"], b: Float[np.ndarray, " m"]) -> csr_array | None:
    """Return the plan a_i b_j; None if it has more than `MAX_ENTRIES` nonzero entries."""
    large = np.count_nonzero(a) * np.count_nonzero(b) > MAX_ENTRIES
    return None if large else csr_array(csr_array(a[:, None]) @ csr_array(b[None]))


def northwest_corner(
    a: Float[torch.Tensor, "*k n"], b: Float[torch.Tensor, "*k m"]
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return the n + m - 1 pairs (i, j) of the north-west corner rule, in order, and their mass.

    Masses have equal sums up to rounding; if they are integers, so are those of the pairs.
    """
    ends_a, ends_b = a.cumsum(-1), b.cumsum(-1)
    last = torch.maximum(ends_a[..., -1:], ends_b[..., -1:])
    ends = torch.cat([ends_a[..., :-1], ends_b[..., :-1], last], -1)
    ends, order = ends.sort(dim=-1, stable=True)
    from_a = (order < a.shape[-1] - 1).long()
    i = from_a.cumsum(-1) - from_a  # number of rows that end before the pair
    j = torch.arange(ends.shape[-1], device=i.device) - i
    return i, j, ends.diff(dim=-1, prepend=torch.zeros_like(last))


def couple_along(
    clouds: PointClouds,
    direction: Float[torch.Tensor, "1 d"],
    a: Float[torch.Tensor, " n"],
    b: Float[torch.Tensor, " m"],
) -> coo_array:
    """Couple the masses a and b, in at most n + m - 1 pairs, in order along a direction."""
    order_x, order_y = (along[0].argsort() for along in clouds.project(direction))
    i, j, mass = northwest_corner(a[order_x], b[order_y])
    kept = mass > 0
    entries = mass[kept], order_x[i[kept]], order_y[j[kept]]
    data, *coords = (each.cpu().numpy() for each in entries)
    return coo_array((data, tuple(coords)), shape=(len(a), len(b)))


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

    Mass that rounding assigns to a point of another group is dropped.
    """
    points, pieces = np.argsort(point_group, kind="stable"), np.argsort(group, kind="stable")
    sorted_masses = torch.from_numpy(point_mass[points]), torch.from_numpy(mass[pieces])
    p, k, piece_mass = (each.numpy() for each in northwest_corner(*sorted_masses))
    p, k = points[p], pieces[k]
    valid = (piece_mass > 0) & (point_group[p] == group[k])
    return p[valid], k[valid], piece_mass[valid]
