"""The pairs of clouds that `distances` has solved, in a file that a later call reads."""

from __future__ import annotations

import hashlib
import json
import os
import threading
import time
from typing import Any, NamedTuple

import numpy as np

from .. import __version__
from ..arrays.rows import row_ranges
from ..errors import ArgumentError, RecordError
from ..runtime.processes import is_rank_zero, on_rank_zero
from ..storage.files import as_path, require_regular
from ..storage.ownership import owned
from ..text import printable
from .entry import Solver

_SECONDS = 5.0  # between writes; a killed process loses pairs solved since the last write


class PairSummary(NamedTuple):
    """The values of a pair that `distances` keeps."""

    distance: float
    lower: float
    upper: float
    certified: bool


class SolvedPairs:
    """Solved pairs in a JSON file; without a path, no pair is found or written.

    A pair is identified by the checksums of both clouds, the solver with its options, and the
    version of wgeo.
    """

    def __init__(self, path: str | os.PathLike[str] | None, solver: Solver) -> None:
        self._path = None if path is None else as_path(path, "store")
        if self._path and type(solver).__repr__ is object.__repr__:
            raise ArgumentError(
                f"`store=` needs to know the solver's options: give {type(solver).__name__} a "
                "`__repr__` that contains them, as a dataclass has."
            )
        self._solver = (
            f"{type(solver).__module__}.{type(solver).__qualname__} {solver!r} {__version__}"
        )
        self._checksums: dict[int, str] = {}
        self._pairs: dict[str, PairSummary] = on_rank_zero(self._opened)
        self._lock = threading.Lock()
        self._written = time.monotonic()
        self._unwritten = False

    def get(self, x: np.ndarray, y: np.ndarray) -> PairSummary | None:
        """Return a pair's values, or None if it has not been solved."""
        return self._pairs.get(self._key(x, y)) if self._path else None

    def add(self, x: np.ndarray, y: np.ndarray, summary: PairSummary) -> None:
        """Add a pair; the file is written at most every few seconds, and by `write`."""
        if self._path is None:
            return
        with self._lock:
            self._pairs[self._key(x, y)], self._unwritten = summary, True
            if time.monotonic() > self._written + _SECONDS:
                self._write()

    def write(self) -> None:
        """Write all pairs to the file, unless it already contains them."""
        with self._lock:
            self._write()

    def _key(self, x: np.ndarray, y: np.ndarray) -> str:
        pair = f"{self._checksum(x)} {self._checksum(y)} {self._solver}"
        return hashlib.sha256(pair.encode()).hexdigest()

    def _checksum(self, cloud: np.ndarray) -> str:
        if id(cloud) not in self._checksums:
            content = hashlib.sha256(f"{cloud.dtype.str} {cloud.shape}".encode())
            for rows in row_ranges(len(cloud), cloud.shape[1]):
                content.update(np.ascontiguousarray(cloud[rows]).data)
            self._checksums[id(cloud)] = content.hexdigest()
        return self._checksums[id(cloud)]

    def _opened(self) -> dict[str, PairSummary]:
        """Return the pairs in the file, after checking that wgeo may replace the file."""
        if self._path is None:
            return {}
        with owned(self._path.parent) as folder:
            folder.require_writable(self._path.name)
            return _read(self._path)

    def _write(self) -> None:
        if self._path is None or not self._unwritten or not is_rank_zero():
            return
        with owned(self._path.parent) as folder:
            # Another process may have added pairs since this one read the file.
            self._pairs = {**_read(self._path), **self._pairs}
            folder.write({self._path.name: json.dumps({"pairs": self._pairs}, indent=0)})
        self._written, self._unwritten = time.monotonic(), False


def _read(path: os.PathLike[str]) -> dict[str, PairSummary]:
    try:
        require_regular(path)
        with open(path, encoding="utf-8") as file:
            pairs = json.load(file)["pairs"]
        return {str(key): _summary(*values) for key, values in pairs.items()}
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        raise RecordError(
            f"{printable(path, 1000)} does not contain distances that wgeo wrote "
            f"({printable(str(error))}). Choose another `store=`."
        ) from error


def _summary(distance: Any, lower: Any, upper: Any, certified: Any) -> PairSummary:
    if not (0 <= lower <= upper and distance >= 0 and certified in (True, False)):
        raise ValueError("a pair has impossible values")
    return PairSummary(float(distance), float(lower), float(upper), bool(certified))
