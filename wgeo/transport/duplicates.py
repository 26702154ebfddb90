"""Merge equal points into one point with their total mass, which makes the problem smaller."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, Int

from ..runtime import processes
from .point_clouds import PointClouds
from .weighted_points import WeightedPoints

_MAX_DISTINCT = 0.95  # merging saves time if at most this fraction of points is distinct
_MAX_WITH_PAIRING = 0.7  # up to here it saves time even if the pairing is nearly optimal
_PREFIX = 16  # leading features, usually enough to show that points are distinct
_CHUNK_ROWS = 1024  # number of rows copied to float64 at a time


@dataclass(frozen=True, eq=False)
class Merged:
    """The same two measures on distinct points, and which of these each original point equals."""

    clouds: PointClouds
    index_x: Int[np.ndarray, " n"]
    index_y: Int[np.ndarray, " m"]

    @property
    def very_few(self) -> bool:
        """Whether merging saves time even if the given pairing is nearly optimal."""
        points = len(self.index_x) + len(self.index_y)
        return len(self.clouds.x) + len(self.clouds.y) <= _MAX_WITH_PAIRING * points


def merge_equal_points(clouds: PointClouds) -> Merged | None:
    """Merge equal points of each cloud; return None if there are too few to save time."""
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
