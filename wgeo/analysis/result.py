"""The result of an analysis: a record, from which figures and reports are made."""

from __future__ import annotations

import importlib.metadata
import os
import platform
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from matplotlib.axes import Axes

from .. import plots, report
from ..plots.files import data_uri
from ..results import Result
from ..storage.record import Block, Record
from ..storage.records import ANALYSIS, read_record
from ..trajectory import Trajectory
from .saving import require_writable, save
from .verdict import text
from .verdict.opening import origin

_DISPLAYED_COLUMNS = ("layer", "width", "nc1", "ncc_accuracy", "distance", "ot_score", "corr_score")
_PACKAGES = ("wgeo", "torch", "torchvision", "numpy", "scipy", "pot", "geomloss", "scikit-learn")


@dataclass(frozen=True, eq=False, repr=False)
class Analysis(Result):
    """The measurements of one network on one set of images.

    ``to_pandas()`` has one row per layer: its collapse metrics, and the transport of the block
    whose output it is.

    Attributes
    ----------
    record : dict
        All results as plain numbers and strings, as stored in `analysis.json` (schema 2).
    trajectory : Trajectory or None
        The features; None if the record was loaded from a file.

    Examples
    --------
    >>> import numpy as np
    >>> import wgeo
    >>> x = np.random.default_rng(0).normal(size=(8, 3))
    >>> traj = wgeo.Trajectory.from_arrays([x, 2 * x, 3 * x], np.arange(8) % 2)
    >>> result = wgeo.analysis.analyze_trajectory(traj, bootstrap=0, mufm=False)
    >>> [layer["name"] for layer in result.layers], len(result.blocks), len(result.segments)
    (['layer0', 'layer1', 'layer2'], 2, 1)
    """

    record: dict[str, Any]
    trajectory: Trajectory | None = field(default=None, repr=False)

    @property
    def verdict(self) -> str:
        """The verdict as one text; `record` contains the evidence of each sentence."""
        return text(Record.of({"verdict": self.record["verdict"]}).verdict)

    @property
    def layers(self) -> list[dict[str, Any]]:
        """The record's layers, each with its ``collapse`` metrics."""
        return self.record["layers"]

    @property
    def blocks(self) -> list[dict[str, Any]]:
        """The record's blocks, each with its transport."""
        return self.record["blocks"]

    @property
    def segments(self) -> list[dict[str, Any]]:
        """The record's segments, each with its straightness."""
        return self.record["segments"]

    def to_dict(self) -> dict[str, Any]:
        """Return the record."""
        return self.record

    def save(self, folder: str | os.PathLike[str]) -> Path:
        """Write ``analysis.json`` and then the figures to a folder; return the record's path.

        Raises
        ------
        RecordError
            The folder cannot be written, or a file would be replaced that wgeo did not write or
            that was changed after wgeo wrote it. If only figures could not be written, the message
            says so, and the record is kept.
        """
        return save(folder, self.record, ANALYSIS, self.record)

    def report(self, folder: str | os.PathLike[str], *, pdf: bool = False) -> Path:
        """Save to a folder, and build its report; see `wgeo.report.build` for the result."""
        require_writable(folder, ANALYSIS, with_report=True)
        self.save(folder)
        return report.build(folder, pdf=pdf)

    @classmethod
    def load(cls, folder: str | os.PathLike[str]) -> Analysis:
        """Load a saved analysis from its folder or from its ``analysis.json``.

        Raises
        ------
        RecordError
            The folder has no record, or the record is damaged or has another schema.
        """
        return cls(read_record(folder))

    def _table(self) -> list[dict[str, Any]]:
        record = Record.of(self.record)
        blocks = {block.target: block for block in record.blocks}
        rows = []
        for layer in record.layers:
            block = blocks.get(layer.name, Block.of({}))
            head = {"layer": layer.name, "stage": layer.stage, "width": layer.width}
            score = block.measure("corr_score")
            rows.append({**head, **layer.collapse.plain(), **block.plain(), "corr_score": score})
        return rows

    def _rows(self) -> list[dict[str, Any]]:
        return [{name: row.get(name) for name in _DISPLAYED_COLUMNS} for row in self._table()]

    def _description(self) -> str:
        record = Record.of(self.record)
        provenance, accuracy = record.provenance, record.accuracy
        text = "" if accuracy is None else f", accuracy {accuracy:.4g}"
        return (
            f"{provenance.arch or 'features'}{origin(provenance)}, "
            f"{provenance.samples} samples{text}; `verdict` states what the numbers support"
        )

    def _sentences(self) -> list[str]:
        return [sentence.words for sentence in Record.of(self.record).verdict]

    def _pictures(self) -> list[str]:
        panels: tuple[tuple[str, Callable[..., Axes]], ...] = (
            ("Straightness of every segment", plots.straightness),
            ("NC1 from layer to layer", plots.collapse),
        )
        return [
            f'<img alt="{title}" style="width:48%" '
            f'src="{data_uri(panel(self.record, ax=plots.axes("column")))}"/>'
            for title, panel in panels
        ]


def versions() -> dict[str, str]:
    """Return the versions of Python and packages, the number of threads, and the processor's kind.

    All of them can change the last digits of results: the number of threads determines the order of
    sums, and libraries choose their kernels by the processor's instruction set.
    """
    result = {"python": platform.python_version()}
    for package in _PACKAGES:
        with suppress(importlib.metadata.PackageNotFoundError):
            result[package] = importlib.metadata.version(package)
    result["threads"] = str(torch.get_num_threads())
    result["cpu"] = f"{platform.machine()} {torch.backends.cpu.get_cpu_capability()}"
    return result
