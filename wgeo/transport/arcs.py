"""A growing list of candidate pairs (arcs).

An optimal coupling uses few of the n m pairs, so the problem is solved on candidates alone. If its
potentials satisfy the constraints of all other pairs, the coupling is optimal. Otherwise the
violated pairs are new candidates.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Int

from .geometry import Geometry

# A slack counts as zero if it is below this fraction of the numbers from which it is computed.
ROUNDING = 2.0**-47


@dataclass(frozen=True, eq=False)
class Potentials:
    """Dual potentials, feasible if ``f_i + g_j <= c_ij`` for all pairs."""

    f: Float[np.ndarray, " n"]
    g: Float[np.ndarray, " m"]

    @classmethod
    def zeros(cls, n: int, m: int) -> Potentials:
        """Return zero potentials of clouds of n and m points."""
        return cls(np.zeros(n), np.zeros(m))


class Arcs:
    """Distinct pairs (i, j) with their costs in float64, sorted by j and then by i."""

    def __init__(self, geometry: Geometry) -> None:
        self._geometry = geometry
        self.shape = geometry.x.n, geometry.y.n
        self._key = np.zeros(0, np.int64)
        self.cost = np.zeros(0)
        self.i = np.zeros(0, np.int32)
        self.j = np.zeros(0, np.int32)

    def __len__(self) -> int:
        return len(self._key)

    def add(self, i: Int[np.ndarray, " k"], j: Int[np.ndarray, " k"]) -> int:
        """Add pairs; return the number of new ones."""
        n, _ = self.shape
        key = np.sort(j.astype(np.int64) * n + i)
        if len(key) == 0:
            return 0
        key = key[np.diff(key, prepend=-1) > 0]
        position = np.searchsorted(self._key, key)
        present = position < len(self._key)
        present[present] = self._key[position[present]] == key[present]
        key, position = key[~present], position[~present]
        i, j = (key % n).astype(np.int32), (key // n).astype(np.int32)
        self.cost = np.insert(self.cost, position, self._geometry.pair_costs(i, j))
        self._key = np.insert(self._key, position, key)
        self.i = np.insert(self.i, position, i)
        self.j = np.insert(self.j, position, j)
        return len(key)

    def index_of(self, i: Int[np.ndarray, " k"], j: Int[np.ndarray, " k"]) -> Int[np.ndarray, " k"]:
        """Return the positions of pairs, all of which must be in the list."""
        return np.searchsorted(self._key, np.asarray(j, np.int64) * self.shape[0] + i)

    def slack(self, potentials: Potentials) -> Float[np.ndarray, " k"]:
        """Return ``c_ij - f_i - g_j`` for every pair in the list."""
        return self.cost - potentials.f[self.i] - potentials.g[self.j]
