"""The class means of the last layer over training, for the figures and reports of a series."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from jaxtyping import Float

from ..storage.record import Record
from ..trajectory.views import explained


def training_view(analyses: Sequence[Any]) -> dict[str, Any] | None:
    """Return the paths of the last layer's class means over the epochs of training, in one plane.

    Scale and orientation are irrelevant to collapse. Every epoch is therefore scaled to the same
    spread (root mean square over the samples shown) and rotated onto the next epoch (orthogonal
    Procrustes on the class means). The plane contains the first two principal components of the
    class means of all epochs.

    `analyses` are records of the same images, ordered by epoch. The result contains ``layers``, the
    names of the epochs, and ``view``, like that of a segment. It is None if a record has no segment
    or its view has no ``end``, or if the views contain different samples.
    """
    records = [Record.of(analysis) for analysis in analyses]
    views = [record.segments[-1].view for record in records if record.segments]
    same_samples = len({(view.classes, view.labels) for view in views}) == 1
    if len(views) < len(records) or not all(view.end for view in views) or not same_samples:
        return None
    means = _stack([view.end.class_means for view in views])
    points = _stack([view.end.points for view in views])
    for k in range(len(means)):
        spread = np.sqrt((points[k] ** 2).sum(1).mean()) or 1.0
        means[k], points[k] = means[k] / spread, points[k] / spread
    for k in range(len(means) - 2, -1, -1):
        u, _, v = np.linalg.svd(means[k].T @ means[k + 1])
        means[k], points[k] = means[k] @ (u @ v), points[k] @ (u @ v)
    flat = means.reshape(-1, means.shape[-1])
    center = flat.mean(0)
    _, scales, axes = np.linalg.svd(flat - center, full_matrices=False)
    plane = np.zeros((means.shape[-1], 2))
    plane[:, : min(2, len(axes))] = axes[:2].T
    return {
        "layers": [f"epoch {record.epoch}" for record in records],
        "view": {
            "class_means": ((means - center) @ plane).round(5).tolist(),
            "points": ((points - center) @ plane).round(5).tolist(),
            **views[0].only("classes", "labels"),
            "explained": explained(scales),
        },
    }


def _stack(arrays: Sequence[Any]) -> Float[np.ndarray, "E n r"]:
    """Stack the coordinates of all epochs, padded with zeros to the same number of columns."""
    padded = [np.array(array, dtype=np.float64) for array in arrays]
    r = max(array.shape[1] for array in padded)
    return np.stack([np.pad(array, ((0, 0), (0, r - array.shape[1]))) for array in padded])
