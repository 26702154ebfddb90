"""Sources of figures: records, objects that have a record, and results."""

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
"""Kinds of records that can be drawn: name, call that returns one, and file."""


def as_record(source: Any, *kinds: str) -> Record:
    """Return the typed record of an `Analysis`, its mapping, or a result of one of the `kinds`."""
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
    """Return the kind of a mapping, which one of its keys shows; "" for other objects."""
    if not isinstance(record, Mapping):
        return ""
    keys = {"analyses": "series", "certificate": "solution"}
    return next((kind for key, kind in keys.items() if key in record), "analysis")


def as_mapping(source: Any, *kinds: str, of: str = "analysis") -> Mapping[str, Any]:
    """Return the record of the source as a mapping, or raise `ArgumentError` if it has none.

    The figure can draw the results `kinds` (keys of `SOURCES`) and records of the kind `of` (a key
    of `_RECORDS`).
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
