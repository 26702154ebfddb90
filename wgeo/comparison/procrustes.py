"""Orthogonal Procrustes: rotate and scale features so that they are nearest to a layer."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import numpy as np
from jaxtyping import Float
from scipy.optimize import minimize_scalar

from ..arrays.rows import Sliceable, as_float64, spaced_rows
from ..runtime import processes

Block = Float[np.ndarray, "b d"]  # some rows
Product = Float[np.ndarray, "d p"] | float  # x^T layer in a subspace, or <x, layer>
MAX_DIRECTIONS = 256  # of a target subspace; of a wider layer, only its leading directions are used
SUBSPACE_SAMPLES = 1024  # samples from which the leading directions are computed
RANK_TOLERANCE = 1e-8  # directions of smaller relative variance or singular value are ignored


@dataclass(frozen=True, eq=False)
class Procrustes:
    """A scale and an orthogonal map that bring centered features nearest to a layer."""

    scale: float  # at least 0
    rotation: Callable[[Block], Block] | None = None  # of rows, perhaps with a reflection

    def __call__(self, features: Block) -> Block:
        return self.scale * (features if self.rotation is None else self.rotation(features))

    @classmethod
    def fit(cls, size: float, product: Product, target: TargetSubspace | None) -> Procrustes:
        """Fit centered features x to a layer by least squares, with a rotation only if `target`.

        `size` is ||x||^2. `product` is x^T layer in the target subspace, or <x, layer> without a
        target. If x^T layer = U S V^T, the rotation is U V^T and the scale is tr S / ||x||^2.
        """
        if size == 0:
            return cls(0.0)
        if target is None or isinstance(product, float):
            return cls(max(float(product) / size, 0.0))
        if not product.any():  # a constant layer, which has no leading directions
            return cls(0.0)
        if target.basis is None:
            left, values, right = np.linalg.svd(product)
            significant = values > RANK_TOLERANCE * values[0]
            if not significant.all():  # the other singular vectors are rounding errors
                rotation = _rotation_between(left[:, significant], right[significant].T)
                return cls(float(values[significant].sum()) / size, rotation)
            matrix = left @ right
            return cls(float(values.sum()) / size, lambda features: features @ matrix)
        values, axes = np.linalg.eigh(product.T @ product)
        axes = axes[:, values > RANK_TOLERANCE * values[-1]]
        singular = np.linalg.norm(product @ axes, axis=0)
        rotation = _rotation_between(product @ axes / singular, target.basis @ axes)
        return cls(float(singular.sum()) / size, rotation)


@dataclass(frozen=True, eq=False)
class TargetSubspace:
    """The subspace into which features are rotated: a layer's leading directions, or all."""

    basis: Float[np.ndarray, "d p"] | None = None  # orthonormal; None for the whole space

    def project(self, centered: Block) -> Float[np.ndarray, "b p"]:
        """Return the centered layer's coordinates in the subspace."""
        return centered if self.basis is None else centered @ self.basis

    @classmethod
    def of_layer(cls, layer: Sliceable, mean: Float[np.ndarray, " d"]) -> TargetSubspace:
        """Return the whole space, or the span of the leading directions of a wide layer.

        A layer is wide if it has more than `MAX_DIRECTIONS` features. Its directions are computed
        from at most `SUBSPACE_SAMPLES` samples, by one process.
        """
        if layer.shape[1] <= MAX_DIRECTIONS:
            return cls()
        return cls(processes.on_rank_zero(partial(_leading_directions, layer, mean)))


def _leading_directions(
    layer: Sliceable, mean: Float[np.ndarray, " d"]
) -> Float[np.ndarray, "d p"]:
    rows = as_float64(layer[spaced_rows(layer.shape[0], SUBSPACE_SAMPLES)]) - mean
    if len(rows) < len(mean):
        values, left = np.linalg.eigh(rows @ rows.T)
        axes = rows.T @ left[:, values > RANK_TOLERANCE * values[-1]][:, -MAX_DIRECTIONS:]
    else:
        axes = np.linalg.eigh(rows.T @ rows)[1][:, -MAX_DIRECTIONS:]
    return np.linalg.qr(axes)[0]


def nuclear_norm(matrix: Float[np.ndarray, "a b"]) -> float:
    """Return the sum of the singular values, of a tall matrix to about 1e-8 of the largest."""
    if matrix.shape[0] < 2 * matrix.shape[1]:
        return float(np.linalg.svd(matrix, compute_uv=False).sum())
    return float(np.sqrt(np.maximum(np.linalg.eigvalsh(matrix.T @ matrix), 0)).sum())


def _rotation_between(
    start: Float[np.ndarray, "d p"], end: Float[np.ndarray, "d p"]
) -> Callable[[Block], Block]:
    """Return a rotation that maps orthonormal directions `start` to `end`.

    On the complement of their joint span it is the identity. Within the span it is nearest to the
    identity among the rotations that map `start` to `end`.
    """
    frame = np.linalg.qr(np.concatenate([start, end], axis=1))[0]
    a, b = frame.T @ start, frame.T @ end
    a_rest, b_rest = (np.linalg.qr(m, mode="complete")[0][:, m.shape[1] :] for m in (a, b))
    left, _, right = np.linalg.svd(a_rest.T @ b_rest)
    change = a @ b.T + a_rest @ left @ right @ b_rest.T - np.eye(len(a))
    return lambda features: features + (features @ frame) @ change @ frame.T


def nearest_rotated_time(
    products: tuple[float, float, float],
    x_product: Float[np.ndarray, "d p"],
    d_product: Float[np.ndarray, "d p"],
) -> float:
    """Return t in [0, 1] for which x + t d, rotated and scaled, is nearest to a layer m.

    `products` are <x, x>, <x, d> and <d, d>; the others are x^T m and d^T m in the target subspace.
    """
    xx, xd, dd = products

    def negative_explained(t: float) -> float:
        size = xx + 2 * t * xd + t * t * dd
        return -(nuclear_norm(x_product + t * d_product) ** 2) / size if size > 0 else 0.0

    minimum = minimize_scalar(
        negative_explained, bounds=(0, 1), method="bounded", options={"xatol": 1e-3}
    )
    return float(min((0.0, 1.0, float(minimum.x)), key=negative_explained))
