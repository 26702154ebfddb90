"""Write stores range by range, in one or several processes; a stopped run can resume."""

from __future__ import annotations

import contextlib
import errno
import io
import json
import os
import re
import shutil
import stat
import zlib
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ...errors import FeatureError, RecordError
from ..files import TEMPORARY, writable, write_atomic
from .reading import DTYPES, MANIFEST, UNFINISHED, VERSION, Column, digest, holds, json_of

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

_MAX_LOG_BYTES = 2**28  # a thousand layers of a million images need a tenth of this
_INCOMPLETE = re.compile(rb"(\[[\d, ]*(\{.*)?)?\0*", re.DOTALL)  # a line of a killed process

_sync = getattr(os, "fdatasync", os.fsync)  # macOS has no fdatasync


class Writer:
    """Writes the rows of several arrays to a folder, range by range; resumes a stopped run.

    Parameters
    ----------
    folder : path
        An empty folder, or the unfinished store of the same job.
    job : dict of JSON values
        The inputs from which the rows are computed; see `Stored`.
    rows : int
        Total number of rows.
    columns : mapping of str to Column
        The arrays by name.
    part : int
        Index of this process. Each process writes other ranges.

    Raises
    ------
    RecordError
        The folder belongs to another job, contains other or damaged files, or is in use by another
        process; or the disk has too little free space.
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
        self._header = {
            "job": json.loads(json.dumps(job)),
            "rows": rows,
            "arrays": {key: asdict(column) for key, column in columns.items()},
        }
        if not (self.folder / UNFINISHED).is_file():
            self._require_space(rows)  # before any file is written
        self._write_header()
        self._log = self._locked(self.folder / f"rows-{part}.log")
        self._files: dict[str, tuple[int, int]] = {}
        self._paths: dict[str, Path] = {}
        try:
            done = self._done()
            for i, (key, column) in enumerate(columns.items()):
                self._open(key, file_name(i, key), column, bool(done))
            self._require_space(rows - sum(stop - start for start, stop, _ in done))
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> Writer:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def row_bytes(self) -> int:
        return sum(column.row_bytes for column in self.columns.values())

    def missing(self) -> list[slice]:
        """Return the ranges of rows that have not been written yet."""
        gaps, last = [], 0
        for start, stop, _ in [*self._done(), (self.rows, self.rows, {})]:
            if start > last:
                gaps.append(slice(last, start))
            last = max(last, stop)
        return gaps

    def write(self, start: int, arrays: Mapping[str, np.ndarray]) -> None:
        """Write a range of rows of every array, beginning at `start`, and sync it to disk.

        Raises
        ------
        FeatureError
            A number is too large for its array's format.
        RecordError
            The range cannot be written, for example because the disk is full.
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
            written = self.rows - sum(gap.stop - gap.start for gap in self.missing())
            raise RecordError(
                f"Cannot write rows {start} to {stop} to {self.folder}: {error.strerror}. "
                f"{written} of {self.rows} rows are written and kept: free some space, then run "
                "the same command again."
            ) from error

    def finish(self, about: Mapping[str, Any], whole: Mapping[str, np.ndarray]) -> None:
        """Add the arrays `whole` and the description `about`, and close the store.

        Raises
        ------
        RecordError
            Rows are missing, another file is in the way, or the disk is full.
        """
        gaps = self.missing()
        if gaps:
            raise RecordError(f"{self.folder} lacks rows {gaps[0].start} to {gaps[0].stop}.")
        ranges = self._done()
        arrays: dict[str, dict[str, Any]] = {}
        for i, (key, column) in enumerate(self.columns.items()):
            name = file_name(i, key)
            self._rename(key, self.folder / name)
            sums = [checksums[key] for _, _, checksums in ranges]
            arrays[key] = {"file": name, "dtype": column.dtype, "crc32": sums}
            arrays[key]["shape"] = list(column.shape(self.rows))
        spans = [[start, stop] for start, stop, _ in ranges]
        for i, (key, array) in enumerate(whole.items(), len(arrays)):
            name, array = file_name(i, key), np.ascontiguousarray(array)
            self._write_whole(self.folder / name, as_npy(array))
            arrays[key] = {"file": name, "dtype": array.dtype.name, "shape": list(array.shape)}
            arrays[key]["crc32"] = zlib.crc32(array.tobytes())
        manifest = {
            "version": VERSION,
            "job": self._header["job"],
            "about": dict(about),
            "rows": spans,
            "arrays": arrays,
        }
        text = json.dumps({**manifest, "checksum": digest(manifest)}, indent=1)
        self._write_whole(self.folder / MANIFEST, text.encode())
        self.close()
        files = {MANIFEST, UNFINISHED, *(entry["file"] for entry in arrays.values())}
        partial = [(path, TEMPORARY.fullmatch(path.name)) for path in self.folder.glob(".*.part")]
        leftovers = [path for path, name in partial if name is not None and name[1] in files]
        for path in (self.folder / UNFINISHED, *self._logs(), *leftovers):
            path.unlink(missing_ok=True)

    def _rename(self, key: str, final: Path) -> None:
        """Give an array's file its final name; no other file may have the old or the new name."""
        path = self._paths[key]
        if path == final:  # an earlier run was killed after the renaming
            return
        if os.path.lexists(final):
            raise _in_the_way(final)
        if not os.path.samestat(os.lstat(path), os.fstat(self._files[key][0])):
            raise _in_the_way(path)
        path.rename(final)
        self._paths[key] = final

    def _write_whole(self, path: Path, content: bytes) -> None:
        if os.path.lexists(path) and _content(path, len(content)) != content:
            raise _in_the_way(path)
        write_atomic(path, content)

    def _logs(self) -> list[Path]:
        paths = self.folder.glob("rows-*.log")
        return [path for path in paths if re.fullmatch(r"rows-\d+\.log", path.name)]

    def close(self) -> None:
        """Close the files; written rows are kept."""
        for handle in [self._log, *(handle for handle, _ in self._files.values())]:
            with contextlib.suppress(OSError):
                os.close(handle)
        self._files = {}

    def _write_header(self) -> None:
        """Claim the folder for this job, or check that this job has claimed it before."""
        header_file = self.folder / UNFINISHED
        if header_file.is_symlink():
            raise _in_the_way(header_file)
        if header_file.is_file():
            if json_of(header_file) != self._header:
                raise RecordError(
                    f"{self.folder} was begun with other arrays than this version of wgeo writes. "
                    "Delete it, or choose another folder."
                )
            return
        ignored = (".", "lost+", f"{UNFINISHED}.part")  # system files, leftovers of killed runs
        other = [p.name for p in self.folder.iterdir() if not p.name.startswith(ignored)]
        if other:
            raise RecordError(
                f"{self.folder} holds other files ({', '.join(sorted(other)[:3])}). Choose an "
                "empty folder for the store."
            )
        write_atomic(header_file, json.dumps(self._header))

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
            # Some network file systems lack locks. There, two runs of a job write equal rows.
        size = os.fstat(handle).st_size
        if size and os.pread(handle, 1, size - 1) != b"\n":  # the last line is truncated
            _write_all(handle, b"\n")
        return handle

    def _done(self) -> list[tuple[int, int, dict[str, int]]]:
        """Return the ranges of rows that any process has synced to disk, in order."""
        ranges = {}
        for path in self._logs():
            for line in _content(path, _MAX_LOG_BYTES).splitlines():
                try:
                    entry = json.loads(line)
                except (ValueError, RecursionError) as error:
                    if not _INCOMPLETE.fullmatch(line):
                        raise _in_the_way(path) from error
                    continue
                if not self._is_range(entry):
                    raise RecordError(
                        f"{path} is damaged: it names rows that {self.folder} cannot have. Delete "
                        "the folder and begin again."
                    )
                ranges[entry[0]] = tuple(entry)
        return [ranges[start] for start in sorted(ranges)]

    def _is_range(self, entry: Any) -> bool:
        """Return whether an entry is a valid ``[start, stop, {array: CRC-32}]`` of this store."""
        if not isinstance(entry, list) or len(entry) != 3 or not isinstance(entry[2], dict):
            return False
        start, stop, sums = entry
        return (
            all(type(each) is int for each in (start, stop, *sums.values()))
            and 0 <= start < stop <= self.rows
            and sums.keys() == self.columns.keys()
            and all(0 <= each < 2**32 for each in sums.values())
        )

    def _open(self, key: str, name: str, column: Column, begun: bool) -> None:
        """Open an array's file, extend it to its full size, and store the offset of its rows."""
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
                f"{path} is missing or of another size, although rows of it were written. "
                f"Delete {self.folder} and begin again."
            )
        old_head = os.pread(handle, len(head), 0)
        if begun and old_head != head:
            raise RecordError(
                f"{path} is damaged: its header does not match the rows written before. Delete "
                f"{self.folder} and begin again."
            )
        # After a power loss, the header may contain zeros.
        if os.fstat(handle).st_size > size or not head.startswith(old_head.rstrip(b"\0")):
            raise _in_the_way(path)
        try:
            _write_all(handle, head, 0)
            os.ftruncate(handle, size)
        except OSError as error:
            raise RecordError(f"Cannot write {path}: {error.strerror}.") from error

    def _require_space(self, rows: int) -> None:
        """Raise an error early if the disk has too little free space."""
        needed, free = rows * self.row_bytes, shutil.disk_usage(self.folder).free
        if needed > free:
            raise RecordError(
                f"{self.folder} needs {_size(needed)} more, but its disk has {_size(free)} free; "
                f"{self.rows - rows} of {self.rows} rows are written. Free some space, or store "
                "less: `dtype='float16'` halves it, `project=256` keeps 256 numbers per layer."
            )


def _in_the_way(path: Path) -> RecordError:
    return RecordError(
        f"{path} is in the way: it is not part of this store. Move it, then run the same command "
        "again."
    )


def _opened(path: Path, flags: int) -> int:
    """Return a descriptor of a regular file; raise RecordError for links, pipes and devices."""
    reason: str | None = "it is a link, a pipe or a device, or has a second name"
    cause = None
    try:
        handle = os.open(path, flags | os.O_NOFOLLOW | os.O_NONBLOCK, 0o666)
        status = os.fstat(handle)
        if stat.S_ISREG(status.st_mode) and status.st_nlink <= 1:
            return handle
        os.close(handle)
    except OSError as error:
        cause = error
        if error.errno != errno.ELOOP:
            reason = error.strerror
    raise RecordError(
        f"{path} cannot be opened: {reason}. Move it, then run the same command again."
    ) from cause


def _content(path: Path, max_bytes: int) -> bytes:
    """Return the contents of a regular file; raise an error if it is larger than `max_bytes`."""
    with open(_opened(path, os.O_RDONLY), "rb") as file:
        content = file.read(max_bytes + 1)
    if len(content) > max_bytes:
        raise _in_the_way(path)
    return content


def _write_all(handle: int, data: bytes | memoryview, offset: int | None = None) -> None:
    """Write all data, even if the system accepts less at a time."""
    rest = memoryview(data)
    while len(rest):
        count = os.write(handle, rest) if offset is None else os.pwrite(handle, rest, offset)
        rest = rest[count:]
        offset = None if offset is None else offset + count


def _size(size: int) -> str:
    """Return a number of bytes as human-readable text."""
    unit = min(max(size.bit_length() - 1, 0) // 10, 3)
    return f"{size / 2 ** (10 * unit):.{int(unit > 2)}f} {('B', 'KiB', 'MiB', 'GiB')[unit]}"


def encoded(array: np.ndarray, dtype: str, key: str, start: int) -> memoryview:
    """Return the bytes of rows in the stored format; NaN and infinity are kept.

    Raise FeatureError if a finite number is too large for the format.
    """
    with np.errstate(over="ignore"):
        narrow = np.ascontiguousarray(array, "<f4" if dtype == "bfloat16" else DTYPES[dtype])
    finite = np.isfinite(narrow)
    if dtype == "bfloat16":
        rounded = torch.from_numpy(narrow).to(torch.bfloat16)
        narrow, finite = rounded.view(torch.int16).numpy(), rounded.isfinite().numpy()
    lost = np.isfinite(array) & ~finite
    if lost.any():
        row = start + int(np.argmax(lost.reshape(len(lost), -1).any(1)))
        largest = torch.finfo(getattr(torch, dtype)).max
        wider = {"float16": "bfloat16 or float32", "bfloat16": "float32 or float64"}
        raise FeatureError(
            f"{key} holds numbers up to {np.abs(array[lost]).max():.3g} (sample {row} is the first "
            f"with one too large), but the largest {dtype} is {largest:.5g}. "
            f"Store as {wider.get(dtype, 'float64')}."
        )
    return narrow.data.cast("B")


def header(shape: tuple[int, ...], dtype: str) -> bytes:
    buffer = io.BytesIO()
    fields = {"descr": dtype, "fortran_order": False, "shape": shape}
    np.lib.format.write_array_header_1_0(buffer, fields)
    return buffer.getvalue()


def as_npy(array: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, array, allow_pickle=False)
    return buffer.getvalue()


def file_name(index: int, key: str) -> str:
    return f"{index:03d}-{re.sub(r'[^A-Za-z0-9._-]+', '-', key)[:80]}.npy"
