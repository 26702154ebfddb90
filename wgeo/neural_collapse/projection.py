"""Pass two: samples relative to the final class means."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, Int

from ..errors import FeatureError
from ..runtime import processes
from .moments import ClassGeometry, ClassIndex, ClassMoments
from .small_samples import LeaveOneOut, is_few

_DRIFT_TOLERANCE = 1e-4
_ROUNDING_FRACTION = 1e-3


@dataclass(frozen=True, eq=False)
class ProjectionSums:
    """The sums of pass two."""

    samples: int
    correct: int  # samples whose nearest class mean is that of their own class
    mismatches: int | None  # of predictions with the nearest mean; None if some are unknown
    within_along: Float[np.ndarray, " r"]  # V_j^T Sigma_W V_j, with V_j spanning the means
    leave_one_out: LeaveOneOut | None = None  # only if a class has few samples


class SpanProjection:
    """Pass two: samples in the span of the final class means, at most K - 1 numbers each.

    The pass sums the within-class energy along each direction of the span, from which nc1 is
    computed if d is large. It also classifies every sample by its nearest class mean.
    """

    def __init__(self, moments: ClassMoments, geometry: ClassGeometry, index: ClassIndex) -> None:
        self.samples = self._correct = self._mismatches = self._with_predictions = 0
        self._moments, self._means_coincide = moments, geometry.means_coincide
        coordinates = np.empty_like(geometry.coordinates)
        coordinates[index.indices(geometry.classes)] = geometry.coordinates
        self._coordinates, self._basis = (
            torch.from_numpy(a).to(moments.means) for a in (coordinates, geometry.basis)
        )
        self._energy, self._drift = self._basis.new_zeros(2, len(self._basis))
        self._leave_one_out = (
            self._new_leave_one_out(geometry, index) if is_few(geometry.counts) else None
        )

    def _new_leave_one_out(self, geometry: ClassGeometry, index: ClassIndex) -> LeaveOneOut:
        counts = np.empty(len(geometry.counts))
        counts[index.indices(geometry.classes)] = geometry.counts
        return LeaveOneOut(
            self._basis,
            self._coordinates,
            self._moments.means,
            self._moments.shift,
            torch.from_numpy(counts).to(self._basis),
            torch.from_numpy(index.classes).to(self._basis),
        )

    def add(
        self,
        block: Float[torch.Tensor, "b d"],
        index: Int[np.ndarray, " b"],
        predicted: Int[np.ndarray, " b"] | None = None,
    ) -> None:
        """Add samples; `predicted` are the class indices of the network's predictions."""
        class_index = torch.from_numpy(index).to(self._basis.device)
        nearest = self._nearest(block, class_index)
        self.samples += len(index)
        self._correct += int((nearest == class_index).sum())
        if predicted is not None:
            self._with_predictions += len(index)
            self._mismatches += int((nearest.cpu().numpy() != predicted).sum())

    def _nearest(
        self, block: Float[torch.Tensor, "b d"], class_index: Int[torch.Tensor, " b"]
    ) -> Int[torch.Tensor, " b"]:
        """Add a block's sums; return the class indices of the nearest means."""
        x = block - self._moments.shift
        x -= self._moments.means[class_index]
        residual = x @ self._basis.T  # (b, r): centered first, so nothing cancels
        self._energy += (residual * residual).sum(0)
        self._drift += residual.sum(0)
        if self._leave_one_out is not None:
            self._leave_one_out.add(block, x, residual, class_index)
        return nearest_mean(residual + self._coordinates[class_index], self._coordinates)

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
        """Return the sums.

        Raises
        ------
        FeatureError
            The samples of pass two are not those of pass one.
        """
        n = self.samples
        if n != self._moments.samples:
            raise FeatureError(
                f"The second pass saw {n} samples, the first {self._moments.samples}. "
                "Both passes need the same data."
            )
        # Deviations from the class means sum to 0 if the data are those of pass one.
        deviation = torch.sqrt(self._energy / n)
        # The second term allows for networks whose arithmetic is not reproducible.
        scale = deviation + _ROUNDING_FRACTION * self._coordinates.square().mean(0).sum().sqrt()
        drifts = bool((self._drift.abs() / n > _DRIFT_TOLERANCE * scale).any())
        if drifts and not self._means_coincide:
            raise FeatureError(
                f"layer {self._moments.name!r} differs between the first and the second pass. "
                "Put the network into eval mode and turn off random augmentation."
            )
        within_along = (self._energy / n).cpu().numpy()
        mismatches = self._mismatches if self._with_predictions == n else None
        return ProjectionSums(n, self._correct, mismatches, within_along, self._leave_one_out)


def nearest_mean(
    points: Float[torch.Tensor, "*batch n r"], means: Float[torch.Tensor, "*batch K r"]
) -> Int[torch.Tensor, "*batch n"]:
    """Return the index of the nearest mean; the first if several are equally near."""
    squares = (means * means).sum(-1).unsqueeze(-2)
    return torch.argmin(squares - 2 * points @ means.mT, dim=-1)
