"""What a reader is shown of features that a record does not hold."""

from __future__ import annotations

from typing import Any

import numpy as np

from ..trajectory import Segment

_IN_VIEW = 200  # samples a report shows moving


def class_view(segment: Segment, labels: np.ndarray) -> dict[str, Any]:
    """Return the class means of every layer in the plane that shows most of their movement.

    The plane is that of the first two principal components of all class means of the segment's
    layers together; ``explained`` is the share of their variance along each. ``points`` are the
    first samples of every class, about `_IN_VIEW` in all, in the same plane; ``labels`` say which
    of ``classes`` each is of.
    """
    classes = np.unique(labels)
    means = np.stack(
        [
            [array[labels == k].mean(0, dtype=np.float64) for k in classes]
            for array in segment.arrays
        ]
    )  # (layers, classes, d)
    flat = means.reshape(-1, means.shape[-1])
    centre = flat.mean(0)
    _, scales, axes = np.linalg.svd(flat - centre, full_matrices=False)

    def seen(x: np.ndarray) -> np.ndarray:
        plane = (x - centre) @ axes[:2].T
        return np.pad(plane, ((0, 0), (0, 2 - plane.shape[1])))

    each = max(1, _IN_VIEW // len(classes))
    shown = np.concatenate([np.flatnonzero(labels == k)[:each] for k in classes])
    digits = 4 - int(np.ceil(np.log10(scales[0]))) if scales[0] > 0 else 4  # enough to draw
    points = np.stack([seen(array[shown]) for array in segment.arrays])
    shares = np.zeros(2)
    if scales.any():
        kept = (scales**2 / (scales**2).sum())[:2]
        shares[: len(kept)] = kept
    return {
        "class_means": seen(flat).reshape(len(means), len(classes), 2).tolist(),
        "classes": classes.tolist(),
        "explained": shares.tolist(),
        "points": points.round(digits).tolist(),
        "labels": np.searchsorted(classes, labels[shown]).tolist(),
    }
