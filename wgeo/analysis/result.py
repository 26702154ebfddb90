"""What an analysis leaves: a record, its figures and its report."""

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
    """What was measured of one network on one set of images.

    Attributes
    ----------
    record : dict
        Everything as plain numbers and strings; `analysis.json` holds it (schema 2).
    trajectory : Trajectory or None
        The features; None where the record was loaded from a file.
    """

    record: dict[str, Any]
    trajectory: Trajectory | None = field(default=None, repr=False)

    @property
    def verdict(self) -> str:
        """What the numbers support saying, as one text; `record` holds the evidence beside it."""
        return text(self.record["verdict"])

    def to_dict(self) -> dict[str, Any]:
        """Return the record."""
        return self.record

    def save(self, folder: str | os.PathLike[str]) -> Path:
        """Write ``analysis.json`` and then the figures into a folder; return the record's path.

        Files in the folder that wgeo did not write, or that were changed since, are never replaced.

        Raises
        ------
        RecordError
            The folder cannot be written, or it holds other files under names that this writes. If
            only figures could not be written, the message says so, and the record is kept.
        """
        return save(folder, self.record, ANALYSIS, self.record)

    def report(self, folder: str | os.PathLike[str], *, pdf: bool = False) -> Path:
        """Save into a folder and build its Sphinx report; return what `wgeo.report.build` does."""
        claim(folder, ANALYSIS, with_report=True)
        self.save(folder)
        return report.build(folder, pdf=pdf)

    @classmethod
    def load(cls, folder: str | os.PathLike[str]) -> Analysis:
        """Read a saved analysis back.

        Parameters
        ----------
        folder : path
            The run's folder, or its ``analysis.json``.

        Raises
        ------
        RecordError
            No record there, or one that is damaged or of another schema.
        """
        return cls(read_record(folder))


def versions() -> dict[str, str]:
    """Everything beside settings and data that could change a number's last digits.

    Versions; the number of threads, which orders sums; the processor's instructions, by which
    libraries choose how they multiply.
    """
    found = {"python": platform.python_version()}
    for package in _PACKAGES:
        with suppress(importlib.metadata.PackageNotFoundError):
            found[package] = importlib.metadata.version(package)
    found["threads"] = str(torch.get_num_threads())
    found["cpu"] = f"{platform.machine()} {torch.backends.cpu.get_cpu_capability()}"
    return found
