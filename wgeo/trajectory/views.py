"""Two-dimensional views of the features, for figures and reports."""

from __future__ import annotations

from typing import Any

import numpy as np
from jaxtyping import Float

from ..arrays.checks import require_whole
from .parts import Segment

_MAX_SAMPLES = 200  # approximate number of samples that a report animates
_MAX_CLASSES = 100  # maximum number of classes for which a record contains `end`, the last layer


def class_view(segment: Segment, labels: np.ndarray) -> dict[str, Any]:
    """Project the class means of every layer onto the plane with most of their variance.

    Its axes are the first two principal components of the class means of all layers; ``explained``
    is the fraction of variance along each. ``points`` are the first samples of every class, about
    `_MAX_SAMPLES` in total, in the same plane; ``labels`` are their indices into ``classes``.
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
