"""Save an analysis or a series to a folder: first the record, then its figures."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from .. import plots, report
from ..errors import RecordError
from ..plots.files import require_figures_writable
from ..storage import records
from ..storage.files import writable
from ..storage.records import ANALYSIS, SERIES


def require_writable(
    folder: str | os.PathLike[str], kind: str = ANALYSIS, *, with_report: bool = False
) -> None:
    """Check that a record, its figures and, if requested, its report can be written to a folder.

    Raise a RecordError if a file that wgeo did not write would be replaced, or if the folder
    contains a record of the other kind.
    """
    path = records.require_writable(Path(folder), kind)
    require_figures_writable(path / "figures", series=kind == SERIES)
    if with_report:
        report.require_report_writable(path)


def save(
    folder: str | os.PathLike[str], record: Mapping[str, Any], kind: str, shown: Mapping[str, Any]
) -> Path:
    """Write a record, then the figures of the record `shown`; return the path of the record's file.

    If only the figures could not be written, the message of the RecordError says so.
    """
    run = writable(folder)
    require_writable(run, kind)
    path = records.write_record(run, record, kind)
    try:
        plots.figures(shown, run / "figures")
    except (RecordError, OSError) as error:
        raise RecordError(
            f"The record {path} is complete, but not all of its figures were written: {error} "
            f"`wgeo report {run}` draws them once that is fixed."
        ) from error
    return path
