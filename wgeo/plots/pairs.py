"""Matrices of W2 and of the maps' correlation scores between all pairs of layers of a segment."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import combinations
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import BoundaryNorm
from matplotlib.figure import Figure

from ..storage.record import Record, Segment
from ..text import counted
from ..thresholds import NEARLY_OPTIMAL, OPTIMAL, clearly_above
from .matrices import color_bar, frame_cells, write_in_cells
from .paths import segment_at
from .plot import Plot, Row
from .sources import as_record
from .style import new_axes, nothing_to_show, numbers, panel_grid, segment_name, short_names, styled

_STEPS = (0.0, 0.25, 0.5, 0.75, 0.9, NEARLY_OPTIMAL, OPTIMAL, 1.0)
_NORM = BoundaryNorm(_STEPS, 256, extend="min")


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
    scores = None if source is None else _draw(ax, source, "corr_score", norm=_NORM)
    if source is None or scores is None:
        return nothing_to_show(ax, "This record has no scores of pairs of layers.")
    color_bar(ax.images[0], ax, extend="min", ticks=_STEPS)
    lacks_power = _lacks_power(source)[:-1, 1:]

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
    values = None if source is None else _draw(ax, source, "distance", vmin=0.0)
    if values is None:
        return nothing_to_show(ax, "This record has no distances of pairs of layers.")
    color_bar(ax.images[0], ax, marks=True)
    dark = 0.6 * np.nanmax(values)
    write_in_cells(ax, values, lambda i, j: f"{values[i, j]:.2g}", white_up_to=dark)
    return ax


def _segment_and_axes(record: Any, segment: int, ax: Axes | None) -> tuple[Segment | None, Axes]:
    """Return a segment, or None if the record has no segments, and axes with its name."""
    record = as_record(record, "Straightness", "SegmentStraightness")
    ax = new_axes(ax, 3.6, 3.2)
    if not record.segments:
        return None, ax
    source = segment_at(record.segments, segment)
    ax.set_title(segment_name(source.layers, segment % len(record.segments)))
    return source, ax


def _draw(ax: Axes, source: Segment, key: str, **colors: Any) -> np.ndarray | None:
    """Draw and return the matrix of a value of layer pairs; None if no value is defined."""
    # No map ends at the first layer, and none starts at the last.
    values = _matrix(source, key)[:-1, 1:]
    if not np.isfinite(values).any():
        return None
    names = short_names(source.pairs.layers, 18)
    ax.imshow(values, cmap="cividis", interpolation="nearest", aspect="auto", **colors)
    ax.set_xticks(range(len(names) - 1), names[1:], rotation=90)
    ax.set_yticks(range(len(names) - 1), names[:-1])
    ax.set_xlabel("to")
    ax.set_ylabel("from")
    frame_cells(ax)
    return values


def _matrix(segment: Segment, key: str = "corr_score") -> np.ndarray:
    """Return the matrix of a value of layer pairs; NaN on the diagonal and below it."""
    rows = getattr(segment.pairs, key)
    matrix = np.array([numbers(row) for row in rows]).reshape(len(rows), len(rows))
    return np.where(np.triu(np.ones(matrix.shape, bool), 1), matrix, np.nan)


def _lacks_power(segment: Segment) -> np.ndarray:
    """Return which scores are not clearly above those of null maps; False without null maps."""
    low = _matrix(segment, "corr_low")
    if not segment.pairs.null:
        return np.zeros(low.shape, bool)
    null = _matrix(segment, "null")
    return ~np.isnan(null) & ~clearly_above(low, null, segment.independent)


def pairs_plots(record: Record) -> list[Plot]:
    segments = record.segments

    def rows_of(key: str) -> list[int]:
        return [i for i, each in enumerate(segments) if np.isfinite(_matrix(each, key)).any()]

    scored, measured = rows_of("corr_score"), rows_of("distance")

    @styled
    def draw_scores() -> Figure:
        return panel_grid(scored, lambda i, ax: correlation_pairs(record, i, ax))

    @styled
    def draw_distances() -> Figure:
        return panel_grid(measured, lambda i, ax: distance_pairs(record, i, ax))

    plots = []
    if scored:
        plots.append(
            Plot(
                "correlation-pairs",
                "Between which layers is the map optimal?",
                "Correlation score of the map from the row's layer to the column's layer: 1 for an "
                f"optimal map; bright yellow from {OPTIMAL}. The top right corner is the whole "
                "segment, the diagonal its single blocks. Read the last column from the top: the "
                "first bright cell shows the layer from which the map to the last layer is "
                "optimal. A score is in parentheses if null maps (the same displacements, but "
                "rotated or assigned to the wrong samples) score about as high, so that it is not "
                "evidence of an optimal map. Null maps are computed for single blocks and for the "
                "last column.",
                f"Correlation scores of all pairs of layers of {counted(len(scored), 'segment')}.",
                draw_scores,
                lambda: _rows(segments, scored, *_SCORES, *_DISTANCES),
            )
        )
    if measured:
        plots.append(
            Plot(
                "distance-pairs",
                "How far apart are the layers?",
                "W2 from the row's layer to the column's layer, in units of the features. The "
                "diagonal has the single blocks, the top right corner the whole segment. On a "
                "geodesic, every distance is the sum of those of the blocks between its layers; "
                "if the path bends, it is less.",
                f"W2 of all pairs of layers of {counted(len(measured), 'segment')}.",
                draw_distances,
                lambda: _rows(segments, measured, *_DISTANCES),
            )
        )
    return plots


_SCORES = ("corr_score", "corr_low", "corr_high", "null")
_DISTANCES = ("distance", "lower", "upper")


def _rows(segments: Sequence[Segment], chosen: Sequence[int], *keys: str) -> list[Row]:
    return [
        {
            "segment": segment_name(segments[k].layers, k),
            "from": source,
            "to": target,
            **{key: rows[i][j] if (rows := getattr(pairs, key)) else None for key in keys},
        }
        for k in chosen
        for pairs in [segments[k].pairs]
        for (i, source), (j, target) in combinations(enumerate(pairs.layers), 2)
    ]
