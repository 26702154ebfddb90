"""Weighted point clouds, alone and in pairs, as all solvers use them.

Centering both clouds changes W2^2 by a known amount and keeps optimal couplings optimal:
``W2^2(x, y) = ||mean x - mean y||^2 + W2^2(x - mean x, y - mean y)``. Inner products of centered
points are smaller, and so are their rounding errors.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int

from ..runtime.memory import block_entries
from .result import Status, TransportResult
from .tiles import STORED_ENTRIES, chunks, per_device, store_products

UNIT_ROUNDOFF = float(np.finfo(np.float64).eps) / 2  # of float64
DIRECTION_POINTS = 512  # points of each cloud from which the directions are computed
_SUBSPACE_ITERATIONS = 4
_FACTOR_ENTRIES = 1 << 23  # entries of points in float64 factored at a time: 64 MiB

_NOT_COPIED = (np.float32, np.float64)  # dtypes that `as_points` does not convert

_Key = tuple[torch.device, torch.dtype, int, tuple[int, ...], tuple[int, ...]]


@dataclass(frozen=True, eq=False)
class WeightedPoints:
    """A cloud of weighted points; its center and norms are computed at first use."""

    points: Float[torch.Tensor, "n d"]  # as given; float64 copies are made of a few rows at a time
    weights: Float[torch.Tensor, " n"]  # in float64, with sum 1

    @classmethod
    def of(cls, points: torch.Tensor, weights: np.ndarray | None = None) -> WeightedPoints:
        """Return the cloud, uniform by default; inside `shared_statistics`, a shared one if any."""
        if weights is None:
            shared = _shared.get(_key(points))
            if shared is not None:
                return shared
            n = len(points)
            uniform = torch.full((n,), 1.0 / n, dtype=torch.float64, device=points.device)
            return cls(points, uniform)
        return cls(points, torch.from_numpy(weights).to(points.device))

    @cached_property
    def center(self) -> Float[torch.Tensor, " d"]:
        """The weighted mean."""
        return self._weighted_sum(self.weights.new_zeros(self.points.shape[1]))

    @cached_property
    def rounding_of_center(self) -> Float[torch.Tensor, " d"]:
        """The weighted mean of the centered points: zero, up to rounding."""
        return self._weighted_sum(self.center)

    @cached_property
    def norms(self) -> Float[torch.Tensor, " n"]:
        """||x_i - center||^2."""
        rows = centered_rows(self.points, self.center)
        return torch.cat([part.square_().sum(1) for _, part in rows])

    @cached_property
    def total_variance(self) -> Float[torch.Tensor, ""]:
        """tr cov, the weighted mean of `norms`."""
        return self.weights @ self.norms

    def factor(self) -> Float[torch.Tensor, "r d"]:
        """Return R with at most d rows such that R^T R is the covariance; it may be large."""
        d = self.points.shape[1]
        factor, least = self.center.new_empty((0, d)), max(_FACTOR_ENTRIES // d, d)
        for rows, part in centered_rows(self.points, self.center, least=least):
            factor = torch.cat([factor, part * self.weights[rows].sqrt()[:, None]])
            if len(factor) > d:
                factor = torch.linalg.qr(factor, mode="r").R
        return factor

    def centered(
        self, dtype: torch.dtype, rows: slice | None = None
    ) -> Float[torch.Tensor, "rows d"]:
        """Return centered rows (by default all), rounded to `dtype` after centering."""
        if rows is not None:
            return (self.points[rows].double() - self.center).to(dtype)
        out = torch.empty(self.points.shape, dtype=dtype, device=self.points.device)
        for some, part in centered_rows(self.points, self.center):  # few in float64 at a time
            out[some] = part
        return out

    def project(self, directions: Float[torch.Tensor, "k d"]) -> Float[torch.Tensor, "k n"]:
        """Return the centered points' coordinates along each row of `directions`."""
        parts = [part @ directions.T for _, part in centered_rows(self.points, self.center)]
        return torch.cat(parts).T.contiguous()

    def _weighted_sum(self, center: Float[torch.Tensor, " d"]) -> Float[torch.Tensor, " d"]:
        """Return sum_i w_i (x_i - center), in float64."""
        total = torch.zeros_like(center)
        for rows, part in centered_rows(self.points, center):
            total += self.weights[rows] @ part
        return total


_shared: dict[_Key, WeightedPoints] = {}


@contextmanager
def shared_statistics(clouds: Iterable[Float[np.ndarray, "_ d"]]) -> Iterator[None]:
    """Let all problems inside the block use the same `WeightedPoints` of each cloud.

    This holds for problems with uniform weights on the CPU, in all threads. The clouds must not
    change meanwhile. Clouds that `as_points` would copy, such as read-only ones, are not shared.
    """
    held = [
        WeightedPoints.of(torch.from_numpy(cloud))
        for cloud in clouds
        if cloud.flags.writeable
        and cloud.flags.c_contiguous
        and min(cloud.strides) >= 0
        and cloud.dtype in _NOT_COPIED
    ]
    entries = {_key(cloud.points): cloud for cloud in held}
    _shared.update(entries)
    try:
        yield
    finally:  # no later call may use them, even if a stored error or a thread still refers to them
        for key, cloud in entries.items():
            if _shared.get(key) is cloud:
                del _shared[key]


def _key(x: torch.Tensor) -> _Key:
    """Return a key of a tensor's contents, valid while its memory is in use and unchanged."""
    return x.device, x.dtype, x.data_ptr(), tuple(x.shape), tuple(x.stride())


def centered_rows(
    x: torch.Tensor, center: torch.Tensor, index: torch.Tensor | None = None, least: int = 1
) -> Iterator[tuple[slice, Float[torch.Tensor, "rows d"]]]:
    """Yield float64 rows of x, or of ``x[index]``, minus `center`, `least` or more at a time."""
    for rows in chunks(len(x), x.shape[1], x.device, least):
        yield rows, x[rows if index is None else index[rows]].double() - center


@dataclass(frozen=True, eq=False)
class PointClouds:
    """Two weighted point clouds on one device.

    `x` and `y` are the points as given, (n, d) and (m, d), and `a` and `b` their weights. Norms,
    products, `radius` and `total_variance` are those of the centered points. The costs of pairs,
    permutations and plans are those of the points as given, unless a shift is subtracted.

    `pairing` is the given permutation, or by default the identity; it is None for clouds of
    different sizes or with weights. `integer_masses` are proportional to the weights: whole numbers
    for clouds without weights, or the summed masses of merged points (`plans.Merged`).
    """

    source: WeightedPoints
    target: WeightedPoints
    pairing: Int[np.ndarray, " n"] | None = None
    integer_masses: tuple[Float[np.ndarray, " n"], Float[np.ndarray, " m"]] | None = None

    @classmethod
    def of(
        cls,
        x: torch.Tensor,
        y: torch.Tensor,
        a: np.ndarray | None = None,
        b: np.ndarray | None = None,
        coupling: np.ndarray | None = None,
        device: torch.device | None = None,
    ) -> PointClouds:
        """Return the problem that a solver's arguments describe (`entry.Solver`), on `device`."""
        device = x.device if device is None else device
        x, y = x.detach().to(device), y.detach().to(device)
        pairing = integer_masses = None
        if a is None and b is None:
            n, m, common = len(x), len(y), math.gcd(len(x), len(y))
            integer_masses = np.full(n, m / common), np.full(m, n / common)
            if n == m:
                pairing = np.arange(n) if coupling is None else coupling
        return cls(WeightedPoints.of(x, a), WeightedPoints.of(y, b), pairing, integer_masses)

    @property
    def x(self) -> Float[torch.Tensor, "n d"]:
        return self.source.points

    @property
    def y(self) -> Float[torch.Tensor, "m d"]:
        return self.target.points

    @property
    def a(self) -> Float[torch.Tensor, " n"]:
        return self.source.weights

    @property
    def b(self) -> Float[torch.Tensor, " m"]:
        return self.target.weights

    @property
    def masses(self) -> tuple[Float[np.ndarray, " n"], Float[np.ndarray, " m"]]:
        """Masses proportional to the weights: if possible, whole numbers with exact sums."""
        if self.integer_masses is None:
            return self.a.cpu().numpy(), self.b.cpu().numpy()
        return self.integer_masses

    @property
    def transposed(self) -> PointClouds:
        """The problem from y to x, without the pairing."""
        return PointClouds(self.target, self.source)

    @property
    def self_problems(self) -> tuple[PointClouds, PointClouds]:
        """The problems of each cloud with itself, which debiasing needs."""
        return PointClouds(self.source, self.source), PointClouds(self.target, self.target)

    @cached_property
    def offset(self) -> Float[torch.Tensor, " d"]:
        """Difference of the two centers."""
        return self.source.center - self.target.center

    @cached_property
    def translation_cost(self) -> float:
        """Part of W2^2 that centering removes, corrected for the rounding of the centers."""
        remainder = self.source.rounding_of_center - self.target.rounding_of_center
        return float(self.offset @ self.offset + 2 * self.offset @ remainder)

    @cached_property
    def total_variance(self) -> float:
        """tr cov x + tr cov y, which is the centered cost of the product coupling."""
        return float(self.source.total_variance + self.target.total_variance)

    @cached_property
    def pairing_cost(self) -> float:
        """Cost of the pairing p, mean ||x_i - y_p(i)||^2; infinite without a pairing."""
        return np.inf if self.pairing is None else self.permutation_cost(self.pairing)

    @cached_property
    def radius(self) -> float:
        """Largest ||x_i|| + largest ||y_j||, centered: no centered cost exceeds its square."""
        return float(self.source.norms.max().sqrt() + self.target.norms.max().sqrt())

    @cached_property
    def products(self) -> Float[torch.Tensor, "n m"] | None:
        """All x_i.y_j of the centered points; None if there are too many to be stored."""
        if len(self.x) * len(self.y) > block_entries(per_device(STORED_ENTRIES, self.x.device)):
            return None
        return store_products(*self.centered(torch.float64))

    @property
    def rounding(self) -> float:
        """Bound on the float64 error of a centered cost plus that of `translation_cost`."""
        terms = 2 * (self.x.shape[1] + 16) * self.radius**2 + 16 * abs(self.translation_cost)
        return UNIT_ROUNDOFF * terms

    def pair_costs(
        self,
        i: Int[np.ndarray, " k"],
        j: Int[np.ndarray, " k"],
        shift: Float[torch.Tensor, " d"] | None = None,
        scale: float = 1.0,
    ) -> Float[torch.Tensor, " k"]:
        """Return ``||x_i - y_j - shift||^2 scale^2`` of pairs, from differences in float64."""
        device, out = self.x.device, self.a.new_empty(len(i))
        # One copy to the device, because each copy waits for all earlier work there.
        rows_x, rows_y = torch.from_numpy(np.stack((i, j))).to(device)
        for part in chunks(len(i), self.x.shape[1], device):
            difference = self.x.index_select(0, rows_x[part]).double()
            difference -= self.y.index_select(0, rows_y[part])
            if shift is not None:
                difference -= shift
            difference *= scale  # before squares could overflow
            out[part] = difference.square_().sum(1)
        return out

    def permutation_cost(self, permutation: Int[np.ndarray, " n"]) -> float:
        """Return mean ||x_i - y_p(i)||^2, from differences in float64."""
        return float(self.pair_costs(np.arange(len(permutation)), permutation).mean())

    def plan_cost(self, plan: Any, *, centered: bool = False) -> float:
        """Return sum P_ij ||x_i - y_j||^2 of a sparse plan, from differences in float64."""
        plan = plan.tocoo()
        i, j = plan.coords
        costs = self.pair_costs(i, j, self.offset if centered else None)
        return float((torch.from_numpy(plan.data).to(costs) * costs).sum())

    def marginal_error(self, plan: Any) -> float:
        """Return the L1 distance of a sparse plan's marginals from the weights."""
        return sum(
            float(abs(plan.sum(axis) - w.cpu().numpy()).sum())
            for axis, w in ((1, self.a), (0, self.b))
        )

    @property
    def relative_rounding(self) -> float:
        """Bound on the relative float64 error of a sum of squared differences."""
        return (self.x.shape[1] + 64) * UNIT_ROUNDOFF

    def centered(
        self, dtype: torch.dtype
    ) -> tuple[Float[torch.Tensor, "n d"], Float[torch.Tensor, "m d"]]:
        """Return all points of both clouds, centered."""
        return self.source.centered(dtype), self.target.centered(dtype)

    def project(
        self, directions: Float[torch.Tensor, "k d"]
    ) -> tuple[Float[torch.Tensor, "k n"], Float[torch.Tensor, "k m"]]:
        """Return the coordinates of both centered clouds along each row of `directions`."""
        return self.source.project(directions), self.target.project(directions)

    def original_potentials(
        self, f: Float[torch.Tensor, " n"], g: Float[torch.Tensor, " m"]
    ) -> tuple[np.ndarray, np.ndarray]:
        """Return feasible potentials of the clouds as given, from those of the centered clouds.

        A bound on rounding is subtracted, so that f_i + g_j <= ||x_i - y_j||^2 holds exactly.
        """
        slack = self.rounding + 8 * UNIT_ROUNDOFF * float(f.abs().max() + g.abs().max())
        along_x, along_y = self.project(self.offset[None])
        f = f + 2 * along_x[0] + self.offset @ self.offset - slack
        return f.cpu().numpy(), (g - 2 * along_y[0]).cpu().numpy()

    def result(
        self,
        *,
        lower: float,
        upper: float,
        cost: float | None = None,
        solver: str,
        seconds: float,
        tolerance: float = 1e-6,
        **fields: Any,
    ) -> TransportResult:
        """Return the result for bounds `lower` and `upper` on W2^2.

        `lower` must already allow for rounding; `upper` is increased here by the rounding error of
        a cost. `cost` is `upper` by default; a given cost is clipped to the interval.
        """
        low = float(np.sqrt(max(lower, 0.0)))
        high = float(np.sqrt(upper * (1 + self.relative_rounding)))
        low = min(low, high)
        certified = high - low <= tolerance * high
        clipped = upper if cost is None else min(max(cost, low**2), high**2)
        return TransportResult(
            cost=clipped,
            lower=low,
            upper=high,
            status=Status.CERTIFIED if certified else Status.BOUNDED,
            solver=solver,
            seconds=seconds,
            **fields,
        )


def principal_directions(
    x: Float[torch.Tensor, "n d"], y: Float[torch.Tensor, "m d"], count: int
) -> Float[torch.Tensor, "d count"]:
    """Approximate the leading principal directions of two clouds by subspace iteration."""
    samples = x[:DIRECTION_POINTS], y[:DIRECTION_POINTS]
    generator = torch.Generator().manual_seed(0)
    v = torch.randn(x.shape[1], count, generator=generator, dtype=x.dtype).to(x.device)
    for _ in range(_SUBSPACE_ITERATIONS):
        v = torch.linalg.qr(sum(z.T @ (z @ v) for z in samples)).Q
    return torch.linalg.qr(v.double()).Q
