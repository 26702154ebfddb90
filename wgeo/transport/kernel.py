"""The Gibbs kernel of entropic transport, a block of rows at a time: no n x m matrices.

With centered points, ``C_ij = ||x_i||^2 + ||y_j||^2 - 2 x_i.y_j``. A whole Sinkhorn iteration takes
one matrix product and one exponential per pair: the row potentials of a block are exact once its
rows are summed, so its part of the column masses comes from the same exponentials.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Iterator
from contextlib import ContextDecorator
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from jaxtyping import Float, Int

from ..runtime import processes
from ..runtime.memory import block_entries, halve_blocks_on_oom
from ..runtime.threads import raise_if_interrupted
from .point_clouds import PointClouds

# Entries of a block: few enough for a core's cache, and enough to fill a GPU.
BLOCK_ENTRIES = {"cpu": 1 << 18, "cuda": 1 << 26}
_MIN_ROWS = 32
_NEGLIGIBLE = 1e-12  # fraction of a row's weight below which entries are left out of a sparse plan
# Largest number of entries of x.y^T that is stored between passes: 128 MiB, or 1 GiB on a GPU. This
# makes an iteration nearly two times faster at d = 64, and six times faster at d = 512.
STORED_ENTRIES = {"cpu": 1 << 24, "cuda": 1 << 27}


@dataclass(frozen=True, eq=False)
class PlanSummary:
    """Costs and marginals of an entropic plan, in float64.

    Attributes
    ----------
    cost : float
        Centered cost of the plan with its columns scaled down (`Kernel.round_plan`).
    missing_x, missing_y : Tensor, (n,), (m,)
        Mass that is missing from the rows and columns of that plan; both have equal sums up to
        rounding.
    entropic_cost : float
        Centered cost of the plan itself, whose column marginal is not exact.
    row_error, column_error : float
        L1 distance of the plan's marginals from a and b.
    heaviest, heaviest_mass : Tensor of int, (n,), Tensor, (n,)
        Column with the largest mass in each row, and that mass.
    """

    cost: float
    missing_x: Float[torch.Tensor, " n"]
    missing_y: Float[torch.Tensor, " m"]
    entropic_cost: float
    row_error: float
    column_error: float
    heaviest: Int[torch.Tensor, " n"]
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

    `reused` means that more passes over the same clouds follow, in this kernel or another, so that
    the products of a small problem are worth storing.
    """

    clouds: PointClouds
    dtype: torch.dtype = torch.float64
    reused: bool = True

    @cached_property
    def columns(self) -> Float[torch.Tensor, "d m"]:
        return self.clouds.centered_y(self.dtype).T

    def _slices(self, width: int) -> Iterator[slice]:
        """Yield slices of this process's rows whose blocks have `width` columns."""
        shard = processes.shard(len(self.clouds.x))
        size = block_entries(BLOCK_ENTRIES.get(self.clouds.x.device.type, BLOCK_ENTRIES["cpu"]))
        step = max(block_entries(_MIN_ROWS), size // width)
        for i in range(shard.start, shard.stop, step):
            raise_if_interrupted()
            yield slice(i, min(i + step, shard.stop))

    def _blocks(
        self, scale: float, bias: Float[torch.Tensor, " m"]
    ) -> Iterator[tuple[slice, Float[torch.Tensor, "rows m"]]]:
        """Yield ``scale * x_i.y_j + bias_j`` for blocks of rows i; each overwrites the last."""
        n, m, kind = len(self.clouds.x), len(self.clouds.y), self.clouds.x.device.type
        stored = self.reused and n * m <= block_entries(
            STORED_ENTRIES.get(kind, STORED_ENTRIES["cpu"])
        )
        bias = bias.to(self.dtype)
        buffer = None
        for rows in self._slices(m):
            if buffer is None:
                buffer = bias.new_empty((rows.stop - rows.start, m))
            out = buffer[: rows.stop - rows.start]
            if stored:
                products = self.clouds.products[rows].to(self.dtype)
                torch.add(bias, products, alpha=scale, out=out)
            else:
                left = (self.clouds.centered_rows_x(rows, torch.float64) * scale).to(self.dtype)
                torch.addmm(bias, left, self.columns, out=out)
            yield rows, out

    def softmin(
        self, g: Float[torch.Tensor, " m"], eps: float
    ) -> tuple[Float[torch.Tensor, " n"], Float[torch.Tensor, " m"]]:
        r"""Return ``f_i = -eps log sum_j b_j exp((g_j - C_ij)/eps)`` and the column log ratio.

        The log ratio is ``log(column mass / b_j)`` of the plan with potentials f, g: 0 if the
        column marginal is exact. ``g - eps * log_ratio`` completes the Sinkhorn iteration. Rows of
        that plan sum to a_i exactly.
        """
        clouds = self.clouds
        bias = clouds.b.log() + (g - clouds.norms_y) / eps

        @halve_blocks_on_oom
        def local_part() -> tuple[torch.Tensor, torch.Tensor]:
            f, mass = torch.zeros_like(clouds.a), torch.zeros_like(clouds.b)
            for rows, scores in self._blocks(2 / eps, bias):
                top = scores.amax(1, keepdim=True)
                scores.sub_(top).exp_()
                total = scores.sum(1)
                f[rows] = clouds.norms_x[rows] - eps * (top[:, 0].double() + total.double().log())
                mass += (clouds.a[rows].to(self.dtype) / total) @ scores
            return f, mass

        f, mass = map(processes.all_reduce_sum, local_part())
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
        points = clouds.y[underflown].double() - clouds.center_y
        bias = clouds.a.log() + (f - clouds.norms_x) / eps

        @halve_blocks_on_oom
        def local_part() -> torch.Tensor:
            total = torch.full_like(clouds.b[underflown], -torch.inf)
            for rows in self._slices(len(underflown)):
                scores = (
                    clouds.centered_rows_x(rows, torch.float64) @ points.T * (2 / eps)
                    + bias[rows, None]
                )
                total = torch.logaddexp(total, scores.logsumexp(0))
            return total

        ratio[underflown] = _log_sum(local_part()) + (g - clouds.norms_y)[underflown] / eps
        return ratio

    def c_transform(self, g: Float[torch.Tensor, " m"]) -> Float[torch.Tensor, " n"]:
        """Return ``f_i = min_j C_ij - g_j``, the largest f that is feasible with g."""

        @halve_blocks_on_oom
        def local_part() -> torch.Tensor:
            f = torch.zeros_like(self.clouds.a)
            for rows, scores in self._blocks(2.0, g - self.clouds.norms_y):
                f[rows] = self.clouds.norms_x[rows] - scores.amax(1).double()
            return f

        return processes.all_reduce_sum(local_part())

    def _conditional_plan(
        self,
        scores: Float[torch.Tensor, "rows m"],
        rows: slice,
        f: Float[torch.Tensor, " n"],
        eps: float,
    ) -> Float[torch.Tensor, "rows m"]:
        """Turn scores into P_ij / a_i, in place.

        The scores are ``2 x_i.y_j / eps + log b_j + (g_j - ||y_j||^2) / eps``.
        """
        shift = (f[rows] - self.clouds.norms_x[rows]) / eps
        return scores.add_(shift[:, None]).exp_()

    def round_plan(
        self,
        f: Float[torch.Tensor, " n"],
        g: Float[torch.Tensor, " m"],
        log_ratio: Float[torch.Tensor, " m"],
        eps: float,
    ) -> PlanSummary:
        """Compute the summary from which the entropic plan is rounded, without storing the plan.

        Columns with too much mass are scaled down (Altschuler, Weed, Rigollet 2017, Algorithm 2;
        here no row has too much). `rounding.couple_in_order` then couples the missing mass.
        """
        clouds = self.clouds
        column_scale = (-log_ratio).clamp(max=0).exp()
        bias = clouds.b.log() + (g - clouds.norms_y) / eps
        zero = torch.zeros_like(clouds.b)

        @halve_blocks_on_oom
        def local_part() -> tuple[torch.Tensor, ...]:
            row_mass, plain_mass, heaviest_mass = clouds.a.new_zeros(3, len(clouds.a))
            heaviest = torch.zeros_like(clouds.a, dtype=torch.int64)
            costs = clouds.a.new_zeros(2)
            for rows, dots in self._blocks(1.0, zero):
                scores = (dots * (2 / eps)).add_(bias)
                plan = self._conditional_plan(scores, rows, f, eps).mul_(clouds.a[rows, None])
                heaviest_mass[rows], heaviest[rows] = plan.max(1)
                plain_mass[rows], row_mass[rows] = plan.sum(1), plan @ column_scale
                costs_ij = plan.mul_(dots.mul_(-2).add_(clouds.norms_y))
                norms = clouds.norms_x[rows]
                costs[0] += plain_mass[rows] @ norms + costs_ij.sum()
                costs[1] += row_mass[rows] @ norms + (costs_ij @ column_scale).sum()
            return row_mass, plain_mass, heaviest_mass, heaviest, costs

        row_mass, plain_mass, heaviest_mass, heaviest, costs = map(
            processes.all_reduce_sum, local_part()
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
        """Return the entries of the plan that `round_plan` summarizes, with columns scaled down.

        Entries below a fraction `_NEGLIGIBLE` of their row's weight are left out; None if more than
        `limit` entries remain.
        """
        clouds = self.clouds
        bias = clouds.b.log() + (g - clouds.norms_y) / eps + (-log_ratio).clamp(max=0)

        @halve_blocks_on_oom
        def local_part() -> tuple[list[PlanEntries], int]:
            parts, count = [], 0
            for rows, dots in self._blocks(1.0, torch.zeros_like(clouds.b)):
                plan = self._conditional_plan((dots * (2 / eps)).add_(bias), rows, f, eps)
                i, j = (plan > _NEGLIGIBLE).nonzero(as_tuple=True)
                count += len(i)
                if count > limit:
                    return [], count
                mass = plan[i, j] * clouds.a[rows][i]
                costs = clouds.norms_x[rows][i] + clouds.norms_y[j] - 2 * dots[i, j]
                indices = (i.cpu().numpy() + rows.start, j.cpu().numpy())
                parts.append(PlanEntries(*indices, mass.cpu().numpy(), float(mass @ costs)))
            return parts, count

        parts, count = local_part()
        if sum(processes.all_gather(count)) > limit:
            return None
        return PlanEntries.joined([part for parts in processes.all_gather(parts) for part in parts])

    def apply_plan(
        self, f: Float[torch.Tensor, " n"], g: Float[torch.Tensor, " m"], eps: float
    ) -> tuple[Float[torch.Tensor, "n d"], Float[torch.Tensor, "m d"]]:
        """Return ``P y`` and ``P^T x`` of the plan P with potentials f, g, for gradients."""
        clouds = self.clouds
        bias = clouds.b.log() + (g - clouds.norms_y) / eps

        @halve_blocks_on_oom
        def local_part() -> tuple[torch.Tensor, torch.Tensor]:
            onto_x, onto_y = (
                torch.zeros_like(z, dtype=torch.float64) for z in (clouds.x, clouds.y)
            )
            for rows, scores in self._blocks(2 / eps, bias):
                plan = self._conditional_plan(scores, rows, f, eps).mul_(clouds.a[rows, None])
                onto_x[rows] = (plan @ self.columns.T).double()
                onto_y += plan.T @ clouds.centered_rows_x(rows, self.dtype)
            return onto_x, onto_y

        onto_x, onto_y = map(processes.all_reduce_sum, local_part())
        return onto_x, onto_y


def _log_sum(logs: Float[torch.Tensor, " k"]) -> Float[torch.Tensor, " k"]:
    """Return ``log sum exp`` over the processes, shifted by the maximum to avoid overflow."""
    top = processes.all_reduce_max(logs.clone())
    base = torch.where(top.isfinite(), top, 0.0)
    return base + processes.all_reduce_sum((logs - base).exp()).log()


class _FullPrecision(ContextDecorator):
    """Disable TF32: its 10-bit mantissa is too coarse for costs, which are differences.

    The setting is global to the process. If several threads use this context, the first saves the
    setting and the last restores it.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._depth = 0
        self._before = "highest"

    def __enter__(self) -> None:
        with self._lock:
            if self._depth == 0:
                self._before = torch.get_float32_matmul_precision()
                torch.set_float32_matmul_precision("highest")
            self._depth += 1

    def __exit__(self, *_: object) -> None:
        with self._lock:
            self._depth -= 1
            if self._depth == 0:
                torch.set_float32_matmul_precision(self._before)


full_precision = _FullPrecision()
