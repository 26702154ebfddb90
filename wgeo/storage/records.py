"""Records of analyses on disk: JSON, written atomically and validated when read."""

from __future__ import annotations

import itertools
import json
import math
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..errors import RecordError
from ..text import first_names, printable
from . import ownership, schema
from .files import as_path, require_regular

SCHEMA = 2
ANALYSIS, SERIES = "analysis.json", "series.json"
_MAX_BYTES = 2**26  # largest record read; that of a network of a hundred layers has a million
_SERIES_FACTOR = 16  # a series, which contains many records, may be this many times as large
_MAX_NAMED = 5  # number of missing or invalid keys that an error names
_SCHEMAS = {ANALYSIS: schema.ANALYSIS, SERIES: schema.SERIES}
_ADVICE = {
    ANALYSIS: "make one with `wgeo analyze`",
    SERIES: "make one with `wgeo analyze` of several checkpoints",
}


def require_writable(folder: Path, kind: str) -> Path:
    """Return `folder` if a record of this kind can be written to it.

    An analysis and a series cannot share a folder, since the figures and report of one would
    replace those of the other.

    Raises
    ------
    RecordError
        The folder contains a record of the other kind, or a file with the record's name that wgeo
        did not write.
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
    """Return the kind of a folder's record, `SERIES` or `ANALYSIS`; the latter if there is none."""
    return SERIES if (run / SERIES).is_file() and not (run / ANALYSIS).exists() else ANALYSIS


def read_record(folder: str | os.PathLike[str], kind: str = ANALYSIS) -> dict[str, Any]:
    """Read and validate a record.

    Parameters
    ----------
    folder : path
        The run's folder, or the file itself.
    kind : str
        The file's name, `ANALYSIS` or `SERIES`.

    Raises
    ------
    RecordError
        The record is missing, damaged or of another schema.
    """
    path = as_path(folder, "folder")
    name = printable(path, 1000)
    try:
        path = path / kind if path.is_dir() else path
        name = printable(path, 1000)
        text = _text(path, kind)
        # NaN, which is not JSON but which other tools may write, means undefined.
        record = json.loads(text, parse_constant=lambda _: None)
    except (FileNotFoundError, NotADirectoryError) as error:
        raise RecordError(f"No analysis at {name}; {_ADVICE[kind]}.") from error
    except (OSError, ValueError, RecursionError) as error:
        reason = (error.strerror if isinstance(error, OSError) else None) or error
        raise RecordError(f"{name} is not a readable record: {printable(str(reason))}") from error
    number = record.get("schema") if isinstance(record, dict) else None
    if not schema.whole(number) or number not in (1, SCHEMA):
        version = repr(number if isinstance(record, dict) else type(record).__name__)
        raise RecordError(
            f"{name} has schema {printable(version)}; this wgeo reads schema {SCHEMA}. Analyze "
            "the checkpoint again, or use the version of wgeo that wrote it."
        )
    record = _upgraded(record)
    _check(record, kind, name)
    if kind == SERIES:
        _check_series(record, name)
    return record


def _upgraded(record: dict[str, Any]) -> dict[str, Any]:
    """Convert a record or series of schema 1 to schema 2.

    In schema 1 the verdict was a single text; all other keys have the same meaning.
    """
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
    """Split the verdict of a record of schema 1 into sentences, which have no evidence."""
    parts = re.split(r"(?<=[.!?])\s+(?=[A-Z])", verdict.strip())
    return [{"claim": "schema 1", "words": part} for part in parts if part]


def _text(path: Path, kind: str) -> str:
    """Read a record's text; raise an error for pipes, devices and files that are far too large."""
    require_regular(path)
    if path.stat().st_size > _MAX_BYTES * (_SERIES_FACTOR if kind == SERIES else 1):
        raise ValueError(f"it has {path.stat().st_size} bytes, far more than any record")
    return path.read_text(encoding="utf-8")


def check_record(record: Mapping[str, Any], name: str) -> None:
    """Raise a RecordError unless this is the record of an analysis, called `name`."""
    _check(record, ANALYSIS, name)


def _check(record: Mapping[str, Any], kind: str, name: str) -> None:
    """Raise a RecordError that names the values that violate the schema."""
    faults = list(itertools.islice(schema.faults(record, _SCHEMAS[kind]), _MAX_NAMED + 1))
    if not faults:
        rows = [record, *record.get("analyses", ())]
        faults = [fault for row in rows for fault in schema.mismatched(row)][: _MAX_NAMED + 1]
    if faults:
        missing = [fault.location for fault in faults if fault.missing]
        invalid = [fault.location for fault in faults if not fault.missing]
        reasons = [f"lacks {first_names(missing, _MAX_NAMED)}"] if missing else []
        reasons += [f"is damaged in {first_names(invalid, _MAX_NAMED)}"] if invalid else []
        raise RecordError(f"{name} {' and '.join(reasons)}; analyze the checkpoint again.")


def _check_series(record: Mapping[str, Any], name: str) -> None:
    rows = record["analyses"]
    epochs = [epoch_of(row) for row in rows]
    if record["axis"] not in ("epoch", "name") or len(rows) < 2:
        raise RecordError(
            f"{name} is not a series: it needs at least two analyses, by epoch or by name."
        )
    if record["axis"] == "epoch" and None in epochs:
        raise RecordError(f"{name} is a series by epoch, but an analysis has no epoch.")


def epoch_of(record: Mapping[str, Any]) -> int | None:
    """Return the epoch of an analysis's checkpoint; None if unknown."""
    epoch = record["provenance"].get("epoch")
    return epoch if isinstance(epoch, int) and not isinstance(epoch, bool) else None


def as_json(value: Any) -> Any:
    """Convert a value to JSON types: NumPy numbers to Python's, NaN and infinity to null."""
    if isinstance(value, Mapping):
        return {str(key): as_json(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [as_json(item) for item in value]
    if hasattr(value, "tolist"):  # arrays and numbers of NumPy and torch
        return as_json(value.tolist())
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    if value is None or isinstance(value, bool | int | float | str):
        return str(value) if isinstance(value, str) else value
    raise TypeError(f"a record cannot contain {type(value).__name__}")
