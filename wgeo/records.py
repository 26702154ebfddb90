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


def write_record(folder: Path, record: Mapping[str, Any], kind: str = ANALYSIS) -> Path:
    """Write a record into a folder, whole or not at all; return its path."""
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
        record = json.loads(path.read_text(encoding="utf-8"))
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
    needed = _NEEDED[kind]
    missing = [key for key in needed if key not in record]
    if missing:
        raise RecordError(f"{path} lacks {', '.join(missing)}; analyse the checkpoint again.")
    kinds = {**needed, **_OPTIONAL}
    wrong = [key for key in kinds if key in record and not isinstance(record[key], kinds[key])]
    for key in _ROWS:
        rows = record.get(key, [])
        if key not in wrong and not all(isinstance(row, dict) for row in rows):
            wrong.append(key)
    if wrong:
        raise RecordError(f"{path} is damaged in {', '.join(wrong)}; analyse the checkpoint again.")
    return record


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
