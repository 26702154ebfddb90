"""Read, compute and store features in chunks of rows, so that large arrays need little memory."""

from __future__ import annotations

import math
import os
import tempfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, Protocol, TypeGuard, runtime_checkable

import numpy as np
from jaxtyping import Float, Int
from scipy.sparse import csr_array
from scipy.sparse.csgraph import connected_components

from ..errors import RecordError
from ..runtime import processes
from ..runtime.memory import available_bytes, limited_size
from .checks import as_array, as_numpy, as_points, require_whole

_CHUNK_BYTES = 2**24  # bytes of a chunk of float64 rows
_COPY_DISTANCE = 1e-6  # largest distance of copies, relative to the median distance of samples
_SAMPLED_PAIRS = 64  # number of random pairs of samples from which this median is estimated
# Two samples are compared if they are fewer places apart in the order of their projections.
_NEIGHBORS = 64


@runtime_checkable
class Sliceable(Protocol):
    """Features (n, d) whose rows can be indexed: an array, a memory map, or `LazyRows`."""

    @property
    def shape(self) -> tuple[int, ...]:
        """(n, d)."""

    def __getitem__(self, rows: Any, /) -> np.ndarray:
        """Return the rows of a slice or of an array of row numbers."""


@dataclass(frozen=True, eq=False)
class LazyRows:
    """Features whose rows are computed when they are indexed."""

    shape: tuple[int, ...]
    compute: Callable[[Any], Float[np.ndarray, "b d"]]  # called with a slice or row numbers
    width: int = 0  # entries in memory per row during the computation, if more than d

    def __getitem__(self, rows: Any) -> Float[np.ndarray, "b d"]:
        return self.compute(rows)


def is_memmapped(features: np.ndarray) -> TypeGuard[np.memmap]:
    """Return whether features are on disk; a copy in memory can also be an np.memmap."""
    return isinstance(features, np.memmap) and getattr(features, "_mmap", None) is not None


def select_rows(features: Sliceable, indices: Int[np.ndarray, " m"]) -> LazyRows:
    """Return rows of the features, in float64; they are read when the result is indexed."""

    def read(rows: Any) -> Float[np.ndarray, "b d"]:
        require_whole(features)
        return as_float64(features[indices[rows]])

    return LazyRows((len(indices), *features.shape[1:]), read, max_width(features))


def max_width(*features: Sliceable) -> int:
    """Return the largest number of entries per row that any of the features needs in memory."""
    return max(max(x.shape[1], x.width if isinstance(x, LazyRows) else 0) for x in features)


def as_float64(features: np.ndarray) -> np.ndarray:
    return np.asarray(features, dtype=np.float64)


def row_ranges(stop: int, width: int, start: int = 0) -> list[slice]:
    """Return slices that divide the rows from `start` to `stop`, of `width` entries each.

    The rows of a slice take at most 16 MiB in float64, or less under a memory limit. A single row
    may take more.
    """
    step = max(1, limited_size(_CHUNK_BYTES, 1 / 32) // (8 * width))
    return [slice(i, min(i + step, stop)) for i in range(start, stop, step)]


def spaced_rows(n: int, count: int) -> Int[np.ndarray, " r"]:
    """Return the indices of `count` evenly spaced rows out of n, or of all rows if n < `count`."""
    return np.linspace(0, n - 1, min(n, count)).astype(np.int64)


def row_chunks(
    *features: Sliceable, width: int = 0, within: slice | None = None
) -> Iterator[tuple[slice, list[Float[np.ndarray, "b d"]]]]:
    """Yield, chunk by chunk, a slice of rows and a list of these rows of each of `features`.

    The rows are in float64; only those in `within` are read. `width` is the number of entries per
    row that the caller's computation needs, if it needs more than the features have.
    """
    within = slice(0, features[0].shape[0]) if within is None else within
    for rows in row_ranges(within.stop, max(width, max_width(*features)), within.start):
        for each in features:
            require_whole(each)
        yield rows, [as_float64(each[rows]) for each in features]


def check_features(features: Any, name: str) -> np.ndarray:
    """Return features as an array (n, d), after the checks of `as_points`.

    A two-dimensional NumPy array is returned as it is, without a copy.
    """
    array = features
    if not isinstance(features, np.ndarray):
        array = as_numpy(features if hasattr(features, "detach") else as_array(features, name))
    if array.ndim != 2 or array.size == 0:
        return as_numpy(as_points(features, name=name))
    for rows in row_ranges(*array.shape):
        as_points(array[rows], name=name, start=rows.start)
    return array


def sum_over_rows(
    terms: Callable[..., Sequence[Any]], *features: Sliceable, width: int = 0
) -> list[Any]:
    """Return sums of ``terms(rows, *chunks)``, a sequence of arrays or numbers, over all rows.

    This is a collective operation (`wgeo.runtime.processes`). The first call of `terms` is for zero
    rows, to determine the shapes.
    """
    shard = processes.shard(features[0].shape[0])
    empty = slice(shard.start, shard.start)
    sums = list(terms(empty, *(as_float64(each[empty]) for each in features)))
    for rows, parts in row_chunks(*features, width=width, within=shard):
        for k, term in enumerate(terms(rows, *parts)):
            sums[k] += term
    return [processes.all_reduce_sum(each) for each in sums]


def map_rows(
    values: Callable[..., Sequence[np.ndarray]], *features: Sliceable, width: int = 0
) -> list[np.ndarray]:
    """Return ``values(rows, *chunks)``, a sequence of arrays with one entry per row, for all rows.

    This is a collective operation. The first call of `values` is for zero rows, to determine the
    shapes.
    """
    n = features[0].shape[0]
    shard = processes.shard(n)
    empty = slice(shard.start, shard.start)
    of_none = values(empty, *(as_float64(each[empty]) for each in features))
    arrays = [np.zeros((n, *each.shape[1:])) for each in of_none]
    for rows, parts in row_chunks(*features, width=width, within=shard):
        for array, part in zip(arrays, values(rows, *parts), strict=True):
            array[rows] = part
    return [processes.all_reduce_sum(each) for each in arrays]


def mean_of(features: Sliceable) -> Float[np.ndarray, " d"]:
    (total,) = sum_over_rows(lambda _, chunk: [chunk.sum(0)], features)
    return total / features.shape[0]


def sums_by_class(
    features: Float[np.ndarray, "b d"], labels: Int[np.ndarray, " b"], classes: int
) -> Float[np.ndarray, "K d"]:
    """Return the sum of the rows of every class 0, ..., K - 1."""
    entries = (np.ones(len(labels)), (labels, np.arange(len(labels))))
    return csr_array(entries, shape=(classes, len(labels))) @ features


def class_means(features: Sliceable, labels: Int[np.ndarray, " n"]) -> Float[np.ndarray, "K d"]:
    """Return the mean of every class 0, ..., K - 1; each class must have a sample."""
    counts = np.bincount(labels)
    (total,) = sum_over_rows(
        lambda rows, chunk: [sums_by_class(chunk, labels[rows], len(counts))], features
    )
    return total / counts[:, None]


def materialize(
    layers: Sequence[np.ndarray], rows: LazyRows, dtype: Any = np.float64
) -> np.ndarray:
    """Compute `rows`, which depend on `layers`, and return them as an array.

    The array is on disk if one of the layers is, or if it would take more than an eighth of the
    memory available under a memory limit. `RecordError` is raised if the disk is full.
    """
    dtype, shape = np.dtype(dtype), rows.shape
    maps = [layer for layer in layers if is_memmapped(layer)]
    available = available_bytes()
    if maps or (available is not None and math.prod(shape) * dtype.itemsize > available / 8):
        folder = next((Path(a.filename).parent for a in maps if a.filename), None)
        return materialize_on_disk(rows, dtype, folder)
    out = np.empty(shape, dtype)
    for part in row_ranges(shape[0], max_width(rows)):
        out[part] = rows[part]
    return out


def materialize_on_disk(rows: LazyRows, dtype: Any, folder: Path | None) -> np.memmap:
    """Compute `rows` into an anonymous temporary file, in `folder` if that is writable.

    This is a collective operation. `RecordError` is raised if the disk is full.
    """
    target = folder if folder is not None and os.access(folder, os.W_OK) else None

    def compute(shard: slice) -> Iterator[np.ndarray]:
        for part in row_ranges(shard.stop, max_width(rows), shard.start):
            yield rows[part]

    try:
        return anonymous_array(compute, rows.shape, dtype, target)
    except OSError as error:
        raise RecordError(
            "Computed features need a temporary file, for which "
            f"{target or 'the disk'} has no space ({error.strerror}). Free some space."
        ) from error


def anonymous_array(
    compute: Callable[[slice], Iterable[np.ndarray]],
    shape: tuple[int, ...],
    dtype: Any,
    folder: str | os.PathLike[str] | None = None,
) -> np.memmap:
    """Return an array in an anonymous temporary file, which is removed together with the array.

    ``compute(rows)`` yields the rows of a slice in chunks. The file is in `folder`, by default the
    system's folder for temporary files. This is a collective operation: the processes of one host
    share the file, and each writes a shard. If they cannot share a file, each writes all rows to a
    file of its own. `OSError` is raised if no file can be created, or the disk is full.
    """
    n, row_bytes = shape[0], math.prod(shape[1:]) * np.dtype(dtype).itemsize
    with ExitStack() as stack:
        shared = None
        if processes.world_size() > 1:
            shared = stack.enter_context(_shared_file(n * row_bytes, folder))
        ranks = [processes.rank()] if shared is None else processes.local_ranks()
        part, parts = ranks.index(processes.rank()), len(ranks)

        def write() -> np.memmap:
            file = shared or stack.enter_context(tempfile.TemporaryFile(dir=folder))
            shard = slice(n * part // parts, n * (part + 1) // parts)
            file.seek(shard.start * row_bytes)
            for chunk in compute(shard):  # not into the map, which crashes if the disk is full
                file.write(np.ascontiguousarray(chunk, dtype).data)
            file.flush()
            return np.memmap(file, dtype, "r+", shape=shape)

        return processes.raise_on_any(write)  # no process reads before all have written


@contextmanager
def _shared_file(size: int, folder: str | os.PathLike[str] | None) -> Iterator[IO[bytes] | None]:
    """Yield a temporary file that this host's processes share; None if they cannot share one.

    The first process creates it, and removes its name as soon as the others have opened it.
    """
    ranks, path = processes.local_ranks(), None
    processes.all_gather(None)  # wait for all, so that the file has a name only for a moment
    if ranks[0] == processes.rank():
        with (
            suppress(OSError),
            tempfile.NamedTemporaryFile(prefix="wgeo-", dir=folder, delete=False) as file,
        ):
            path = file.name
            file.truncate(size)
    with ExitStack() as stack:
        shared = None
        try:
            first_path = processes.all_gather(path)[ranks[0]]
            if first_path is not None:
                with suppress(OSError):  # another machine of the same name, for example
                    shared = stack.enter_context(open(first_path, "r+b"))
            opened = processes.all_gather(shared is not None)
        finally:
            if path is not None:
                with suppress(OSError):
                    os.unlink(path)  # open handles stay valid
        yield shared if all(opened[other] for other in ranks) else None


def copies_of(*features: Sliceable) -> Int[np.ndarray, " n"]:
    """Return for every sample the index of the first sample of which it is a copy, or its own.

    Two samples are copies if in each of `features` their distance is at most 1e-6 times the median
    distance between samples. Samples that are single numbers are copies only if equal. Copies
    are neighbors in a random projection onto a line, so only neighbors there are compared.
    """
    rng, n = np.random.default_rng(0), features[0].shape[0]
    single = sum(each.shape[1] for each in features) == 1
    margins = [
        0.0 if single else _COPY_DISTANCE * _typical_distance(each, rng) for each in features
    ]
    directions = [rng.standard_normal(each.shape[1]) for each in features]
    position = np.zeros(n)
    for rows, parts in row_chunks(*features):
        position[rows] = sum(part @ line for part, line in zip(parts, directions, strict=True))
    lengths = [float(np.linalg.norm(line)) for line in directions]
    rounding = 1e-9 * float(np.abs(position).max())  # rounding error of the projections
    reach = float(np.dot(margins, lengths)) + rounding
    order = np.argsort(position, kind="stable")
    group = np.arange(n)
    for offset in range(1, min(n, _NEIGHBORS)):
        pairs = np.stack([order[:-offset], order[offset:]])
        near = np.diff(position[pairs], axis=0)[0] <= reach
        if not near.any():
            break
        pairs = pairs[:, near & (group[pairs[0]] != group[pairs[1]])]
        group = _merge_groups(group, pairs[:, _are_copies(features, margins, pairs)])
    return np.unique(group, return_index=True)[1][group]


def _typical_distance(features: Sliceable, rng: np.random.Generator) -> float:
    """Return the median distance of random pairs of samples."""
    a, b = rng.integers(0, features.shape[0], (2, _SAMPLED_PAIRS))
    distances = [
        float(np.linalg.norm(np.subtract(*as_float64(features[np.array([i, j])]))))
        for i, j in zip(a, b, strict=True)
        if i != j
    ]
    return float(np.median(distances)) if distances else 0.0


def _are_copies(
    features: Sequence[Sliceable], margins: Sequence[float], pairs: Int[np.ndarray, "2 m"]
) -> np.ndarray:
    """Return for each pair of samples whether its distances are within the margins."""
    within = np.ones(pairs.shape[1], bool)
    for each, margin in zip(features, margins, strict=True):
        for rows, (x, y) in row_chunks(select_rows(each, pairs[0]), select_rows(each, pairs[1])):
            within[rows] &= np.linalg.norm(x - y, axis=1) <= margin
    return within


def _merge_groups(
    group: Int[np.ndarray, " n"], pairs: Int[np.ndarray, "2 m"]
) -> Int[np.ndarray, " n"]:
    """Merge the groups of each pair of samples; return the new group of each sample."""
    if not pairs.size:
        return group
    n = len(group)
    edges = csr_array((np.ones(pairs.shape[1]), group[pairs]), shape=(n, n))
    return connected_components(edges, directed=False)[1][group]
