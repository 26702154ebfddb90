"""Predictions of a segment's layers: straight paths, scaled and rotated to fit the layers."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from itertools import pairwise
from typing import Any

import numpy as np
from jaxtyping import Float, Int
from scipy.optimize import minimize_scalar

from ..arrays.rows import (
    LazyRows,
    Sliceable,
    as_float64,
    class_means,
    max_width,
    mean_of,
    spaced_rows,
    sum_over_rows,
    sums_by_class,
)
from ..errors import ArgumentError
from ..runtime import processes
from ..trajectory import Segment

Block = Float[np.ndarray, "b d"]  # some rows
MAX_DIRECTIONS = 256  # a rotation fits only this many leading directions of a wider layer
SUBSPACE_SAMPLES = 1024  # largest number of samples from which these directions are computed
RANK_TOLERANCE = 1e-8  # directions of smaller relative variance or singular value are ignored
ROUNDING = 1e-20  # a squared error of the baseline counts as zero below this share of variance


@dataclass(frozen=True, eq=False)
class Prediction:
    """A model's features of one layer, fitted to the network's."""

    features: LazyRows
    baseline: LazyRows  # the segment's first layer, fitted with the same degrees of freedom
    time: float
    scale: float  # `gain` of `ModelLayer`


def layer_times(segment: Segment, kind: str) -> list[float] | None:
    """Return the times for `kind`, the parameter `time` of `compare`; None if they are fitted."""
    steps = len(segment.arrays) - 1
    uniform = [i / steps for i in range(steps + 1)]
    if kind == "nearest":
        return None
    if kind == "uniform":
        return uniform
    if kind != "length":
        raise ArgumentError(f"time must be 'nearest', 'length' or 'uniform', not {kind!r}.")
    sizes = [
        float(np.sqrt(sum_over_rows(lambda _, x, y: [np.sum((y - x) ** 2)], a, b)[0]))
        for a, b in pairwise(segment.arrays)
    ]
    total = sum(sizes)
    return [sum(sizes[:i]) / total for i in range(steps + 1)] if total > 0 else uniform


@dataclass(frozen=True, eq=False)
class LayerFit:
    """A straight path fitted to a layer."""

    time: float
    mean: Float[np.ndarray, " d"]  # of the layer; added to every prediction
    model: Procrustes  # maps the path at this time to the layer
    baseline: Procrustes  # maps the path's start to the layer


@dataclass(frozen=True, eq=False)
class StraightPath:
    """The straight path X + t (H - X) of every sample, where X is `first` and H is `last`."""

    first: Sliceable
    last: Sliceable

    @cached_property
    def _means(self) -> tuple[Float[np.ndarray, " d"], Float[np.ndarray, " d"]]:
        return mean_of(self.first), mean_of(self.last)

    @cached_property
    def products(self) -> tuple[float, float, float]:
        """<X, X>, <X, D> and <D, D> of the centered X and D = H - X."""

        def terms(_: slice, start: Block, end: Block) -> list[float]:
            x, d = self._centered(start, end)
            return [float(np.vdot(x, x)), float(np.vdot(x, d)), float(np.vdot(d, d))]

        xx, xd, dd = sum_over_rows(terms, self.first, self.last)
        return xx, xd, dd

    def _centered(self, start: Block, end: Block) -> tuple[Block, Block]:
        """Return rows of X and H - X, centered."""
        of_first, of_last = self._means
        return start - of_first, end - start - (of_last - of_first)

    def at(self, t: float) -> LazyRows:
        """Return the path at a time, centered."""
        of_first, of_last = self._means

        def make(rows: Any) -> Block:
            x = as_float64(self.first[rows]) - of_first
            return x if t == 0 else (1 - t) * x + t * (as_float64(self.last[rows]) - of_last)

        return LazyRows(self.first.shape, make, max_width(self.first, self.last))

    def fit_layers(
        self, layers: Sequence[Sliceable], times: Sequence[float] | None, *, rotate: bool
    ) -> Iterator[LayerFit]:
        """Yield the fit to every layer; without `times`, inner layers have the nearest times."""
        for i, layer in enumerate(layers):
            t = times[i] if times is not None else end_time(i, len(layers))
            mean = mean_of(layer)
            target = TargetSubspace.of_layer(layer, mean) if rotate else None
            x_product, d_product = self._products_with(layer, mean, target)
            if t is None and rotate:
                t = nearest_rotated_time(self.products, x_product, d_product)
            elif t is None:
                t = fit_scale(self.products, (x_product, d_product), None)[0]
            size = norm_at(self.products, t)
            model = Procrustes.fit(size, x_product + t * d_product, target)
            yield LayerFit(t, mean, model, Procrustes.fit(self.products[0], x_product, target))

    def _products_with(
        self, layer: Sliceable, mean: Float[np.ndarray, " d"], target: TargetSubspace | None
    ) -> tuple[Any, Any]:
        """Return the products of X and H - X with a layer, as in `Procrustes.fit`."""

        def terms(_: slice, start: Block, end: Block, layer: Block) -> list[Any]:
            x, d = self._centered(start, end)
            centered = layer - mean
            if target is None:
                return [float(np.vdot(x, centered)), float(np.vdot(d, centered))]
            projected = target.project(centered)
            return [x.T @ projected, d.T @ projected]

        of_x, of_d = sum_over_rows(terms, self.first, self.last, layer)
        return of_x, of_d

    def predict(self, fit: LayerFit) -> Prediction:
        """Return the fitted features of a layer."""

        def transformed(procrustes: Procrustes, t: float) -> LazyRows:
            path = self.at(t)
            return LazyRows(path.shape, lambda rows: fit.mean + procrustes(path[rows]), path.width)

        features, baseline = transformed(fit.model, fit.time), transformed(fit.baseline, 0.0)
        return Prediction(features, baseline, fit.time, fit.model.scale)


def path_predictions(
    segment: Segment, times: Sequence[float] | None, path: StraightPath, *, rotate: bool = False
) -> Iterator[Prediction]:
    """Yield the path's prediction of every layer of the segment."""
    return (path.predict(fit) for fit in path.fit_layers(segment.arrays, times, rotate=rotate))


def end_time(index: int, count: int) -> float | None:
    """Return 0 for the first layer, 1 for the last, None for inner layers."""
    return 0.0 if index == 0 else 1.0 if index == count - 1 else None


def norm_at(products: tuple[float, float, float], t: float) -> float:
    """Return |x + t d|^2 from <x, x>, <x, d> and <d, d>."""
    xx, xd, dd = products
    return xx + 2 * t * xd + t * t * dd


def fit_scale(
    products: tuple[float, float, float], layer_products: tuple[float, float], t: float | None
) -> tuple[float, float, float]:
    """Return t, the scale g >= 0 for which g (x + t d) is nearest to m, and the explained variance.

    `products` are those of `norm_at`, and `layer_products` are <x, m> and <d, m>. If t is None, it
    is fitted in [0, 1]. The explained variance is <m, m> minus the squared distance that remains.
    """
    xx, xd, dd = products
    xm, dm = layer_products
    if t is None:
        det = xx * dd - xd * xd
        if det > 1e-12 * xx * dd:
            scale, scale_d = (xm * dd - dm * xd) / det, (dm * xx - xm * xd) / det
            if scale > 0 and 0 <= scale_d <= scale:
                return scale_d / scale, scale, scale * xm + scale_d * dm
        ends = [fit_scale(products, layer_products, end) for end in (0.0, 1.0)]
        return max(ends, key=lambda end: end[2])
    size, product = norm_at(products, t), xm + t * dm
    if size <= 0 or product <= 0:
        return t, 0.0, 0.0
    return t, product / size, product**2 / size


def simplex_etf_prediction(
    features: Sliceable, first: Sliceable, labels: Int[np.ndarray, " n"]
) -> Prediction | None:
    """Predict complete collapse onto the simplex ETF nearest to the class means; None if d < K - 1.

    The plain UFM does not determine the rotation and the size of the ETF, so they are fitted. For
    the centered class means M (K x d), the ETF is c Q, where Q is the polar factor of M of rank
    K - 1, and c = ||M||_* / (K - 1).
    """
    classes = int(labels.max()) + 1
    if features.shape[1] < classes - 1:
        return None
    means = class_means(features, labels)
    contrasts = np.linalg.svd(np.eye(classes) - 1 / classes)[0][:, :-1]  # orthonormal, of zero sum
    left, values, right = np.linalg.svd(contrasts.T @ means, full_matrices=False)
    scale = float(values.sum()) / (classes - 1)
    points = means.mean(0) + scale * contrasts @ left @ right
    path = StraightPath(first, features)
    fit = next(path.fit_layers([features], [1.0], rotate=True))
    collapse = LazyRows(features.shape, lambda rows: points[labels[rows]])
    return Prediction(collapse, path.predict(fit).baseline, 1.0, scale)


def nearest_rotated_time(
    products: tuple[float, float, float],
    x_product: Float[np.ndarray, "d p"],
    d_product: Float[np.ndarray, "d p"],
) -> float:
    """Return t in [0, 1] for which x + t d, rotated and scaled, is nearest to a layer m.

    `products` are those of `norm_at`; the others are x^T m and d^T m in the target subspace.
    """

    def negative_explained(t: float) -> float:
        size = norm_at(products, t)
        return -(nuclear_norm(x_product + t * d_product) ** 2) / size if size > 0 else 0.0

    minimum = minimize_scalar(
        negative_explained, bounds=(0, 1), method="bounded", options={"xatol": 1e-3}
    )
    return float(min((0.0, 1.0, float(minimum.x)), key=negative_explained))


@dataclass(frozen=True)
class Errors:
    """Squared errors of a model and of the baseline as predictions of one layer."""

    model: float
    baseline: float
    model_means: float  # of the class means, weighted by samples
    baseline_means: float
    variance: float  # sum of squares of the layer about its mean

    @classmethod
    def of(
        cls,
        features: Sliceable,
        baseline: Sliceable,
        layer: Sliceable,
        labels: Int[np.ndarray, " n"],
    ) -> Errors:
        counts = np.bincount(labels)
        mean = mean_of(layer)

        def terms(rows: slice, model: Block, start: Block, layer: Block) -> list[Any]:
            sums: list[Any] = [float(np.sum((layer - mean) ** 2))]
            for error in (model - layer, start - layer):
                by_class = sums_by_class(error, labels[rows], len(counts))
                sums += [float(np.vdot(error, error)), by_class]
            return sums

        variance, model, of_model, base, of_base = sum_over_rows(terms, features, baseline, layer)
        model_means, base_means = (
            float(np.sum(np.sum(sums**2, axis=1) / counts)) for sums in (of_model, of_base)
        )

        base, base_means = (x if x > ROUNDING * variance else 0.0 for x in (base, base_means))
        return cls(model, base, model_means, base_means, variance)


def relative_gain(error: float, baseline: float) -> float | None:
    """Return 1 - error / baseline; None if the baseline has no error."""
    return None if baseline == 0 else float(1 - error / baseline)


@dataclass(frozen=True, eq=False)
class Procrustes:
    """A scale and an orthogonal map that bring centered features nearest to a layer."""

    scale: float  # at least 0
    rotation: Callable[[Block], Block] | None = None  # acts on rows; may be a reflection

    def __call__(self, features: Block) -> Block:
        return self.scale * (features if self.rotation is None else self.rotation(features))

    @classmethod
    def fit(cls, size: float, product: Any, target: TargetSubspace | None) -> Procrustes:
        """Fit centered features x to a layer by least squares; without `target`, do not rotate.

        `size` is ||x||^2. `product` is x^T layer in the target subspace, or <x, layer> without a
        target. If x^T layer = U S V^T, the rotation is U V^T and the scale is tr S / ||x||^2.
        """
        if size == 0:
            return cls(0.0)
        if target is None:
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
    """The subspace into which features are rotated."""

    basis: Float[np.ndarray, "d p"] | None = None  # orthonormal; None for the whole space

    def project(self, centered: Block) -> Float[np.ndarray, "b p"]:
        """Return the centered layer's coordinates in the subspace."""
        return centered if self.basis is None else centered @ self.basis

    @classmethod
    def of_layer(cls, layer: Sliceable, mean: Float[np.ndarray, " d"]) -> TargetSubspace:
        """Return the whole space, or `MAX_DIRECTIONS` leading directions of a wider layer."""
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
    """Return the sum of the singular values.

    The singular values of a tall matrix are accurate only to about 1e-8 of the largest one.
    """
    if matrix.shape[0] < 2 * matrix.shape[1]:
        return float(np.linalg.svd(matrix, compute_uv=False).sum())
    return float(np.sqrt(np.maximum(np.linalg.eigvalsh(matrix.T @ matrix), 0)).sum())


def _rotation_between(
    start: Float[np.ndarray, "d p"], end: Float[np.ndarray, "d p"]
) -> Callable[[Block], Block]:
    """Return the orthogonal map nearest to the identity that maps directions `start` to `end`.

    Both are orthonormal. On the complement of their joint span the map is the identity.
    """
    frame = np.linalg.qr(np.concatenate([start, end], axis=1))[0]
    a, b = frame.T @ start, frame.T @ end
    a_rest, b_rest = (np.linalg.qr(m, mode="complete")[0][:, m.shape[1] :] for m in (a, b))
    left, _, right = np.linalg.svd(a_rest.T @ b_rest)
    change = a @ b.T + a_rest @ left @ right @ b_rest.T - np.eye(len(a))
    return lambda features: features + (features @ frame) @ change @ frame.T
