"""Comparison of several analyses: over the epochs of one training run, or across networks."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.lines import Line2D
from matplotlib.ticker import FixedLocator, NullLocator

from .._deprecated import renamed_parameter
from ..storage.record import AnalysisRow, Measured, Segment, SeriesRecord
from .depth import METRICS, measured_metric, staged_layers
from .paths import RATIOS, draw_curve, is_evidence, orthogonal_ratio
from .sources import Plot, Row, as_series, page_figure
from .style import (
    MEASURED,
    REFERENCE_LINE,
    interval_ends,
    legend_below,
    log_if_positive,
    new_axes,
    nothing_to_show,
    number,
    numbers,
    require_choice,
    segment_name,
    segment_style,
    short,
    styled,
    thinned,
)

OVER: dict[str, str] = {
    **RATIOS,
    "length_ratio_centred": "W2 length ratio, centered",
    "length_over_runs_centred": "W2 length over k groups of blocks, centered",
    "corr_score": "correlation score, end to end",
    "ot_score": "OT score, end to end",
}
"""Measures of a segment that `over` draws, and their labels."""
_SCORES = ("corr_score", "ot_score")
_TICK_GAP = 0.07  # smallest distance of two labeled epochs, as a fraction of the axis

ENDS: dict[str, str] = {
    "accuracy": "Accuracy",
    "nc1": "NC1 at the last layer",
    "nc2_etf": "NC2: distance to simplex ETF, last layer",
    "tau": "Kendall's τ of NC1 over depth",
}
"""Measures of a whole network that `over` draws, and their labels."""


@renamed_parameter("figure", "measure")
@styled
def over(series: Any, measure: str = "length_ratio", ax: Axes | None = None) -> Axes:
    """Draw a measure of every analysis, over the epochs of training or for every network.

    Each segment has its own color and marker. Bars are 95 % intervals. The marker of a score is
    hollow if the score is not evidence of an optimal map. Epochs are on a logarithmic axis.

    ``length_over_runs_centred`` compares networks of different depth: it is the length ratio of the
    path through k + 1 of the segment's layers, for the largest k available in all networks.

    Parameters
    ----------
    series : dict or Series
    measure : str
        A key of `OVER` (one line per segment) or of `ENDS` (one line).

    Examples
    --------
    >>> import numpy as np
    >>> import wgeo
    >>> x = np.random.default_rng(0).normal(size=(8, 3))
    >>> traj = wgeo.Trajectory.from_arrays([x, 2 * x, 3 * x], np.arange(8) % 2)
    >>> record = wgeo.analysis.analyze_trajectory(traj, bootstrap=0, mufm=False).record
    >>> series = wgeo.analysis.Series.of({"first": record, "second": record})
    >>> ax = wgeo.plots.over(series, "length_ratio")
    >>> [label.get_text() for label in ax.get_xticklabels()], ax.get_title(loc="left")
    (['first', 'second'], 'W2 length ratio')
    """
    series = as_series(series)
    require_choice(measure, {**OVER, **ENDS})
    ax = new_axes(ax)
    rows = series.analyses
    connected = series.axis == "epoch"
    at = numbers([row.provenance.epoch for row in rows]) if connected else np.arange(len(rows))
    if measure in ENDS:
        values = numbers([_network_value(row, measure) for row in rows])
        drawn = [values]
        ax.plot(at, values, color=MEASURED, marker="o", ls="-" if connected else "none", ms=4)
    else:
        count = segment_count(series)
        if not count:
            return nothing_to_show(ax, "These analyses have no segments.")
        drawn = []
        by_segment = [[_measured(row, i, measure, rows) for row in rows] for i in range(count)]
        if not any(value is not None for values in by_segment for value, _, _ in values):
            return nothing_to_show(ax, f"These analyses have no {OVER[measure]}.")
        for i, triples in enumerate(by_segment):
            values = numbers([value for value, _, _ in triples])
            bars = interval_ends(interval for _, interval, _ in triples)
            solid = np.array([evidence for _, _, evidence in triples], bool)
            # Segments are drawn next to each other if no line connects their values.
            shift = 0.0 if connected or count == 1 else np.linspace(-0.16, 0.16, count)[i]
            draw_curve(ax, at + shift, values, bars, solid, segment_style(i), connected)
            drawn += [values, *bars]
        ax.axhline(1.0, **REFERENCE_LINE)
        legend_below(ax, *segments_in(series))
    _axis(ax, series, at)
    if measure not in ("accuracy", "tau", *_SCORES):
        log_if_positive(ax, *drawn)
    ax.set_title({**OVER, **ENDS}[measure])
    if measure == "length_over_runs_centred":
        ax.set_ylabel(f"k = {', '.join(map(str, runs_in(series)))} groups")
    return ax


def common_runs(rows: Sequence[AnalysisRow], index: int) -> int | None:
    """Return the largest k for which every analysis has the segment's length ratio over k runs.

    A run is a group of consecutive blocks.
    """
    runs = [set(_segment(row, index).centred.length_over_runs) for row in rows]
    return max(set.intersection(*runs), default=None) if runs else None


def runs_in(series: SeriesRecord) -> list[int]:
    """Return the distinct numbers k of runs (`common_runs`) at which segments are compared."""
    runs = [common_runs(series.analyses, i) for i in range(segment_count(series))]
    return sorted({k for k in runs if k is not None})


def segment_count(series: SeriesRecord) -> int:
    return max((len(row.segments) for row in series.analyses), default=0)


def _segment(row: AnalysisRow, index: int) -> Segment:
    return row.segments[index] if index < len(row.segments) else Segment.of({})


def _measured(
    row: AnalysisRow, index: int, measure: str, rows: Sequence[AnalysisRow]
) -> tuple[Any, Any, bool]:
    """Return a segment's value, its interval, and whether a score is evidence."""
    segment = _segment(row, index)
    centered = segment.centred
    if measure == "length_over_runs_centred":
        k = common_runs(rows, index)
        return None if k is None else centered.length_over_runs[k], None, True
    source: Measured = centered if "centred" in measure else segment
    key = measure.removesuffix("_centred")
    return (
        source.measure(key),
        source.interval(key),
        measure not in _SCORES or is_evidence(segment, measure),
    )


def _network_value(row: AnalysisRow, measure: str) -> Any:
    if measure == "accuracy":
        return row.accuracy
    if measure == "tau":
        return row.trend("nc1").kendall_tau
    return row.last_layer.measure(measure)


def name_analyses(ax: Axes, series: SeriesRecord, at: Any) -> None:
    """Label positions on the x-axis with the analyses' epochs, or with their names."""
    rows = series.analyses
    if series.axis == "epoch":
        names = [str(row.provenance.epoch) for row in rows]
        upright = sum(map(len, names)) <= 24
    else:
        names = [short(row.name, 18) for row in rows]
        upright = len(names) <= 4
    ax.set_xticks(at, names, rotation=0 if upright else 90)


def _axis(ax: Axes, series: SeriesRecord, at: np.ndarray) -> None:
    if series.axis != "epoch":
        name_analyses(ax, series, at)
        ax.set_xlim(-0.5, len(at) - 0.5)
        return
    ax.set_xscale("symlog", base=2, linthresh=1.0, linscale=0.6)
    ax.xaxis.set_minor_locator(NullLocator())
    ax.xaxis.set_major_formatter(lambda epoch, _: f"{epoch:g}")
    ax.set_xlim(min(0.0, at.min()) - 0.15, at.max() * 1.12)
    ax.xaxis.set_major_locator(FixedLocator(_apart(at, ax)))
    ax.set_xlabel("epoch")


def _apart(at: np.ndarray, ax: Axes) -> list[float]:
    """Return epochs whose labels do not overlap, including the last epoch."""
    transform = ax.xaxis.get_transform().transform
    places, gap = transform(at), _TICK_GAP * np.ptp(transform(np.array(ax.get_xlim())))
    kept: list[int] = []
    for k in np.argsort(places)[::-1]:
        if not kept or places[kept[-1]] - places[k] >= gap:
            kept.append(int(k))
    return [float(at[k]) for k in kept]


@styled
def profiles(series: Any, metric: str = "nc1", ax: Axes | None = None) -> Axes:
    """Draw a collapse metric over depth, one line per analysis; later epochs are darker.

    Depth is scaled to the same axis for all networks: 0 is the input of the first block, 1 the
    output of the last.

    Examples
    --------
    >>> import numpy as np
    >>> import wgeo
    >>> x = np.random.default_rng(0).normal(size=(8, 3))
    >>> traj = wgeo.Trajectory.from_arrays([x, 2 * x, 3 * x], np.arange(8) % 2)
    >>> record = wgeo.analysis.analyze_trajectory(traj, bootstrap=0, mufm=False).record
    >>> series = wgeo.analysis.Series.of({"first": record, "second": record})
    >>> ax = wgeo.plots.profiles(series, "nc1")
    >>> ax.get_title(loc="left"), ax.get_xlabel()
    ('NC1: within-class variability', 'depth (0: before the first block, 1: after the last)')
    """
    series = as_series(series)
    require_choice(metric, METRICS, "collapse metric")
    ax = new_axes(ax)
    rows = series.analyses
    drawn = []
    for row, style in zip(rows, profile_styles(series), strict=True):
        values = measured_metric(row, metric)[staged_layers(row.layers)]
        if len(values):
            ax.plot(np.linspace(0, 1, len(values)), values, ms=2.6, **style)
            drawn.append(values)
    if not drawn:
        return nothing_to_show(ax, "These analyses have no layers.")
    log_if_positive(ax, *drawn)
    ax.set_xlim(-0.02, 1.02)
    ax.set_xlabel("depth (0: before the first block, 1: after the last)")
    ax.set_title(METRICS[metric])
    legend_below(ax, *series_handles(series))
    return ax


def profile_styles(series: SeriesRecord) -> list[dict[str, Any]]:
    """Return a line style for each analysis: a sequence of shades for epochs, else colors."""
    count = len(series.analyses)
    if series.axis == "epoch":
        shades = mpl.colormaps["viridis_r"](np.linspace(0.08, 1.0, count))
        return [{"color": tuple(shade), "marker": "o", "lw": 1.2} for shade in shades]
    return [{**segment_style(i), "lw": 1.2} for i in range(count)]


def series_handles(series: SeriesRecord) -> tuple[list[Line2D], list[str]]:
    """Return the legend entries of `profiles`, or a selection of them if there are many."""
    rows, styles = series.analyses, profile_styles(series)
    by_epoch = series.axis == "epoch"
    chosen = thinned(len(rows), 8 if by_epoch else 12)
    names = [f"epoch {rows[i].epoch}" if by_epoch else short(rows[i].name, 26) for i in chosen]
    return [Line2D([], [], ms=3.5, **styles[i]) for i in chosen], names


def segments_in(series: SeriesRecord) -> tuple[list[Line2D], list[str]]:
    """Return the legend entries of `over`, one per segment.

    A segment is named by its layers, or by its number if analyses differ in the layers' names.
    """
    count = segment_count(series)
    handles = [Line2D([], [], ms=4, lw=1.1, **segment_style(i)) for i in range(count)]
    return handles, [_common_name(series.analyses, i) for i in range(count)]


def _common_name(rows: Sequence[AnalysisRow], index: int) -> str:
    segments = [row.segments[index] for row in rows if index < len(row.segments)]
    names = {segment_name(segment.layers, index) for segment in segments}
    return names.pop() if len(names) == 1 else f"segment {index + 1} of each network"


def series_rows(series: Any) -> list[Row]:
    """Return one row per analysis and segment: the numbers that `over` draws."""
    series = as_series(series)
    rows = []
    for analysis in series.analyses:
        whole = {key: _network_value(analysis, key) for key in ENDS}
        whole = {k: None if np.isnan(number(v)) else v for k, v in whole.items()}
        for i, segment in enumerate(analysis.segments or [Segment.of({})]):
            row: dict[str, Any] = {
                "name": analysis.name,
                "epoch": analysis.provenance.epoch,
                "segment": segment_name(segment.layers, i),
            }
            for key in OVER:
                value, interval, _ = _measured(analysis, i, key, series.analyses)
                row[key] = value
                row[f"{key}_low"], row[f"{key}_high"] = interval or (None, None)
            row["runs"] = common_runs(series.analyses, i)
            row["resolution"] = segment.resolution
            row["sqrt_moving_blocks"] = orthogonal_ratio(segment)
            row["highest_null"] = segment.highest_null
            row["power"] = segment.power
            rows.append({**row, **whole})
    return rows


_PANELS = (
    *("length_ratio_centred", "length_over_runs_centred", "length_ratio", "line_shape_ratio"),
    *("corr_score", "ot_score", "nc1", "accuracy"),
)
_PROFILES = ("nc1", "ncc_error", "nc2_etf", "effective_rank")


def over_plot(series: SeriesRecord) -> Plot:
    what, epochs = "across networks", ""
    if series.axis == "epoch":
        # Epoch 0 is known to be the initialization only in wgeo's own checkpoints.
        own = any(row.provenance.is_initialization for row in series.analyses)
        epochs = f" Epochs on a logarithmic axis{'; 0 is the initialization' if own else ''}."
        what = "over training"
    panels = [partial(over, series, measure) for measure in _PANELS]
    legend = partial(segments_in, series)
    return Plot(
        "over",
        f"Straightness and collapse {what}",
        "Straightness of every segment with 95 % intervals (1 is a constant-speed geodesic; "
        "hollow scores are not evidence of an optimal map), collapse at the last layer, and "
        "accuracy. Centered: with each layer's mean subtracted. A path is longer if more of "
        "its layers are included; the length over k groups of consecutive blocks is "
        f"therefore measured at k + 1 layers of the segment in every analysis.{epochs}",
        f"Straightness, NC1 and accuracy of {len(series.analyses)} analyses, {what}.",
        lambda: page_figure(9.4, panels, legend, columns=2, max_columns=2),
        lambda: series_rows(series),
    )


def profiles_plot(series: SeriesRecord) -> Plot:
    by_epoch = series.axis == "epoch"
    panels = [partial(profiles, series, metric) for metric in _PROFILES]
    legend = partial(series_handles, series)

    def rows() -> list[Row]:
        return [
            {
                "name": row.name,
                "epoch": row.provenance.epoch,
                "layer": layer.name,
                **{k: v for k, v in layer.collapse.json.items() if isinstance(v, int | float)},
            }
            for row in series.analyses
            for layer in row.layers
        ]

    return Plot(
        "profiles",
        f"Collapse over depth, {'over training' if by_epoch else 'across networks'}",
        f"Each line is one analysis{'; later epochs are darker' if by_epoch else ''}.",
        f"Collapse metrics over depth of {len(series.analyses)} analyses.",
        lambda: page_figure(5.6, panels, legend, columns=2, max_columns=4),
        rows,
    )
