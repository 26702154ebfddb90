"""Pass two: samples beside the final class means."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int

from ..errors import FeatureError
from ..runtime import processes
from ..runtime.threads import one_thread
from .moments import ClassGeometry, ClassIndex, ClassMoments
from .row_blocks import check_length, row_blocks
from .small_samples import LeftOut, is_few

_DRIFT_TOLERANCE = 1e-4
_ROUNDING_SHARE = 1e-3


@dataclass(frozen=True, eq=False)
class Projected:
    """What pass two knows.

    Attributes
    ----------
    samples, hits, mismatches : int
        Samples; those nearest to their own class mean; those on which the nearest class mean and
        the network's decision differ.
    along : ndarray, (r,)
        V_j^T Sigma_W V_j for every direction of the span of the means.
    few : LeftOut or None
        What corrected estimates need, if a class has few samples.
    """

    samples: int
    hits: int
    mismatches: int
    along: Float[np.ndarray, " r"]
    few: LeftOut | None = None


class SpanProjection:
    """Pass two: samples in the span of the final class means, K - 1 numbers each.

    Accumulates the within-class energy along each direction of the span (nc1's numerator where d
    is large) and decides every sample by its nearest class mean.

    Parameters
    ----------
    moments : ClassMoments
        Pass one, finished.
    geometry : ClassGeometry
        What it found.
    index : ClassIndex
        Whose rows batches are indexed by.
    """

    def __init__(self, moments: ClassMoments, geometry: ClassGeometry, index: ClassIndex) -> None:
        self.samples = self._hits = self._mismatches = 0
        self._moments, self._coincide = moments, geometry.coincide
        by_row = np.empty_like(geometry.coordinates)
        by_row[index.rows(geometry.classes)] = geometry.coordinates
        self._by_row, self._basis = (
            torch.from_numpy(a).to(moments.means) for a in (by_row, geometry.basis)
        )
        self._energy, self._drift = self._basis.new_zeros(2, len(self._basis))
        self._few = self._left_out(geometry, index) if is_few(geometry.counts) else None

    def _left_out(self, geometry: ClassGeometry, index: ClassIndex) -> LeftOut:
        counts = np.empty(len(geometry.counts))
        counts[index.rows(geometry.classes)] = geometry.counts
        return LeftOut(
            self._basis,
            self._by_row,
            self._moments.means,
            torch.from_numpy(counts).to(self._basis),
            torch.from_numpy(index.classes).to(self._basis),
        )

    def update(
        self,
        features: Any,
        index: Int[np.ndarray, " n"],
        predicted: Int[np.ndarray, " n"] | None = None,
    ) -> None:
        """Take in a batch; `predicted` are the class rows of the network's decisions."""
        moments = self._moments
        check_length(moments.name, features, index)
        with one_thread():
            for part, block in row_blocks(features, moments.name, self.samples):
                rows = torch.from_numpy(index[part]).to(self._basis.device)
                nearest = self._absorb(block, rows)
                self._hits += int((nearest == rows).sum())
                if predicted is not None:
                    self._mismatches += int((nearest.cpu().numpy() != predicted[part]).sum())
        self.samples += len(index)

    def _absorb(
        self, block: Float[torch.Tensor, "b d"], rows: Int[torch.Tensor, " b"]
    ) -> Int[torch.Tensor, " b"]:
        """Add a block's energy; return the rows of the nearest means."""
        x = block - self._moments.shift
        x -= self._moments.means[rows]
        residual = x @ self._basis.T  # (b, r): centred first, so nothing cancels
        self._energy += (residual * residual).sum(0)
        self._drift += residual.sum(0)
        if self._few is not None:
            self._few.absorb(x, residual, rows)
        return nearest_mean(residual + self._by_row[rows], self._by_row)

    def together(self) -> SpanProjection:
        """Take in what other processes found of their samples."""
        ints = np.array([self.samples, self._hits, self._mismatches])
        self.samples, self._hits, self._mismatches = processes.all_reduce_sum(ints).tolist()
        processes.all_reduce_sum(self._energy)
        processes.all_reduce_sum(self._drift)
        if self._few is not None:
            self._few.together()
        return self

    def finish(self) -> Projected:
        """What the samples gave.

        Raises
        ------
        FeatureError
            Pass two did not see the samples of pass one.
        """
        n = self.samples
        if n != self._moments.samples:
            raise FeatureError(
                f"The second pass saw {n} samples, the first {self._moments.samples}. "
                "Both must go over the same data."
            )
        # Residuals about the means sum to 0 if, and in practice only if, the data are the same.
        spread = torch.sqrt(self._energy / n)
        # The second term allows for networks whose own arithmetic is not reproducible.
        scale = spread + _ROUNDING_SHARE * self._by_row.square().mean(0).sum().sqrt()
        drifts = bool((self._drift.abs() / n > _DRIFT_TOLERANCE * scale).any())
        if drifts and not self._coincide:
            raise FeatureError(
                f"layer {self._moments.name!r} differs between the first and the second pass. "
                "Put the network into eval mode and switch random augmentation off."
            )
        along = (self._energy / n).cpu().numpy()
        return Projected(n, self._hits, self._mismatches, along, self._few)


def nearest_mean(
    points: Float[torch.Tensor, "*batch n r"], means: Float[torch.Tensor, "*batch K r"]
) -> Int[torch.Tensor, "*batch n"]:
    """Row of the nearest mean, the first of several equally near."""
    squares = (means * means).sum(-1).unsqueeze(-2)
    return torch.argmin(squares - 2 * points @ means.mT, dim=-1)
