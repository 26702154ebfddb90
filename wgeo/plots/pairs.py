"""The matrix of correlation scores of the maps between all pairs of layers of a segment."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import BoundaryNorm
from matplotlib.figure import Figure

from ..geodesic.nulls import NEARLY_OPTIMAL, OPTIMAL, clearly_above
from ..storage.record import Record, Segment
from ..text import counted
from .matrices import color_bar, frame_cells, write_in_cells
from .paths import segment_at
from .plot import Plot, Row
from .sources import as_record
from .style import new_axes, nothing_to_show, numbers, panel_grid, segment_name, short_names, styled

_STEPS = (0.0, 0.25, 0.5, 0.75, 0.9, NEARLY_OPTIMAL, OPTIMAL, 1.0)
_NORM = BoundaryNorm(_STEPS, 256, extend="min")
_BAR: dict[str, Any] = {"extend": "min", "ticks": _STEPS}


@styled
def correlation_pairs(record: Any, segment: int = 0, ax: Axes | None = None) -> Axes:
    """Draw the correlation score of the map from each layer (row) to each later one (column).

    The score is 1 for an optimal map. Scores in parentheses are not clearly above those of null
    maps, so they are not evidence of an optimal map.

    Parameters
    ----------
    segment : int
        Index of the segment in the record, from 0.

    Raises
    ------
    ArgumentError
        The record has no such segment.

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
    record = as_record(record, "Straightness", "SegmentStraightness")
    ax = new_axes(ax, 3.6, 3.2)
    segments = record.segments
    if not segments:
        return nothing_to_show(ax, "This record has no segments.")
    source = segment_at(segments, segment)
    ax.set_title(segment_name(source.layers, segment % len(segments)))
    scores = _scores(source)
    if not np.isfinite(scores).any():
        return nothing_to_show(ax, "This segment has no scores of pairs of layers.")
    names = short_names(source.pairs.layers, 18)
    scores = scores[:-1, 1:]  # no map ends at the first layer, and none starts at the last
    image = ax.imshow(scores, norm=_NORM, cmap="cividis", interpolation="nearest", aspect="auto")
    if len(ax.get_figure(root=True).axes) == 1:  # type: ignore[union-attr]
        color_bar(image, ax, **_BAR)
    ax.set_xticks(range(len(names) - 1), names[1:], rotation=90)
    ax.set_yticks(range(len(names) - 1), names[:-1])
    ax.set_xlabel("to")
    ax.set_ylabel("from")
    frame_cells(ax)
    lacks_power = _lacks_power(source)[:-1, 1:]

    def label(i: int, j: int) -> str:
        text = f"{scores[i, j]:.2f}".replace("-", "−").replace("0.", ".")
        return f"({text})" if lacks_power[i, j] else text

    write_in_cells(ax, scores, label, white_up_to=0.75)
    return ax


def _scores(segment: Segment, key: str = "corr_score") -> np.ndarray:
    """Return the matrix of a value of layer pairs; NaN unless the row's layer comes first."""
    rows = getattr(segment.pairs, key)
    matrix = np.array([numbers(row) for row in rows]).reshape(len(rows), len(rows))
    return np.where(np.triu(np.ones(matrix.shape, bool), 1), matrix, np.nan)


def _lacks_power(segment: Segment) -> np.ndarray:
    """Return which scores are not clearly above those of null maps; False without null maps."""
    low = _scores(segment, "corr_low")
    if not segment.pairs.null:
        return np.zeros(low.shape, bool)
    null = _scores(segment, "null")
    return ~np.isnan(null) & ~clearly_above(low, null, segment.samples)


def pairs_plot(record: Record) -> Plot | None:
    """Return the figure of every segment's pairs; None if the record has no pairs."""
    segments = record.segments
    chosen = [i for i, segment in enumerate(segments) if np.isfinite(_scores(segment)).any()]
    if not chosen:
        return None

    @styled
    def draw() -> Figure:
        figure, panels = panel_grid(len(chosen))
        for i, ax in zip(chosen, panels, strict=False):
            correlation_pairs(record, i, ax)
        if len(panels) > 1:  # a single panel has its own color bar
            color_bar(panels[0].images[0], panels, **_BAR)
        return figure

    def rows() -> list[Row]:
        return [row for i in chosen for row in _rows(segments[i], i)]

    return Plot(
        "correlation-pairs",
        "Between which layers is the map optimal?",
        "Correlation score of the map from the row's layer to the column's layer: 1 for an optimal "
        f"map; bright yellow from {OPTIMAL}. The top right corner is the whole segment, the "
        "diagonal its single blocks. Read the last column from the top: the first bright cell "
        "shows the layer from which the map to the last layer is optimal. A score is in "
        "parentheses if null maps (the same displacements assigned to the wrong samples) score "
        "about as high, so that it is not evidence of an optimal map. Null maps are computed for "
        "single blocks and for the last column.",
        f"Correlation scores of all pairs of layers of {counted(len(chosen), 'segment')}.",
        draw,
        rows,
    )


def _rows(segment: Segment, index: int) -> Iterator[Row]:
    pairs = segment.pairs
    keys = ("corr_score", "corr_low", "corr_high", "null", "distance", "lower", "upper")
    for i, source in enumerate(pairs.layers):
        for j, target in enumerate(pairs.layers[i + 1 :], i + 1):
            yield {
                "segment": segment_name(segment.layers, index),
                "from": source,
                "to": target,
                **{key: rows[i][j] if (rows := getattr(pairs, key)) else None for key in keys},
            }
