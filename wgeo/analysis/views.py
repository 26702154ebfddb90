"""Two-dimensional views of the features, for the figures and reports of a record."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Float

from ..trajectory import Segment

_MAX_SAMPLES = 200  # approximate number of samples that a report animates
_MAX_CLASSES = 100  # number of classes up to which a record has the view `end` of the last layer


def class_view(segment: Segment, labels: np.ndarray) -> dict[str, Any]:
    """Project the class means of every layer onto the plane with most of their variance.

    The plane is spanned by the first two principal components of the class means of all layers of
    the segment; ``explained`` is the share of their variance along each axis. ``points`` are the
    first samples of every class, about `_MAX_SAMPLES` in total, in the same plane; ``labels`` are
    their indices into ``classes``. ``end`` has the means and points of the last layer in the span
    of its class means, for `training_view`; None for more than 100 classes, or if all class means
    coincide.
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

    def project(x: np.ndarray) -> np.ndarray:
        plane = (x - centre) @ axes[:2].T
        return np.pad(plane, ((0, 0), (0, 2 - plane.shape[1])))

    per_class = max(1, _MAX_SAMPLES // len(classes))
    rows = np.concatenate([np.flatnonzero(labels == k)[:per_class] for k in classes])
    digits = (
        4 - int(np.ceil(np.log10(scales[0]))) if scales[0] > 0 else 4
    )  # decimals, enough for a figure
    points = np.stack([project(array[rows]) for array in segment.arrays])
    return {
        "class_means": project(flat).reshape(len(means), len(classes), 2).tolist(),
        "classes": classes.tolist(),
        "explained": _explained(scales),
        "points": points.round(digits).tolist(),
        "labels": np.searchsorted(classes, labels[rows]).tolist(),
        "end": _last_layer(means[-1], np.asarray(segment.arrays[-1][rows], dtype=np.float64)),
    }


def _explained(scales: Float[np.ndarray, " r"]) -> list[float]:
    """Return the shares of variance along the two axes; two classes span only one."""
    shares = np.zeros(2)
    if scales.any():
        leading = (scales**2 / (scales**2).sum())[:2]
        shares[: len(leading)] = leading
    return shares.tolist()


def _last_layer(means: Float[np.ndarray, "K d"], points: Float[np.ndarray, "n d"]) -> Any:
    """Return centred class means and samples in an orthonormal basis of the means' span."""
    if len(means) > _MAX_CLASSES:
        return None
    centre = means.mean(0)
    left, scales, axes = np.linalg.svd(means - centre, full_matrices=False)
    rank = int((scales > 1e-9 * scales[0]).sum()) if scales[0] > 0 else 0
    if rank == 0:
        return None
    digits = 4 - int(np.ceil(np.log10(scales[0])))
    return {
        "class_means": (left[:, :rank] * scales[:rank]).round(digits).tolist(),
        "points": ((points - centre) @ axes[:rank].T).round(digits).tolist(),
    }


def training_view(records: Sequence[Mapping[str, Any]]) -> dict[str, Any] | None:
    """Return the paths of the last layer's class means over the epochs of training, in one plane.

    Every epoch is scaled to the same spread (root mean square over the samples shown) and rotated
    onto the next epoch (orthogonal Procrustes on the class means), since scale and orientation are
    irrelevant to collapse. The plane is spanned by the first two principal components of the class
    means of all epochs.

    Parameters
    ----------
    records : sequence of dict
        Analyses of the same images, ordered by epoch.

    Returns
    -------
    dict or None
        ``layers``, the epochs' names, and ``view``, like that of a segment; None if a record has no
        ``end`` in its view, or if the records show different samples.
    """
    views = [(record["segments"] or [{}])[-1].get("view") or {} for record in records]
    sample_labels = [(view.get("classes"), view.get("labels")) for view in views]
    if not all(view.get("end") for view in views) or any(
        each != sample_labels[0] for each in sample_labels
    ):
        return None
    means, points = (_stack([view["end"][key] for view in views]) for key in _COORDINATES)
    for k in range(len(means)):
        spread = np.sqrt((points[k] ** 2).sum(1).mean()) or 1.0
        means[k], points[k] = means[k] / spread, points[k] / spread
    for k in range(len(means) - 2, -1, -1):
        u, _, v = np.linalg.svd(means[k].T @ means[k + 1])
        means[k], points[k] = means[k] @ (u @ v), points[k] @ (u @ v)
    flat = means.reshape(-1, means.shape[-1])
    _, scales, axes = np.linalg.svd(flat - flat.mean(0), full_matrices=False)
    plane = np.zeros((means.shape[-1], 2))
    plane[:, : min(2, len(axes))] = axes[:2].T
    return {
        "layers": [f"epoch {record['provenance']['epoch']}" for record in records],
        "view": {
            "class_means": ((means - flat.mean(0)) @ plane).round(5).tolist(),
            "points": ((points - flat.mean(0)) @ plane).round(5).tolist(),
            "classes": sample_labels[0][0],
            "labels": sample_labels[0][1],
            "explained": _explained(scales),
        },
    }


_COORDINATES = ("class_means", "points")


def _stack(arrays: Sequence[Any]) -> Float[np.ndarray, "E n r"]:
    """Stack the epochs' coordinates, padded with zeros to the largest number of directions."""
    padded = [np.array(array, dtype=np.float64) for array in arrays]
    r = max(array.shape[1] for array in padded)
    return np.stack([np.pad(array, ((0, 0), (0, r - array.shape[1]))) for array in padded])
