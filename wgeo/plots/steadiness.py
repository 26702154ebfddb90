"""What is the same at every depth? The rate of separation, and the blocks' residual Jacobians."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from ..errors import ArgumentError
from ..text import counted
from .paths import segment_look
from .plot import Plot, Row
from .style import (
    INK,
    as_record,
    inches_wide,
    layer_axis,
    legend_below,
    log_where_positive,
    new_axes,
    new_figure,
    nothing_to_show,
    number,
    numbers,
    panel_grid,
    short_names,
    styled,
)

LAWS: dict[str, str] = {
    "separation": "Separation, tr Σw Σb⁺",
    "compression": "Compression, tr Σw / tr Σb",
    "discrimination": "Discrimination, 1 − largest cosine",
}
"""Measures of `separation_law`, and the titles of their panels."""

OVERLAPS: dict[str, str] = {
    "overlap_uv": "Overlap of output and input directions",
    "overlap_uu": "Overlap of output directions",
    "overlap_vv": "Overlap of input directions",
    "coupling": "Coupling (0: the same singular vectors)",
}
"""Measures of `alignment`, and the titles of their panels."""

_FITS = {"separation": "", "compression": "compression_"}
_CELL = 0.27  # inches that a cell needs for its number


@styled
def separation_law(record: Any, measure: str = "separation", ax: Axes | None = None) -> Axes:
    """Draw a measure of the classes' separation over depth, with the line of a constant rate.

    The law of data separation says that ln D falls along a line. There is a line for every stage.

    Parameters
    ----------
    measure : str
        A key of `LAWS`.

    Raises
    ------
    ArgumentError
        An unknown measure.
    """
    record = as_record(record, "SeparationLaw", "Collapse")
    if measure not in LAWS:
        raise ArgumentError(f"no measure {measure!r}; choose from {', '.join(LAWS)}.")
    ax = new_axes(ax)
    segments = _stages(record)
    if not segments:
        return nothing_to_show(ax, "This record has no stage of three layers.")
    names = list(dict.fromkeys(name for segment in segments for name in segment["layers"]))
    handles, labels, curves = [], [], []
    for i, segment in enumerate(segments):
        at = np.array([names.index(name) for name in segment["layers"]], float)
        values = numbers(segment[measure])
        look = segment_look(i)
        (dots,) = ax.plot(at, values, ls="none", ms=4, zorder=3, **look)
        curves.append(values)
        line = _line(segment, measure, values)
        if line is not None:
            ax.plot(at, line, color=look["color"], lw=1.1, ls=(0, (4, 3)), zorder=2)
        handles.append(dots)
        labels.append(_label(segment, measure))
    if measure != "discrimination":
        log_where_positive(ax, *curves)
    layer_axis(ax, names)
    ax.set_title(LAWS[measure])
    legend_below(ax, handles, labels)
    return ax


def _stages(record: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """Return the fits of single stages: no line is drawn through several spaces."""
    segments = (record.get("separation_law") or {}).get("segments") or []
    return [segment for segment in segments if segment.get("stage") is not None]


def _line(segment: Mapping[str, Any], measure: str, values: np.ndarray) -> np.ndarray | None:
    """Return the fitted line, which goes through the mean of the values; None if undefined."""
    x = np.arange(len(values)) - (len(values) - 1) / 2
    if measure == "discrimination":
        slope = number(segment.get("discrimination_slope"))
        return values.mean() + slope * x if np.isfinite(slope) else None
    rate = number(segment.get(f"{_FITS[measure]}rate"))
    if not (np.isfinite(rate) and rate > 0 and (values > 0).all()):
        return None
    return np.exp(np.log(values).mean() + np.log(rate) * x)


def _label(segment: Mapping[str, Any], measure: str) -> str:
    """``stage 1: factor 0.58, r = −0.999, curvature +0.11``."""
    name = f"stage {segment['stage'] + 1}"
    if measure == "discrimination":
        pairs = [("slope", "discrimination_slope"), ("r =", "discrimination_correlation")]
    else:
        fit = _FITS[measure]
        pairs = [
            ("factor", f"{fit}rate"),
            ("r =", f"{fit}correlation"),
            ("curvature", f"{fit}curvature"),
        ]
    parts = [f"{word} {segment[key]:.3g}" for word, key in pairs if segment.get(key) is not None]
    return f"{name}: {', '.join(parts)}".replace("-", "−") if parts else name


@styled
def alignment(
    record: Any, segment: int = 0, measure: str = "overlap_uv", ax: Axes | None = None
) -> Axes:
    """Draw the overlap of the singular directions of every two blocks of a run.

    Row i and column j: the directions in which block i changes its output most, compared with those
    of block j's input; on the diagonal a block with itself. 1 if they span the same space.

    Parameters
    ----------
    segment : int
        Index of the run of blocks in the record, from 0.
    measure : str
        A key of `OVERLAPS`.

    Raises
    ------
    ArgumentError
        An unknown measure, or no such run.
    """
    record = as_record(record, "Alignment")
    if measure not in OVERLAPS:
        raise ArgumentError(f"no measure {measure!r}; choose from {', '.join(OVERLAPS)}.")
    ax = new_axes(ax, 3.6, 3.2)
    runs = (record.get("alignment") or {}).get("segments") or []
    if not runs:
        return nothing_to_show(ax, "This record has no residual Jacobians of two blocks.")
    if not -len(runs) <= segment < len(runs):
        raise ArgumentError(f"no segment {segment}; this record has {len(runs)} (from 0).")
    run = runs[segment]
    values = _matrix(record["alignment"], run["blocks"], measure)
    image = ax.imshow(values, vmin=0, vmax=1, cmap="cividis", interpolation="nearest")
    bar = image.figure.colorbar(image, ax=ax, fraction=0.05)
    bar.outline.set_visible(False)
    names = short_names(run["blocks"], 18)
    ax.set_xticks(range(len(names)), names, rotation=90)
    ax.set_yticks(range(len(names)), names)
    ax.tick_params(length=0)
    ax.spines[:].set_visible(False)
    chance = run.get("chance_coupling" if measure == "coupling" else "chance")
    ax.set_title(OVERLAPS[measure], fontsize=8)
    ax.set_xlabel(f"at random: {number(chance):.2g}")
    if inches_wide(ax) / len(values) >= _CELL:
        for (i, j), value in np.ndenumerate(values):
            if np.isfinite(value):
                colour = INK if value > 0.6 else "white"
                label = f"{value:.2f}".replace("0.", ".", 1)
                ax.text(j, i, label, ha="center", va="center", fontsize=6, color=colour)
    return ax


def _matrix(found: Mapping[str, Any], names: list[str], measure: str) -> np.ndarray:
    """Return a measure of every ordered pair; NaN if it was not measured."""
    values = np.full((len(names),) * 2, np.nan)
    places = {name: k for k, name in enumerate(names)}
    for pair in found.get("pairs") or []:
        if pair["source"] in places and pair["target"] in places:
            at = places[pair["source"]], places[pair["target"]]
            values[at] = number(pair.get(measure))
    if measure == "overlap_uv":  # of a block with itself
        for block in found.get("blocks") or []:
            if block["name"] in places:
                k = places[block["name"]]
                values[k, k] = number(block.get("overlap"))
    return values


def steadiness_plots(record: Mapping[str, Any]) -> list[Plot]:
    """Return the figures of this module for which a record has the numbers."""
    plots = []
    if _stages(record):
        plots.append(_law_plot(record))
    if (record.get("alignment") or {}).get("segments"):
        plots.append(_alignment_plot(record))
    return plots


def _law_plot(record: Mapping[str, Any]) -> Plot:
    @styled
    def draw() -> Figure:
        figure = new_figure(7.2, 8.4)
        for measure, ax in zip(LAWS, figure.subplots(len(LAWS), 1), strict=True):
            separation_law(record, measure, ax)
        return figure

    def rows() -> list[Row]:
        return [
            {
                "stage": segment["stage"],
                "layer": name,
                **{key: segment[key][i] for key in LAWS},
                **{k: v for k, v in segment.items() if v is None or isinstance(v, float)},
            }
            for segment in _stages(record)
            for i, name in enumerate(segment["layers"])
        ]

    return Plot(
        "separation-law",
        "Do the classes separate at a constant rate?",
        "Above and in the middle, on logarithmic axes: the scatter within classes relative to that "
        "between class means, as the trace of a matrix and as a ratio of traces; dashed, the line "
        "of a constant factor per layer. Below: one minus the largest cosine between uncentred "
        "class means. A curvature of 0 and a correlation r of −1 are those of a line; along a "
        "geodesic of constant speed the curve is bent.",
        f"Separation of the classes over depth in {counted(len(_stages(record)), 'stage')}.",
        draw,
        rows,
    )


def _alignment_plot(record: Mapping[str, Any]) -> Plot:
    found = record["alignment"]
    runs = found["segments"]

    @styled
    def draw() -> Figure:
        figure, panels = panel_grid(len(runs))
        for i, ax in zip(range(len(runs)), panels, strict=False):
            alignment(record, i, ax=ax)
        return figure

    return Plot(
        "alignment",
        "Do the blocks do the same thing?",
        f"Overlap of the {found.get('vectors')} directions in which the block of the row changes "
        "its output most with those of the input of the block of the column, without the shortcut, "
        f"at {found.get('points')} images: 1 if they span the same space, as along a geodesic.",
        f"Overlap of singular directions of the blocks in {len(runs)} runs.",
        draw,
        lambda: list(_rows(found)),
    )


def _rows(found: Mapping[str, Any]) -> Iterator[Row]:
    for block in found.get("blocks") or []:
        yield {"source": block["name"], "target": block["name"], "overlap_uv": block.get("overlap")}
    yield from found.get("pairs") or []
