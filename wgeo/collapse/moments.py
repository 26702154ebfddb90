"""Class moments of one layer from batches of any size and order, without a d x d matrix.

Pass one (`ClassMoments`) is single-pass: counts, class means and within-class variances by the
pairwise update of Chan, Golub and LeVeque (1983, "Algorithms for computing the sample variance"),
which adds only non-negative terms and so never cancels. Pass two (`SpanProjection`) is for what
asks about the *final* means: the within-class energy along their span, and nearest class means.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int

from ..arrays import as_points
from ..errors import ArgumentError, FeatureError
from .spectrum import SPECTRUM_SIZE, RowSample, Spectrum

BLOCK = 2**18
"""Entries held in float64 at a time (2 MiB): small enough to stay in a CPU's cache."""

_MEANS_TOLERANCE = 64 * np.finfo(np.float64).eps
_DRIFT_TOLERANCE = 1e-4
_ROUNDING_SHARE = 1e-3


class ClassIndex:
    """Class labels -> rows 0, 1, ... in order of appearance; only classes that occur count."""

    def __init__(self, num_classes: int | None = None) -> None:
        self.num_classes = num_classes
        self._row: dict[int, int] = {}

    def __len__(self) -> int:
        return len(self._row)

    @property
    def classes(self) -> Int[np.ndarray, " K"]:
        """Labels in the order of their rows."""
        return np.array(list(self._row), dtype=np.int64)

    def add(self, labels: Int[np.ndarray, " n"], seen: int = 0) -> Int[np.ndarray, " n"]:
        """Rows of `labels`, with new rows for new classes; refuse labels out of range.

        `seen` is the number of samples before these, for the error.
        """
        if self.num_classes is not None and labels.max() >= self.num_classes:
            sample = int(labels.argmax())
            raise ArgumentError(
                f"label {labels[sample]} of sample {seen + sample} is out of range: there are "
                f"{self.num_classes} classes, 0 to {self.num_classes - 1}. "
                "Give the labels the network was trained on."
            )
        for label in np.unique(labels).tolist():
            self._row.setdefault(label, len(self._row))
        return self.rows(labels)

    def rows(self, labels: Int[np.ndarray, " n"]) -> Int[np.ndarray, " n"]:
        """Rows of labels; -1 for a class that never occurred."""
        present, inverse = np.unique(labels, return_inverse=True)
        found = [self._row.get(label, -1) for label in present.tolist()]
        return np.array(found, dtype=np.int64)[inverse]


def _blocks(
    features: Any, name: str, seen: int
) -> Iterator[tuple[slice, Float[torch.Tensor, "b d"]]]:
    """Checked row blocks of `features`, of at most `BLOCK` entries, where float64 can be had."""
    x = features if isinstance(features, torch.Tensor) else np.asarray(features)
    if x.ndim not in (1, 2) or 0 in x.shape:
        raise FeatureError(
            f"layer {name!r} must be (samples, features); it has shape {tuple(x.shape)}. "
            "Pool or flatten it first."
        )
    step = max(1, BLOCK // (x.shape[1] if x.ndim == 2 else 1))
    for start in range(0, len(x), step):
        part = x[start : start + step]
        if isinstance(part, torch.Tensor):
            part = part.detach()
            part = part.cpu() if part.device.type == "mps" else part  # which has no float64
        block = as_points(part, name=f"layer {name!r}", start=seen + start)
        yield slice(start, start + len(block)), block


@dataclass(frozen=True, eq=False)
class ClassGeometry:
    """The class means of a layer as few coordinates, and what pass one knows about the classes.

    Attributes
    ----------
    name, width : str, int
    classes, counts : ndarray of int, (K,)
        The classes that occur, ascending, and their numbers of samples.
    variances : ndarray, (K,)
        var_k = mean of ||h - m_k||^2 over class k; 0 for a class of one sample.
    centre : ndarray, (d,)
        The global mean g.
    basis : ndarray, (r, d)
        Orthonormal rows V that span the centred means.
    coordinates : ndarray, (K, r)
        C with m_k - g = C_k V.
    sigma : ndarray, (r,)
        sigma_j^2 is the eigenvalue of Sigma_B along V_j, descending.
    along : ndarray, (r,), or None
        V_j^T Sigma_W V_j, where pass one could know it (d <= `SPECTRUM_SIZE`).
    spectrum : Spectrum or None
    """

    name: str
    width: int
    classes: Int[np.ndarray, " K"]
    counts: Int[np.ndarray, " K"]
    variances: Float[np.ndarray, " K"]
    centre: Float[np.ndarray, " d"]
    basis: Float[np.ndarray, "r d"]
    coordinates: Float[np.ndarray, "K r"]
    sigma: Float[np.ndarray, " r"]
    along: Float[np.ndarray, " r"] | None
    spectrum: Spectrum | None

    @property
    def within(self) -> float:
        """tr Sigma_W, Sigma_W = (1/N) sum (h_i - m_{y_i})(h_i - m_{y_i})^T."""
        return float(self.counts @ self.variances / self.counts.sum())

    @property
    def between(self) -> float:
        """tr Sigma_B."""
        return float(self.sigma @ self.sigma)

    @property
    def coincide(self) -> bool:
        """Whether the class means are one point, up to rounding."""
        scale = np.linalg.norm(self.centre) + np.sqrt(self.within)
        return not len(self.sigma) or bool(self.sigma[0] <= _MEANS_TOLERANCE * scale)


class ClassMoments:
    """Counts, means and within-class variances of the classes at one layer, in one pass.

    Memory is O(K d): the K means in float64; besides, for d <= `spectrum_size` the within-class
    scatter (at most 2 MiB as it stands), else `spectrum_size` rows in the features' own type.
    Batches of any size in any order give the same result up to rounding (about 1e-14).

    Parameters
    ----------
    name : str
        The layer, for errors.
    spectrum_size : int
        See `SPECTRUM_SIZE`; 0 for no spectrum at all.
    """

    def __init__(self, name: str, spectrum_size: int = SPECTRUM_SIZE) -> None:
        self.name = name
        self.samples = 0
        self.width = 0
        self._spectrum_size = spectrum_size
        self._scatter: torch.Tensor | None = None
        self._sample: RowSample | None = None

    def update(self, features: Any, index: Int[np.ndarray, " n"], num_rows: int) -> None:
        """Take in a batch: features (n, d), the class row of each sample, and how many rows exist.

        Raises
        ------
        FeatureError
            NaN or infinity (layer and sample are named), a width other than before, or not one
            row of features per label.
        """
        _check_length(self.name, features, index)
        for part, block in _blocks(features, self.name, self.samples):
            if self.samples == 0 and part.start == 0:
                self._begin(block)
            if block.shape[1] != self.width:
                raise FeatureError(
                    f"layer {self.name!r} has {block.shape[1]} features in this batch and "
                    f"{self.width} in those before."
                )
            self._grow(num_rows)
            self._absorb(block, torch.from_numpy(index[part]).to(self._means.device))
            if self._sample is not None:
                self._sample.update(block)
        self.samples += len(index)

    def _begin(self, first: Float[torch.Tensor, "b d"]) -> None:
        # Sums run relative to one of the samples: exactly 0 for constant features, and no digits
        # are lost to an offset however far it is.
        self.width = first.shape[1]
        self._shift = first[0].to(torch.float64, copy=True)  # the caller may reuse his memory
        self._counts, self._squares = first.new_zeros(2, 0, dtype=torch.float64)
        self._means = first.new_zeros(0, self.width, dtype=torch.float64)
        if self.width <= self._spectrum_size:
            self._scatter = first.new_zeros(self.width, self.width, dtype=torch.float64)
        elif self._spectrum_size:
            self._sample = RowSample(self._spectrum_size)

    def _grow(self, num_rows: int) -> None:
        extra = num_rows - len(self._counts)
        if extra > 0:
            self._counts, self._squares, self._means = (
                torch.cat([old, old.new_zeros(extra, *old.shape[1:])])
                for old in (self._counts, self._squares, self._means)
            )

    def _absorb(self, block: Float[torch.Tensor, "b d"], index: Int[torch.Tensor, " b"]) -> None:
        """Merge a block's class moments into the running ones (Chan et al. 1983, eq. 2.1)."""
        x = block - self._shift  # promotes to float64
        rows, inverse, new = torch.unique(index, return_inverse=True, return_counts=True)
        means = x.new_zeros(len(rows), self.width).index_add_(0, inverse, x) / new[:, None]
        x -= means[inverse]
        squares = x.new_zeros(len(rows)).index_add_(0, inverse, (x * x).sum(1))
        delta = means - self._means[rows]
        old = self._counts[rows]
        mass = old * new / (old + new)
        self._squares[rows] += squares + mass * (delta * delta).sum(1)
        self._means[rows] += delta * (new / (old + new))[:, None]
        self._counts[rows] += new
        if self._scatter is not None:
            self._scatter.addmm_(x.T, x).addmm_(delta.T, mass[:, None] * delta)

    def project(self, geometry: ClassGeometry, index: ClassIndex) -> SpanProjection:
        """The accumulator of pass two, along the span that pass one found."""
        rows = index.rows(geometry.classes)
        basis, coordinates = (
            torch.from_numpy(a).to(self._means) for a in (geometry.basis, geometry.coordinates)
        )
        return SpanProjection(self, torch.from_numpy(rows), basis, coordinates)

    def finish(self, index: ClassIndex, *, frequency: bool = False) -> ClassGeometry:
        """What one pass knows; `frequency` weighs g and Sigma_B by class size, else all alike.

        Raises
        ------
        FeatureError
            All samples are of one class.
        """
        order = torch.from_numpy(np.argsort(index.classes))
        if len(order) < 2:
            raise FeatureError(
                f"All {self.samples} samples are of one class ({index.classes[0]}); collapse "
                "compares classes. Give samples of two classes or more."
            )
        counts, squares, means = (
            a.cpu()[order] for a in (self._counts, self._squares, self._means)
        )
        weights = counts / counts.sum() if frequency else torch.full_like(counts, 1 / len(counts))
        centre = weights @ means
        centred = means - centre
        _, sigma, basis = torch.linalg.svd(weights.sqrt()[:, None] * centred, full_matrices=False)
        kept = sigma > max(centred.shape) * np.finfo(np.float64).eps * sigma[0]
        sigma, basis = sigma[kept], basis[kept]
        along = None
        if self._scatter is not None:
            along = (basis @ self._scatter.cpu() * basis).sum(1).numpy() / self.samples
        return ClassGeometry(
            name=self.name,
            width=self.width,
            classes=index.classes[order.numpy()],
            counts=counts.long().numpy(),
            variances=(squares / counts).numpy(),
            centre=(centre + self._shift.cpu()).numpy(),
            basis=basis.numpy(),
            coordinates=(centred @ basis.T).numpy(),
            sigma=sigma.numpy(),
            along=along,
            spectrum=self._spectrum(counts, centred, centre),
        )

    def _spectrum(
        self,
        counts: Float[torch.Tensor, " K"],
        centred: Float[torch.Tensor, "K d"],
        centre: Float[torch.Tensor, " d"],
    ) -> Spectrum | None:
        """Singular values of [h_i - g], through the smaller of the two Gram matrices."""
        if self._scatter is not None:
            gram = self._scatter.cpu().addmm(centred.T, counts[:, None] * centred)
            rows = self.samples
        elif self._sample is not None:
            sample, middle = self._sample.rows, centre + self._shift.cpu()
            rows = len(sample)
            gram = centre.new_zeros(rows, rows)
            step = max(1, BLOCK // rows)
            for start in range(0, self.width, step):
                cols = slice(start, start + step)
                part = sample[:, cols] - middle[cols]
                gram.addmm_(part, part.T)
        else:
            return None
        return Spectrum.of_gram(gram, width=self.width, rows=rows, samples=self.samples)


class SpanProjection:
    """Pass two: samples in the span of the final class means, K - 1 numbers each.

    Accumulates the within-class energy along each direction of the span (nc1's numerator where d
    is large) and decides every sample by its nearest class mean. Made by `ClassMoments.project`.
    """

    def __init__(
        self,
        moments: ClassMoments,
        rows: Int[torch.Tensor, " K"],
        basis: Float[torch.Tensor, "r d"],
        coordinates: Float[torch.Tensor, "K r"],
    ) -> None:
        self.samples = 0
        self._moments = moments
        self._basis = basis
        self._by_row = torch.empty_like(coordinates).index_copy_(
            0, rows.to(basis.device), coordinates
        )
        self._energy, self._drift = basis.new_zeros(2, len(basis))
        self.hits = self.mismatches = 0

    def update(
        self,
        features: Any,
        index: Int[np.ndarray, " n"],
        predicted: Int[np.ndarray, " n"] | None = None,
    ) -> None:
        """Take in a batch; `predicted` are the class rows of the network's decisions."""
        moments = self._moments
        _check_length(moments.name, features, index)
        for part, block in _blocks(features, moments.name, self.samples):
            rows = torch.from_numpy(index[part]).to(self._basis.device)
            x = block - moments._shift
            x -= moments._means[rows]
            residual = x @ self._basis.T  # (b, r): centred first, so nothing cancels
            self._energy += (residual * residual).sum(0)
            self._drift += residual.sum(0)
            nearest = _nearest(residual + self._by_row[rows], self._by_row)
            self.hits += int((nearest == rows).sum())
            if predicted is not None:
                self.mismatches += int((nearest.cpu().numpy() != predicted[part]).sum())
        self.samples += len(index)

    def along(self) -> Float[np.ndarray, " r"]:
        """V_j^T Sigma_W V_j for every direction of the span.

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
        if bool((self._drift.abs() / n > _DRIFT_TOLERANCE * scale).any()):
            raise FeatureError(
                f"layer {self._moments.name!r} differs between the first and the second pass. "
                "Put the network into eval mode and switch random augmentation off."
            )
        return (self._energy / n).cpu().numpy()


def _nearest(
    points: Float[torch.Tensor, "b r"], means: Float[torch.Tensor, "K r"]
) -> Int[torch.Tensor, " b"]:
    """Row of the nearest mean, the first of several equally near."""
    return torch.argmin((means * means).sum(1) - 2 * points @ means.T, dim=1)


def mean_of(features: Any, name: str) -> Float[np.ndarray, " d"]:
    """Mean of the rows in float64, in blocks; refuses NaN and infinity."""
    total: Any = 0.0
    for _, block in _blocks(features, name, 0):
        total = total + block.sum(0, dtype=torch.float64)
    return (total / len(features)).cpu().numpy()


def _check_length(name: str, features: Any, index: Int[np.ndarray, " n"]) -> None:
    if len(features) != len(index):
        raise FeatureError(f"layer {name!r} has {len(features)} samples for {len(index)} labels.")
