"""Transport in closed form: between Gaussians, and along lines.

Both give lower bounds of W2 in any dimension, and lines also give good couplings.
"""

from __future__ import annotations

import math
import time
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import scipy.sparse as sp
import torch
from jaxtyping import Float, Int

from ..arrays.checks import as_count, pick_device
from ..runtime import processes
from .plans import MAX_ENTRIES, couple_along, northwest_corner, product_plan
from .point_clouds import UNIT_ROUNDOFF, PointClouds
from .result import TransportResult

_LINE_ENTRIES = 1 << 22  # projected coordinates in memory at a time: 32 MiB
_MAX_COUPLINGS = 8  # number of couplings from lines that are evaluated in full dimension
_MAX_AXES = 512  # largest number of principal axes that are all computed
_TOO_LARGE = f"the product of the weights has more than {MAX_ENTRIES:,} entries"


@dataclass(frozen=True)
class Gaussian:
    r"""Bures-Wasserstein distance between Gaussians with the clouds' means and covariances.

    .. math:: B^2 = \|m_x - m_y\|^2 + \mathrm{tr}\,\Sigma_x + \mathrm{tr}\,\Sigma_y
              - 2\,\mathrm{tr}\,(\Sigma_x^{1/2} \Sigma_y \Sigma_x^{1/2})^{1/2}

    B^2 is W2^2 between the Gaussians, and at most W2^2 between the clouds (Gelbrich 1990, Theorem
    2.1). Covariances are divided by n, not n - 1. ``cost`` is B^2, and ``lower`` is B.

    ``coupling`` is the cheaper of the pairing and the product coupling, and ``upper`` is the root
    of its cost. ``coupling`` is None if it is a product of more than 2^22 entries.

    Parameters
    ----------
    device : str
        ``auto`` (CUDA if available), ``cpu`` or ``cuda``.

    Examples
    --------
    A shift by 3 and standard deviations 1 and 5 give sqrt(3^2 + (5 - 1)^2):

    >>> import numpy as np
    >>> import wgeo
    >>> x = np.array([-1.0, 1.0])
    >>> round(wgeo.wasserstein(x, 5 * x + 3, solver=wgeo.Gaussian()).distance, 6)
    5.0
    """

    device: str = "auto"
    name: ClassVar[str] = "gaussian"

    def solve(
        self,
        x: Float[torch.Tensor, "n d"],
        y: Float[torch.Tensor, "m d"],
        a: Float[np.ndarray, " n"] | None = None,
        b: Float[np.ndarray, " m"] | None = None,
        coupling: Int[np.ndarray, " n"] | None = None,
    ) -> TransportResult:
        """Return the Bures distance as a lower bound of W2 between the clouds (`wasserstein`)."""
        start_time = time.perf_counter()
        clouds = PointClouds.of(x, y, a, b, coupling, pick_device(self.device))
        bures, slack = _bures(clouds)
        product = clouds.translation_cost + clouds.total_variance + clouds.rounding
        pairing_is_best = clouds.pairing_cost <= product
        plan = clouds.pairing
        if not pairing_is_best:
            plan = product_plan(clouds.a.cpu().numpy(), clouds.b.cpu().numpy())
        return clouds.result(
            lower=clouds.translation_cost + bures - slack - clouds.rounding,
            upper=min(clouds.pairing_cost, product),
            cost=clouds.translation_cost + bures,
            solver=self.name,
            seconds=time.perf_counter() - start_time,
            coupling=plan,
            stats={
                "estimand": "W2 between Gaussians with the clouds' means and covariances",
                "means": max(clouds.translation_cost, 0.0),
                "covariances": bures,
                "upper_from": "pairing" if pairing_is_best else "product",
                **({} if plan is not None else {"no_plan": _TOO_LARGE}),
            },
        )


def _bures(clouds: PointClouds) -> tuple[float, float]:
    """Return B^2 between the centered clouds, and a bound on its rounding error.

    If Sigma_x = R_x^T R_x and Sigma_y = R_y^T R_y, the last trace is the nuclear norm of R_x R_y^T.
    """
    factor_x, factor_y = clouds.source.factor(), clouds.target.factor()
    product = factor_x @ factor_y.T
    values = torch.linalg.svdvals(product)
    terms = clouds.x.shape[1] + sum(product.shape)
    slack = (
        8 * terms * UNIT_ROUNDOFF * float(values.max()) + 64 * UNIT_ROUNDOFF * clouds.total_variance
    )
    value = clouds.total_variance - 2 * float(values.sum())
    if value > 1e-4 * clouds.total_variance:
        return value, slack
    # The traces nearly cancel. The Procrustes residual min_U ||R_x - U R_y||^2 has the same value
    # and a smaller relative error.
    left, _, right = torch.linalg.svd(product, full_matrices=False)
    common = right @ factor_y
    outside = factor_y - right.T @ common
    residual = (factor_x - left @ common).square().sum() + outside.square().sum()
    return float(residual), slack


@dataclass(frozen=True)
class Sliced:
    r"""Transport along random lines: the sliced distance, and a fast interval for W2.

    .. math:: SW_2^2 = E_\theta\, W_2^2(\theta^T x, \theta^T y), \qquad \|\theta\| = 1

    (Rabin, Peyre, Delon, Bernot 2011). ``stats["sliced"]`` estimates SW_2, and
    ``stats["sliced_error"]`` is the standard error of this estimate.

    For orthonormal directions, sum_k W2^2(theta_k^T x, theta_k^T y) <= W2^2(x, y), because an
    optimal coupling is feasible on every line. Random directions are therefore drawn as orthonormal
    frames, and ``lower`` comes from the best frame or from the principal axes.

    Sorting along a line couples the clouds. ``upper`` and ``cost`` come from the cheapest of a few
    such couplings and the given pairing, measured in full dimension. In one dimension the coupling
    is optimal.

    Parameters
    ----------
    projections : int
        Number of random directions, at least 1.
    seed : int
        Random seed of the directions.
    device : str
        ``auto`` (CUDA if available), ``cpu`` or ``cuda``.

    Examples
    --------
    >>> import numpy as np
    >>> import wgeo
    >>> x = np.random.default_rng(0).normal(size=(50, 2))
    >>> r = wgeo.wasserstein(x, x + [3.0, 4.0], solver=wgeo.Sliced())
    >>> round(r.lower, 6), round(r.upper, 6)
    (5.0, 5.0)
    >>> round(r.stats["sliced"], 2)
    3.54
    """

    projections: int = 256
    seed: int = 0
    device: str = "auto"
    name: ClassVar[str] = "sliced"

    def __post_init__(self) -> None:
        as_count(self.projections, "projections", 1)

    def solve(
        self,
        x: Float[torch.Tensor, "n d"],
        y: Float[torch.Tensor, "m d"],
        a: Float[np.ndarray, " n"] | None = None,
        b: Float[np.ndarray, " m"] | None = None,
        coupling: Int[np.ndarray, " n"] | None = None,
    ) -> TransportResult:
        """Return an interval for W2 and the sliced distance (`wasserstein`)."""
        start_time = time.perf_counter()
        clouds = PointClouds.of(x, y, a, b, coupling, pick_device(self.device))
        directions = self._directions(clouds)
        lines = torch.cat([directions, _principal_axes(clouds, self.seed)])
        costs = _projected_costs(clouds, lines)
        frames = [*costs[: len(directions)].split(clouds.x.shape[1]), costs[len(directions) :]]
        cost, plan, origin = _best_coupling(clouds, lines, costs)
        # `costs` are centered, so the squared shift along each direction is added.
        with_shift = costs[: len(directions)] + (directions @ clouds.offset).square()
        return clouds.result(
            lower=clouds.translation_cost + max(_lower_bound(clouds, frame) for frame in frames),
            upper=cost,
            solver=self.name,
            seconds=time.perf_counter() - start_time,
            coupling=plan,
            stats={
                "sliced": math.sqrt(float(with_shift.mean())),
                "sliced_error": _error_of_root_mean(with_shift),
                "projections": len(directions),
                "seed": self.seed,
                "upper_from": origin,
            },
        )

    def _directions(self, clouds: PointClouds) -> Float[torch.Tensor, "k d"]:
        """Draw uniformly distributed directions; every d consecutive ones are orthonormal."""
        d = clouds.x.shape[1]
        count = -(-self.projections // d)
        generator = np.random.default_rng(self.seed)
        normal = torch.from_numpy(generator.standard_normal((count, d, min(d, self.projections))))
        q, r = torch.linalg.qr(normal)
        # The sign convention makes Q uniformly distributed (Mezzadri 2007), not only orthonormal.
        q = q * r.diagonal(dim1=1, dim2=2).sign()[:, None]
        return q.transpose(1, 2).reshape(-1, d)[: self.projections].to(clouds.x.device)


def line_costs(
    x: Float[torch.Tensor, "k n"],
    y: Float[torch.Tensor, "k m"],
    a: Float[torch.Tensor, " n"],
    b: Float[torch.Tensor, " m"],
) -> Float[torch.Tensor, " k"]:
    r"""Return W2^2 between weighted points on k lines, ``\int_0^1 (F^{-1} - G^{-1})^2``."""
    x, order_x = x.sort(dim=1)
    y, order_y = y.sort(dim=1)
    if len(a) == len(b) and bool((a == a[0]).all()) and bool((b == b[0]).all()):
        return (x - y).square().mean(1)
    i, j, mass = northwest_corner(a[order_x], b[order_y])
    return ((x.gather(1, i) - y.gather(1, j)).square() * mass).sum(1)


def _projected_costs(
    clouds: PointClouds, directions: Float[torch.Tensor, "k d"]
) -> Float[torch.Tensor, " k"]:
    """Return W2^2 between the centered clouds along each direction."""
    step = max(1, _LINE_ENTRIES // (len(clouds.x) + len(clouds.y)))
    shard, costs = processes.shard(len(directions)), directions.new_zeros(len(directions))
    for i in range(shard.start, shard.stop, step):
        part = slice(i, min(i + step, shard.stop))
        costs[part] = line_costs(*clouds.project(directions[part]), clouds.a, clouds.b)
    return processes.all_reduce_sum(costs)


def _lower_bound(clouds: PointClouds, lines: Float[torch.Tensor, " k"]) -> float:
    """Return a lower bound from the costs along one orthonormal frame, less its rounding error."""
    # Relative to the clouds' radius, errors are d u for projections, and n u for sums of n weights.
    terms = len(clouds.x) + len(clouds.y) if clouds.pairing is None else 1
    slack = (
        4 * UNIT_ROUNDOFF * terms * len(lines) * clouds.radius**2
        + math.sqrt(len(lines)) * clouds.rounding
    )
    return float(lines.sum()) * (1 - 8 * (clouds.x.shape[1] + 64) * UNIT_ROUNDOFF) - slack


def _principal_axes(clouds: PointClouds, seed: int) -> Float[torch.Tensor, "r d"]:
    """Return the pooled clouds' principal axes, or approximately the first 64 if there are many."""
    pooled = torch.cat([clouds.source.factor(), clouds.target.factor()])
    if min(pooled.shape) <= _MAX_AXES:
        return torch.linalg.svd(pooled, full_matrices=False)[2]
    start = np.random.default_rng(seed).standard_normal((len(pooled), _MAX_AXES // 8))
    q = torch.from_numpy(start).to(pooled)
    for _ in range(2):  # subspace iteration; any orthonormal set gives a bound
        q = torch.linalg.qr(pooled.T @ q).Q
        q = pooled @ q
    return torch.linalg.qr(pooled.T @ q).Q.T


def _best_coupling(
    clouds: PointClouds, directions: Float[torch.Tensor, "k d"], costs: Float[torch.Tensor, " k"]
) -> tuple[float, np.ndarray | sp.coo_array | None, str]:
    """Return the cheapest of the pairing and the couplings along the lines of largest cost."""
    best = (clouds.pairing_cost, clouds.pairing, "pairing")
    for k in costs.argsort(descending=True)[:_MAX_COUPLINGS].tolist():
        plan = _line_coupling(clouds, directions[k : k + 1])
        cost = (
            clouds.permutation_cost(plan)
            if isinstance(plan, np.ndarray)
            else clouds.plan_cost(plan)
        )
        if cost < best[0]:
            best = (cost, plan, "line")
    return best


def _line_coupling(
    clouds: PointClouds, direction: Float[torch.Tensor, "1 d"]
) -> Int[np.ndarray, " n"] | sp.coo_array:
    """Return the optimal coupling of the projections, a permutation if the clouds are paired."""
    if clouds.pairing is None:
        return couple_along(clouds, direction, clouds.a, clouds.b)
    order_x, order_y = (along[0].argsort().cpu().numpy() for along in clouds.project(direction))
    permutation = np.empty(len(order_x), dtype=np.int64)
    permutation[order_x] = order_y
    return permutation


def _error_of_root_mean(costs: Float[torch.Tensor, " k"]) -> float | None:
    """Return the standard error of the root mean of independent costs, by the delta method."""
    if len(costs) < 2 or not float(costs.mean()) > 0:
        return None
    error_of_mean = float(costs.std()) / math.sqrt(len(costs))
    return error_of_mean / (2 * math.sqrt(float(costs.mean())))
