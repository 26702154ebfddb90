"""The steps from features to collapse metrics, the same for trajectories, arrays and streams.

1. Pass one gives the class means (`ClassMoments`).
2. Pass two gives what depends on the final class means (`SpanProjection`).
3. Metrics of every layer (`layer_collapse`), their progress with depth (`Collapse.of_layers`), and
   intervals from resamples (`with_intervals`).

`LayerPasses` makes both passes over a layer: at once (`over`) if its features are an array, or
batch by batch (`first`, `second`) in a `CollapseStream`.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int

from ..arrays.checks import as_count, as_labels, as_numpy, as_points, check_plain
from ..errors import FeatureError
from ..runtime import processes
from ..runtime.progress import track
from ..runtime.threads import one_thread
from ..trajectory import Classifier, Trajectory
from .bootstrap import with_intervals
from .metrics import RANK_TOLERANCE, Frame, LayerCollapse, layer_collapse
from .moments import ClassGeometry, ClassIndex, ClassMoments, check_weights
from .projection import SpanProjection
from .result import Collapse
from .spectrum import SPECTRUM_SIZE
from .tensor_chunks import precision_of, tensor_chunks


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
    check_weights(weights)
    classifier = None if traj.classifier is None else classifier_matrix(traj.classifier)
    index = ClassIndex(len(traj.class_names) or None if classifier is None else len(classifier))
    class_index = index.add(traj.labels)
    predicted = None if traj.predictions is None else index.indices(traj.predictions)
    last = traj.layers[-1]
    if classifier is not None and classifier.shape[1] != last.width:
        classifier = None  # its input is not the last layer
    ood_means = OodMeans(ood)
    for layer in traj.layers:  # raises before any pass if a layer is missing
        ood_means.mean(layer.name, layer.width)
    layers = [
        LayerPasses(layer.name, index, weights, spectrum_size)
        .over(layer.features, class_index, predicted)
        .metrics(
            stage=layer.stage,
            classifier=classifier if layer is last else None,
            ood=ood_means,
            rank_tolerance=rank_tolerance,
        )
        for layer in track(traj.layers, "measuring collapse")
    ]
    result = Collapse.of_layers(
        layers,
        classes=tuple(index.classes.tolist()),
        counts=tuple(np.bincount(class_index).tolist()),
        weights=weights,
        classifier=None if classifier is None else Frame.of(classifier),
        accuracy=traj.accuracy,
    )
    if not bootstrap:
        return result
    return with_intervals(
        result,
        traj.staged,
        class_index,
        predicted,
        resamples=bootstrap,
        seed=seed,
        rank_tolerance=rank_tolerance,
    )


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
        As in `collapse`; also if the widths of the classifier and the features differ.

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
    y = as_labels(labels, len(features))
    weight = None if classifier is None else classifier_matrix(classifier)
    index = ClassIndex(None if weight is None else len(weight))
    class_index = index.add(y)
    predicted = None if predictions is None else index.indices(as_labels(predictions, len(y)))
    passes = LayerPasses(name, index, check_weights(weights), spectrum_size)
    return passes.over(features, class_index, predicted).metrics(
        stage=stage,
        classifier=weight,
        ood=OodMeans(None if ood is None else {name: ood}),
        rank_tolerance=rank_tolerance,
    )


class LayerPasses:
    """The two passes over the samples of the layer `name`, with indices of classes from `index`."""

    geometry: ClassGeometry
    _projection: SpanProjection

    def __init__(self, name: str, index: ClassIndex, weights: str, spectrum_size: int) -> None:
        self.name = name
        self.moments = ClassMoments(name, as_count(spectrum_size, "spectrum_size"))
        self._index, self._weights = index, weights

    def over(
        self,
        features: Any,
        class_index: Int[np.ndarray, " n"],
        predicted: Int[np.ndarray, " n"] | None = None,
    ) -> LayerPasses:
        """Make both passes over an array; each process reads its own shard of the rows."""
        shard = processes.shard(len(class_index))
        local, local_index = features[shard], class_index[shard]
        processes.raise_on_any(partial(self.first, local, local_index, shard.start))
        self.moments = self.moments.all_reduce()
        self.finish_first()
        self.second(local, local_index, None if predicted is None else predicted[shard])
        self._projection.all_reduce()
        return self

    def first(self, features: Any, class_index: Int[np.ndarray, " n"], start: int = 0) -> None:
        """Pass one: add samples and the indices of their classes.

        `start` is the number of samples before these, for error messages.
        """
        moments, n = self.moments, len(class_index)
        moments.precision = max(moments.precision, precision_of(features))
        with one_thread():
            for rows, block in tensor_chunks(features, self.name, start, n):
                moments.add(block, class_index[rows], len(self._index))

    def finish_first(self) -> None:
        """Compute the class means of all samples so far, and begin pass two."""
        self.geometry = self.moments.finish(self._index, weights=self._weights)
        self._projection = SpanProjection(self.moments, self.geometry, self._index)

    def second(
        self,
        features: Any,
        class_index: Int[np.ndarray, " n"],
        predicted: Int[np.ndarray, " n"] | None = None,
    ) -> None:
        """Pass two: add samples again; `predicted` contains the indices of predicted classes."""
        start, n = self._projection.samples, len(class_index)
        with one_thread():
            for rows, block in tensor_chunks(features, self.name, start, n):
                self._projection.add(
                    block, class_index[rows], None if predicted is None else predicted[rows]
                )

    def metrics(
        self,
        *,
        stage: int | None,
        classifier: Float[np.ndarray, "C d"] | None,
        ood: OodMeans,
        rank_tolerance: float,
    ) -> LayerCollapse:
        """Return the metrics; without pass two, some of them are undefined."""
        return layer_collapse(
            self.geometry,
            self._projection.finish() if self._projection.samples else None,
            stage=stage,
            classifier=classifier,
            ood_mean=ood.mean(self.name, self.geometry.width),
            rank_tolerance=rank_tolerance,
        )


class OodMeans:
    """Means of out-of-distribution samples, by layer."""

    def __init__(self, ood: Trajectory | Mapping[str, Any] | None = None) -> None:
        self._sums: dict[str, torch.Tensor] = {}
        self._samples: dict[str, int] = {}
        self._given = False
        if ood is not None:
            self.add(ood)

    def add(self, ood: Trajectory | Mapping[str, Any]) -> None:
        """Add samples of all layers."""
        self._given = True
        if isinstance(ood, Trajectory):
            ood = {layer.name: layer.features for layer in ood.layers}
        for name, array in ood.items():
            for _, chunk in tensor_chunks(array, f"{name} (out of distribution)"):
                total = self._sums.get(name)
                if total is not None:
                    _check_ood(name, len(total), (len(array), chunk.shape[1]))
                part = chunk.sum(0, dtype=torch.float64)
                self._sums[name] = part if total is None else total + part
            self._samples[name] = self._samples.get(name, 0) + len(array)

    def mean(self, name: str, width: int) -> Float[np.ndarray, " d"] | None:
        """Return the mean at a layer; None if there are no out-of-distribution samples.

        Raises
        ------
        FeatureError
            The samples lack this layer, or have another width there.
        """
        if not self._given:
            return None
        given = name in self._sums
        _check_ood(name, width, (self._samples[name], *self._sums[name].shape) if given else None)
        return (self._sums[name] / self._samples[name]).cpu().numpy()


def _check_ood(name: str, width: int, shape: tuple[int, ...] | None) -> None:
    if shape is None or shape[1:] != (width,):
        raise FeatureError(
            f"The out-of-distribution features of layer {name!r} "
            + ("are missing. Their shape must be" if shape is None else f"have shape {shape}, not")
            + f" (samples, {width}). Trace both data sets through the same network."
        )


def classifier_matrix(classifier: Classifier | Any) -> Float[np.ndarray, "C d"]:
    """Return a classifier's weights in float64, checked to be finite."""
    weight = classifier.weight if isinstance(classifier, Classifier) else classifier
    return as_numpy(as_points(weight, name="the classifier's weights", dtype=torch.float64))
