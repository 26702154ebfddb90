"""Exact: the optimal coupling of two point clouds, with a proof."""

from __future__ import annotations

import time
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import numpy as np
import torch
from jaxtyping import Float, Int
from scipy.sparse import coo_array, csr_array

from ..arrays.checks import as_points, pick_device
from ..errors import ArgumentError
from ..runtime import processes
from ..runtime.memory import limited_size, parse_bytes
from .assignment import solve_assignment
from .geometry import Geometry, squared_distances
from .flow import solve_flow
from .kernel import full_precision
from .line import solve_line
from .clouds import UNIT_ROUNDOFF, PointClouds
from .column_generation import Solution
from .result import Status, TransportResult


@dataclass(frozen=True)
class Exact:
    r"""The optimal coupling for the squared Euclidean cost, certified.

    A coupling P and potentials f, g with :math:`f_i + g_j \leq \|x_i - y_j\|^2` for *all* pairs
    enclose the truth (Kantorovich duality; Peyre, Cuturi 2019, Section 2.5):

    .. math:: \sum_i a_i f_i + \sum_j b_j g_j \leq W_2^2 \leq \sum_{ij} P_{ij} \|x_i - y_j\|^2

    and at the optimum the two agree. Both sides are evaluated in float64 with their rounding errors
    accounted for, so that ``lower <= W2 <= upper`` holds for the points given, not nearly.

    Neighbouring layers nearly coincide, so the pairing given is tried first; where it is not
    optimal, or there is none, potentials are guessed by entropic transport of samples. Transport is
    solved on the few pairs those suggest, tested on all, and solved again with the pairs at fault,
    until none is left. All n m costs are computed several times and never stored, except products
    of wide points that `memory` has room for. Pairs of wide points are first tested folded into few
    features, which clears most of them where layers nearly coincide.

    Parameters
    ----------
    tolerance : float
        Relative width of the interval at which a result counts as certified. The solver goes on to
        the optimum in any case; a wider interval means that float64 could not tell more.
    memory : str or int
        What may be held beside the points, in bytes or as ``"1GiB"``. Speed only.
    device : str
        Where all pairs are visited: ``auto`` (CUDA where there is one), ``cpu`` or ``cuda``. The
        sparse problems are solved on the processor.
    """

    tolerance: float | int = 1e-6
    memory: str | int = "1GiB"
    device: str = "auto"
    name: ClassVar[str] = "exact"

    def __post_init__(self) -> None:
        if not self.tolerance > 0:
            raise ArgumentError(f"tolerance must be positive, not {self.tolerance!r}.")
        parse_bytes(self.memory)

    def solve(
        self,
        x: Float[torch.Tensor, "n d"],
        y: Float[torch.Tensor, "m d"],
        a: Float[np.ndarray, " n"] | None = None,
        b: Float[np.ndarray, " m"] | None = None,
        coupling: Int[np.ndarray, " n"] | None = None,
        potentials: tuple[np.ndarray, np.ndarray] | None = None,
    ) -> TransportResult:
        """Return W2 with its optimal coupling and potentials (`wasserstein`).

        Raises
        ------
        FeatureError
            NaN or infinity in the clouds.
        ConvergenceError
            The network simplex failed (weights only).
        """
        start_time = time.perf_counter()
        x, y = as_points(x, name="x"), as_points(y, name="y")
        device = pick_device(self.device)
        idle = [w is not None and not w.all() for w in (a, b)]
        if any(idle):
            return self._without_idle(x.to(device), y.to(device), a, b)
        clouds = PointClouds.of(x, y, a, b, coupling, device)
        with full_precision:
            found = self._of_pair(clouds, potentials)
            loose = processes.on_rank_zero(lambda: found.status is not Status.CERTIFIED)
            if loose and clouds.pairing is not None:
                # Potentials accumulate rounding over many updates; from the optimum they need few.
                found = self._of_pair(replace(clouds, pairing=found.coupling), None)
        return replace(found, seconds=time.perf_counter() - start_time)

    def _of_pair(
        self, clouds: PointClouds, potentials: tuple[np.ndarray, np.ndarray] | None
    ) -> TransportResult:
        geometry = Geometry.of(clouds, limited_size(parse_bytes(self.memory), 1 / 8))
        start = None if potentials is None else geometry.start(np.asarray(potentials[0]))
        solution = _solve(geometry, start)
        if clouds.pairing is not None:
            plan = _permutation(geometry, solution)
            cost = upper = clouds.permutation_cost(plan)
        else:
            plan, cost, upper = _plan(geometry, solution)
        labels = solution.labels
        return clouds.result(
            lower=_dual(geometry, solution),
            upper=upper,
            cost=cost,
            solver=self.name,
            seconds=0.0,
            tolerance=self.tolerance,
            coupling=plan,
            potentials=geometry.original_potentials(labels.p, labels.q - solution.find_violations.loss),
            stats={"rounds": solution.rounds, "passes": geometry.passes, "arcs": solution.arcs},
        )

    def _without_idle(
        self,
        x: torch.Tensor,
        y: torch.Tensor,
        a: np.ndarray | None,
        b: np.ndarray | None,
    ) -> TransportResult:
        """Leave out points of no weight; give them potentials afterwards."""
        n, m = len(x), len(y)
        i = np.arange(n) if a is None else np.flatnonzero(a)
        j = np.arange(m) if b is None else np.flatnonzero(b)
        a, b = (None if w is None else w[k] for w, k in ((a, i), (b, j)))
        found = self.solve(x[i], y[j], a, b)
        plan = coo_array(found.coupling)
        plan = csr_array((plan.data, (i[plan.row], j[plan.col])), shape=(n, m))
        return replace(
            found, coupling=plan, potentials=_for_all(x, y, (i, j), found.potentials or ())
        )


def _solve(geometry: Geometry, start: Float[np.ndarray, " n"] | None) -> Solution:
    if geometry.clouds.x.shape[1] == 1:
        return solve_line(geometry)
    if geometry.clouds.pairing is not None:
        return solve_assignment(geometry, start)
    return solve_flow(geometry, start)


def _permutation(geometry: Geometry, solution: Solution) -> Int[np.ndarray, " n"]:
    """The coupling of the clouds as given."""
    permutation = np.empty(geometry.x.n, np.int64)
    permutation[geometry.rows] = geometry.columns[solution.coupling]
    return permutation


def _plan(geometry: Geometry, solution: Solution) -> tuple[csr_array, float, float]:
    """The plan of the clouds as given, its cost, and a bound on that of a coupling next to it.

    Marginals that are wrong by e (L1) are made right by moving at most that much mass.
    """
    clouds = geometry.clouds
    found = solution.coupling.tocoo()
    at = geometry.rows[found.row], geometry.columns[found.col]
    plan = csr_array((found.data, at), shape=found.shape)
    off = sum(
        float(abs(plan.sum(axis) - w.cpu().numpy()).sum()) for axis, w in ((1, clouds.a), (0, clouds.b))
    )
    ends = [torch.stack((z.amin(0), z.amax(0))).double() for z in (clouds.x, clouds.y)]
    corners = torch.stack(ends)
    farthest = corners[:, 1].amax(0) - corners[:, 0].amin(0)  # a box around both clouds
    cost = clouds.plan_cost(plan)
    return plan, cost, cost + off * float(farthest @ farthest)


def _dual(geometry: Geometry, solution: Solution) -> float:
    """Lower bound of W2^2 from feasible labels, less what rounding can have added."""
    clouds = geometry.clouds
    a, b = geometry.weights
    p, q = solution.labels.p, solution.labels.q - solution.find_violations.loss
    middle = (float(a @ p) + float(b @ q)) / 2  # labels are free up to a constant
    p, q = p - middle, q - middle
    dual = float(b @ q) - float(a @ p)
    dual -= 64 * UNIT_ROUNDOFF * float(a @ abs(p) + b @ abs(q))
    shift = clouds.translation_cost if bool(geometry.offset.any()) else 0.0
    return (dual / geometry.scale**2 + shift) - 16 * UNIT_ROUNDOFF * abs(shift)


def _for_all(
    x: torch.Tensor, y: torch.Tensor, known: tuple[np.ndarray, np.ndarray], potentials: Any
) -> tuple[np.ndarray, np.ndarray]:
    """Potentials of all points from those of some: c-transforms, rows first."""
    f, g = np.empty(len(x)), np.empty(len(y))
    (i, j), (f[i], g[j]) = known, potentials
    rest_i, rest_j = np.setdiff1d(np.arange(len(x)), i), np.setdiff1d(np.arange(len(y)), j)
    f[rest_i] = _transform(x[rest_i], y[j], g[j])
    g[rest_j] = _transform(y[rest_j], x, f)
    return f, g


def _transform(x: torch.Tensor, y: torch.Tensor, g: np.ndarray) -> Float[np.ndarray, " n"]:
    """``min_j ||x_i - y_j||^2 - g_j``, some rows at a time, in float64."""
    y, labels = y.double(), torch.from_numpy(g).to(y.device)
    step = max(1, (1 << 20) // len(y))
    parts = [
        (squared_distances(x[k : k + step].double(), y) - labels).amin(1).cpu().numpy()
        for k in range(0, len(x), step)
    ]
    return np.concatenate(parts) if parts else np.empty(0)
