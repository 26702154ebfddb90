"""The two passes over the samples of a layer, from which its collapse metrics are computed.

1. Pass one gives the class means (`ClassMoments`).
2. Pass two gives what depends on the final class means (`SpanProjection`).
3. `layer_collapse` computes the metrics of the layer from both.

`LayerPasses` makes both passes over a layer: at once (`over`) if its features are an array, or
batch by batch in a `CollapseStream`.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int

from ..arrays.checks import as_count, as_numpy, as_points, tensor_chunks
from ..errors import ArgumentError, FeatureError
from ..runtime import processes
from ..runtime.threads import one_thread
from ..thresholds import FEW_SAMPLES
from ..trajectory import Classifier, Trajectory
from .metrics import LayerCollapse, ProjectionSums, layer_collapse
from .moments import ClassGeometry, ClassIndex, ClassMoments
from .small_samples import LeaveOneOut

_DRIFT_TOLERANCE = 1e-4  # relative size below which a mean deviation counts as 0
_ROUNDING_FRACTION = 1e-3  # allowed irreproducible error, relative to the class means' spread


class LayerPasses:
    """The two passes over the samples of the layer `name`, with indices of classes from `index`."""

    geometry: ClassGeometry
    projection: SpanProjection

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
        processes.raise_on_any(partial(self.moments.add, local, local_index, shard.start))
        self.moments = self.moments.all_reduce()
        self.begin_second()
        self.projection.add(local, local_index, None if predicted is None else predicted[shard])
        self.projection.all_reduce()
        return self

    def begin_second(self) -> None:
        """Compute the class means of all samples so far, and begin pass two."""
        self.geometry = self.moments.finish(self._index, self._weights)
        self.projection = SpanProjection(self.moments, self.geometry, self._index)

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
            self.projection.finish() if self.projection.samples else None,
            stage=stage,
            classifier=classifier,
            ood_mean=ood.mean(self.name, self.geometry.width),
            rank_tolerance=rank_tolerance,
        )


class SpanProjection:
    """Pass two: projections of the samples onto the span of the final class means.

    The pass sums the within-class energy along each direction of the span. If d is large, nc1 is
    computed from these sums. The pass also classifies every sample by its nearest class mean.
    """

    def __init__(self, moments: ClassMoments, geometry: ClassGeometry, index: ClassIndex) -> None:
        self.samples = self._correct = self._mismatches = self._with_predictions = 0
        self._moments, self._means_coincide = moments, geometry.means_coincide
        by_index = np.argsort(index.indices(geometry.classes))
        self._coordinates, self._basis, counts, classes = (
            torch.from_numpy(each).to(moments.means)
            for each in (
                *(geometry.coordinates[by_index], geometry.basis),
                *(geometry.counts[by_index], index.classes),
            )
        )
        self._energy, self._drift = self._basis.new_zeros(2, len(self._basis))
        self._leave_one_out = None
        if geometry.counts.min() < FEW_SAMPLES:
            self._leave_one_out = LeaveOneOut(
                self._basis, self._coordinates, moments.means, moments.shift, counts, classes
            )

    def add(
        self,
        features: Any,
        class_index: Int[np.ndarray, " n"],
        predicted: Int[np.ndarray, " n"] | None = None,
    ) -> None:
        """Add samples again; `predicted` are the class indices of the network's predictions."""
        name, start, n = self._moments.name, self.samples, len(class_index)
        with one_thread():
            for rows, block in tensor_chunks(features, name, start, n):
                nearest = self._add(block, class_index[rows])
                self._correct += int((nearest == class_index[rows]).sum())
                self.samples += len(block)  # here, so that the count shows an interrupted pass
                if predicted is not None:
                    self._mismatches += int((nearest != predicted[rows]).sum())
                    self._with_predictions += len(block)

    def _add(
        self, block: Float[torch.Tensor, "b d"], index: Int[np.ndarray, " b"]
    ) -> Int[np.ndarray, " b"]:
        """Add a block's sums; return the class indices of the nearest means."""
        class_index = torch.from_numpy(index).to(self._basis.device)
        x = block - self._moments.shift
        x -= self._moments.means[class_index]
        residual = x @ self._basis.T  # (b, r): centered first, so nothing cancels
        self._energy += (residual * residual).sum(0)
        self._drift += residual.sum(0)
        if self._leave_one_out is not None:
            self._leave_one_out.add(block, x, residual, class_index)
        nearest = nearest_mean(residual + self._coordinates[class_index], self._coordinates)
        return nearest.cpu().numpy()

    def all_reduce(self) -> None:
        """Add the sums of all processes."""
        counts = [self.samples, self._correct, self._mismatches, self._with_predictions]
        self.samples, self._correct, self._mismatches, self._with_predictions = (
            processes.all_reduce_sum(np.array(counts)).tolist()
        )
        processes.all_reduce_sum(self._energy)
        processes.all_reduce_sum(self._drift)
        if self._leave_one_out is not None:
            self._leave_one_out.all_reduce()

    def finish(self) -> ProjectionSums:
        """Return the sums; raise `FeatureError` if the samples are not those of pass one."""
        n = self.samples
        if n != self._moments.samples:
            raise FeatureError(
                f"The second pass saw {n} samples, the first {self._moments.samples}. "
                "Both passes need the same data."
            )
        # Deviations from the class means sum to 0 if the data are those of pass one. The second
        # term of the scale allows for networks whose arithmetic is not reproducible.
        spread = self._coordinates.square().mean(0).sum().sqrt()
        scale = torch.sqrt(self._energy / n) + _ROUNDING_FRACTION * spread
        drifts = bool((self._drift.abs() / n > _DRIFT_TOLERANCE * scale).any())
        if drifts and not self._means_coincide:
            raise FeatureError(
                f"layer {self._moments.name!r} differs between the first and the second pass. "
                "Put the network into eval mode and turn off random augmentation."
            )
        within_along = (self._energy / n).cpu().numpy()
        mismatches = self._mismatches if self._with_predictions == n else None
        return ProjectionSums(self._correct, mismatches, within_along, self._leave_one_out)


def nearest_mean(
    points: Float[torch.Tensor, "*batch n r"], means: Float[torch.Tensor, "*batch K r"]
) -> Int[torch.Tensor, "*batch n"]:
    """Return the index of the nearest mean; the first if several are equally near."""
    squares = (means * means).sum(-1).unsqueeze(-2)
    return torch.argmin(squares - 2 * points @ means.mT, dim=-1)


class OodMeans:
    """Means of out-of-distribution samples, by layer."""

    def __init__(self, ood: Any = None) -> None:
        self._sums: dict[str, torch.Tensor] = {}
        self._samples: dict[str, int] = {}
        self._given = False
        if ood is not None:
            self.add(ood)

    def add(self, ood: Any) -> None:
        """Add samples of all layers: a trajectory, or a mapping of layer names to features."""
        if isinstance(ood, Trajectory):
            ood = {layer.name: layer.features for layer in ood.layers}
        if not isinstance(ood, Mapping):
            raise ArgumentError(
                "ood must be a Trajectory, or features by the names of their layers; not "
                f"{type(ood).__name__}."
            )
        self._given = True
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

        Raises `FeatureError` if the samples lack this layer, or have another width there.
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
