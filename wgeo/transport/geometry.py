"""Squared Euclidean costs as an exact solver needs them: fast, and with bounds on their error.

Matrix products in float32, a block at a time, show which pairs could have negative slack; the costs
of these few pairs are computed again from differences in float64. No pair is missed, because the
error of ``||x||^2 + ||y||^2 - 2 x.y`` with d terms, in any order of summation, is to first order at
most ``(d + 4) u (||x||^2 + ||y||^2)``, where u is the unit roundoff (Higham 2002, Section 3.1).
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import TypeVar

import numpy as np
import torch
from jaxtyping import Float, Int

from ..runtime import processes
from ..runtime.memory import block_entries
from .point_clouds import UNIT_ROUNDOFF, PointClouds, centered_rows, principal_directions
from .tiles import map_tiles, products, roundings, store_products

T = TypeVar("T")

_STORE_FROM = 256  # number of features from which storing products saves time
_SCREENING_DIRECTIONS = 32
_SCREEN_FROM = 8 * _SCREENING_DIRECTIONS  # number of features from which screening saves time
# The offset is subtracted if it is larger than about this multiple of the total variance's root
_FAR_CENTERS = 0.125


@dataclass(frozen=True, eq=False)
class PointCloud:
    """One cloud, centered and scaled, in the solver's order, padded with rows of zeros.

    Point i belongs to group i mod `groups`, and the number of rows is a multiple of `groups`.
    Searches over all pairs compute the minimum of each group first.
    """

    points: Float[torch.Tensor, "padded d"]
    norms: Float[torch.Tensor, " n"]  # ||x_i||^2 before rounding to the precision of `points`
    groups: int
    offset_error: float = 0.0  # bound on the norm of the rounding error of `Geometry.offset`
    index: Int[torch.Tensor, " n"] | None = None  # indices of these points in a larger cloud
    product_error: float = 0.0  # error of reduced points' products (`inner_product_error`)
    is_y: bool = False  # whether this is the second cloud

    @property
    def n(self) -> int:
        return len(self.norms)

    @property
    def unit(self) -> float:
        """Unit roundoff u of the products."""
        return torch.finfo(self.points.dtype).eps / 2

    def error(self, bias: Float[torch.Tensor, " n"]) -> Float[torch.Tensor, " n"]:
        """Return e_i for these points: the error of ``bias_i - 2 x_i.y_j`` is at most e_i + e_j."""
        relative = (roundings(self.points.shape[1]) + 6) * self.unit + self.product_error
        error = 1.01 * relative * (self.norms + abs(bias))
        return error + self.offset_error * (1 + self.norms) + 1e-30

    def head(self, n: int) -> PointCloud:
        """Return the first n points as a cloud."""
        return replace(self, points=self.points[:n], norms=self.norms[:n], groups=1)

    def take(self, indices: Int[np.ndarray, " k"]) -> PointCloud:
        """Return the points with these indices as a cloud."""
        index = torch.from_numpy(indices).to(self.points.device)
        groups = _groups(len(indices))
        points = self.points.new_zeros((_round_up(len(indices), groups), self.points.shape[1]))
        points[: len(indices)] = self.points[index]
        return replace(self, points=points, norms=self.norms[index], groups=groups, index=index)


@dataclass(frozen=True, eq=False)
class Geometry:
    """Costs ``c_ij = ||x_i - y_j - offset||^2 * scale^2``, in the order `order_x`, `order_y`.

    The order is random, so that the first points are a fair sample and neighbors fall into
    different groups. If there is a pairing, it pairs point i of x with point i of y in this order.
    ``visits["features"]`` sums, over all pairs visited, the number of their features.
    """

    clouds: PointClouds  # as given
    order_x: Int[np.ndarray, " n"]  # row of `clouds.x` of each point in order
    order_y: Int[np.ndarray, " m"]
    scale: float  # a power of two that makes the total variance of the clouds about 1
    memory: int  # bytes that may be used in addition to the points
    dtype: torch.dtype = torch.float32  # of the products
    visits: Counter[str] = field(default_factory=Counter)

    @classmethod
    def of(cls, clouds: PointClouds, memory: int, seed: int = 0) -> Geometry:
        """Order and scale the clouds."""
        rng = np.random.default_rng(seed)
        order_x = rng.permutation(len(clouds.x))
        pairing = clouds.pairing
        order_y = rng.permutation(len(clouds.y)) if pairing is None else pairing[order_x]
        variance = clouds.total_variance
        scale = 2.0 ** -round(np.log2(variance) / 2) if variance > 0 else 1.0
        return cls(clouds, order_x, order_y, scale, memory)

    @property
    def weights(self) -> tuple[Float[np.ndarray, " n"], Float[np.ndarray, " m"]]:
        """The clouds' weights, in order."""
        a, b = self.clouds.a.cpu().numpy(), self.clouds.b.cpu().numpy()
        return a[self.order_x], b[self.order_y]

    @property
    def masses(self) -> tuple[Float[np.ndarray, " n"], Float[np.ndarray, " m"]]:
        """The clouds' masses, in order."""
        a, b = self.clouds.masses
        return a[self.order_x], b[self.order_y]

    @property
    def passes(self) -> float:
        """Number of passes over all pairs; visits of some pairs or features count in part."""
        visited = processes.all_reduce_sum(float(self.visits["features"]))
        return round(visited / (self.x.n * self.y.n * self.clouds.x.shape[1]), 2)

    @cached_property
    def double_precision(self) -> Geometry:
        """The same costs with products in float64."""
        return self if self.dtype is torch.float64 else replace(self, dtype=torch.float64)

    @cached_property
    def has_offset(self) -> bool:
        """Whether the centers are far apart compared with the root of the total variance."""
        return float(self.clouds.offset.norm()) * self.scale > _FAR_CENTERS

    @cached_property
    def offset(self) -> Float[torch.Tensor, " d"]:
        """Difference of the centers if they are far apart, otherwise 0.

        Subtracting a small offset would only add rounding errors. If it is 0, both clouds are
        centered at the center of x, and `translation_potential` accounts for the difference.
        """
        return self.clouds.offset if self.has_offset else torch.zeros_like(self.clouds.offset)

    @cached_property
    def _offset_square(self) -> float:
        return float(self.offset @ self.offset)

    @property
    def _center_y(self) -> Float[torch.Tensor, " d"]:
        return self.clouds.target.center if self.has_offset else self.clouds.source.center

    @cached_property
    def _indices(self) -> tuple[Int[torch.Tensor, " n"], Int[torch.Tensor, " m"]]:
        """`order_x` and `order_y` as tensors on the clouds' device."""
        device = self.clouds.x.device
        return torch.from_numpy(self.order_x).to(device), torch.from_numpy(self.order_y).to(device)

    @cached_property
    def x(self) -> PointCloud:
        return self._point_cloud(is_y=False)

    @cached_property
    def y(self) -> PointCloud:
        return self._point_cloud(is_y=True)

    @property
    def screens(self) -> bool:
        """Whether testing the reduced points first saves time; processes can differ in this.

        It does if points have many features and this process has not stored their products.
        """
        stored = self.__dict__.get("products") is not None
        return not stored and self.clouds.x.shape[1] >= _SCREEN_FROM

    @cached_property
    def reduced(self) -> tuple[PointCloud, PointCloud]:
        """Both clouds reduced to few features (`reduce_dimension`)."""
        v = principal_directions(self.x.points, self.y.points, _SCREENING_DIRECTIONS)
        return self._point_cloud(is_y=False, v=v), self._point_cloud(is_y=True, v=v)

    def _point_cloud(
        self, *, is_y: bool, v: Float[torch.Tensor, "d k"] | None = None
    ) -> PointCloud:
        """Return the centered, scaled points of a cloud in order, reduced along v if given."""
        x, center, index = (
            (self.clouds.y, self._center_y, self._indices[1])
            if is_y
            else (self.clouds.x, self.clouds.source.center, self._indices[0])
        )
        n, d = x.shape
        groups = _groups(n)
        width, error = (d, 0.0) if v is None else (v.shape[1] + 1, inner_product_error(v))
        points = torch.zeros((_round_up(n, groups), width), dtype=self.dtype, device=x.device)
        norms = torch.empty(n, dtype=torch.float64, device=x.device)
        for part, rows in centered_rows(x, center, index):
            rows *= self.scale
            points[part] = (rows if v is None else reduce_dimension(rows, v, error)).to(self.dtype)
            norms[part] = rows.square_().sum(1)
        offset_error = UNIT_ROUNDOFF * float(self.offset.norm()) * self.scale
        return PointCloud(points, norms, groups, offset_error, product_error=error, is_y=is_y)

    def pair_costs(
        self, i: Int[np.ndarray, " k"], j: Int[np.ndarray, " k"]
    ) -> Float[np.ndarray, " k"]:
        """Return c_ij of the pairs (i, j), from differences in float64 (see `cost_error`)."""
        i, j = self.order_x[i], self.order_y[j]
        shift = self.offset if self.has_offset else None
        return self.clouds.pair_costs(i, j, shift, self.scale).cpu().numpy()

    def cost_error(self, cost: Float[np.ndarray, " k"]) -> Float[np.ndarray, " k"]:
        """Return bounds on the errors of costs that `pair_costs` computed."""
        shift = self._offset_square * self.scale**2
        return (self.clouds.x.shape[1] + 16) * UNIT_ROUNDOFF * 2 * (cost + shift)

    def translation_potential(self) -> Float[np.ndarray, " n"]:
        """Return the potential f that is optimal if y is a translation of x."""
        along_x, _ = self._along(self.clouds.offset - self.offset)
        return 2 * along_x[self.order_x] * self.scale**2

    def original_potentials(
        self, f: Float[np.ndarray, " n"], g: Float[np.ndarray, " m"]
    ) -> tuple[Float[np.ndarray, " n"], Float[np.ndarray, " m"]]:
        """Return feasible potentials of the clouds as given, from feasible f, g of these costs."""
        along_x, along_y = self._along(self.offset)
        middle = (float(g.mean()) - float(f.mean())) / 2
        original_f, original_g = 2 * along_x + self._offset_square, -2 * along_y
        original_f[self.order_x] += (middle + f) / self.scale**2
        original_g[self.order_y] += (g - middle) / self.scale**2
        largest = abs(original_f).max() + abs(original_g).max()
        return original_f - 32 * UNIT_ROUNDOFF * largest, original_g

    def centered_potentials(
        self, f: Float[np.ndarray, " n"], g: Float[np.ndarray, " m"]
    ) -> tuple[Float[np.ndarray, " n"], Float[np.ndarray, " m"]]:
        """Return potentials of these costs from those of the clouds as given."""
        along_x, along_y = self._along(self.offset)
        f, g = f - self._offset_square - 2 * along_x, g + 2 * along_y
        return f[self.order_x] * self.scale**2, g[self.order_y] * self.scale**2

    def _along(
        self, direction: Float[torch.Tensor, " d"]
    ) -> tuple[Float[np.ndarray, " n"], Float[np.ndarray, " m"]]:
        """Return inner products of a direction with the centered points, in the clouds' order."""
        along_x, along_y = self.clouds.project(direction[None])
        return along_x[0].cpu().numpy(), along_y[0].cpu().numpy()

    @cached_property
    def products(self) -> Float[torch.Tensor, "m n"] | None:
        """All <y_j, x_i>; None if they do not fit in memory or storing them saves no time."""
        x, y = self.x.points, self.y.points
        available = block_entries(self.memory) // 2
        if x.shape[1] < _STORE_FROM or len(x) * len(y) * x.element_size() > available:
            return None
        return store_products(y, x)

    def tiles(
        self,
        work: Callable[[slice, torch.Tensor], T],
        target: PointCloud,
        source: PointCloud,
        bias: Float[torch.Tensor, " n"],
    ) -> Iterator[tuple[slice, T]]:
        """Yield ``rows, work(rows, tile)`` for tiles ``bias_i - 2 <target_j, source_i>`` of rows j.

        `bias` is padded with infinity, so that padding is never the minimum.
        """
        padded = torch.full((len(source.points),), torch.inf, dtype=self.dtype, device=bias.device)
        padded[: len(bias)] = bias
        stored = self._stored_products(target, source)

        def fill(rows: slice, out: torch.Tensor) -> torch.Tensor:
            self.visits["features"] += len(out) * source.n * target.points.shape[1]
            if stored is None:
                return products(target.points[rows], source.points, padded, -2.0, out)
            part = stored(rows)
            width = part.shape[1]  # products of listed points (`index`) have no padding
            torch.add(padded[:width], part, alpha=-2.0, out=out[:, :width])
            out[:, width:] = torch.inf
            return out

        most = self.memory // (8 * padded.element_size())
        return map_tiles(work, fill, (target.n, len(padded)), padded, most)

    def _stored_products(
        self, target: PointCloud, source: PointCloud
    ) -> Callable[[slice], torch.Tensor] | None:
        """Return a function that reads stored products of some rows; None if they are not stored.

        They are not used for reduced points. For a selection of points y, they are used if they
        are already stored.
        """
        if target.points.shape[1] != self.clouds.x.shape[1]:
            return None
        stored = self.products if target.index is None else self.__dict__.get("products")
        if stored is None:
            return None
        columns = slice(len(source.points)) if source.index is None else source.index
        if (index := target.index) is not None:
            usable = target.is_y and source.index is None
            return (lambda rows: stored[index[rows], columns]) if usable else None
        if target.is_y:
            return lambda rows: stored[rows, columns]
        return lambda rows: stored[columns, rows].T


def inner_product_error(v: Float[torch.Tensor, "d count"]) -> float:
    """Bound how much too small 2 <x, y> of reduced points can be, relative to ||x||^2 + ||y||^2.

    The causes are that V^T V is not exactly the identity, and the rounding of products with V.
    """
    d, count = v.shape
    skew = v.T @ v - torch.eye(count, dtype=v.dtype, device=v.device)
    rounding = (count + 2.5 * math.sqrt(count)) * (d + 2) * UNIT_ROUNDOFF
    return 1.1 * (float(skew.norm()) + rounding)


def reduce_dimension(
    points: Float[torch.Tensor, "rows d"], v: Float[torch.Tensor, "d count"], error: float
) -> Float[torch.Tensor, "rows reduced"]:
    """Return (V^T x, r) for float64 rows x, with r at least the distance of x from V's range.

    Therefore r^2 is ||x||^2 - ||V^T x||^2 plus a bound on its error: `error` and the rounding of
    the sums, relative to ||x||^2.
    """
    projection = points @ v
    square = points.square().sum(1)
    rest = square - projection.square().sum(1)
    rest += (error + 2 * sum(v.shape) * UNIT_ROUNDOFF) * square
    return torch.cat([projection, rest.clamp_(min=0).sqrt_()[:, None]], 1)


def _groups(n: int) -> int:
    """Return the number of groups of n points: about sqrt(n), or n if n is small."""
    return max(n, 1) if n <= 64 else int(2 ** round(np.log2(n) / 2))


def _round_up(n: int, unit: int) -> int:
    return -(-n // unit) * unit
