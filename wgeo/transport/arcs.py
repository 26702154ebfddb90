"""Candidate pairs (arcs), the network simplex on them, and pairs from a coarse problem.

An optimal coupling uses few of the n m pairs, so the problem is solved on candidates alone. If its
potentials satisfy the constraints of all other pairs, the coupling is optimal. Otherwise the
violated pairs are new candidates.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int
from scipy.sparse import coo_array
from scipy.sparse.csgraph import dijkstra

from ..errors import ConvergenceError
from ..runtime.threads import interruptible
from .geometry import Geometry
from .plans import expand
from .tiles import map_tiles, products, reduce_tiles

# A slack counts as zero if it is below this fraction of the numbers from which it is computed.
ROUNDING = 2.0**-47
_NOISE = 2.0**-51  # rounding error of the duals per point, as a fraction of the largest cost
_REPRESENTATIVES = 256  # largest number of points of each cloud in the coarse problem
_POINTS_EACH = 8  # smallest number of points per representative


@dataclass(frozen=True, eq=False)
class Potentials:
    """Dual potentials, feasible if ``f_i + g_j <= c_ij`` for all pairs."""

    f: Float[np.ndarray, " n"]
    g: Float[np.ndarray, " m"]

    @classmethod
    def zeros(cls, n: int, m: int) -> Potentials:
        """Return zero potentials of clouds of n and m points."""
        return cls(np.zeros(n), np.zeros(m))


class Arcs:
    """Distinct pairs (i, j) with their costs in float64, sorted by j and then by i."""

    def __init__(self, geometry: Geometry) -> None:
        self._geometry = geometry
        self.shape = geometry.x.n, geometry.y.n
        self._key = np.zeros(0, np.int64)
        self.cost = np.zeros(0)
        self.i = np.zeros(0, np.int32)
        self.j = np.zeros(0, np.int32)

    def __len__(self) -> int:
        return len(self._key)

    def add(self, i: Int[np.ndarray, " k"], j: Int[np.ndarray, " k"]) -> int:
        """Add pairs; return the number of new ones."""
        n, _ = self.shape
        key = np.sort(j.astype(np.int64) * n + i)
        if len(key) == 0:
            return 0
        key = key[np.diff(key, prepend=-1) > 0]
        position = np.searchsorted(self._key, key)
        present = position < len(self._key)
        present[present] = self._key[position[present]] == key[present]
        key, position = key[~present], position[~present]
        i, j = (key % n).astype(np.int32), (key // n).astype(np.int32)
        self.cost = np.insert(self.cost, position, self._geometry.pair_costs(i, j))
        self._key = np.insert(self._key, position, key)
        self.i = np.insert(self.i, position, i)
        self.j = np.insert(self.j, position, j)
        return len(key)

    def index_of(self, i: Int[np.ndarray, " k"], j: Int[np.ndarray, " k"]) -> Int[np.ndarray, " k"]:
        """Return the positions of pairs, all of which must be in the list."""
        return np.searchsorted(self._key, np.asarray(j, np.int64) * self.shape[0] + i)

    def slack(self, potentials: Potentials) -> Float[np.ndarray, " k"]:
        """Return ``c_ij - f_i - g_j`` for every pair in the list."""
        return self.cost - potentials.f[self.i] - potentials.g[self.j]


def network_simplex(
    arcs: Arcs,
    potentials: Potentials,
    a: Float[np.ndarray, " n"],
    b: Float[np.ndarray, " m"],
    limit: float = np.inf,
) -> tuple[coo_array, Potentials, float]:
    """Return an optimal plan on the arcs, potentials that prove it, and their noise.

    POT's network simplex is given the slacks, divided by the largest slack (the unit), as costs. If
    the given potentials are nearly optimal, few pivots are needed, and the new potentials are close
    to them. Integer masses remain integers. The noise bounds the rounding error of the duals. It
    grows with n + m, as do the costs of POT's artificial arcs.

    Slacks above `limit` are replaced by `limit`, which makes the unit and the noise smaller. If the
    plan uses such an arc, the problem is solved again without a limit.
    """
    slack = arcs.slack(potentials)
    unit = min(float(abs(slack).max(initial=0.0)), limit) or 1.0
    graph = coo_array((np.minimum(slack / unit, 1.0), (arcs.i, arcs.j)), shape=arcs.shape)
    plan, u, v = run_simplex(a, b, graph)
    used = arcs.index_of(plan.row, plan.col)
    if slack[used].max() > limit:
        return network_simplex(arcs, potentials, a, b)
    change = shortest_path_labels(arcs, slack, u * unit, v * unit, used)
    potentials = Potentials(potentials.f + change.f, potentials.g + change.g)
    return plan, potentials, _NOISE * sum(arcs.shape) * unit


def dense_simplex(
    geometry: Geometry, a: Float[np.ndarray, " n"], b: Float[np.ndarray, " m"]
) -> tuple[coo_array, Potentials, float]:
    """Return an optimal plan on all pairs, potentials that prove it, and their noise."""
    x, y = geometry.x, geometry.y
    cost = torch.addmm(y.norms, x.points[: x.n].double(), y.points[: y.n].double().T, alpha=-2)
    cost += x.norms[:, None]
    unit = float(cost.max()) or 1.0
    plan, u, v = run_simplex(a, b, cost.div_(unit).cpu().numpy())
    return plan, Potentials(u * unit, v * unit), _NOISE * (x.n + y.n) * unit


def run_simplex(
    a: Float[np.ndarray, " n"], b: Float[np.ndarray, " m"], cost: Any
) -> tuple[coo_array, Float[np.ndarray, " n"], Float[np.ndarray, " m"]]:
    """Return POT's plan and duals for a dense or sparse cost."""
    import ot  # POT imports scikit-learn and pandas if they are installed, which takes seconds

    plan, log = interruptible(
        lambda: ot.emd(a, b, cost, numItermax=10**9, log=True, center_dual=False)
    )
    if log["result_code"] != 1:
        raise ConvergenceError(
            f"The network simplex ended early: {log['warning']}. Are weights many orders of "
            "magnitude apart? Drop the smallest, or use wgeo.Sinkhorn()."
        )
    plan = coo_array(plan)
    positive = plan.data > 0
    pairs = plan.row[positive], plan.col[positive]
    return coo_array((plan.data[positive], pairs), shape=plan.shape), log["u"], log["v"]


def shortest_path_labels(
    arcs: Arcs,
    cost: Float[np.ndarray, " k"],
    u: Float[np.ndarray, " n"],
    v: Float[np.ndarray, " m"],
    used: Int[np.ndarray, " u"],
) -> Potentials:
    """Return the optimal potentials for `cost` that have the least f >= 0, and so the largest g.

    These are unique, while the duals of a simplex are arbitrary at points with few arcs. They are
    shortest-path distances (Ahuja, Magnanti, Orlin 1993, Section 12.4). In the graph, each arc
    leads from its row to its column, with its cost as length. Each used arc also leads backwards,
    with minus its cost, and arcs of length 0 lead from a source to every row. If p_i and q_j are
    the distances of rows and columns from the source, then ``f = -p`` and ``g = q``.

    Given optimal duals u and v, the lengths can be replaced by ``cost - u - v``. These are
    nonnegative, and 0 on used arcs, so that Dijkstra's algorithm can be used.
    """
    n, m = arcs.shape
    length = np.maximum(cost - u[arcs.i] - v[arcs.j], 0.0)
    length[used] = 0.0
    nodes = np.arange(n, dtype=np.int32)
    tails = np.concatenate([arcs.i, n + arcs.j[used], np.full(n, n + m, np.int32)])
    heads = np.concatenate([n + arcs.j, arcs.i[used], nodes])
    lengths = np.concatenate([length, np.zeros(len(used)), u - u.min()])
    graph = coo_array((lengths, (tails, heads)), shape=(n + m + 1, n + m + 1))
    distance = dijkstra(graph.tocsr(), indices=n + m)  # zeros that are stored are arcs
    return Potentials(u - u.min() - distance[:n], v + u.min() + distance[n : n + m])


def solve_coarse(
    geometry: Geometry, a: Float[np.ndarray, " n"], b: Float[np.ndarray, " m"]
) -> tuple[Int[np.ndarray, " k"], Int[np.ndarray, " k"], Float[np.ndarray, " n"]]:
    """Solve between a few representatives of both clouds.

    Return pairs (i, j) on which a feasible plan exists, and a potential f of the first cloud. Each
    point belongs to its nearest representative, of either cloud, and the coarse plan is expanded to
    the points. A solver that begins with nearest neighbors instead needs hundreds of small steps if
    the clouds are long and thin.
    """
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
