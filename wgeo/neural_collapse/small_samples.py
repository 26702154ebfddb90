"""Few samples per class: estimates of the population's NC1, CDNV and nearest-center accuracy.

The metrics as defined in the papers are biased if classes have few samples. With n samples per
class, Sigma_W is too small by the factor (n - 1)/n, and Sigma_B is too large by about Sigma_W/n.
A class mean is nearer to its own samples than the mean of the class's population is.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import scipy
import torch
from jaxtyping import Float, Int, Num
from scipy.optimize import brentq
from scipy.spatial.distance import squareform

from ..runtime import processes
from .moments import SPECTRUM_SIZE, RowSample, class_weights

_MAX_HIDDEN = 0.05  # maximum fraction of class pairs whose distance is hidden by noise


@dataclass(frozen=True, eq=False)
class SmallSampleEstimates:
    """Estimates for a layer with few samples per class, but more than one in some class.

    `ClassGeometry` defines the attributes. S_W and S_B are Sigma_W and Sigma_B of the population.
    """

    counts: Num[np.ndarray, " K"]
    variances: Float[np.ndarray, " K"]
    weights: str
    sigma: Float[np.ndarray, " r"]
    coordinates: Float[np.ndarray, "K r"]
    within: Float[np.ndarray, "r r"]  # V Sigma_W V^T
    width: int
    within_square: float  # an estimate of tr(S_W^2)

    @property
    def noise_factor(self) -> float:
        """The c with which sampling adds (1 - 1/K) c S_W to the expected Sigma_B.

        The covariance of m_k - g, with g = sum_l a_l m_l, is (1 - 2 a_k)/n_k + sum_l a_l^2/n_l
        times S_W. c is mean_k 1/n_k with uniform weights, and K/N with frequency weights.
        """
        K, n = len(self.counts), torch.from_numpy(self.counts).double()
        in_mean, in_covariance = class_weights(self.weights, n)
        variances = (1 - 2 * in_mean) / n + (in_mean**2 / n).sum()
        return float(in_covariance @ variances) * K / (K - 1)

    @property
    def correction(self) -> float:
        """N/(N - K), the factor that makes Sigma_W unbiased."""
        samples = self.counts.sum()
        return float(samples / (samples - len(self.counts)))

    def nc1(self) -> float | None:
        """Return an estimate of tr(S_W pinv(S_B)) / K.

        None if sampling noise exceeds S_B. If K > d + 1 and the class means span all d dimensions,
        the classes are treated as a sample from a population of classes, whose S_B does not depend
        on `weights`. Otherwise they are the whole population.
        """
        if len(self.sigma) == self.width < len(self.counts) - 1:
            return self._nc1_of_class_population()
        return self._nc1_of_given_classes()

    def _nc1_of_class_population(self) -> float | None:
        """Return NC1 of the population of classes, for K > d + 1.

        In coordinates in which S_W = I, let b_j be the eigenvalues of the sample covariance of the
        K class means, which are drawn from a population with covariance S_B + c I, where
        c = mean_k 1/n_k. Let y = d/(K - 1), and let m(z) = mean_j 1/(b_j - z) be the Stieltjes
        transform. By the equation of Marchenko and Pastur (Silverstein 1995), (z/c) m(z) estimates
        tr(S_B^-1)/d at the z that is below all b_j and solves z / (1 - y - y z m(z)) = c.
        """
        K, d, c = len(self.counts), self.width, float((1 / self.counts).mean())
        means = (self.coordinates - self.coordinates.mean(0)) / self.sigma
        within = self.correction * self.within / np.outer(self.sigma, self.sigma)
        g = scipy.linalg.eigvalsh(within, means.T @ means / (K - 1))
        if g.max() <= 0:
            return 0.0
        g = g.clip(min=1e-15 * g.max())
        b, y = 1 / g, d / (K - 1)

        def excess(z: float) -> float:
            return z - c * (1 - y - y * z * float((1 / (b - z)).mean()))

        ends = (0.0, b.min() * (1 - 1e-9))
        if excess(ends[1]) < 0:
            return None
        # excess(0) = -c (1 - y) < 0. Of several roots, the first is the one that tends to 0 with c.
        grid = np.linspace(*ends, 65)
        first = next((k for k in range(1, 65) if excess(grid[k]) >= 0), None)
        if first is None:
            return None
        z = float(brentq(excess, grid[first - 1], grid[first]))
        return float(z / c * (1 / (b - z)).mean() * d / K)

    def _nc1_of_given_classes(self) -> float | None:
        """Return NC1 of the K classes themselves, in d >= K - 1 dimensions.

        With c = `noise_factor`, sampling adds tr(S_W) c/K to the eigenvalues sigma_j^2 of Sigma_B,
        and tr(S_W^2) c/K to sigma_j^2 V_j^T Sigma_W V_j, since V_j depends on the noise. This holds
        for every j if all classes have the same size, or with frequency weights. Otherwise it holds
        only for the mean over j.
        """
        K, c = len(self.counts), self.noise_factor
        trace = self.correction * float(self.counts @ self.variances / self.counts.sum())
        along = self.correction * np.diag(self.within)
        between = self.sigma**2 - trace * c / K
        if between.min() <= 0:
            return None
        within_energy = (self.sigma**2 * along - self.within_square * c / K).clip(min=0)
        return float((within_energy / between**2).sum() / K)

    def cdnv(self, squared_distances: Float[np.ndarray, " P"]) -> float | None:
        """Return the mean over pairs of classes of (v_k + v_l) / (2 D), corrected for sampling.

        v_k = n_k/(n_k - 1) `variances`[k] is the unbiased variance of class k, and the squared
        distance D of two class means is estimated by ||m_k - m_l||^2 - v_k/n_k - v_l/n_l. With
        a = 1/n_k + 1/n_l and w the mean variance along the class means, the sampling variance of D
        is V = 4 D a w + 2 a^2 tr(S_W^2). 1/D is estimated by D / (D^2 + V). To first order this is
        the corrected inverse (1 - V/D^2) / D. It is bounded, so that a pair whose estimated D is
        near zero cannot dominate the mean. Classes of one sample are left out, because their
        variance is unknown. None if fewer than two classes are left, or if D <= 0 or D^2 < V for
        more than a fraction `_MAX_HIDDEN` of the pairs.
        """
        measurable = self.counts > 1
        if measurable.sum() < 2:
            return None
        n = self.counts[measurable]
        between_means = squareform(squared_distances)[np.ix_(measurable, measurable)]
        v = self.variances[measurable] * n / (n - 1)
        first, second = np.triu_indices(len(v), 1)
        D = between_means[first, second] - (v / n)[first] - (v / n)[second]
        a = (1 / n)[first] + (1 / n)[second]
        weights = self.sigma**2
        w = self.correction * float(weights @ np.diag(self.within) / weights.sum())
        V = 4 * D.clip(min=0) * a * w + 2 * a**2 * self.within_square
        hidden = (D <= 0) | (D**2 < V)
        if hidden.mean() > _MAX_HIDDEN:
            return None
        denominator = D**2 + V
        inverse = np.divide(D, denominator, out=np.zeros_like(D), where=denominator > 0)
        return float(((v[first] + v[second]) / 2 * inverse).mean())


class LeaveOneOut:
    """Sums that `SpanProjection` adds in pass two, if a class has few samples.

    They give `within` and `within_square` of `SmallSampleEstimates`, and the nearest-class-mean
    accuracy when each sample is left out of its own class mean.
    """

    def __init__(
        self,
        basis: Float[torch.Tensor, "r d"],
        coordinates: Float[torch.Tensor, "K r"],
        means: Float[torch.Tensor, "K d"],  # relative to `shift`
        shift: Float[torch.Tensor, " d"],
        counts: Float[torch.Tensor, " K"],
        classes: Float[torch.Tensor, " K"],
    ) -> None:
        self._coordinates, self._means, self._shift = coordinates, means, shift
        self._counts, self._classes = counts, classes
        self._within = basis.new_zeros(len(basis), len(basis))
        self._sample = RowSample(SPECTRUM_SIZE)
        self._samples = self._in_larger_classes = self._correct = 0

    def add(
        self,
        block: Float[torch.Tensor, "b d"],
        x: Float[torch.Tensor, "b d"],
        x_in_span: Float[torch.Tensor, "b r"],
        class_index: Int[torch.Tensor, " b"],
    ) -> None:
        """Add samples h; x are h - m_k for their classes k, and x_in_span are x in the span."""
        self._samples += len(x)
        self._within += x_in_span.T @ x_in_span
        square = (x_in_span * x_in_span).sum(1)
        outside = ((x * x).sum(1) - square).clamp_min_(0)
        n = self._counts[class_index]
        # h - m'_k = n/(n - 1) (h - m_k), with m'_k the class mean without h. The part of h outside
        # the span is left out of all squared distances: it is the same for the other class means.
        own_square = (n / (n - 1)).square() * (square + outside) - outside
        h = x_in_span + self._coordinates[class_index]  # in the span of the class means
        norms = (self._coordinates * self._coordinates).sum(1)
        squares = norms - 2 * h @ self._coordinates.T
        squares += (h * h).sum(1)[:, None]
        squares[torch.arange(len(x), device=x.device), class_index] = torch.inf
        is_not_alone = n > 1
        self._in_larger_classes += int(is_not_alone.sum())
        self._correct += int((is_not_alone & (own_square <= squares.min(1).values)).sum())
        # `RowSample` chooses rows by their values, so offer h itself: rounding in x depends on the
        # batches, and rounding in h - shift on the first sample.
        rows_with_label = torch.cat([block.to(x), self._classes[class_index][:, None]], 1)
        self._sample.update(rows_with_label[is_not_alone])

    def all_reduce(self) -> None:
        """Add the sums of all processes."""
        counts = [self._samples, self._in_larger_classes, self._correct]
        self._samples, self._in_larger_classes, self._correct = processes.all_reduce_sum(
            np.array(counts)
        ).tolist()
        processes.all_reduce_sum(self._within)
        self._sample = self._sample.all_reduce()

    @property
    def within(self) -> Float[np.ndarray, "r r"]:
        """V Sigma_W V^T."""
        return (self._within / self._samples).cpu().numpy()

    @property
    def accuracy(self) -> float | None:
        """Leave-one-out accuracy over the classes of at least two samples, if there are any."""
        return self._correct / self._in_larger_classes if self._in_larger_classes else None

    @property
    def within_square(self) -> float:
        """Estimate of tr(S_W^2): the mean of <x_i, x_j>^2 over samples of different classes."""
        if len(self._sample) < 2:
            return 0.0
        rows = self._sample.rows.to(self._means)
        rank = torch.searchsorted(self._classes.sort().values, rows[:, -1].contiguous())
        k = self._classes.argsort()[rank]  # index of each sample's class
        n = self._counts[k]
        x = (rows[:, :-1] - self._shift - self._means[k]) * (n / (n - 1)).sqrt()[:, None]
        different = k[:, None] != k
        products = (x @ x.T).square()[different]
        return float(products.mean()) if len(products) else 0.0
