"""What each model says the features of a segment's layers are."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
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
from ..runtime.processes import on_rank_zero
from ..trajectory import Segment
from .procrustes import Aim, Block, Placing, Product, nearest_shape

NOTHING = 1e-20  # relative variance that is rounding: the layer is the input, shifted and scaled


@dataclass(frozen=True, eq=False)
class Prediction:
    """A model's features of one layer, and how they were brought to the network's place and size.

    Attributes
    ----------
    features : LazyRows, (n, d)
    still : LazyRows, (n, d)
        The input, brought there with the same freedom: what the model is judged beside.
    time, gain : float
        See `ModelLayer`.
    """

    features: LazyRows
    still: LazyRows
    time: float
    gain: float


def times(segment: Segment, kind: str) -> list[float] | None:
    """Where on the way from first to last each layer is; None where each model says so itself.

    ``nearest``: where the model's path comes nearest to the layer (None). ``length``: the sum of
    the root mean squared steps up to the layer, over that of all steps. ``uniform``: l / L.
    """
    steps = len(segment.arrays) - 1
    uniform = [i / steps for i in range(steps + 1)]
    if kind == "nearest":
        return None
    if kind == "uniform":
        return uniform
    if kind != "length":
        raise ArgumentError(f"time is 'nearest', 'length' or 'uniform', not {kind!r}.")
    sizes = [
        float(np.sqrt(sum_over_rows(lambda _, x, y: [np.sum((y - x) ** 2)], a, b)[0]))
        for a, b in pairwise(segment.arrays)
    ]
    total = sum(sizes)
    return [sum(sizes[:i]) / total for i in range(steps + 1)] if total > 0 else uniform


@dataclass(frozen=True, eq=False)
class Place:
    """Where a straight path passes a layer, and what brings its features there.

    Attributes
    ----------
    time : float
    mean : ndarray, (d,)
        Of the layer.
    path, still : Placing
        Of the path at that time, and of its start.
    """

    time: float
    mean: Float[np.ndarray, " d"]
    path: Placing
    still: Placing


@dataclass(frozen=True, eq=False)
class Line:
    """A straight path, X + t (H - X) sample by sample, from `first` to `last`."""

    first: Sliceable
    last: Sliceable

    @cached_property
    def _means(self) -> tuple[Float[np.ndarray, " d"], Float[np.ndarray, " d"]]:
        return mean_of(self.first), mean_of(self.last)

    @cached_property
    def products(self) -> tuple[float, float, float]:
        """<X, X>, <X, D> and <D, D> of X and D = H - X about their means."""

        def terms(_: slice, start: Block, end: Block) -> list[float]:
            x, d = self._about(start, end)
            return [float(np.vdot(x, x)), float(np.vdot(x, d)), float(np.vdot(d, d))]

        xx, xd, dd = sum_over_rows(terms, self.first, self.last)
        return xx, xd, dd

    def _about(self, start: Block, end: Block) -> tuple[Block, Block]:
        """Some rows of X and H - X, about their means."""
        of_first, of_last = self._means
        return start - of_first, end - start - (of_last - of_first)

    def at(self, t: float) -> LazyRows:
        """The path at a time, about its mean."""
        of_first, of_last = self._means

        def make(rows: Any) -> Block:
            x = as_float64(self.first[rows]) - of_first
            return x if t == 0 else (1 - t) * x + t * (as_float64(self.last[rows]) - of_last)

        return LazyRows(self.first.shape, make, max_width(self.first, self.last))

    def places(
        self, layers: Sequence[Sliceable], at: Sequence[float] | None, *, rotate: bool
    ) -> Iterator[Place]:
        """Of every layer in turn; at the nearest times where `at` is None."""
        xx, xd, dd = self.products
        for i, layer in enumerate(layers):
            t = at[i] if at is not None else fixed_time(i, len(layers))
            mean = mean_of(layer)
            aim = on_rank_zero(partial(Aim.at, layer, mean)) if rotate else None
            x_onto, d_onto = self._onto(layer, mean, aim)
            if t is None and isinstance(x_onto, np.ndarray) and isinstance(d_onto, np.ndarray):
                t = nearest_shape(self.products, x_onto, d_onto)
            elif t is None:
                t = place(self.products, (float(x_onto), float(d_onto)), None)[0]
            size = xx + 2 * t * xd + t * t * dd
            path = Placing.of(size, x_onto + t * d_onto, aim)
            yield Place(t, mean, path, Placing.of(xx, x_onto, aim))

    def _onto(
        self, layer: Sliceable, mean: Float[np.ndarray, " d"], aim: Aim | None
    ) -> tuple[Product, Product]:
        """Products of X and H - X with what is seen of a layer."""

        def terms(_: slice, start: Block, end: Block, measured: Block) -> list[Product]:
            x, d = self._about(start, end)
            spread = measured - mean
            if aim is None:
                return [float(np.vdot(x, spread)), float(np.vdot(d, spread))]
            seen = aim.seen(spread)
            return [x.T @ seen, d.T @ seen]

        of_x, of_d = sum_over_rows(terms, self.first, self.last, layer)
        return of_x, of_d

    def brought(self, place: Place, mean: Float[np.ndarray, " d"] | None = None) -> Prediction:
        """The path's features there; about another mean than the layer's where one is given."""
        about = place.mean if mean is None else mean

        def placed(placing: Placing, t: float) -> LazyRows:
            path = self.at(t)
            return LazyRows(path.shape, lambda rows: about + placing(path[rows]), path.width)

        features, still = placed(place.path, place.time), placed(place.still, 0.0)
        return Prediction(features, still, place.time, place.path.gain)


def along(
    segment: Segment, at: Sequence[float] | None, line: Line, *, rotate: bool = False
) -> Iterator[Prediction]:
    """The straight path brought to the network's layers, one by one."""
    return (line.brought(place) for place in line.places(segment.arrays, at, rotate=rotate))


def fixed_time(index: int, count: int) -> float | None:
    """The ends of a path are its ends; the inner layers lie where they lie."""
    return 0.0 if index == 0 else 1.0 if index == count - 1 else None


def place(
    products: tuple[float, float, float], onto: tuple[float, float], t: float | None
) -> tuple[float, float, float]:
    """Time t, scale g >= 0 for which g (x + t d) is nearest to m, and the square it explains.

    From <x, x>, <x, d>, <d, d> and <x, m>, <d, m>; t in [0, 1] is found where it is None.
    """
    xx, xd, dd = products
    xm, dm = onto
    if t is None:
        det = xx * dd - xd * xd
        if det > 1e-12 * xx * dd:
            gain, along_d = (xm * dd - dm * xd) / det, (dm * xx - xm * xd) / det
            if gain > 0 and 0 <= along_d <= gain:
                return along_d / gain, gain, gain * xm + along_d * dm
        ends = [place(products, onto, end) for end in (0.0, 1.0)]
        return max(ends, key=lambda end: end[2])
    size, product = xx + 2 * t * xd + t * t * dd, xm + t * dm
    if size <= 0 or product <= 0:
        return t, 0.0, 0.0
    return t, product / size, product**2 / size


def collapsed(
    features: Sliceable, first: Sliceable, labels: Int[np.ndarray, " n"]
) -> Prediction | None:
    """Complete collapse onto the simplex ETF nearest to the class means; None where d < K - 1.

    The plain model leaves the frame's rotation and size free, so they are fitted: with M the
    class means (K x d) and E = I - J / K, the frame is c Q, Q the polar factor of E M of rank K - 1
    and c = ||E M||_* / (K - 1).
    """
    classes = int(labels.max()) + 1
    if features.shape[1] < classes - 1:
        return None
    means = class_means(features, labels)
    contrasts = np.linalg.svd(np.eye(classes) - 1 / classes)[0][:, :-1]  # orthonormal, sums zero
    left, scales, right = np.linalg.svd(contrasts.T @ means, full_matrices=False)
    size = float(scales.sum()) / (classes - 1)
    points = means.mean(0) + size * contrasts @ left @ right
    line = Line(first, features)
    there = next(line.places([features], [1.0], rotate=True))
    collapse = LazyRows(features.shape, lambda rows: points[labels[rows]])
    return Prediction(collapse, line.brought(there).still, 1.0, size)


@dataclass(frozen=True)
class Errors:
    """Squared errors of a prediction of one layer and of what it is judged against.

    Of all features, and of the class means alone (every class weighing by its samples).

    Attributes
    ----------
    model, input : float
    model_means, input_means : float
    variance : float
        Of the layer, about its mean.
    """

    model: float
    input: float
    model_means: float
    input_means: float
    variance: float

    @classmethod
    def of(
        cls,
        features: Sliceable,
        still: Sliceable,
        measured: Sliceable,
        labels: Int[np.ndarray, " n"],
    ) -> Errors:
        """Judge `features`, and the input that was brought there, as predictions of `measured`."""
        counts = np.bincount(labels)
        middle = mean_of(measured)

        def terms(rows: slice, said: Block, stayed: Block, layer: Block) -> list[Any]:
            found: list[Any] = [float(np.sum((layer - middle) ** 2))]
            for error in (said - layer, stayed - layer):
                by_class = sums_by_class(error, labels[rows], len(counts))
                found += [float(np.vdot(error, error)), by_class]
            return found

        variance, model, of_model, input_, of_input = sum_over_rows(
            terms, features, still, measured
        )
        model_means, input_means = (
            float(np.sum(np.sum(sums**2, axis=1)[counts > 0] / counts[counts > 0]))
            for sums in (of_model, of_input)
        )

        def rounded(value: float) -> float:
            return value if value > NOTHING * variance else 0.0

        return cls(model, rounded(input_), model_means, rounded(input_means), variance)


def gained(error: float, over: float) -> float | None:
    """1 - error / over; None where there was nothing to gain."""
    return None if over == 0 else float(1 - error / over)
