"""95 % intervals of collapse metrics, from bootstrap replicates within classes.

A replicate relates to the sample as the sample relates to the population. The ratio of a
replicate's metric to the sample's therefore estimates the ratio of the sample's metric to the
population's. A metric is biased if samples are few. To first order, intervals from these ratios
remove this bias, whereas percentiles of the replicates would double it. The intervals of Kendall's
tau and of the law of separation are percentiles; they are biased if the bias of the metric differs
between layers.

Let x_i = h_i - m_{y_i} be the samples relative to their class means, and c_i the multiplicity of
sample i in a replicate. The class means of the replicate are m_k + t_k, where t_k is the mean of x
over class k with weights c. Its var_k is the weighted mean of ||x||^2, minus ||t_k||^2. After one
pass for the class means m_k, each batch of replicates takes two passes over the same x.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np
import scipy
import torch
from jaxtyping import Float, Int

from ..arrays.checks import CHUNK_ENTRIES, tensor_chunks
from ..runtime.threads import map_over_cores, one_thread, raise_if_interrupted
from ..thresholds import FEW_SAMPLES
from ..trajectory import Layer
from .depth import Collapse, Progress, SeparationLaw, law_of_layers, progress_of_layers
from .measure import nearest_mean
from .metrics import LayerCollapse, ProjectionSums, layer_collapse
from .moments import ClassGeometry, ClassMoments, class_weights

_LEVEL = 0.95
_QUANTILES = (0.025, 0.975)  # exact, whereas (1 - _LEVEL) / 2 is rounded
_RATIOS = ("nc1", "nc1_quotient", "cdnv", "nc2_equinorm", "nc2_etf")
_FITTED = (
    *("rate", "correlation", "curvature"),
    *("compression_rate", "compression_correlation", "compression_curvature"),
    *("discrimination_slope", "discrimination_correlation"),
)
_REPLICATE_ENTRIES = 2**23
"""Maximum number of float64 entries (64 MiB) in an array for one batch of replicates; a batch of a
single replicate may need more."""
_REPLICATE_ARRAYS = 5
"""Maximum number of such arrays in memory at once."""


def with_intervals(
    result: Collapse,
    layers: Sequence[Layer],
    class_index: Int[np.ndarray, " n"],
    predicted: Int[np.ndarray, " n"] | None,
    *,
    resamples: int,
    seed: int,
    rank_tolerance: float,
) -> Collapse:
    """Add 95 % intervals to a result: of metrics, Kendall's tau and the law of separation.

    `layers` are all layers except the image and the classifier's input. All use the same resamples
    within classes, because Kendall's tau compares layers.
    """
    multiplicities = stratified_counts(class_index, resamples, np.random.default_rng(seed))
    widest = max((layer.width for layer in layers), default=1)
    entries = max(_REPLICATE_ENTRIES, (int(class_index.max()) + 1) * widest)
    by_layer = map_over_cores(
        [
            partial(
                bootstrap_replicates,
                layer,
                class_index,
                predicted,
                multiplicities,
                result.weights,
                rank_tolerance,
            )
            for layer in layers
        ],
        "bootstrapping collapse",
        _REPLICATE_ARRAYS * 8 * entries,
        sum(layer.features.nbytes for layer in layers),
    )
    networks = list(zip(*by_layer, strict=True))
    replicates = [progress_of_layers(network) for network in networks]
    laws = [law_of_layers(network) for network in networks]
    replicates_of = dict(zip((layer.name for layer in layers), by_layer, strict=True))
    counts = np.array(result.counts)
    return replace(
        result,
        layers=tuple(
            layer_with_intervals(layer, replicates_of[layer.name], counts)
            if layer.name in replicates_of
            else layer
            for layer in result.layers
        ),
        progress={
            m: with_interval(p, [r[m] for r, _ in replicates]) for m, p in result.progress.items()
        },
        separation=with_interval(result.separation, [angle for _, angle in replicates]),
        separation_law=law_with_intervals(result.separation_law, laws),
    )


def stratified_counts(
    class_index: Int[np.ndarray, " n"], draws: int, rng: np.random.Generator
) -> Int[np.ndarray, "b n"]:
    """Return the multiplicities of samples in `draws` resamples within classes.

    From each class of n_k samples, n_k are drawn with replacement.
    """
    multiplicities = np.zeros((draws, len(class_index)), dtype=np.int64)
    for k in np.unique(class_index):
        in_class = np.flatnonzero(class_index == k)
        n = len(in_class)
        multiplicities[:, in_class] = rng.multinomial(n, np.full(n, 1 / n), size=draws)
    return multiplicities


def bootstrap_replicates(
    layer: Layer,
    class_index: Int[np.ndarray, " n"],
    predicted: Int[np.ndarray, " n"] | None,
    multiplicities: Int[np.ndarray, "b n"],
    weights: str,
    rank_tolerance: float,
) -> list[LayerCollapse]:
    """Measure every replicate of a layer, in O(N d K) operations per replicate.

    The metrics are those of `collapse_of`, except NC3, NC5, the ranks from the spectrum and the
    corrected estimates. `class_index` contains every index from 0 to K - 1. `predicted` may also
    contain -1, for a prediction of another class. In each class, a replicate's
    multiplicities sum to the class's size.
    """
    n, K = len(class_index), int(class_index.max()) + 1
    moments = ClassMoments(layer.name, spectrum_size=0)
    moments.add(layer.features, class_index)
    d = moments.width
    centered = _CenteredLayer(layer.features, class_index, predicted, moments, weights)
    batch_size = max(1, _REPLICATE_ENTRIES // (K * max(d, min(n, CHUNK_ENTRIES // d))))
    results: list[LayerCollapse] = []
    for start in range(0, len(multiplicities), batch_size):
        batch = torch.from_numpy(multiplicities[start : start + batch_size]).double()
        with one_thread(4 * len(batch) * n * d * K):
            results += [
                layer_collapse(geometry, sums, stage=layer.stage, rank_tolerance=rank_tolerance)
                for geometry, sums in centered.replicates(batch)
            ]
    return results


@dataclass(frozen=True, eq=False)
class _CenteredLayer:
    """A layer's features, which are read relative to the class means m_k in `moments`."""

    features: Any
    class_index: Int[np.ndarray, " n"]
    predicted: Int[np.ndarray, " n"] | None
    moments: ClassMoments
    weights: str

    def replicates(
        self, multiplicities: Float[torch.Tensor, "b n"]
    ) -> Iterator[tuple[ClassGeometry, ProjectionSums]]:
        """Yield the results of both passes over every replicate."""
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
                    weights=self.weights,
                ),
                sums[b],
            )

    def _residuals(
        self,
    ) -> Iterator[tuple[slice, Float[torch.Tensor, "n d"], Int[torch.Tensor, " n"]]]:
        """Yield chunks of rows, with their x_i = h_i - m_{y_i} and their classes."""
        means, shift = self.moments.means.cpu(), self.moments.shift.cpu()
        for rows, chunk in tensor_chunks(self.features, self.moments.name):
            raise_if_interrupted()
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
        """Return the `ProjectionSums` of every replicate."""
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
            ProjectionSums(int(h), None if self.predicted is None else int(m), e.numpy())
            for h, m, e in zip(correct, mismatches, energy, strict=True)
        ]


def layer_with_intervals(
    layer: LayerCollapse, replicates: Sequence[LayerCollapse], counts: Int[np.ndarray, " K"]
) -> LayerCollapse:
    """Return a layer with its intervals.

    If a class has few samples, only the corrected estimates have intervals: an interval around a
    biased value could exclude the population's value.
    """
    intervals: dict[str, tuple[float, float] | None] = {}
    few = bool(counts.min() < FEW_SAMPLES)
    for name in ("nc1", "cdnv") if few else _RATIOS:
        value, draws = getattr(layer, name), [getattr(r, name) for r in replicates]
        if few:
            corrected = getattr(layer, f"{name}_corrected")
            intervals[f"{name}_corrected"] = _corrected_interval(corrected, value, draws, counts)
        else:
            intervals[name] = _ratio(value, value, draws)
    # The fraction of samples that are nearest to their own class mean has a Wilson interval.
    if few:
        n = int(counts[counts > 1].sum())
        intervals["ncc_accuracy_corrected"] = _wilson(layer.ncc_accuracy_corrected, n)
    else:
        intervals["ncc_accuracy"] = _wilson(layer.ncc_accuracy, int(counts.sum()))
    defined = {name: interval for name, interval in intervals.items() if interval is not None}
    return replace(layer, intervals=defined)


def _ratio(
    estimate: float | None, truth: float | None, draws: Sequence[float | None], power: float = 1.0
) -> tuple[float, float] | None:
    """Return estimate / q^power for the quantiles q of draws / truth.

    `truth` is the value that the draws estimate. None if a value is undefined or zero.
    """
    defined = np.array([draw for draw in draws if draw is not None])
    if estimate is None or not truth or len(defined) < len(draws) or not defined.all():
        return None
    low, high = np.quantile(defined / truth, _QUANTILES)
    return float(estimate / high**power), float(estimate / low**power)


def _corrected_interval(
    corrected: float | None,
    plugin: float | None,
    draws: Sequence[float | None],
    counts: Int[np.ndarray, " K"],
) -> tuple[float, float] | None:
    """Return the interval of a corrected estimate, from the distribution of the plug-in value.

    The plug-in value is a ratio a/b of scatters. The corrected value is a'/(b - c a'): a' is the
    unbiased a, and c a' is the part of b that comes from the noise of the class means. If the
    plug-in value changes by one percent, the corrected value changes by b / (b - c a') percent.
    """
    defined = [draw for draw in draws if draw is not None]
    if corrected is None or not plugin or not defined:
        return None
    unbiased = counts.sum() / (counts.sum() - len(counts))
    power = max(1.0, corrected / (plugin * unbiased))
    return _ratio(corrected, float(np.mean(defined)), draws, power)


def _wilson(proportion: float | None, n: int) -> tuple[float, float] | None:
    if proportion is None or n == 0:
        return None
    interval = scipy.stats.binomtest(round(proportion * n), n).proportion_ci(
        _LEVEL, method="wilson"
    )
    return float(interval.low), float(interval.high)


def with_interval(progress: Progress, replicates: Sequence[Progress]) -> Progress:
    """Add the percentile interval of tau over replicates."""
    defined = [r.kendall_tau for r in replicates if r.kendall_tau is not None]
    if progress.kendall_tau is None or not defined:
        return progress
    low, high = np.quantile(defined, _QUANTILES)
    return replace(progress, interval=(float(low), float(high)))


def law_with_intervals(law: SeparationLaw, replicates: Sequence[SeparationLaw]) -> SeparationLaw:
    """Add the percentile intervals of the fitted values over replicates.

    With few samples, D is biased, and resampling adds about the same bias again. The bias does not
    affect the rates if it multiplies D by the same factor at all layers.
    """
    segments = []
    for k, segment in enumerate(law.segments):
        draws = [replicate.segments[k] for replicate in replicates]
        intervals = {}
        for name in _FITTED:
            defined = [v for draw in draws if (v := getattr(draw, name)) is not None]
            if getattr(segment, name) is not None and len(defined) == len(draws):
                low, high = np.quantile(defined, _QUANTILES)
                intervals[name] = (float(low), float(high))
        segments.append(replace(segment, intervals=intervals))
    return replace(law, segments=tuple(segments))
