"""Plans between points, and between groups of points such as copies of one point."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, Int
from scipy.sparse import coo_array, csr_array

from ..runtime import processes
from .point_clouds import PointClouds, WeightedPoints

MAX_ENTRIES = 1 << 22
"""Largest number of entries of a plan that may be dense: 48 MiB."""
_MAX_DISTINCT = 0.95  # merging saves time if at most this fraction of points is distinct
_MAX_WITH_PAIRING = 0.7  # up to here it saves time even if the pairing is nearly optimal
_PREFIX = 16  # leading features, usually enough to show that points are distinct
_CHUNK_ROWS = 1024  # number of rows copied to float64 at a time


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


@dataclass(frozen=True, eq=False)
class Merged:
    """The same measures on distinct points.

    `index_x` and `index_y` give, for each original point, the index of the distinct point equal to
    it.
    """

    clouds: PointClouds
    index_x: Int[np.ndarray, " n"]
    index_y: Int[np.ndarray, " m"]

    @property
    def very_few(self) -> bool:
        """Whether merging saves time even if the given pairing is nearly optimal."""
        points = len(self.index_x) + len(self.index_y)
        return len(self.clouds.x) + len(self.clouds.y) <= _MAX_WITH_PAIRING * points


def merge_equal_points(clouds: PointClouds) -> Merged | None:
    """Merge equal points of each cloud; return None if too few points are equal to save time."""
    distinct = processes.on_rank_zero(lambda: _distinct_points(clouds))
    if distinct is None:
        return None
    (first_x, index_x), (first_y, index_y) = distinct
    masses = (
        _sum_groups(clouds.masses[0], index_x, len(first_x)),
        _sum_groups(clouds.masses[1], index_y, len(first_y)),
    )
    source, target = (
        WeightedPoints.of(z[torch.from_numpy(first).to(z.device)], mass / mass.sum())
        for z, first, mass in zip((clouds.x, clouds.y), (first_x, first_y), masses, strict=True)
    )
    return Merged(PointClouds(source, target, integer_masses=masses), index_x, index_y)


Indices = tuple[np.ndarray, np.ndarray]  # what `_distinct` returns


def _distinct_points(clouds: PointClouds) -> tuple[Indices, Indices] | None:
    """Return `_distinct` of both clouds; None if too many points are distinct."""
    limit = _MAX_DISTINCT * (len(clouds.x) + len(clouds.y))
    x = _distinct(clouds.x, limit)
    y = None if x is None else _distinct(clouds.y, limit - len(x[0]))
    return None if x is None or y is None else (x, y)


def _distinct(x: Float[torch.Tensor, "n d"], limit: float) -> Indices | None:
    """Return the first copy of each distinct row, and for each row the distinct row it equals.

    Return None if more than `limit` rows are distinct, or if different rows happen to have equal
    projections.
    """
    for width in (_PREFIX, x.shape[1]):
        _, index = torch.unique(_project_rows(x[:, :width]), return_inverse=True)
        distinct = int(index.max()) + 1
        if distinct > limit:
            return None
        if width >= x.shape[1]:
            break
    rows = torch.arange(len(x), device=x.device)
    first = rows.new_full((distinct,), len(x)).scatter_reduce_(0, index, rows, "amin")
    if not torch.equal(x[first[index]], x):
        return None
    return first.cpu().numpy(), index.cpu().numpy()


def _project_rows(x: Float[torch.Tensor, "n d"]) -> Float[torch.Tensor, " n"]:
    """Return a number for each row: equal for equal rows, almost surely different for others."""
    generator = torch.Generator().manual_seed(0)
    direction = torch.randn(x.shape[1], generator=generator, dtype=torch.float64).to(x.device)
    return torch.cat([rows.double() @ direction for rows in x.split(_CHUNK_ROWS)])


def _sum_groups(
    mass: Float[np.ndarray, " n"], index: Int[np.ndarray, " n"], count: int
) -> Float[np.ndarray, " k"]:
    """Return the total mass of each group, summed in extended precision."""
    order = np.argsort(index, kind="stable")
    starts = np.searchsorted(index[order], np.arange(count))
    return np.add.reduceat(mass[order].astype(np.longdouble), starts).astype(np.float64)
