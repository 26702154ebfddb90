"""What an analysis leaves: a record, its figures and its report."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import time
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from .. import plots, report
from ..files import writable
from ..records import ANALYSIS, claim, read_record, write_record
from ..trajectory import Trajectory
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
        """Write ``analysis.json`` and the figures into a folder; return the record's path.

        Raises
        ------
        RecordError
            The folder cannot be written.
        """
        path = claim(writable(folder), ANALYSIS)
        began = time.time_ns()
        plots.figures(self.record, path / "figures")
        written = write_record(path, self.record)  # last: where it is, all is
        os.utime(written, ns=(began, began))  # no newer than its figures: reports draw older ones
        return written

    def report(self, folder: str | os.PathLike[str], *, pdf: bool = False) -> Path:
        """Save into a folder and build its Sphinx report; return what `wgeo.report.build` does."""
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
