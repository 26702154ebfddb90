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
    return source if isinstance(source, SeriesRecord) else SeriesRecord.of(as_mapping(source))


def is_series(source: Any) -> bool:
    """Return whether a record, or an object with one, is that of a series."""
    record = getattr(source, "record", source)
    return isinstance(record, SeriesRecord) or (
        isinstance(record, Mapping) and "analyses" in record
    )


def as_mapping(source: Any, *kinds: str) -> Mapping[str, Any]:
    """Return the record of an `Analysis`, the record itself, or a result converted to a record.

    Parameters
    ----------
    kinds : str
        Types of the results (keys of `SOURCES`) that the figure can draw.

    Raises
    ------
    ArgumentError
        `source` cannot be drawn; the message lists what the figure can draw.
    """
    kind = type(source).__name__ if isinstance(source, Displayed) else ""
    if kind in kinds:
        return dict(as_json(source._record()))
    record = getattr(source, "record", source)
    if kind in SOURCES or not isinstance(record, Mapping):
        results = ", ".join(["wgeo.analyze(net, images)", *(SOURCES[kind] for kind in kinds)])
        raise ArgumentError(
            f"this figure cannot draw {type(source).__name__}. It draws the result of {results}, "
            "or the record in RUN/analysis.json, as json.load reads it."
        )
    return record
