"""Stores opened: finished ones only, and not trusted to be whole."""

from __future__ import annotations

import json
import math
import os
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np

from ...arrays.rows import LazyRows, materialize_on_disk
from ...errors import RecordError
from ...runtime.processes import local_only
from .. import schema
from ..files import as_path, regular
from .layout import DTYPES, MANIFEST, UNFINISHED, VERSION, digest

_READ = 2**20  # bytes of a file at a time; more do not make it faster


@dataclass(frozen=True, eq=False)
class Stored:
    """What a finished store holds.

    Attributes
    ----------
    arrays : dict of str to ndarray
        Memory maps; what is written into them stays in this process.
    about : dict
        What its writer said of them.
    job : dict
        What they were made of, which decides whether another job would make the same.
    """

    arrays: dict[str, np.ndarray]
    about: dict[str, Any]
    job: dict[str, Any]


def is_store(folder: str | os.PathLike[str]) -> bool:
    """Whether a finished store is there."""
    return (Path(folder) / MANIFEST).is_file()


def holds(folder: str | os.PathLike[str], job: Mapping[str, Any]) -> bool:
    """Whether the finished store of this very job is there; refuse another's folder.

    Raises
    ------
    RecordError
        The folder holds, finished or not, what another job made.
    """
    path, job = Path(folder), json.loads(json.dumps(job))
    for name in (MANIFEST, UNFINISHED):
        if (path / name).is_file():
            made = (manifest_of(path) if name == MANIFEST else json_of(path / name)).get("job")
            if made != job:
                found = made if isinstance(made, dict) else {}
                keys = [key for key in {**found, **job} if found.get(key) != job.get(key)]
                raise RecordError(
                    f"{path} holds the features of another job: {', '.join(keys)} "
                    f"{'differ' if len(keys) > 1 else 'differs'}. Choose another folder, or delete "
                    "this one."
                )
            return name == MANIFEST
    return False


def read_store(folder: str | os.PathLike[str], *, verify: bool = True) -> Stored:
    """Open a finished store.

    Parameters
    ----------
    folder : path
    verify : bool
        Read everything once and compare it with the checksums of the manifest.

    Raises
    ------
    RecordError
        No store there, an unfinished one, or a damaged one (what is damaged is named).
    """
    path = as_path(folder, "folder")
    manifest = manifest_of(path)
    arrays = {}
    for key, entry in manifest["arrays"].items():
        array = _mapped(path, entry)
        if verify:
            _verify(path, array, entry, manifest["rows"])
        narrow = entry["dtype"] == "bfloat16"
        arrays[key] = _widened(array, path) if narrow else array
    return Stored(arrays, manifest["about"], manifest["job"])


def manifest_of(path: Path) -> dict[str, Any]:
    """Return the manifest of stored features, checked; their arrays are not read.

    Raises
    ------
    RecordError
        No stored features there, unfinished ones, or a damaged manifest.
    """
    if not (path / MANIFEST).is_file():
        if (path / UNFINISHED).is_file():
            raise RecordError(f"{path} is not finished: run again what was writing it.")
        raise RecordError(f"No stored features at {path}; make them with `wgeo trace`.")
    found = json_of(path / MANIFEST)
    checksum = found.pop("checksum", None)
    if found.get("version") != VERSION:
        raise RecordError(
            f"{path / MANIFEST} is of version {found.get('version')!r}; this wgeo reads {VERSION}."
        )
    if checksum != digest(found):
        raise RecordError(f"{path / MANIFEST} is damaged: its checksum is wrong. Trace again.")
    for fault in schema.faults(found, schema.MANIFEST):
        raise RecordError(f"{path / MANIFEST} is damaged in {fault.place}. Trace again.")
    return found


def json_of(path: Path) -> dict[str, Any]:
    try:
        regular(path)
        found = json.loads(path.read_text("utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise RecordError(f"{path} cannot be read: {error}") from error
    if not isinstance(found, dict):
        raise RecordError(f"{path} is damaged. Delete its folder and trace again.")
    return found


def _mapped(folder: Path, entry: Mapping[str, Any]) -> np.ndarray:
    """An array of a store, as its manifest describes it."""
    path = folder / entry["file"]
    if path.parent != folder:
        raise RecordError(f"{folder / MANIFEST} is damaged: it names {path}, outside of the store.")
    try:
        regular(path)
        array = np.lib.format.open_memmap(path, mode="c")
        dtype = np.dtype(DTYPES.get(entry["dtype"], entry["dtype"]))
    except Exception as error:  # a header is a line of Python, and can be damaged in many ways
        raise RecordError(f"{path} is missing or damaged: {error}. Trace again.") from error
    if list(array.shape) != entry["shape"] or array.dtype != dtype or not array.flags.c_contiguous:
        raise RecordError(
            f"{path} is {array.dtype} {array.shape}, and the manifest says {entry['dtype']} "
            f"{tuple(entry['shape'])}, row by row. Trace again."
        )
    return array


def _verify(folder: Path, array: Any, entry: Mapping[str, Any], spans: list[list[int]]) -> None:
    """Compare an array's file with its checksums, a range of rows at a time."""
    sums, n = entry["crc32"], len(array)
    if isinstance(sums, int):
        spans, sums = [[0, n]], [sums]
    bounds = [0, *(stop for _, stop in spans)]
    whole = len(sums) == len(spans) and bounds[-1] == n
    if not whole or any(not a <= b <= c for (a, c), b in zip(spans, bounds, strict=False)):
        raise RecordError(f"{folder / MANIFEST} is damaged: it lacks rows. Trace again.")
    path, row = folder / entry["file"], array.itemsize * math.prod(array.shape[1:])
    # Read, not mapped: what is only looked at once takes no memory, and a failing disk is an error.
    with open(path, "rb") as file:
        for (start, stop), crc in zip(spans, sums, strict=True):
            file.seek(array.offset + start * row)
            if _crc32(file, (stop - start) * row) != crc:
                raise RecordError(f"{path} is damaged in rows {start} to {stop}. Trace again.")


def _crc32(file: IO[bytes], size: int) -> int:
    """CRC-32 of the next bytes of a file."""
    found, buffer = 0, memoryview(bytearray(min(size, _READ)))
    while size > 0 and (got := file.readinto(buffer[: min(size, len(buffer))])):  # type: ignore[attr-defined]
        found, size = zlib.crc32(buffer[:got], found), size - got
    return found


def _widened(bits: np.ndarray, folder: Path) -> np.ndarray:
    """Bfloat16 as float32."""

    def made(rows: slice) -> np.ndarray:
        return np.left_shift(bits[rows], 16, dtype=np.uint32).view(np.float32)

    with local_only():  # a store may be opened by one process
        return materialize_on_disk(LazyRows(bits.shape, made), np.float32, folder)
