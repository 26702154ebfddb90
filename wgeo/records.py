"""Records on disk: plain numbers and words as JSON, written whole, read back with suspicion."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

from .errors import RecordError
from .files import write_aside

SCHEMA = 1
ANALYSIS, SERIES = "analysis.json", "series.json"
_NEEDED: dict[str, dict[str, type]] = {
    ANALYSIS: {
        **dict.fromkeys(("provenance", "progress"), dict),
        **dict.fromkeys(("layers", "blocks", "segments"), list),
        "verdict": str,
    },
    SERIES: {"analyses": list, "axis": str},
}
_OPTIONAL = dict.fromkeys(("geodesic_model", "mufm", "versions", "embedded", "reference"), dict)
_ROWS = ("layers", "blocks", "segments", "analyses")
_MAKE = {
    ANALYSIS: "make one with `wgeo analyze`",
    SERIES: "make one with `wgeo analyze` of several checkpoints",
}


def claim(folder: Path, kind: str) -> Path:
    """Return a folder for records of one kind: an analysis and a series would share their report.

    Raises
    ------
    RecordError
        It holds the other kind.
    """
    other = SERIES if kind == ANALYSIS else ANALYSIS
    if (folder / other).exists():
        raise RecordError(
            f"{folder} holds {other} already, whose figures and report this would replace. Choose "
            "another folder with --out."
        )
    return folder


def write_record(folder: Path, record: Mapping[str, Any], kind: str = ANALYSIS) -> Path:
    """Write a record into a folder, whole or not at all; return its path."""
    claim(folder, kind)
    write_aside(folder / kind, json.dumps(record, indent=1, allow_nan=False))
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
    path = Path(place)
    path = path / kind if path.is_dir() else path
    try:
        # NaN is no JSON; where another tool wrote it, it is undefined.
        record = json.loads(path.read_text(encoding="utf-8"), parse_constant=lambda _: None)
    except (FileNotFoundError, NotADirectoryError) as error:
        raise RecordError(f"No analysis at {path}; {_MAKE[kind]}.") from error
    except (OSError, ValueError, RecursionError) as error:
        raise RecordError(f"{path} is not a readable record: {error}") from error
    if not isinstance(record, dict) or record.get("schema") != SCHEMA:
        found = record.get("schema") if isinstance(record, dict) else type(record).__name__
        raise RecordError(
            f"{path} has schema {found!r}; this wgeo reads schema {SCHEMA}. Analyse the "
            "checkpoint again, or use the version of wgeo that wrote it."
        )
    _check(record, _NEEDED[kind], str(path))
    if kind == SERIES:
        _check_series(record, str(path))
    return record


def check_record(record: Mapping[str, Any], where: str) -> None:
    """Raise a RecordError where this is no record of an analysis."""
    _check(record, _NEEDED[ANALYSIS], where)


def _check(record: Mapping[str, Any], needed: Mapping[str, type], where: str) -> None:
    again = "analyse the checkpoint again."
    missing = [key for key in needed if key not in record]
    if missing:
        raise RecordError(f"{where} lacks {', '.join(missing)}; {again}")
    kinds = {**needed, **_OPTIONAL}
    wrong = [key for key in kinds if key in record and not isinstance(record[key], kinds[key])]
    for key in _ROWS:
        rows = record.get(key, [])
        if key not in wrong and not all(isinstance(row, dict) for row in rows):
            wrong.append(key)
    if wrong:
        raise RecordError(f"{where} is damaged in {', '.join(wrong)}; {again}")


def _check_series(record: Mapping[str, Any], where: str) -> None:
    rows = record["analyses"]
    for k, row in enumerate(rows):
        _check(row, {**_NEEDED[ANALYSIS], "name": str}, f"{where}, analysis {k + 1},")
    epochs = [epoch_of(row) for row in rows]
    if record["axis"] not in ("epoch", "name") or len(rows) < 2:
        raise RecordError(f"{where} is no series of at least two analyses, by epoch or by name.")
    if record["axis"] == "epoch" and None in epochs:
        raise RecordError(f"{where} is by epoch, and an analysis has none.")


def epoch_of(record: Mapping[str, Any]) -> int | None:
    """The epoch of an analysis's checkpoint, where it says one."""
    epoch = record["provenance"].get("epoch")
    return epoch if isinstance(epoch, int) and not isinstance(epoch, bool) else None


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
