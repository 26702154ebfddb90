"""Is the rate at which the classes separate the same at every layer? (Law of data separation.)"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import groupby
from typing import Any, ClassVar

import numpy as np

from ..errors import ArgumentError
from ..results import Result
from .depth import QUANTILES, ROUNDING
from .metrics import LayerCollapse

FITTED = (
    *("rate", "correlation", "curvature"),
    *("compression_rate", "compression_correlation", "compression_curvature"),
    *("discrimination_slope", "discrimination_correlation"),
)
"""The values of a `SegmentLaw` that are fitted to its layers."""

_MIN_LAYERS = 3  # of a fit; any two points lie on a line


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
        ln 2 / -ln rho, the number of layers in which D halves; None if it does not fall.
    correlation : float or None
        Pearson's r of l and ln D_l, in [-1, 1]; -1 if D falls by the same factor at every layer.
        A value near -1 is weak evidence of that: if D falls by a factor of 100 along a geodesic,
        the value is -0.95.
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
        [0, 2] (same source). After a ReLU the means are nonnegative, so it is at most 1; it is
        usually near 0 in the first layers.
    discrimination_slope, discrimination_correlation : float or None
        Slope and Pearson's r of its least-squares line over l; theory predicts a line for deep
        linear networks.
    intervals : mapping of str to (low, high)
        95 % bootstrap intervals of the fitted values; samples are resampled. See `collapse`.

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
        One for each stage of at least three layers. If there are several stages, one more for all
        layers together, with stage None; between stages the space changes, so that one rate need
        not describe them all.
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

    _SHOWN: ClassVar[tuple[str, ...]] = ("rate", "half_layers", "correlation", "curvature")

    def _description(self) -> str:
        return "separation of the classes with depth" if self.segments else "fewer than 3 layers"

    def _rows(self) -> list[dict[str, Any]]:
        return [
            {
                "from": segment.layers[0],
                "to": segment.layers[-1],
                **{name: getattr(segment, name) for name in self._SHOWN},
            }
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


def law_of_layers(layers: Sequence[LayerCollapse]) -> SeparationLaw:
    """Fit every stage, and all stages together; layers without a stage are left out."""
    inner = [layer for layer in layers if layer.stage is not None]
    stages = [list(group) for _, group in groupby(inner, key=lambda layer: layer.stage)]
    fitted = [segment for group in stages for segment in _fit(group, group[0].stage)]
    whole = _fit(inner, None) if len(stages) > 1 else []
    return SeparationLaw(
        (*fitted, *whole), min((layer.samples_per_class for layer in inner), default=0)
    )


def law_with_intervals(law: SeparationLaw, replicates: Sequence[SeparationLaw]) -> SeparationLaw:
    """Add the 95 % percentile intervals of the fitted values over bootstrap replicates.

    With few samples, D is biased, and resampling adds about the same bias again. The bias does not
    affect the rates if it multiplies D by the same factor at all layers.
    """
    segments = []
    for k, segment in enumerate(law.segments):
        draws = [replicate.segments[k] for replicate in replicates]
        intervals = {}
        for name in FITTED:
            defined = [v for draw in draws if (v := getattr(draw, name)) is not None]
            if getattr(segment, name) is not None and len(defined) == len(draws):
                low, high = np.quantile(defined, QUANTILES)
                intervals[name] = (float(low), float(high))
        segments.append(replace(segment, intervals=intervals))
    return replace(law, segments=tuple(segments))


def select_layers(layers: Sequence[Any], names: Sequence[str]) -> list[Any]:
    """Return the layers with these names, in execution order."""
    if isinstance(names, str):
        raise ArgumentError("layers must be a list of layer names, not a string.")
    unknown = set(names) - {layer.name for layer in layers}
    if unknown:
        raise ArgumentError(
            f"no layer {', '.join(sorted(map(repr, unknown)))}; choose from these: "
            f"{', '.join(layer.name for layer in layers)}."
        )
    return [layer for layer in layers if layer.name in set(names)]


def _fit(layers: Sequence[LayerCollapse], stage: int | None) -> list[SegmentLaw]:
    if len(layers) < _MIN_LAYERS:
        return []
    separation = [None if la.nc1 is None else la.nc1 * la.classes for la in layers]
    compression = [layer.nc1_quotient for layer in layers]
    discrimination = [layer.discrimination for layer in layers]
    rate, correlation, curvature = _exponential(separation)
    compression_fit = _exponential(compression)
    line = _line(discrimination)
    half_layers = None
    if rate is not None and correlation is not None and rate < 1 - ROUNDING:
        half_layers = -math.log(2) / math.log(rate)
    return [
        SegmentLaw(
            layers=tuple(layer.name for layer in layers),
            stage=stage,
            separation=tuple(separation),
            rate=rate,
            half_layers=half_layers,
            correlation=correlation,
            curvature=curvature,
            compression=tuple(compression),
            compression_rate=compression_fit[0],
            compression_correlation=compression_fit[1],
            compression_curvature=compression_fit[2],
            discrimination=tuple(discrimination),
            discrimination_slope=line[0],
            discrimination_correlation=line[1],
        )
    ]


def _exponential(
    values: Sequence[float | None],
) -> tuple[float | None, float | None, float | None]:
    """Return rate, correlation and curvature of an exponential fit; None if a value is not > 0."""
    if any(value is None or not value > 0 for value in values):
        return None, None, None
    y = np.log(np.array(values, dtype=np.float64))
    slope, correlation = _line(y.tolist())
    if slope is None:
        return None, None, None
    change = abs(y[-1] - y[0])
    bend = float(np.polyfit(np.linspace(0, 1, len(y)), y, 2)[0])
    constant = change <= ROUNDING * max(1.0, float(np.abs(y).max()))
    return math.exp(slope), correlation, None if constant else bend / float(change)


def _line(values: Sequence[float | None]) -> tuple[float | None, float | None]:
    """Return slope and correlation of values over l = 0, 1, ...; no correlation of a constant."""
    if any(value is None for value in values):
        return None, None
    y = np.array(values, dtype=np.float64)
    x = np.arange(len(y)) - (len(y) - 1) / 2
    deviation = y - y.mean()
    slope = float(x @ deviation / (x @ x))
    if np.ptp(y) <= ROUNDING * max(1.0, float(np.abs(y).max())):
        return slope, None
    return slope, float(x @ deviation / math.sqrt((x @ x) * (deviation @ deviation)))
