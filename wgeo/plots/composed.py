"""The figures of an analysis, each composed of panels, and the numbers they show."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from ..results import defined
from ..storage.record import Measured, Record, Segment, SeriesRecord
from ..storage.schema import Part
from ..text import counted
from . import block_transport, depth, depth_laws, evidence, pairs, paths, prediction_errors
from .length_shares import block_distances_plot
from .plot import Plot, Row
from .series import series_plots
from .single_classes import class_variability_plot
from .sources import as_record, as_series, is_series
from .style import clean, legend_of_figure, new_figure, numbers, segment_name, styled


def catalog(source: Any) -> list[Plot]:
    """Return the figures that can be drawn from a record, in reading order."""
    plots: list[Plot | None]
    if is_series(source):
        series = as_series(source)
        plots = [
            *series_plots(series),
            block_distances_plot(series),
            _class_means(series) if series.last_layer.view else None,
        ]
    else:
        record = as_record(source)
        views = [segment.view for segment in record.segments]
        plots = [
            _collapse(record) if record.layers else None,
            class_variability_plot(record),
            prediction_errors.models_plot(record),
            _distances(record) if record.blocks else None,
            _straightness(record) if record.segments else None,
            *pairs.pairs_plots(record),
            *evidence.evidence_plots(record),
            *depth_laws.depth_law_plots(record),
            *(_class_means(record, i) for i, v in enumerate(views) if paths.has_class_means(v)),
        ]
    return [plot for plot in plots if plot is not None]


def _distances(record: Record) -> Plot:
    blocks = record.blocks
    has_correlations = any(block.corr_score for block in blocks)

    @styled
    def draw() -> Figure:
        panels = [block_transport.distances, block_transport.ot_scores]
        if has_correlations:
            panels.insert(1, block_transport.correlation_scores)
        figure = new_figure(7.2, 1.4 + 2.0 * len(panels))
        grid = figure.subplots(len(panels), 1, height_ratios=[3, *[2] * (len(panels) - 1)])
        for panel, ax in zip(panels, grid, strict=True):
            panel(record, ax)
        return figure

    def rows() -> list[Row]:
        # Computing times are left out, so that equal analyses give equal files.
        return [
            {
                **block.plain("seconds"),
                **dict(zip(_CORRELATION_KEYS, block.corr_score or (None,) * 3, strict=True)),
                "highest_null": block.highest_null,
            }
            for block in blocks
        ]

    correlations = (
        "In the middle: 1 minus the correlation score (0 for an optimal map); crosses: 1 minus an "
        "upper bound of the scores of null maps, which assign the same displacements to the wrong "
        "samples or rotate them. A hollow score is not clearly above theirs and is therefore not "
        "evidence. "
        if has_correlations
        else ""
    )
    return Plot(
        "distances",
        "Transport by block",
        "Above: the Wasserstein distance W2 between the features before and after each block, "
        "with its bounds, and the root mean squared distance by which the network itself moves the "
        f"samples. {correlations}Below: 1 minus the OT score, which is the squared ratio of the "
        "two distances; hollow points have a resolution below 1/2 and are not evidence, since the "
        "OT score is near 1 for almost any map that moves the samples little. Axes of scores are "
        "logarithmic: the lower a point, the nearer the map is to an optimal one. Values below "
        "1e-6, which the solvers do not resolve, are at the lower edge.",
        f"W2 of {counted(len(blocks), 'block')}{_range_text(blocks, 'distance')}; "
        f"OT score{_range_text(blocks, 'ot_score')}.",
        draw,
        rows,
    )


_CORRELATION_KEYS = ("corr_score", "corr_low", "corr_high")
_COLLAPSE_METRICS = ("nc1", "cdnv", "nc2_equinorm", "nc2_equiangle", "nc2_etf", "ncc_error")
_COLLAPSE_CAPTION = (
    "Progressive feedforward collapse: each metric over depth, from the input of the first block "
    "to the output of the last; 0 is complete collapse. Bands: intervals over samples. Open "
    "circles: layers outside the blocks, such as the input image and the classifier's input, which "
    "are not part of the trend. Kendall's τ is −1 if a metric decreases at every layer. Shading "
    "marks the feature spaces."
)


def _collapse(record: Record) -> Plot:
    layers = record.layers
    models = depth.models_in(record)

    @styled
    def draw() -> Figure:
        figure = new_figure(7.2, 8.0)
        grid = figure.subplots(3, 2)
        for position, (metric, ax) in enumerate(zip(_COLLAPSE_METRICS, grid.flat, strict=True)):
            depth.collapse(record, metric, ax, label_layers=position >= 4)
        if models:
            legend_of_figure(
                figure, *depth.model_handles(record), loc="outside upper center", max_columns=3
            )
        return figure

    def rows() -> list[Row]:
        table = []
        for i, layer in enumerate(layers):
            row: Row = {**layer.only("name", "stage", "width"), **layer.collapse.plain()}
            for model in models:
                for metric in _COLLAPSE_METRICS:
                    value = depth.predicted_metric(record, model, metric)[i]
                    row[f"{model}.{metric}"] = defined(value)
            table.append(row)
        return table

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
        " ".join(filter(None, (_COLLAPSE_CAPTION, predictions, depth.not_drawn(record)))),
        f"Six collapse metrics over {len(layers)} layers; {summary}",
        draw,
        rows,
    )


def _straightness(record: Record) -> Plot:
    segments = record.segments

    @styled
    def draw() -> Figure:
        handles, names = paths.segment_handles(record)
        figure = new_figure(7.2, 5.3 + 0.28 * len(names))
        panels = figure.subplot_mosaic(
            [["ratios", "scores"], ["gap", "gap"]],
            height_ratios=[1.5, 1],
            width_ratios=[1.9, 1],
        )
        ratios, scores = panels["ratios"], panels["scores"]
        paths.straightness(record, ratios).set_title("Ratios: 1 is a constant-speed geodesic")
        paths.straightness(record, scores, measures=paths.SCORES).set_title("Scores, end to end")
        paths.interpolation_gap(record, panels["gap"]).set_title("Distance from the geodesic")
        legend_of_figure(figure, handles, names, max_columns=2)
        return figure

    def rows() -> list[Row]:
        return [row for i, segment in enumerate(segments) for row in _segment_rows(segment, i)]

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
        f"length ratio{_range_text(segments, 'length_ratio')}, "
        f"correlation score{_range_text(segments, 'corr_score')}.",
        draw,
        rows,
    )


def _segment_rows(segment: Segment, index: int) -> list[Row]:
    name = segment_name(segment.layers, index)
    rows: list[Row] = []

    def add_measure(source: Measured, key: str, label: str) -> None:
        low, high = (*(source.interval(key) or ()), None, None)[:2]
        row = {"segment": name, "measure": label, "at": None, "value": source.measure(key)}
        rows.append({**row, "low": low, "high": high})

    for key in (*paths.RATIOS, *paths.SCORES):
        add_measure(segment, key, key)
        if key in paths.RATIOS and segment.centred:
            add_measure(segment.centred, key, f"{key}_centred")
    for key, value in (
        ("sqrt_moving_blocks", paths.orthogonal_ratio(segment)),
        ("highest_null", segment.highest_null),
    ):
        rows.append({"segment": name, "measure": key, "at": None, "value": value})
    t, gap = paths.gap_positions(segment)
    for at, value in zip(t.tolist(), gap.tolist(), strict=True):
        row = {"segment": name, "measure": "interpolation_gap", "at": at, "value": defined(value)}
        rows.append(row)
    return rows


def _class_means(source: Record | SeriesRecord, index: int = -1) -> Plot:
    """Return the figure of a segment's class means, or of a series' over the epochs."""
    over_epochs = isinstance(source, SeriesRecord)
    record = paths.over_training(source) if isinstance(source, SeriesRecord) else source
    segment = record.segments[index]
    means = segment.view.class_means
    name = segment_name(segment.layers, index)

    @styled
    def draw() -> Figure:
        if over_epochs:
            figure = new_figure(7.2, 5.4)
            paths.class_means(source, index, figure.add_subplot())
            return figure
        handles, names = paths.class_handles(record, segment.view, "layer")
        figure = new_figure(7.2, 4.0 + 0.04 * len(names))
        titles = ("Features", "Without the mean of the class means")
        for ax, title in zip(figure.subplots(1, 2), titles, strict=True):
            paths.draw_class_means(ax, segment.view, chords=True, centered=title != titles[0])
            ax.set_title(title)
        legend_of_figure(figure, handles, names)
        return figure

    def rows() -> list[Row]:
        names = paths.class_names(record, segment.view, width=200)
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


def _range_text(items: Sequence[Part], key: str) -> str:
    """Return a value's range, as in " from 0.97 to 1", or " undefined"."""
    values = numbers([item.measure(key) for item in items])
    values = values[np.isfinite(values)]
    return f" from {values.min():.3g} to {values.max():.3g}" if values.size else " undefined"
