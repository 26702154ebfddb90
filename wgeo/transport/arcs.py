"""The few pairs that matter: a growing list of them, and shortest paths along it.

An optimal coupling uses few of the n m pairs. Solved on candidates (arcs) alone, its duals either
satisfy all other pairs as well, which proves it optimal, or name the pairs that were missing.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Int

from .geometry import Geometry

ROUNDING = 2.0**-47  # of the numbers that enter: what counts as zero
_MOST_SWEEPS = 3000


@dataclass(frozen=True, eq=False)
class Labels:
    """Dual labels, feasible where ``q_j <= p_i + c_ij``."""

    p: Float[np.ndarray, " n"]
    q: Float[np.ndarray, " m"]


class Groups:
    """Items by the group they belong to: members of several groups, without a loop."""

    def __init__(self, group: Int[np.ndarray, " k"], count: int) -> None:
        self.order = np.argsort(group, kind="stable")
        self.starts = np.searchsorted(group[self.order], np.arange(count + 1, dtype=group.dtype))

    def members(self, groups: Int[np.ndarray, " g"]) -> tuple[np.ndarray, np.ndarray]:
        """Places (in `order`) of all members, and which of `groups` each belongs to."""
        first = self.starts[groups]
        sizes = self.starts[groups + 1] - first
        ends = sizes.cumsum()
        owner = np.repeat(np.arange(len(groups)), sizes)
        return np.arange(len(owner)) + (first - ends + sizes)[owner], owner


class Arcs:
    """Pairs (i, j), once each, with their costs in float64, sorted by column."""

    def __init__(self, geometry: Geometry) -> None:
        self._geometry = geometry
        self.shape = geometry.x.n, geometry.y.n
        self._key = np.zeros(0, np.int64)
        self.cost = np.zeros(0)
        self.i = np.zeros(0, np.int32)
        self.j = np.zeros(0, np.int32)
        self.pointers = np.zeros(self.shape[1] + 1, np.int64)
        self.by_row = Groups(self.i, self.shape[0])

    def __len__(self) -> int:
        return len(self._key)

    def add(self, i: Int[np.ndarray, " k"], j: Int[np.ndarray, " k"]) -> int:
        """Add pairs; return how many are new."""
        n, m = self.shape
        key = np.unique(j.astype(np.int64) * n + i)
        if len(key) == 0:
            return 0
        place = np.searchsorted(self._key, key)
        known = place < len(self._key)
        known[known] = self._key[place[known]] == key[known]
        key, place = key[~known], place[~known]
        i, j = (key % n).astype(np.int32), (key // n).astype(np.int32)
        self.cost = np.insert(self.cost, place, self._geometry.pair_costs(i, j))
        self._key = np.insert(self._key, place, key)
        self.i = np.insert(self.i, place, i)
        self.j = np.insert(self.j, place, j)
        self.pointers = np.searchsorted(self.j, np.arange(m + 1, dtype=np.int32))
        self.by_row = Groups(self.i, n)
        return len(key)

    def at(self, i: Int[np.ndarray, " k"], j: Int[np.ndarray, " k"]) -> Int[np.ndarray, " k"]:
        """Places in the list of pairs that it holds."""
        return np.searchsorted(self._key, np.asarray(j, np.int64) * self.shape[0] + i)

    def slack(self, labels: Labels) -> Float[np.ndarray, " k"]:
        """``p_i + c_ij - q_j``."""
        return labels.p[self.i] + self.cost - labels.q[self.j]


def shortest_path_labels(
    arcs: Arcs, cost: Float[np.ndarray, " k"], used: Int[np.ndarray, " u"], tolerance: float
) -> Labels:
    """Largest feasible labels with p <= 0, for other costs of the arcs: Bellman-Ford sweeps.

    All arcs run forwards; those in use run backwards as well, at minus their cost. Where they
    carry an optimal flow no cycle is negative, the sweeps end, and used arcs have no slack. A
    sweep goes only where labels fell in the last. Every column must have an arc.
    """
    n, m = arcs.shape
    forward = arcs.by_row
    heads, lengths = arcs.j[forward.order], cost[forward.order]
    backward = Groups(arcs.j[used], m)
    tails, returns = arcs.i[used][backward.order], cost[used][backward.order]
    p, q = np.zeros(n), np.minimum.reduceat(cost, arcs.pointers[:-1])
    columns = np.arange(m)
    for _ in range(_MOST_SWEEPS + m):
        at, owner = backward.members(columns)
        rows = _lower(p, tails[at], q[columns][owner] - returns[at], tolerance)
        at, owner = forward.members(rows)
        columns = _lower(q, heads[at], p[rows][owner] + lengths[at], 0.0)
        if len(columns) == 0:
            break
    return Labels(p, q)


def _lower(
    values: Float[np.ndarray, " n"],
    at: Int[np.ndarray, " k"],
    to: Float[np.ndarray, " k"],
    tolerance: float,
) -> Int[np.ndarray, " l"]:
    """Lower ``values[at]`` to `to` where that is lower; return the places changed."""
    less = to < values[at] - tolerance
    at = at[less]
    np.minimum.at(values, at, to[less])
    changed = np.zeros(len(values), bool)
    changed[at] = True
    return np.flatnonzero(changed)
