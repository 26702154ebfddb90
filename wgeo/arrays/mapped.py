"""Memory-mapped arrays in anonymous temporary files, shared by processes."""

from __future__ import annotations

import math
import os
import tempfile
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from typing import IO, Any

import numpy as np

from ..runtime.processes import all_gather, local_ranks, raise_on_any, rank, world_size


def anonymous_array(
    compute: Callable[[slice], Iterable[np.ndarray]],
    shape: tuple[int, ...],
    dtype: Any,
    folder: str | os.PathLike[str] | None = None,
) -> np.memmap:
    """Return an array in an anonymous temporary file, which is removed together with the array.

    ``compute(rows)`` yields the rows of a slice in chunks. This is a collective operation: the
    processes of one host share a file, and each writes a shard. If they cannot share a file, each
    writes all rows to a file of its own. The file is in `folder`, by default the system's folder
    for temporary files. `OSError` is raised if it cannot be created, or the disk is full.
    """
    n, row_bytes = shape[0], math.prod(shape[1:]) * np.dtype(dtype).itemsize
    with ExitStack() as stack:
        size = n * row_bytes
        shared = stack.enter_context(_shared_file(size, folder)) if world_size() > 1 else None
        ranks = [rank()] if shared is None else local_ranks()
        part, parts = ranks.index(rank()), len(ranks)

        def write() -> np.memmap:
            file = shared or stack.enter_context(tempfile.TemporaryFile(dir=folder))
            shard = slice(n * part // parts, n * (part + 1) // parts)
            file.seek(shard.start * row_bytes)
            for chunk in compute(shard):  # not into the map, which crashes if the disk is full
                file.write(np.ascontiguousarray(chunk, dtype).data)
            file.flush()
            return np.memmap(file, dtype, "r+", shape=shape)

        return raise_on_any(write)  # no process reads before all have written


@contextmanager
def _shared_file(size: int, folder: str | os.PathLike[str] | None) -> Iterator[IO[bytes] | None]:
    """Yield a temporary file that this host's processes share; None if they cannot share one.

    The first process creates it, and removes its name as soon as the others have opened it.
    """
    ranks, path = local_ranks(), None
    all_gather(None)  # wait for all processes, so that the file has a name only for a moment
    if ranks[0] == rank():
        with (
            suppress(OSError),
            tempfile.NamedTemporaryFile(prefix="wgeo-", dir=folder, delete=False) as file,
        ):
            path = file.name
            file.truncate(size)
    with ExitStack() as stack:
        shared = None
        try:
            first_path = all_gather(path)[ranks[0]]
            if first_path is not None:
                with suppress(OSError):  # another machine of the same name, for example
                    shared = stack.enter_context(open(first_path, "r+b"))
            opened = all_gather(shared is not None)
        finally:
            if path is not None:
                with suppress(OSError):
                    os.unlink(path)  # open handles stay valid
        yield shared if all(opened[other] for other in ranks) else None
