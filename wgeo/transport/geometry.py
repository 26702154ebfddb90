"""Squared Euclidean costs as an exact solver needs them: fast, and with bounds on their error.

Matrix products in float32 say, a block at a time, which pairs could matter; those few are computed
again from differences in float64. ``||x||^2 + ||y||^2 - 2 x.y`` of d terms, in any order of
summation, is wrong by at most ``(d + 4) u (||x||^2 + ||y||^2)``, u the unit roundoff (Higham 2002,
Section 3.1), so that "could matter" is a proof and not a guess.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from functools import cached_property

import numpy as np
import torch
from jaxtyping import Float, Int

from ..runtime import processes
from ..runtime.memory import block_entries
from ..runtime.threads import raise_if_interrupted
from .clouds import UNIT_ROUNDOFF, PointClouds
from .screening import directions, reduce_dimension, inner_product_error

_BLOCK = {"cpu": 1 << 20, "cuda": 1 << 26}  # entries: a core's cache; enough to fill a GPU
_FEWEST_ROWS = 64
_PANEL = 512  # features summed at a time: an error of _PANEL + d / _PANEL units, not of d
_WIDE = 256  # features from which products are worth keeping
_FOLDED = 32  # directions that a screen keeps
_SCREENED = 8 * _FOLDED  # features from which one pays
_APART = 0.125  # of the spread: how far centres must be apart to be brought together
_LISTED = 1 << 17  # entries of gathered rows at a time


def squared_distances(
    x: Float[torch.Tensor, "n d"], y: Float[torch.Tensor, "m d"]
) -> Float[torch.Tensor, "n m"]:
    """Return ||x_i - y_j||^2 from differences: relative error (d + 2) u, u the unit roundoff.

    Slower than by a matrix product, and right where points nearly coincide.
    """
    return torch.cdist(x, y, compute_mode="donot_use_mm_for_euclid_dist").square_()


@dataclass(frozen=True, eq=False)
class PointCloud:
    """One cloud, centred and scaled, in the order the solver works in; rows padded with zeros.

    Attributes
    ----------
    points : Tensor, (padded, d)
        ``padded`` is n rounded up to a multiple of `groups`.
    norms : Tensor of float64, (n,)
        ||x_i||^2 of the points before they were rounded to `points`' precision.
    groups : int
        A pass keeps the least of each group of points (i mod groups) rather than sorting all.
    drift : float
        How far the offset may lie from the difference of the centres, by rounding.
    index : Tensor of int, (n,), optional
        Which of a larger cloud's points these are.
    slip : float
        By how much of the norms the points' products may fall short (`Costs.screen`).
    second : bool
        Whether they are of the second cloud.
    """

    points: Float[torch.Tensor, "padded d"]
    norms: Float[torch.Tensor, " n"]
    groups: int
    offset_error: float = 0.0
    index: Int[torch.Tensor, " n"] | None = None
    inner_product_error: float = 0.0
    second: bool = False

    @property
    def n(self) -> int:
        return len(self.norms)

    @property
    def unit(self) -> float:
        """Unit roundoff u of the products."""
        return torch.finfo(self.points.dtype).eps / 2

    @cached_property
    def terms(self) -> int:
        """How many roundings, at most, a sum of d products goes through."""
        d = self.points.shape[1]
        return d if d <= _PANEL else _PANEL + 2 * -(-d // _PANEL)

    def error(self, bias: Float[torch.Tensor, " n"]) -> Float[torch.Tensor, " n"]:
        """Each point's part in the error of ``bias_i - 2 x_i.y_j``; the two parts add up."""
        each = (self.terms + 6) * self.unit + self.inner_product_error
        return 1.01 * each * (self.norms + abs(bias)) + self.offset_error * (1 + self.norms) + 1e-30

    def head(self, n: int) -> PointCloud:
        """The first n points, as a cloud of its own."""
        return replace(self, points=self.points[:n], norms=self.norms[:n], groups=1)

    def take(self, which: Int[np.ndarray, " k"]) -> PointCloud:
        """Some points, as a cloud of its own."""
        index = torch.from_numpy(which).to(self.points.device)
        groups = _groups(len(which))
        points = self.points.new_zeros((_round_up(len(which), groups), self.points.shape[1]))
        points[: len(which)] = self.points[index]
        return replace(self, points=points, norms=self.norms[index], groups=groups, index=index)


@dataclass(frozen=True, eq=False)
class Geometry:
    """``c_ij = ||x_i - y_j - offset||^2 * scale^2``, in the order `rows`, `columns`.

    The order is random, so that a prefix is a fair sample and neighbours spread over groups; where
    a pairing is known the two orders follow it, and partners have the same place.

    Attributes
    ----------
    pair : Pair
        The clouds as given.
    rows, columns : ndarray of int, (n,), (m,)
        Place -> row of `pair.x`, of `pair.y`.
    scale : float
        A power of two that makes the spread of the clouds about 1.
    memory : int
        Bytes that may be held beside the points.
    dtype : torch.dtype
        Of the products.
    tally : Counter
        How many pairs were visited so far, times their features.
    """

    clouds: PointClouds
    rows: Int[np.ndarray, " n"]
    columns: Int[np.ndarray, " m"]
    scale: float
    memory: int
    dtype: torch.dtype = torch.float32
    visits: Counter[str] = field(default_factory=Counter)

    @classmethod
    def of(cls, clouds: PointClouds, memory: int, seed: int = 0) -> Geometry:
        """Order and scale a pair."""
        rng = np.random.default_rng(seed)
        rows = rng.permutation(len(clouds.x))
        pairing = clouds.pairing
        columns = rng.permutation(len(clouds.y)) if pairing is None else pairing[rows]
        total_variance = clouds.total_variance
        scale = 2.0 ** -round(np.log2(total_variance) / 2) if total_variance > 0 else 1.0
        return cls(clouds, rows, columns, scale, memory)

    @property
    def weights(self) -> tuple[Float[np.ndarray, " n"], Float[np.ndarray, " m"]]:
        """The pair's weights, in these orders."""
        a, b = self.clouds.a.cpu().numpy(), self.clouds.b.cpu().numpy()
        return a[self.rows], b[self.columns]

    @property
    def passes(self) -> float:
        """How often all pairs were visited, counting samples and screens by their share."""
        visited = processes.all_reduce_sum(float(self.visits["features"]))
        return round(visited / (self.x.n * self.y.n * self.clouds.x.shape[1]), 2)

    @cached_property
    def double_precision(self) -> Geometry:
        """The same costs with products in float64."""
        return replace(self, dtype=torch.float64)

    @cached_property
    def offset(self) -> Float[torch.Tensor, " d"]:
        """Difference of the centres; none where it is small beside the spread.

        Taking it off tiny differences would only put rounding into them (`start` allows for it).
        """
        offset = self.clouds.offset
        return offset if float(offset.norm()) * self.scale > _APART else torch.zeros_like(offset)

    @property
    def _center_y(self) -> Float[torch.Tensor, " d"]:
        return self.clouds.center_y if self.offset.any() else self.clouds.center_x

    @cached_property
    def x(self) -> PointCloud:
        return self._point_cloud(second=False)

    @cached_property
    def y(self) -> PointCloud:
        return self._point_cloud(second=True)

    @property
    def screens(self) -> bool:
        """Whether a pass over folded points is cheaper than one that knows the products.

        Of this process: products are held once it has come to need them.
        """
        held = self.__dict__.get("products") is not None
        return not held and self.clouds.x.shape[1] >= _SCREENED

    @cached_property
    def reduced(self) -> tuple[PointCloud, PointCloud]:
        """Both clouds folded into few features (`screen`)."""
        v = directions(self.x.points, self.y.points, _FOLDED)
        return self._point_cloud(second=False, v=v), self._point_cloud(second=True, v=v)

    def _point_cloud(self, *, second: bool, v: Float[torch.Tensor, "d k"] | None = None) -> PointCloud:
        """The centred, scaled points of a cloud in their order; folded along v if it is given."""
        x, center, order = (
            (self.clouds.y, self._center_y, self.columns)
            if second
            else (self.clouds.x, self.clouds.center_x, self.rows)
        )
        n, d = x.shape
        at = torch.from_numpy(order).to(x.device)
        groups = _groups(n)
        width, lost = (d, 0.0) if v is None else (v.shape[1] + 1, inner_product_error(v))
        points = torch.zeros((_round_up(n, groups), width), dtype=self.dtype, device=x.device)
        norms = torch.empty(n, dtype=torch.float64, device=x.device)
        for part, block in self._float64(x, center, at):
            block *= self.scale
            points[part] = (block if v is None else reduce_dimension(block, v, lost)).to(self.dtype)
            norms[part] = block.square_().sum(1)
        offset_error = UNIT_ROUNDOFF * float(self.offset.norm()) * self.scale
        return PointCloud(points, norms, groups, offset_error, inner_product_error=lost, second=second)

    @staticmethod
    def _float64(
        x: torch.Tensor, center: torch.Tensor, order: torch.Tensor | None = None
    ) -> Iterator[tuple[slice, Float[torch.Tensor, "rows d"]]]:
        step = max(1, _LISTED // x.shape[1])
        for i in range(0, len(x), step):
            part = slice(i, min(i + step, len(x)))
            yield part, x[part if order is None else order[part]].double() - center

    def pair_costs(
        self, i: Int[np.ndarray, " k"], j: Int[np.ndarray, " k"]
    ) -> Float[np.ndarray, " k"]:
        """Return c_ij of listed pairs, from differences in float64 (see `rounding`)."""
        out = np.empty(len(i))
        rows, columns = self.rows[i], self.columns[j]
        device = self.clouds.x.device
        step = max(1, _LISTED // self.clouds.x.shape[1])
        for k in range(0, len(i), step):
            part = slice(k, k + step)
            xs = self.clouds.x[torch.from_numpy(rows[part]).to(device)].double()
            ys = self.clouds.y[torch.from_numpy(columns[part]).to(device)].double()
            difference = xs.sub_(ys).sub_(self.offset).mul_(self.scale)
            out[part] = difference.square_().sum(1).cpu().numpy()
        return out

    def rounding(self, cost: Float[np.ndarray, " k"]) -> Float[np.ndarray, " k"]:
        """Bound on the error of `between`: relative in c_ij, but for the offset's part."""
        shift = float(self.offset @ self.offset) * self.scale**2
        return (self.clouds.x.shape[1] + 16) * UNIT_ROUNDOFF * 2 * (cost + (shift if shift else 0.0))

    def start(self, f: Float[np.ndarray, " n"] | None = None) -> Float[np.ndarray, " n"]:
        """Labels p, in these costs' terms, of potentials f; by default those of a translation."""
        if f is None:
            left, _ = self._along(self.clouds.offset - self.offset)
            return -2 * left * self.scale**2
        along, _ = self._along(self.offset)
        p = (2 * along - f[self.rows]) * self.scale**2
        return p - p.mean()

    def original_potentials(
        self, p: Float[np.ndarray, " n"], q: Float[np.ndarray, " m"]
    ) -> tuple[Float[np.ndarray, " n"], Float[np.ndarray, " m"]]:
        """Potentials ``f_i + g_j <= ||x_i - y_j||^2`` of the clouds as given, from labels."""
        along_x, along_y = self._along(self.offset)
        middle = (float(p.mean()) + float(q.mean())) / 2
        f, g = np.empty(len(p)), np.empty(len(q))
        f[self.rows] = (middle - p) / self.scale**2 + 2 * along_x
        g[self.columns] = (q - middle) / self.scale**2 - 2 * along_y
        f += float(self.offset @ self.offset)
        return f - 32 * UNIT_ROUNDOFF * (abs(f).max() + abs(g).max()), g

    def _along(
        self, direction: Float[torch.Tensor, " d"]
    ) -> tuple[Float[np.ndarray, " n"], Float[np.ndarray, " m"]]:
        """Inner products of the centred points with a direction."""
        sides = (
            (self.clouds.x, self.clouds.center_x, self.rows),
            (self.clouds.y, self._center_y, self.columns),
        )
        along = []
        for x, center, order in sides:
            at = torch.from_numpy(order).to(x.device)
            parts = [part @ direction for _, part in self._float64(x, center, at)]
            along.append(torch.cat(parts).cpu().numpy())
        return along[0], along[1]

    @cached_property
    def products(self) -> Float[torch.Tensor, "n m"] | None:
        """All inner products, where points are so wide that they pay, and memory has room."""
        x, y = self.x.points, self.y.points
        room = block_entries(self.memory) // 2
        if x.shape[1] < _WIDE or len(x) * len(y) * x.element_size() > room:
            return None
        out = x.new_empty((len(x), len(y)))
        for rows in _slices(len(x), _FEWEST_ROWS * 4):
            out[rows] = _products(x[rows], y)
        return out

    def tiles(
        self,
        at: PointCloud,
        over: PointCloud,
        bias: Float[torch.Tensor, " n"],
        start: int = 0,
    ) -> Iterator[tuple[slice, Float[torch.Tensor, "rows padded"]]]:
        """Yield ``bias_i - 2 <at_j, over_i>`` for blocks of this process's rows j >= `start`.

        `bias` is padded with infinity, so that padding is never the least. The block is
        overwritten by the next.
        """
        padded = torch.full((len(over.points),), torch.inf, dtype=self.dtype, device=bias.device)
        padded[: len(bias)] = bias
        width = len(padded)
        kind = _BLOCK.get(bias.device.type, _BLOCK["cpu"])
        most = block_entries(min(kind, self.memory // (8 * padded.element_size())))
        local_part = processes.shard(at.n, start)
        step = min(max(most // width, block_entries(_FEWEST_ROWS)), max(local_part.stop - local_part.start, 1))
        block = padded.new_empty((step, width))
        for rows in _slices(local_part.stop, step, local_part.start):
            raise_if_interrupted()
            out = block[: rows.stop - rows.start]
            self.visits["features"] += len(out) * over.n * at.points.shape[1]
            known = self._stored_products(at, over, rows)
            if known is not None:
                out.copy_(padded.expand_as(out))
                out[:, : known.shape[1]].sub_(known, alpha=2)
                yield rows, out
            elif at.points.shape[1] <= _PANEL:
                left = at.points[rows]
                yield rows, torch.addmm(padded, left, over.points.T, alpha=-2, out=out)
            else:
                _products(at.points[rows], over.points, out)
                yield rows, out.mul_(-2).add_(padded)

    def _stored_products(self, at: PointCloud, over: PointCloud, rows: slice) -> torch.Tensor | None:
        """Products held of some rows of `at`; none are made for a screen or what it leaves."""
        whole = at.points.shape[1] == self.clouds.x.shape[1] and at.index is None
        products = self.products if whole else None
        if products is None:
            return None
        some = slice(len(over.points)) if over.index is None else over.index
        return products[some, rows].T if at.second else products[rows, some]


def _groups(n: int) -> int:
    """About as many groups as members of each: both lists are short."""
    return max(n, 1) if n <= 64 else int(2 ** round(np.log2(n) / 2))


def _round_up(n: int, unit: int) -> int:
    return -(-n // unit) * unit


def _slices(n: int, step: int, start: int = 0) -> Iterator[slice]:
    for i in range(start, n, step):
        yield slice(i, min(i + step, n))


def _products(
    a: torch.Tensor, b: torch.Tensor, out: torch.Tensor | None = None
) -> Float[torch.Tensor, "rows columns"]:
    """a b^T, a panel of features at a time: the roundings of a panel, and one a panel."""
    out = a.new_empty((len(a), len(b))) if out is None else out
    torch.mm(a[:, :_PANEL], b[:, :_PANEL].T, out=out)
    for k in range(_PANEL, a.shape[1], _PANEL):
        out += a[:, k : k + _PANEL] @ b[:, k : k + _PANEL].T
    return out
