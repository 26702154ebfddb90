"""Collapse of resampled data: many weighted copies of one layer, measured together.

A bootstrap replicate weighs sample i by how often it was drawn, c_i. With x_i = h_i - m_{y_i}
about the class means m_k of the data as they are, a replicate's are m_k + t_k, t_k the weighted
mean of x over class k, and its var_k is the weighted mean of ||x||^2 less ||t_k||^2. So all
replicates come from the same x in two passes over the data, as sums and matrix products.
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
from .moments import ClassGeometry, ClassMoments
from .projection import Projected, nearest_mean
from .row_blocks import BLOCK, row_blocks

_HELD = 2**23
"""Entries held in float64 for the replicates measured together (64 MiB)."""


def drawn_within_classes(
    rows: Int[np.ndarray, " n"], times: int, rng: np.random.Generator
) -> Int[np.ndarray, "b n"]:
    """How often each sample is drawn, where every class is drawn from itself, n_k of n_k times."""
    drawn = np.zeros((times, len(rows)), dtype=np.int64)
    for k in np.unique(rows):
        of_class = np.flatnonzero(rows == k)
        n = len(of_class)
        drawn[:, of_class] = rng.multinomial(n, np.full(n, 1 / n), size=times)
    return drawn


def replicates_of(
    features: Any,
    rows: Int[np.ndarray, " n"],
    predicted: Int[np.ndarray, " n"] | None,
    drawn: Int[np.ndarray, "b n"],
    *,
    name: str = "features",
    stage: int | None = 0,
    frequency: bool = False,
    rank_tolerance: float = RANK_TOLERANCE,
) -> list[LayerCollapse]:
    """Measure every replicate of a layer: the metrics of `collapse_of`, but for the ranks.

    Costs O(N d K) a replicate, as the metrics themselves, in large matrix products; what it holds
    beyond the features and `drawn` grows with neither.

    Parameters
    ----------
    features : array_like, (n, d)
    rows : ndarray of int, (n,)
        Classes as 0, ..., K - 1; each occurs.
    predicted : ndarray of int, (n,), optional
        The network's decisions likewise; -1 for a class that does not occur.
    drawn : ndarray of int, (b, n)
        How often each replicate holds each sample; of every class, as many as there are.
    name, stage, frequency, rank_tolerance
        As in `layer_collapse`; `frequency` weighs classes by their size.
    """
    K = int(rows.max()) + 1
    moments = ClassMoments(name, 0)
    moments.update(features, rows, K)
    d, n = moments.width, len(rows)
    layer = _Layer(features, rows, predicted, moments, frequency)
    together = max(1, _HELD // (K * max(d, min(n, BLOCK // d))))
    found: list[LayerCollapse] = []
    for start in range(0, len(drawn), together):
        some = torch.from_numpy(drawn[start : start + together]).double()
        with one_thread(4 * len(some) * n * d * K):
            found += [
                layer_collapse(
                    geometry,
                    projected,
                    stage=stage,
                    decided=predicted is not None,
                    rank_tolerance=rank_tolerance,
                )
                for geometry, projected in layer.replicates(some)
            ]
    return found


@dataclass(frozen=True, eq=False)
class _Layer:
    """A layer's features, and its class means m_k as they are."""

    features: Any
    rows: Int[np.ndarray, " n"]
    predicted: Int[np.ndarray, " n"] | None
    moments: ClassMoments
    frequency: bool

    def replicates(
        self, drawn: Float[torch.Tensor, "b n"]
    ) -> Iterator[tuple[ClassGeometry, Projected]]:
        """Class means of every replicate, and what its samples are beside them."""
        counts = torch.from_numpy(np.bincount(self.rows)).double()
        moved, variances = self._first_pass(drawn, counts)
        share = counts if self.frequency else torch.ones_like(counts)
        share = share / share.sum()
        means = self.moments.means.cpu() + moved
        centres = share @ means  # (b, d)
        means -= centres[:, None]
        _, sigma, basis = torch.linalg.svd(share.sqrt()[:, None] * means, full_matrices=False)
        places = means @ basis.mT  # (b, K, r)
        seen = self._second_pass(drawn, basis, places, moved @ basis.mT, counts)
        least = max(means.shape[1:]) * np.finfo(np.float64).eps * sigma[:, :1]
        for b, kept in enumerate(sigma > least):
            yield (
                ClassGeometry(
                    name=self.moments.name,
                    width=self.moments.width,
                    classes=np.arange(len(counts)),
                    counts=counts.long().numpy(),
                    variances=variances[b].numpy(),
                    centre=(centres[b] + self.moments.shift.cpu()).numpy(),
                    basis=basis[b, kept].numpy(),
                    coordinates=places[b][:, kept].numpy(),
                    sigma=sigma[b, kept].numpy(),
                    along=seen[b].along[kept.numpy()],
                    spectrum=None,
                    precision=self.moments.precision,
                ),
                seen[b],
            )

    def _blocks(
        self,
    ) -> Iterator[tuple[slice, Float[torch.Tensor, "n d"], Int[torch.Tensor, " n"]]]:
        """x_i = h_i - m_{y_i}, some rows at a time, and their classes."""
        means, shift = self.moments.means.cpu(), self.moments.shift.cpu()
        for part, block in row_blocks(self.features, self.moments.name, 0):
            classes = torch.from_numpy(self.rows[part])
            yield part, (block.cpu() - shift).sub_(means[classes]), classes

    def _first_pass(
        self, drawn: Float[torch.Tensor, "b n"], counts: Float[torch.Tensor, " K"]
    ) -> tuple[Float[torch.Tensor, "b K d"], Float[torch.Tensor, "b K"]]:
        """t_k, by which a replicate's class means lie off, and var_k."""
        moved = drawn.new_zeros(len(drawn), len(counts), self.moments.width)
        squares = drawn.new_zeros(len(drawn), len(counts))
        for part, x, classes in self._blocks():
            times = drawn[:, part]
            for k in classes.unique():
                of_class = classes == k
                moved[:, k] += times[:, of_class] @ x[of_class]
                squares[:, k] += times[:, of_class] @ x[of_class].square().sum(1)
        moved /= counts[:, None]
        return moved, (squares / counts - moved.square().sum(2)).clamp_min_(0)

    def _second_pass(
        self,
        drawn: Float[torch.Tensor, "b n"],
        basis: Float[torch.Tensor, "b r d"],
        places: Float[torch.Tensor, "b K r"],
        moved: Float[torch.Tensor, "b K r"],
        counts: Float[torch.Tensor, " K"],
    ) -> list[Projected]:
        """Within-class energy along the span of each replicate's means, and nearest means."""
        n, (b, r) = len(self.rows), basis.shape[:2]
        energy = drawn.new_zeros(b, r)
        hits, mismatches = drawn.new_zeros(2, b)
        for part, x, classes in self._blocks():
            times = drawn[:, part]
            along = (x @ basis.flatten(0, 1).T).unflatten(1, (b, r)).transpose(0, 1)  # (b, n, r)
            energy += torch.einsum("bn,bnr->br", times, along.square())
            # h_i - g = x_i + (m_{y_i} + t_{y_i} - g) - t_{y_i}
            nearest = nearest_mean(along + (places - moved)[:, classes], places)
            hits += (times * (nearest == classes)).sum(1)
            if self.predicted is not None:
                decided = torch.from_numpy(self.predicted[part])
                mismatches += (times * (nearest != decided)).sum(1)
        energy = (energy - torch.einsum("k,bkr->br", counts, moved.square())).clamp_min_(0) / n
        return [
            Projected(n, int(h), int(m), e.numpy())
            for h, m, e in zip(hits, mismatches, energy, strict=True)
        ]
