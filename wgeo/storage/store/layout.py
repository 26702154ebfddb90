"""The file names and number formats of a store."""

from __future__ import annotations

import hashlib
import io
import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch

from ...errors import ArgumentError, FeatureError
from ..schema import Count, Part

MANIFEST, UNFINISHED = "manifest.json", "unfinished.json"
VERSION = 1
SHARD = 2**25
"""Bytes, of all arrays together, that are synced to disk at a time; at least one batch is."""

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
    """Cut a range of rows into shards of at most `SHARD` bytes, but at least one batch of rows."""
    step = batch * max(1, SHARD // (batch * max(row_bytes, 1)))
    for start in range(span.start, span.stop, step):
        yield slice(start, min(start + step, span.stop))


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
