"""Panels over depth: the collapse metrics, and the separation of the classes."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.lines import Line2D
from matplotlib.ticker import PercentFormatter

from ..results import defined
from ..storage.record import Collapse, Layer, Record, SegmentLaw
from ..text import counted, stage_number
from .predictions import (
    in_order,
    model_handles,
    model_rows,
    model_style,
    models_in,
    not_drawn,
    split_by_stage,
)
from .sources import Plot, Row, as_record, page_figure
from .style import (
    MEASURED,
    MUTED,
    REFERENCE_LINE,
    figure_of,
    interval_ends,
    layer_axis,
    legend_below,
    log_if_positive,
    new_axes,
    nothing_to_show,
    number,
    numbers,
    require_choice,
    segment_style,
    styled,
)

METRICS: dict[str, str] = {
    "nc1": "NC1: within-class variability",
    "cdnv": "CDNV",
    "nc2_equinorm": "NC2: spread of mean norms",
    "nc2_equiangle": "NC2: deviation from equal angles",
    "nc2_etf": "NC2: distance to simplex ETF",
    "ncc_error": "Nearest-class-center error",
    "nc1_quotient": "tr Σw / tr Σb",
    "effective_rank": "Effective rank",
    "mean_angle": "Mean angle between class means (degrees)",
    "within": "Within-class energy, tr Σw",
    "between": "Between-class energy, tr Σb",
    "ncc_mismatch": "NC4: disagreement with nearest class mean",
}
"""Metrics of `collapse`, and the titles of their panels."""

FRACTIONS = ("ncc_error", "ncc_mismatch")
"""Metrics that are drawn as percentages."""

LAWS: dict[str, str] = {
    "separation": "Separation, tr Σw Σb⁺",
    "compression": "Compression, tr Σw / tr Σb",
    "discrimination": "Discrimination, 1 − largest cosine",
}
"""Measures of `separation_law`, and the titles of their panels."""

ZERO_BELOW = 1e-12  # smaller predictions count as zero: rounding errors
_SUBTITLE: dict[str, Any] = {"fontsize": 7.5, "color": MUTED, "ha": "left", "va": "bottom"}
_FITS = {
    "separation": ("rate", "correlation", "curvature"),
    "compression": ("compression_rate", "compression_correlation", "compression_curvature"),
    "discrimination": ("discrimination_slope", "discrimination_correlation"),
}


@styled
def collapse(
    record: Any, metric: str = "nc1", ax: Axes | None = None, *, label_layers: bool = True
) -> Axes:
    """Draw a collapse metric over depth with its intervals, and the predictions of the models.

    Parameters
    ----------
    metric : str
        A key of `METRICS`. ``ncc_error`` is 1 - ``ncc_accuracy``, and is shown with the network's
        own error if the record has the accuracy.
    label_layers : bool
        Whether to write the layers' names under the axis.

    Examples
    --------
    >>> import numpy as np
    >>> import wgeo
    >>> labels, noise = np.arange(60) % 3, np.random.default_rng(0).normal(size=(60, 4))
    >>> layers = [np.eye(3, 4)[labels] + scale * noise for scale in (1.0, 0.3, 0.1)]
    >>> result = wgeo.collapse(wgeo.Trajectory.from_arrays(layers, labels))
    >>> ax = wgeo.plots.collapse(result, "nc1", ax=wgeo.plots.axes("column"))
    >>> wgeo.plots.save(ax, "nc1.pdf").name
    'nc1.pdf'
    """
    record = as_record(record, "Collapse", "Comparison")
    require_choice(metric, METRICS, "collapse metric")
    ax = new_axes(ax)
    layers = record.layers
    if not layers:
        return nothing_to_show(ax, "This record has no layers.")
    x = np.arange(len(layers))
    measured = measured_metric(record, metric)
    stages = [layer.stage for layer in layers]
    layer_axis(ax, [layer.name for layer in layers], stages, labels=label_layers)
    curves = [measured]  # those that the vertical axis must show
    zeros = []
    crowded = len(layers) > 30
    for key in models_in(record):
        predicted = predicted_metric(record, key, metric)
        style = model_style(key) | ({"marker": ""} if crowded and key != "ufm" else {})
        predicted = np.where(in_order(record, key), predicted, np.nan)
        is_zero = predicted < (0 if metric in FRACTIONS else ZERO_BELOW)
        if is_zero.any():
            zeros.append((x[is_zero], model_style(key) | {"ls": "none"}))
        predicted = np.where(is_zero, np.nan, predicted)
        if np.isfinite(predicted).any():
            ax.plot(*split_by_stage(record, predicted), **style)
            curves.append(predicted)
    staged = staged_layers(layers)
    draw_band(ax, staged, *_intervals(record, metric), alpha=0.2)
    size = 2.4 if crowded else 4.0
    draw_layers(ax, staged, measured, color=MEASURED, marker="o", ms=size, zorder=4)
    notes = [_trend_label(record, metric)]
    if metric in FRACTIONS:
        notes.append(_error_axis(ax, record, metric, curves))
    else:
        log_if_positive(ax, *curves)
    edge: dict[str, Any] = {"transform": ax.get_xaxis_transform(), "clip_on": False}
    edge["in_layout"] = False
    for at, style in zeros:  # a logarithmic axis has no 0: they are drawn at its edge
        ax.plot(at, 0 * at, **style, **(edge if ax.get_yscale() == "log" else {}))
    notes = [note for note in notes if note]
    stacked = len(notes) > 1 and figure_of(ax).get_size_inches()[0] < 4
    ax.set_title(METRICS[metric], pad=26 if stacked else 16)
    ax.text(0, 1.02, ("\n" if stacked else "; ").join(notes), transform=ax.transAxes, **_SUBTITLE)
    legend_below(ax, *_collapse_handles(record))
    return ax


def staged_layers(layers: Sequence[Layer]) -> np.ndarray:
    """Return which layers are in a stage; others, such as the image, are not part of the path."""
    return np.array([layer.stage is not None for layer in layers], bool)


def draw_layers(ax: Axes, staged: np.ndarray, values: np.ndarray, **style: Any) -> None:
    """Draw a line over layers; those without a stage are open markers, not part of the line."""
    x = np.arange(len(values))
    ax.plot(x, np.where(staged, values, np.nan), **style)
    ax.plot(x[~staged], values[~staged], **{**style, "mfc": "white", "ls": "none"})


def draw_band(
    ax: Axes, staged: np.ndarray, low: np.ndarray, high: np.ndarray, *, alpha: float
) -> None:
    """Shade the band between two curves over layers; those without a stage have error bars."""
    x = np.arange(len(low))
    bottom, top = (np.where(staged, ends, np.nan) for ends in (low, high))
    ax.fill_between(x, bottom, top, color=MEASURED, alpha=alpha, lw=0)
    ax.vlines(x[~staged], low[~staged], high[~staged], color=MEASURED, lw=1)


def _intervals(record: Record, metric: str) -> tuple[np.ndarray, np.ndarray]:
    """Return the ends of the metric's intervals at every layer."""
    if metric != "ncc_error":
        return interval_ends(layer.collapse.interval(metric) for layer in record.layers)
    low, high = interval_ends(layer.collapse.interval("ncc_accuracy") for layer in record.layers)
    return 1 - high, 1 - low


def _error_axis(ax: Axes, record: Record, metric: str, curves: list[np.ndarray]) -> str:
    """Set an axis of errors to percent from zero; return a note on the network's error."""
    top = np.nanmax(np.concatenate(curves), initial=0.02)
    error = 1 - number(record.accuracy)
    has_line = metric == "ncc_error" and bool(np.isfinite(error))
    if has_line:
        top = max(top, error)
        ax.axhline(error, **REFERENCE_LINE)
    ax.set_ylim(-0.04 * top, 1.08 * top)
    ax.yaxis.set_major_formatter(PercentFormatter(1.0, 0 if top > 0.05 else 1, " %"))
    return f"gray line: the network's own error, {100 * error:.3g} %" if has_line else ""


def _trend_label(record: Record, metric: str) -> str:
    """Return the number of increases and Kendall's τ, as in ``increases: 2, τ = −0.80``."""
    trend = record.trend(metric)
    tau = number(trend.kendall_tau)
    parts = [] if trend.violations is None else [f"increases: {trend.violations}"]
    if np.isfinite(tau):
        parts.append(f"τ = {tau:z.2f}".replace("-", "−"))
    return ", ".join(parts)


def measured_metric(record: Record, metric: str) -> np.ndarray:
    """Return the metric at every layer, or NaN if it is undefined."""
    return _values_of([layer.collapse for layer in record.layers], metric)


def predicted_metric(record: Record, model: str, metric: str) -> np.ndarray:
    """Return a model's metric at every layer, or NaN if the model does not predict it."""
    return _values_of([row.collapse for row in model_rows(record, model)], metric)


def _values_of(layers: Sequence[Collapse], metric: str) -> np.ndarray:
    if metric == "ncc_error":
        return 1 - numbers([layer.measure("ncc_accuracy") for layer in layers])
    return numbers([layer.measure(metric) for layer in layers])


def _collapse_handles(record: Record) -> tuple[list[Line2D], list[str]]:
    """Return the legend entries of the network and of the models that are drawn."""
    staged = staged_layers(record.layers)
    drawn = [key for key in models_in(record) if (in_order(record, key) & staged).any()]
    handles, names = model_handles(drawn)
    network = Line2D([], [], color=MEASURED, marker="o", ms=4)
    return [network, *handles], ["the network", *names]


_COLLAPSE_METRICS = ("nc1", "cdnv", "nc2_equinorm", "nc2_equiangle", "nc2_etf", "ncc_error")
_COLLAPSE_CAPTION = (
    "Progressive feedforward collapse: each metric over depth, from the input of the first block "
    "to the output of the last; 0 is complete collapse. Bands: intervals over samples. Open "
    "circles: layers outside the blocks, such as the input image and the classifier's input, which "
    "are not part of the trend. Kendall's τ is −1 if a metric decreases at every layer. Shading "
    "marks the feature spaces."
)


def collapse_plot(record: Record) -> Plot | None:
    layers = record.layers
    if not layers:
        return None
    models = models_in(record)
    panels = [
        partial(collapse, record, metric, label_layers=position >= 4)
        for position, metric in enumerate(_COLLAPSE_METRICS)
    ]

    legend = partial(_collapse_handles, record) if models else None

    def rows() -> list[Row]:
        predicted = {
            f"{model}.{metric}": predicted_metric(record, model, metric)
            for model in models
            for metric in _COLLAPSE_METRICS
        }
        return [
            {
                **layer.only("name", "stage", "width"),
                **layer.collapse.plain(),
                **{name: defined(values[i]) for name, values in predicted.items()},
            }
            for i, layer in enumerate(layers)
        ]

    predictions = (
        "Dashed and dotted: predictions of the models fitted to this network; on a logarithmic "
        "axis, predictions of zero are drawn at the lower edge."
        if models
        else ""
    )
    trends = {key: record.trend(key).monotone for key in _COLLAPSE_METRICS}
    if monotone := [key for key, falls in trends.items() if falls]:
        summary = f"never increasing: {', '.join(monotone)}."
    elif False in trends.values():
        summary = "each that is defined increases at some layer."
    else:
        summary = "their trends are undefined."
    return Plot(
        "collapse",
        "Collapse from layer to layer",
        " ".join(filter(None, (_COLLAPSE_CAPTION, predictions, not_drawn(record)))),
        f"Six collapse metrics over {len(layers)} layers; {summary}",
        lambda: page_figure(
            8.0, panels, legend, columns=2, loc="outside upper center", max_columns=3
        ),
        rows,
    )


# --- the law of data separation ------------------------------------------------------------------


@styled
def separation_law(record: Any, measure: str = "separation", ax: Axes | None = None) -> Axes:
    """Draw a measure of the classes' separation over depth, and fitted lines of constant rate.

    The law of data separation says that D = tr Σw Σb⁺ falls by the same factor at every layer, so
    that ln D is linear in depth. One line is fitted per stage.

    Parameters
    ----------
    measure : str
        A key of `LAWS`.

    Examples
    --------
    >>> import numpy as np
    >>> import wgeo
    >>> labels, noise = np.arange(60) % 3, np.random.default_rng(0).normal(size=(60, 4))
    >>> layers = [np.eye(3, 4)[labels] + 0.8**l * noise for l in range(4)]
    >>> law = wgeo.separation_law(wgeo.Trajectory.from_arrays(layers, labels))
    >>> ax = wgeo.plots.separation_law(law)
    >>> ax.get_title(loc="left")
    'Separation, tr Σw Σb⁺'
    """
    record = as_record(record, "SeparationLaw", "Collapse")
    require_choice(measure, LAWS)
    ax = new_axes(ax)
    segments = _stage_fits(record)
    if not segments:
        return nothing_to_show(ax, "This record has no stage of at least three layers.")
    names = list(dict.fromkeys(name for segment in segments for name in segment.layers))
    handles, labels, curves = [], [], []
    for i, segment in enumerate(segments):
        at = np.array([names.index(name) for name in segment.layers], float)
        values = numbers(getattr(segment, measure))
        style = segment_style(i)
        (dots,) = ax.plot(at, values, ls="none", ms=4, zorder=3, **style)
        curves.append(values)
        line = _line(segment, measure, values)
        ax.plot(at, line, color=style["color"], lw=1.1, ls=(0, (4, 3)), zorder=2)
        handles.append(dots)
        labels.append(_label(segment, measure))
    if measure != "discrimination":
        log_if_positive(ax, *curves)
    layer_axis(ax, names)
    ax.set_title(LAWS[measure])
    legend_below(ax, handles, labels)
    return ax


def _stage_fits(record: Record) -> list[SegmentLaw]:
    """Return the fits of single stages; fits over several feature spaces are not drawn."""
    segments = record.separation_law.segments
    return [segment for segment in segments if segment.stage is not None]


def _line(segment: SegmentLaw, measure: str, values: np.ndarray) -> np.ndarray:
    """Return the fitted line, which passes through the mean of the values; NaN if undefined."""
    x = np.arange(len(values)) - (len(values) - 1) / 2
    rate = number(segment.measure(_FITS[measure][0]))
    if measure == "discrimination":
        return values.mean() + rate * x
    if not (rate > 0 and (values > 0).all()):  # NaN compares false
        return np.full(len(values), np.nan)
    return np.exp(np.log(values).mean() + np.log(rate) * x)


def _label(segment: SegmentLaw, measure: str) -> str:
    """Return a legend entry, such as ``stage 1: factor 0.58, r = −0.999, curvature 0.11``."""
    name = f"stage {stage_number(segment.stage)}"
    rate = "slope" if measure == "discrimination" else "factor"
    values = zip((rate, "r =", "curvature"), map(segment.measure, _FITS[measure]), strict=False)
    parts = [f"{word} {value:.3g}" for word, value in values if value is not None]
    return f"{name}: {', '.join(parts)}".replace("-", "−") if parts else name


def separation_law_plot(record: Record) -> Plot | None:
    fits = _stage_fits(record)
    if not fits:
        return None

    def rows() -> list[Row]:
        return [
            {
                "stage": segment.stage,
                "layer": name,
                **{key: getattr(segment, key)[i] for key in LAWS},
                **{k: v for k, v in segment.json.items() if v is None or isinstance(v, float)},
            }
            for segment in fits
            for i, name in enumerate(segment.layers)
        ]

    return Plot(
        "separation-law",
        "Do the classes separate at a constant rate?",
        "Scatter within classes relative to the scatter between class means: tr Σw Σb⁺ above, and "
        "tr Σw / tr Σb in the middle. Dashed: a constant factor per layer, which is a straight "
        "line on a logarithmic axis, with curvature 0 and correlation r = −1. Along a geodesic "
        "with constant speed, these two curves are bent. Below: one minus the largest cosine "
        "between uncentered class means.",
        f"Separation of the classes over depth in {counted(len(fits), 'stage')}.",
        lambda: page_figure(8.4, [partial(separation_law, record, key) for key in LAWS]),
        rows,
    )
