"""One weighted point cloud, centered, and what solvers compute of it alone."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from jaxtyping import Float

from .tiles import chunks

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
    finally:  # a stored error or an interrupted thread may keep the clouds, but no later call
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
