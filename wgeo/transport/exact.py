"""Exact: the optimal coupling of two point clouds, with a proof."""

from __future__ import annotations

import time
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import numpy as np
import torch
from jaxtyping import Float, Int
from scipy.sparse import coo_array, csr_array

from ..arrays.checks import as_float, as_points, pick_device
from ..errors import ArgumentError
from ..runtime import processes
from ..runtime.memory import limited_size, parse_bytes
from .arcs import Arcs, Potentials
from .flow import Solution, pairs_well, solve_flow, verify
from .geometry import Geometry
from .plans import expand, merge_equal_points, northwest_corner
from .point_clouds import UNIT_ROUNDOFF, PointClouds
from .result import Status, TransportResult
from .tiles import full_precision, map_tiles, reduce_tiles, squared_distances


@dataclass(frozen=True)
class Exact:
    r"""The optimal coupling for the squared Euclidean cost, certified.

    A coupling P and potentials f, g with :math:`f_i + g_j \leq \|x_i - y_j\|^2` for *all* pairs
    bound W2^2 from both sides (Kantorovich duality; Peyre, Cuturi 2019, Section 2.5):

    .. math:: \sum_i a_i f_i + \sum_j b_j g_j \leq W_2^2 \leq \sum_{ij} P_{ij} \|x_i - y_j\|^2

    At the optimum the two bounds agree. Both are evaluated in float64, and their rounding errors
    are accounted for: ``lower <= W2 <= upper`` holds rigorously for the points given.

    The given pairing is tested first, because neighboring layers nearly coincide. If it is not
    nearly optimal, a small problem is solved on all pairs. In a large problem, the pairing of
    nearest neighbors is tested next. If that is not nearly optimal either, a coarse problem between
    a few points of each cloud suggests pairs. The problem is then solved on few pairs, its
    potentials are tested on all pairs, and it is solved again with the violated pairs, until no
    pair is violated (column generation).

    The n m costs of a large problem are computed again for every test. For points with many
    features, inner products are stored if `memory` suffices.

    Parameters
    ----------
    tolerance : float
        Largest relative width of the interval of a certified result; positive. The solver computes
        the optimum in any case: a wider interval is due to the rounding of float64.
    memory : str or int
        Approximate memory for costs, in bytes or as ``"1GiB"``. It affects speed, and results only
        by rounding.
    device : str
        Device on which all pairs are tested: ``auto`` (CUDA if available), ``cpu`` or ``cuda``.
        The sparse problems are solved on the CPU.

    Examples
    --------
    >>> import numpy as np
    >>> import wgeo
    >>> x = np.random.default_rng(0).normal(size=(50, 2))
    >>> r = wgeo.wasserstein(x, x[::-1], solver=wgeo.Exact(tolerance=1e-9))
    >>> r.distance, r.coupling[:4].tolist()
    (0.0, [49, 48, 47, 46])
    """

    tolerance: float | int = 1e-6
    memory: str | int = "1GiB"
    device: str = "auto"
    name: ClassVar[str] = "exact"

    def __post_init__(self) -> None:
        if not as_float(self.tolerance, "tolerance") > 0:
            raise ArgumentError(f"tolerance must be positive, not {self.tolerance!r}.")
        parse_bytes(self.memory)

    def solve(
        self,
        x: Float[torch.Tensor, "n d"],
        y: Float[torch.Tensor, "m d"],
        a: Float[np.ndarray, " n"] | None = None,
        b: Float[np.ndarray, " m"] | None = None,
        coupling: Int[np.ndarray, " n"] | None = None,
        potentials: tuple[Float[np.ndarray, " n"], Float[np.ndarray, " m"]] | None = None,
    ) -> TransportResult:
        """Return W2 with its optimal coupling and potentials (`wasserstein`).

        `potentials` (f, g) of a similar problem are a starting point. They do not change W2, but
        save time if the problem is large and the given coupling is far from optimal.

        Raises
        ------
        FeatureError
            A cloud is empty, or contains NaN or infinity.
        ArgumentError
            The device cannot be used.
        ConvergenceError
            The network simplex failed.
        """
        start_time = time.perf_counter()
        x, y = as_points(x, name="x"), as_points(y, name="y")
        device = pick_device(self.device)
        if any(w is not None and not w.all() for w in (a, b)):
            return self._solve_positive_weights(x.to(device), y.to(device), a, b)
        clouds = PointClouds.of(x, y, a, b, coupling, device)
        with full_precision:
            result = self._solve(clouds, potentials)
            uncertified = processes.on_rank_zero(lambda: result.status is not Status.CERTIFIED)
            if uncertified and clouds.pairing is not None:
                # Potentials accumulate rounding errors over many updates. Few updates are needed if
                # the solver starts from the optimal pairing.
                first = result.stats
                result = self._solve(replace(clouds, pairing=result.coupling))
                for effort in ("rounds", "passes"):
                    result.stats[effort] += first[effort]
        return replace(result, seconds=time.perf_counter() - start_time)

    def _solve(
        self,
        clouds: PointClouds,
        potentials: tuple[Float[np.ndarray, " n"], Float[np.ndarray, " m"]] | None = None,
    ) -> TransportResult:
        memory = limited_size(parse_bytes(self.memory), 1 / 8)
        geometry, merged = Geometry.of(clouds, memory), None
        if clouds.x.shape[1] > 1:
            merged = merge_equal_points(clouds)
        if merged is not None and (merged.very_few or not pairs_well(geometry)):
            geometry = Geometry.of(merged.clouds, memory)
        else:
            merged = None
        if clouds.x.shape[1] == 1:
            solution = _solve_line(geometry)
        elif potentials is None or merged is not None:
            solution = solve_flow(geometry)
        else:
            solution = solve_flow(geometry, geometry.centered_potentials(*potentials)[0])
        feasible = solution.feasible
        f, g = geometry.original_potentials(feasible.f, feasible.g)
        i, j, mass = _in_order(geometry, solution)
        if merged is not None:
            x, y = zip((merged.index_x, merged.index_y), clouds.masses, strict=True)
            i, j, mass = expand(i, j, mass, x, y)
            f, g = f[merged.index_x], g[merged.index_y]
        if clouds.pairing is not None:
            plan = np.empty(len(i), np.int64)
            plan[i] = j
            cost = upper = clouds.permutation_cost(plan)
        else:
            plan, cost, upper = _plan(clouds, i, j, mass)
        return clouds.result(
            lower=lower_bound(geometry, feasible),
            upper=upper,
            cost=cost,
            solver=self.name,
            seconds=0.0,
            tolerance=self.tolerance,
            coupling=plan,
            potentials=(f, g),
            stats={"rounds": solution.rounds, "passes": geometry.passes, "arcs": solution.arcs},
        )

    def _solve_positive_weights(
        self,
        x: torch.Tensor,
        y: torch.Tensor,
        a: np.ndarray | None,
        b: np.ndarray | None,
    ) -> TransportResult:
        """Solve without the points of weight 0, then extend the potentials to them."""
        n, m = len(x), len(y)
        i = np.arange(n) if a is None else np.flatnonzero(a)
        j = np.arange(m) if b is None else np.flatnonzero(b)
        a, b = (None if w is None else w[k] for w, k in ((a, i), (b, j)))
        result = self.solve(x[i], y[j], a, b)
        plan = coo_array(result.coupling)
        plan = csr_array((plan.data, (i[plan.row], j[plan.col])), shape=(n, m))
        potentials = _extend_potentials(x, y, (i, j), result.potentials or ())
        return replace(result, coupling=plan, potentials=potentials)


def _in_order(
    geometry: Geometry, solution: Solution
) -> tuple[Int[np.ndarray, " k"], Int[np.ndarray, " k"], Float[np.ndarray, " k"]]:
    """Return the plan's pairs, as row indices of the clouds as given, and their mass."""
    plan = solution.plan
    return geometry.order_x[plan.row], geometry.order_y[plan.col], plan.data


def _plan(
    clouds: PointClouds,
    i: Int[np.ndarray, " k"],
    j: Int[np.ndarray, " k"],
    mass: Float[np.ndarray, " k"],
) -> tuple[csr_array, float, float]:
    """Return the plan, its cost, and an upper bound on W2^2 that allows for marginal errors."""
    shape = len(clouds.x), len(clouds.y)
    plan = csr_array((mass / clouds.masses[0].sum(), (i, j)), shape=shape)
    ranges = [torch.stack((z.amin(0), z.amax(0))).double() for z in (clouds.x, clouds.y)]
    corners = torch.stack(ranges)
    diagonal = corners[:, 1].amax(0) - corners[:, 0].amin(0)  # the box encloses both clouds
    cost = clouds.plan_cost(plan)
    return plan, cost, cost + clouds.marginal_error(plan) * float(diagonal @ diagonal)


def lower_bound(geometry: Geometry, potentials: Potentials) -> float:
    """Return the dual objective of feasible potentials, less its possible rounding error."""
    a, b = geometry.weights
    f, g = potentials.f, potentials.g
    middle = (float(b @ g) - float(a @ f)) / 2  # potentials are determined only up to a constant
    f, g = f + middle, g - middle
    dual = float(b @ g) + float(a @ f)
    dual -= 64 * UNIT_ROUNDOFF * float(a @ abs(f) + b @ abs(g))
    shift = geometry.clouds.translation_cost if geometry.has_offset else 0.0
    return (dual / geometry.scale**2 + shift) - 16 * UNIT_ROUNDOFF * abs(shift)


def _extend_potentials(
    x: torch.Tensor, y: torch.Tensor, indices: tuple[np.ndarray, np.ndarray], potentials: Any
) -> tuple[np.ndarray, np.ndarray]:
    """Extend the potentials of some points to all points by c-transforms, first those of x."""
    f, g = np.empty(len(x)), np.empty(len(y))
    (i, j), (f[i], g[j]) = indices, potentials
    other_i, other_j = np.setdiff1d(np.arange(len(x)), i), np.setdiff1d(np.arange(len(y)), j)
    f[other_i] = _c_transform(x[other_i], y[j], g[j])
    g[other_j] = _c_transform(y[other_j], x, f)
    return f, g


def _c_transform(x: torch.Tensor, y: torch.Tensor, g: np.ndarray) -> Float[np.ndarray, " n"]:
    """Return ``min_j ||x_i - y_j||^2 - g_j`` from differences, less a bound on its rounding."""
    y, potential = y.double(), torch.from_numpy(g).to(y.device)

    def fill(rows: slice, out: torch.Tensor) -> torch.Tensor:
        return torch.sub(squared_distances(x[rows].double(), y), potential, out=out)

    tiles = map_tiles(lambda _, tile: (tile.amin(1),), fill, (len(x), len(y)), potential)
    f = reduce_tiles(tiles, len(x))[0].cpu().numpy()
    return f - (x.shape[1] + 8) * UNIT_ROUNDOFF * (abs(f) + 2 * abs(g).max())


def _solve_line(geometry: Geometry) -> Solution:
    """Return the optimal coupling of points on a line, with any weights, and its potentials.

    Sorted points are coupled in order (Peyre, Cuturi 2019, Section 2.6). Convex functions of
    x_i - y_j have the Monge property: potentials with zero slack on this coupling satisfy all
    constraints if they satisfy those of neighboring points.
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
