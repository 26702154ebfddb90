"""Stores opened: finished ones only, and not trusted to be whole."""

from __future__ import annotations

import json
import os
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ..distributed import alone
from ..errors import RecordError
from ..rows import Rows, on_disk
from .layout import DTYPES, MANIFEST, UNFINISHED, VERSION, digest


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
            found = manifest_of(path)["job"] if name == MANIFEST else json_of(path / name)["job"]
            if found != job:
                keys = [key for key in {**found, **job} if found.get(key) != job.get(key)]
                raise RecordError(
                    f"{path} holds the features of another job: {', '.join(keys)} "
                    f"{'differ' if len(keys) > 1 else 'differs'}. Choose another folder, or delete "
                    "this one."
                )
            return name == MANIFEST
    return False


def read_store(folder: str | os.PathLike[str], *, verify: bool = False) -> Stored:
    """Open a finished store.

    Parameters
    ----------
    folder : path
    verify : bool
        Read everything and compare it with the checksums of the manifest.

    Raises
    ------
    RecordError
        No store there, an unfinished one, or a damaged one (what is damaged is named).
    """
    path = Path(folder)
    manifest = manifest_of(path)
    try:
        spans = manifest["rows"]
        arrays = {}
        for key, entry in manifest["arrays"].items():
            array = _mapped(path, entry)
            if verify:
                _verify(path / entry["file"], array, entry["crc32"], spans)
            narrow = entry["dtype"] == "bfloat16"
            arrays[key] = _widened(array, path) if narrow else array
        return Stored(arrays, dict(manifest["about"]), dict(manifest["job"]))
    except (KeyError, TypeError, AttributeError) as error:
        raise RecordError(f"{path / MANIFEST} is damaged: {error!r}. Trace again.") from error


def manifest_of(path: Path) -> dict[str, Any]:
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
    return found


def json_of(path: Path) -> dict[str, Any]:
    try:
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
        array = np.load(path, mmap_mode="c", allow_pickle=False)
    except (OSError, ValueError) as error:
        raise RecordError(f"{path} is missing or damaged: {error} Trace again.") from error
    dtype = np.dtype(DTYPES.get(entry["dtype"], entry["dtype"]))
    if list(array.shape) != entry["shape"] or array.dtype != dtype:
        raise RecordError(
            f"{path} is {array.dtype} {array.shape}, and the manifest says {entry['dtype']} "
            f"{tuple(entry['shape'])}. Trace again."
        )
    return array


def _verify(path: Path, array: np.ndarray, sums: int | Sequence[int], spans: Any) -> None:
    """Compare an array with its checksums, a range of rows at a time."""
    parts = [(0, len(array), sums)]
    if not isinstance(sums, int):
        parts = [(start, stop, one) for (start, stop), one in zip(spans, sums, strict=True)]
    for start, stop, one in parts:
        if zlib.crc32(np.ascontiguousarray(array[start:stop]).data) != one:
            raise RecordError(f"{path} is damaged in rows {start} to {stop}. Trace again.")


def _widened(bits: np.ndarray, folder: Path) -> np.ndarray:
    """Bfloat16 as float32."""

    def made(rows: slice) -> np.ndarray:
        return np.left_shift(bits[rows], 16, dtype=np.uint32).view(np.float32)

    with alone():  # a store may be opened by one process
        return on_disk(Rows(bits.shape, made), np.float32, folder)
