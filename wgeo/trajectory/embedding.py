"""Layers of different widths in one space: padded with zeros, or along principal axes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

import numpy as np
from jaxtyping import Float
from scipy.linalg import eigh

from ..arrays.checks import require_whole
from ..arrays.rows import LazyRows, materialize, sum_over_rows
from ..errors import ArgumentError

_MAX_COVARIANCE_WIDTH = 2048  # up to this width the covariance is always formed
_OVERSAMPLING, _ITERATIONS = 10, 8  # of the subspace iteration: extra directions, steps


def embedded(
    layers: Sequence[Float[np.ndarray, "n _"]], embed: str
) -> list[Float[np.ndarray, "n D"]]:
    """Return layers in one space.

    `embed` is that of `Trajectory.embedded`. A returned array is in an anonymous temporary file if
    its layer is on disk, or if it would exceed an eighth of the available memory.
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
