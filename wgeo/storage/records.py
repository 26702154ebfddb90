"""Records on disk: plain numbers and words as JSON, written whole, read back with suspicion."""

from __future__ import annotations

import itertools
import json
import math
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from ..errors import DependencyError, RecordError
from . import ownership, schema
from .files import as_path, printable, regular

if TYPE_CHECKING:
    import pandas as pd

SCHEMA = 2
ANALYSIS, SERIES = "analysis.json", "series.json"
_LARGEST = 2**26  # bytes; the record of a network of a hundred layers takes one million
_SERIES_LARGEST = 16  # times as many: a series holds many records
_SHOWN = 5  # places of damage that an error names
_HOLDS = {ANALYSIS: schema.ANALYSIS, SERIES: schema.SERIES}
_MAKE = {
    ANALYSIS: "make one with `wgeo analyze`",
    SERIES: "make one with `wgeo analyze` of several checkpoints",
}


def claim(folder: Path, kind: str) -> Path:
    """Return a folder for records of one kind: an analysis and a series would share their report.

    Raises
    ------
    RecordError
        It holds the other kind, or a file of the record's name that wgeo did not write.
    """
    other = SERIES if kind == ANALYSIS else ANALYSIS
    if (folder / other).exists():
        raise RecordError(
            f"{folder} holds {other} already, whose figures and report this would replace. Choose "
            "another folder."
        )
    ownership.claim(folder, kind)
    return folder


def write_record(folder: Path, record: Mapping[str, Any], kind: str = ANALYSIS) -> Path:
    """Write a record into a folder, whole or not at all; return its path."""
    claim(folder, kind)
    with ownership.owned(folder) as home:
        home.write({kind: json.dumps(record, indent=1, allow_nan=False)})
    return folder / kind


def read_record(place: str | os.PathLike[str], kind: str = ANALYSIS) -> dict[str, Any]:
    """Read a record back.

    Parameters
    ----------
    place : path
        The run's folder, or the file itself.
    kind : str
        `ANALYSIS` or `SERIES`, the file's name.

    Raises
    ------
    RecordError
        No record there, or one that is damaged or of another schema.
    """
    path = as_path(place, "place")
    where = printable(path, 1000)
    try:
        path = path / kind if path.is_dir() else path
        where = printable(path, 1000)
        text = _text(path, kind)
        # NaN is no JSON; where another tool wrote it, it is undefined.
        record = json.loads(text, parse_constant=lambda _: None)
    except (FileNotFoundError, NotADirectoryError) as error:
        raise RecordError(f"No analysis at {where}; {_MAKE[kind]}.") from error
    except (OSError, ValueError, RecursionError) as error:
        why = (error.strerror if isinstance(error, OSError) else None) or error
        raise RecordError(f"{where} is not a readable record: {printable(str(why))}") from error
    number = record.get("schema") if isinstance(record, dict) else None
    if not schema.whole(number) or number not in (1, SCHEMA):
        found = repr(number if isinstance(record, dict) else type(record).__name__)
        raise RecordError(
            f"{where} has schema {printable(found)}; this wgeo reads schema {SCHEMA}. Analyse "
            "the checkpoint again, or use the version of wgeo that wrote it."
        )
    record = _upgraded(record)
    _check(record, kind, where)
    if kind == SERIES:
        _check_series(record, where)
    return record


def _upgraded(record: dict[str, Any]) -> dict[str, Any]:
    """Return a record of schema 1, or a series of such, as schema 2 has it.

    Schema 1 had its verdict as one text; all its other keys kept their meaning.
    """
    if record["schema"] == SCHEMA:
        return record
    found = {**record, "schema": SCHEMA}
    if isinstance(record.get("verdict"), str):
        found["verdict"] = _quoted(record["verdict"])
    for key in ("embedded", "reference"):
        inner = record.get(key)
        if isinstance(inner, dict) and isinstance(inner.get("verdict"), str):
            found[key] = {**inner, "verdict": _quoted(inner["verdict"])}
    if isinstance(record.get("analyses"), list):
        found["analyses"] = [
            _upgraded({**row, "schema": 1}) if isinstance(row, dict) else row
            for row in record["analyses"]
        ]
    return found


def _quoted(verdict: str) -> list[dict[str, Any]]:
    """Return the verdict of a record of schema 1 as sentences; their evidence was not kept."""
    parts = re.split(r"(?<=[.!?])\s+(?=[A-Z])", verdict.strip())
    return [{"claim": "schema 1", "words": part} for part in parts if part]


def _text(path: Path, kind: str) -> str:
    """What a file says that can be a record: no pipe that never ends, no gigabytes."""
    regular(path)
    if path.stat().st_size > _LARGEST * (_SERIES_LARGEST if kind == SERIES else 1):
        raise ValueError(f"it has {path.stat().st_size} bytes, far more than a record")
    return path.read_text(encoding="utf-8")


def check_record(record: Mapping[str, Any], where: str) -> None:
    """Raise a RecordError where this is no record of an analysis."""
    _check(record, ANALYSIS, where)


def _check(record: Mapping[str, Any], kind: str, where: str) -> None:
    """Raise a RecordError that names what is not as the schema says."""
    wrong = list(itertools.islice(schema.faults(record, _HOLDS[kind]), _SHOWN + 1))
    if not wrong:
        rows = [record, *record.get("analyses", ())]
        wrong = [fault for row in rows for fault in schema.mismatched(row)][: _SHOWN + 1]
    if wrong:
        absent = [fault.place for fault in wrong if fault.missing]
        spoilt = [fault.place for fault in wrong if not fault.missing]
        said = [f"lacks {_listed(absent)}"] if absent else []
        said += [f"is damaged in {_listed(spoilt)}"] if spoilt else []
        raise RecordError(f"{where} {' and '.join(said)}; analyse the checkpoint again.")


def _listed(places: list[str]) -> str:
    more = ", ..." if len(places) > _SHOWN else ""
    return ", ".join(printable(place) for place in places[:_SHOWN]) + more


def _check_series(record: Mapping[str, Any], where: str) -> None:
    rows = record["analyses"]
    epochs = [epoch_of(row) for row in rows]
    if record["axis"] not in ("epoch", "name") or len(rows) < 2:
        raise RecordError(f"{where} is no series of at least two analyses, by epoch or by name.")
    if record["axis"] == "epoch" and None in epochs:
        raise RecordError(f"{where} is by epoch, and an analysis has none.")


def epoch_of(record: Mapping[str, Any]) -> int | None:
    """The epoch of an analysis's checkpoint, where it says one."""
    epoch = record["provenance"].get("epoch")
    return epoch if isinstance(epoch, int) and not isinstance(epoch, bool) else None


def as_table(rows: Any) -> pd.DataFrame:
    """Return a list of rows, or a mapping of columns, as a pandas table.

    Raises
    ------
    DependencyError
        pandas is not installed.
    """
    try:
        import pandas as pd
    except ImportError as error:
        raise DependencyError(
            "A table needs pandas: run `pip install pandas`, or use to_dict()."
        ) from error
    return pd.DataFrame(rows)


def as_json(value: Any) -> Any:
    """Numbers as JSON has them: NumPy's made Python's, NaN and infinity made null."""
    if isinstance(value, Mapping):
        return {str(key): as_json(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [as_json(item) for item in value]
    if isinstance(value, np.ndarray | torch.Tensor):
        return as_json(value.tolist())
    if isinstance(value, np.generic):
        return as_json(value.item())
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    if value is None or isinstance(value, bool | int | float | str):
        return str(value) if isinstance(value, str) else value
    raise TypeError(f"a record cannot hold {type(value).__name__}")
