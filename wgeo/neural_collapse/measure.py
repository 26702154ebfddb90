"""Collapse of features in memory, for which a second pass is cheap."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
import torch
from jaxtyping import Float

from ..arrays.checks import as_labels, as_numpy, as_points, check_plain
from ..errors import FeatureError
from ..runtime import processes
from ..runtime.progress import track
from ..trajectory import Classifier, Trajectory
from .bootstrap import bootstrap_replicates, stratified_counts
from .depth import progress_of_layers, with_interval
from .intervals import with_intervals
from .metrics import RANK_TOLERANCE, Frame, LayerCollapse, layer_collapse
from .moments import ClassIndex, ClassMoments, check_weights
from .projection import SpanProjection
from .result import Collapse
from .separation import law_of_layers, law_with_intervals
from .spectrum import SPECTRUM_SIZE
from .tensor_chunks import mean_of, tensor_chunks


def collapse_of_trajectory(
    traj: Trajectory,
    *,
    weights: str,
    ood: Trajectory | Mapping[str, Any] | None,
    rank_tolerance: float,
    spectrum_size: int,
    bootstrap: int,
    seed: int,
) -> Collapse:
    """Measure every layer of a trajectory; see `collapse`."""
    num_names = len(traj.class_names) or None
    num_classes = num_names if traj.classifier is None else len(traj.classifier.weight)
    ClassIndex(num_classes).add(traj.labels)  # checks their range
    last = traj.layers[-1]
    weight = None if traj.classifier is None else weights_of(traj.classifier)
    if weight is not None and weight.shape[1] != last.width:
        weight = None  # its input is not the last layer
    ood_features = None if ood is None else features_by_layer(ood)
    if ood_features is not None:
        for layer in traj.layers:
            check_ood(layer.name, layer.width, _shape(ood_features.get(layer.name)))
    layers = [
        collapse_of(
            layer.features,
            traj.labels,
            weight if layer is last else None,
            traj.predictions,
            weights=weights,
            name=layer.name,
            stage=layer.stage,
            ood=None if ood_features is None else ood_features[layer.name],
            rank_tolerance=rank_tolerance,
            spectrum_size=spectrum_size,
        )
        for layer in track(traj.layers, "measuring collapse")
    ]
    classes, counts = np.unique(traj.labels, return_counts=True)
    result = Collapse.of_layers(
        layers,
        classes=tuple(classes.tolist()),
        counts=tuple(counts.tolist()),
        weights=weights,
        classifier=None if weight is None else Frame.of(weight),
        accuracy=traj.accuracy,
    )
    return _with_intervals(result, traj, bootstrap, seed, rank_tolerance) if bootstrap else result


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
        Rows are samples, so this is the transpose of H in the papers.
    labels : array_like of int, (n,)
    classifier : Classifier or array_like, (K, d), optional
        Weights of the classifier, for NC3.
    predictions : array_like of int, (n,), optional
        The network's predictions, to compare with the nearest class mean (NC4).
    weights, ood, rank_tolerance, spectrum_size
        See `collapse`; `ood` is an array here.
    name, stage
        Name and stage of the layer.

    Raises
    ------
    FeatureError, ArgumentError
        As `collapse`, and for a classifier of another width.

    Examples
    --------
    Classes that have collapsed onto the vertices of a simplex:

    >>> import numpy as np
    >>> import wgeo
    >>> labels = np.arange(30) % 3
    >>> layer = wgeo.neural_collapse.collapse_of(np.eye(3)[labels], labels, classifier=np.eye(3))
    >>> [round(value, 6) for value in (layer.nc1, layer.nc2_etf, layer.nc3, layer.ncc_accuracy)]
    [0.0, 0.0, 0.0, 1.0]
    """
    if isinstance(features, torch.Tensor):
        check_plain(features, f"layer {name!r}")
    check_weights(weights)
    y = as_labels(labels, len(features))
    weight = None if classifier is None else weights_of(classifier)
    index = ClassIndex(None if weight is None else len(weight))
    class_index = index.add(y)
    predicted = None if predictions is None else index.indices(as_labels(predictions, len(y)))
    shard = processes.shard(len(y))
    has_rows = shard.stop > shard.start
    _, first = next(tensor_chunks(features[:1], name, 0))
    moments = ClassMoments(name, spectrum_size, shard.start)
    moments.begin(first)
    if has_rows:
        update = partial(moments.update, features[shard], class_index[shard], len(index))
    processes.raise_on_any(update if has_rows else lambda: None)
    moments = moments.all_reduce(first)
    geometry = moments.finish(index, weights=weights)
    projection = SpanProjection(moments, geometry, index)
    if has_rows:
        projection.update(
            features[shard], class_index[shard], None if predicted is None else predicted[shard]
        )
    return layer_collapse(
        geometry,
        projection.all_reduce().finish(),
        stage=stage,
        has_predictions=predicted is not None,
        classifier=weight,
        ood_mean=None if ood is None else mean_of(ood, f"{name} (out of distribution)"),
        rank_tolerance=rank_tolerance,
    )


def weights_of(classifier: Any) -> Float[np.ndarray, "C d"]:
    weight = classifier.weight if isinstance(classifier, Classifier) else classifier
    return as_numpy(as_points(weight, name="the classifier's weights", dtype=torch.float64))


def features_by_layer(ood: Trajectory | Mapping[str, Any]) -> Mapping[str, Any]:
    """Return out-of-distribution features by layer name."""
    if isinstance(ood, Trajectory):
        return {layer.name: layer.features for layer in ood.layers}
    return ood


def check_ood(name: str, width: int, shape: tuple[int, ...] | None) -> None:
    """Raise `FeatureError` if out-of-distribution features do not have the width of the layer."""
    if shape is None or shape[1:] != (width,):
        raise FeatureError(
            f"The out-of-distribution features of layer {name!r} "
            + ("are missing." if shape is None else f"have shape {shape}.")
            + f" Trace both data sets through the same network: (samples, {width})."
        )


def _shape(array: Any) -> tuple[int, ...] | None:
    return None if array is None else tuple(np.shape(array))


def _with_intervals(
    result: Collapse, traj: Trajectory, resamples: int, seed: int, rank_tolerance: float
) -> Collapse:
    """Add bootstrap intervals of every metric and Kendall's tau, by resampling within classes.

    All layers use the same resamples, because Kendall's tau compares layers.
    """
    index = ClassIndex()
    index.add(np.array(result.classes))
    class_index = index.indices(traj.labels)
    predicted = None if traj.predictions is None else index.indices(traj.predictions)
    multiplicities = stratified_counts(class_index, resamples, np.random.default_rng(seed))
    by_layer = processes.map_over_ranks(
        [
            partial(
                bootstrap_replicates,
                layer.features,
                class_index,
                predicted,
                multiplicities,
                name=layer.name,
                stage=layer.stage,
                weights=result.weights,
                rank_tolerance=rank_tolerance,
            )
            for layer in traj.staged
        ],
        "bootstrapping collapse",
    )
    networks = list(zip(*by_layer, strict=True))
    replicates = [progress_of_layers(layers) for layers in networks]
    laws = [law_of_layers(layers) for layers in networks]
    replicates_by_layer = dict(zip((layer.name for layer in traj.staged), by_layer, strict=True))
    counts = np.array(result.counts)
    return replace(
        result,
        layers=tuple(
            with_intervals(layer, replicates_by_layer[layer.name], counts)
            if layer.name in replicates_by_layer
            else layer
            for layer in result.layers
        ),
        progress={
            m: with_interval(p, [r[m] for r, _ in replicates]) for m, p in result.progress.items()
        },
        separation=with_interval(result.separation, [angle for _, angle in replicates]),
        separation_law=law_with_intervals(result.separation_law, laws),
    )
