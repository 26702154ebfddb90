"""What a reader is shown of features that a record does not hold."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Float

from ..trajectory import Segment

_IN_VIEW = 200  # samples a report shows moving
_MOST_CLASSES = 100  # of whose last layer a record keeps all directions


def class_view(segment: Segment, labels: np.ndarray) -> dict[str, Any]:
    """Return the class means of every layer in the plane that shows most of their movement.

    The plane is that of the first two principal components of all class means of the segment's
    layers together; ``explained`` is the share of their variance along each. ``points`` are the
    first samples of every class, about `_IN_VIEW` in all, in the same plane; ``labels`` say which
    of ``classes`` each is of. ``end`` has means and points of the last layer in every direction
    that its class means differ in, for `training_view`; None for a great many classes.
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
    return {
        "class_means": seen(flat).reshape(len(means), len(classes), 2).tolist(),
        "classes": classes.tolist(),
        "explained": _explained(scales),
        "points": points.round(digits).tolist(),
        "labels": np.searchsorted(classes, labels[shown]).tolist(),
        "end": _end(means[-1], np.asarray(segment.arrays[-1][shown], dtype=np.float64)),
    }


def _explained(scales: Float[np.ndarray, " r"]) -> list[float]:
    """Shares of the variance along the two axes; two classes may span one only."""
    shares = np.zeros(2)
    if scales.any():
        kept = (scales**2 / (scales**2).sum())[:2]
        shares[: len(kept)] = kept
    return shares.tolist()


def _end(means: Float[np.ndarray, "K d"], points: Float[np.ndarray, "n d"]) -> Any:
    """Class means and samples from the centre of the means, in an orthonormal basis of the span."""
    if len(means) > _MOST_CLASSES:
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
    """Return where the classes of the last layer go over the epochs of a training, in one plane.

    Every epoch is brought to the same spread (root mean square over the samples in view) and turned
    onto the epoch after it (orthogonal Procrustes on the class means): neither size nor orientation
    say anything about collapse. The plane is that of the first two principal components of all
    epochs' class means together.

    Parameters
    ----------
    records : sequence of dict
        Analyses in the order of their epochs, of the same images.

    Returns
    -------
    dict or None
        ``layers``, the epochs' names, and ``view`` as that of a segment; None where a record has no
        such view, or they show different samples.
    """
    views = [(record["segments"] or [{}])[-1].get("view") or {} for record in records]
    shown = [(view.get("classes"), view.get("labels")) for view in views]
    if not all(view.get("end") for view in views) or any(each != shown[0] for each in shown):
        return None
    means, points = (_stacked([view["end"][key] for view in views]) for key in _END)
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
            "classes": shown[0][0],
            "labels": shown[0][1],
            "explained": _explained(scales),
        },
    }


_END = ("class_means", "points")


def _stacked(arrays: Sequence[Any]) -> Float[np.ndarray, "E n r"]:
    """Coordinates of as many directions as any epoch has, zero in those that an epoch lacks."""
    given = [np.array(array, dtype=np.float64) for array in arrays]
    r = max(array.shape[1] for array in given)
    return np.stack([np.pad(array, ((0, 0), (0, r - array.shape[1]))) for array in given])
