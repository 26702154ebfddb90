"""What an analysis or a series leaves in a folder: the record first, then what is drawn of it."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from .. import plots, report
from ..errors import RecordError
from ..plots.files import claim_figures
from ..storage import records
from ..storage.files import writable
from ..storage.records import ANALYSIS, SERIES


def claim(
    folder: str | os.PathLike[str], kind: str = ANALYSIS, *, with_report: bool = False
) -> None:
    """Refuse a folder if files of someone else's lie where a record, its figures or report go.

    Raises
    ------
    RecordError
        The message names the file; or the folder holds a record of the other kind.
    """
    home = records.claim(Path(folder), kind)
    claim_figures(home / "figures", series=kind == SERIES)
    if with_report:
        report.claim_report(home)


def save(
    folder: str | os.PathLike[str], record: Mapping[str, Any], kind: str, shown: Mapping[str, Any]
) -> Path:
    """Write a record, whole; then the figures of what is `shown`. Return the record's path.

    Raises
    ------
    RecordError
        The record or, as the message says, only its figures could not be written; or files of
        someone else's lie there, and nothing was written.
    """
    home = writable(folder)
    claim(home, kind)
    written = records.write_record(home, record, kind)
    try:
        plots.figures(shown, home / "figures")
    except (RecordError, OSError) as error:
        raise RecordError(
            f"The record is whole, {written}, but not all of its figures are written: {error} "
            f"`wgeo report {home}` draws them once that is mended."
        ) from error
    return written
