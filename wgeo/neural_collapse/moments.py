"""Pass one: class moments of a layer, and its spectrum, from batches of any size and order.

Counts, class means and within-class variances are merged by the pairwise update of Chan, Golub and
LeVeque (1983, "Algorithms for computing the sample variance"). It adds only nonnegative squares, so
nothing cancels. Pass two (`measure`) computes what depends on the *final* class means.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int, UInt64

from ..arrays.checks import CHUNK_ENTRIES, tensor_chunks
from ..errors import ArgumentError, FeatureError
from ..runtime import processes
from ..runtime.threads import one_thread

SPECTRUM_SIZE = 512
"""A spectrum is exact for at most this many samples or features. With more of both, it is computed
from this many samples."""

WEIGHTS = ("uniform", "frequency", "sample_mean")
"""How classes are weighted in the global mean and in Sigma_B; see `collapse`."""

_MEANS_TOLERANCE = 64 * np.finfo(np.float64).eps
_ROUNDING = 4.0  # assumed error, in units of eps; the error of class means in float32 is about 0.3
_LARGEST = 1e140  # sums of squares are in float64's range for entries from 1 / _LARGEST to _LARGEST


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
        """Return the class indices of `labels`; raise `ArgumentError` if a label is too large.

        `start` is the number of samples before these, for the error message.
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
        """Return the class indices of labels; -1 for a label that was not added."""
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
    def means_coincide(self) -> bool:
        """Whether all class means coincide, up to rounding."""
        scale = np.linalg.norm(self.center) + np.sqrt(self.within)
        threshold = max(_MEANS_TOLERANCE * scale, self.rounding)
        return not len(self.sigma) or bool(self.sigma[0] <= threshold)


class ClassMoments:
    """Counts, means and within-class variances of the classes at one layer, in one pass.

    The size and order of the batches affect the result only by rounding (about 1e-14, relative).
    For `spectrum_size`, see `SPECTRUM_SIZE`; 0 omits the spectrum.
    """

    def __init__(self, name: str, spectrum_size: int) -> None:
        self.name = name
        self.samples = 0
        self.width = 0
        self.precision = 0.0
        self._spectrum_size = spectrum_size
        self._scatter: torch.Tensor | None = None
        self._sample: RowSample | None = None

    def add(self, features: Any, class_index: Int[np.ndarray, " n"], start: int = 0) -> None:
        """Add samples and their class indices; `start` is the number of samples before these."""
        self.precision = max(self.precision, _precision_of(features))
        num_indices = int(class_index.max(initial=-1)) + 1
        with one_thread():
            for rows, block in tensor_chunks(features, self.name, start, len(class_index)):
                if self.width == 0:
                    self._begin(block)
                if block.shape[1] != self.width:
                    raise FeatureError(
                        f"layer {self.name!r} has {block.shape[1]} features in this batch and "
                        f"{self.width} in those before."
                    )
                self._grow(num_indices)
                self._add(block, torch.from_numpy(class_index[rows]).to(self.means.device))
                if self._sample is not None:
                    self._sample.update(block)
                self.samples += len(block)

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

    def finish(self, index: ClassIndex, weights: str) -> ClassGeometry:
        """Return the geometry; raise `FeatureError` if all samples are of one class."""
        if len(index) < 2:
            raise FeatureError(
                f"All {self.samples} samples are of one class ({index.classes[0]}); collapse "
                "compares classes. Use samples of two classes or more."
            )
        K, d, rows = len(index), self.width, min(self.samples, self._spectrum_size)
        with one_thread(10 * K * K * d + 2 * rows * rows * max(rows, d)):
            order = torch.from_numpy(np.argsort(index.classes))
            counts, squares, means = (
                each.cpu()[order] for each in (self._counts, self._squares, self.means)
            )
            shift, variances = self.shift.cpu(), squares / counts
            self._require_range((means + shift).abs().max(), variances.max().sqrt())
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
                variances=variances.numpy(),
                center=(center + shift).numpy(),
                basis=basis.numpy(),
                coordinates=(centered @ basis.T).numpy(),
                sigma=sigma.numpy(),
                within_along=within_along,
                spectrum=self._spectrum(counts, centered, center),
                precision=self.precision,
                weights=weights,
            )

    def _require_range(self, mean: torch.Tensor, deviation: torch.Tensor) -> None:
        """Raise `FeatureError` if squares of features of this size are out of float64's range."""
        size = float(torch.maximum(mean, deviation))
        if size != 0 and not 1 / _LARGEST < size < _LARGEST:
            raise FeatureError(
                f"layer {self.name!r} has features too {'small' if size < 1 else 'large'} (about "
                f"{size:.1g}): their squares leave float64's range. Multiply all features by one "
                "factor. The metrics within and between then change by the square of this factor, "
                "and no other metric changes."
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


def _precision_of(features: Any) -> float:
    """Return the machine epsilon of the features' dtype; for integers, that of float64."""
    if isinstance(features, torch.Tensor):
        floating = features.is_floating_point()
        return torch.finfo(features.dtype if floating else torch.float64).eps
    kind = np.asarray(features).dtype
    return float(np.finfo(kind if kind.kind == "f" else np.float64).eps)


@dataclass(frozen=True, eq=False)
class Spectrum:
    """Singular values of the centered features A = [h_i - g].

    Values below sqrt(max(rows, d) eps) times the largest are rounding errors and are set to 0.
    """

    values: Float[np.ndarray, " r"]  # ascending
    rows: int  # number of samples from which they were computed
    exact: bool  # whether these are all samples

    @classmethod
    def of_gram(
        cls, gram: Float[torch.Tensor, "r r"], *, width: int, rows: int, samples: int
    ) -> Spectrum:
        """Compute the spectrum from the Gram matrix A A^T or A^T A of `rows` of all `samples`."""
        squares = torch.linalg.eigvalsh(gram).clamp_min(0).numpy()
        floor = max(rows, width) * np.finfo(np.float64).eps * squares.max()
        values = np.sqrt(np.where(squares > floor, squares, 0.0))
        return cls(values, rows, rows == samples)

    @property
    def vanishes(self) -> bool:
        """Whether all samples coincide, so that no rank is defined."""
        return not self.values.any()

    def ranks(self) -> dict[str, float]:
        """Return three continuous ranks, each at least 1 and at most the rank of A.

        effective_rank: exp of the entropy of s_j / sum s (Roy and Vetterli 2007, definition 1).
        stable_rank: ||A||_F^2 / ||A||_2^2 (Rudelson and Vershynin 2007).
        participation_ratio: (sum s_j^2)^2 / sum s_j^4, the covariance's effective dimension.
        """
        s = self.values
        p = s[s > 0]
        p = p / p.sum()
        energy = (s / s.max()) ** 2  # relative, so that the squares of energies do not overflow
        return {
            "effective_rank": float(np.exp(-(p @ np.log(p)))),
            "stable_rank": float(s @ s / s.max() ** 2),
            "participation_ratio": float(energy.sum() ** 2 / (energy @ energy)),
        }


class RowSample:
    """A sample of rows that depends only on their values, not on batches or their order.

    Each row gets a key, a multilinear hash of its float64 bits with fixed random multipliers. The
    rows with the `size` smallest keys are the sample ("bottom-k", Cohen and Kaplan 2007), which is
    uniform over distinct rows.
    """

    def __init__(self, size: int, seed: int = 0) -> None:
        self.size = size
        self._seed = seed
        self._keys = np.empty(0, dtype=np.uint64)
        self._rows: torch.Tensor | None = None
        self._multipliers: torch.Tensor | None = None

    @property
    def rows(self) -> Float[torch.Tensor, "m d"]:
        """The sampled rows, in no particular order."""
        assert self._rows is not None
        return self._rows[: len(self._keys)]

    def __len__(self) -> int:
        return len(self._keys)

    def update(self, block: Float[torch.Tensor, "b d"]) -> None:
        """Offer rows to the sample."""
        keys = self._hash(block)
        if self._rows is None:
            self._rows = torch.empty((self.size, block.shape[1]), dtype=block.dtype)
        self._rows = self._rows.to(torch.promote_types(self._rows.dtype, block.dtype))
        size = len(self._keys)
        all_keys = np.concatenate([self._keys, keys])
        indices = np.arange(len(all_keys))
        if len(all_keys) > self.size:
            indices = np.argpartition(all_keys, self.size - 1)[: self.size]
        old, new = indices[indices < size], indices[indices >= size] - size
        free = np.setdiff1d(np.arange(len(indices)), old)
        new_rows = block[torch.from_numpy(new).to(block.device)]
        self._rows[torch.from_numpy(free)] = new_rows.to("cpu", self._rows.dtype)
        new_keys = np.empty(len(indices), dtype=np.uint64)
        new_keys[old], new_keys[free] = self._keys[old], keys[new]
        self._keys = new_keys

    def all_reduce(self) -> RowSample:
        """Return the sample of the rows of all processes."""
        if processes.world_size() == 1:
            return self
        whole = RowSample(self.size, self._seed)
        for part in processes.all_gather(self):
            if len(part):
                whole.update(part.rows)
        return whole

    def _hash(self, block: Float[torch.Tensor, "b d"]) -> UInt64[np.ndarray, " b"]:
        if self._multipliers is None:
            rng = np.random.default_rng(self._seed)
            odd = rng.integers(-(2**63), 2**63 - 1, block.shape[1] + 1, dtype=np.int64) | 1
            self._multipliers = torch.from_numpy(odd).to(block.device)
        zero = torch.zeros(1, dtype=torch.float64, device=block.device)
        bits = (block + zero).view(torch.int64)  # in float64; -0.0 becomes 0.0
        # Products propagate bits only upwards, so copy sign and exponent into the lower bits first.
        bits ^= bits >> 32
        bits *= self._multipliers[:-1]
        key = (bits.sum(1) + self._multipliers[-1]).cpu().numpy().view(np.uint64)
        # Make every bit depend on every other: the finalizer of splitmix64 (Steele et al. 2014).
        key = (key ^ (key >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        key = (key ^ (key >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        return key ^ (key >> np.uint64(31))
