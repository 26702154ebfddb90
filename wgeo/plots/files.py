"""The figures of an analysis, composed of panels, and their files: PNG, SVG, PDF, data as CSV."""

from __future__ import annotations

import io
import os
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.backends.backend_pdf import FigureCanvasPdf
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure

from ..errors import ArgumentError
from ..files import writable, write_aside
from ..ownership import claim, owned
from ..progress import track
from . import beside, depth, evidence, movement, pairs, paths
from .plot import Plot, Row, as_csv
from .several import series_plots
from .style import as_record, clean, highest_null, legend, new_figure, segment_name, styled


def catalogue(source: Any) -> list[Plot]:
    """The figures that this record has the numbers for, in the order of reading."""
    record = as_record(source)
    if "analyses" in record:
        moving = (record.get("last_layer") or {}).get("view")
        return series_plots(record) + ([_class_means(record)] if moving else [])
    plots: list[Plot] = []
    layers, blocks = record.get("layers") or [], record.get("blocks") or []
    segments = record.get("segments") or []
    if layers:
        plots.append(_collapse(record))
    if (models := beside.models_plot(record)) is not None:
        plots.append(models)
    if blocks:
        plots.append(_distances(record))
    if segments:
        plots.append(_straightness(record))
    if (of_pairs := pairs.pairs_plot(record)) is not None:
        plots.append(of_pairs)
    plots += evidence.evidence_plots(record)
    viewed = (i for i, s in enumerate(segments) if (s.get("view") or {}).get("class_means"))
    return plots + [_class_means(record, i) for i in viewed]


STEMS = (
    *("collapse", "models", "distances", "straightness", "class-means-[0-9]*"),
    *("sample-sizes", "gradient-maps", "correlation-pairs"),
)
SERIES_STEMS = ("over", "profiles", "class-means-training")
_PAGE = ("png", "svg", "csv")


def names_of(plots: Iterable[Plot], endings: Sequence[str] = _PAGE) -> list[str]:
    """Names of the files of figures."""
    return [f"{plot.stem}.{ending}" for plot in plots for ending in endings]


def claim_figures(folder: str | os.PathLike[str], *, series: bool = False) -> None:
    """Refuse a folder if a file lies under a figure's name that wgeo did not write.

    Which figures a record will have is not known before it is measured: the names of all count.

    Raises
    ------
    RecordError
        The message names the file.
    """
    stems = SERIES_STEMS if series else STEMS
    claim(folder, *(f"{stem}.{ending}" for stem in stems for ending in _PAGE))


def drawn(record: Mapping[str, Any], folder: Path, source: Path) -> list[Path] | None:
    """The files of a record's figures if all are there, none a link and as new as it; else None."""
    written = source.stat().st_mtime_ns
    files = [folder / name for name in names_of(catalogue(record))]
    regular = all(file.is_file() and not file.is_symlink() for file in files)
    return files if regular and all(f.stat().st_mtime_ns >= written for f in files) else None


def figures(source: Any, out_dir: str | Path, *, endings: Sequence[str] = _PAGE) -> list[Path]:
    """Write every figure of a record to `out_dir` as PNG and SVG, its data beside it as CSV.

    Each file is written aside and then renamed, so that none is ever half there. Figures that an
    earlier call wrote into the folder and this one does not are removed, of the endings asked for;
    files that wgeo did not write are not touched.

    Parameters
    ----------
    source : Analysis, Series or dict
    out_dir : path
    endings : sequence of str
        Which files of each figure: ``png``, ``svg``, ``pdf``, ``csv``.

    Returns
    -------
    list of Path
        The files written.

    Raises
    ------
    ArgumentError
        Another ending.
    RecordError
        The folder cannot be written, or a file that wgeo did not write has a figure's name: then
        nothing is drawn.
    """
    if unknown := sorted(set(endings) - set(ENDINGS)):
        raise ArgumentError(
            f"no figures as {', '.join(unknown)}; choose from {', '.join(ENDINGS)}."
        )
    plots = catalogue(source)
    written: list[Path] = []
    with owned(out_dir) as home:
        home.claim(*names_of(plots, endings))
        for plot in track(plots, "drawing figures"):
            written += home.write(_files(plot, endings))
        now = {path.name for path in written}
        known = [f"{stem}.{ending}" for stem in (*STEMS, *SERIES_STEMS) for ending in endings]
        stale = {name for name in home.listed() if any(fnmatchcase(name, one) for one in known)}
        home.remove(*(stale - now))
    return written


def _files(plot: Plot, endings: Sequence[str]) -> dict[str, bytes]:
    """A figure's files: what they are called, and what they hold."""
    files: dict[str, bytes] = {}
    with warnings.catch_warnings():
        # A class named in a script that the font lacks is drawn as boxes, which is enough said.
        warnings.filterwarnings("ignore", message="Glyph .* missing from font")
        figure = plot.draw()
        figure.draw_without_rendering()
        figure.set_layout_engine("none")  # laid out once, for all files
        for ending in [ending for ending in _RENDER if ending in endings]:
            files[f"{plot.stem}.{ending}"] = _RENDER[ending](figure)
    if "csv" in endings:
        files[f"{plot.stem}.csv"] = as_csv(plot.rows())
    return files


# The canvases are asked directly, without a date or a version, which would make two drawings of
# one record differ; savefig would draw every figure a second time to ask for its layout.


def _png(figure: Figure) -> bytes:
    data = io.BytesIO()
    FigureCanvasAgg(figure).print_png(data, metadata={"Software": None})
    return data.getvalue()


@styled
def _svg(figure: Figure) -> bytes:
    data = io.BytesIO()
    FigureCanvasSVG(figure).print_svg(data, metadata={"Date": None, "Creator": None})
    return data.getvalue()


@styled
def _pdf(figure: Figure) -> bytes:
    data = io.BytesIO()
    undated = {"CreationDate": None, "Creator": None, "Producer": None}
    FigureCanvasPdf(figure).print_pdf(data, metadata=undated)
    return data.getvalue()


_RENDER: dict[str, Callable[[Figure], bytes]] = {"png": _png, "svg": _svg, "pdf": _pdf}
ENDINGS = (*_RENDER, "csv")


@styled
def save(drawn: Axes | Figure, path: str | os.PathLike[str], *, dpi: int = 300) -> Path:
    """Write a figure of your own, as a paper or a slide takes it.

    PDF has its letters embedded as letters (no Type 3 fonts), SVG as outlines, so that both look
    alike everywhere; neither has a date in it.

    Parameters
    ----------
    drawn : Axes or Figure
        What a panel returned, or the figure it is in.
    path : path
        Ends in ``.pdf``, ``.svg`` or ``.png``.
    dpi : int
        Of a PNG: 300 is a printer's; a slide of `axes` at 343 is 1920 pixels wide.

    Returns
    -------
    Path

    Raises
    ------
    ArgumentError
        Another ending.
    RecordError
        The file cannot be written.
    """
    path = Path(path)
    ending = path.suffix.lower().removeprefix(".")
    if ending not in _RENDER:
        raise ArgumentError(f"save writes .{', .'.join(_RENDER)}; not {path.suffix or path.name}.")
    figure = drawn if isinstance(drawn, Figure) else drawn.get_figure(root=True)
    assert figure is not None
    usual, window = figure.dpi, figure.canvas
    try:
        figure.dpi = dpi if ending == "png" else 72
        figure.draw_without_rendering()
        write_aside(writable(path.parent) / path.name, _RENDER[ending](figure))
    finally:
        figure.dpi = usual
        figure.set_canvas(window)
    return path


# --- the figures ---------------------------------------------------------------------------------


def _distances(record: Mapping[str, Any]) -> Plot:
    blocks = record["blocks"]

    @styled
    def draw() -> Figure:
        panels = [movement.distances, movement.ot_scores]
        if any(block.get("corr_score") for block in blocks):
            panels.insert(1, movement.correlation_scores)
        figure = new_figure(7.2, 1.4 + 2.0 * len(panels))
        grid = figure.subplots(len(panels), 1, height_ratios=[3, *[2] * (len(panels) - 1)])
        for panel, ax in zip(panels, grid, strict=True):
            panel(record, ax)
        return figure

    def rows() -> list[Row]:
        # Without how long each took: equal analyses give equal files.
        return [
            {
                **{k: v for k, v in block.items() if k != "seconds" and not _nested(v)},
                **dict(zip(_CORRELATION, block.get("corr_score") or (None,) * 3, strict=True)),
                "highest_null": highest_null(block),
            }
            for block in blocks
        ]

    return Plot(
        "distances",
        "What every block moves",
        "Above: the Wasserstein distance W2 between the features before and after each block, with "
        "the interval that contains it, and the root mean squared distance that the network itself "
        "moved its samples. In the middle: the correlation score, 1 for an optimal map, beside "
        "the highest of null maps (crosses), the same displacements given to the wrong samples; "
        "hollow where it is not clearly above them, and the samples cannot tell. Below: the OT "
        "score, the squared ratio of the distances above; hollow points have a resolution below "
        "1/2 and say nothing. It is near 1 for almost any map that moves the samples little.",
        f"W2 of {len(blocks)} blocks{_span(blocks, 'distance')}; "
        f"OT score{_span(blocks, 'ot_score')}.",
        draw,
        rows,
    )


_CORRELATION = ("corr_score", "corr_low", "corr_high")
_PFC = ("nc1", "cdnv", "nc2_equinorm", "nc2_equiangle", "nc2_etf", "ncc_error")


def _collapse(record: Mapping[str, Any]) -> Plot:
    layers = record["layers"]
    models = depth.models_in(record)

    @styled
    def draw() -> Figure:
        figure = new_figure(7.2, 8.0)
        grid = figure.subplots(3, 2)
        for order, (metric, ax) in enumerate(zip(_PFC, grid.flat, strict=True)):
            depth.collapse(record, metric, ax, label_layers=order >= 4)
        if models:
            legend(figure, *depth.model_handles(record), loc="outside upper center", ncols=3)
        return figure

    def rows() -> list[Row]:
        found = []
        for i, layer in enumerate(layers):
            row: Row = {key: layer.get(key) for key in ("name", "stage", "width")}
            row |= {k: v for k, v in (layer.get("collapse") or {}).items() if not _nested(v)}
            for model in models:
                for metric in _PFC:
                    value = depth.predicted_metric(record, model, metric)[i]
                    row[f"{model}.{metric}"] = value if np.isfinite(value) else None
            found.append(row)
        return found

    beside = (
        " Dashed and dotted: what the models fitted to this network predict; zeros lie at the edge."
        f"{depth.not_drawn(record)}"
        if models
        else ""
    )
    progress = record.get("progress") or {}
    falling = [metric for metric in _PFC if (progress.get(metric) or {}).get("monotone")]
    return Plot(
        "collapse",
        "Collapse from layer to layer",
        "Progressive feedforward collapse: each metric over depth, from what enters the first "
        "block to the last; 0 is complete collapse. The input image (open) stands apart. Kendall's "
        f"τ is −1 where a metric falls at every layer. Shading marks the feature spaces.{beside}",
        f"Six collapse metrics over {len(layers)} layers; "
        + (f"never rising: {', '.join(falling)}." if falling else "each rises somewhere."),
        draw,
        rows,
    )


def _straightness(record: Mapping[str, Any]) -> Plot:
    segments = record["segments"]

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
        legend(figure, handles, names, loc="outside lower center", ncols=2)
        return figure

    def rows() -> list[Row]:
        return [row for i, segment in enumerate(segments) for row in _segment_rows(segment, i)]

    return Plot(
        "straightness",
        "How straight the way is",
        "Straightness of every segment, with intervals, against the ideal 1 (dashed). Left: solid "
        "with each layer's mean taken off, hollow as measured; the tick at the length ratio is √B, "
        "that of orthogonal steps of the same sizes: a path near it is not straight. Right: scores "
        "of the map from the first layer to the last, 1 for an optimal map, hollow where the "
        "samples cannot tell; crosses: the highest correlation score of null maps. Below: how far "
        "each layer lies from the displacement interpolation of the segment's two ends, relative "
        "to their distance.",
        f"Straightness of {len(segments)} segments: length ratio{_span(segments, 'length_ratio')}, "
        f"correlation score{_span(segments, 'corr_score')}.",
        draw,
        rows,
    )


def _segment_rows(segment: Mapping[str, Any], index: int) -> list[Row]:
    name = segment_name(segment, index)
    rows: list[Row] = []

    def add(found: Mapping[str, Any], key: str, called: str) -> None:
        low, high = (*((found.get("intervals") or {}).get(key) or ()), None, None)[:2]
        value = paths.measured(found, key)
        row = {"segment": name, "measure": called, "at": None, "value": value}
        rows.append({**row, "low": low, "high": high})

    for key in (*paths.RATIOS, *paths.SCORES):
        add(segment, key, key)
        if key in paths.RATIOS and segment.get("centred"):
            add(segment["centred"], key, f"{key}_centred")
    for key, value in (
        ("sqrt_moving_blocks", paths.orthogonal_ratio(segment)),
        ("highest_null", highest_null(segment)),
    ):
        rows.append({"segment": name, "measure": key, "at": None, "value": value})
    t, gap = paths.gap_positions(segment)
    for at, value in zip(t.tolist(), gap.tolist(), strict=True):
        value = value if np.isfinite(value) else None
        rows.append({"segment": name, "measure": "interpolation_gap", "at": at, "value": value})
    return rows


def _class_means(record: Mapping[str, Any], index: int = -1) -> Plot:
    """The paths of a segment's class means; of a series, those of the last layer over epochs."""
    source, training = record, "analyses" in record
    if training:
        record = paths.over_training(record)
    segment = record["segments"][index]
    means = segment["view"]["class_means"]
    name = segment_name(segment, index)

    @styled
    def draw() -> Figure:
        wide, high = np.ptp(np.array(means, dtype=np.float64).reshape(-1, 2), axis=0) + 1e-12
        rows = min(len(means[0]) + 3, paths.LEGEND_ROWS)  # the legend must fit beside the axes
        height = max(float(np.clip(5 * high / wide, 2.8, 5.4)), 0.2 * rows)
        figure = new_figure(7.2, height + 0.6)
        paths.class_means(source, index, figure.add_subplot())
        return figure

    def rows() -> list[Row]:
        names = paths.class_names(record, segment["view"], width=200)
        layers = segment.get("layers") or [f"layer {i}" for i in range(len(means))]
        return [
            {step: layer, "class": names[k], "pc1": point[0], "pc2": point[1]}
            for layer, points in zip(layers, means, strict=False)
            for k, point in enumerate(points)
        ]

    step = "epoch" if training else "layer"
    caption = (
        "Class means of the last layer from epoch to epoch, in the plane of their first two "
        "principal components. Each epoch is brought to the same spread and turned onto the next. "
        "Open: first epoch; filled: last."
        if training
        else "Trajectories of the class means in the plane of the segment's first two principal "
        "components, both axes to one scale. Open: first layer; filled: last; dashed: the chord."
    )
    return Plot(
        "class-means-training" if training else f"class-means-{index + 1}",
        f"Where the classes go: {name}",
        caption,
        f"Paths of {len(means[0])} class means through {len(means)} {step}s, {clean(name)}.",
        draw,
        rows,
    )


def _span(items: Sequence[Mapping[str, Any]], key: str) -> str:
    """ " from 0.97 to 1", or nothing where no value is defined."""
    values = movement.numbers([paths.measured(item, key) for item in items])
    values = values[np.isfinite(values)]
    return f" from {values.min():.3g} to {values.max():.3g}" if values.size else " undefined"


def _nested(value: Any) -> bool:
    return isinstance(value, Mapping | list)
