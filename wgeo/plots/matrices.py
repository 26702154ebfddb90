"""Panels that are matrices of colored cells: of pairs of layers, and of pairs of blocks."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from itertools import combinations
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import BoundaryNorm
from matplotlib.figure import Figure

from ..storage.record import Alignment, Record, Segment
from ..text import counted
from ..thresholds import NEARLY_OPTIMAL, OPTIMAL, clearly_above
from .sources import Plot, Row, as_record, segment_at
from .style import (
    INK,
    figure_of,
    inches_wide,
    new_axes,
    new_figure,
    nothing_to_show,
    number,
    numbers,
    require_choice,
    segment_name,
    short_names,
    styled,
)

OVERLAPS: dict[str, str] = {
    "overlap_uv": "Overlap of output and input directions",
    "overlap_uu": "Overlap of output directions",
    "overlap_vv": "Overlap of input directions",
    "coupling": "Coupling (0: the same singular vectors)",
}
"""Measures of `alignment`, and the titles of their panels."""
_CELL = 0.27  # inches that a cell needs for its number
_STEPS = (0.0, 0.25, 0.5, 0.75, 0.9, NEARLY_OPTIMAL, OPTIMAL, 1.0)
_NORM = BoundaryNorm(_STEPS, 256, extend="min")
_DISTANCES = ("distance", "lower", "upper")


def draw_cells(
    ax: Axes,
    values: np.ndarray,
    rows: Sequence[str],
    columns: Sequence[str],
    *,
    bar: Mapping[str, Any],
    marks: bool = False,
    **image: Any,
) -> None:
    """Draw a matrix as colored cells, with a color bar; `marks` adds tick marks to the bar."""
    cells = ax.imshow(values, cmap="cividis", interpolation="nearest", **image)
    color_bar: Any = figure_of(ax).colorbar(cells, ax=ax, fraction=0.05, **bar)
    color_bar.outline.set_visible(False)
    if not marks:
        color_bar.ax.tick_params(length=0)
    ax.set_xticks(range(len(columns)), columns, rotation=90)
    ax.set_yticks(range(len(rows)), rows)
    ax.tick_params(length=0)
    ax.spines[:].set_visible(False)


def write_in_cells(
    ax: Axes, values: np.ndarray, label: Callable[[int, int], str], *, white_up_to: float
) -> None:
    """Print a label in every cell with a value, white in dark cells, if cells are wide enough."""
    if inches_wide(ax) / values.shape[1] < _CELL:
        return
    for (i, j), value in np.ndenumerate(values):
        if np.isfinite(value):
            color = "white" if value <= white_up_to else INK
            ax.text(j, i, label(i, j), ha="center", va="center", fontsize=6, color=color)


@styled
def _panel_grid(
    record: Record, indices: Sequence[int], panel: Callable[[Record, int, Axes], Axes]
) -> Figure:
    """Return a figure with a square panel for each index, at most two per row."""
    columns = min(2, len(indices))
    rows = -(-len(indices) // columns)
    figure = new_figure(0.5 + 3.35 * columns, 0.3 + 3.1 * rows)
    panels = figure.subplots(rows, columns, squeeze=False).ravel()
    for ax in panels[len(indices) :]:
        ax.set_axis_off()
    for i, ax in zip(indices, panels, strict=False):
        panel(record, i, ax)
    return figure


# --- pairs of layers -----------------------------------------------------------------------------


@styled
def correlation_pairs(record: Any, segment: int = 0, ax: Axes | None = None) -> Axes:
    """Draw the correlation score of the map from each layer (row) to each later one (column).

    The score is 1 for an optimal map. Scores in parentheses are not clearly above those of null
    maps, so they are not evidence of an optimal map.

    Parameters
    ----------
    segment : int
        Index of the segment in the record, from 0.

    Examples
    --------
    >>> import numpy as np
    >>> import wgeo
    >>> x = np.random.default_rng(0).normal(size=(20, 3))
    >>> traj = wgeo.Trajectory.from_arrays([x, 2 * x, 3 * x], np.arange(20) % 2)
    >>> ax = wgeo.plots.correlation_pairs(wgeo.straightness(traj, bootstrap=0))
    >>> [label.get_text() for label in ax.get_xticklabels()], ax.get_xlabel(), ax.get_ylabel()
    (['layer1', 'layer2'], 'to', 'from')
    """
    source, ax = _segment_and_axes(record, segment, ax)
    scores = _layer_pairs(source, "corr_score")
    if not np.isfinite(scores).any():
        return nothing_to_show(ax, "This record has no scores of pairs of layers.")
    _draw_pairs(ax, source, scores, bar={"extend": "min", "ticks": _STEPS}, norm=_NORM)
    lacks_power = _lacks_power(source)

    def label(i: int, j: int) -> str:
        text = f"{scores[i, j]:z.2f}".replace("-", "−").replace("0.", ".")
        return f"({text})" if lacks_power[i, j] else text

    write_in_cells(ax, scores, label, white_up_to=0.75)
    return ax


@styled
def distance_pairs(record: Any, segment: int = 0, ax: Axes | None = None) -> Axes:
    """Draw W2 from each layer (row) to each later one (column), in units of the features.

    The diagonal shows the distances across single blocks. On a geodesic, the distance between two
    layers is the sum of those across the blocks between them.

    Parameters
    ----------
    segment : int
        Index of the segment in the record, from 0.

    Examples
    --------
    >>> import numpy as np
    >>> import wgeo
    >>> x = np.random.default_rng(0).normal(size=(20, 3))
    >>> traj = wgeo.Trajectory.from_arrays([x, x + 1, x + 3], np.arange(20) % 2)
    >>> ax = wgeo.plots.distance_pairs(wgeo.straightness(traj, bootstrap=0))
    >>> [text.get_text() for text in ax.texts]
    ['1.7', '5.2', '3.5']
    """
    source, ax = _segment_and_axes(record, segment, ax)
    values = _layer_pairs(source, "distance")
    if not np.isfinite(values).any():
        return nothing_to_show(ax, "This record has no distances of pairs of layers.")
    _draw_pairs(ax, source, values, bar={}, marks=True, vmin=0.0)
    dark = 0.6 * np.nanmax(values)
    write_in_cells(ax, values, lambda i, j: f"{values[i, j]:.2g}", white_up_to=dark)
    return ax


def _segment_and_axes(record: Any, segment: int, ax: Axes | None) -> tuple[Segment, Axes]:
    """Return a segment, or an empty one if the record has none, and axes with its name."""
    record = as_record(record, "Straightness", "SegmentStraightness")
    ax = new_axes(ax, 3.6, 3.2)
    if not record.segments:
        return Segment.of({}), ax
    source = segment_at(record.segments, segment)
    ax.set_title(segment_name(source.layers, segment % len(record.segments)))
    return source, ax


def _draw_pairs(ax: Axes, source: Segment, values: np.ndarray, **options: Any) -> None:
    names = short_names(source.pairs.layers, 18)
    draw_cells(ax, values, names[:-1], names[1:], aspect="auto", **options)
    ax.set_xlabel("to")
    ax.set_ylabel("from")


def _layer_pairs(segment: Segment, key: str) -> np.ndarray:
    """Return the matrix of a value: from all layers but the last (rows) to all but the first.

    Entries are NaN unless the column's layer is later than the row's.
    """
    rows = getattr(segment.pairs, key)
    matrix = np.array([numbers(row) for row in rows]).reshape(len(rows), len(rows))[:-1, 1:]
    return np.where(np.triu(np.ones(matrix.shape, bool)), matrix, np.nan)


def _lacks_power(segment: Segment) -> np.ndarray:
    """Return which scores are not clearly above those of null maps; False without null maps."""
    low = _layer_pairs(segment, "corr_low")
    if not segment.pairs.null:
        return np.zeros(low.shape, bool)
    null = _layer_pairs(segment, "null")
    return ~np.isnan(null) & ~clearly_above(low, null, segment.independent)


def pairs_plots(record: Record) -> list[Plot | None]:
    scores = _pairs_plot(
        record,
        "corr_score",
        ("corr_score", "corr_low", "corr_high", "null", *_DISTANCES),
        correlation_pairs,
        "correlation-pairs",
        "Between which layers is the map optimal?",
        "Correlation score of the map from the row's layer to the column's layer: 1 for an "
        f"optimal map; bright yellow from {OPTIMAL}. The top right corner is the whole segment, "
        "the diagonal its single blocks. Read the last column from the top: the first bright cell "
        "shows the layer from which the map to the last layer is optimal. A score is in "
        "parentheses if null maps (the same displacements, but rotated or assigned to the wrong "
        "samples) score about as high, so that it is not evidence of an optimal map. Null maps "
        "are computed for single blocks and for the last column.",
        "Correlation scores",
    )
    distances = _pairs_plot(
        record,
        "distance",
        _DISTANCES,
        distance_pairs,
        "distance-pairs",
        "How far apart are the layers?",
        "W2 from the row's layer to the column's layer, in units of the features. The diagonal has "
        "the single blocks, the top right corner the whole segment. On a geodesic, every distance "
        "is the sum of those of the blocks between its layers; if the path bends, it is less.",
        "W2",
    )
    return [scores, distances]


def _pairs_plot(
    record: Record,
    key: str,
    columns: Sequence[str],
    panel: Callable[[Record, int, Axes], Axes],
    stem: str,
    title: str,
    caption: str,
    name: str,
) -> Plot | None:
    """Return the figure of the value `key` of layer pairs; its data contain `columns`."""
    segments = record.segments
    shown = [i for i, each in enumerate(segments) if np.isfinite(_layer_pairs(each, key)).any()]
    if not shown:
        return None

    def rows() -> list[Row]:
        return [
            {
                "segment": segment_name(segments[k].layers, k),
                "from": source,
                "to": target,
                **{each: values[i][j] if values else None for each, values in matrices.items()},
            }
            for k in shown
            for pairs in [segments[k].pairs]
            for matrices in [{each: getattr(pairs, each) for each in columns}]
            for (i, source), (j, target) in combinations(enumerate(pairs.layers), 2)
        ]

    alt = f"{name} of all pairs of layers of {counted(len(shown), 'segment')}."
    return Plot(stem, title, caption, alt, lambda: _panel_grid(record, shown, panel), rows)


# --- pairs of blocks -----------------------------------------------------------------------------


@styled
def alignment(
    record: Any, segment: int = 0, measure: str = "overlap_uv", ax: Axes | None = None
) -> Axes:
    """Draw a measure of every ordered pair of blocks of a segment, as a matrix.

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
    segments = record.alignment.segments
    if not segments:
        return nothing_to_show(ax, "This record has no consecutive blocks with residual Jacobians.")
    chosen = segment_at(segments, segment, "record's alignment")
    values = _overlaps(record.alignment, chosen.blocks, measure)
    names = short_names(chosen.blocks, 18)
    draw_cells(ax, values, names, names, bar={}, marks=True, vmin=0, vmax=1)
    chance = chosen.chance_coupling if measure == "coupling" else chosen.chance
    ax.set_title(OVERLAPS[measure], fontsize=8)
    ax.set_xlabel(f"by chance: {number(chance):.2g}")
    write_in_cells(
        ax,
        values,
        lambda i, j: f"{values[i, j]:.2f}".replace("0.", ".", 1),
        white_up_to=0.6,
    )
    return ax


def _overlaps(comparison: Alignment, names: Sequence[str], measure: str) -> np.ndarray:
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


def alignment_plot(record: Record) -> Plot | None:
    comparison = record.alignment
    count = len(comparison.segments)
    if not count:
        return None

    def panel(record: Record, segment: int, ax: Axes) -> Axes:
        return alignment(record, segment, ax=ax)

    def rows() -> list[Row]:
        diagonal = [
            {"source": block.name, "target": block.name, "overlap_uv": block.overlap}
            for block in comparison.blocks
        ]
        return diagonal + [pair.plain() for pair in comparison.pairs]

    return Plot(
        "alignment",
        "Do the blocks do the same thing?",
        f"Overlap of the {comparison.vectors} leading output directions of the row's block "
        f"with the {comparison.vectors} leading input directions of the column's block: 1 "
        "if they span the same space, as along a geodesic. The directions are the singular vectors "
        "of the blocks' Jacobians without the shortcuts; the overlap is a mean over "
        f"{comparison.points} images.",
        f"Overlap of singular directions of the blocks in {counted(count, 'segment')}.",
        lambda: _panel_grid(record, range(count), panel),
        rows,
    )
