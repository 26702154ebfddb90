"""The result of an analysis: a record, with its figures and its report."""

from __future__ import annotations

import importlib.metadata
import os
import platform
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from .. import report
from ..storage.records import ANALYSIS, read_record
from ..trajectory import Trajectory
from .saving import claim, save
from .verdict import text

_PACKAGES = ("wgeo", "torch", "torchvision", "numpy", "scipy", "pot", "geomloss", "scikit-learn")


@dataclass(frozen=True, eq=False)
class Analysis:
    """The measurements of one network on one set of images.

    Attributes
    ----------
    record : dict
        All results as plain numbers and strings, as stored in `analysis.json` (schema 2).
    trajectory : Trajectory or None
        The features; None if the record was loaded from a file.
    """

    record: dict[str, Any]
    trajectory: Trajectory | None = field(default=None, repr=False)

    @property
    def verdict(self) -> str:
        """The sentences that the numbers support, as one text; `record` holds their evidence."""
        return text(self.record["verdict"])

    def to_dict(self) -> dict[str, Any]:
        """Return the record."""
        return self.record

    def save(self, folder: str | os.PathLike[str]) -> Path:
        """Write ``analysis.json`` and then the figures to a folder; return the record's path.

        Files that wgeo did not write, or that were changed since, are never replaced.

        Raises
        ------
        RecordError
            The folder cannot be written, or it contains other files with names that this writes. If
            only figures could not be written, the message says so, and the record is kept.
        """
        return save(folder, self.record, ANALYSIS, self.record)

    def report(self, folder: str | os.PathLike[str], *, pdf: bool = False) -> Path:
        """Save to a folder and build its Sphinx report; return the path of `wgeo.report.build`."""
        claim(folder, ANALYSIS, with_report=True)
        self.save(folder)
        return report.build(folder, pdf=pdf)

    @classmethod
    def load(cls, folder: str | os.PathLike[str]) -> Analysis:
        """Load a saved analysis.

        Parameters
        ----------
        folder : path
            The run's folder, or its ``analysis.json``.

        Raises
        ------
        RecordError
            The folder has no record, or the record is damaged or has another schema.
        """
        return cls(read_record(folder))


def versions() -> dict[str, str]:
    """Return everything besides settings and data that can change the last digits of a number.

    Package versions; the number of threads, which determines the order of sums; and the processor's
    instruction set, by which libraries choose their kernels.
    """
    result = {"python": platform.python_version()}
    for package in _PACKAGES:
        with suppress(importlib.metadata.PackageNotFoundError):
            result[package] = importlib.metadata.version(package)
    result["threads"] = str(torch.get_num_threads())
    result["cpu"] = f"{platform.machine()} {torch.backends.cpu.get_cpu_capability()}"
    return result
