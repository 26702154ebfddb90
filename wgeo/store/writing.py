"""Stores written, a range of rows at a time, by one process or several, over as many starts."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import re
import shutil
import zlib
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import RecordError
from ..files import ASIDE, writable, write_aside
from .layout import (
    DTYPES,
    MANIFEST,
    UNFINISHED,
    VERSION,
    Column,
    as_npy,
    digest,
    encoded,
    file_name,
    header,
)
from .reading import holds, json_of

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

_sync = getattr(os, "fdatasync", os.fsync)  # macOS has but the second


class Writer:
    """Writes the rows of several arrays into a folder, a range at a time, and goes on after a kill.

    Parameters
    ----------
    folder : path
        Empty, or one that the same job began.
    job : dict of plain values
        What the rows are made of.
    rows : int
        How many there will be.
    columns : mapping of str to Column
    part : int
        Which of several processes this is, each writing ranges of its own.

    Raises
    ------
    RecordError
        The folder is another job's, holds other files, is being written by another process, or the
        disk has too little room.
    """

    def __init__(
        self,
        folder: str | os.PathLike[str],
        job: Mapping[str, Any],
        rows: int,
        columns: Mapping[str, Column],
        part: int = 0,
    ) -> None:
        self.folder, self.rows, self.columns = writable(folder), rows, dict(columns)
        holds(self.folder, job)
        self._begun = {
            "job": json.loads(json.dumps(job)),
            "rows": rows,
            "arrays": {key: asdict(column) for key, column in columns.items()},
        }
        if not (self.folder / UNFINISHED).is_file():
            self._require_room(rows)  # a store that is refused leaves no claim
        self._claim()
        self._log = self._locked(self.folder / f"rows-{part}.log")
        self._files: dict[str, tuple[int, int]] = {}
        try:
            done = self._done()
            for i, (key, column) in enumerate(columns.items()):
                self._files[key] = self._opened(file_name(i, key), column, bool(done))
            self._require_room(rows - sum(stop - start for start, stop, _ in done))
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> Writer:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def row_bytes(self) -> int:
        """Bytes of one row of all arrays."""
        return sum(column.row_bytes for column in self.columns.values())

    def missing(self) -> list[slice]:
        """The ranges of rows that are not there yet."""
        found, last = [], 0
        for start, stop, _ in [*self._done(), (self.rows, self.rows, {})]:
            if start > last:
                found.append(slice(last, start))
            last = max(last, stop)
        return found

    def write(self, start: int, arrays: Mapping[str, np.ndarray]) -> None:
        """Write a range of rows of every array, beginning at `start`, and make it safe.

        Raises
        ------
        FeatureError
            A number that the array's dtype cannot hold.
        RecordError
            The disk is full; all ranges written before are kept.
        """
        sums, stop = {}, start + len(next(iter(arrays.values())))
        try:
            for key, (handle, offset) in self._files.items():
                data = encoded(arrays[key], self.columns[key].dtype, key, start)
                sums[key] = zlib.crc32(data)
                _write_all(handle, data, offset + start * self.columns[key].row_bytes)
            for handle, _ in self._files.values():
                _sync(handle)
            _write_all(self._log, (json.dumps([start, stop, sums]) + "\n").encode())
            _sync(self._log)
        except OSError as error:
            there = self.rows - sum(part.stop - part.start for part in self.missing())
            raise RecordError(
                f"Cannot write rows {start} to {stop} into {self.folder}: {error.strerror}. "
                f"{there} of {self.rows} rows are there and are kept: make room, then run the same "
                "again."
            ) from error

    def finish(self, about: Mapping[str, Any], whole: Mapping[str, np.ndarray]) -> None:
        """Say what the arrays are, add some that are written at once, and close the store."""
        gaps = self.missing()
        if gaps:
            raise RecordError(f"{self.folder} lacks rows {gaps[0].start} to {gaps[0].stop}.")
        ranges = self._done()
        arrays: dict[str, dict[str, Any]] = {}
        for i, (key, column) in enumerate(self.columns.items()):
            name = file_name(i, key)
            part = self.folder / f"{name}.part"
            if part.exists():  # else a run before this one was killed after it lost its ending
                part.replace(self.folder / name)
            sums = [found[key] for _, _, found in ranges]
            arrays[key] = {"file": name, "dtype": column.dtype, "crc32": sums}
            arrays[key]["shape"] = list(column.shape(self.rows))
        spans = [[start, stop] for start, stop, _ in ranges]
        for i, (key, array) in enumerate(whole.items(), len(arrays)):
            name, array = file_name(i, key), np.ascontiguousarray(array)
            self._write_whole(self.folder / name, as_npy(array))
            arrays[key] = {"file": name, "dtype": array.dtype.name, "shape": list(array.shape)}
            arrays[key]["crc32"] = zlib.crc32(array.tobytes())
        found = {
            "version": VERSION,
            "job": self._begun["job"],
            "about": dict(about),
            "rows": spans,
            "arrays": arrays,
        }
        text = json.dumps({**found, "checksum": digest(found)}, indent=1)
        write_aside(self.folder / MANIFEST, text)
        self.close()
        mine = {MANIFEST, UNFINISHED, *(entry["file"] for entry in arrays.values())}
        asides = [(path, ASIDE.fullmatch(path.name)) for path in self.folder.glob(".*.part")]
        left = [path for path, name in asides if name is not None and name[1] in mine]
        for path in (self.folder / UNFINISHED, *self._logs(), *left):  # what kills left, too
            path.unlink(missing_ok=True)

    def _write_whole(self, path: Path, content: bytes) -> None:
        """Write a file at once; refuse another that came into its place meanwhile."""
        if os.path.lexists(path) and not (path.is_file() and path.read_bytes() == content):
            raise RecordError(
                f"{path} is in the way: it is not of this store. Move it, then run the same again."
            )
        write_aside(path, content)

    def _logs(self) -> list[Path]:
        """Which ranges the processes have written."""
        found = self.folder.glob("rows-*.log")
        return [path for path in found if re.fullmatch(r"rows-\d+\.log", path.name)]

    def close(self) -> None:
        """Let go of the files; what is written stays."""
        for handle in [self._log, *(handle for handle, _ in self._files.values())]:
            with contextlib.suppress(OSError):
                os.close(handle)
        self._files = {}

    def _claim(self) -> None:
        """Say whose folder it is, or find that it is this job's already."""
        begun = self.folder / UNFINISHED
        if begun.is_file():
            if json_of(begun) != self._begun:
                raise RecordError(
                    f"{self.folder} was begun with other arrays than this version of wgeo makes. "
                    "Delete it, or choose another folder."
                )
            return
        mine = (".", "lost+", f"{UNFINISHED}.part")  # a disk's own, and what a kill leaves
        other = [p.name for p in self.folder.iterdir() if not p.name.startswith(mine)]
        if other:
            raise RecordError(
                f"{self.folder} holds other files ({', '.join(sorted(other)[:3])}). Choose an "
                "empty folder for the store."
            )
        write_aside(begun, json.dumps(self._begun))

    def _locked(self, path: Path) -> int:
        handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o666)
        try:
            if fcntl is not None:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno in (errno.EWOULDBLOCK, errno.EACCES):
                os.close(handle)
                raise RecordError(
                    f"Another process is writing {self.folder}. Wait for it, or choose another "
                    "folder."
                ) from error
            # Some network disks have no locks; two jobs of one kind write the same rows.
        size = os.fstat(handle).st_size
        if size and os.pread(handle, 1, size - 1) != b"\n":  # a kill left half a line
            _write_all(handle, b"\n")
        return handle

    def _done(self) -> list[tuple[int, int, dict[str, int]]]:
        """Ranges that are safely there, by all processes, in order."""
        found = {}
        for path in self._logs():
            for line in path.read_bytes().splitlines():
                try:
                    start, stop, sums = json.loads(line)
                except ValueError:  # half a line
                    continue
                found[int(start)] = (int(start), int(stop), dict(sums))
        return [found[start] for start in sorted(found)]

    def _opened(self, name: str, column: Column, begun: bool) -> tuple[int, int]:
        """An array's file, of its full size, and where its rows begin."""
        final = self.folder / name
        path = final if final.exists() else final.with_name(f"{name}.part")
        head = header(column.shape(self.rows), DTYPES[column.dtype])
        size = len(head) + self.rows * column.row_bytes
        if begun and (not path.exists() or path.stat().st_size != size):
            raise RecordError(
                f"{path} is missing or of another size, and rows of it were written before. "
                f"Delete {self.folder} and begin again."
            )
        try:
            handle = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
            _write_all(handle, head, 0)
            os.ftruncate(handle, size)
        except OSError as error:
            raise RecordError(f"Cannot write {path}: {error.strerror}.") from error
        return handle, len(head)

    def _require_room(self, rows: int) -> None:
        """Refuse at once what cannot fit, rather than after hours."""
        needed, free = rows * self.row_bytes, shutil.disk_usage(self.folder).free
        if needed > free:
            raise RecordError(
                f"{self.folder} needs {_size(needed)} more, and its disk has {_size(free)} left; "
                f"{self.rows - rows} of {self.rows} rows are there. Make room, or store less: "
                "`dtype='float16'` halves it, `project=256` keeps 256 numbers a layer."
            )


def _write_all(handle: int, data: bytes | memoryview, offset: int | None = None) -> None:
    """Write all of it, where the system may take less at a time."""
    left = memoryview(data)
    while len(left):
        wrote = os.write(handle, left) if offset is None else os.pwrite(handle, left, offset)
        left = left[wrote:]
        offset = None if offset is None else offset + wrote


def _size(size: int) -> str:
    """Bytes as a person reads them."""
    unit = min(max(size.bit_length() - 1, 0) // 10, 3)
    return f"{size / 2 ** (10 * unit):.{int(unit > 2)}f} {('B', 'KiB', 'MiB', 'GiB')[unit]}"
