"""The two point clouds of a transport problem, centered, with weights and a known coupling.

Centering both clouds changes W2^2 by a known amount and does not change which coupling is optimal:
``W2^2(x, y) = ||mean x - mean y||^2 + W2^2(x - mean x, y - mean y)``. It makes inner products
smaller, and thus their rounding errors.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
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


@dataclass(frozen=True, eq=False)
class PointClouds:
    """Two weighted point clouds on one device; costs refer to the centered points.

    Attributes
    ----------
    x, y : Tensor, (n, d), (m, d)
        As given; float64 copies are made of a few rows at a time.
    a, b : Tensor of float64, (n,), (m,)
        Weights, each summing to 1.
    pairing : ndarray of int, (n,), or None
        A feasible permutation: the given one, or by default row i with row i; None for clouds of
        different sizes or with weights.
    integer_masses : tuple of ndarray, (n,), (m,), or None
        Whole numbers proportional to the weights, if the clouds were given without weights.
    """

    x: Float[torch.Tensor, "n d"]
    y: Float[torch.Tensor, "m d"]
    a: Float[torch.Tensor, " n"]
    b: Float[torch.Tensor, " m"]
    pairing: Int[np.ndarray, " n"] | None
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
        """Return the problem given by a solver's arguments (see `entry.Solver`), on `device`."""
        device = x.device if device is None else device
        x, y = x.detach().to(device), y.detach().to(device)
        pairing = integer_masses = None
        if a is None and b is None:
            n, m, common = len(x), len(y), math.gcd(len(x), len(y))
            integer_masses = np.full(n, m / common), np.full(m, n / common)
            if n == m:
                pairing = np.arange(n) if coupling is None else coupling
        weights = [
            torch.full((len(z),), 1.0 / len(z), dtype=torch.float64, device=device)
            if w is None
            else torch.from_numpy(w).to(device)
            for z, w in ((x, a), (y, b))
        ]
        return cls(x, y, weights[0], weights[1], pairing, integer_masses)

    @property
    def masses(self) -> tuple[Float[np.ndarray, " n"], Float[np.ndarray, " m"]]:
        """Masses proportional to the weights; whole numbers, whose sums are exact, if known."""
        return (
            (self.a.cpu().numpy(), self.b.cpu().numpy())
            if self.integer_masses is None
            else self.integer_masses
        )

    @property
    def transposed(self) -> PointClouds:
        """The problem from y to x, without the pairing."""
        return PointClouds(self.y, self.x, self.b, self.a, None)

    @property
    def self_problems(self) -> tuple[PointClouds, PointClouds]:
        """The problems of each cloud with itself, which debiasing needs."""
        return (
            PointClouds(self.x, self.x, self.a, self.a, None),
            PointClouds(self.y, self.y, self.b, self.b, None),
        )

    @cached_property
    def center_x(self) -> Float[torch.Tensor, " d"]:
        return _weighted_sum(self.x, self.a)

    @cached_property
    def center_y(self) -> Float[torch.Tensor, " d"]:
        return _weighted_sum(self.y, self.b)

    @cached_property
    def norms_x(self) -> Float[torch.Tensor, " n"]:
        """||x_i - center||^2."""
        return _norms(self.x, self.center_x)

    @cached_property
    def norms_y(self) -> Float[torch.Tensor, " m"]:
        """||y_j - center||^2."""
        return _norms(self.y, self.center_y)

    @cached_property
    def offset(self) -> Float[torch.Tensor, " d"]:
        """Difference of the two centers."""
        return self.center_x - self.center_y

    @cached_property
    def translation_cost(self) -> float:
        """Part of W2^2 that centering removes; exact even if the centers are rounded means."""
        remainder = _weighted_sum(self.x, self.a, self.center_x)
        remainder -= _weighted_sum(self.y, self.b, self.center_y)
        return float(self.offset @ self.offset + 2 * self.offset @ remainder)

    @cached_property
    def total_variance(self) -> float:
        """tr cov x + tr cov y: the centered cost of the product coupling, an upper bound."""
        return float(self.a @ self.norms_x + self.b @ self.norms_y)

    @cached_property
    def pairing_cost(self) -> float:
        """Cost of the pairing, mean ||x_i - y_c(i)||^2 from differences; infinite without one."""
        return np.inf if self.pairing is None else self.permutation_cost(self.pairing)

    @cached_property
    def radius(self) -> float:
        """Largest ||x_i|| + largest ||y_j||, centered: no centered cost exceeds its square."""
        return float(self.norms_x.max().sqrt() + self.norms_y.max().sqrt())

    @cached_property
    def products(self) -> Float[torch.Tensor, "n m"] | None:
        """x_i.y_j of the centered points; None if they are too many to be stored."""
        if len(self.x) * len(self.y) > block_entries(per_device(STORED_ENTRIES, self.x.device)):
            return None
        return store_products(self.centered_x(torch.float64), self.centered_y(torch.float64))

    @property
    def rounding(self) -> float:
        """Bound on the float64 error of a cost (d + 4 terms) and of `translation_cost`."""
        terms = 2 * (self.x.shape[1] + 16) * self.radius**2 + 16 * abs(self.translation_cost)
        return UNIT_ROUNDOFF * terms

    def pair_costs(
        self,
        i: Int[np.ndarray, " k"],
        j: Int[np.ndarray, " k"],
        shift: Float[torch.Tensor, " d"] | float = 0.0,
        scale: float = 1.0,
    ) -> Float[torch.Tensor, " k"]:
        """Return ``||x_i - y_j - shift||^2 scale^2`` of pairs, from differences in float64."""
        device, out = self.x.device, self.a.new_empty(len(i))
        # One copy to the device, as each waits for all earlier work there.
        rows_x, rows_y = torch.from_numpy(np.stack((i, j))).to(device)
        for part in chunks(len(i), self.x.shape[1], device):
            xs, ys = self.x[rows_x[part]].double(), self.y[rows_y[part]].double()
            out[part] = xs.sub_(ys).sub_(shift).mul_(scale).square_().sum(1)
        return out

    def permutation_cost(self, permutation: Int[np.ndarray, " n"]) -> float:
        """Return mean ||x_i - y_p(i)||^2, from differences in float64."""
        return float(self.pair_costs(np.arange(len(permutation)), permutation).mean())

    def plan_cost(self, plan: Any, *, centered: bool = False) -> float:
        """Return sum P_ij ||x_i - y_j||^2 of a sparse plan, from differences in float64."""
        plan = plan.tocoo()
        i, j = plan.coords
        costs = self.pair_costs(i, j, self.offset if centered else 0.0)
        return float((torch.from_numpy(plan.data).to(costs) * costs).sum())

    def marginal_error(self, plan: Any) -> float:
        """Return the L1 distance of a sparse plan's marginals from the weights.

        They can be corrected by moving at most that much mass.
        """
        return sum(
            float(abs(plan.sum(axis) - w.cpu().numpy()).sum())
            for axis, w in ((1, self.a), (0, self.b))
        )

    @property
    def relative_rounding(self) -> float:
        """Bound on the relative float64 error of a sum of squared differences."""
        return (self.x.shape[1] + 64) * UNIT_ROUNDOFF

    def centered_rows_x(self, rows: slice, dtype: torch.dtype) -> Float[torch.Tensor, "rows d"]:
        """Return some centered rows of x, rounded once, after centering."""
        return (self.x[rows].double() - self.center_x).to(dtype)

    def centered_x(self, dtype: torch.dtype) -> Float[torch.Tensor, "n d"]:
        """Return all centered rows of x."""
        return _all_centered_rows(self.x, self.center_x, dtype)

    def centered_y(self, dtype: torch.dtype) -> Float[torch.Tensor, "m d"]:
        """Return all centered rows of y."""
        return _all_centered_rows(self.y, self.center_y, dtype)

    def project(
        self, directions: Float[torch.Tensor, "k d"]
    ) -> tuple[Float[torch.Tensor, "k n"], Float[torch.Tensor, "k m"]]:
        """Return coordinates of both centered clouds along each row of `directions`."""
        xs = [part @ directions.T for _, part in centered_rows(self.x, self.center_x)]
        ys = [part @ directions.T for _, part in centered_rows(self.y, self.center_y)]
        return torch.cat(xs).T.contiguous(), torch.cat(ys).T.contiguous()

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
        """Return the result for bounds of W2^2; the caller has subtracted `rounding` from `lower`.

        The rounding error of `upper` is added here. `cost` is `upper`, that of a feasible coupling,
        unless given; it is kept in the interval.
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


def centered_rows(
    x: torch.Tensor, center: torch.Tensor, index: torch.Tensor | None = None, least: int = 1
) -> Iterator[tuple[slice, Float[torch.Tensor, "rows d"]]]:
    """Yield float64 rows of x, or of ``x[index]``, minus `center`, `least` or more at a time."""
    for rows in chunks(len(x), x.shape[1], x.device, least):
        yield rows, x[rows if index is None else index[rows]].double() - center


def _norms(x: torch.Tensor, center: torch.Tensor) -> Float[torch.Tensor, " n"]:
    return torch.cat([part.square_().sum(1) for _, part in centered_rows(x, center)])


def _all_centered_rows(
    x: torch.Tensor, center: torch.Tensor, dtype: torch.dtype
) -> Float[torch.Tensor, "n d"]:
    """Return rows minus `center`; only some rows are in float64 at a time."""
    out = torch.empty(x.shape, dtype=dtype, device=x.device)
    for rows, part in centered_rows(x, center):
        out[rows] = part
    return out


def _weighted_sum(
    x: torch.Tensor, weights: torch.Tensor, center: torch.Tensor | None = None
) -> Float[torch.Tensor, " d"]:
    """Return sum_i w_i (x_i - center), in float64."""
    center = x.new_zeros(x.shape[1], dtype=torch.float64) if center is None else center
    total = torch.zeros_like(center)
    for rows, part in centered_rows(x, center):
        total += weights[rows] @ part
    return total
