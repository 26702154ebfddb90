"""Bringing a model's features to a network's layer: a turn and a scale, by least squares."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float
from scipy.optimize import minimize_scalar

from ..arrays.rows import Sliceable, as_float64

Block = Float[np.ndarray, "b d"]  # some rows
Product = Float[np.ndarray, "d p"] | float  # with what an aim sees of a layer; without one, <,>
TURNED = 256  # directions of a layer that are turned to; in wider ones the leading so many
SKETCHED = 1024  # samples that say which directions lead
SEEN = 1e-8  # relative variance of a wide layer, or scale of a product, below which none leads


@dataclass(frozen=True, eq=False)
class Placing:
    """A turn and a scale that bring centred features to a layer.

    Attributes
    ----------
    gain : float
        Not negative.
    turn : callable or None
        Turns features (rows): a rotation of their space, or a reflection.
    """

    gain: float
    turn: Callable[[Block], Block] | None = None

    def __call__(self, shape: Block) -> Block:
        """Return the features, turned and scaled."""
        return self.gain * (shape if self.turn is None else self.turn(shape))

    @classmethod
    def of(cls, size: float, product: Product, aim: Aim | None) -> Placing:
        """The one that comes nearest to a layer; turning only with an aim at it.

        Of the shape, centred: `size` is ||shape||^2, and `product` is <shape, layer>, or with an
        aim shape^T times what it sees. With U S V^T of shape^T layer the turn is U V^T and the
        scale tr S / ||shape||^2 (Procrustes).
        """
        if size == 0:
            return cls(0.0)
        if aim is None or isinstance(product, float):
            return cls(max(float(product) / size, 0.0))
        if not product.any():  # a dead layer, of which a wide one has no directions
            return cls(0.0)
        if aim.basis is None:
            left, scales, right = np.linalg.svd(product)
            led = scales > SEEN * scales[0]
            if not led.all():  # where nothing leads rounding would
                return cls(float(scales[led].sum()) / size, _direct(left[:, led], right[led].T))
            polar = left @ right
            return cls(float(scales.sum()) / size, lambda features: features @ polar)
        values, axes = np.linalg.eigh(product.T @ product)
        axes = axes[:, values > SEEN * values[-1]]
        scales = np.linalg.norm(product @ axes, axis=0)
        turn = _direct(product @ axes / scales, aim.basis @ axes)
        return cls(float(scales.sum()) / size, turn)


@dataclass(frozen=True, eq=False)
class Aim:
    """What of a layer features are turned to: all of it, or the leading directions of a wide one.

    Attributes
    ----------
    basis : ndarray, (d, p), or None
        The directions, orthonormal; None where they are all.
    """

    basis: Float[np.ndarray, "d p"] | None = None

    def seen(self, spread: Block) -> Float[np.ndarray, "b p"]:
        """The centred layer along these directions."""
        return spread if self.basis is None else spread @ self.basis

    @classmethod
    def at(cls, layer: Sliceable, mean: Float[np.ndarray, " d"]) -> Aim:
        """The `TURNED` leading directions, found on `SKETCHED` of the samples."""
        n, d = layer.shape
        if d <= TURNED:
            return cls()
        rows = as_float64(layer[np.linspace(0, n - 1, min(n, SKETCHED)).astype(np.int64)]) - mean
        if len(rows) < d:
            values, left = np.linalg.eigh(rows @ rows.T)
            axes = rows.T @ left[:, values > SEEN * values[-1]][:, -TURNED:]
        else:
            axes = np.linalg.eigh(rows.T @ rows)[1][:, -TURNED:]
        return cls(np.linalg.qr(axes)[0])


def nuclear(matrix: Float[np.ndarray, "a b"]) -> float:
    """Sum of the singular values; of a tall matrix to about 1e-8 of the largest."""
    if matrix.shape[0] < 2 * matrix.shape[1]:
        return float(np.linalg.svd(matrix, compute_uv=False).sum())
    return float(np.sqrt(np.maximum(np.linalg.eigvalsh(matrix.T @ matrix), 0)).sum())


def _direct(
    start: Float[np.ndarray, "d p"], end: Float[np.ndarray, "d p"]
) -> Callable[[Block], Block]:
    """The turn that takes orthonormal directions to others, and stays near the identity elsewhere.

    It moves nothing across the space that both span, of at most 2 p dimensions.
    """
    frame = np.linalg.qr(np.concatenate([start, end], axis=1))[0]
    a, b = frame.T @ start, frame.T @ end
    a_rest, b_rest = (np.linalg.qr(m, mode="complete")[0][:, m.shape[1] :] for m in (a, b))
    left, _, right = np.linalg.svd(a_rest.T @ b_rest)
    change = a @ b.T + a_rest @ left @ right @ b_rest.T - np.eye(len(a))
    return lambda features: features + (features @ frame) @ change @ frame.T


def nearest_shape(
    products: tuple[float, float, float],
    x_onto: Float[np.ndarray, "d p"],
    d_onto: Float[np.ndarray, "d p"],
) -> float:
    """Time t in [0, 1] for which x + t d, turned and scaled, comes nearest to a layer.

    From <x, x>, <x, d>, <d, d> and the products x^T m and d^T m with what is aimed at of the layer.
    """
    xx, xd, dd = products

    def missed(t: float) -> float:
        size = xx + 2 * t * xd + t * t * dd
        return -(nuclear(x_onto + t * d_onto) ** 2) / size if size > 0 else 0.0

    inner = minimize_scalar(missed, bounds=(0, 1), method="bounded", options={"xatol": 1e-3})
    return float(min((0.0, 1.0, float(inner.x)), key=missed))
