"""Predictions of the features of a segment's layers, by each model."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from typing import Any

import numpy as np
from jaxtyping import Float, Int

from ..arrays.rows import (
    LazyRows,
    Sliceable,
    as_float64,
    class_means,
    max_width,
    mean_of,
    sum_over_rows,
    sums_by_class,
)
from ..errors import ArgumentError
from ..trajectory import Segment
from .procrustes import Block, Procrustes, Product, TargetSubspace, nearest_rotated_time

ROUNDING = 1e-20  # fraction of the variance below which a squared error of the baseline is zero


@dataclass(frozen=True, eq=False)
class Prediction:
    """A model's features of one layer, shifted, scaled and perhaps rotated to fit the network's."""

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
    mean: Float[np.ndarray, " d"]  # of the layer
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
        xx, xd, dd = self.products
        for i, layer in enumerate(layers):
            t = times[i] if times is not None else end_time(i, len(layers))
            mean = mean_of(layer)
            target = TargetSubspace.of_layer(layer, mean) if rotate else None
            x_product, d_product = self._products_with(layer, mean, target)
            if (
                t is None
                and isinstance(x_product, np.ndarray)
                and isinstance(d_product, np.ndarray)
            ):
                t = nearest_rotated_time(self.products, x_product, d_product)
            elif t is None:
                t = fit_scale(self.products, (float(x_product), float(d_product)), None)[0]
            size = xx + 2 * t * xd + t * t * dd
            model = Procrustes.fit(size, x_product + t * d_product, target)
            yield LayerFit(t, mean, model, Procrustes.fit(xx, x_product, target))

    def _products_with(
        self, layer: Sliceable, mean: Float[np.ndarray, " d"], target: TargetSubspace | None
    ) -> tuple[Product, Product]:
        """Return the products of X and H - X with a layer, as in `Procrustes.fit`."""

        def terms(_: slice, start: Block, end: Block, layer: Block) -> list[Product]:
            x, d = self._centered(start, end)
            centered = layer - mean
            if target is None:
                return [float(np.vdot(x, centered)), float(np.vdot(d, centered))]
            projected = target.project(centered)
            return [x.T @ projected, d.T @ projected]

        of_x, of_d = sum_over_rows(terms, self.first, self.last, layer)
        return of_x, of_d

    def predict(self, fit: LayerFit, mean: Float[np.ndarray, " d"] | None = None) -> Prediction:
        """Return the fitted features of a layer, with `mean` instead of the layer's if given."""
        center = fit.mean if mean is None else mean

        def transformed(procrustes: Procrustes, t: float) -> LazyRows:
            path = self.at(t)
            return LazyRows(path.shape, lambda rows: center + procrustes(path[rows]), path.width)

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


def fit_scale(
    products: tuple[float, float, float], layer_products: tuple[float, float], t: float | None
) -> tuple[float, float, float]:
    """Return t, the scale g >= 0 for which g (x + t d) is nearest to m, and the explained variance.

    `products` are <x, x>, <x, d>, <d, d>; `layer_products` are <x, m>, <d, m>. If t is None, it is
    fitted in [0, 1]. The explained variance is <m, m> minus the remaining squared distance.
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
    size, product = xx + 2 * t * xd + t * t * dd, xm + t * dm
    if size <= 0 or product <= 0:
        return t, 0.0, 0.0
    return t, product / size, product**2 / size


def simplex_etf_prediction(
    features: Sliceable, first: Sliceable, labels: Int[np.ndarray, " n"]
) -> Prediction | None:
    """Predict complete collapse onto the simplex ETF nearest to the class means; None if d < K - 1.

    The plain UFM does not determine the rotation and the size of the ETF, so they are fitted. With
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
            float(np.sum(np.sum(sums**2, axis=1)[counts > 0] / counts[counts > 0]))
            for sums in (of_model, of_base)
        )

        def rounded(value: float) -> float:
            return value if value > ROUNDING * variance else 0.0

        return cls(model, rounded(base), model_means, rounded(base_means), variance)


def relative_gain(error: float, baseline: float) -> float | None:
    """Return 1 - error / baseline; None if the baseline has no error."""
    return None if baseline == 0 else float(1 - error / baseline)
