"""Few samples per class: estimates of the population's NC1, CDNV and nearest-center accuracy.

With n samples per class, the scatter within classes is too small by the factor (n - 1)/n, the
scatter of class means is too large by Sigma_W/n, and every class mean is biased towards its own
samples. The metrics as defined in the papers have all three biases; the estimates here correct
them.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, Int, Num
from scipy.optimize import brentq
from scipy.spatial.distance import squareform

from ..runtime import processes
from .spectrum import SPECTRUM_SIZE, RowSample

FEW_SAMPLES = 20
"""Size of the smallest class below which corrected estimates are computed."""

MAX_HIDDEN = 0.05
"""Largest fraction of class pairs whose distance noise may hide for CDNV to be estimated."""


def is_few(counts: Num[np.ndarray, " K"]) -> bool:
    """Return whether a class has fewer than `FEW_SAMPLES` samples."""
    return bool(counts.min() < FEW_SAMPLES)


@dataclass(frozen=True, eq=False)
class SmallSampleEstimates:
    """Estimates for a layer with few samples per class.

    Attributes
    ----------
    counts : ndarray, (K,)
    variances : ndarray, (K,)
        Mean of ||h - m_k||^2 over class k.
    sigma : ndarray, (r,)
        sigma_j^2 are the eigenvalues of Sigma_B along the orthonormal V_j.
    within : ndarray, (r, r)
        V Sigma_W V^T, the within-class covariance in the span of the class means.
    width : int
        Number of features d.
    within_square : float
        An estimate of tr(S_W^2), with S_W the population's Sigma_W.
    """

    counts: Num[np.ndarray, " K"]
    variances: Float[np.ndarray, " K"]
    sigma: Float[np.ndarray, " r"]
    within: Float[np.ndarray, "r r"]
    width: int
    within_square: float

    @property
    def noise(self) -> float:
        """mean_k 1/n_k, the multiple of S_W that sampling adds to the class means' scatter."""
        return float((1 / self.counts).mean())

    @property
    def correction(self) -> float:
        """N/(N - K), the factor that makes Sigma_W unbiased."""
        samples = self.counts.sum()
        return float(samples / (samples - len(self.counts)))

    def nc1(self) -> float | None:
        """Return an estimate of tr(S_W pinv(S_B)) / K; None if sampling noise exceeds S_B.

        If there are more classes than features, the classes are treated as a sample from a
        population of classes; otherwise they are the whole population.
        """
        if self.counts.max() == 1:
            return None
        if len(self.sigma) == self.width < len(self.counts) - 1:
            return self._nc1_of_class_population()
        return self._nc1_of_given_classes()

    def _nc1_of_class_population(self) -> float | None:
        """Return NC1 of the population of classes, for K > d + 1.

        In coordinates in which S_W = I, let b_j be the eigenvalues of the sample covariance of the
        class means; the population's covariance is S_B + c I with c = `noise`. Let y = d/(K - 1),
        and let m(z) = mean_j 1/(b_j - z) be the Stieltjes transform. By the equation of Marchenko
        and Pastur (Silverstein 1995), (z/c) m(z) estimates tr(S_B^-1)/d at the z that is below all
        b_j and solves z / (1 - y - y z m(z)) = c.
        """
        K, d, c = len(self.counts), self.width, self.noise
        scaled = self.correction * self.within / np.outer(self.sigma, self.sigma)
        g = np.linalg.eigvalsh(scaled)
        if g.max() <= 0:
            return 0.0
        g = g.clip(min=1e-15 * g.max())
        b, y = (K / (K - 1)) / g, d / (K - 1)

        def excess(z: float) -> float:
            return z - c * (1 - y - y * z * float((1 / (b - z)).mean()))

        ends = (0.0, b.min() * (1 - 1e-9))
        if excess(ends[1]) < 0:
            return None
        # At the left end, excess(0) = -c (1 - y) < 0. The first root is on the branch from c = 0.
        grid = np.linspace(*ends, 65)
        first = next((k for k in range(1, 65) if excess(grid[k]) >= 0), None)
        if first is None:
            return None
        z = float(brentq(excess, grid[first - 1], grid[first]))
        return float(z / c * (1 / (b - z)).mean() * d / K)

    def _nc1_of_given_classes(self) -> float | None:
        """Return NC1 of the K classes themselves, in d >= K - 1 dimensions.

        Sampling adds tr(S_W) c/K to every eigenvalue sigma_j^2 of the Gram matrix of the class
        means, and tr(S_W^2) c/K to sigma_j^2 V_j^T Sigma_W V_j, since V_j depends on the noise.
        """
        K, c = len(self.counts), self.noise
        trace = self.correction * float(self.counts @ self.variances / self.counts.sum())
        along = self.correction * np.diag(self.within)
        between = self.sigma**2 - trace * c / K
        if between.min() <= 0:
            return None
        energy = (self.sigma**2 * along - self.within_square * c / K).clip(min=0)
        return float((energy / between**2).sum() / K)

    def cdnv(self, squares: Float[np.ndarray, " P"]) -> float | None:
        """Return the mean over pairs of classes of (v_k + v_l) / (2 D), corrected for sampling.

        v_k = n_k/(n_k - 1) var_k, and D is estimated by ||m_k - m_l||^2 - v_k/n_k - v_l/n_l. Its
        sampling variance is V = 4 D s + 2 a^2 tr(S_W^2), a = 1/n_k + 1/n_l and s = a times the mean
        variance along the class means. 1/D is estimated by D / (D^2 + V). To first order this is
        the corrected inverse (1 - V/D^2) / D, but it is bounded, so that a single pair whose
        estimated distance happens to be near zero cannot dominate the mean. Pairs with a class of
        one sample are left out, because its variance is unknown. None if sampling noise exceeds the
        distance (D^2 < V) for more than a fraction `MAX_HIDDEN` of the pairs.

        Parameters
        ----------
        squares : ndarray, (K (K - 1) / 2,)
            ||m_k - m_l||^2 for k < l.
        """
        measurable = self.counts > 1
        if measurable.sum() < 2:
            return None
        n, pairs = self.counts[measurable], squareform(squares)[np.ix_(measurable, measurable)]
        v = self.variances[measurable] * n / (n - 1)
        first, second = np.triu_indices(len(v), 1)
        distances = pairs[first, second] - (v / n)[first] - (v / n)[second]
        a = (1 / n)[first] + (1 / n)[second]
        weights = self.sigma**2
        along = self.correction * float(weights @ np.diag(self.within) / weights.sum())
        variance = 4 * distances.clip(min=0) * a * along + 2 * a**2 * self.within_square
        hidden = (distances <= 0) | (distances**2 < variance)
        if hidden.mean() > MAX_HIDDEN:
            return None
        scale = distances**2 + variance
        inverse = np.divide(distances, scale, out=np.zeros_like(distances), where=scale > 0)
        return float(((v[first] + v[second]) / 2 * inverse).mean())


class LeaveOneOut:
    """Sums of the second pass, for `SmallSampleEstimates` and the leave-one-out accuracy.

    Parameters
    ----------
    basis : Tensor, (r, d)
        Orthonormal rows that span the class means.
    coordinates : Tensor, (K, r)
        The class means in this basis.
    means : Tensor, (K, d)
        The class means themselves.
    counts, classes : Tensor, (K,)
        Number of samples and label of every class.
    """

    def __init__(
        self,
        basis: Float[torch.Tensor, "r d"],
        coordinates: Float[torch.Tensor, "K r"],
        means: Float[torch.Tensor, "K d"],
        counts: Float[torch.Tensor, " K"],
        classes: Float[torch.Tensor, " K"],
    ) -> None:
        self._coordinates, self._means, self._counts, self._classes = (
            coordinates,
            means,
            counts,
            classes,
        )
        self._within = basis.new_zeros(len(basis), len(basis))
        self._sample = RowSample(SPECTRUM_SIZE)
        self._samples = self._with_others = self._correct = 0

    def add(
        self,
        x: Float[torch.Tensor, "b d"],
        residual: Float[torch.Tensor, "b r"],
        rows: Int[torch.Tensor, " b"],
    ) -> None:
        """Add samples of the classes `rows`: x = h - m_k, and its projection on the means' span."""
        self._samples += len(rows)
        self._within += residual.T @ residual
        square = (residual * residual).sum(1)
        outside = ((x * x).sum(1) - square).clamp_min_(0)
        n = self._counts[rows]
        # h - m'_k = n/(n - 1) (h - m_k), with m'_k the class mean without h.
        own_square = (n / (n - 1)).square() * (square + outside) - outside
        h = residual + self._coordinates[rows]  # in the span of the class means
        norms = (self._coordinates * self._coordinates).sum(1)
        squares = norms - 2 * h @ self._coordinates.T
        squares += (h * h).sum(1)[:, None]
        squares[torch.arange(len(rows), device=rows.device), rows] = torch.inf
        has_others = n > 1
        self._with_others += int(has_others.sum())
        self._correct += int((has_others & (own_square <= squares.min(1).values)).sum())
        # Choose rows by the features, since the last digits of residuals depend on the batches.
        rows_with_label = torch.cat([x + self._means[rows], self._classes[rows][:, None]], 1)
        self._sample.update(rows_with_label[has_others])

    def all_reduce(self) -> LeaveOneOut:
        """Replace the sums by those over all processes."""
        ints = np.array([self._samples, self._with_others, self._correct])
        self._samples, self._with_others, self._correct = processes.all_reduce_sum(ints).tolist()
        processes.all_reduce_sum(self._within)
        if processes.world_size() > 1:
            combined = RowSample(SPECTRUM_SIZE)
            for part in processes.all_gather(self._sample):
                if part.size and len(part):
                    combined.update(part.rows)
            self._sample = combined
        return self

    @property
    def within(self) -> Float[np.ndarray, "r r"]:
        """V Sigma_W V^T, the within-class covariance in the span of the class means."""
        return (self._within / max(self._samples, 1)).cpu().numpy()

    @property
    def accuracy(self) -> float | None:
        """Fraction of samples whose nearest class mean, computed without them, is their own."""
        return self._correct / self._with_others if self._with_others else None

    @property
    def within_square(self) -> float:
        """Estimate of tr(S_W^2): the mean of <x_i, x_j>^2 over samples of different classes."""
        if len(self._sample) < 2:
            return 0.0
        rows = self._sample.rows.to(self._means)
        rank = torch.searchsorted(self._classes.sort().values, rows[:, -1].contiguous())
        k = self._classes.argsort()[rank]  # index of each sample's class
        n = self._counts[k]
        x = (rows[:, :-1] - self._means[k]) * (n / (n - 1)).sqrt()[:, None]
        different = k[:, None] != k
        products = (x @ x.T).square()[different]
        return float(products.mean()) if len(products) else 0.0
