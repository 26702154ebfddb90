"""Comparison of several analyses, of the checkpoints of one training run or of several networks."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float

from .. import report
from ..errors import ArgumentError
from ..plots.series import series_rows
from ..results import Result
from ..storage.record import Provenance, Record
from ..storage.records import SCHEMA, SERIES, check_record, read_record
from ..text import counted
from ..trajectory.views import explained
from .saving import require_writable, save
from .verdict import series_headline

_OMITTED = ("view", "quantiles", "sample_sizes", "brenier")  # from layers, blocks and segments


@dataclass(frozen=True, eq=False, repr=False)
class Series(Result):
    """Analyses of the checkpoints of one training run, or of several networks.

    The networks are checkpoints of one run if their epochs are known and different, and their
    architecture, images, pooling and checkpoint folder are the same. They are then sorted by epoch.
    ``to_pandas()`` has one row per analysis and segment.

    Attributes
    ----------
    record : dict
        The contents of `series.json`: ``axis``, which is ``epoch`` for one run and ``name``
        otherwise; ``headline``; and ``analyses``, each the record of an analysis without details
        that no comparison needs, with its ``name`` and ``folder``. For one run also ``last_layer``,
        the paths of the last layer's class means over training.

    Examples
    --------
    >>> import numpy as np
    >>> import wgeo
    >>> x, labels = np.random.default_rng(0).normal(size=(8, 3)), np.arange(8) % 2
    >>> records = {}
    >>> for factor in (2, 3):
    ...     traj = wgeo.Trajectory.from_arrays([x, factor * x], labels)
    ...     result = wgeo.analysis.analyze_trajectory(traj, bootstrap=0, mufm=False)
    ...     records[f"times {factor}"] = result.record
    >>> series = wgeo.analysis.Series.of(records)
    >>> [analysis["name"] for analysis in series.record["analyses"]]
    ['times 2', 'times 3']
    """

    record: dict[str, Any]

    @classmethod
    def of(cls, analyses: Mapping[str, Mapping[str, Any]], folders: Sequence[Any] = ()) -> Series:
        """Combine records into a series.

        Parameters
        ----------
        analyses : mapping of str to dict
            Records by name.
        folders : sequence of path, optional
            The folder of each analysis, for links in reports.

        Raises
        ------
        ArgumentError
            There are fewer than two analyses, or not as many folders as analyses.
        RecordError
            A value is not the record of an analysis.
        """
        if len(analyses) < 2:
            raise ArgumentError("A series needs at least two analyses.")
        if folders and len(folders) != len(analyses):
            raise ArgumentError(
                f"`folders=` has {counted(len(folders), 'path')} for {len(analyses)} analyses; "
                "give one for each."
            )
        records = {name: check_record(record, name, Record) for name, record in analyses.items()}
        location = {name: str(path) for name, path in zip(records, folders, strict=False)}
        epochs = {record.epoch for record in records.values()} - {None}
        runs = {_training_run(record.provenance) for record in records.values()}
        axis, view = "name", None
        if len(epochs) == len(records) and len(runs) == 1:
            axis = "epoch"
            records = dict(sorted(records.items(), key=lambda item: item[1].epoch or 0))
            view = training_view(list(records.values()))
        rows = [
            {**_without_details(record.json), "name": name, "folder": location.get(name)}
            for name, record in records.items()
        ]
        return cls(
            {
                "schema": SCHEMA,
                "axis": axis,
                **({} if view is None else {"last_layer": view}),
                "headline": series_headline(rows, axis).to_dict(),
                "analyses": rows,
            }
        )

    @classmethod
    def of_folders(cls, folders: Sequence[str | os.PathLike[str]]) -> Series:
        """Load saved analyses and combine them, named after their folders.

        Raises
        ------
        ArgumentError
            There are fewer than two analyses, or one is given twice.
        RecordError
            A folder has no valid record of an analysis.
        """
        paths = [Path(folder).resolve() for folder in folders]
        records = [read_record(path) for path in paths]
        runs = [path if path.is_dir() else path.parent for path in paths]
        return cls.of(dict(zip(_shortest_names(runs), records, strict=True)), runs)

    @classmethod
    def load(cls, folder: str | os.PathLike[str]) -> Series:
        """Load a saved series.

        Raises
        ------
        RecordError
            The folder has no record, or the record is damaged or has another schema.
        """
        record = read_record(folder, SERIES)
        run = Path(folder) if Path(folder).is_dir() else Path(folder).parent
        rows = [
            {**row, "folder": str(run.resolve() / row["folder"]) if row.get("folder") else None}
            for row in record["analyses"]
        ]
        return cls({**record, "analyses": rows})

    def save(self, folder: str | os.PathLike[str]) -> Path:
        """Write ``series.json`` and then the figures to a folder; return the record's path.

        Raises
        ------
        RecordError
            As for `Analysis.save`.
        """
        run = Path(folder)
        rows = [
            {**row, "folder": _relative_to(row["folder"], run)} for row in self.record["analyses"]
        ]
        return save(run, {**self.record, "analyses": rows}, SERIES, self.record)

    def report(self, folder: str | os.PathLike[str], *, pdf: bool = False) -> Path:
        """Save to a folder, and build its report; see `wgeo.report.build` for the result."""
        require_writable(folder, SERIES, with_report=True)
        self.save(folder)
        return report.build(folder, pdf=pdf)

    def to_dict(self) -> dict[str, Any]:
        """Return the record."""
        return self.record

    def _table(self) -> list[dict[str, Any]]:
        return series_rows(self.record)

    def _rows(self) -> list[dict[str, Any]]:
        columns = ("name", "segment", "length_ratio_centred", "corr_score", "accuracy", "nc1")
        return [{name: row.get(name) for name in columns} for row in self._table()]

    def _description(self) -> str:
        return f"{len(self.record['analyses'])} analyses by {self.record['axis']}"


def _without_details(record: Mapping[str, Any]) -> dict[str, Any]:
    rows: dict[str, Any] = {
        key: [{k: v for k, v in row.items() if k not in _OMITTED} for row in record[key]]
        for key in ("layers", "blocks", "segments")
    }
    if aligned := record.get("alignment"):
        rows["alignment"] = {key: value for key, value in aligned.items() if key != "pairs"}
    return {**record, **rows}


def _training_run(provenance: Provenance) -> tuple[Any, ...]:
    """Return values that are equal for all checkpoints of a training run."""
    shared = provenance.only("arch", "num_classes", "data", "split", "samples", "pool")
    return (Path(str(provenance.checkpoint)).parent, *map(str, shared.values()))


def _relative_to(location: str | None, folder: Path) -> str | None:
    """Return a path inside the series' folder as relative, so that the folder can be moved."""
    if location is None:
        return None
    path, parent = Path(location).resolve(), folder.resolve()
    return str(path.relative_to(parent)) if path.is_relative_to(parent) else str(path)


def _shortest_names(paths: Sequence[Path]) -> list[str]:
    """Return the shortest suffixes of the paths that are all different."""
    for depth in range(1, max(len(path.parts) for path in paths) + 1):
        names = ["/".join(path.parts[-depth:]) for path in paths]
        if len(set(names)) == len(names):
            return names
    raise ArgumentError("The same analysis was given twice.")


def training_view(analyses: Sequence[Any]) -> dict[str, Any] | None:
    """Return the paths of the last layer's class means over the epochs of training, in one plane.

    Scale and orientation are irrelevant to collapse. Every epoch is therefore scaled to the same
    spread (root mean square over the samples shown) and rotated onto the next epoch (orthogonal
    Procrustes on the class means). The plane is spanned by the first two principal components of
    the class means of all epochs.

    `analyses` are records of the same images, ordered by epoch. The result contains ``layers``, the
    names of the epochs, and ``view``, like that of a segment. It is None if a record has no
    segment, if its last segment's view has no ``end``, or if the views contain different samples.
    """
    records = [Record.of(analysis) for analysis in analyses]
    views = [record.segments[-1].view for record in records if record.segments]
    same_samples = len({(view.classes, view.labels) for view in views}) == 1
    if len(views) < len(records) or not all(view.end for view in views) or not same_samples:
        return None
    means = _stack([view.end.class_means for view in views])
    points = _stack([view.end.points for view in views])
    for k in range(len(means)):
        spread = np.sqrt((points[k] ** 2).sum(1).mean()) or 1.0
        means[k], points[k] = means[k] / spread, points[k] / spread
    for k in range(len(means) - 2, -1, -1):
        u, _, v = np.linalg.svd(means[k].T @ means[k + 1])
        means[k], points[k] = means[k] @ (u @ v), points[k] @ (u @ v)
    flat = means.reshape(-1, means.shape[-1])
    center = flat.mean(0)
    _, scales, axes = np.linalg.svd(flat - center, full_matrices=False)
    plane = np.zeros((means.shape[-1], 2))
    plane[:, : min(2, len(axes))] = axes[:2].T
    return {
        "layers": [f"epoch {record.epoch}" for record in records],
        "view": {
            "class_means": ((means - center) @ plane).round(5).tolist(),
            "points": ((points - center) @ plane).round(5).tolist(),
            **views[0].only("classes", "labels"),
            "explained": explained(scales),
        },
    }


def _stack(arrays: Sequence[Any]) -> Float[np.ndarray, "E n r"]:
    """Stack the coordinates of all epochs, with columns of zeros for missing dimensions."""
    padded = [np.array(array, dtype=np.float64) for array in arrays]
    r = max(array.shape[1] for array in padded)
    return np.stack([np.pad(array, ((0, 0), (0, r - array.shape[1]))) for array in padded])
