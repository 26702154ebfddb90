"""The map of correlation scores between every two layers of a segment."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import BoundaryNorm
from matplotlib.figure import Figure
from matplotlib.image import AxesImage

from ..errors import ArgumentError
from .plot import Plot, Row
from .style import (
    INK,
    as_record,
    inches_wide,
    new_axes,
    new_figure,
    nothing_to_show,
    numbers,
    segment_name,
    short_names,
    styled,
)

_ROOM = 0.27  # inches that a cell needs for its number
_STEPS = (0.0, 0.25, 0.5, 0.75, 0.9, 0.95, 0.99, 1.0)  # finest where words change
_NORM = BoundaryNorm(_STEPS, 256, extend="min")
_COLUMNS = 2  # panels beside each other


@styled
def correlation_pairs(record: Any, segment: int = 0, ax: Axes | None = None) -> Axes:
    """The correlation score of the map from each layer (row) to each later one (column).

    1 for an optimal map. Numbers in brackets are not clearly above the scores of null maps, so that
    the samples cannot tell.

    Parameters
    ----------
    segment : int
        Which of the record's segments, from 0.

    Raises
    ------
    ArgumentError
        No such segment.
    """
    record = as_record(record)
    ax = new_axes(ax, 3.6, 3.2)
    segments = record.get("segments") or []
    if not segments:
        return nothing_to_show(ax, "This record has no segments.")
    if not -len(segments) <= segment < len(segments):
        raise ArgumentError(f"no segment {segment}; this record has {len(segments)} (from 0).")
    found = segments[segment]
    ax.set_title(segment_name(found, segment % len(segments)))
    scores = _scores(found)
    if not np.isfinite(scores).any():
        return nothing_to_show(ax, "This segment has no scores between every two layers.")
    names = short_names(found["pairs"]["layers"], 18)
    shown = scores[:-1, 1:]  # the first layer is the end of no map, the last the start of none
    image = ax.imshow(shown, norm=_NORM, cmap="cividis", interpolation="nearest", aspect="auto")
    if len(ax.get_figure(root=True).axes) == 1:  # type: ignore[union-attr]
        _key(image, ax)
    ax.set_xticks(range(len(names) - 1), names[1:], rotation=90)
    ax.set_yticks(range(len(names) - 1), names[:-1])
    ax.tick_params(length=0)
    ax.set_xlabel("to")
    ax.set_ylabel("from")
    ax.spines[:].set_visible(False)
    if inches_wide(ax) / len(shown) >= _ROOM:
        _write(ax, shown, _doubtful(record, found)[:-1, 1:])
    return ax


def _key(image: AxesImage, of: Any) -> None:
    """What the colours say: one key for all panels of a figure."""
    bar = image.figure.colorbar(image, ax=of, extend="min", ticks=_STEPS, fraction=0.05)
    bar.outline.set_visible(False)
    bar.ax.tick_params(length=0)


def _write(ax: Axes, scores: np.ndarray, doubtful: np.ndarray) -> None:
    """Write its number into every cell."""
    for (i, j), value in np.ndenumerate(scores):
        if np.isfinite(value):
            text = f"{value:.2f}".replace("-", "−").replace("0.", ".")
            said = f"({text})" if doubtful[i, j] else text
            colour = INK if value > 0.75 else "white"
            ax.text(j, i, said, ha="center", va="center", fontsize=6, color=colour)


def _scores(segment: Mapping[str, Any], key: str = "corr_score") -> np.ndarray:
    """A matrix of the pairs, NaN where the row's layer is not before the column's."""
    rows = (segment.get("pairs") or {}).get(key) or []
    matrix = np.array([numbers(row) for row in rows]).reshape(len(rows), len(rows))
    return np.where(np.triu(np.ones(matrix.shape, bool), 1), matrix, np.nan)


def _doubtful(record: Mapping[str, Any], segment: Mapping[str, Any]) -> np.ndarray:
    """Which scores are not clearly above those of null maps; False where no null map was solved."""
    low = _scores(segment, "corr_low")
    if not (segment.get("pairs") or {}).get("null"):
        return np.zeros(low.shape, bool)
    least = (record.get("thresholds") or {}).get("power_margin") or 0.0
    margin = max(least, 1 / math.sqrt(segment.get("samples") or 1))
    return low <= _scores(segment, "null") + margin


def pairs_plot(record: Mapping[str, Any]) -> Plot | None:
    """The figure of every segment's pairs; None where the record has none."""
    segments = record.get("segments") or []
    chosen = [i for i, segment in enumerate(segments) if np.isfinite(_scores(segment)).any()]
    if not chosen:
        return None

    @styled
    def draw() -> Figure:
        columns = min(_COLUMNS, len(chosen))
        lines = -(-len(chosen) // columns)
        figure = new_figure(0.5 + 3.35 * columns, 0.3 + 3.1 * lines)
        panels = figure.subplots(lines, columns, squeeze=False).ravel()
        for i, ax in zip(chosen, panels, strict=False):
            correlation_pairs(record, i, ax)
        for ax in panels[len(chosen) :]:
            ax.set_axis_off()
        if len(panels) > 1:  # a panel alone has its own key
            _key(panels[0].images[0], list(panels))
        return figure

    def rows() -> list[Row]:
        return [row for i in chosen for row in _rows(segments[i], i)]

    return Plot(
        "correlation-pairs",
        "From where to where is the map optimal?",
        "Correlation score of the map from the layer of the row to that of the column, 1 for "
        "an optimal map and bright yellow from 0.99 on. The top right "
        "corner is the whole segment, the diagonal its single blocks. Read the last column "
        "downwards: the first bright cell says from which layer on the way to the end is optimal. "
        "In brackets: null maps, the same displacements given to the wrong samples, score about as "
        "high, so that these samples cannot tell; null maps are solved for single blocks and for "
        "the last column.",
        f"Correlation scores between every two layers of {len(chosen)} segments.",
        draw,
        rows,
    )


def _rows(segment: Mapping[str, Any], index: int) -> Iterator[Row]:
    pairs = segment["pairs"]
    keys = ("corr_score", "corr_low", "corr_high", "null", "distance", "lower", "upper")
    for i, source in enumerate(pairs["layers"]):
        for j, target in enumerate(pairs["layers"][i + 1 :], i + 1):
            yield {
                "segment": segment_name(segment, index),
                "from": source,
                "to": target,
                **{key: pairs[key][i][j] if pairs.get(key) else None for key in keys},
            }
