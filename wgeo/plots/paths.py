"""Panels of the path through a segment: class means, straightness, distance from the geodesic."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.collections import LineCollection
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator

from ..errors import ArgumentError
from ..storage.record import Measured, Record, Segment, SeriesRecord, View
from ..text import counted
from .sources import as_record, as_series, is_series
from .style import (
    CLASS_COLORS,
    COLORS,
    GRID,
    MARKERS,
    MUTED,
    REFERENCE_LINE,
    class_name,
    has_resolution,
    inches_wide,
    interval_ends,
    legend,
    legend_below,
    log_if_positive,
    new_axes,
    nothing_to_show,
    numbers,
    segment_name,
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


@styled
def class_means(
    record: Any, segment: int = 0, ax: Axes | None = None, *, centered: bool = False
) -> Axes:
    """Draw the paths of the class means through a segment, in the plane of their largest variance.

    Markers are open at the first layer and filled at the last. The dashed line between them is the
    chord, along which class means move on a geodesic; it is omitted for more than 40 classes. For
    a series over training, the paths show the last layer's class means from epoch to epoch, without
    chords.

    Parameters
    ----------
    segment : int
        Index of the segment in the record, from 0.
    centered : bool
        Whether to subtract the mean of the class means at each layer. This removes the motion that
        all classes share.

    Examples
    --------
    >>> import numpy as np
    >>> import wgeo
    >>> x = np.random.default_rng(0).normal(size=(20, 3))
    >>> traj = wgeo.Trajectory.from_arrays([x, 2 * x, 3 * x], np.arange(20) % 2)
    >>> ax = wgeo.plots.class_means(traj)
    >>> ax.get_xlabel()
    'first principal component (98 % of variance)'
    """
    training = is_series(record)
    record = over_training(as_series(record)) if training else as_record(record, "Trajectory")
    ax = new_axes(ax, 6.2, 4.4)
    view = segment_at(record.segments, segment).view
    if not has_class_means(view):
        return nothing_to_show(ax, "This record has no plane of class means.")
    draw_class_means(ax, view, chords=not training, centered=centered)
    layers = record.segments[segment].layers
    ax.set_title(segment_name(layers, segment % len(record.segments)))
    handles, names = class_handles(record, view, "epoch" if training else "layer")
    columns = 1 + (len(names) - 1) // _LEGEND_ROWS
    options: dict[str, Any] = {"loc": "upper left", "bbox_to_anchor": (1.01, 1.0), "ncols": columns}
    if inches_wide(ax) < _NARROW:
        options |= {"fontsize": 6.5, "labelspacing": 0.35, "handlelength": 1.2, "borderaxespad": 0}
    legend(ax, handles, names, **options)
    return ax


def has_class_means(view: View) -> bool:
    paths = np.array(view.class_means, dtype=np.float64)  # (layers, classes, 2)
    return paths.ndim == 3 and bool(np.isfinite(paths).any())


def draw_class_means(ax: Axes, view: View, *, chords: bool, centered: bool) -> None:
    """Draw the paths of the class means of a view, without title and legend."""
    paths = np.array(view.class_means, dtype=np.float64)
    if centered:
        paths -= paths.mean(1, keepdims=True)
    if paths.shape[1] <= _MAX_NAMED:
        for k, path in enumerate(paths.transpose(1, 0, 2)):
            _draw_path(ax, path, class_style(k), chord=chords)
    else:
        _draw_many(ax, paths)
    ax.set_aspect("equal", adjustable="datalim")
    ax.margins(0.08)
    labels = axis_labels(view, narrow=inches_wide(ax) < _NARROW)
    ax.set(xlabel=labels[0], ylabel=labels[1])


def segment_at(
    segments: Sequence[Any], index: int, source: str = "record", noun: str = "segment"
) -> Any:
    """Return the segment of this index, or raise `ArgumentError`."""
    if not -len(segments) <= index < len(segments):
        raise ArgumentError(
            f"no {noun} {index}; this {source} has {counted(len(segments), noun)}, numbered from 0."
        )
    return segments[index]


def over_training(series: SeriesRecord) -> Record:
    """Return the last layer over training as a record of one segment, with epochs as layers."""
    provenance = next((row.provenance.json for row in series.analyses), {})
    return Record.of({"provenance": provenance, "segments": [series.last_layer.json]})


_LEGEND_ROWS = 23
_COMPONENTS = ("first principal component", "second principal component")
_NARROW = 3.5  # inches, the width of a paper's column
_MAX_NAMED = 40  # maximum number of classes with names, chords and separate markers


def _draw_path(ax: Axes, path: np.ndarray, style: dict[str, Any], *, chord: bool) -> None:
    x, y = path.T
    if chord:
        ax.plot(x[[0, -1]], y[[0, -1]], color=style["color"], lw=0.8, ls=(0, (4, 3)), alpha=0.55)
    ax.plot(x, y, color=style["color"], lw=1.3, marker=".", ms=3.5, zorder=3)
    ax.plot(x[0], y[0], mfc="white", ms=6.5, mew=1.2, zorder=4, ls="none", **style)
    ax.plot(x[-1], y[-1], ms=7.5, mec="white", mew=0.6, zorder=5, ls="none", **style)


def _draw_many(ax: Axes, paths: np.ndarray) -> None:
    colors = [class_style(k)["color"] for k in range(paths.shape[1])]
    ax.add_collection(LineCollection([*paths.transpose(1, 0, 2)], colors=colors, linewidths=0.7))
    (x0, y0), (x1, y1) = paths[0].T, paths[-1].T
    ax.scatter(x0, y0, s=9, c="white", edgecolors=colors, linewidths=0.6, zorder=4)
    ax.scatter(x1, y1, s=11, c=colors, edgecolors="white", linewidths=0.3, zorder=5)


def class_style(k: int) -> dict[str, Any]:
    return {"color": CLASS_COLORS[k % len(CLASS_COLORS)], "marker": MARKERS[k % len(MARKERS)]}


def segment_style(i: int) -> dict[str, Any]:
    return {"color": COLORS[i % len(COLORS)], "marker": MARKERS[i % len(MARKERS)]}


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


def class_names(record: Record, view: View, width: int = 18) -> list[str]:
    """Return the names of a view's classes, shortened to `width`; numbers if they are unknown."""
    names = record.provenance.class_names
    count = len(view.class_means[0])
    classes = view.classes or range(count)
    return [class_name(names, k, width) for k in classes]


def axis_labels(view: View, *, narrow: bool = False) -> list[str]:
    """Return the labels of a view's axes, with the percentage of variance along each if known."""
    shares = numbers(view.explained)
    shares = np.pad(shares[:2], (0, max(0, 2 - len(shares))), constant_values=np.nan)
    names = ("PC 1", "PC 2") if narrow else _COMPONENTS
    return [
        f"{name} ({100 * share:.0f} % of variance)" if np.isfinite(share) else name
        for name, share in zip(names, shares, strict=True)
    ]


def class_handles(record: Record, view: View, step: str) -> tuple[list[Line2D], list[str]]:
    """Return the legend entries of the class means; many classes are not named."""
    names = class_names(record, view)
    gray: dict[str, Any] = {"marker": "o", "color": MUTED, "ls": "none"}
    ends = [Line2D([], [], ms=6.5, mfc="white", mew=1.2, **gray), Line2D([], [], ms=7, **gray)]
    if len(names) > _MAX_NAMED:
        return ends, [f"first {step} ({len(names)} classes)", f"last {step}"]
    handles = [Line2D([], [], ms=6, lw=1.3, **class_style(k)) for k in range(len(names))] + ends
    names += [f"first {step}", f"last {step}"]
    if step == "layer":
        handles.append(Line2D([], [], color=MUTED, lw=0.8, ls=(0, (4, 3))))
        names.append("straight chord")
    return handles, names


# --- straightness --------------------------------------------------------------------------------


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
    """Return whether the samples are sufficient for a score to be evidence."""
    return bool(segment.power) if key == "corr_score" else has_resolution(segment)


def orthogonal_ratio(segment: Segment) -> float | None:
    """Return the length ratio of orthogonal steps: of the centered path if recorded."""
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


def segment_handles(record: Record) -> tuple[list[Line2D], list[str]]:
    segments = record.segments
    handles = [Line2D([], [], ms=5, lw=1.4, **segment_style(i)) for i in range(len(segments))]
    return handles, [segment_name(segment.layers, i) for i, segment in enumerate(segments)]
