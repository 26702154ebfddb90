"""Panels of the collapse metrics over depth, for the network and the models fitted to it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.lines import Line2D
from matplotlib.ticker import PercentFormatter

from ..storage.record import Collapse, Predicted, Record
from ..text import stage_number
from .sources import as_record
from .style import (
    COLORS,
    MEASURED,
    MUTED,
    REFERENCE_LINE,
    interval_ends,
    layer_axis,
    legend_below,
    log_if_positive,
    new_axes,
    nothing_to_show,
    number,
    numbers,
    require_choice,
    stage_bands,
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

MODELS: dict[str, tuple[str, str, str, Any]] = {
    "geodesic_model": ("geodesic model", COLORS[1], "s", (0, (5, 2))),
    "mufm": ("MUFM", COLORS[2], "^", (0, (1.5, 1.5))),
    "mufm_given": ("MUFM, network's classifier", COLORS[3], "D", (0, (4, 1.5, 1, 1.5))),
    "ufm": ("plain UFM", COLORS[6], "v", "none"),
}
"""Models of a record: name, color, marker, dashes."""

_TIME_TOLERANCE = 1e-9  # fitted times that differ by less are considered equal
ZERO_BELOW = 1e-12  # smaller predictions count as zero: rounding errors


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
    stage_bands(ax, [layer.stage for layer in layers])
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
    # Layers without a stage, such as the image, are drawn separately, not as part of the trend.
    unstaged = np.array([layer.stage is None for layer in layers])
    dots: dict[str, Any] = {"marker": "o", "ms": 2.4 if crowded else 4.0, "zorder": 4}
    _draw_intervals(ax, record, metric, unstaged)
    ax.plot(x, np.where(unstaged, np.nan, measured), color=MEASURED, **dots)
    ax.plot(x[unstaged], measured[unstaged], color=MEASURED, mfc="white", ls="none", **dots)
    notes = [trend_label(record, metric)]
    if metric in FRACTIONS:
        notes.append(_error_axis(ax, record, metric, curves))
    else:
        log_if_positive(ax, *curves)
    edge: dict[str, Any] = {"transform": ax.get_xaxis_transform(), "clip_on": False}
    edge["in_layout"] = False
    for at, style in zeros:  # a logarithmic axis has no 0: they are drawn at its edge
        ax.plot(at, 0 * at, **style, **(edge if ax.get_yscale() == "log" else {}))
    layer_axis(ax, [layer.name for layer in layers], labels=label_layers)
    notes = [note for note in notes if note]
    stacked = len(notes) > 1 and ax.get_figure(root=True).get_size_inches()[0] < 4  # type: ignore[union-attr]
    ax.set_title(METRICS[metric], pad=26 if stacked else 16)
    ax.text(0, 1.02, ("\n" if stacked else "; ").join(notes), transform=ax.transAxes, **_SUBTITLE)
    legend_below(ax, *model_handles(record))
    return ax


def _draw_intervals(ax: Axes, record: Record, metric: str, unstaged: np.ndarray) -> None:
    """Shade the metric's intervals; layers without a stage have error bars."""
    key = "ncc_accuracy" if metric == "ncc_error" else metric
    low, high = interval_ends(layer.collapse.interval(key) for layer in record.layers)
    if metric == "ncc_error":
        low, high = 1 - high, 1 - low
    x = np.arange(len(low))
    bottom, top = (np.where(unstaged, np.nan, ends) for ends in (low, high))
    ax.fill_between(x, bottom, top, color=MEASURED, alpha=0.2, lw=0)
    ax.vlines(x[unstaged], low[unstaged], high[unstaged], color=MEASURED, lw=1)


_SUBTITLE: dict[str, Any] = {"fontsize": 7.5, "color": MUTED, "ha": "left", "va": "bottom"}


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


def measured_metric(record: Record, metric: str) -> np.ndarray:
    """Return the metric at every layer, or NaN if it is undefined."""
    return _values_of([layer.collapse for layer in record.layers], metric)


def predicted_metric(record: Record, model: str, metric: str) -> np.ndarray:
    """Return a model's metric at every layer, or NaN if the model does not predict it."""
    return _values_of([row.collapse for row in model_rows(record, model)], metric)


def model_rows(record: Record, model: str) -> list[Predicted]:
    """Return a model's row for every layer, empty if the model does not predict the layer."""
    rows = {row.name: row for row in record.model(model).layers}
    return [rows.get(layer.name, Predicted.of({})) for layer in record.layers]


def in_order(record: Record, model: str) -> np.ndarray:
    """Return a mask of the layers at which a model is drawn.

    A layer's fitted time is the time at which the model's path is nearest to it. If these times
    decrease with depth in a stage, the network does not follow the model, which is then not drawn.
    """
    times = numbers([row.time for row in model_rows(record, model)])
    stages = [layer.stage for layer in record.layers]
    drawn = np.ones(len(stages), bool)
    for stage in {stage for stage in stages if stage is not None}:
        members = np.array([each == stage for each in stages])
        fitted = times[members][np.isfinite(times[members])]
        drawn[members] = not (np.diff(fitted) < -_TIME_TOLERANCE).any()
    return drawn


def not_drawn(record: Record) -> str:
    """Return a note for a caption on models that are not drawn in some stages, or an empty text."""
    stages = np.array([layer.stage for layer in record.layers])
    notes = []
    for key in models_in(record):
        missing = sorted(set(stages[~in_order(record, key)]))
        if missing:
            numbered = ", ".join(str(stage_number(stage)) for stage in missing)
            notes.append(f"{MODELS[key][0]} in stage{'s' * (len(missing) > 1)} {numbered}")
    if not notes:
        return ""
    return f"Not drawn, because the fitted times decrease with depth: {'; '.join(notes)}."


def split_by_stage(record: Record, values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return positions and values of a line over layers, with gaps between stages."""
    stages = [layer.stage for layer in record.layers]
    positions = np.arange(len(values), dtype=float)
    cuts = [
        i
        for i in range(1, len(stages))
        if stages[i] != stages[i - 1] and None not in (stages[i], stages[i - 1])
    ]
    return np.insert(positions, cuts, np.nan), np.insert(values, cuts, np.nan)


def _values_of(layers: Sequence[Collapse], metric: str) -> np.ndarray:
    if metric == "ncc_error":
        return 1 - numbers([layer.measure("ncc_accuracy") for layer in layers])
    return numbers([layer.measure(metric) for layer in layers])


def model_style(key: str) -> dict[str, Any]:
    _, color, marker, dashes = MODELS[key]
    line = {"color": color, "ls": dashes, "lw": 1.3}
    return line | {"marker": marker, "ms": 3.2, "mfc": "white", "mew": 0.9}


def models_in(record: Record) -> list[str]:
    """Return the keys of the models in a record."""
    return [key for key in MODELS if record.model(key).layers]


def trend_label(record: Record, metric: str) -> str:
    """Return the number of increases and Kendall's τ, as in ``increases: 2, τ = −0.80``."""
    trend = record.trend(metric)
    tau = number(trend.kendall_tau)
    parts = [] if trend.violations is None else [f"increases: {trend.violations}"]
    if np.isfinite(tau):
        parts.append(f"τ = {tau:z.2f}".replace("-", "−"))
    return ", ".join(parts)


def model_handles(record: Record) -> tuple[list[Line2D], list[str]]:
    """Return the legend entries of the network and of the models that are drawn."""
    staged = np.array([layer.stage is not None for layer in record.layers])
    drawn = [key for key in models_in(record) if (in_order(record, key) & staged).any()]
    network = Line2D([], [], color=MEASURED, marker="o", ms=4)
    handles = [network, *(Line2D([], [], **model_style(key)) for key in drawn)]
    return handles, ["the network", *(MODELS[key][0] for key in drawn)]
