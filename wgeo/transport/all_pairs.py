"""Operations on all pairs, a block at a time: c-transforms, nearest points, tests of feasibility.

The *slack* of a pair is ``c_ij - f_i - g_j``; potentials f, g are feasible if no slack is negative
(Peyre, Cuturi 2019, Section 2.5).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, Int

from ..runtime import processes
from .arcs import Potentials
from .geometry import Geometry, PointCloud
from .tiles import reduce_tiles

# If columns have at most this many undecided groups (in a block, on average), all pairs in these
# groups are computed.
_MAX_GROUPS = 8
_MAX_UNDECIDED = 0.25  # screening is useful if it leaves at most this fraction of columns undecided
_GATHER_ENTRIES = 1 << 18  # entries of groups copied at a time

Indices = tuple[np.ndarray, np.ndarray]
Pairs = list[Indices]


@dataclass(frozen=True, eq=False)
class Violations:
    """Constraints ``f_i + g_j <= c_ij`` that potentials violate.

    ``(f, g - excess)`` is feasible, with all rounding accounted for. If a point y is `undecided`,
    its excess was computed only to the precision of the matrix products. If the `margin` of a point
    y is positive, all of its tested pairs with a slack below the margin are listed. The margin is 0
    if y was not tested, was screened, or has too many such pairs.
    """

    excess: Float[np.ndarray, " m"]
    i: Int[np.ndarray, " k"]  # pairs (i, j) with slack below -threshold, to be added to the arcs
    j: Int[np.ndarray, " k"]
    undecided: np.ndarray
    near_i: Int[np.ndarray, " l"]  # other pairs whose slack may be below the margin of their y
    near_j: Int[np.ndarray, " l"]
    margin: Float[np.ndarray, " m"]
    dtype: torch.dtype  # of the products


def nearest(
    geometry: Geometry,
    target: PointCloud,
    source: PointCloud,
    f: Float[torch.Tensor, " n"],
    k: int,
    seed: int = 0,
) -> tuple[Float[torch.Tensor, " m"], Int[np.ndarray, " l"], Int[np.ndarray, " l"]]:
    """Return the c-transform ``g_j = min_i c_ij - f_i``, and k pairs (i, j) of small slack per j.

    Each pair has the least slack of its group (`PointCloud.groups`). Slacks that differ by rounding
    are ordered at random, so that the pairs are distributed over copies of a point.
    """
    k = min(k, source.groups)
    device = f.device
    generator = torch.Generator().manual_seed(seed)
    by_point = torch.rand(target.n, 1, generator=generator).to(device)
    by_group = torch.rand(source.groups, generator=generator).to(device)
    noise = 2 * (target.error(target.norms) + source.error(f).mean()).to(geometry.dtype)[:, None]

    def part(rows: slice, block: torch.Tensor) -> tuple[torch.Tensor, Indices]:
        grouped = block.unflatten(1, (-1, source.groups))
        minima = grouped.amin(1)
        g = target.norms[rows] + minima.amin(1).double()
        minima += noise[rows] * ((by_point[rows] + by_group) % 1)
        group = minima.topk(k, 1, largest=False, sorted=False).indices.flatten()
        row = torch.arange(len(block), device=device).repeat_interleave(k)
        i = _group_argmin(grouped, row, group)
        return g, _global_indices(i, row + rows.start, None)

    g, pairs = torch.zeros_like(target.norms), []
    for rows, (local_g, listed) in geometry.tiles(part, target, source, source.norms - f):
        g[rows] = local_g
        pairs.append(listed)
    return processes.all_reduce_sum(g), *_gather_pairs(pairs)


def c_transform(
    geometry: Geometry, target: PointCloud, source: PointCloud, f: Float[torch.Tensor, " n"]
) -> Float[torch.Tensor, " m"]:
    """Return ``g_j = min_i c_ij - f_i``, to the precision of the products."""

    def part(rows: slice, block: torch.Tensor) -> tuple[torch.Tensor]:
        return (target.norms[rows] + block.amin(1).double(),)

    tiles = geometry.tiles(part, target, source, source.norms - f)
    return reduce_tiles(tiles, target.n)[0]


def find_violations(
    geometry: Geometry,
    potentials: Potentials,
    threshold: float,
    thorough: bool = False,
    rows: Int[np.ndarray, " r"] | None = None,
    columns: Int[np.ndarray, " c"] | None = None,
    margin: float = 0.0,
) -> Violations:
    """Test ``f_i + g_j <= c_ij`` for all pairs, or for the points x in `rows` and y in `columns`.

    The excess accounts only for tested pairs. Pairs are listed if their slack is below
    ``-threshold``; others of slack below `margin` are listed separately, unless points are
    screened. Slacks that may be negative (or below `margin`), given the error of the matrix
    products, are computed again from differences in float64. If a block has too many of these
    slacks, only the lowest are computed again (see `Violations.undecided`), unless the test is
    `thorough`.
    """
    target = geometry.y if columns is None else geometry.y.take(columns)
    m = geometry.y.n
    excess, undecided, margins = np.zeros(m), np.zeros(m, bool), np.zeros(m)
    pairs: Pairs = []
    near: Pairs = []
    # Collective operations follow.
    if columns is None and processes.on_rank_zero(lambda: geometry.screens):
        target, excess, pairs = _screen(geometry, potentials, threshold, rows)
        margin = 0.0
    target, source, bias, limit = _operands(target, geometry.x, potentials, rows)
    index = torch.arange(target.n, device=bias.device) if target.index is None else target.index
    host_index = index.cpu().numpy()
    bounds = {w: (limit + 1.001 * w).to(geometry.dtype) for w in (margin, 0.0)}  # 1.001: rounding

    def part(of: slice, block: torch.Tensor) -> Pairs:
        js, at = index[of], host_index[of]
        for width in bounds:
            bound = bounds[width][of]
            grouped, minima, row, group = _undecided_groups(block, source.groups, bound)
            if len(row) <= _MAX_GROUPS * len(block) or thorough:
                members = _members_below(grouped, row, group, bound)
                margins[at] = width
                return _violated(
                    geometry, potentials, threshold, members, js, rows, excess, near, width
                )
        members = [_lowest_groups(grouped, minima, bound)]
        local_excess = (limit[of] - minima.amin(1).double()).clamp_(min=0).cpu().numpy()
        undecided[at], excess[at] = True, np.maximum(excess[at], local_excess)
        margins[at] = 0.0  # if a larger tile had one and ran out of memory
        return _violated(geometry, potentials, threshold, members, js, rows, None)

    for _, listed in geometry.tiles(part, target, source, bias):
        pairs += listed
    return Violations(
        processes.all_reduce_max(excess),
        *_gather_pairs(pairs),
        processes.all_reduce_max(undecided),
        *_gather_pairs(near),
        processes.all_reduce_max(margins),
        geometry.dtype,
    )


def _operands(
    target: PointCloud,
    source: PointCloud,
    potentials: Potentials,
    rows: Int[np.ndarray, " r"] | None,
) -> tuple[PointCloud, PointCloud, torch.Tensor, torch.Tensor]:
    """Return both clouds, the bias (see `Geometry.tiles`), and each column's limit.

    If an entry of a block is above the limit, the slack of its pair is nonnegative.
    """
    f, g = (torch.from_numpy(z).to(source.norms.device) for z in (potentials.f, potentials.g))
    if rows is not None:
        source, f = source.take(rows), f[torch.from_numpy(rows).to(f.device)]
    bias = source.norms - f
    limit = (g if target.index is None else g[target.index]) - target.norms
    return target, source, bias - source.error(bias), limit + target.error(limit)


def _screen(
    geometry: Geometry,
    potentials: Potentials,
    threshold: float,
    rows: Int[np.ndarray, " r"] | None,
) -> tuple[PointCloud, Float[np.ndarray, " m"], Pairs]:
    """Return the undecided columns, and the excess and violated pairs of the others.

    A column is decided if the low-dimensional bound leaves only a few groups of pairs, whose slack
    is then computed. If many columns remain, screening saves no time, and all are returned.
    """
    reduced_x, reduced_y = geometry.reduced
    target, source, bias, limit = _operands(reduced_y, reduced_x, potentials, rows)

    excess, pairs, tested = np.zeros(target.n), [], 0
    undecided, saves_time = [np.zeros(0, np.int64)], True
    columns = torch.arange(target.n, device=bias.device)

    def part(of: slice, block: torch.Tensor) -> tuple[np.ndarray, Pairs]:
        bound = limit[of].to(block.dtype)
        grouped, _, row, group = _undecided_groups(block, source.groups, bound)
        many = row.bincount(minlength=len(block)) > _MAX_GROUPS
        few = ~many[row]
        members = _members_below(grouped, row[few], group[few], bound)
        listed = _violated(geometry, potentials, threshold, members, columns[of], rows, excess)
        return columns[of][many].cpu().numpy(), listed

    for of, (left, listed) in geometry.tiles(part, target, source, bias):
        undecided.append(left)
        pairs += listed
        tested += of.stop - of.start
        saves_time = sum(map(len, undecided)) <= _MAX_UNDECIDED * tested
        if not saves_time:
            break
    parts = processes.all_gather((saves_time, np.concatenate(undecided)))
    saves_time, indices = all(saved for saved, _ in parts), [index for _, index in parts]
    return geometry.y.take(np.concatenate(indices)) if saves_time else geometry.y, excess, pairs


def _violated(
    geometry: Geometry,
    potentials: Potentials,
    threshold: float,
    members: list[tuple[torch.Tensor, torch.Tensor]],
    columns: Int[torch.Tensor, " c"],
    rows: Int[np.ndarray, " r"] | None,
    excess: np.ndarray | None,
    near: Pairs | None = None,
    margin: float = 0.0,
) -> Pairs:
    """Return the pairs of `members` whose slack is below -threshold.

    `members` are positions in `columns` and indices of points x (in `rows`, if given). Slacks are
    computed in float64; `excess`, if given, is updated. Other pairs whose slack may be below the
    margin are appended to `near`.
    """
    pairs: Pairs = []
    for position, index in members:
        i, j = _global_indices(index, columns[position], rows)
        cost = geometry.pair_costs(i, j)
        f, g = potentials.f[i], potentials.g[j]
        slack = cost - f - g
        error = slack_error(geometry, cost, f, g)
        if excess is not None:
            np.maximum.at(excess, j, error - slack)
        negative = slack < -threshold
        pairs.append((i[negative], j[negative]))
        if near is not None and margin > 0:
            close = (slack - error < margin) & ~negative
            near.append((i[close], j[close]))
    return pairs


def slack_error(
    geometry: Geometry,
    cost: Float[np.ndarray, " k"],
    f: Float[np.ndarray, " k"],
    g: Float[np.ndarray, " k"],
) -> Float[np.ndarray, " k"]:
    """Bound the float64 error of the slack ``cost - f - g`` of pairs."""
    unit = float(np.finfo(np.float64).eps)
    return geometry.cost_error(cost) + unit * (abs(f) + cost + abs(g))


def _undecided_groups(
    block: torch.Tensor, groups: int, bound: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return a block split into groups, their minima, and the indices of minima within `bound`."""
    grouped = block.unflatten(1, (-1, groups))
    minima = grouped.amin(1)
    row, group = (minima <= bound[:, None]).nonzero(as_tuple=True)
    return grouped, minima, row, group


def _global_indices(
    i: Int[torch.Tensor, " k"], j: Int[torch.Tensor, " k"], rows: Int[np.ndarray, " r"] | None
) -> tuple[Int[np.ndarray, " k"], Int[np.ndarray, " k"]]:
    """Return pairs as indices into the whole clouds; i indexes `rows`, unless it is None."""
    local_i, local_j = torch.stack((i, j)).cpu().numpy()  # one copy, which waits for the device
    return local_i if rows is None else rows[local_i], local_j


def _gather_pairs(pairs: Pairs) -> tuple[Int[np.ndarray, " k"], Int[np.ndarray, " k"]]:
    """Return the pairs of all processes, in the order of their ranks."""
    empty = np.zeros(0, np.int64)
    local = [np.concatenate([empty, *(pair[k] for pair in pairs)]) for k in (0, 1)]
    all_i, all_j = zip(*processes.all_gather(local), strict=True)
    return np.concatenate(all_i), np.concatenate(all_j)


def _group_argmin(
    grouped: torch.Tensor, row: torch.Tensor, group: torch.Tensor
) -> Int[torch.Tensor, " k"]:
    """Return the index of the smallest member of each of these groups."""
    out = torch.empty_like(row)
    step = max(1, _GATHER_ENTRIES // grouped.shape[1])
    for k in range(0, len(row), step):
        part = slice(k, k + step)
        members = grouped[row[part], :, group[part]]
        out[part] = members.argmin(1) * grouped.shape[2] + group[part]
    return out


def _lowest_groups(
    grouped: torch.Tensor, minima: torch.Tensor, bound: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the smallest members of each row's `_MAX_GROUPS` lowest groups within the bound."""
    k = min(_MAX_GROUPS, grouped.shape[2])
    value, group = minima.topk(k, 1, largest=False, sorted=False)
    row, position = (value <= bound[:, None]).nonzero(as_tuple=True)
    return row, _group_argmin(grouped, row, group[row, position])


def _members_below(
    grouped: torch.Tensor, row: torch.Tensor, group: torch.Tensor, bound: torch.Tensor
) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """Return the members of these groups that are within the bound of their row."""
    out = []
    step = max(1, _GATHER_ENTRIES // grouped.shape[1])
    for k in range(0, len(row), step):
        part = slice(k, k + step)
        members = grouped[row[part], :, group[part]]
        index, position = (members <= bound[row[part], None]).nonzero(as_tuple=True)
        out.append((row[part][index], position * grouped.shape[2] + group[part][index]))
    return out
