"""Collapse metrics of many bootstrap replicates of one layer, computed together.

A bootstrap replicate weights sample i by its multiplicity c_i. With x_i = h_i - m_{y_i} relative to
the class means m_k of the data, the class means of a replicate are m_k + t_k, where t_k is the
weighted mean of x over class k, and its var_k is the weighted mean of ||x||^2 minus ||t_k||^2. All
replicates are therefore computed from the same x, in two passes over the data, as sums and matrix
products.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int

from ..runtime.threads import one_thread
from .metrics import RANK_TOLERANCE, LayerCollapse, layer_collapse
from .moments import ClassGeometry, ClassMoments, class_weights
from .projection import ProjectionSums, nearest_mean
from .tensor_chunks import CHUNK_ENTRIES, tensor_chunks

_REPLICATE_ENTRIES = 2**23
"""Maximum number of float64 entries of the replicates computed together (64 MiB)."""


def stratified_counts(
    class_index: Int[np.ndarray, " n"], draws: int, rng: np.random.Generator
) -> Int[np.ndarray, "b n"]:
    """Return the multiplicities of samples in `draws` resamples of n_k out of n_k in each class."""
    multiplicities = np.zeros((draws, len(class_index)), dtype=np.int64)
    for k in np.unique(class_index):
        in_class = np.flatnonzero(class_index == k)
        n = len(in_class)
        multiplicities[:, in_class] = rng.multinomial(n, np.full(n, 1 / n), size=draws)
    return multiplicities


def bootstrap_replicates(
    features: Any,
    class_index: Int[np.ndarray, " n"],
    predicted: Int[np.ndarray, " n"] | None,
    multiplicities: Int[np.ndarray, "b n"],
    *,
    name: str = "features",
    stage: int | None = 0,
    weights: str = "uniform",
    rank_tolerance: float = RANK_TOLERANCE,
) -> list[LayerCollapse]:
    """Measure every replicate of a layer: the metrics of `collapse_of`, except the ranks.

    A replicate takes O(N d K) operations, like the metrics themselves, in large matrix products.
    The memory needed does not grow with the number of samples or of replicates.

    Parameters
    ----------
    features : array_like, (n, d)
    class_index : ndarray of int, (n,)
        The class of each sample, from 0 to K - 1; every class occurs.
    predicted : ndarray of int, (n,), optional
        The network's predictions in the same form; -1 for a class that does not occur.
    multiplicities : ndarray of int, (b, n)
        Multiplicity of each sample in each replicate; over a class they sum to its size.
    name, stage, weights, rank_tolerance
        As in `collapse_of`.
    """
    K = int(class_index.max()) + 1
    moments = ClassMoments(name, 0)
    moments.update(features, class_index, K)
    d, n = moments.width, len(class_index)
    layer = _Layer(features, class_index, predicted, moments, weights)
    batch_size = max(1, _REPLICATE_ENTRIES // (K * max(d, min(n, CHUNK_ENTRIES // d))))
    results: list[LayerCollapse] = []
    for start in range(0, len(multiplicities), batch_size):
        batch = torch.from_numpy(multiplicities[start : start + batch_size]).double()
        with one_thread(4 * len(batch) * n * d * K):
            results += [
                layer_collapse(
                    geometry,
                    projection,
                    stage=stage,
                    has_predictions=predicted is not None,
                    rank_tolerance=rank_tolerance,
                )
                for geometry, projection in layer.replicates(batch)
            ]
    return results


@dataclass(frozen=True, eq=False)
class _Layer:
    """A layer's features, and its class means m_k in `moments`."""

    features: Any
    class_index: Int[np.ndarray, " n"]
    predicted: Int[np.ndarray, " n"] | None
    moments: ClassMoments
    weights: str

    def replicates(
        self, multiplicities: Float[torch.Tensor, "b n"]
    ) -> Iterator[tuple[ClassGeometry, ProjectionSums]]:
        """Yield the class means of every replicate, and the sums over its samples."""
        counts = torch.from_numpy(np.bincount(self.class_index)).double()
        shifts, variances = self._first_pass(multiplicities, counts)
        in_mean, in_covariance = class_weights(self.weights, counts)
        means = self.moments.means.cpu() + shifts
        centers = in_mean @ means  # (b, d)
        means -= centers[:, None]
        _, sigma, basis = torch.linalg.svd(
            in_covariance.sqrt()[:, None] * means, full_matrices=False
        )
        coordinates = means @ basis.mT  # (b, K, r)
        sums = self._second_pass(multiplicities, basis, coordinates, shifts @ basis.mT, counts)
        threshold = max(means.shape[1:]) * np.finfo(np.float64).eps * sigma[:, :1]
        for b, kept in enumerate(sigma > threshold):
            yield (
                ClassGeometry(
                    name=self.moments.name,
                    width=self.moments.width,
                    classes=np.arange(len(counts)),
                    counts=counts.long().numpy(),
                    variances=variances[b].numpy(),
                    center=(centers[b] + self.moments.shift.cpu()).numpy(),
                    basis=basis[b, kept].numpy(),
                    coordinates=coordinates[b][:, kept].numpy(),
                    sigma=sigma[b, kept].numpy(),
                    within_along=sums[b].within_along[kept.numpy()],
                    spectrum=None,
                    precision=self.moments.precision,
                ),
                sums[b],
            )

    def _residuals(
        self,
    ) -> Iterator[tuple[slice, Float[torch.Tensor, "n d"], Int[torch.Tensor, " n"]]]:
        """Yield chunks of x_i = h_i - m_{y_i}: their rows, the x_i and their classes."""
        means, shift = self.moments.means.cpu(), self.moments.shift.cpu()
        for rows, chunk in tensor_chunks(self.features, self.moments.name, 0):
            classes = torch.from_numpy(self.class_index[rows])
            yield rows, (chunk.cpu() - shift).sub_(means[classes]), classes

    def _first_pass(
        self, multiplicities: Float[torch.Tensor, "b n"], counts: Float[torch.Tensor, " K"]
    ) -> tuple[Float[torch.Tensor, "b K d"], Float[torch.Tensor, "b K"]]:
        """Return t_k, the shifts of the replicates' class means, and var_k."""
        shifts = multiplicities.new_zeros(len(multiplicities), len(counts), self.moments.width)
        squares = multiplicities.new_zeros(len(multiplicities), len(counts))
        for rows, x, classes in self._residuals():
            weights = multiplicities[:, rows]
            for k in classes.unique():
                in_class = classes == k
                shifts[:, k] += weights[:, in_class] @ x[in_class]
                squares[:, k] += weights[:, in_class] @ x[in_class].square().sum(1)
        shifts /= counts[:, None]
        return shifts, (squares / counts - shifts.square().sum(2)).clamp_min_(0)

    def _second_pass(
        self,
        multiplicities: Float[torch.Tensor, "b n"],
        basis: Float[torch.Tensor, "b r d"],
        coordinates: Float[torch.Tensor, "b K r"],
        shifts: Float[torch.Tensor, "b K r"],
        counts: Float[torch.Tensor, " K"],
    ) -> list[ProjectionSums]:
        """Sum the within-class energy in the span of each replicate's means, and count samples.

        The counts are of samples nearest to the mean of their own class, and of samples whose
        nearest mean is not that of the predicted class.
        """
        n, (b, r) = len(self.class_index), basis.shape[:2]
        energy = multiplicities.new_zeros(b, r)
        correct, mismatches = multiplicities.new_zeros(2, b)
        for rows, x, classes in self._residuals():
            weights = multiplicities[:, rows]
            projected = (x @ basis.flatten(0, 1).T).unflatten(1, (b, r))
            projected = projected.transpose(0, 1)  # (b, n, r)
            energy += torch.einsum("bn,bnr->br", weights, projected.square())
            # h_i - g = x_i + (m_{y_i} + t_{y_i} - g) - t_{y_i}
            nearest = nearest_mean(projected + (coordinates - shifts)[:, classes], coordinates)
            correct += (weights * (nearest == classes)).sum(1)
            if self.predicted is not None:
                predictions = torch.from_numpy(self.predicted[rows])
                mismatches += (weights * (nearest != predictions)).sum(1)
        energy = (energy - torch.einsum("k,bkr->br", counts, shifts.square())).clamp_min_(0) / n
        return [
            ProjectionSums(n, int(h), int(m), e.numpy())
            for h, m, e in zip(correct, mismatches, energy, strict=True)
        ]
