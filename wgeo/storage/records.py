"""Records of analyses on disk: JSON, written atomically and validated when read."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar

from ..errors import RecordError
from ..text import printable
from . import ownership
from .files import as_path, read_regular
from .record import Record, SeriesRecord
from .schema import is_whole, raise_on, read

SCHEMA = 2
ANALYSIS, SERIES = "analysis.json", "series.json"
_MAX_BYTES = 2**26  # largest record that is read; a hundred layers need 1 MB
_SERIES_FACTOR = 16  # a series may be larger by this factor, because it contains many records
_TYPES: dict[str, Any] = {ANALYSIS: Record, SERIES: SeriesRecord}
R = TypeVar("R", Record, SeriesRecord)
_ADVICE = {
    ANALYSIS: "make one with `wgeo analyze`",
    SERIES: "make one with `wgeo analyze` of several checkpoints",
}


def require_writable(folder: Path, kind: str) -> Path:
    """Return `folder` if a record of this kind can be written to it.

    Raises
    ------
    RecordError
        The folder contains a record of the other kind, whose figures and report would be replaced,
        or a file with the record's name that wgeo did not write.
    """
    other = SERIES if kind == ANALYSIS else ANALYSIS
    if (folder / other).exists():
        raise RecordError(
            f"{folder} already holds {other}, whose figures and report this would replace. Choose "
            "another folder."
        )
    ownership.require_writable(folder, kind)
    return folder


def write_record(folder: Path, record: Mapping[str, Any], kind: str = ANALYSIS) -> Path:
    """Write a record to a folder atomically; return its path."""
    require_writable(folder, kind)
    with ownership.owned(folder) as owner:
        owner.write({kind: json.dumps(record, indent=1, allow_nan=False)})
    return folder / kind


def kind_of(run: Path) -> str:
    """Return `SERIES` if a folder contains only the record of a series, otherwise `ANALYSIS`."""
    return SERIES if (run / SERIES).is_file() and not (run / ANALYSIS).exists() else ANALYSIS


def read_record(folder: str | os.PathLike[str], kind: str = ANALYSIS) -> dict[str, Any]:
    """Read and validate a record, as a plain mapping; see `typed_record`."""
    return dict(typed_record(folder, kind).json)


def typed_record(folder: str | os.PathLike[str], kind: str = ANALYSIS) -> Record | SeriesRecord:
    """Read and validate a record; `folder` may also be its file.

    Raises
    ------
    RecordError
        The record is missing, damaged or of another schema.
    """
    path = as_path(folder, "folder")
    path = path / kind if os.path.isdir(path) else path
    name = printable(path, 1000)
    try:
        limit = _MAX_BYTES * (_SERIES_FACTOR if kind == SERIES else 1)
        # NaN and infinity, which are not JSON but which other tools may write, mean undefined.
        record = json.loads(read_regular(path, limit), parse_constant=lambda _: None)
    except (FileNotFoundError, NotADirectoryError) as error:
        raise RecordError(f"No analysis at {name}; {_ADVICE[kind]}.") from error
    except (OSError, ValueError, RecursionError) as error:
        reason = (error.strerror if isinstance(error, OSError) else None) or error
        raise RecordError(f"{name} is not a readable record: {printable(str(reason))}") from error
    number = record.get("schema") if isinstance(record, dict) else None
    if not is_whole(number) or number not in (1, SCHEMA):
        version = repr(number if isinstance(record, dict) else type(record).__name__)
        raise RecordError(
            f"{name} has schema {printable(version)}; this wgeo reads schema {SCHEMA}. Analyze "
            "the checkpoint again, or use the version of wgeo that wrote it."
        )
    return check_record(_upgraded(record), name, _TYPES[kind])


def _upgraded(record: dict[str, Any]) -> dict[str, Any]:
    """Convert a record of schema 1, in which only the verdict differs: it is a single text."""
    if record["schema"] == SCHEMA:
        return record
    upgraded = {**record, "schema": SCHEMA}
    if isinstance(record.get("verdict"), str):
        upgraded["verdict"] = _sentences(record["verdict"])
    for key in ("embedded", "reference"):
        inner = record.get(key)
        if isinstance(inner, dict) and isinstance(inner.get("verdict"), str):
            upgraded[key] = {**inner, "verdict": _sentences(inner["verdict"])}
    if isinstance(record.get("analyses"), list):
        upgraded["analyses"] = [
            _upgraded({**row, "schema": 1}) if isinstance(row, dict) else row
            for row in record["analyses"]
        ]
    return upgraded


def _sentences(verdict: str) -> list[dict[str, Any]]:
    """Split a verdict of schema 1 into sentences, without evidence."""
    parts = re.split(r"(?<=[.!?])\s+(?=[A-Z])", verdict.strip())
    return [{"claim": "schema 1", "words": part} for part in parts if part]


def check_record(value: Any, name: str, kind: type[R]) -> R:
    """Return a record, called `name`, as its type; raise a RecordError if it is damaged."""
    advice = "; analyze the checkpoint again"
    record, faults = read(kind, value)
    raise_on(faults, name, advice)
    raise_on(list(record.mismatches()), name, advice)
    if isinstance(record, SeriesRecord):
        _check_series(record, name)
    return record  # type: ignore[no-any-return]


def _check_series(series: SeriesRecord, name: str) -> None:
    if series.axis not in ("epoch", "name") or len(series.analyses) < 2:
        raise RecordError(
            f"{name} is not a series: it needs at least two analyses, by epoch or by name."
        )
    if series.axis == "epoch" and any(row.epoch is None for row in series.analyses):
        raise RecordError(f"{name} is a series by epoch, but an analysis has no epoch.")
