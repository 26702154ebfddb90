"""Collapse metrics of features that arrive in batches and are not kept in memory."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from jaxtyping import Int

from ..arrays.checks import as_count, as_labels
from ..errors import ArgumentError, FeatureError
from ..runtime.progress import track
from ..storage.record import PENULTIMATE
from ..trajectory import Classifier, Trajectory
from .depth import Collapse
from .measure import LayerPasses, OodMeans, classifier_matrix
from .metrics import RANK_TOLERANCE, Frame, check_rank_tolerance
from .moments import SPECTRUM_SIZE, ClassIndex, check_weights

Batch = tuple[Mapping[str, Any], Any] | tuple[Mapping[str, Any], Any, Any]
"""Features by layer, labels and, if they are known, the network's predictions."""

KEEP = 2**26
"""Bytes of features that a stream keeps in memory to avoid a second pass (64 MiB)."""


class CollapseStream:
    """Collapse metrics from batches, in memory that does not grow with the number of samples.

    Call ``update`` with every batch. This gives all metrics except ncc_accuracy, ncc_mismatch, the
    corrected estimates and, for layers wider than `spectrum_size`, nc1. These metrics compare
    samples with the *final* class means, so they need a second pass: call ``revisit`` with every
    batch again. The stream keeps features up to `keep` bytes; layers whose features it keeps need
    no second pass. Batches may have any size and order, in both passes.

    Each layer needs memory for K d numbers in float64, plus a d x d matrix if d <= `spectrum_size`
    (at most 2 MiB by default), or otherwise `spectrum_size` rows of features.

    Parameters
    ----------
    weights, rank_tolerance, spectrum_size
        As in `collapse`.
    classifier : Classifier or array_like, (K, d), optional
        Weights of the classifier, which reads the last layer, for NC3. Labels must be below K.
    num_classes : int, optional
        Number of classes; labels must be below it.
    stages : mapping of layer name to int or None, optional
        The stage (feature space) of each layer. By default a new stage starts where the width
        changes, and the layers ``input`` and ``penultimate`` (the classifier's input) have no
        stage.
    keep : int
        Maximum number of bytes of features to keep, over all layers. If they need more, the stream
        drops the widest layers first. 0 for a strict bound on memory.

    Examples
    --------
    >>> import numpy as np
    >>> import wgeo
    >>> rng, stream = np.random.default_rng(0), wgeo.neural_collapse.CollapseStream()
    >>> for _ in range(4):
    ...     labels = rng.integers(3, size=50)
    ...     stream.update({"last": np.eye(3)[labels] + 0.1 * rng.normal(size=(50, 3))}, labels)
    >>> stream.result().layers[-1].ncc_accuracy
    1.0
    """

    def __init__(
        self,
        *,
        weights: str = "uniform",
        classifier: Classifier | Any = None,
        num_classes: int | None = None,
        stages: Mapping[str, int | None] | None = None,
        keep: int = KEEP,
        rank_tolerance: float = RANK_TOLERANCE,
        spectrum_size: int = SPECTRUM_SIZE,
    ) -> None:
        self._weights = check_weights(weights)
        self._classifier = None if classifier is None else classifier_matrix(classifier)
        if num_classes is None and self._classifier is not None:
            num_classes = len(self._classifier)
        if num_classes is not None:
            as_count(num_classes, "num_classes", 1)
        self._index = ClassIndex(num_classes)
        self._stages = None if stages is None else _check_stages(stages)
        self._rank_tolerance = check_rank_tolerance(rank_tolerance)
        self._spectrum_size = as_count(spectrum_size, "spectrum_size")
        self._replay = _ReplayBuffer(as_count(keep, "keep"))
        self._layers: dict[str, LayerPasses] = {}
        self._first_pass = _PassCounts()
        self._second_pass: _PassCounts | None = None
        self._ood = OodMeans()

    def update(self, features: Mapping[str, Any], labels: Any, predictions: Any = None) -> None:
        """First pass: add a batch.

        Parameters
        ----------
        features : mapping of layer name to array_like, (n, d)
            The layers must be the same in every batch, and in execution order in the first.
        labels : array_like of int, (n,)
        predictions : array_like of int, (n,), optional
            The network's predictions; give them in every batch of a pass or in none. If there is a
            second pass, ncc_mismatch is computed from the predictions in it.

        Raises
        ------
        FeatureError
            There is NaN or infinity (the message names the layer and the sample), or layers or
            widths differ from those of earlier batches. The stream cannot be used afterwards.
        ArgumentError
            Labels are out of range, or the second pass has begun.

        Examples
        --------
        >>> import numpy as np
        >>> import wgeo
        >>> stream = wgeo.neural_collapse.CollapseStream()
        >>> for labels in ([0, 1, 1], [0, 0, 1]):
        ...     stream.update({"last": np.eye(2)[labels]}, labels)
        >>> stream.result().counts
        (3, 3)
        """
        if self._second_pass is not None:
            raise ArgumentError("The second pass has begun; new samples need a new CollapseStream.")
        y, predicted_labels = _check_labels(labels, predictions)
        if not self._layers:
            missing = set() if self._stages is None else set(features) - set(self._stages)
            if missing:
                raise ArgumentError(
                    f"stages does not name layer {min(missing)!r}; a layer's stage may be None."
                )
            given = (self._index, self._weights, self._spectrum_size)
            self._layers = {name: LayerPasses(name, *given) for name in features}
        _check_layers(self._layers, features)
        start = self._first_pass.samples
        class_index = self._index.add(y, start)
        for name, layer in self._layers.items():
            layer.moments.add(features[name], class_index, start)
        self._replay.add(features, y, predicted_labels)
        self._first_pass.add(y, predicted_labels)

    def update_ood(self, features: Trajectory | Mapping[str, Any]) -> None:
        """Add a batch of out-of-distribution samples of all layers, for NC5.

        Examples
        --------
        >>> import numpy as np
        >>> import wgeo
        >>> stream = wgeo.neural_collapse.CollapseStream()
        >>> stream.update({"last": np.eye(3)[[0, 0, 1, 1]]}, [0, 0, 1, 1])
        >>> stream.update_ood({"last": np.eye(3)[[2, 2]]})
        >>> round(stream.result().layers[0].nc5, 6)
        0.0
        """
        self._ood.add(features)

    @property
    def complete(self) -> bool:
        """Whether the stream keeps the features of all layers and needs no second pass."""
        return self._replay.layers == set(self._layers)

    def revisit(self, features: Mapping[str, Any], labels: Any, predictions: Any = None) -> None:
        """Second pass: add the samples again, in batches of any size and order.

        Raises
        ------
        FeatureError
            Layers or widths differ from those of the first pass, a class did not occur in it, or
            there is NaN or infinity.
        ArgumentError
            Labels are negative, or not whole numbers.

        Examples
        --------
        This stream keeps no features, so ncc_accuracy needs a second pass:

        >>> import numpy as np
        >>> import wgeo
        >>> labels = np.arange(4) % 2
        >>> stream = wgeo.neural_collapse.CollapseStream(keep=0)
        >>> stream.update({"last": np.eye(2)[labels]}, labels)
        >>> stream.complete, stream.result().layers[0].ncc_accuracy
        (False, None)
        >>> stream.revisit({"last": np.eye(2)[labels]}, labels)
        >>> stream.result().layers[0].ncc_accuracy
        1.0
        """
        y, predicted_labels = _check_labels(labels, predictions)
        _check_layers(self._layers, features)
        if self._second_pass is None:
            self._second_pass = _PassCounts()
            self._finish_first()
            self._replay = _ReplayBuffer(0)
        self._second(features, y, predicted_labels)
        self._second_pass.add(y, predicted_labels)

    def result(self) -> Collapse:
        """Return the metrics of all samples so far.

        Raises
        ------
        FeatureError
            There are no samples, there is only one class, or the samples of the second pass differ
            from those of the first.
        """
        if not self._layers:
            raise FeatureError("The stream has seen no samples.")
        if self._second_pass is None:
            self._finish_first()
            for batch in self._replay.batches:
                self._second(*batch)
        stages = _stages(self._layers) if self._stages is None else self._stages
        last = list(self._layers)[-1]
        layers = [
            layer.metrics(
                stage=stages[name],
                classifier=self._classifier if name == last else None,
                ood=self._ood,
                rank_tolerance=self._rank_tolerance,
            )
            for name, layer in self._layers.items()
        ]
        geometry = self._layers[last].geometry
        accuracy = None if self._second_pass is None else self._second_pass.accuracy
        return Collapse.of_layers(
            layers,
            classes=tuple(geometry.classes.tolist()),
            counts=tuple(geometry.counts.tolist()),
            weights=self._weights,
            classifier=None if self._classifier is None else Frame.of(self._classifier),
            accuracy=self._first_pass.accuracy if accuracy is None else accuracy,
        )

    def _finish_first(self) -> None:
        for layer in self._layers.values():
            layer.begin_second()

    def _second(
        self,
        features: Mapping[str, Any],
        labels: Int[np.ndarray, " n"],
        predicted_labels: Int[np.ndarray, " n"] | None,
    ) -> None:
        """Pass two of the layers in a batch: of all layers, or of those that were kept."""
        class_index = self._index.indices(labels)
        if class_index.min() < 0:
            raise FeatureError(
                f"class {labels[class_index.argmin()]} occurs in the second pass but not in the "
                "first. Both passes need the same data."
            )
        predicted = None if predicted_labels is None else self._index.indices(predicted_labels)
        for name, array in features.items():
            self._layers[name].projection.add(array, class_index, predicted)


def collapse_stream(
    batches: Any,
    *,
    ood: Trajectory | Mapping[str, Any] | None = None,
    **options: Any,
) -> Collapse:
    """Measure neural collapse from batches of features; see `CollapseStream`.

    Parameters
    ----------
    batches : iterable, or callable that returns one
        Tuples (features by layer, labels) or (features by layer, labels, predictions). A list, a
        loader or a callable is read twice if the stream needs a second pass. An iterator is read
        once; metrics that need a second pass are then None.
    ood : Trajectory or mapping of layer name to features, optional
        Out-of-distribution samples, traced through the same network, for NC5.
    **options
        Options of `CollapseStream`.

    Raises
    ------
    FeatureError, ArgumentError
        As in `collapse`; also if an option is unknown, or a batch has another form.

    Examples
    --------
    >>> import numpy as np
    >>> import wgeo
    >>> batches = [({"last": np.eye(2)[labels]}, labels) for labels in ([0, 1, 1], [0, 0, 1])]
    >>> result = wgeo.neural_collapse.collapse_stream(batches)
    >>> result.counts, round(result.layers[0].nc1, 6), result.layers[0].ncc_accuracy
    ((3, 3), 0.0, 1.0)
    """
    unknown = set(options) - set(inspect.signature(CollapseStream).parameters)
    if unknown:
        raise ArgumentError(f"CollapseStream has no option {', '.join(sorted(unknown))}.")
    stream = CollapseStream(**options)
    if ood is not None:
        stream.update_ood(ood)
    start = batches if callable(batches) else lambda: batches
    first = start()
    for batch in track(first, "measuring collapse"):
        stream.update(*_check_batch(batch))
    single_use = not callable(batches) and iter(first) is first
    if not (single_use or stream.complete):
        for batch in track(start(), "measuring collapse, second pass"):
            stream.revisit(*_check_batch(batch))
    return stream.result()


def _check_batch(batch: Any) -> Batch:
    """Return a batch as a tuple; raise `ArgumentError` for anything else, such as images."""
    if isinstance(batch, tuple | list) and len(batch) in (2, 3) and isinstance(batch[0], Mapping):
        return tuple(batch)  # type: ignore[return-value]
    first = type(batch[0] if isinstance(batch, tuple | list) and batch else batch).__name__
    raise ArgumentError(
        "A batch is ({layer name: features}, labels) or ({...}, labels, predictions), as "
        f"wgeo.stream(net, images) yields them; this one begins with {first}."
    )


class _PassCounts:
    """Numbers of samples, of samples with predictions, and of correct predictions in a pass."""

    def __init__(self) -> None:
        self.samples = self._with_predictions = self._correct = 0

    def add(
        self, labels: Int[np.ndarray, " n"], predicted_labels: Int[np.ndarray, " n"] | None
    ) -> None:
        self.samples += len(labels)
        if predicted_labels is not None:
            self._with_predictions += len(labels)
            self._correct += int((predicted_labels == labels).sum())

    @property
    def accuracy(self) -> float | None:
        """Fraction of correct predictions; None unless all predictions are known."""
        return self._correct / self.samples if 0 < self._with_predictions == self.samples else None


class _ReplayBuffer:
    """Batches that are kept for pass two; the widest layers are dropped if they exceed a budget."""

    def __init__(self, budget: int) -> None:
        self._budget = budget
        self._sizes: dict[str, int] = {}
        self._dropped: set[str] = set()
        self.batches: list[tuple[dict[str, Any], np.ndarray, np.ndarray | None]] = []

    @property
    def layers(self) -> set[str]:
        """Layers whose features are all kept."""
        return set(self._sizes)

    def add(
        self,
        features: Mapping[str, Any],
        labels: Int[np.ndarray, " n"],
        predicted_labels: Int[np.ndarray, " n"] | None,
    ) -> None:
        size = {name: _nbytes(a) for name, a in features.items() if name not in self._dropped}
        total = {name: self._sizes.get(name, 0) + extra for name, extra in size.items()}
        while total and sum(total.values()) > self._budget:
            widest = max(total, key=lambda name: total[name])
            del total[widest]
            self._dropped.add(widest)
            for kept, _, _ in self.batches:
                kept.pop(widest, None)
        self._sizes = total
        if total:
            self.batches.append(
                ({name: _copy(features[name]) for name in total}, labels, predicted_labels)
            )
        else:
            self.batches.clear()


def _nbytes(array: Any) -> int:
    return int(array.nbytes) if hasattr(array, "nbytes") else np.asarray(array).nbytes


def _copy(array: Any) -> Any:
    """Copy to the host, since the caller may reuse the memory for the next batch."""
    if isinstance(array, torch.Tensor):
        return array.detach().to("cpu", copy=True)
    return np.array(array)


def _check_labels(
    labels: Any, predictions: Any
) -> tuple[Int[np.ndarray, " n"], Int[np.ndarray, " n"] | None]:
    y = as_labels(labels)
    return y, None if predictions is None else as_labels(predictions, len(y))


def _check_layers(expected: Mapping[str, Any], features: Mapping[str, Any]) -> None:
    if not features or set(features) != set(expected):
        raise FeatureError(
            f"This batch has layers {', '.join(features) or 'none'}; the stream began with "
            f"{', '.join(expected) or 'none'}. Give the same layers in every batch."
        )


def _check_stages(stages: Any) -> dict[str, int | None]:
    """Return a copy of `stages`; raise `ArgumentError` unless it maps names to stages."""
    if not isinstance(stages, Mapping):
        raise ArgumentError(
            f"stages must map the name of each layer to its stage, not {type(stages).__name__}."
        )
    return {
        name: None if stage is None else as_count(stage, f"stages[{name!r}]")
        for name, stage in stages.items()
    }


def _stages(layers: Mapping[str, LayerPasses]) -> dict[str, int | None]:
    """Return stages: a new one at each change of width; None for `input` and `penultimate`."""
    stages: dict[str, int | None] = {}
    stage, width = -1, None
    for name, layer in layers.items():
        if name in ("input", PENULTIMATE):
            stages[name] = None
            continue
        stage, width = stage + (layer.geometry.width != width), layer.geometry.width
        stages[name] = stage
    return stages
