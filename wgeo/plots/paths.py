"""Panels of the path through a segment: its straightness, and the effect of the sample size."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from functools import partial
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FixedLocator, MaxNLocator, NullLocator

from .._deprecated import renamed_parameter
from ..results import defined
from ..storage.record import Measured, Record, Segment
from ..text import counted
from ..thresholds import LOW_RESOLUTION
from .sources import Plot, Row, as_record, page_figure
from .style import (
    GRID,
    REFERENCE_LINE,
    has_resolution,
    interval_ends,
    legend_below,
    legend_of_figure,
    log_if_positive,
    new_axes,
    new_figure,
    nothing_to_show,
    number,
    numbers,
    range_text,
    require_choice,
    segment_name,
    segment_style,
    styled,
)

RATIOS: dict[str, str] = {
    "length_ratio": "W2 length ratio",
    "line_shape_ratio": "line-shape ratio",
    "line_shape_score": "line-shape score",
    "action_ratio": "action ratio",
}
"""Straightness ratios: at least 1, and 1 for a constant-speed geodesic."""

SCORES: dict[str, str] = {
    "corr_score": "correlation",
    "ot_score_centred": "OT, centered",
    "ot_score": "OT",
}
"""Scores of the map from a segment's first layer to its last: at most 1, and 1 if optimal."""

CURVES: dict[str, str] = {
    "distance": "W2 end to end (feature units)",
    "ot_score": "OT score, end to end",
    "resolution": "Resolution",
}
"""Measures over the number of samples, and their labels."""


@styled
def straightness(
    record: Any, ax: Axes | None = None, *, measures: Mapping[str, str] = RATIOS
) -> Axes:
    """Draw straightness measures of every segment with their intervals; the ideal value is 1.

    Ratios of centered features have solid markers, and those of the original features hollow ones.
    The tick at the length ratio marks the ratio that orthogonal steps of the same sizes would have.
    The marker of a score is hollow if the score is not evidence of an optimal map. The cross at the
    correlation score marks the highest upper bound of the scores of null maps.

    Parameters
    ----------
    measures : mapping of str to str
        Labels by key in the record; `RATIOS` (at least 1) or `SCORES` (at most 1).

    Examples
    --------
    >>> import numpy as np
    >>> import wgeo
    >>> x = np.random.default_rng(0).normal(size=(20, 3))
    >>> traj = wgeo.Trajectory.from_arrays([x, 2 * x, 3 * x], np.arange(20) % 2)
    >>> ax = wgeo.plots.straightness(wgeo.straightness(traj, bootstrap=0))
    >>> [label.get_text() for label in ax.get_yticklabels()]
    ['W2 length ratio', 'line-shape ratio', 'line-shape score', 'action ratio']
    """
    record = as_record(record, "Straightness", "SegmentStraightness")
    ax = new_axes(ax, 5.5, 2.8)
    segments = record.segments
    if not segments:
        return nothing_to_show(ax, "This record has no segments.")
    scores = SCORES.keys() >= measures.keys()
    if scores:  # records of schema 1 have only the OT score
        measures = {k: v for k, v in measures.items() if any(k in s.json for s in segments)}
    rows = np.arange(len(measures))
    offsets = np.linspace(-0.3, 0.3, len(segments)) if len(segments) > 1 else np.zeros(1)
    drawn = [np.ones(1)]
    for i, (segment, offset) in enumerate(zip(segments, offsets, strict=True)):
        at, style = rows + offset, segment_style(i)
        if scores:
            solid = np.array([is_evidence(segment, key) for key in measures], bool)
            drawn += _row_of_marks(ax, segment, measures, at, style, solid)
            marks = {"corr_score": segment.highest_null}
            mark: dict[str, Any] = {"marker": "x", "ms": 4.5, "mew": 1.1}
        else:
            gap = 0.3 / (2 * max(len(segments), 2))
            solid = np.ones(len(rows), bool)
            drawn += _row_of_marks(ax, segment, measures, at + gap, style, ~solid)
            if segment.centred:
                drawn += _row_of_marks(ax, segment.centred, measures, at - gap, style, solid)
            marks = {"length_ratio": orthogonal_ratio(segment)}
            mark = {"marker": "|", "ms": 11, "mew": 1.4}
        drawn.append(numbers([marks.get(key) for key in measures]))
        ax.plot(drawn[-1], at, ls="none", color=style["color"], **mark)
    ax.axvline(1.0, **REFERENCE_LINE)
    ax.set_yticks(rows, list(measures.values()))
    ax.set_ylim(len(rows) - 0.5, -0.5)
    ax.tick_params(axis="y", length=0)
    for row in rows[1:]:
        ax.axhline(row - 0.5, color=GRID, lw=0.6, zorder=0)
    ax.xaxis.set_major_locator(MaxNLocator(3 if scores else 5, steps=[1, 2, 5, 10]))
    log_if_positive(ax, *drawn, axis="x", span=6.0)
    legend_below(ax, *segment_handles(record))
    return ax


def _row_of_marks(
    ax: Axes,
    source: Measured,
    measures: Iterable[str],
    at: np.ndarray,
    style: Mapping[str, Any],
    solid: np.ndarray,
) -> list[np.ndarray]:
    """Draw the marker and interval of every measure; return values and ends of intervals."""
    values = numbers([source.measure(key) for key in measures])
    low, high = interval_ends(source.interval(key) for key in measures)
    ax.hlines(at, low, high, color=style["color"], lw=1.6, alpha=0.75)
    marks: dict[str, Any] = {"ls": "none", "ms": 5, **style}
    ax.plot(values[solid], at[solid], mec="white", mew=0.5, **marks)
    ax.plot(values[~solid], at[~solid], mfc="white", mew=1.1, **marks)
    # Undefined values are named on the side of 1 on which the values of these measures lie.
    side, shift = ("right", -4) if any(key in SCORES for key in measures) else ("left", 4)
    text: dict[str, Any] = {"va": "center", "ha": side, "fontsize": 7, "color": style["color"]}
    for row in at[~np.isfinite(values)]:
        ax.annotate("undefined", (1.0, row), (shift, 0), textcoords="offset points", **text)
    return [values, low, high]


def is_evidence(segment: Segment, key: str) -> bool:
    """Return whether a score of 1 would be evidence of an optimal map."""
    return bool(segment.power) if key == "corr_score" else has_resolution(segment)


def orthogonal_ratio(segment: Segment) -> float | None:
    """Return the length ratio of orthogonal steps, on the centered path if that is recorded."""
    centered = segment.centred.sqrt_moving_blocks
    return segment.sqrt_moving_blocks if centered is None else centered


@styled
def interpolation_gap(record: Any, ax: Axes | None = None) -> Axes:
    """Draw each layer's distance from the geodesic between its segment's first and last layer.

    The geodesic is the displacement interpolation of these two layers. The distance is divided by
    W2 between them. A layer's position on the horizontal axis is its fraction of the path's length.

    Examples
    --------
    Halfway along two equal steps at a right angle, the gap is half of the distance:

    >>> import numpy as np
    >>> import wgeo
    >>> x = np.random.default_rng(0).normal(size=(20, 2))
    >>> traj = wgeo.Trajectory.from_arrays([x, x + [1, 0], x + [1, 1]], np.arange(20) % 2)
    >>> ax = wgeo.plots.interpolation_gap(wgeo.straightness(traj, bootstrap=0))
    >>> np.abs(ax.lines[0].get_ydata()).round(6).tolist()
    [0.0, 0.5, 0.0]
    """
    record = as_record(record, "Straightness", "SegmentStraightness")
    ax = new_axes(ax, 5.5, 2.6)
    segments = record.segments
    if not any(segment.interpolation_gap for segment in segments):
        return nothing_to_show(ax, "This record has no interpolation gaps.")
    for i, segment in enumerate(segments):
        t, gap = gap_positions(segment)
        ax.plot(t, gap, ms=4, **segment_style(i))
    ax.axhline(0.0, **REFERENCE_LINE)
    ax.set_xlim(-0.03, 1.03)
    ax.set_ylim(bottom=min(0.0, ax.get_ylim()[0]))
    ax.set_xlabel("fraction of the length (0: first layer, 1: last)")
    ax.set_ylabel("interpolation gap")
    legend_below(ax, *segment_handles(record))
    return ax


def gap_positions(segment: Segment) -> tuple[np.ndarray, np.ndarray]:
    """Return each layer's position on its segment, in [0, 1], and its interpolation gap."""
    gap = numbers(segment.interpolation_gap)
    time = numbers(segment.interpolation_time)
    return (time if len(time) == len(gap) else np.linspace(0, 1, len(gap))), gap


@renamed_parameter("figure", "measure")
@styled
def sample_sizes(record: Any, measure: str = "ot_score", ax: Axes | None = None) -> Axes:
    """Draw a measure of every segment over the number of samples.

    The measure compares the segment's first and last layer. If a curve still changes at its last
    point, the value depends on the number of samples. Bars show the standard deviation over random
    subsets. The marker of an OT score is hollow if the resolution is below 1/2 or undefined.

    Parameters
    ----------
    measure : str
        A key of `CURVES`.

    Examples
    --------
    >>> import numpy as np
    >>> import wgeo
    >>> x = np.random.default_rng(0).normal(size=(64, 2))
    >>> ax = wgeo.plots.sample_sizes(wgeo.bias_curve(x, 2 * x), measure="distance")
    >>> ax.get_xlabel()
    'samples'
    """
    record = as_record(record, "BiasCurve")
    require_choice(measure, CURVES)
    ax = new_axes(ax)
    segments = record.segments
    if not any(segment.sample_sizes.points for segment in segments):
        return nothing_to_show(ax, "This record has no curve over sample sizes.")
    sizes: set[float] = set()
    curves = []
    for i, segment in enumerate(segments):
        points = segment.sample_sizes.points
        at = numbers([point.size for point in points])
        values = numbers([point.measure(measure) for point in points])
        spread = np.nan_to_num(numbers([point.measure(f"{measure}_deviation") for point in points]))
        solid = np.ones(len(at), bool)
        if measure == "ot_score":
            solid = numbers([point.measure("resolution") for point in points]) >= LOW_RESOLUTION
        draw_curve(ax, at, values, (values - spread, values + spread), solid, segment_style(i))
        sizes |= set(at)
        curves.append(values)
    ax.set_xscale("log", base=2)
    ax.xaxis.set_major_locator(FixedLocator(sorted(sizes)))
    ax.xaxis.set_minor_locator(NullLocator())
    ax.xaxis.set_major_formatter(lambda n, _: f"{n:,.0f}")
    ax.set_xlabel("samples")
    if measure == "resolution":
        ax.axhline(LOW_RESOLUTION, **REFERENCE_LINE)
        log_if_positive(ax, *curves, np.array([LOW_RESOLUTION]))
    ax.set_title(CURVES[measure])
    legend_below(ax, *segment_handles(record))
    return ax


def draw_curve(
    ax: Axes,
    at: np.ndarray,
    values: np.ndarray,
    bars: tuple[np.ndarray, np.ndarray],
    solid: np.ndarray,
    style: Mapping[str, Any],
    line: bool = True,
) -> None:
    """Draw the curve of a segment, with bars (low ends, high ends) and solid or hollow markers."""
    color = style["color"]
    ax.vlines(at, bars[0], bars[1], color=color, lw=1.2, alpha=0.7)
    ax.plot(at, values, ls="-" if line else "none", lw=1.1, color=color, zorder=2)
    for mask, face in ((solid, color), (~solid, "white")):
        ax.plot(at[mask], values[mask], ls="none", ms=4, mfc=face, mew=0.9, zorder=3, **style)


def segment_handles(record: Record) -> tuple[list[Line2D], list[str]]:
    segments = record.segments
    handles = [Line2D([], [], ms=5, lw=1.4, **segment_style(i)) for i in range(len(segments))]
    return handles, [segment_name(segment.layers, i) for i, segment in enumerate(segments)]


# --- figures -------------------------------------------------------------------------------------


def straightness_plot(record: Record) -> Plot | None:
    segments = record.segments
    if not segments:
        return None

    @styled
    def draw() -> Figure:
        handles, names = segment_handles(record)
        figure = new_figure(7.2, 5.3 + 0.28 * len(names))
        panels = figure.subplot_mosaic(
            [["ratios", "scores"], ["gap", "gap"]],
            height_ratios=[1.5, 1],
            width_ratios=[1.9, 1],
        )
        ratios, scores = panels["ratios"], panels["scores"]
        straightness(record, ratios).set_title("Ratios: 1 is a constant-speed geodesic")
        straightness(record, scores, measures=SCORES).set_title("Scores, end to end")
        interpolation_gap(record, panels["gap"]).set_title("Distance from the geodesic")
        legend_of_figure(figure, handles, names, max_columns=2)
        return figure

    return Plot(
        "straightness",
        "Straightness of the path",
        "Straightness of every segment, with intervals, compared with the ideal value 1 "
        "(dashed). Left: ratios, of features with each layer's mean subtracted (solid) and of the "
        "original features (hollow). The tick at the length ratio marks √B, with B the effective "
        "number of moving blocks: the ratio that steps of the same lengths would have at right "
        "angles to each other. A path with a ratio near √B is not straight. Right: scores of the "
        "map from the first layer to the last, 1 for an optimal map; hollow: not evidence; "
        "crosses: an upper bound of the null maps' correlation scores. Below: distance of each "
        "layer from the displacement interpolation of the segment's first and last layer, divided "
        "by the distance between them.",
        f"Straightness of {counted(len(segments), 'segment')}: "
        f"length ratio{range_text(segments, 'length_ratio')}, "
        f"correlation score{range_text(segments, 'corr_score')}.",
        draw,
        lambda: [row for i, segment in enumerate(segments) for row in _segment_rows(segment, i)],
    )


def _segment_rows(segment: Segment, index: int) -> list[Row]:
    rows: list[Row] = []

    def add(measure: str, value: Any, at: float | None = None, **ends: float | None) -> None:
        name = segment_name(segment.layers, index)
        rows.append({"segment": name, "measure": measure, "at": at, "value": value, **ends})

    for key in (*RATIOS, *SCORES):
        sources: list[tuple[str, Measured]] = [(key, segment)]
        if key in RATIOS and segment.centred:
            sources.append((f"{key}_centred", segment.centred))
        for measure, source in sources:
            low, high = source.interval(key) or (None, None)
            add(measure, source.measure(key), low=low, high=high)
    add("sqrt_moving_blocks", orthogonal_ratio(segment))
    add("highest_null", segment.highest_null)
    for at, value in zip(*gap_positions(segment), strict=True):
        add("interpolation_gap", defined(value), float(at))
    return rows


def sample_sizes_plot(record: Record) -> Plot | None:
    segments = record.segments
    points = [point for segment in segments for point in segment.sample_sizes.points]
    if not points:
        return None

    def panel(measure: str, ax: Axes) -> None:
        sample_sizes(record, measure, ax).tick_params(axis="x", labelrotation=90)

    panels = [partial(panel, measure) for measure in CURVES]
    legend, height = partial(segment_handles, record), 3.0 + 0.16 * len(segments)

    def rows() -> list[Row]:
        return [
            {"segment": segment_name(segment.layers, i), **point.plain()}
            for i, segment in enumerate(segments)
            for point in segment.sample_sizes.points
        ]

    largest = max(point.size for point in points)
    enough = [number(segment.sample_sizes.enough) for segment in segments]
    needed = max((n for n in enough if n > largest), default=None)
    note = f" A resolution of 1/2 would need about {needed:,.0f} samples." if needed else ""
    return Plot(
        "sample-sizes",
        "Dependence on the number of samples",
        "Transport from the first to the last layer of every segment, on random subsets of the "
        "samples; bars: standard deviation over subsets. Empirical W2 is biased: if a curve still "
        f"changes at the largest number of samples, the value depends on that number.{note}",
        "W2, OT score and resolution over the number of samples.",
        lambda: page_figure(height, panels, legend, columns=3, max_columns=2),
        rows,
    )
