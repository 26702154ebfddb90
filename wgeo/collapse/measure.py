"""Collapse of features that lie in memory: both passes are free."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from jaxtyping import Float

from ..arrays import as_labels, as_numpy, as_points
from ..errors import ArgumentError, FeatureError
from ..progress import track
from ..trajectory import Classifier, Trajectory
from .blocks import mean_of
from .depth import progress_of, with_interval
from .metrics import RANK_TOLERANCE, Frame, LayerCollapse, layer_collapse
from .moments import ClassIndex, ClassMoments
from .projection import SpanProjection
from .result import Collapse
from .spectrum import SPECTRUM_SIZE


def collapse(
    traj: Trajectory,
    *,
    weights: str = "uniform",
    ood: Trajectory | Mapping[str, Any] | None = None,
    rank_tolerance: float = RANK_TOLERANCE,
    spectrum_size: int = SPECTRUM_SIZE,
    bootstrap: int = 0,
    seed: int = 0,
) -> Collapse:
    """Measure neural collapse at every layer, and whether it progresses with depth.

    Definitions are in `LayerCollapse` and `Progress`. No d x d matrix is formed for wide layers:
    NC1 only sees the span of the K class means, at a cost of O(N d K) (d features, N samples).
    All arithmetic is float64, about one of the samples, so no digits are lost to an offset.

    Parameters
    ----------
    traj : Trajectory
    weights : {"uniform", "frequency"}
        Whether the classes count alike in the global mean and Sigma_B, or by their size.
    ood : Trajectory or mapping of layer name to features, optional
        Out-of-distribution samples through the same network, for NC5.
    rank_tolerance : float
        Directions of the class means below this share of the largest count as none.
    spectrum_size : int
        The ranks are exact where samples or width are at most this many, and otherwise of a sample
        of so many rows chosen by their content; 0 leaves the ranks out.
    bootstrap : int
        Number of resamplings (within each class) for the interval of Kendall's tau; each costs
        about as much as the metrics themselves. 0 for none.
    seed : int
        Of the bootstrap.

    Raises
    ------
    FeatureError
        One class only, or NaN or infinity (layer and sample are named).
    ArgumentError
        A label that the classifier has no row for, or unknown `weights`.
    """
    known = len(traj.class_names) or None
    num_classes = known if traj.classifier is None else len(traj.classifier.weight)
    ClassIndex(num_classes).add(traj.labels)  # refuses labels out of range
    last = traj.staged[-1]
    weight = None if traj.classifier is None else weights_of(traj.classifier)
    if weight is not None and weight.shape[1] != last.width:
        weight = None  # it reads something else than the last layer
    away = _ood_features(ood, traj)
    layers = [
        collapse_of(
            layer.features,
            traj.labels,
            weight if layer is last else None,
            traj.predictions,
            weights=weights,
            name=layer.name,
            stage=layer.stage,
            ood=None if away is None else away[layer.name],
            rank_tolerance=rank_tolerance,
            spectrum_size=spectrum_size,
        )
        for layer in track(traj.layers, "measuring collapse")
    ]
    classes, counts = np.unique(traj.labels, return_counts=True)
    found = Collapse.of_layers(
        layers,
        classes=tuple(classes.tolist()),
        counts=tuple(counts.tolist()),
        weights=weights,
        classifier=None if weight is None else Frame.of(weight),
        accuracy=traj.accuracy,
    )
    return _with_intervals(found, traj, bootstrap, seed, rank_tolerance) if bootstrap else found


def collapse_of(
    features: Any,
    labels: Any,
    classifier: Classifier | Any = None,
    predictions: Any = None,
    *,
    weights: str = "uniform",
    name: str = "features",
    stage: int | None = 0,
    ood: Any = None,
    rank_tolerance: float = RANK_TOLERANCE,
    spectrum_size: int = SPECTRUM_SIZE,
) -> LayerCollapse:
    """Measure the collapse of one set of features; see `collapse`.

    Parameters
    ----------
    features : array_like, (n, d)
        Rows are samples: the transpose of the papers' H.
    labels : array_like of int, (n,)
    classifier : Classifier or array_like, (K, d), optional
        Its weights, for NC3.
    predictions : array_like of int, (n,), optional
        Decisions to compare with the nearest class mean (NC4).
    weights, ood, rank_tolerance, spectrum_size
        See `collapse`; `ood` is an array here.
    name, stage
        What to call the layer.

    Raises
    ------
    FeatureError, ArgumentError
        As `collapse`, and for a classifier of another width.
    """
    y = as_labels(labels, len(features))
    weight = None if classifier is None else weights_of(classifier)
    index = ClassIndex(None if weight is None else len(weight))
    rows = index.add(y)
    predicted = None if predictions is None else index.rows(as_labels(predictions, len(y)))
    moments = ClassMoments(name, spectrum_size)
    moments.update(features, rows, len(index))
    geometry = moments.finish(index, frequency=is_frequency(weights))
    projection = SpanProjection(moments, geometry, index)
    projection.update(features, rows, predicted)
    return layer_collapse(
        geometry,
        projection,
        stage=stage,
        decided=predicted is not None,
        classifier=weight,
        ood_mean=None if ood is None else mean_of(ood, f"{name} (out of distribution)"),
        rank_tolerance=rank_tolerance,
    )


def is_frequency(weights: str) -> bool:
    """Whether classes weigh by their size; refuses a word that is neither."""
    if weights not in ("uniform", "frequency"):
        raise ArgumentError(f"weights is 'uniform' or 'frequency', not {weights!r}.")
    return weights == "frequency"


def weights_of(classifier: Any) -> Float[np.ndarray, "C d"]:
    weight = classifier.weight if isinstance(classifier, Classifier) else classifier
    return as_numpy(as_points(weight, name="the classifier's weights", dtype=torch.float64))


def _ood_features(
    ood: Trajectory | Mapping[str, Any] | None, traj: Trajectory
) -> Mapping[str, Any] | None:
    if isinstance(ood, Trajectory):
        ood = {layer.name: layer.features for layer in ood.layers}
    if ood is None:
        return None
    for layer in traj.layers:
        shape = np.shape(ood[layer.name]) if layer.name in ood else None
        if shape is None or shape[1:] != (layer.width,):
            raise FeatureError(
                f"The out-of-distribution features of layer {layer.name!r} "
                + ("are missing." if shape is None else f"have shape {shape}.")
                + f" Trace both data sets through the same network: (samples, {layer.width})."
            )
    return ood


def _with_intervals(
    found: Collapse, traj: Trajectory, times: int, seed: int, rank_tolerance: float
) -> Collapse:
    """Bootstrap Kendall's tau: samples are drawn anew within each class, all layers together."""
    rng = np.random.default_rng(seed)
    members = [np.flatnonzero(traj.labels == k) for k in found.classes]
    replicates = []
    for _ in track(range(times), "bootstrapping collapse"):
        drawn = np.sort(np.concatenate([rng.choice(rows, len(rows)) for rows in members]))
        layers = [
            collapse_of(
                layer.features[drawn],
                traj.labels[drawn],
                predictions=None if traj.predictions is None else traj.predictions[drawn],
                weights=found.weights,
                name=layer.name,
                stage=layer.stage,
                rank_tolerance=rank_tolerance,
                spectrum_size=0,
            )
            for layer in traj.staged
        ]
        replicates.append(progress_of(layers))
    return replace(
        found,
        progress={
            m: with_interval(p, [r[m] for r, _ in replicates]) for m, p in found.progress.items()
        },
        separation=with_interval(found.separation, [angle for _, angle in replicates]),
    )
