"""95 % intervals of the metrics of one layer, from bootstrap replicates within classes.

A replicate relates to the sample as the sample relates to the population. The ratio of a
replicate's metric to the sample's metric is therefore an estimate of the ratio of the sample's
metric to the population's. This removes the bias of few samples to first order, whereas percentiles
of the replicates would double it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from jaxtyping import Int
from scipy.stats import binomtest

from .metrics import LayerCollapse
from .small_samples import is_few

LEVEL = 0.95
_RATIOS = ("nc1", "nc1_quotient", "cdnv", "nc2_equinorm", "nc2_etf")


def with_intervals(
    layer: LayerCollapse, replicates: Sequence[LayerCollapse], counts: Int[np.ndarray, " K"]
) -> LayerCollapse:
    """Return a layer with the intervals of its defined metrics.

    The intervals are for the plug-in metrics if every class has at least `FEW_SAMPLES` samples, and
    otherwise for the corrected ones, because an interval around a biased value would exclude the
    population's value.
    """
    intervals: dict[str, tuple[float, float] | None] = {}
    few = is_few(counts)
    for name in ("nc1", "cdnv") if few else _RATIOS:
        value, draws = getattr(layer, name), [getattr(r, name) for r in replicates]
        if few:
            corrected = getattr(layer, f"{name}_corrected")
            intervals[f"{name}_corrected"] = _corrected_interval(corrected, value, draws, counts)
        else:
            intervals[name] = _ratio(value, value, draws)
    intervals |= _accuracies(layer, counts)
    defined = {name: interval for name, interval in intervals.items() if interval is not None}
    return replace(layer, intervals=defined)


def _ratio(
    estimate: float | None, truth: float | None, draws: Sequence[float | None], power: float = 1.0
) -> tuple[float, float] | None:
    """Return estimate / q^power for quantiles q of draws / truth; the draws estimate `truth`."""
    defined = np.array([draw for draw in draws if draw is not None])
    if estimate is None or not truth or len(defined) < len(draws) or not defined.all():
        return None
    low, high = np.quantile(defined / truth, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return float(estimate / high**power), float(estimate / low**power)


def _corrected_interval(
    corrected: float | None,
    plugin: float | None,
    draws: Sequence[float | None],
    counts: Int[np.ndarray, " K"],
) -> tuple[float, float] | None:
    """Return the interval of a corrected estimate, from the distribution of the plug-in value.

    For a ratio of scatters a/b, which is corrected to a'/(b - c a'), a change of the plug-in value
    by one percent changes the corrected value by b / (b - c a') percent.
    """
    defined = [draw for draw in draws if draw is not None]
    if corrected is None or not plugin or not defined:
        return None
    unbiased = counts.sum() / (counts.sum() - len(counts))
    power = max(1.0, corrected / (plugin * unbiased))
    return _ratio(corrected, float(np.mean(defined)), draws, power)


def _accuracies(
    layer: LayerCollapse, counts: Int[np.ndarray, " K"]
) -> dict[str, tuple[float, float] | None]:
    """Return Wilson intervals for the fractions of samples nearest to their own class mean."""
    samples = {"ncc_accuracy": int(counts.sum())}
    if is_few(counts):
        samples = {"ncc_accuracy_corrected": int(counts[counts > 1].sum())}
    return {name: _wilson(getattr(layer, name), n) for name, n in samples.items()}


def _wilson(proportion: float | None, n: int) -> tuple[float, float] | None:
    if proportion is None or n == 0:
        return None
    interval = binomtest(round(proportion * n), n).proportion_ci(LEVEL, method="wilson")
    return float(interval.low), float(interval.high)
