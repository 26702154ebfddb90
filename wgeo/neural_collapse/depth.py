"""Does a metric fall from layer to layer? (Progressive feedforward collapse.)"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import numpy as np
from jaxtyping import Float

from ..results import Result
from .metrics import LayerCollapse

FALLING = (
    "nc1",
    "nc1_quotient",
    "nc2_equinorm",
    "nc2_equiangle",
    "nc2_etf",
    "cdnv",
    "ncc_error",
    "ncc_mismatch",
)
"""Metrics that progressive feedforward collapse expects to fall with depth."""

LEVEL = 0.95  # of all intervals
QUANTILES = (0.025, 0.975)  # exact, whereas (1 - LEVEL) / 2 is rounded
ROUNDING = 1e-12  # largest relative range of values that count as constant
_REACHED = 0.9


@dataclass(frozen=True, repr=False)
class Progress(Result):
    """How a metric changes with depth.

    Layers at which the metric is undefined are skipped, and so are the input image and the
    classifier's input. If fewer than two layers are left, all values are None.

    Attributes
    ----------
    metric : str
    kendall_tau : float or None
        Kendall's tau-b between depth and the metric, in [-1, 1]: -1 if the metric decreases at
        every layer, None if it is constant.
    violations : int or None
        Number of layers at which the metric is larger than at the layer before.
    violation_size : float or None
        Sum of these increases divided by the range of the metric; 0 without violations.
    monotone : bool or None
        Whether there is no violation.
    reached : str or None
        The first layer at which the metric has fallen by 90 % of its decrease from the first to the
        last layer (Parker et al. 2023); None if the last value is not lower than the first.
    reached_depth : float or None
        Relative depth of that layer, from 0 (first) to 1 (last).
    interval : tuple of float, or None
        95 % bootstrap interval of kendall_tau.
    increases : tuple of str
        Names of the layers that `violations` counts.

    Examples
    --------
    >>> import numpy as np
    >>> import wgeo
    >>> labels = np.arange(60) % 3
    >>> noise = np.random.default_rng(0).normal(size=(60, 4))
    >>> layers = [np.eye(3, 4)[labels] + scale * noise for scale in (1.0, 0.1, 0.3)]
    >>> result = wgeo.collapse(wgeo.Trajectory.from_arrays(layers, labels))
    >>> progress = result.progress["nc1_quotient"]
    >>> progress.violations, progress.increases, progress.reached
    (1, ('layer2',), 'layer1')
    """

    metric: str
    kendall_tau: float | None = None
    violations: int | None = None
    violation_size: float | None = None
    monotone: bool | None = None
    reached: str | None = None
    reached_depth: float | None = None
    interval: tuple[float, float] | None = None
    increases: tuple[str, ...] = ()

    _omitted: ClassVar[tuple[str, ...]] = ("metric",)

    def _table(self) -> list[dict[str, Any]]:
        return [{"metric": self.metric, **self.to_dict()}]


def progress(layers: Sequence[LayerCollapse], metric: str, *, rises: bool = False) -> Progress:
    """Measure whether a metric decreases with depth or, if `rises`, whether it increases.

    Kendall's tau is that of the metric itself in both cases.
    """
    names, values = [], []
    for layer in layers:
        value = getattr(layer, metric)
        if layer.stage is not None and value is not None:
            names.append(layer.name)
            values.append(-value if rises else value)
    if len(values) < 2:
        return Progress(metric)
    v = np.array(values)
    steps, span = np.diff(v), float(np.ptp(v))
    threshold = ROUNDING * float(np.abs(v).max())  # smaller differences are rounding
    up = steps > threshold
    fall = v[0] - v[-1]
    first = int(np.argmax(v[0] - v >= _REACHED * fall)) if fall > threshold else None
    return Progress(
        metric,
        kendall_tau=_tau(-v if rises else v, threshold),
        violations=int(up.sum()),
        increases=tuple(name for name, rise in zip(names[1:], up, strict=True) if rise),
        violation_size=float(steps[up].sum() / span) if up.any() else 0.0,
        monotone=not up.any(),
        reached=None if first is None else names[first],
        reached_depth=None if first is None else first / (len(v) - 1),
    )


def progress_of_layers(layers: Sequence[LayerCollapse]) -> tuple[dict[str, Progress], Progress]:
    """Return the progress of metrics that should decrease, and of the angle between class means."""
    falling = {metric: progress(layers, metric) for metric in FALLING}
    return falling, progress(layers, "mean_angle", rises=True)


def with_interval(progress: Progress, replicates: Sequence[Progress]) -> Progress:
    """Add the 95 % percentile interval of tau over bootstrap replicates."""
    defined = [r.kendall_tau for r in replicates if r.kendall_tau is not None]
    if progress.kendall_tau is None or not defined:
        return progress
    low, high = np.quantile(defined, QUANTILES)
    return replace(progress, interval=(float(low), float(high)))


def _tau(values: Float[np.ndarray, " L"], threshold: float) -> float | None:
    """Return Kendall's tau-b with depth, which has no ties: S / sqrt(P (P - ties)) for P pairs."""
    later, earlier = np.tril_indices(len(values), -1)
    change = values[later] - values[earlier]
    signs = np.where(np.abs(change) > threshold, np.sign(change), 0.0)
    untied = np.count_nonzero(signs)
    return float(signs.sum() / np.sqrt(len(signs) * untied)) if untied else None
