"""Few samples per class: estimates of the population's NC1, CDNV and nearest-center accuracy.

With n samples per class the scatter within classes is too small by (n - 1)/n, the scatter of class
means too large by Sigma_W/n, and every class mean is biased towards its own samples. The metrics as
the papers define them inherit all three biases; these estimates correct for them.
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
"""Samples of the smallest class below which corrected estimates are computed."""

MOST_HIDDEN = 0.05
"""Share of the pairs of classes whose distance sampling may hide for CDNV to be estimated."""


def is_few(counts: Num[np.ndarray, " K"]) -> bool:
    """Whether a class has fewer than `FEW_SAMPLES` samples."""
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
    inside : ndarray, (r, r)
        V Sigma_W V^T.
    width : int
        Number of features d.
    square : float
        An estimate of tr(S_W^2), S_W the population's Sigma_W.
    """

    counts: Num[np.ndarray, " K"]
    variances: Float[np.ndarray, " K"]
    sigma: Float[np.ndarray, " r"]
    inside: Float[np.ndarray, "r r"]
    width: int
    square: float

    @property
    def noise(self) -> float:
        """mean_k 1/n_k: sampling the class means adds this multiple of S_W to their scatter."""
        return float((1 / self.counts).mean())

    @property
    def unbiased(self) -> float:
        """N/(N - K), by which Sigma_W is too small."""
        samples = self.counts.sum()
        return float(samples / (samples - len(self.counts)))

    def nc1(self) -> float | None:
        """Return an estimate of tr(S_W pinv(S_B)) / K; None if sampling hides S_B.

        If there are more classes than features, they count as a sample from a population of
        classes, otherwise as the population itself.
        """
        if self.counts.max() == 1:
            return None
        if len(self.sigma) == self.width < len(self.counts) - 1:
            return self._nc1_of_class_population()
        return self._nc1_of_given_classes()

    def _nc1_of_class_population(self) -> float | None:
        """NC1 of the population of classes, K > d + 1.

        In coordinates in which S_W = I the sample covariance of the class means has eigenvalues
        b_j and the population's is S_B + c I, c = `noise`. With y = d/(K - 1) and the Stieltjes
        transform m(z) = mean_j 1/(b_j - z), the equation of Marchenko and Pastur (Silverstein
        1995) gives (z/c) m(z) as an estimate of tr(S_B^-1)/d at the z below all b_j at which
        z / (1 - y - y z m(z)) = c.
        """
        K, d, c = len(self.counts), self.width, self.noise
        scaled = self.unbiased * self.inside / np.outer(self.sigma, self.sigma)
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
        # The left end is negative: excess(0) = -c (1 - y). The first root is the branch from c = 0.
        grid = np.linspace(*ends, 65)
        first = next((k for k in range(1, 65) if excess(grid[k]) >= 0), None)
        if first is None:
            return None
        z = float(brentq(excess, grid[first - 1], grid[first]))
        return float(z / c * (1 / (b - z)).mean() * d / K)

    def _nc1_of_given_classes(self) -> float | None:
        """NC1 of the K classes themselves, in d >= K - 1 dimensions.

        Sampling adds tr(S_W) c/K to every eigenvalue sigma_j^2 of the Gram matrix of the class
        means, and tr(S_W^2) c/K to sigma_j^2 V_j^T Sigma_W V_j, since V_j follows the noise.
        """
        K, c = len(self.counts), self.noise
        within = self.unbiased * float(self.counts @ self.variances / self.counts.sum())
        along = self.unbiased * np.diag(self.inside)
        between = self.sigma**2 - within * c / K
        if between.min() <= 0:
            return None
        energy = (self.sigma**2 * along - self.square * c / K).clip(min=0)
        return float((energy / between**2).sum() / K)

    def cdnv(self, squares: Float[np.ndarray, " P"]) -> float | None:
        """Return the mean over pairs of (v_k + v_l) / (2 D), D their means' squared distance.

        v_k = n_k/(n_k - 1) var_k, and D is estimated by ||m_k - m_l||^2 - v_k/n_k - v_l/n_l. Its
        sampling variance is V = 4 D s + 2 a^2 tr(S_W^2), a = 1/n_k + 1/n_l and s = a times the mean
        variance along the class means. 1/D is estimated by D / (D^2 + V): to first order that is
        the corrected inverse (1 - V/D^2) / D, but bounded, so that no single pair decides the mean
        when its estimated distance happens to be near zero. Pairs with a class of one sample, whose
        variance is unknown, are left out. None if sampling hides the distance (D^2 < V) of more
        than `MOST_HIDDEN` of the pairs.

        Parameters
        ----------
        squares : ndarray, (K (K - 1) / 2,)
            ||m_k - m_l||^2 for k < l.
        """
        several = self.counts > 1
        if several.sum() < 2:
            return None
        n, pairs = self.counts[several], squareform(squares)[np.ix_(several, several)]
        v = self.variances[several] * n / (n - 1)
        first, second = np.triu_indices(len(v), 1)
        apart = pairs[first, second] - (v / n)[first] - (v / n)[second]
        a = (1 / n)[first] + (1 / n)[second]
        weights = self.sigma**2
        along = self.unbiased * float(weights @ np.diag(self.inside) / weights.sum())
        variance = 4 * apart.clip(min=0) * a * along + 2 * a**2 * self.square
        hidden = (apart <= 0) | (apart**2 < variance)
        if hidden.mean() > MOST_HIDDEN:
            return None
        scale = apart**2 + variance
        inverse = np.divide(apart, scale, out=np.zeros_like(apart), where=scale > 0)
        return float(((v[first] + v[second]) / 2 * inverse).mean())


class LeaveOneOut:
    """Leave-one-out accuracy and the other sums for `SmallSampleEstimates`, in the second pass.

    Parameters
    ----------
    basis : Tensor, (r, d)
        Orthonormal rows that span the class means.
    coordinates : Tensor, (K, r)
        The class means in this basis.
    means : Tensor, (K, d)
        The class means themselves.
    counts, classes : Tensor, (K,)
        Samples and label of every class.
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
        self._inside = basis.new_zeros(len(basis), len(basis))
        self._sample = RowSample(SPECTRUM_SIZE)
        self._samples = self._several = self._hits = 0

    def add(
        self,
        x: Float[torch.Tensor, "b d"],
        residual: Float[torch.Tensor, "b r"],
        rows: Int[torch.Tensor, " b"],
    ) -> None:
        """Add samples x = h - m_k, and their projections on the span, of the classes `rows`."""
        self._samples += len(rows)
        self._inside += residual.T @ residual
        square = (residual * residual).sum(1)
        outside = ((x * x).sum(1) - square).clamp_min_(0)
        n = self._counts[rows]
        # h - m'_k = n/(n - 1) (h - m_k), with m'_k the class mean without h.
        own_square = (n / (n - 1)).square() * (square + outside) - outside
        at = residual + self._coordinates[rows]
        squares = (self._coordinates * self._coordinates).sum(1) - 2 * at @ self._coordinates.T
        squares += (at * at).sum(1)[:, None]
        squares[torch.arange(len(rows), device=rows.device), rows] = torch.inf
        several = n > 1
        self._several += int(several.sum())
        self._hits += int((several & (own_square <= squares.min(1).values)).sum())
        # Sampled by the features themselves: residuals vary in their last digits with the batches.
        labelled = torch.cat([x + self._means[rows], self._classes[rows][:, None]], 1)
        self._sample.update(labelled[several])

    def all_reduce(self) -> LeaveOneOut:
        """Add the sums of all processes."""
        ints = np.array([self._samples, self._several, self._hits])
        self._samples, self._several, self._hits = processes.all_reduce_sum(ints).tolist()
        processes.all_reduce_sum(self._inside)
        if processes.world_size() > 1:
            whole = RowSample(SPECTRUM_SIZE)
            for part in processes.all_gather(self._sample):
                if part.size and len(part):
                    whole.update(part.rows)
            self._sample = whole
        return self

    @property
    def inside(self) -> Float[np.ndarray, "r r"]:
        """V Sigma_W V^T."""
        return (self._inside / max(self._samples, 1)).cpu().numpy()

    @property
    def accuracy(self) -> float | None:
        """Fraction of samples nearest to their class mean without them, in classes of several."""
        return self._hits / self._several if self._several else None

    @property
    def square(self) -> float:
        """tr(S_W^2), as the mean of <x_i, x_j>^2 over samples of different classes."""
        if len(self._sample) < 2:
            return 0.0
        rows = self._sample.rows.to(self._means)
        row = torch.searchsorted(self._classes.sort().values, rows[:, -1].contiguous())
        row = self._classes.argsort()[row]
        n = self._counts[row]
        x = (rows[:, :-1] - self._means[row]) * (n / (n - 1)).sqrt()[:, None]
        different = row[:, None] != row
        products = (x @ x.T).square()[different]
        return float(products.mean()) if len(products) else 0.0
