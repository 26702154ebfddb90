"""Analyses side by side: the checkpoints of one training, or several networks."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .. import report
from ..errors import ArgumentError
from ..plots.series import series_rows
from ..storage.records import SCHEMA, SERIES, as_table, check_record, epoch_of, read_record
from .saving import claim, save
from .views import training_view

if TYPE_CHECKING:
    import pandas as pd

_HEAVY = ("view", "quantiles", "sample_sizes", "brenier")  # of no use side by side


@dataclass(frozen=True, eq=False)
class Series:
    """Several analyses, in order: by epoch where each says a different one, else as given.

    Attributes
    ----------
    record : dict
        ``axis``, ``epoch`` or ``name``; ``analyses``, each the record of one analysis without its
        per-sample parts, with its ``name`` and the ``folder`` that holds it; by epoch,
        ``last_layer``, where the classes go over the training (`training_view`). `series.json`.
    """

    record: dict[str, Any]

    @classmethod
    def of(cls, analyses: Mapping[str, Mapping[str, Any]], folders: Sequence[Any] = ()) -> Series:
        """Put records side by side.

        Parameters
        ----------
        analyses : mapping of str to dict
            Name to record.
        folders : sequence of path, optional
            Where each analysis lies, for links from a report.

        Raises
        ------
        ArgumentError
            Fewer than two.
        RecordError
            Something that is no record of an analysis.
        """
        if len(analyses) < 2:
            raise ArgumentError("A series needs at least two analyses.")
        for name, record in analyses.items():
            check_record(record, name)
        places: list[str | None] = [str(folder) for folder in folders] or [None] * len(analyses)
        rows = [
            {**_light(record), "name": name, "folder": place}
            for (name, record), place in zip(analyses.items(), places, strict=True)
        ]
        known = {epoch_of(row) for row in rows} - {None}
        by_epoch = len(known) == len(rows) and len({_training(row) for row in rows}) == 1
        made: dict[str, Any] = {"schema": SCHEMA, "axis": "epoch" if by_epoch else "name"}
        if by_epoch:
            rows.sort(key=lambda row: row["provenance"]["epoch"])
            if moving := training_view([analyses[row["name"]] for row in rows]):
                made["last_layer"] = moving
        return cls({**made, "analyses": rows})

    @classmethod
    def of_folders(cls, folders: Sequence[str | os.PathLike[str]]) -> Series:
        """Read saved analyses and put them side by side, under the names of their folders."""
        paths = [Path(folder).resolve() for folder in folders]
        records = [read_record(path) for path in paths]
        places = [path if path.is_dir() else path.parent for path in paths]
        return cls.of(dict(zip(_apart(places), records, strict=True)), places)

    @classmethod
    def load(cls, folder: str | os.PathLike[str]) -> Series:
        """Read a saved series back.

        Raises
        ------
        RecordError
            No record there, or one that is damaged or of another schema.
        """
        record = read_record(folder, SERIES)
        home = Path(folder) if Path(folder).is_dir() else Path(folder).parent
        rows = [
            {**row, "folder": str(home.resolve() / row["folder"]) if row.get("folder") else None}
            for row in record["analyses"]
        ]
        return cls({**record, "analyses": rows})

    def save(self, folder: str | os.PathLike[str]) -> Path:
        """Write ``series.json`` and then the figures into a folder; return the record's path.

        Raises
        ------
        RecordError
            As of `Analysis.save`.
        """
        home = Path(folder)
        rows = [
            {**row, "folder": _seen_from(row["folder"], home)} for row in self.record["analyses"]
        ]
        return save(home, {**self.record, "analyses": rows}, SERIES, self.record)

    def report(self, folder: str | os.PathLike[str], *, pdf: bool = False) -> Path:
        """Save into a folder and build its report; return what `wgeo.report.build` does."""
        claim(folder, SERIES, with_report=True)
        self.save(folder)
        return report.build(folder, pdf=pdf)

    def to_dict(self) -> dict[str, Any]:
        """Return the record."""
        return self.record

    def to_pandas(self) -> pd.DataFrame:
        """Return a table with a row an analysis and segment."""
        return as_table(series_rows(self.record))


def _light(record: Mapping[str, Any]) -> dict[str, Any]:
    rows = {
        key: [{k: v for k, v in row.items() if k not in _HEAVY} for row in record[key]]
        for key in ("layers", "blocks", "segments")
    }
    return {**record, **rows}


def _training(record: Mapping[str, Any]) -> tuple[Any, ...]:
    """What the checkpoints of one training have in common: network, images, and their folder."""
    about = record["provenance"]
    folder = Path(str(about.get("checkpoint"))).parent
    same = ("arch", "num_classes", "data", "split", "samples", "pool")
    return (folder, *(str(about.get(key)) for key in same))


def _seen_from(place: str | None, folder: Path) -> str | None:
    """A folder relative to the series', where it lies inside: the two may move together."""
    if place is None:
        return None
    path, home = Path(place).resolve(), folder.resolve()
    return str(path.relative_to(home)) if path.is_relative_to(home) else str(path)


def _apart(paths: Sequence[Path]) -> list[str]:
    """The shortest ends of paths that tell them apart."""
    for depth in range(1, max(len(path.parts) for path in paths) + 1):
        names = ["/".join(path.parts[-depth:]) for path in paths]
        if len(set(names)) == len(names):
            return names
    raise ArgumentError("The same analysis was given twice.")
