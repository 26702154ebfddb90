"""Pass one: class moments of a layer, from batches of any size and order.

Counts, class means and within-class variances are merged by the pairwise update of Chan, Golub and
LeVeque (1983, "Algorithms for computing the sample variance"). It adds only nonnegative squares, so
that nothing cancels. Pass two (`projection`) computes what depends on the *final* class means.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, Int

from ..errors import ArgumentError, FeatureError
from ..runtime import processes
from ..runtime.threads import one_thread
from .spectrum import SPECTRUM_SIZE, RowSample, Spectrum
from .tensor_chunks import CHUNK_ENTRIES

_MEANS_TOLERANCE = 64 * np.finfo(np.float64).eps
_ROUNDING = 4.0  # assumed error of an entry, in units of eps; class means in float32 have about 0.3

WEIGHTS = ("uniform", "frequency", "sample_mean")
"""How classes are weighted in the global mean and in Sigma_B; see `collapse`."""

_LARGEST = 1e140
"""Sums of squares are within float64's range for entries from 1 / _LARGEST to _LARGEST."""


def check_weights(weights: str) -> str:
    """Return `weights`; raise `ArgumentError` if it is not one of `WEIGHTS`."""
    if weights not in WEIGHTS:
        known = ", ".join(map(repr, WEIGHTS[:-1]))
        raise ArgumentError(f"weights must be {known} or {WEIGHTS[-1]!r}, not {weights!r}.")
    return weights


def class_weights(
    weights: str, counts: Float[torch.Tensor, " K"]
) -> tuple[Float[torch.Tensor, " K"], Float[torch.Tensor, " K"]]:
    """Return the weights of the classes in the global mean and in Sigma_B; both sum to 1."""
    equal, by_size = torch.full_like(counts, 1 / len(counts)), counts / counts.sum()
    in_mean = equal if weights == "uniform" else by_size
    return in_mean, by_size if weights == "frequency" else equal


class ClassIndex:
    """Maps class labels to indices 0, 1, ... in the order in which they are added.

    Labels that are new in one call of `add` get their indices in ascending order.
    """

    def __init__(self, num_classes: int | None = None) -> None:
        self.num_classes = num_classes
        self._index_of: dict[int, int] = {}

    def __len__(self) -> int:
        return len(self._index_of)

    @property
    def classes(self) -> Int[np.ndarray, " K"]:
        """Labels in the order of their indices."""
        return np.array(list(self._index_of), dtype=np.int64)

    def add(self, labels: Int[np.ndarray, " n"], start: int = 0) -> Int[np.ndarray, " n"]:
        """Return the class indices of `labels`; raise ArgumentError if one is too large.

        `start` is the number of samples before these, for error messages.
        """
        if self.num_classes is not None and labels.max() >= self.num_classes:
            sample = int(labels.argmax())
            raise ArgumentError(
                f"label {labels[sample]} of sample {start + sample} is out of range: there are "
                f"{self.num_classes} classes, 0 to {self.num_classes - 1}. "
                "Use the labels the network was trained on."
            )
        for label in np.unique(labels).tolist():
            self._index_of.setdefault(label, len(self._index_of))
        return self.indices(labels)

    def indices(self, labels: Int[np.ndarray, " n"]) -> Int[np.ndarray, " n"]:
        """Return the class indices of labels; -1 for a class that did not occur."""
        present, inverse = np.unique(labels, return_inverse=True)
        indices = [self._index_of.get(label, -1) for label in present.tolist()]
        return np.array(indices, dtype=np.int64)[inverse]


@dataclass(frozen=True, eq=False)
class ClassGeometry:
    """The class means of a layer in a low-dimensional basis, and the other results of pass one."""

    name: str
    width: int
    classes: Int[np.ndarray, " K"]  # the classes that occur, ascending
    counts: Int[np.ndarray, " K"]
    variances: Float[np.ndarray, " K"]  # var_k = mean of ||h - m_k||^2 over class k
    center: Float[np.ndarray, " d"]  # the global mean g
    basis: Float[np.ndarray, "r d"]  # orthonormal rows V_j that span the centered means
    coordinates: Float[np.ndarray, "K r"]  # C, with m_k - g = C_k V
    sigma: Float[np.ndarray, " r"]  # sigma_j^2 = eigenvalue of Sigma_B along V_j, descending
    within_along: Float[np.ndarray, " r"] | None  # V_j^T Sigma_W V_j, if d <= `spectrum_size`
    spectrum: Spectrum | None  # None if `spectrum_size` is 0
    precision: float  # machine epsilon of the features' dtype
    weights: str  # one of `WEIGHTS`

    @property
    def within(self) -> float:
        """tr Sigma_W, with Sigma_W = (1/N) sum (h_i - m_{y_i})(h_i - m_{y_i})^T."""
        return float(self.counts @ self.variances / self.counts.sum())

    @property
    def between(self) -> float:
        """tr Sigma_B."""
        return float(self.sigma @ self.sigma)

    @property
    def rounding(self) -> float:
        """The largest sigma_j that rounding in the features' dtype alone can cause.

        Every feature that a network computes in float32 has an error of a few eps |h_ij|. Such
        errors would count as directions of Sigma_B, even if the class means agree along them.
        """
        squares = self.center @ self.center + self.between + self.within  # mean ||h||^2, nearly
        return float(_ROUNDING * self.precision * np.sqrt(squares / self.width))

    @property
    def single_samples(self) -> bool:
        """Whether every class has one sample, so that the scatter within classes is unknown."""
        return bool(self.counts.max() == 1)

    @property
    def means_coincide(self) -> bool:
        """Whether all class means coincide, up to rounding."""
        scale = np.linalg.norm(self.center) + np.sqrt(self.within)
        threshold = max(_MEANS_TOLERANCE * scale, self.rounding)
        return not len(self.sigma) or bool(self.sigma[0] <= threshold)


class ClassMoments:
    """Counts, means and within-class variances of the classes at one layer, in one pass.

    The size and order of the batches affect the result only by rounding (about 1e-14, relative).
    See `SPECTRUM_SIZE`; with `spectrum_size` = 0 there is no spectrum.
    """

    def __init__(self, name: str, spectrum_size: int = SPECTRUM_SIZE) -> None:
        self.name = name
        self.samples = 0
        self.width = 0
        self.precision = 0.0
        self._spectrum_size = spectrum_size
        self._scatter: torch.Tensor | None = None
        self._sample: RowSample | None = None

    def add(
        self, block: Float[torch.Tensor, "b d"], index: Int[np.ndarray, " b"], num_indices: int
    ) -> None:
        """Add samples and their class indices; there are `num_indices` classes so far."""
        if self.width == 0:
            self._begin(block)
        if block.shape[1] != self.width:
            raise FeatureError(
                f"layer {self.name!r} has {block.shape[1]} features in this batch and "
                f"{self.width} in those before."
            )
        self._grow(num_indices)
        self._add(block, torch.from_numpy(index).to(self.means.device))
        if self._sample is not None:
            self._sample.update(block)
        self.samples += len(index)

    def _begin(self, first: Float[torch.Tensor, "b d"]) -> None:
        """Allocate the sums, which are relative to the first sample.

        They are therefore exactly 0 for constant features, and an offset costs no precision.
        """
        self.width = first.shape[1]
        self.shift = first[0].to(torch.float64, copy=True)  # the caller may reuse the memory
        self._counts, self._squares = first.new_zeros(2, 0, dtype=torch.float64)
        self.means = first.new_zeros(0, self.width, dtype=torch.float64)
        if self.width <= self._spectrum_size:
            self._scatter = first.new_zeros(self.width, self.width, dtype=torch.float64)
        elif self._spectrum_size:
            self._sample = RowSample(self._spectrum_size)

    def _grow(self, num_indices: int) -> None:
        extra = num_indices - len(self._counts)
        if extra > 0:
            self._counts, self._squares, self.means = (
                torch.cat([old, old.new_zeros(extra, *old.shape[1:])])
                for old in (self._counts, self._squares, self.means)
            )

    def _add(self, block: Float[torch.Tensor, "b d"], index: Int[torch.Tensor, " b"]) -> None:
        """Merge a block's class moments into the running ones (Chan et al. 1983, eq. 2.1)."""
        x = block - self.shift  # promotes to float64
        rows, inverse, new = torch.unique(index, return_inverse=True, return_counts=True)
        means = x.new_zeros(len(rows), self.width).index_add_(0, inverse, x) / new[:, None]
        x -= means[inverse]
        squares = x.new_zeros(len(rows)).index_add_(0, inverse, x.square().sum(1))
        if self._scatter is not None:
            self._scatter.addmm_(x.T, x)
        self._merge(rows, new, means, squares)

    def _merge(
        self,
        rows: Int[torch.Tensor, " k"],
        new: torch.Tensor,
        means: Float[torch.Tensor, "k d"],
        squares: Float[torch.Tensor, " k"],
    ) -> None:
        """Merge the moments of more samples; the caller adds their within-class scatter."""
        delta = means - self.means[rows]
        old = self._counts[rows]
        mass = old * new / (old + new)
        self._squares[rows] += squares + mass * (delta * delta).sum(1)
        self.means[rows] += delta * (new / (old + new))[:, None]
        self._counts[rows] += new
        if self._scatter is not None:
            self._scatter.addmm_(delta.T, mass[:, None] * delta)

    def all_reduce(self) -> ClassMoments:
        """Return the moments of all processes' samples."""
        if processes.world_size() == 1:
            return self
        parts = [part for part in processes.all_gather(self) if part.samples]
        whole = ClassMoments(self.name, self._spectrum_size)
        whole._begin(parts[0].shift[None])
        for part in parts:
            rows = part._counts.nonzero()[:, 0]
            whole._grow(len(part._counts))
            if whole._scatter is not None and part._scatter is not None:
                whole._scatter += part._scatter
            means = part.means[rows] + (part.shift - whole.shift)
            whole._merge(rows, part._counts[rows], means, part._squares[rows])
            if whole._sample is not None and part._sample is not None:
                whole._sample.update(part._sample.rows)
            whole.samples += part.samples
            whole.precision = max(whole.precision, part.precision)
        return whole

    def finish(self, index: ClassIndex, *, weights: str = "uniform") -> ClassGeometry:
        """Return the geometry; raise FeatureError if all samples are of one class."""
        if len(index) < 2:
            raise FeatureError(
                f"All {self.samples} samples are of one class ({index.classes[0]}); collapse "
                "compares classes. Use samples of two classes or more."
            )
        K, d, rows = len(index), self.width, min(self.samples, self._spectrum_size)
        with one_thread(10 * K * K * d + 2 * rows * rows * max(rows, d)):
            return self._finish(index, weights)

    def _finish(self, index: ClassIndex, weights: str) -> ClassGeometry:
        order = torch.from_numpy(np.argsort(index.classes))
        counts, squares, means = (a.cpu()[order] for a in (self._counts, self._squares, self.means))
        self._require_range(
            float(
                torch.maximum(
                    (means + self.shift.cpu()).abs().max(), (squares / counts).max().sqrt()
                )
            )
        )
        in_mean, in_covariance = class_weights(weights, counts)
        center = in_mean @ means
        centered = means - center
        _, sigma, basis = torch.linalg.svd(
            in_covariance.sqrt()[:, None] * centered, full_matrices=False
        )
        kept = sigma > max(centered.shape) * np.finfo(np.float64).eps * sigma[0]
        sigma, basis = sigma[kept], basis[kept]
        within_along = None
        if self._scatter is not None:
            within_along = (basis @ self._scatter.cpu() * basis).sum(1).numpy() / self.samples
        return ClassGeometry(
            name=self.name,
            width=self.width,
            classes=index.classes[order.numpy()],
            counts=counts.long().numpy(),
            variances=(squares / counts).numpy(),
            center=(center + self.shift.cpu()).numpy(),
            basis=basis.numpy(),
            coordinates=(centered @ basis.T).numpy(),
            sigma=sigma.numpy(),
            within_along=within_along,
            spectrum=self._spectrum(counts, centered, center),
            precision=self.precision,
            weights=weights,
        )

    def _require_range(self, size: float) -> None:
        """Raise `FeatureError` if the square of `size`, the largest entry, is out of range."""
        if size != 0 and not 1 / _LARGEST < size < _LARGEST:
            raise FeatureError(
                f"layer {self.name!r} has features too {'small' if size < 1 else 'large'} (about "
                f"{size:.1g}): their squares leave float64's range. Multiply them all by one "
                "factor: of the metrics, only within and between change, by its square."
            )

    def _spectrum(
        self,
        counts: Float[torch.Tensor, " K"],
        centered: Float[torch.Tensor, "K d"],
        center: Float[torch.Tensor, " d"],
    ) -> Spectrum | None:
        """Return the singular values of [h_i - g], from a Gram matrix of features or of rows."""
        if self._scatter is not None:
            gram = self._scatter.cpu().addmm(centered.T, counts[:, None] * centered)
            rows = self.samples
        elif self._sample is not None:
            sample, middle = self._sample.rows, center + self.shift.cpu()
            rows = len(sample)
            gram = center.new_zeros(rows, rows)
            step = max(1, CHUNK_ENTRIES // rows)
            for start in range(0, self.width, step):
                cols = slice(start, start + step)
                part = sample[:, cols] - middle[cols]
                gram.addmm_(part, part.T)
        else:
            return None
        return Spectrum.of_gram(gram, width=self.width, rows=rows, samples=self.samples)
