"""What figures are drawn from (records and results), and what they are composed of."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from ..errors import ArgumentError
from ..results import Displayed
from ..storage.record import Record, SeriesRecord
from ..storage.schema import as_json
from ..text import counted
from .style import SIZES, legend_of_figure, new_figure, styled

Row = dict[str, Any]


@dataclass(frozen=True)
class Plot:
    """A figure of a record, before it is drawn.

    Attributes
    ----------
    stem : str
        Name of its files, without the extension.
    title, caption, alt : str
        Title, explanation of how to read the figure, and description for those who cannot see it.
    draw : callable
        Returns the matplotlib figure.
    rows : callable
        Returns the plotted numbers, one mapping per row.
    """

    stem: str
    title: str
    caption: str
    alt: str
    draw: Callable[[], Figure]
    rows: Callable[[], list[Row]]


@styled
def page_figure(
    height: float,
    panels: Sequence[Callable[[Axes], Any]],
    legend: Callable[[], tuple[list[Line2D], list[str]]] | None = None,
    *,
    columns: int = 1,
    height_ratios: Sequence[float] | None = None,
    **options: Any,
) -> Figure:
    """Return a figure of page width: panels in rows and columns, with a common legend.

    `legend` returns its handles and names; `options` are those of `legend_of_figure`.
    """
    figure = new_figure(SIZES["page"][0], height)
    rows = len(panels) // columns
    grid = figure.subplots(rows, columns, squeeze=False, height_ratios=height_ratios)
    for panel, ax in zip(panels, grid.flat, strict=True):
        panel(ax)
    if legend is not None:
        legend_of_figure(figure, *legend(), **options)
    return figure


SOURCES = {
    "Trajectory": "wgeo.trace(net, images)",
    "TransportResult": "wgeo.wasserstein(x, y)",
    "Straightness": "wgeo.straightness(traj)",
    "BlockTransport": "its .blocks[i]",
    "SegmentStraightness": "its .segments[i]",
    "BiasCurve": "wgeo.bias_curve(x, y)",
    "Collapse": "wgeo.collapse(traj)",
    "SeparationLaw": "wgeo.separation_law(traj)",
    "Alignment": "wgeo.alignment(net, images)",
    "Comparison": "wgeo.compare(traj)",
}
"""Results that can be drawn, and the calls that return them."""

_RECORDS = {
    "analysis": ("an analysis", "wgeo.analyze(net, images)", "RUN/analysis.json"),
    "series": ("a series", "wgeo.analysis.Series.of(records)", "RUN/series.json"),
    "solution": ("a solution", "wgeo.ufm.fit_ce(labels, ...)", "OUT/solution.json"),
}
"""Kinds of records that can be drawn: name, call that returns one, and file."""


def as_record(source: Any, *kinds: str) -> Record:
    """Return the typed record of an `Analysis`, of its mapping, or of a result in `kinds`."""
    return source if isinstance(source, Record) else Record.of(as_mapping(source, *kinds))


def as_series(source: Any) -> SeriesRecord:
    if isinstance(source, SeriesRecord):
        return source
    return SeriesRecord.of(as_mapping(source, of="series"))


def is_series(source: Any) -> bool:
    """Return whether the source is a series or its record."""
    record = getattr(source, "record", source)
    return isinstance(record, SeriesRecord) or _kind(record) == "series"


def _kind(record: Any) -> str:
    """Return which key of `_RECORDS` describes a mapping; "" for other objects."""
    if not isinstance(record, Mapping):
        return ""
    keys = {"analyses": "series", "certificate": "solution"}
    return next((kind for key, kind in keys.items() if key in record), "analysis")


def as_mapping(source: Any, *kinds: str, of: str = "analysis") -> Mapping[str, Any]:
    """Return the record of the source as a mapping, or raise `ArgumentError` if it has none.

    A figure can draw the results `kinds` (keys of `SOURCES`) and records of the kind `of` (a key of
    `_RECORDS`).
    """
    name = type(source).__name__
    result = name if isinstance(source, Displayed) else ""
    if result in kinds:
        return dict(as_json(source._record()))
    record = getattr(source, "record", source)
    if result in SOURCES or _kind(record) != of:
        given = f"the record of {_RECORDS[_kind(source)][0]}" if _kind(source) else name
        _, call, file = _RECORDS[of]
        results = ", ".join([call, *(SOURCES[kind] for kind in kinds)])
        raise ArgumentError(
            f"this figure cannot draw {given}. It draws the result of {results}, or the record in "
            f"{file}, as json.load reads it."
        )
    return record  # type: ignore[no-any-return]


def segment_at(segments: Sequence[Any], index: int, source: str = "record") -> Any:
    """Return the segment of this index, or raise `ArgumentError`."""
    if not -len(segments) <= index < len(segments):
        count = counted(len(segments), "segment")
        raise ArgumentError(f"no segment {index}; this {source} has {count}, numbered from 0.")
    return segments[index]
