"""The files of a store; open finished stores, and verify that they are intact."""

from __future__ import annotations

import hashlib
import json
import math
import os
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, NamedTuple

import numpy as np

from ...arrays.rows import LazyRows, materialize_on_disk
from ...errors import ArgumentError, RecordError
from ...runtime.processes import local_only
from ..files import as_path, read_regular, require_regular
from ..schema import Count, Part, read

MANIFEST, UNFINISHED = "manifest.json", "unfinished.json"
VERSION = 1
SHARD = 2**25
"""Bytes of all arrays that are synced to disk at a time; a single batch may have more."""

DTYPES = {
    "float32": "<f4",
    "float16": "<f2",
    "bfloat16": "<u2",
    "float64": "<f8",
    "int64": "<i8",
}
"""Number formats in files. The bits of bfloat16, which NumPy lacks, are stored as integers."""


@dataclass(frozen=True)
class Column:
    """An array of a store: `width` numbers per row, or one-dimensional if `width` is None."""

    dtype: str
    width: int | None = None

    def __post_init__(self) -> None:
        if self.dtype not in DTYPES:
            raise ArgumentError(f"Unknown dtype {self.dtype!r}; choose {', '.join(DTYPES)}.")

    @property
    def row_bytes(self) -> int:
        """Bytes per row on the disk."""
        return np.dtype(DTYPES[self.dtype]).itemsize * (1 if self.width is None else self.width)

    def shape(self, rows: int) -> tuple[int, ...]:
        return (rows,) if self.width is None else (rows, self.width)


class Span(NamedTuple):
    """A range of rows."""

    start: Count
    stop: Count


class StoredArray(Part):
    """The file of an array, and its checksums."""

    file: str
    dtype: str
    shape: tuple[Count, ...]
    crc32: Count | tuple[Count, ...]


class Manifest(Part):
    """The description of a finished store."""

    job: Mapping[str, Any]
    about: Mapping[str, Any]
    rows: tuple[Span, ...]
    arrays: Mapping[str, StoredArray]


def digest(value: Any) -> str:
    """Return the SHA-256 of a JSON value, independent of the order of keys."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


def shards(span: slice, batch: int, row_bytes: int) -> Iterator[slice]:
    """Cut a range of rows into shards: whole batches with at most `SHARD` bytes, or one batch."""
    step = batch * max(1, SHARD // (batch * max(row_bytes, 1)))
    for start in range(span.start, span.stop, step):
        yield slice(start, min(start + step, span.stop))


_MAX_JSON_BYTES = 2**28
_READ = 2**20  # bytes read at a time; more is not faster


@dataclass(frozen=True, eq=False)
class Stored:
    """The contents of a finished store."""

    arrays: dict[str, np.ndarray]  # memory maps; changes to them are private to this process
    about: dict[str, Any]  # the writer's description of the arrays
    job: dict[str, Any]  # what the arrays were computed from; equal jobs write equal arrays


def is_store(folder: str | os.PathLike[str]) -> bool:
    """Return whether a folder contains a finished store."""
    return (Path(folder) / MANIFEST).is_file()


def holds(folder: str | os.PathLike[str], job: Mapping[str, Any]) -> bool:
    """Return whether a folder contains the finished store of this job.

    Raises
    ------
    RecordError
        The folder contains a store of another job, finished or not, or a damaged one.
    """
    path, job = Path(folder), json.loads(json.dumps(job))
    for name in (MANIFEST, UNFINISHED):
        if (path / name).is_file():
            stored = (manifest_of(path) if name == MANIFEST else json_of(path / name)).get("job")
            if stored != job:
                other = stored if isinstance(stored, dict) else {}
                keys = [key for key in {**other, **job} if other.get(key) != job.get(key)]
                raise RecordError(
                    f"{path} holds the features of another job: {', '.join(keys)} "
                    f"{'differ' if len(keys) > 1 else 'differs'}. Choose another folder, or delete "
                    "this one."
                )
            return name == MANIFEST
    return False


def read_store(folder: str | os.PathLike[str], *, verify: bool = True) -> Stored:
    """Open a finished store; arrays stored as bfloat16 become float32.

    If `verify`, all data is read and compared with the checksums in the manifest.

    Raises
    ------
    RecordError
        The store is missing, unfinished or damaged.
    """
    path = as_path(folder, "folder")
    manifest = manifest_of(path)
    arrays = {}
    for key, entry in manifest["arrays"].items():
        array = _mapped(path, entry)
        if verify:
            _verify(path, array, entry, manifest["rows"])
        arrays[key] = _widened(array, path) if entry["dtype"] == "bfloat16" else array
    return Stored(arrays, manifest["about"], manifest["job"])


def manifest_of(path: Path) -> dict[str, Any]:
    """Read the manifest of a store; raise RecordError if it is missing, unfinished or damaged."""
    if not (path / MANIFEST).is_file():
        if (path / UNFINISHED).is_file():
            raise RecordError(f"{path} is not finished: run the command that began it again.")
        raise RecordError(f"No stored features at {path}; store them with `wgeo trace`.")
    manifest = json_of(path / MANIFEST)
    checksum = manifest.pop("checksum", None)
    if (version := manifest.get("version")) != VERSION:
        raise RecordError(
            f"{path / MANIFEST} is of version {version!r}; this wgeo reads {VERSION}."
        )
    if checksum != digest(manifest):
        raise RecordError(f"{path / MANIFEST} is damaged: its checksum is wrong. Trace again.")
    for fault in read(Manifest, manifest)[1]:
        raise RecordError(f"{path / MANIFEST} is damaged in {fault.location}. Trace again.")
    return manifest


def json_of(path: Path) -> dict[str, Any]:
    try:
        value = json.loads(read_regular(path, _MAX_JSON_BYTES))
    except (OSError, ValueError, RecursionError) as error:
        raise RecordError(f"{path} cannot be read: {error}") from error
    if not isinstance(value, dict):
        raise RecordError(f"{path} is damaged. Delete its folder and trace again.")
    return value


def _mapped(folder: Path, entry: Mapping[str, Any]) -> np.ndarray:
    path = folder / entry["file"]
    if path.parent != folder:
        raise RecordError(f"{folder / MANIFEST} is damaged: it names {path}, outside the store.")
    try:
        require_regular(path)
        array = np.lib.format.open_memmap(path, mode="c")
        dtype = np.dtype(DTYPES.get(entry["dtype"], entry["dtype"]))
    except Exception as error:  # a header is a Python literal, and can be damaged in many ways
        raise RecordError(f"{path} is missing or damaged: {error}. Trace again.") from error
    if list(array.shape) != entry["shape"] or array.dtype != dtype or not array.flags.c_contiguous:
        raise RecordError(
            f"{path} is {array.dtype} {array.shape}, but the manifest says {entry['dtype']} "
            f"{tuple(entry['shape'])} in C order. Trace again."
        )
    return array


def _verify(folder: Path, array: Any, entry: Mapping[str, Any], spans: list[list[int]]) -> None:
    """Compare an array's file with its checksums, one range of rows at a time."""
    sums, n = entry["crc32"], len(array)
    if isinstance(sums, int):
        spans, sums = [[0, n]], [sums]
    bounds = [0, *(stop for _, stop in spans)]
    whole = len(sums) == len(spans) and bounds[-1] == n
    if not whole or any(not a <= b <= c for (a, c), b in zip(spans, bounds, strict=False)):
        raise RecordError(f"{folder / MANIFEST} is damaged: it lacks rows. Trace again.")
    path, row = folder / entry["file"], array.itemsize * math.prod(array.shape[1:])
    # Reading raises an error if the disk fails; a memory map would crash the process.
    with open(path, "rb") as file:
        for (start, stop), crc in zip(spans, sums, strict=True):
            file.seek(array.offset + start * row)
            if _crc32(file, (stop - start) * row) != crc:
                raise RecordError(f"{path} is damaged in rows {start} to {stop}. Trace again.")


def _crc32(file: IO[bytes], size: int) -> int:
    """Return the CRC-32 of the next bytes of a file."""
    crc, buffer = 0, memoryview(bytearray(min(size, _READ)))
    while size > 0 and (count := file.readinto(buffer[: min(size, len(buffer))])):  # type: ignore[attr-defined]
        crc, size = zlib.crc32(buffer[:count], crc), size - count
    return crc


def _widened(bits: np.ndarray, folder: Path) -> np.ndarray:

    def widen(rows: slice) -> np.ndarray:
        return np.left_shift(bits[rows], 16, dtype=np.uint32).view(np.float32)

    with local_only():  # a single process may open a store on its own
        return materialize_on_disk(LazyRows(bits.shape, widen), np.float32, folder)
