"""Layers of different widths in one space, and two-dimensional views for figures and reports."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import numpy as np
from jaxtyping import Float
from scipy.linalg import eigh

from ..arrays.checks import require_whole
from ..arrays.rows import LazyRows, materialize, sum_over_rows
from ..errors import ArgumentError
from .parts import Segment

_MAX_COVARIANCE_WIDTH = 2048  # up to this width the covariance is always formed
_OVERSAMPLING, _ITERATIONS = 10, 8  # extra directions, and steps, of the subspace iteration
_MAX_SAMPLES = 200  # approximate number of samples that a report animates
_MAX_CLASSES = 100  # maximum number of classes for which a record contains `end`, the last layer


def embedded(
    layers: Sequence[Float[np.ndarray, "n _"]], embed: str
) -> list[Float[np.ndarray, "n D"]]:
    """Return layers in one space.

    `embed` is that of `Trajectory.embedded`. A returned array is in an anonymous temporary file if
    its layer is on disk, or if it would exceed an eighth of the memory available under a limit.
    """
    widest = max(x.shape[1] for x in layers)
    count = components(embed, widest)
    if count is None:
        return [
            materialize([x], LazyRows((len(x), widest), partial(_pad, x, widest)), x.dtype)
            for x in layers
        ]
    mean, axes = _principal(layers, widest, count)
    dtype = np.result_type(np.float32, *layers)
    return [
        materialize([x], LazyRows((len(x), count), partial(_project, x, mean, axes), widest), dtype)
        for x in layers
    ]


def components(embed: str, widest: int | None = None) -> int | None:
    """Return D for ``pca:D`` and None for ``pad``; raise `ArgumentError` for anything else."""
    kind, _, size = embed.partition(":")
    if embed == "pad":
        return None
    if kind != "pca" or not size.isdecimal() or not 0 < int(size) <= (widest or int(size)):
        raise ArgumentError(
            f"Unknown embed {embed!r}; choose pad, or pca:1 to pca:{widest or 'D'}."
        )
    return int(size)


def _pad(x: Float[np.ndarray, "n d"], width: int, rows: slice) -> np.ndarray:
    """Return a chunk of rows, padded with zero features."""
    require_whole(x)
    return np.pad(x[rows], ((0, 0), (0, width - x.shape[1])))


def _project(
    x: Float[np.ndarray, "n d"],
    mean: Float[np.ndarray, " width"],
    axes: Float[np.ndarray, "width D"],
    rows: slice,
) -> np.ndarray:
    """Return coordinates along `axes` of a chunk of rows, padded and centered."""
    return (_pad(x, len(mean), rows) - mean) @ axes


def _principal(
    layers: Sequence[Float[np.ndarray, "n _"]], width: int, count: int
) -> tuple[Float[np.ndarray, " width"], Float[np.ndarray, "width count"]]:
    """Return the mean and the leading principal axes of all layers' padded samples.

    They are computed in float64 from the covariance. For a few axes of wide layers, subspace
    iteration avoids forming it (Halko, Martinsson, Tropp 2011, Algorithm 4.4). The entry of an axis
    with the largest absolute value is positive.
    """
    total = sum(len(x) for x in layers)
    padded = [LazyRows((len(x), width), partial(_pad, x, width)) for x in layers]

    def over_all(terms: Callable[[np.ndarray], np.ndarray]) -> np.ndarray:
        return sum(sum_over_rows(lambda _, rows: [terms(rows)], x)[0] for x in padded)

    mean = over_all(lambda rows: rows.sum(0)) / total

    def scatter(rows: np.ndarray, directions: np.ndarray | None = None) -> np.ndarray:
        centered = rows - mean
        return centered.T @ (centered if directions is None else centered @ directions)

    if width <= _MAX_COVARIANCE_WIDTH or 2 * count >= width:
        covariance = over_all(scatter)
        axes = eigh(covariance, subset_by_index=(width - count, width - 1))[1][:, ::-1]
    else:
        axes = np.random.default_rng(0).standard_normal((width, min(count + _OVERSAMPLING, width)))
        for _ in range(_ITERATIONS):
            axes = np.linalg.qr(axes)[0]
            image = over_all(partial(scatter, directions=axes))
            rotation = np.linalg.eigh(axes.T @ image)[1][:, ::-1]
            axes, last = image @ rotation, axes @ rotation
        axes = last[:, :count]
    largest = axes[abs(axes).argmax(0), np.arange(count)]
    return mean, axes * np.sign(largest)


def class_view(segment: Segment, labels: np.ndarray) -> dict[str, Any]:
    """Project the class means of every layer onto the plane with most of their variance.

    Its axes are the first two principal components of the class means of all layers; ``explained``
    is the fraction of variance along each. ``points`` are the first samples of every class, about
    `_MAX_SAMPLES` in total, in the same plane; ``labels`` are the indices of their classes
    in ``classes``.
    ``end`` contains the means and points of the last layer in the span of its class means, for
    views over training. It is None for more than `_MAX_CLASSES` classes, or if all means coincide.
    """
    for array in segment.arrays:
        require_whole(array)
    classes = np.unique(labels)
    means = np.stack(
        [
            [array[labels == k].mean(0, dtype=np.float64) for k in classes]
            for array in segment.arrays
        ]
    )  # (layers, classes, d)
    flat = means.reshape(-1, means.shape[-1])
    center = flat.mean(0)
    _, scales, axes = np.linalg.svd(flat - center, full_matrices=False)

    def project(x: np.ndarray) -> np.ndarray:
        plane = (x - center) @ axes[:2].T
        return np.pad(plane, ((0, 0), (0, 2 - plane.shape[1])))

    per_class = max(1, _MAX_SAMPLES // len(classes))
    rows = np.concatenate([np.flatnonzero(labels == k)[:per_class] for k in classes])
    points = np.stack([project(array[rows]) for array in segment.arrays])
    return {
        "class_means": project(flat).reshape(len(means), len(classes), 2).tolist(),
        "classes": classes.tolist(),
        "explained": explained(scales),
        "points": points.round(_decimals(scales)).tolist(),
        "labels": np.searchsorted(classes, labels[rows]).tolist(),
        "end": _last_layer(means[-1], np.asarray(segment.arrays[-1][rows], dtype=np.float64)),
    }


def explained(scales: Float[np.ndarray, " r"]) -> list[float]:
    """Return the fractions of variance along the first two axes; 0 if there is no second axis."""
    fractions = np.zeros(2)
    if scales.any():
        leading = (scales**2 / (scales**2).sum())[:2]
        fractions[: len(leading)] = leading
    return fractions.tolist()


def _decimals(scales: Float[np.ndarray, " r"]) -> int:
    """Return the decimal places that give the largest scale four digits, enough for a figure."""
    return 4 - int(np.ceil(np.log10(scales[0]))) if scales[0] > 0 else 4


def _last_layer(means: Float[np.ndarray, "K d"], points: Float[np.ndarray, "n d"]) -> Any:
    """Return centered class means and samples in an orthonormal basis of the means' span."""
    if len(means) > _MAX_CLASSES:
        return None
    center = means.mean(0)
    left, scales, axes = np.linalg.svd(means - center, full_matrices=False)
    rank = int((scales > 1e-9 * scales[0]).sum()) if scales[0] > 0 else 0
    if rank == 0:
        return None
    digits = _decimals(scales)
    return {
        "class_means": (left[:, :rank] * scales[:rank]).round(digits).tolist(),
        "points": ((points - center) @ axes[:rank].T).round(digits).tolist(),
    }
