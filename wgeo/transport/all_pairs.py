"""Dense passes over all pairs, a block at a time: what an exact solver asks of the whole problem.

Duals are kept as labels p_i and q_j of a shortest-path problem: ``q_j <= p_i + c_ij`` for all
pairs makes ``f = -p``, ``g = q`` feasible potentials (Ahuja, Magnanti, Orlin 1993, Section 12.4).
The *slack* of a pair is ``p_i + c_ij - q_j``; a feasible dual has none below zero.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, Int

from ..runtime import processes
from ..runtime.memory import halve_blocks_on_oom
from .geometry import Geometry, PointCloud

_EXPONENTS = (-120.0, 100.0)  # below 2^-126 exponentials take ten times as long; 2^128 overflows
_DENSE = 8  # groups of pairs a column may list, on average, before its list is cut short
_OPEN = 0.25  # share of columns that may stay open where folded points are worth their pass
_SEGMENTS = 1 << 18  # entries of gathered groups at a time

Pairs = list[tuple[np.ndarray, np.ndarray]]


@dataclass(frozen=True, eq=False)
class Violations:
    """What a dense pass proved about labels p, q.

    Attributes
    ----------
    loss : ndarray, (m,)
        ``q - loss`` is feasible with p, all rounding accounted for.
    i, j : ndarray of int
        Pairs whose slack is below zero: arcs that the solver should know.
    open : ndarray of bool, (m,)
        Columns whose loss is a bound of the pass's own precision: more may be proved of them.
    """

    loss: Float[np.ndarray, " m"]
    i: Int[np.ndarray, " k"]
    j: Int[np.ndarray, " k"]
    open: np.ndarray


def softmin(
    geometry: Geometry,
    at: PointCloud,
    over: PointCloud,
    f: Float[torch.Tensor, " n"],
    estimate_potentials: Float[torch.Tensor, " m"],
    eps: float,
    weights: Float[torch.Tensor, " n"] | None = None,
    start: int = 0,
) -> Float[torch.Tensor, " m"]:
    """Return ``g_j = -eps log sum_i a_i exp((f_i - c_ij)/eps)`` for j >= `start`.

    `guess` (g at a larger eps, or a c-transform) keeps exponents in range, which spares a pass
    for the maximum; where it is too far off, g moves as far as the range allows.
    """
    base2 = math.log2(math.e) / eps
    log_a = -math.log(over.n) if weights is None else weights.log()
    # Tiles are bias - 2 x.y, so exponents are their negatives.
    bias = over.norms - f - eps * log_a
    shift = at.norms - estimate_potentials

    @halve_blocks_on_oom
    def local_part() -> torch.Tensor:
        fall = torch.zeros_like(estimate_potentials)
        for rows, tile in geometry.tiles(at, over, bias, start):
            tile.add_(shift[rows, None].to(tile.dtype)).mul_(-base2).clamp_(*_EXPONENTS).exp2_()
            fall[rows] = tile.sum(1).double().log2() / base2
        return fall

    return estimate_potentials - processes.all_reduce_sum(local_part())


def nearest(
    geometry: Geometry, at: PointCloud, over: PointCloud, p: Float[torch.Tensor, " n"], k: int, seed: int = 0
) -> tuple[Float[torch.Tensor, " m"], Int[np.ndarray, " l"], Int[np.ndarray, " l"]]:
    """Return ``q_j = min_i p_i + c_ij`` to the products' precision, and about k least pairs a j.

    Of each group the least pair only; ties are broken at random, so that copies of a point share
    the arcs between them.
    """
    k = min(k, over.groups)
    device = p.device
    draw = torch.Generator().manual_seed(seed)
    by_point = torch.rand(at.n, 1, generator=draw).to(device)
    by_group = torch.rand(over.groups, generator=draw).to(device)
    noise = 2 * (at.error(at.norms) + over.error(p).mean()).to(geometry.dtype)[:, None]

    @halve_blocks_on_oom
    def local_part() -> tuple[torch.Tensor, list[tuple[np.ndarray, np.ndarray]]]:
        q = torch.zeros(at.n, dtype=torch.float64, device=device)
        pairs = []
        for rows, tile in geometry.tiles(at, over, p + over.norms):
            grouped = tile.view(len(tile), -1, over.groups)
            least = grouped.amin(1)
            q[rows] = at.norms[rows] + least.amin(1).double()
            least += noise[rows] * ((by_point[rows] + by_group) % 1)
            group = least.topk(k, 1, largest=False, sorted=False).indices.flatten()
            row = torch.arange(len(tile), device=device).repeat_interleave(k)
            i = _least_of(grouped, row, group)
            pairs.append((i.cpu().numpy(), (row + rows.start).cpu().numpy()))
        return q, pairs

    q, pairs = local_part()
    return processes.all_reduce_sum(q), *_everyones(pairs)


def least(
    geometry: Geometry, at: PointCloud, over: PointCloud, p: Float[torch.Tensor, " n"], start: int = 0
) -> Float[torch.Tensor, " m"]:
    """Return ``min_i p_i + c_ij`` for j >= `start`, to the products' precision."""

    @halve_blocks_on_oom
    def local_part() -> torch.Tensor:
        q = torch.zeros_like(at.norms)
        for rows, tile in geometry.tiles(at, over, p + over.norms, start):
            q[rows] = at.norms[rows] + tile.amin(1).double()
        return q

    return processes.all_reduce_sum(local_part())[start:]


def find_violations(
    geometry: Geometry,
    p: Float[np.ndarray, " n"],
    q: Float[np.ndarray, " m"],
    threshold: float,
    thorough: bool = False,
    rows: Int[np.ndarray, " r"] | None = None,
) -> Violations:
    """Test ``q_j <= p_i + c_ij`` for all pairs.

    Pairs whose slack the products cannot tell from zero are computed again in float64. A column
    with very many of those keeps the bound that the products give (`Scan.open`), unless the scan
    is `thorough`.

    Parameters
    ----------
    threshold : float
        Arcs are listed where the slack is below minus this.
    rows : ndarray of int, optional
        Test pairs of these rows only; the losses then speak of no others.
    """
    at = geometry.y
    loss = np.zeros(at.n)
    arcs: Pairs = []
    if processes.on_rank_zero(lambda: geometry.screens):  # all or none: the passes below are met in
        at, loss, arcs = _screened(geometry, *geometry.reduced, p, q, threshold, rows)
    at, over, bias, limit = _ends(at, geometry.x, p, q, rows)
    columns = torch.arange(at.n, device=bias.device) if at.index is None else at.index

    @halve_blocks_on_oom
    def local_part() -> tuple[np.ndarray, np.ndarray, Pairs]:
        loss, cut_short = np.zeros(geometry.y.n), np.zeros(geometry.y.n, bool)
        arcs: Pairs = []
        for block, tile in geometry.tiles(at, over, bias):
            bound = limit[block].to(tile.dtype)
            grouped, least, row, group = _in_doubt(tile, over.groups, bound)
            if len(row) == 0:
                continue
            if len(row) > _DENSE * len(tile) and not thorough:
                worst, i = _worst(grouped, least, bound)
                where = columns[block].cpu().numpy()
                cut_short[where] = True
                loss[where] = (limit[block] - least.amin(1).double()).clamp_(min=0).cpu().numpy()
                j = columns[block][worst]
                arcs.append(_judge(geometry, p, q, *_places(i, j, rows), threshold, None))
            else:
                for near, i in _members(grouped, row, group, bound):
                    j = columns[block][near]
                    arcs.append(_judge(geometry, p, q, *_places(i, j, rows), threshold, loss))
        return loss, cut_short, arcs

    found, cut_short, more = local_part()
    return Violations(
        processes.all_reduce_max(np.maximum(loss, found)),
        *_everyones([*arcs, *more]),
        processes.all_reduce_max(cut_short),
    )


def _ends(
    at: PointCloud, over: PointCloud, p: np.ndarray, q: np.ndarray, rows: np.ndarray | None
) -> tuple[PointCloud, PointCloud, torch.Tensor, torch.Tensor]:
    """Columns, rows, and what tiles are made of and compared with, all errors allowed for."""
    labels_p, labels_q = (torch.from_numpy(z).to(over.norms.device) for z in (p, q))
    if rows is not None:
        over, labels_p = over.take(rows), labels_p[torch.from_numpy(rows).to(labels_p.device)]
    bias = labels_p + over.norms
    limit = (labels_q if at.index is None else labels_q[at.index]) - at.norms
    return at, over, bias - over.error(bias), limit + at.error(limit)


def _screened(
    geometry: Geometry,
    folded_x: PointCloud,
    folded_y: PointCloud,
    p: Float[np.ndarray, " n"],
    q: Float[np.ndarray, " m"],
    threshold: float,
    rows: Int[np.ndarray, " r"] | None,
) -> tuple[PointCloud, Float[np.ndarray, " m"], Pairs]:
    """Columns the low-dimensional bound cannot decide: it leaves them more than a few pairs.

    The few are judged. Where too many columns are open, all are: then folding does not pay.
    """
    at, over, bias, limit = _ends(folded_y, folded_x, p, q, rows)

    @halve_blocks_on_oom
    def local_part() -> tuple[np.ndarray | None, np.ndarray, Pairs]:
        loss, seen = np.zeros(at.n), 0
        arcs: Pairs = []
        left = [np.zeros(0, np.int64)]
        for block, tile in geometry.tiles(at, over, bias):
            bound = limit[block].to(tile.dtype)
            grouped, _, row, group = _in_doubt(tile, over.groups, bound)
            many = row.bincount(minlength=len(tile)) > _DENSE
            left.append(many.nonzero()[:, 0].cpu().numpy() + block.start)
            seen += len(tile)
            if sum(map(len, left)) > _OPEN * seen:
                return None, loss, arcs
            few = ~many[row]
            for near, i in _members(grouped, row[few], group[few], bound):
                j = near + block.start
                arcs.append(_judge(geometry, p, q, *_places(i, j, rows), threshold, loss))
        return np.concatenate(left), loss, arcs

    left, loss, arcs = local_part()
    parts = [part for part in processes.all_gather(left) if part is not None]
    few = len(parts) == processes.world_size()
    return geometry.y.take(np.concatenate(parts)) if few else geometry.y, loss, arcs


def _in_doubt(
    tile: torch.Tensor, groups: int, bound: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """A block's points by groups, the least of each, and the groups that reach a row's bound."""
    grouped = tile.view(len(tile), -1, groups)
    least = grouped.amin(1)
    row, group = (least <= bound[:, None]).nonzero(as_tuple=True)
    return grouped, least, row, group


def _places(
    i: Int[torch.Tensor, " k"], j: Int[torch.Tensor, " k"], rows: Int[np.ndarray, " r"] | None
) -> tuple[Int[np.ndarray, " k"], Int[np.ndarray, " k"]]:
    """Pairs as places of the whole clouds, where i are those among `rows`."""
    near_i, near_j = i.cpu().numpy(), j.cpu().numpy()
    return near_i if rows is None else rows[near_i], near_j


def _everyones(pairs: Pairs) -> tuple[Int[np.ndarray, " k"], Int[np.ndarray, " k"]]:
    """Pairs that this process and the others found, in the order of the rows."""
    none = np.zeros(0, np.int64)
    local_part = [np.concatenate([none, *(clouds[side] for clouds in pairs)]) for side in (0, 1)]
    all_i, all_j = zip(*processes.all_gather(local_part), strict=True)
    return np.concatenate(all_i), np.concatenate(all_j)


def _judge(
    geometry: Geometry,
    p: np.ndarray,
    q: np.ndarray,
    i: np.ndarray,
    j: np.ndarray,
    threshold: float,
    loss: np.ndarray | None,
) -> tuple[np.ndarray, np.ndarray]:
    """Compute listed slacks in float64: note the losses, return the pairs below -threshold."""
    cost = geometry.pair_costs(i, j)
    slack = p[i] + cost - q[j]
    if loss is not None:
        unit = float(np.finfo(np.float64).eps)
        doubt = geometry.rounding(cost) + unit * (abs(p[i]) + cost + abs(q[j]))
        np.maximum.at(loss, j, doubt - slack)
    worse = slack < -threshold
    return i[worse], j[worse]


def _least_of(
    grouped: torch.Tensor, row: torch.Tensor, group: torch.Tensor
) -> Int[torch.Tensor, " k"]:
    """Index of the least member of each listed group."""
    out = torch.empty_like(row)
    step = max(1, _SEGMENTS // grouped.shape[1])
    for k in range(0, len(row), step):
        part = slice(k, k + step)
        members = grouped[row[part], :, group[part]]
        out[part] = members.argmin(1) * grouped.shape[2] + group[part]
    return out


def _worst(
    grouped: torch.Tensor, least: torch.Tensor, bound: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """The `_DENSE` lowest groups of each row, by their least member, where below the bound."""
    k = min(_DENSE, grouped.shape[2])
    value, group = least.topk(k, 1, largest=False, sorted=False)
    row, place = (value <= bound[:, None]).nonzero(as_tuple=True)
    return row, _least_of(grouped, row, group[row, place])


def _members(
    grouped: torch.Tensor, row: torch.Tensor, group: torch.Tensor, bound: torch.Tensor
) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """Every member of the listed groups that is below its row's bound."""
    out = []
    step = max(1, _SEGMENTS // grouped.shape[1])
    for k in range(0, len(row), step):
        part = slice(k, k + step)
        members = grouped[row[part], :, group[part]]
        at, place = (members <= bound[row[part], None]).nonzero(as_tuple=True)
        out.append((row[part][at], place * grouped.shape[2] + group[part][at]))
    return out
