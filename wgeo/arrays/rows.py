"""Features a few rows at a time: what is large is neither read nor made at once."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, TypeGuard, runtime_checkable

import numpy as np
from jaxtyping import Float, Int
from scipy.sparse import csr_array

from ..errors import RecordError
from ..runtime import processes
from ..runtime.memory import available_bytes, limited_size
from .checks import as_array, as_numpy, as_points
from .mapped import anonymous_array

_HELD = 2**24  # bytes of float64 rows at a time


@runtime_checkable
class Sliceable(Protocol):
    """Features (n, d) of which rows can be taken: an array, a memory map, or `Rows`."""

    @property
    def shape(self) -> tuple[int, ...]:
        """(n, d)."""

    def __getitem__(self, rows: Any, /) -> np.ndarray:
        """Some rows, by a slice or an array of their numbers."""


@dataclass(frozen=True, eq=False)
class Rows:
    """Features that are made when rows of them are taken.

    Attributes
    ----------
    shape : tuple of int
        (n, d).
    make : callable
        Rows by a slice or an array of their numbers.
    width : int
        How many numbers making a row takes at a time, where that is more than d.
    """

    shape: tuple[int, ...]
    make: Callable[[Any], Float[np.ndarray, "b d"]]
    width: int = 0

    def __getitem__(self, rows: Any) -> Float[np.ndarray, "b d"]:
        return self.make(rows)


def is_mapped(features: np.ndarray) -> TypeGuard[np.memmap]:
    """Whether they lie on the disk; a copy of a memory map is of its type, and does not."""
    return isinstance(features, np.memmap) and getattr(features, "_mmap", None) is not None


def picked(features: Sliceable, chosen: Int[np.ndarray, " m"]) -> Rows:
    """The rows `chosen`, as features of their own."""
    shape = (len(chosen), *features.shape[1:])
    return Rows(shape, lambda rows: wide(features[chosen[rows]]), width_of(features))


def width_of(*features: Sliceable) -> int:
    """How many numbers a row takes at a time, of the widest."""
    return max(max(x.shape[1], x.width if isinstance(x, Rows) else 0) for x in features)


def wide(features: np.ndarray) -> np.ndarray:
    """Features in float64."""
    return np.asarray(features, dtype=np.float64)


def ranges(stop: int, width: int, start: int = 0) -> list[slice]:
    """The rows from `start` in turn, so many at a time that of this width they take 16 MiB.

    In float64; less where memory is bounded (`wgeo.runtime.memory`).
    """
    step = max(1, limited_size(_HELD, 1 / 32) // (8 * width))
    return [slice(i, min(i + step, stop)) for i in range(start, stop, step)]


def blocks(
    *features: Sliceable, width: int = 0, within: slice | None = None
) -> Iterator[tuple[slice, list[Float[np.ndarray, "b d"]]]]:
    """Rows of as many samples in float64, with the range of their numbers; some of all rows.

    Chunks are sized for rows of `width`, if wider.
    """
    within = slice(0, features[0].shape[0]) if within is None else within
    for rows in ranges(within.stop, max(width, width_of(*features)), within.start):
        yield rows, [wide(each[rows]) for each in features]


def checked(features: Any, name: str) -> np.ndarray:
    """Features (n, d) of their own type, not copied; refused as `as_points` refuses them.

    Raises
    ------
    FeatureError
        Not numeric, not 1-D or 2-D, empty, or holding NaN or infinity.
    """
    array = features
    if not isinstance(features, np.ndarray):
        array = as_numpy(features if hasattr(features, "detach") else as_array(features, name))
    if array.ndim != 2 or array.size == 0:
        return as_numpy(as_points(features, name=name))
    for rows in ranges(*array.shape):
        as_points(array[rows], name=name, start=rows.start)
    return array


def summed(terms: Callable[..., Sequence[Any]], *features: Sliceable, width: int = 0) -> list[Any]:
    """Sums over all rows of what ``terms(rows, *blocks)`` makes of some: arrays, numbers.

    Processes that work together (`wgeo.runtime.processes`) go over a share of the rows each; all
    must come here.
    """
    mine = processes.shard(features[0].shape[0])
    none = slice(mine.start, mine.start)
    sums = list(terms(none, *(wide(each[none]) for each in features)))
    for rows, parts in blocks(*features, width=width, within=mine):
        for k, term in enumerate(terms(rows, *parts)):
            sums[k] += term
    return [processes.all_reduce_sum(each) for each in sums]


def mean_of(features: Sliceable) -> Float[np.ndarray, " d"]:
    """Mean of all rows."""
    (total,) = summed(lambda _, block: [block.sum(0)], features)
    return total / features.shape[0]


def sums_by_class(
    features: Float[np.ndarray, "b d"], labels: Int[np.ndarray, " b"], classes: int
) -> Float[np.ndarray, "K d"]:
    """Sum of the rows of every class 0, ..., K - 1."""
    entries = (np.ones(len(labels)), (labels, np.arange(len(labels))))
    return csr_array(entries, shape=(classes, len(labels))) @ features


def class_means(features: Sliceable, labels: Int[np.ndarray, " n"]) -> Float[np.ndarray, "K d"]:
    """Mean of every class 0, ..., K - 1, each of which has a sample."""
    counts = np.bincount(labels)
    (total,) = summed(
        lambda rows, block: [sums_by_class(block, labels[rows], len(counts))], features
    )
    return total / counts[:, None]


def made_like(layers: Sequence[np.ndarray], rows: Rows, dtype: Any = np.float64) -> np.ndarray:
    """An array of `rows`: on the disk if one of the layers it is made of is, else in memory.

    On the disk too where the bound of memory leaves no room for it.

    Raises
    ------
    RecordError
        The disk is full.
    """
    dtype, shape = np.dtype(dtype), rows.shape
    maps = [layer for layer in layers if is_mapped(layer)]
    left = available_bytes()
    if maps or (left is not None and math.prod(shape) * dtype.itemsize > left / 8):
        named = next((Path(a.filename).parent for a in maps if a.filename), None)
        return on_disk(rows, dtype, named)
    out = np.empty(shape, dtype)
    for part in ranges(shape[0], width_of(rows)):
        out[part] = rows[part]
    return out


def on_disk(rows: Rows, dtype: Any, folder: Path | None) -> np.memmap:
    """An array of `rows` in a file without a name beside a store.

    Processes that work together make a share of them each (`wgeo.arrays.mapped.anonymous_array`).

    Raises
    ------
    RecordError
        The disk is full.
    """
    where = folder if folder is not None and os.access(folder, os.W_OK) else None

    def made(mine: slice) -> Iterator[np.ndarray]:
        for part in ranges(mine.stop, width_of(rows), mine.start):
            yield rows[part]

    try:
        return anonymous_array(made, rows.shape, dtype, where)
    except OSError as error:
        raise RecordError(
            f"Features made of stored ones need a temporary file, for which {where or 'the disk'} "
            f"has no room: {error.strerror}."
        ) from error
