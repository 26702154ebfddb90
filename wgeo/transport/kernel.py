"""The Gibbs kernel of entropic transport, computed a block of rows at a time.

No n x m matrix is stored, except the products ``x_i.y_j`` of a small problem.

For centered points, ``C_ij = ||x_i||^2 + ||y_j||^2 - 2 x_i.y_j``. A Sinkhorn iteration takes one
matrix product and one exponential per pair: the sums of a block's rows give its row potentials, and
the same exponentials, divided by these sums, give its part of the column masses.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import TypeVar

import numpy as np
import torch
from jaxtyping import Float, Int

from ..runtime import processes
from .point_clouds import PointClouds
from .tiles import TILE_ENTRIES, map_tiles, per_device, products, reduce_tiles

T = TypeVar("T")

_NEGLIGIBLE = 1e-12  # fraction of a row's weight below which entries are left out of a sparse plan


@dataclass(frozen=True, eq=False)
class PlanSummary:
    """Costs and marginals of an entropic plan, and of the *scaled* plan (`Kernel.round_plan`)."""

    cost: float  # centered cost of the scaled plan
    missing_x: Float[torch.Tensor, " n"]  # mass that the scaled plan's rows lack
    missing_y: Float[torch.Tensor, " m"]  # mass that its columns lack, with the same sum
    entropic_cost: float  # centered cost of the entropic plan
    row_error: float  # L1 distance of its row sums from a
    column_error: float  # L1 distance of its column sums from b
    heaviest: Int[torch.Tensor, " n"]  # column with the largest mass in each row
    heaviest_mass: Float[torch.Tensor, " n"]


@dataclass(frozen=True, eq=False)
class PlanEntries:
    """Entries of a plan in the order of its rows, and their centered cost."""

    i: Int[np.ndarray, " k"]
    j: Int[np.ndarray, " k"]
    mass: Float[np.ndarray, " k"]
    cost: float

    @classmethod
    def joined(cls, parts: list[PlanEntries]) -> PlanEntries:
        i, j, mass = (np.concatenate([getattr(p, k) for p in parts]) for k in ("i", "j", "mass"))
        return cls(i, j, mass, math.fsum(part.cost for part in parts))


@dataclass(frozen=True, eq=False)
class Kernel:
    """``exp((f_i + g_j - C_ij) / eps) a_i b_j`` between two clouds, in one precision.

    `reused` means that more passes over these clouds follow, so that products are worth storing.
    """

    clouds: PointClouds
    dtype: torch.dtype = torch.float64
    reused: bool = True

    @cached_property
    def _columns(self) -> Float[torch.Tensor, "m d"]:
        return self.clouds.target.centered(self.dtype)

    def _bias(self, g: Float[torch.Tensor, " m"], eps: float) -> Float[torch.Tensor, " m"]:
        clouds = self.clouds
        return clouds.b.log() + (g - clouds.target.norms) / eps

    def _tiles(
        self,
        work: Callable[[slice, torch.Tensor], T],
        scale: float,
        bias: Float[torch.Tensor, " m"],
    ) -> Iterator[tuple[slice, T]]:
        """Yield ``rows, work(rows, tile)`` for tiles ``scale * x_i.y_j + bias_j`` of rows i."""
        clouds, bias = self.clouds, bias.to(self.dtype)
        stored = clouds.products if self.reused else None

        def fill(rows: slice, out: torch.Tensor) -> torch.Tensor:
            if stored is not None:
                return torch.add(bias, stored[rows].to(self.dtype), alpha=scale, out=out)
            left = clouds.source.centered(self.dtype, rows)
            return products(left, self._columns, bias, scale, out)

        # With stored products, smaller tiles are faster.
        most = per_device(TILE_ENTRIES, bias.device) // (1 if stored is None else 4)
        return map_tiles(work, fill, (len(clouds.x), len(clouds.y)), bias, most)

    def softmin(
        self, g: Float[torch.Tensor, " m"], eps: float
    ) -> tuple[Float[torch.Tensor, " n"], Float[torch.Tensor, " m"]]:
        r"""Return ``f_i = -eps log sum_j b_j exp((g_j - C_ij)/eps)`` and the column log ratio.

        The log ratio is ``log(column mass / b_j)`` of the plan with potentials f, g: 0 if the
        column marginal is exact. ``g - eps * log_ratio`` completes the Sinkhorn iteration. Rows of
        that plan sum to a_i exactly.
        """
        clouds = self.clouds
        bias = self._bias(g, eps)

        def part(rows: slice, scores: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
            top = scores.amax(1, keepdim=True)
            scores.sub_(top).exp_()
            total = scores.sum(1)
            f = clouds.source.norms[rows] - eps * (top[:, 0].double() + total.double().log())
            return f, (scores.T @ (clouds.a[rows].to(self.dtype) / total)).double()

        f, mass = reduce_tiles(self._tiles(part, 2 / eps, bias), len(clouds.x))
        return f, self._log_ratio(mass, f, g, eps)

    def _log_ratio(
        self,
        mass: Float[torch.Tensor, " m"],
        f: Float[torch.Tensor, " n"],
        g: Float[torch.Tensor, " m"],
        eps: float,
    ) -> Float[torch.Tensor, " m"]:
        clouds = self.clouds
        ratio = torch.where(clouds.b > 0, (mass / clouds.b).log(), 0.0)
        underflown = ((mass <= 0) & (clouds.b > 0)).nonzero()[:, 0]
        if len(underflown) == 0:
            return ratio
        # Columns that underflow are summed separately, in the log domain.
        points = clouds.y[underflown].double() - clouds.target.center
        bias, zero = clouds.a.log() + (f - clouds.source.norms) / eps, points.new_zeros(len(points))
        total = torch.full_like(zero, -torch.inf)

        def fill(rows: slice, out: torch.Tensor) -> torch.Tensor:
            left = clouds.source.centered(torch.float64, rows)
            return products(left, points, zero, 2 / eps, out[:, : len(points)])

        def part(rows: slice, scores: torch.Tensor) -> torch.Tensor:
            return scores.add_(bias[rows, None]).logsumexp(0)

        shape = len(clouds.x), max(points.shape)
        for _, log_mass in map_tiles(part, fill, shape, zero):
            total = torch.logaddexp(total, log_mass)
        ratio[underflown] = _log_sum(total) + (g - clouds.target.norms)[underflown] / eps
        return ratio

    def c_transform(self, g: Float[torch.Tensor, " m"]) -> Float[torch.Tensor, " n"]:
        """Return ``f_i = min_j C_ij - g_j``, the largest f that is feasible with g."""
        norms = self.clouds.source.norms

        def part(rows: slice, scores: torch.Tensor) -> tuple[torch.Tensor]:
            return (norms[rows] - scores.amax(1).double(),)

        return reduce_tiles(self._tiles(part, 2.0, g - self.clouds.target.norms), len(norms))[0]

    def _conditional_plan(
        self,
        scores: Float[torch.Tensor, "rows m"],
        rows: slice,
        f: Float[torch.Tensor, " n"],
        eps: float,
    ) -> Float[torch.Tensor, "rows m"]:
        """Turn scores into P_ij / a_i, in place.

        Scores are ``(2 x_i.y_j + g_j - ||y_j||^2) / eps + log b_j``.
        """
        shift = (f[rows] - self.clouds.source.norms[rows]) / eps
        return scores.add_(shift[:, None]).exp_()

    def round_plan(
        self,
        f: Float[torch.Tensor, " n"],
        g: Float[torch.Tensor, " m"],
        log_ratio: Float[torch.Tensor, " m"],
        eps: float,
    ) -> PlanSummary:
        """Return what is needed to round the entropic plan, without storing the plan.

        Columns with too much mass are scaled down (Altschuler, Weed, Rigollet 2017, Algorithm 2);
        no row has too much mass.
        """
        clouds = self.clouds
        column_scale = (-log_ratio).clamp(max=0).exp()
        bias = self._bias(g, eps)

        def part(rows: slice, dots: torch.Tensor) -> tuple[torch.Tensor, ...]:
            scores = (dots * (2 / eps)).add_(bias)
            plan = self._conditional_plan(scores, rows, f, eps).mul_(clouds.a[rows, None])
            heaviest_mass, heaviest = plan.max(1)
            plain_mass, row_mass = plan.sum(1), plan @ column_scale
            costs_ij = plan.mul_(dots.mul_(-2).add_(clouds.target.norms))
            norms = clouds.source.norms[rows]
            plain_cost = plain_mass @ norms + costs_ij.sum()
            cost = row_mass @ norms + (costs_ij @ column_scale).sum()
            costs = torch.stack((plain_cost, cost))
            return row_mass, plain_mass, heaviest_mass, heaviest, costs

        tiles = self._tiles(part, 1.0, torch.zeros_like(clouds.b))
        row_mass, plain_mass, heaviest_mass, heaviest, costs = reduce_tiles(
            tiles, len(clouds.x), by_row=4
        )
        plain_cost, cost = costs.tolist()
        return PlanSummary(
            cost=cost,
            missing_x=(clouds.a - row_mass).clamp_(min=0),
            missing_y=(clouds.b * (1 - log_ratio.exp())).clamp_(min=0),
            entropic_cost=plain_cost,
            row_error=float((plain_mass - clouds.a).abs().sum()),
            column_error=float((clouds.b * log_ratio.expm1()).abs().sum()),
            heaviest=heaviest,
            heaviest_mass=heaviest_mass,
        )

    def entries(
        self,
        f: Float[torch.Tensor, " n"],
        g: Float[torch.Tensor, " m"],
        log_ratio: Float[torch.Tensor, " m"],
        eps: float,
        limit: int,
    ) -> PlanEntries | None:
        """Return the entries of the plan that `round_plan` summarizes; None if more than `limit`.

        Entries of at most `_NEGLIGIBLE` times their row's weight are left out.
        """
        clouds = self.clouds
        bias = self._bias(g, eps) + (-log_ratio).clamp(max=0)

        def part(rows: slice, dots: torch.Tensor) -> PlanEntries | None:
            plan = self._conditional_plan((dots * (2 / eps)).add_(bias), rows, f, eps)
            i, j = (plan > _NEGLIGIBLE).nonzero(as_tuple=True)
            if len(i) > limit:
                return None
            mass = plan[i, j] * clouds.a[rows][i]
            costs = clouds.source.norms[rows][i] + clouds.target.norms[j] - 2 * dots[i, j]
            indices = (i.cpu().numpy() + rows.start, j.cpu().numpy())
            return PlanEntries(*indices, mass.cpu().numpy(), float(mass @ costs))

        parts, count = [], 0
        for _, entries in self._tiles(part, 1.0, torch.zeros_like(clouds.b)):
            count += limit + 1 if entries is None else len(entries.mass)
            if entries is None or count > limit:
                break
            parts.append(entries)
        if sum(processes.all_gather(count)) > limit:
            return None
        return PlanEntries.joined([part for parts in processes.all_gather(parts) for part in parts])

    def apply_plan(
        self, f: Float[torch.Tensor, " n"], g: Float[torch.Tensor, " m"], eps: float
    ) -> tuple[Float[torch.Tensor, "n d"], Float[torch.Tensor, "m d"]]:
        """Return P y and P^T x for the plan P with potentials f, g and the centered points x, y."""
        clouds = self.clouds

        def part(rows: slice, scores: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
            plan = self._conditional_plan(scores, rows, f, eps).mul_(clouds.a[rows, None])
            onto_y = plan.T @ clouds.source.centered(self.dtype, rows)
            return (plan @ self._columns).double(), onto_y.double()

        onto_x, onto_y = reduce_tiles(self._tiles(part, 2 / eps, self._bias(g, eps)), len(clouds.x))
        return onto_x, onto_y


def _log_sum(logs: Float[torch.Tensor, " k"]) -> Float[torch.Tensor, " k"]:
    """Return the log-sum-exp over processes, with the maximum subtracted to avoid overflow."""
    top = processes.all_reduce_max(logs.clone())
    base = torch.where(top.isfinite(), top, 0.0)
    return base + processes.all_reduce_sum((logs - base).exp()).log()
