"""Panels of properties that may be constant over depth: separation rate, residual Jacobians."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from ..storage.record import Alignment, Record, SegmentLaw
from ..text import counted, stage_number
from .matrices import color_bar, frame_cells, write_in_cells
from .paths import segment_at, segment_style
from .plot import Plot, Row
from .sources import as_record
from .style import (
    layer_axis,
    legend_below,
    log_if_positive,
    new_axes,
    new_figure,
    nothing_to_show,
    number,
    numbers,
    panel_grid,
    require_choice,
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

_FIT_PREFIXES = {"separation": "", "compression": "compression_"}


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
        if line is not None:
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


def _line(segment: SegmentLaw, measure: str, values: np.ndarray) -> np.ndarray | None:
    """Return the fitted line, which passes through the mean of the values; None if undefined."""
    x = np.arange(len(values)) - (len(values) - 1) / 2
    if measure == "discrimination":
        slope = number(segment.discrimination_slope)
        return values.mean() + slope * x if np.isfinite(slope) else None
    rate = number(segment.measure(f"{_FIT_PREFIXES[measure]}rate"))
    if not (np.isfinite(rate) and rate > 0 and (values > 0).all()):
        return None
    return np.exp(np.log(values).mean() + np.log(rate) * x)


def _label(segment: SegmentLaw, measure: str) -> str:
    """Return a legend entry, such as ``stage 1: factor 0.58, r = −0.999, curvature 0.11``."""
    name = f"stage {stage_number(segment.stage)}"
    if measure == "discrimination":
        pairs = [("slope", "discrimination_slope"), ("r =", "discrimination_correlation")]
    else:
        fit = _FIT_PREFIXES[measure]
        pairs = [
            ("factor", f"{fit}rate"),
            ("r =", f"{fit}correlation"),
            ("curvature", f"{fit}curvature"),
        ]
    values = {word: segment.measure(key) for word, key in pairs}
    parts = [f"{word} {value:.3g}" for word, value in values.items() if value is not None]
    return f"{name}: {', '.join(parts)}".replace("-", "−") if parts else name


@styled
def alignment(
    record: Any, segment: int = 0, measure: str = "overlap_uv", ax: Axes | None = None
) -> Axes:
    """Draw a measure of every ordered pair of blocks in a run of consecutive blocks, as a matrix.

    With ``overlap_uv``, row i and column j compare the leading output directions of block i with
    the leading input directions of block j. An overlap is 1 if the directions span the same space.
    A coupling is 0 if the blocks have the same singular vectors.

    Parameters
    ----------
    segment : int
        Index of the run of blocks in the record, from 0.
    measure : str
        A key of `OVERLAPS`.

    Examples
    --------
    >>> import torch
    >>> import wgeo
    >>> size = {"in_channels": 1, "image_size": 2, "width": 6, "depth": 2}
    >>> net = wgeo.models.build("resmlp", num_classes=2, activation="tanh", **size)
    >>> images = torch.randn(8, 1, 2, 2), torch.arange(8) % 2
    >>> ax = wgeo.plots.alignment(wgeo.alignment(net, images, vectors=2, points=2))
    >>> [label.get_text() for label in ax.get_yticklabels()]
    ['blocks.0', 'blocks.1']
    """
    record = as_record(record, "Alignment")
    require_choice(measure, OVERLAPS)
    ax = new_axes(ax, 3.6, 3.2)
    runs = record.alignment.segments
    if not runs:
        return nothing_to_show(ax, "This record has no consecutive blocks with residual Jacobians.")
    run = segment_at(runs, segment, noun="run")
    values = _matrix(record.alignment, run.blocks, measure)
    image = ax.imshow(values, vmin=0, vmax=1, cmap="cividis", interpolation="nearest")
    color_bar(image, ax, marks=True)
    names = short_names(run.blocks, 18)
    ax.set_xticks(range(len(names)), names, rotation=90)
    ax.set_yticks(range(len(names)), names)
    frame_cells(ax)
    chance = run.chance_coupling if measure == "coupling" else run.chance
    ax.set_title(OVERLAPS[measure], fontsize=8)
    ax.set_xlabel(f"by chance: {number(chance):.2g}")
    write_in_cells(
        ax,
        values,
        lambda i, j: f"{values[i, j]:.2f}".replace("0.", ".", 1),
        white_up_to=0.6,
    )
    return ax


def _matrix(comparison: Alignment, names: Sequence[str], measure: str) -> np.ndarray:
    """Return a measure of every ordered pair of blocks; NaN if it was not measured."""
    values = np.full((len(names),) * 2, np.nan)
    indices = {name: k for k, name in enumerate(names)}
    for pair in comparison.pairs:
        if pair.source in indices and pair.target in indices:
            row, column = indices[pair.source], indices[pair.target]
            values[row, column] = number(pair.measure(measure))
    if measure == "overlap_uv":  # the diagonal
        for block in comparison.blocks:
            if block.name in indices:
                k = indices[block.name]
                values[k, k] = number(block.overlap)
    return values


def depth_law_plots(record: Record) -> list[Plot]:
    plots = []
    if _stage_fits(record):
        plots.append(_law_plot(record))
    if record.alignment.segments:
        plots.append(_alignment_plot(record))
    return plots


def _law_plot(record: Record) -> Plot:
    @styled
    def draw() -> Figure:
        figure = new_figure(7.2, 8.4)
        for measure, ax in zip(LAWS, figure.subplots(len(LAWS), 1), strict=True):
            separation_law(record, measure, ax)
        return figure

    def rows() -> list[Row]:
        return [
            {
                "stage": segment.stage,
                "layer": name,
                **{key: getattr(segment, key)[i] for key in LAWS},
                **{k: v for k, v in segment.json.items() if v is None or isinstance(v, float)},
            }
            for segment in _stage_fits(record)
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
        f"Separation of the classes over depth in {counted(len(_stage_fits(record)), 'stage')}.",
        draw,
        rows,
    )


def _alignment_plot(record: Record) -> Plot:
    comparison = record.alignment
    runs = comparison.segments

    @styled
    def draw() -> Figure:
        return panel_grid(range(len(runs)), lambda i, ax: alignment(record, i, ax=ax))

    return Plot(
        "alignment",
        "Do the blocks do the same thing?",
        f"Overlap of the {comparison.vectors} leading output directions of the row's block "
        f"with the {comparison.vectors} leading input directions of the column's block: 1 "
        "if they span the same space, as along a geodesic. The directions are the singular vectors "
        "of the blocks' Jacobians without the shortcuts; the overlap is a mean over "
        f"{comparison.points} images.",
        f"Overlap of singular directions of the blocks in {counted(len(runs), 'run')}.",
        draw,
        lambda: list(_rows(comparison)),
    )


def _rows(comparison: Alignment) -> Iterator[Row]:
    for block in comparison.blocks:
        yield {"source": block.name, "target": block.name, "overlap_uv": block.overlap}
    yield from (pair.plain() for pair in comparison.pairs)
