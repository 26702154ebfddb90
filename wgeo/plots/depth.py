"""Panels of the collapse metrics over depth, for the network and the models fitted to it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.lines import Line2D
from matplotlib.ticker import PercentFormatter

from ..errors import ArgumentError
from ..text import stage_number
from .style import (
    COLORS,
    MEASURED,
    MUTED,
    REFERENCE,
    as_record,
    layer_axis,
    legend_below,
    log_if_positive,
    new_axes,
    nothing_to_show,
    number,
    numbers,
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
    "ufm": ("UFM: collapsed", COLORS[6], "v", "none"),
}
"""Models that a record may include: name, color, marker, dashes."""

_TIME_TOLERANCE = 1e-9  # fitted times that differ by less are considered equal
ZERO_BELOW = 1e-12  # smaller predictions count as zero, drawn at the edge of a logarithmic axis


@styled
def collapse(
    record: Any, metric: str = "nc1", ax: Axes | None = None, *, label_layers: bool = True
) -> Axes:
    """Draw a collapse metric over depth, with the predictions of the models.

    Parameters
    ----------
    metric : str
        A key of `METRICS`; ``ncc_error`` is 1 - ``ncc_accuracy``, shown with the network's own
        error if the record has its accuracy.
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
    if metric not in METRICS:
        raise ArgumentError(f"no collapse metric {metric!r}; choose from {', '.join(METRICS)}.")
    ax = new_axes(ax)
    layers = record.get("layers") or []
    if not layers:
        return nothing_to_show(ax, "This record has no layers.")
    x = np.arange(len(layers))
    measured = measured_metric(record, metric)
    stage_bands(ax, [layer.get("stage") for layer in layers])
    curves = [measured]  # those that the vertical axis must show
    crowded = len(layers) > 30
    for key in models_in(record):
        predicted = predicted_metric(record, key, metric)
        style = model_style(key) | ({"marker": ""} if crowded and key != "ufm" else {})
        is_zero = predicted < (0 if metric in FRACTIONS else ZERO_BELOW)  # a linear axis shows 0
        if is_zero.any():
            edge = {"transform": ax.get_xaxis_transform(), "clip_on": False, "in_layout": False}
            ax.plot(x[is_zero], np.zeros(is_zero.sum()), **(style | edge | {"ls": "none"}))
        predicted = np.where(in_order(record, key) & ~is_zero, predicted, np.nan)
        if np.isfinite(predicted).any():
            ax.plot(*split_by_stage(record, predicted), **style)
            curves.append(predicted)
    # Layers without a stage, such as the image, are drawn separately, not as part of the trend.
    unstaged = np.array([layer.get("stage") is None for layer in layers])
    dots: dict[str, Any] = {"marker": "o", "ms": 2.4 if crowded else 4.0, "zorder": 4}
    ax.plot(x, np.where(unstaged, np.nan, measured), color=MEASURED, **dots)
    ax.plot(x[unstaged], measured[unstaged], color=MEASURED, mfc="white", ls="none", **dots)
    notes = [trend_label(record, metric)]
    if metric in FRACTIONS:
        notes.append(_error_axis(ax, record, metric, curves))
    else:
        log_if_positive(ax, *curves)
    layer_axis(ax, [layer.get("name") for layer in layers], labels=label_layers)
    notes = [note for note in notes if note]
    stacked = len(notes) > 1 and ax.get_figure(root=True).get_size_inches()[0] < 4  # type: ignore[union-attr]
    ax.set_title(METRICS[metric], pad=26 if stacked else 16)
    ax.text(0, 1.02, ("\n" if stacked else "; ").join(notes), transform=ax.transAxes, **_SUBTITLE)
    handles, names = model_handles(record)
    legend_below(ax, handles, names)
    return ax


_SUBTITLE: dict[str, Any] = {"fontsize": 7.5, "color": MUTED, "ha": "left", "va": "bottom"}


def _error_axis(ax: Axes, record: Mapping[str, Any], metric: str, curves: list[np.ndarray]) -> str:
    """Make an axis of errors start at zero, in percent; return a note on the network's error."""
    top = np.nanmax(np.concatenate(curves), initial=0.02)
    error = 1 - number(record.get("accuracy"))
    has_line = metric == "ncc_error" and bool(np.isfinite(error))
    if has_line:
        top = max(top, error)
        ax.axhline(error, color=REFERENCE, lw=0.9, ls=(0, (4, 3)), zorder=1)
    ax.set_ylim(-0.04 * top, 1.08 * top)
    ax.yaxis.set_major_formatter(PercentFormatter(1.0, 0 if top > 0.05 else 1, " %"))
    return f"gray line: the network's own error, {100 * error:.3g} %" if has_line else ""


def measured_metric(record: Mapping[str, Any], metric: str) -> np.ndarray:
    """Return the metric at every layer, or NaN if it is undefined."""
    return _values_of([layer.get("collapse") or {} for layer in record.get("layers") or []], metric)


def predicted_metric(record: Mapping[str, Any], model: str, metric: str) -> np.ndarray:
    """Return a model's metric at every layer of the record, or NaN if it predicts nothing there.

    A model's row for a layer contains the metrics under ``collapse`` or directly.
    """
    rows = model_rows(record, model)
    return _values_of([row.get("collapse") or row for row in rows], metric)


def model_rows(record: Mapping[str, Any], model: str) -> list[Mapping[str, Any]]:
    """Return a model's row for every layer of the record, empty if it predicts nothing there."""
    rows = {row.get("name"): row for row in (record.get(model) or {}).get("layers") or []}
    return [rows.get(layer.get("name"), {}) for layer in record.get("layers") or []]


def in_order(record: Mapping[str, Any], model: str) -> np.ndarray:
    """Return a mask of the layers to draw: all but those in stages whose times decrease with depth.

    The fitted time of a layer is the time at which the model's path is nearest to it. If these
    times decrease anywhere in a stage, the network does not follow the model's path there, and the
    stage is not drawn.
    """
    times = numbers([row.get("time") for row in model_rows(record, model)])
    stages = [layer.get("stage") for layer in record.get("layers") or []]
    drawn = np.ones(len(stages), bool)
    for stage in {stage for stage in stages if stage is not None}:
        members = np.array([each == stage for each in stages])
        fitted = times[members][np.isfinite(times[members])]
        drawn[members] = not (np.diff(fitted) < -_TIME_TOLERANCE).any()
    return drawn


def not_drawn(record: Mapping[str, Any]) -> str:
    """Return a note for a caption on models that are not drawn in some stages, or ""."""
    stages = np.array([layer.get("stage") for layer in record.get("layers") or []])
    notes = []
    for key in models_in(record):
        missing = sorted(set(stages[~in_order(record, key)]))
        if missing:
            numbered = ", ".join(str(stage_number(stage)) for stage in missing)
            notes.append(f"{MODELS[key][0]} in stage{'s' * (len(missing) > 1)} {numbered}")
    if not notes:
        return ""
    return f"Not drawn, because the fitted times decrease with depth: {'; '.join(notes)}."


def split_by_stage(record: Mapping[str, Any], values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return positions and values of a line over layers, with gaps between stages."""
    stages = [layer.get("stage") for layer in record.get("layers") or []]
    positions = np.arange(len(values), dtype=float)
    cuts = [
        i
        for i in range(1, len(stages))
        if stages[i] != stages[i - 1] and None not in (stages[i], stages[i - 1])
    ]
    return np.insert(positions, cuts, np.nan), np.insert(values, cuts, np.nan)


def _values_of(values: Sequence[Mapping[str, Any]], metric: str) -> np.ndarray:
    if metric == "ncc_error":
        return 1 - numbers([v.get("ncc_accuracy") for v in values])
    return numbers([v.get(metric) for v in values])


def model_style(key: str) -> dict[str, Any]:
    """Return the color, line and marker of a model."""
    _, color, marker, dashes = MODELS[key]
    line = {"color": color, "ls": dashes, "lw": 1.3}
    return line | {"marker": marker, "ms": 3.2, "mfc": "white", "mew": 0.9}


def models_in(record: Mapping[str, Any]) -> list[str]:
    """Return the keys of `MODELS` for which the record has predictions by layer."""
    return [key for key in MODELS if (record.get(key) or {}).get("layers")]


def trend_label(record: Mapping[str, Any], metric: str) -> str:
    """Return text such as ``rises: 2, τ = −0.80``.

    These are the number of layers at which the metric increases, and Kendall's τ with depth.
    """
    trend = (record.get("progress") or {}).get(metric)
    if not isinstance(trend, Mapping):
        return ""
    rises, tau = trend.get("violations"), number(trend.get("kendall_tau"))
    parts = [f"rises: {rises}"] if isinstance(rises, int) else []
    if np.isfinite(tau):
        parts.append(f"τ = {tau:.2f}".replace("-", "−"))
    return ", ".join(parts)


def model_handles(record: Mapping[str, Any]) -> tuple[list[Line2D], list[str]]:
    """Return the legend entries of the network and of the models that are drawn in some stage."""
    handles, names = [Line2D([], [], color=MEASURED, marker="o", ms=4)], ["the network"]
    staged = np.array([layer.get("stage") is not None for layer in record.get("layers") or []])
    for key in models_in(record):
        if not (in_order(record, key) & staged).any():
            continue
        handles.append(Line2D([], [], **model_style(key)))
        names.append(MODELS[key][0])
    return handles, names
