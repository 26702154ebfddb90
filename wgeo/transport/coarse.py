"""A coarse problem between a few representatives of both clouds, as a start for all points.

Each point belongs to its nearest representative, of either cloud. The coarse plan, expanded to the
points, gives pairs on which a feasible plan exists. A solver that begins with nearest neighbors
instead needs hundreds of small steps if the clouds are long and thin.
"""

from __future__ import annotations

import numpy as np
import torch
from jaxtyping import Float, Int

from .geometry import Geometry
from .plans import expand
from .simplex import run_simplex
from .tiles import map_tiles, products, reduce_tiles

_REPRESENTATIVES = 256  # of each cloud, at most
_POINTS_EACH = 8  # number of points per representative, at least


def solve_coarse(
    geometry: Geometry, a: Float[np.ndarray, " n"], b: Float[np.ndarray, " m"]
) -> tuple[Int[np.ndarray, " k"], Int[np.ndarray, " k"], Float[np.ndarray, " n"]]:
    """Return pairs (i, j) on which a feasible plan exists, and a potential f of the first cloud."""
    x, y = geometry.x.points[: len(a)], geometry.y.points[: len(b)]
    count = max(1, min(_REPRESENTATIVES, len(a) // _POINTS_EACH, len(b) // _POINTS_EACH))
    centers = torch.cat([x[:count], y[:count]])
    cell_x, cell_y = (_nearest_center(geometry, z, centers, None)[1] for z in (x, y))
    k = len(centers)
    mass_x, mass_y = np.bincount(cell_x, a, k), np.bincount(cell_y, b, k)
    rows, columns = np.flatnonzero(mass_x), np.flatnonzero(mass_y)
    cost = torch.cdist(centers[rows].double(), centers[columns].double()).square().cpu().numpy()
    plan, _, v = run_simplex(mass_x[rows], mass_y[columns], cost / (cost.max() or 1.0))
    i, j, _ = expand(rows[plan.row], columns[plan.col], plan.data, (cell_x, a), (cell_y, b))
    f, _ = _nearest_center(geometry, x, centers[columns], torch.from_numpy(v * cost.max()))
    return i, j, f


def _nearest_center(
    geometry: Geometry,
    points: Float[torch.Tensor, "n d"],
    centers: Float[torch.Tensor, "k d"],
    potentials: Float[torch.Tensor, " k"] | None,
) -> tuple[Float[np.ndarray, " n"], Int[np.ndarray, " n"]]:
    """Return ``min_k ||x_i - z_k||^2 - v_k`` and its k for every point x_i; v is 0 if None."""
    bias = centers.square().sum(1)
    if potentials is not None:
        bias = bias - potentials.to(bias)

    def fill(rows: slice, out: torch.Tensor) -> torch.Tensor:
        geometry.visits["features"] += len(out) * centers.numel()
        return products(points[rows], centers, bias, -2.0, out)

    def part(rows: slice, tile: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        values, indices = tile.min(1)
        return values.double() + points[rows].double().square().sum(1), indices

    tiles = map_tiles(part, fill, (len(points), len(centers)), bias)
    values, indices = reduce_tiles(tiles, len(points), by_row=2)
    return values.cpu().numpy(), indices.cpu().numpy()
