"""Panels of single classes: the paths of the class means, and the variability within each class."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.collections import LineCollection
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from ..results import defined
from ..storage.record import Record, SeriesRecord, View
from ..text import counted, percent
from .depth import draw_band, draw_layers, staged_layers
from .sources import Plot, Row, as_record, as_series, is_series, page_figure, segment_at
from .style import (
    CLASS_COLORS,
    MARKERS,
    MEASURED,
    MUTED,
    class_name,
    clean,
    inches_wide,
    layer_axis,
    legend,
    log_if_positive,
    new_axes,
    nothing_to_show,
    numbers,
    segment_name,
    styled,
)

_LEGEND_ROWS = 23
_COMPONENTS = ("first principal component", "second principal component")
_NARROW = 3.5  # inches, the width of a paper's column
_MAX_NAMED = 40  # maximum number of classes with names, chords and separate markers
_MAX_CURVES = 20  # with more classes, bands show how their variability is distributed


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
    if not _has_class_means(view):
        return nothing_to_show(ax, "This record has no plane of class means.")
    _draw_paths(ax, view, chords=not training, centered=centered)
    layers = record.segments[segment].layers
    ax.set_title(segment_name(layers, segment % len(record.segments)))
    handles, names = _path_handles(record, view, "epoch" if training else "layer")
    columns = 1 + (len(names) - 1) // _LEGEND_ROWS
    options: dict[str, Any] = {"loc": "upper left", "bbox_to_anchor": (1.01, 1.0), "ncols": columns}
    if inches_wide(ax) < _NARROW:
        options |= {"fontsize": 6.5, "labelspacing": 0.35, "handlelength": 1.2, "borderaxespad": 0}
    legend(ax, handles, names, **options)
    return ax


def _has_class_means(view: View) -> bool:
    paths = np.array(view.class_means, dtype=np.float64)  # (layers, classes, 2)
    return paths.ndim == 3 and bool(np.isfinite(paths).any())


def _draw_paths(ax: Axes, view: View, *, chords: bool, centered: bool) -> None:
    """Draw the paths of the class means of a view, without title and legend."""
    paths = np.array(view.class_means, dtype=np.float64)
    if centered:
        paths -= paths.mean(1, keepdims=True)
    count = paths.shape[1]
    for k in range(count) if count <= _MAX_NAMED else ():
        (x, y), style = paths[:, k].T, _class_style(k)
        color = style["color"]
        if chords:
            ax.plot(x[[0, -1]], y[[0, -1]], color=color, lw=0.8, ls=(0, (4, 3)), alpha=0.55)
        ax.plot(x, y, color=color, lw=1.3, marker=".", ms=3.5, zorder=3)
        ax.plot(x[0], y[0], mfc="white", ms=6.5, mew=1.2, zorder=4, ls="none", **style)
        ax.plot(x[-1], y[-1], ms=7.5, mec="white", mew=0.6, zorder=5, ls="none", **style)
    if count > _MAX_NAMED:
        colors = [_class_style(k)["color"] for k in range(count)]
        lines = LineCollection([*paths.transpose(1, 0, 2)], colors=colors, linewidths=0.7)
        ax.add_collection(lines)
        (x0, y0), (x1, y1) = paths[0].T, paths[-1].T
        ax.scatter(x0, y0, s=9, c="white", edgecolors=colors, linewidths=0.6, zorder=4)
        ax.scatter(x1, y1, s=11, c=colors, edgecolors="white", linewidths=0.3, zorder=5)
    ax.set_aspect("equal", adjustable="datalim")
    ax.margins(0.08)
    labels = axis_labels(view, narrow=inches_wide(ax) < _NARROW)
    ax.set(xlabel=labels[0], ylabel=labels[1])


def _class_style(k: int) -> dict[str, Any]:
    return {"color": CLASS_COLORS[k % len(CLASS_COLORS)], "marker": MARKERS[k % len(MARKERS)]}


def over_training(series: SeriesRecord) -> Record:
    """Return the last layer over training as a record of one segment, with epochs as layers."""
    provenance = next((row.provenance.json for row in series.analyses), {})
    return Record.of({"provenance": provenance, "segments": [series.last_layer.json]})


def class_names(record: Record, view: View, width: int = 18) -> list[str]:
    """Return the names of a view's classes, shortened to `width`; numbers if a name is unknown."""
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
        f"{name} ({percent(share, 0)} of variance)" if np.isfinite(share) else name
        for name, share in zip(names, shares, strict=True)
    ]


def _path_handles(record: Record, view: View, step: str) -> tuple[list[Line2D], list[str]]:
    """Return the legend entries of the class means; many classes are not named."""
    names = class_names(record, view)
    gray: dict[str, Any] = {"marker": "o", "color": MUTED, "ls": "none"}
    ends = [Line2D([], [], ms=6.5, mfc="white", mew=1.2, **gray), Line2D([], [], ms=7, **gray)]
    if len(names) > _MAX_NAMED:
        return ends, [f"first {step} ({len(names)} classes)", f"last {step}"]
    handles = [Line2D([], [], ms=6, lw=1.3, **_class_style(k)) for k in range(len(names))] + ends
    names += [f"first {step}", f"last {step}"]
    if step == "layer":
        handles.append(Line2D([], [], color=MUTED, lw=0.8, ls=(0, (4, 3))))
        names.append("straight chord")
    return handles, names


def class_means_plot(source: Record | SeriesRecord, index: int = -1) -> Plot | None:
    """Return the figure of the class means: over a segment's layers, or over a series' epochs."""
    over_epochs = isinstance(source, SeriesRecord)
    record = over_training(source) if isinstance(source, SeriesRecord) else source
    segment = record.segments[index]
    view = segment.view
    if not _has_class_means(view):
        return None
    means = view.class_means
    name = segment_name(segment.layers, index)

    def panel(centered: bool, ax: Axes) -> None:
        _draw_paths(ax, view, chords=True, centered=centered)
        ax.set_title("Without the mean of the class means" if centered else "Features")

    def draw() -> Figure:
        if over_epochs:
            return page_figure(5.4, [partial(class_means, source, index)])
        legend = partial(_path_handles, record, view, "layer")
        height = 4.0 + 0.04 * len(legend()[1])
        panels = [partial(panel, False), partial(panel, True)]
        return page_figure(height, panels, legend, columns=2)

    def rows() -> list[Row]:
        names = class_names(record, view, width=200)
        layers = segment.layers or [f"layer {i}" for i in range(len(means))]
        return [
            {step: layer, "class": names[k], "pc1": point[0], "pc2": point[1]}
            for layer, points in zip(layers, means, strict=False)
            for k, point in enumerate(points)
        ]

    step = "epoch" if over_epochs else "layer"
    caption = (
        "Class means of the last layer from epoch to epoch, in the plane of their first two "
        "principal components. Each epoch is scaled to the same spread and rotated onto the next. "
        "Open marker: first epoch; filled: last."
        if over_epochs
        else "Paths of the class means in the plane of the first two principal components of the "
        "class means of all the segment's layers, both axes with the same scale. Left: the "
        "features; right: with the mean of the class means subtracted at every layer, so that a "
        "common motion of all classes is not seen. Open marker: first layer; filled: last; "
        "dashed: the chord."
    )
    return Plot(
        "class-means-training" if over_epochs else f"class-means-{index + 1}",
        f"Paths of the class means: {name}",
        caption,
        f"Paths of {len(means[0])} class means through {len(means)} {step}s, {clean(name)}.",
        draw,
        rows,
    )


# --- variability ---------------------------------------------------------------------------------


@styled
def class_variability(record: Any, ax: Axes | None = None) -> Axes:
    """Draw the variability within each class, var_k / tr Σb, over depth.

    It is 0 if the class has collapsed to its mean. With more than 20 classes, a line shows the
    median, the darker band contains the middle half of the classes, and the lighter band all.

    Examples
    --------
    >>> import numpy as np
    >>> import wgeo
    >>> labels = np.arange(20) % 2
    >>> x = np.random.default_rng(0).normal(size=(20, 3)) * (1 + 2 * labels)[:, None]
    >>> collapse = wgeo.collapse(wgeo.Trajectory.from_arrays([x, 2 * x], labels))
    >>> [round(v) for v in collapse.layers[0].class_variability]  # class 1 has collapsed least
    [2, 18]
    >>> ax = wgeo.plots.class_variability(collapse)
    """
    record = as_record(record, "Collapse")
    ax = new_axes(ax, 7.2, 3.2)
    values = _variability(record)
    if not np.isfinite(values).any():
        return nothing_to_show(ax, "This record has no variability of single classes.")
    _draw_variability(ax, record, values)
    handles, names = _variability_handles(record, values.shape[1])
    legend(ax, handles, names, loc="upper left", bbox_to_anchor=(1.01, 1.0))
    return ax


def _variability(record: Record) -> np.ndarray:
    """Return the variability of every layer (row) and class; NaN if it is undefined."""
    rows = [numbers(layer.collapse.class_variability) for layer in record.layers]
    classes = max(map(len, rows), default=0)
    complete = [row if len(row) == classes else np.full(classes, np.nan) for row in rows]
    return np.array(complete).reshape(len(rows), classes)


def _draw_variability(ax: Axes, record: Record, values: np.ndarray) -> None:
    layer_axis(ax, [la.name for la in record.layers], [la.stage for la in record.layers])
    staged = staged_layers(record.layers)
    if values.shape[1] <= _MAX_CURVES:
        for k, curve in enumerate(values.T):
            draw_layers(ax, staged, curve, lw=1.3, ms=3.5, **_class_style(k))
    else:
        low, first, median, third, high = np.quantile(values, (0, 0.25, 0.5, 0.75, 1), axis=1)
        draw_band(ax, staged, low, high, alpha=0.15)
        draw_band(ax, staged, first, third, alpha=0.3)
        draw_layers(ax, staged, median, color=MEASURED, marker="o", ms=3.5)
    log_if_positive(ax, values.ravel())
    ax.set_ylabel("var of the class / tr Σb")


def _variability_handles(record: Record, classes: int) -> tuple[list[Line2D], list[str]]:
    if classes > _MAX_CURVES:
        median = Line2D([], [], color=MEASURED, marker="o", ms=3.5)
        bands = [Line2D([], [], color=MEASURED, lw=6, alpha=alpha) for alpha in (0.3, 0.15)]
        return [median, *bands], [f"median of {classes} classes", "middle half", "all classes"]
    handles = [Line2D([], [], lw=1.3, ms=3.5, **_class_style(k)) for k in range(classes)]
    return handles, _variable_classes(record, classes)


def _variable_classes(record: Record, count: int) -> list[str]:
    """Return the names of the `count` classes that occur, or numbers if they are unknown."""
    names, own = record.provenance.class_names, record.json.get("classes")
    known: list[Sequence[int]] = [own] if isinstance(own, list) else []  # a `Collapse` has them
    known += [segment.view.classes for segment in record.segments]
    for classes in (*known, range(len(names))):  # otherwise, all classes that have a name
        if len(classes) == count:
            return [class_name(names, k) for k in classes]
    return [f"class {k + 1} of {count}" for k in range(count)]


def class_variability_plot(record: Record) -> Plot | None:
    values = _variability(record)
    if not np.isfinite(values).any():
        return None
    legend = partial(_variability_handles, record, values.shape[1])

    def rows() -> list[Row]:
        names = _variable_classes(record, values.shape[1])
        return [
            {"layer": layer.name, "class": name, "variability": defined(value)}
            for layer, row in zip(record.layers, values, strict=True)
            for name, value in zip(names, row, strict=True)
        ]

    spread = values[-1].max() / values[-1].min() if (values[-1] > 0).all() else np.nan
    last = f"; in the last layer, the largest is {spread:.3g} times the smallest"
    return Plot(
        "class-variability",
        "Collapse of single classes",
        "The variance within each class, var_k, divided by the variance between class means, "
        "tr Σb, over depth: 0 if the class has collapsed to its mean. The mean over all samples "
        "is tr Σw / tr Σb. Open markers: layers outside the blocks. The class whose curve ends "
        "highest has collapsed least.",
        f"Variability of {values.shape[1]} classes over {counted(len(values), 'layer')}"
        f"{last if np.isfinite(spread) else ''}.",
        lambda: page_figure(3.6, [lambda ax: _draw_variability(ax, record, values)], legend),
        rows,
    )
