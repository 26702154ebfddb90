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
    """Check that a record, its figures and its report can be written without replacing other files.

    Raises
    ------
    RecordError
        A file that wgeo did not write is in the way (the message names it), or the folder contains
        a record of the other kind.
    """
    home = records.require_writable(Path(folder), kind)
    require_figures_writable(home / "figures", series=kind == SERIES)
    if with_report:
        report.require_report_writable(home)


def save(
    folder: str | os.PathLike[str], record: Mapping[str, Any], kind: str, shown: Mapping[str, Any]
) -> Path:
    """Write a record, then the figures of `shown`; return the record's path.

    Raises
    ------
    RecordError
        The record or, as the message says, only its figures could not be written; or files that
        wgeo did not write are in the way, and nothing was written.
    """
    home = writable(folder)
    require_writable(home, kind)
    path = records.write_record(home, record, kind)
    try:
        plots.figures(shown, home / "figures")
    except (RecordError, OSError) as error:
        raise RecordError(
            f"The record is complete, {path}, but not all of its figures are written: {error} "
            f"`wgeo report {home}` draws them once that is fixed."
        ) from error
    return path
