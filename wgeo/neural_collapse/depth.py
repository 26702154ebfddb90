"""The collapse of a network: how metrics change with depth, and the law of data separation."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import groupby
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
from jaxtyping import Float

from ..results import Result, as_table
from .metrics import Frame, LayerCollapse

if TYPE_CHECKING:
    import pandas

FALLING = (
    *("nc1", "nc1_quotient", "nc2_equinorm", "nc2_equiangle", "nc2_etf"),
    *("cdnv", "ncc_error", "ncc_mismatch"),
)
"""Metrics that progressive feedforward collapse expects to fall with depth."""

_ROUNDING = 1e-12  # largest relative range of values that count as constant
_REACHED = 0.9  # for `Progress.reached`: fraction of the metric's whole decrease
_LEARNED = 0.99  # for `Collapse.learned_at`: fraction of the network's accuracy
_MIN_LAYERS = 3  # fewest layers for a fit, since any two points lie on a line
# Metrics shown in the short text.
_SHOWN = ("nc1", "nc2_etf", "nc3", "ncc_accuracy", "cdnv", "effective_rank")


@dataclass(frozen=True, repr=False)
class Progress(Result):
    """How a metric changes with depth.

    The input image, the classifier's input and layers at which the metric is undefined are left
    out. If fewer than two layers remain, all values are None.

    Attributes
    ----------
    metric : str
    kendall_tau : float or None
        Kendall's tau-b between depth and the metric, in [-1, 1]: -1 if the metric decreases at
        every layer, None if it is constant.
    violations : int or None
        Number of layers at which the metric is larger than at the layer before.
    violation_size : float or None
        Sum of these increases, divided by the range of the metric; 0 without violations.
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


@dataclass(frozen=True, repr=False)
class SegmentLaw(Result):
    """How the separation of the classes changes over consecutive layers l = 0, ..., L.

    A value is None if it is undefined or determined by rounding.

    Attributes
    ----------
    layers : tuple of str
    stage : int or None
        The stage of the layers; None for the layers of all stages together.
    separation : tuple of float
        D_l = tr(Sigma_W pinv(Sigma_B)) = K nc1 at every layer, in [0, inf); 0 for collapsed
        classes (He and Su 2023).
    rate : float or None
        rho of the least-squares fit ln D_l = ln D_0 + l ln rho: the factor per layer, in (0, inf).
    half_layers : float or None
        ln 2 / -ln rho, the number of layers in which D halves; None if D does not fall.
    correlation : float or None
        Pearson's r of l and ln D_l, in [-1, 1]; -1 if D falls by the same factor at every layer.
        A value near -1 is weak evidence of a constant factor: along a geodesic, the factor is not
        constant, but the correlation is still -0.95 if D falls by a factor of 100.
    curvature : float or None
        Coefficient of x^2 in the quadratic fit of ln D over x = l / L, divided by
        ``|ln D_L - ln D_0|``; 0 for a constant rate. It is negative if D falls faster at later
        layers, as along a geodesic on which the classes contract: D ~ (1 - beta t)^2. It is
        positive if D falls faster at earlier layers, as along a geodesic on which the class means
        expand: D ~ (1 + lambda t)^-2.
    compression : tuple of float
        C_l = tr Sigma_W / tr Sigma_B at every layer (Wang et al. 2025).
    compression_rate, compression_correlation, compression_curvature : float or None
        The values `rate`, `correlation` and `curvature` of the same fits to ln C_l.
    discrimination : tuple of float
        ``1 - max_{k != l} cos(m_k, m_l)`` at every layer, of class means that are not centered, in
        [0, 2] (Wang et al. 2025). After a ReLU the means are nonnegative, so it is at most 1; in
        the first layers it is usually near 0.
    discrimination_slope, discrimination_correlation : float or None
        Slope and Pearson's r of the least-squares line of `discrimination` over l. Theory predicts
        a line for deep linear networks.
    intervals : mapping of str to (low, high)
        95 % bootstrap intervals of the fitted values; see `collapse`.

    Examples
    --------
    A layer that multiplies all deviations from the class means by 0.8 multiplies D by 0.64:

    >>> import numpy as np
    >>> import wgeo
    >>> labels, noise = np.arange(60) % 3, np.random.default_rng(0).normal(size=(60, 4))
    >>> noise -= np.stack([noise[labels == k].mean(0) for k in range(3)])[labels]
    >>> layers = [np.eye(3, 4)[labels] + 0.8**l * noise for l in range(4)]
    >>> law = wgeo.separation_law(wgeo.Trajectory.from_arrays(layers, labels)).segments[0]
    >>> round(law.separation[1] / law.separation[0], 6), round(law.half_layers, 3)
    (0.64, 1.553)
    """

    layers: tuple[str, ...]
    stage: int | None
    separation: tuple[float | None, ...]
    rate: float | None
    half_layers: float | None
    correlation: float | None
    curvature: float | None
    compression: tuple[float | None, ...]
    compression_rate: float | None
    compression_correlation: float | None
    compression_curvature: float | None
    discrimination: tuple[float | None, ...]
    discrimination_slope: float | None
    discrimination_correlation: float | None
    intervals: Mapping[str, tuple[float, float]] = field(default_factory=dict)


@dataclass(frozen=True, repr=False)
class SeparationLaw(Result):
    """The law of data separation in every stage, and over all of them.

    ``to_pandas()`` has a row per layer and segment.

    Attributes
    ----------
    segments : tuple of SegmentLaw
        One for each stage of at least three layers. If there are several stages, the last segment
        contains all layers and has stage None; one rate need not describe them, since the space
        changes between stages.
    samples_per_class : int
        Number of samples of the smallest class. If it is small, D is biased; see `LayerCollapse`.

    Examples
    --------
    >>> import numpy as np
    >>> import wgeo
    >>> labels, noise = np.arange(60) % 3, np.random.default_rng(0).normal(size=(60, 4))
    >>> layers = [np.eye(3, 4)[labels] + 0.8**l * noise for l in range(4)]
    >>> law = wgeo.separation_law(wgeo.Trajectory.from_arrays(layers, labels))
    >>> law.segments[0].layers, law.samples_per_class
    (('layer0', 'layer1', 'layer2', 'layer3'), 20)
    """

    segments: tuple[SegmentLaw, ...]
    samples_per_class: int = 0

    def _description(self) -> str:
        return "separation of the classes with depth" if self.segments else "fewer than 3 layers"

    def _rows(self) -> list[dict[str, Any]]:
        shown = ("rate", "half_layers", "correlation", "curvature")
        return [
            {"from": segment.layers[0], "to": segment.layers[-1]}
            | {name: getattr(segment, name) for name in shown}
            for segment in self.segments
        ]

    def _record(self) -> dict[str, Any]:
        return {"separation_law": self.to_dict()}

    def _table(self) -> list[dict[str, Any]]:
        series = ("separation", "compression", "discrimination")
        return [
            {"segment": k, "stage": segment.stage, "layer": name}
            | {key: getattr(segment, key)[i] for key in series}
            for k, segment in enumerate(self.segments)
            for i, name in enumerate(segment.layers)
        ]

    def _curve(self) -> tuple[str, list[float | None]]:
        values = self.segments[-1].separation if self.segments else ()
        return "ln D from layer to layer", [math.log(v) if v else None for v in values]


@dataclass(frozen=True, eq=False, repr=False)
class Collapse(Result):
    """Neural collapse at every layer of a network.

    Attributes
    ----------
    layers : tuple of LayerCollapse
        In execution order.
    progress : dict of str to Progress
        For every metric that should decrease with depth, whether it does.
    separation : Progress
        Whether the mean angle between class means increases with depth. Here a violation is a layer
        at which it decreases.
    classes, counts : tuple of int
        The classes that occur, and their numbers of samples.
    weights : str
        ``uniform`` (g is the mean of the class means and Sigma_B is unweighted), ``frequency`` or
        ``sample_mean``; see `wgeo.collapse`.
    classifier : Frame or None
        NC2 of the classifier's rows, not centered.
    accuracy : float or None
        The accuracy of the network, if its predictions are known.
    separation_law : SeparationLaw
        Whether the classes separate by the same factor at every layer; see `wgeo.separation_law`.

    Examples
    --------
    >>> import numpy as np
    >>> import wgeo
    >>> labels = np.arange(60) % 3
    >>> noise = np.random.default_rng(0).normal(size=(60, 4))
    >>> layers = [np.eye(3, 4)[labels] + scale * noise for scale in (1.0, 0.01)]
    >>> result = wgeo.collapse(wgeo.Trajectory.from_arrays(layers, labels))
    >>> [layer.name for layer in result.layers], result.learned_at, result.counts
    (['layer0', 'layer1'], 'layer1', (20, 20, 20))
    """

    layers: tuple[LayerCollapse, ...]
    progress: Mapping[str, Progress]
    separation: Progress
    classes: tuple[int, ...]
    counts: tuple[int, ...]
    weights: str
    classifier: Frame | None = None
    accuracy: float | None = None
    separation_law: SeparationLaw = field(default_factory=lambda: SeparationLaw(()))
    _included: ClassVar[tuple[str, ...]] = ("learned_at",)

    @classmethod
    def of_layers(cls, layers: Sequence[LayerCollapse], **fields: Any) -> Collapse:
        """Combine layers and measure the progress from one to the next."""
        falling, separation = progress_of_layers(layers)
        return cls(
            layers=tuple(layers),
            progress=falling,
            separation=separation,
            separation_law=law_of_layers(layers),
            **fields,
        )

    @property
    def learned_at(self) -> str | None:
        """The first layer whose nearest-class-mean accuracy is at least 99 % of the network's.

        If the network's predictions are unknown, the nearest-class-mean accuracy of the last layer
        replaces the network's accuracy (Parker et al. 2023). None if there is no such layer.
        """
        accuracies = [
            (layer.name, layer.ncc_accuracy)
            for layer in self.layers
            if layer.stage is not None and layer.ncc_accuracy is not None
        ]
        if not accuracies:
            return None
        goal = accuracies[-1][1] if self.accuracy is None else self.accuracy
        return next((name for name, accuracy in accuracies if accuracy >= _LEARNED * goal), None)

    def to_pandas(self) -> pandas.DataFrame:
        """Return a table with a row per layer and a column per metric, without intervals.

        Raises
        ------
        DependencyError
            pandas is not installed.
        """
        return as_table([row for layer in self.layers for row in layer._table()]).set_index("name")

    def _rows(self) -> list[dict[str, Any]]:
        return [
            {"layer": layer.name, "width": layer.width}
            | {name: getattr(layer, name) for name in _SHOWN}
            for layer in self.layers
        ]

    def _description(self) -> str:
        n, accuracy = sum(self.counts), self.accuracy
        read = "" if accuracy is None else f"; accuracy {accuracy:.4g}"
        return f"{len(self.layers)} layers, {n} samples of {len(self.classes)} classes{read}"

    def _curve(self) -> tuple[str, list[float | None]]:
        return "NC1 from layer to layer", [layer.nc1 for layer in self.layers]


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
    threshold = _ROUNDING * float(np.abs(v).max())  # smaller differences are rounding
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


def _tau(values: Float[np.ndarray, " L"], threshold: float) -> float | None:
    """Return Kendall's tau-b with depth: S / sqrt(P (P - ties)) for P pairs of different depths."""
    later, earlier = np.tril_indices(len(values), -1)
    change = values[later] - values[earlier]
    signs = np.where(np.abs(change) > threshold, np.sign(change), 0.0)
    untied = np.count_nonzero(signs)
    return float(signs.sum() / np.sqrt(len(signs) * untied)) if untied else None


def law_of_layers(layers: Sequence[LayerCollapse]) -> SeparationLaw:
    """Fit every stage, and all stages together; layers without a stage are left out."""
    inner = [layer for layer in layers if layer.stage is not None]
    stages = [(k, list(group)) for k, group in groupby(inner, key=lambda layer: layer.stage)]
    if len(stages) > 1:
        stages.append((None, inner))
    segments = [_fit(group, stage) for stage, group in stages if len(group) >= _MIN_LAYERS]
    fewest = min((layer.samples_per_class for layer in inner), default=0)
    return SeparationLaw(tuple(segments), fewest)


def _fit(layers: Sequence[LayerCollapse], stage: int | None) -> SegmentLaw:
    separation = [None if la.nc1 is None else la.nc1 * la.classes for la in layers]
    compression = [layer.nc1_quotient for layer in layers]
    discrimination = [layer.discrimination for layer in layers]
    rate, correlation, curvature = _exponential(separation)
    compression_rate, compression_correlation, compression_curvature = _exponential(compression)
    slope, discrimination_correlation = _line(discrimination)
    half_layers = None
    if rate is not None and correlation is not None and rate < 1 - _ROUNDING:
        half_layers = -math.log(2) / math.log(rate)
    return SegmentLaw(
        layers=tuple(layer.name for layer in layers),
        stage=stage,
        separation=tuple(separation),
        rate=rate,
        half_layers=half_layers,
        correlation=correlation,
        curvature=curvature,
        compression=tuple(compression),
        compression_rate=compression_rate,
        compression_correlation=compression_correlation,
        compression_curvature=compression_curvature,
        discrimination=tuple(discrimination),
        discrimination_slope=slope,
        discrimination_correlation=discrimination_correlation,
    )


def _exponential(
    values: Sequence[float | None],
) -> tuple[float | None, float | None, float | None]:
    """Return rate, correlation and curvature of an exponential fit; None unless values are > 0."""
    if any(value is None or not value > 0 for value in values):
        return None, None, None
    y = np.log(np.array(values, dtype=np.float64))
    slope, correlation = _line(y.tolist())
    if slope is None:
        return None, None, None
    change = abs(y[-1] - y[0])
    bend = float(np.polyfit(np.linspace(0, 1, len(y)), y, 2)[0])
    constant = change <= _ROUNDING * max(1.0, float(np.abs(y).max()))
    return math.exp(slope), correlation, None if constant else bend / float(change)


def _line(values: Sequence[float | None]) -> tuple[float | None, float | None]:
    """Return slope and correlation with l = 0, 1, ...; the correlation of a constant is None."""
    if any(value is None for value in values):
        return None, None
    y = np.array(values, dtype=np.float64)
    x = np.arange(len(y)) - (len(y) - 1) / 2
    deviation = y - y.mean()
    slope = float(x @ deviation / (x @ x))
    if np.ptp(y) <= _ROUNDING * max(1.0, float(np.abs(y).max())):
        return slope, None
    return slope, float(x @ deviation / math.sqrt((x @ x) * (deviation @ deviation)))
