"""What figures are drawn from: records, objects that have a record, and results."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ..errors import ArgumentError
from ..results import Displayed
from ..storage.record import Record, SeriesRecord
from ..storage.schema import as_json

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
"""Kinds of records that can be drawn: their names, calls that return them, and their files."""


def as_record(source: Any, *kinds: str) -> Record:
    """Return the typed record of an `Analysis` or of its mapping; convert a result to a record.

    Parameters
    ----------
    kinds : str
        Types of the results (keys of `SOURCES`) that the figure can draw.
    """
    return source if isinstance(source, Record) else Record.of(as_mapping(source, *kinds))


def as_series(source: Any) -> SeriesRecord:
    """Return the typed record of a `Series` or of its mapping."""
    if isinstance(source, SeriesRecord):
        return source
    return SeriesRecord.of(as_mapping(source, of="series"))


def is_series(source: Any) -> bool:
    """Return whether a record, or an object with one, is that of a series."""
    record = getattr(source, "record", source)
    return isinstance(record, SeriesRecord) or _kind(record) == "series"


def _kind(record: Any) -> str:
    """Return the kind of a mapping, by a key that its file must have; "" for other objects."""
    if not isinstance(record, Mapping):
        return ""
    keys = {"analyses": "series", "certificate": "solution"}
    return next((kind for key, kind in keys.items() if key in record), "analysis")


def as_mapping(source: Any, *kinds: str, of: str = "analysis") -> Mapping[str, Any]:
    """Return the record of an `Analysis`, the record itself, or a result converted to a record.

    Parameters
    ----------
    kinds : str
        Types of the results (keys of `SOURCES`) that the figure can draw.
    of : str
        Kind of the records (key of `_RECORDS`) that the figure can draw.

    Raises
    ------
    ArgumentError
        `source` cannot be drawn; the message lists what the figure can draw.
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
