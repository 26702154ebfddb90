"""What each model says the features of a segment's layers are."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from jaxtyping import Float, Int

from ..errors import ArgumentError
from ..trajectory import Segment
from .placing import Aim, Features, Placing, centred, nearest_shape

NOTHING = 1e-20  # relative variance that is rounding: the layer is the input, shifted and scaled


@dataclass(frozen=True, eq=False)
class Prediction:
    """A model's features of one layer, and how they were brought to the network's place and size.

    Attributes
    ----------
    features : ndarray, (n, d)
    still : ndarray, (n, d)
        The input, brought there with the same freedom: what the model is judged beside.
    time, gain : float
        See `ModelLayer`.
    """

    features: Features
    still: Features
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
    layers = (array.astype(np.float64) for array in segment.arrays)
    sizes = [float(np.sqrt(np.sum((b - a) ** 2))) for a, b in pairwise(layers)]
    total = sum(sizes)
    return [sum(sizes[:i]) / total for i in range(steps + 1)] if total > 0 else uniform


def along(
    segment: Segment,
    at: Sequence[float] | None,
    first: Features,
    last: Features,
    *,
    rotate: bool = False,
) -> Iterator[Prediction]:
    """The straight path from `first` to `last`, brought to the network's layers, one by one."""
    start = centred(segment.arrays[0].astype(np.float64))
    for array, (t, placing, aim) in zip(
        segment.arrays, placed(segment.arrays, at, first, last, rotate), strict=True
    ):
        layer = array.astype(np.float64)
        mean = layer.mean(0)
        path = centred((1 - t) * first + t * last)
        still = mean + Placing.of(start, layer - mean, aim)(start)
        yield Prediction(mean + placing(path), still, t, placing.gain)


def placed(
    layers: Sequence[Float[np.ndarray, "n d"]],
    at: Sequence[float] | None,
    first: Features,
    last: Features,
    rotate: bool,
) -> Iterator[tuple[float, Placing, Aim | None]]:
    """Time of every layer on the path from `first` to `last`, and what brings the path there."""
    x, d = centred(first), centred(last - first)
    products = (float(np.vdot(x, x)), float(np.vdot(x, d)), float(np.vdot(d, d)))
    for i, layer in enumerate(layers):
        t = at[i] if at is not None else fixed_time(i, len(layers))
        spread = centred(layer.astype(np.float64))
        aim = Aim.at(spread) if rotate else None
        if t is None and aim is not None:
            t = nearest_shape(products, x.T @ aim.seen, d.T @ aim.seen)
        elif t is None:
            onto = float(np.vdot(x, spread)), float(np.vdot(d, spread))
            t = place(products, onto, None)[0]
        yield t, Placing.of(x + t * d, spread, aim), aim


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
    features: Features, first: Features, labels: Int[np.ndarray, " n"]
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
    frame = size * contrasts @ left @ right
    spread, start = centred(features), centred(first)
    still = features.mean(0) + Placing.of(start, spread, Aim.at(spread))(start)
    return Prediction((means.mean(0) + frame)[labels], still, 1.0, size)


def class_means(features: Features, labels: Int[np.ndarray, " n"]) -> Float[np.ndarray, "K d"]:
    """Mean of every class 0, ..., K - 1."""
    onehot = np.eye(int(labels.max()) + 1)[labels]
    return (onehot / onehot.sum(0)).T @ features


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
        features: Features,
        still: Features,
        measured: Features,
        labels: Int[np.ndarray, " n"],
    ) -> Errors:
        """Judge `features`, and the input that was brought there, as predictions of `measured`."""
        missed, stayed = features - measured, still - measured
        counts = np.bincount(labels)
        variance = float(np.sum(centred(measured) ** 2))

        def of_means(error: Features) -> float:
            return float(counts @ np.sum(class_means(error, labels) ** 2, axis=1))

        def rounded(value: float) -> float:
            return value if value > NOTHING * variance else 0.0

        return cls(
            float(np.sum(missed**2)),
            rounded(float(np.sum(stayed**2))),
            of_means(missed),
            rounded(of_means(stayed)),
            variance,
        )


def gained(error: float, over: float) -> float | None:
    """1 - error / over; None where there was nothing to gain."""
    return None if over == 0 else float(1 - error / over)
