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

from ...errors import RecordError
from ..files import ASIDE, open_regular, writable, write_aside
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

_LARGEST = 2**28  # bytes of a log; a thousand layers of a million images take a tenth
_HALF = re.compile(rb"(\[[\d, ]*(\{.*)?)?\0*", re.DOTALL)  # what a kill leaves of a line of a log

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
        self._paths: dict[str, Path] = {}
        try:
            done = self._done()
            for i, (key, column) in enumerate(columns.items()):
                self._open(key, file_name(i, key), column, bool(done))
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
            self._rename(key, self.folder / name)
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
        self._write_whole(self.folder / MANIFEST, text.encode())
        self.close()
        mine = {MANIFEST, UNFINISHED, *(entry["file"] for entry in arrays.values())}
        asides = [(path, ASIDE.fullmatch(path.name)) for path in self.folder.glob(".*.part")]
        left = [path for path, name in asides if name is not None and name[1] in mine]
        for path in (self.folder / UNFINISHED, *self._logs(), *left):  # what kills left, too
            path.unlink(missing_ok=True)

    def _rename(self, key: str, final: Path) -> None:
        """Take its ending from an array's file, if that is the one that was written."""
        path = self._paths[key]
        if path == final:  # a run before this one was killed after it lost its ending
            return
        if os.path.lexists(final):
            raise _in_the_way(final)
        if not os.path.samestat(os.lstat(path), os.fstat(self._files[key][0])):
            raise _in_the_way(path)
        path.rename(final)
        self._paths[key] = final

    def _write_whole(self, path: Path, content: bytes) -> None:
        """Write a file at once; refuse another that came into its place meanwhile."""
        if os.path.lexists(path) and _content(path, len(content)) != content:
            raise _in_the_way(path)
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
        if begun.is_symlink():
            raise _in_the_way(begun)
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
        handle = _opened(path, os.O_RDWR | os.O_CREAT | os.O_APPEND)
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
            for line in _content(path, _LARGEST).splitlines():
                try:
                    made = json.loads(line)
                except (ValueError, RecursionError) as error:
                    if not _HALF.fullmatch(line):
                        raise _in_the_way(path) from error
                    continue
                if not self._is_range(made):
                    raise RecordError(
                        f"{path} is damaged: it names rows that {self.folder} cannot have. Delete "
                        "the folder and begin again."
                    )
                found[made[0]] = tuple(made)
        return [found[start] for start in sorted(found)]

    def _is_range(self, made: Any) -> bool:
        """Whether a line of a log is ``[start, stop, {array: CRC-32}]`` of this store."""
        if not isinstance(made, list) or len(made) != 3 or not isinstance(made[2], dict):
            return False
        start, stop, sums = made
        return (
            all(type(each) is int for each in (start, stop, *sums.values()))
            and 0 <= start < stop <= self.rows
            and sums.keys() == self.columns.keys()
            and all(0 <= each < 2**32 for each in sums.values())
        )

    def _open(self, key: str, name: str, column: Column, begun: bool) -> None:
        """Open an array's file, of its full size; find where its rows begin."""
        final = self.folder / name
        path = final if os.path.lexists(final) else final.with_name(f"{name}.part")
        head = header(column.shape(self.rows), DTYPES[column.dtype])
        size = len(head) + self.rows * column.row_bytes
        missing = begun and not os.path.lexists(path)
        handle = -1 if missing else _opened(path, os.O_RDWR | os.O_CREAT)
        if not missing:
            self._files[key], self._paths[key] = (handle, len(head)), path
        if begun and (missing or os.fstat(handle).st_size != size):
            raise RecordError(
                f"{path} is missing or of another size, and rows of it were written before. "
                f"Delete {self.folder} and begin again."
            )
        there = os.pread(handle, len(head), 0)
        if begun and there != head:
            raise RecordError(
                f"{path} is damaged: it does not begin as its rows were written. Delete "
                f"{self.folder} and begin again."
            )
        # A machine that lost its power leaves zeros.
        if os.fstat(handle).st_size > size or not head.startswith(there.rstrip(b"\0")):
            raise _in_the_way(path)
        try:
            _write_all(handle, head, 0)
            os.ftruncate(handle, size)
        except OSError as error:
            raise RecordError(f"Cannot write {path}: {error.strerror}.") from error

    def _require_room(self, rows: int) -> None:
        """Refuse at once what cannot fit, rather than after hours."""
        needed, free = rows * self.row_bytes, shutil.disk_usage(self.folder).free
        if needed > free:
            raise RecordError(
                f"{self.folder} needs {_size(needed)} more, and its disk has {_size(free)} left; "
                f"{self.rows - rows} of {self.rows} rows are there. Make room, or store less: "
                "`dtype='float16'` halves it, `project=256` keeps 256 numbers a layer."
            )


def _in_the_way(path: Path) -> RecordError:
    return RecordError(
        f"{path} is in the way: it is not of this store. Move it, then run the same again."
    )


def _opened(path: Path, flags: int) -> int:
    try:
        return open_regular(path, flags)
    except OSError as error:
        raise RecordError(
            f"{path} cannot be opened: {error.strerror}. Move it, then run the same again."
        ) from error


def _content(path: Path, largest: int) -> bytes:
    """What a regular file of this store holds, up to one byte more than the largest."""
    with open(_opened(path, os.O_RDONLY), "rb") as file:
        content = file.read(largest + 1)
    if len(content) > largest:
        raise _in_the_way(path)
    return content


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
