"""Arrays on disk that have no name: memory-mapped temporary files, shared by processes."""

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
    made: Callable[[slice], Iterable[np.ndarray]],
    shape: tuple[int, ...],
    dtype: Any,
    folder: str | os.PathLike[str] | None = None,
) -> np.memmap:
    """Return an array in an anonymous temporary file, which is removed when the process ends.

    ``made(rows)`` yields a range of its rows, part by part. This is a collective operation: all
    processes that work together must call it, and those of one machine fill one file, a shard
    each. The file is made in `folder`, by default the system's folder for temporary files. A full
    disk is an OSError.
    """
    n, row = shape[0], math.prod(shape[1:]) * np.dtype(dtype).itemsize
    with ExitStack() as stack:
        ours = stack.enter_context(_shared_file(n * row, folder)) if world_size() > 1 else None
        others = [rank()] if ours is None else local_ranks()
        part, parts = others.index(rank()), len(others)

        def write() -> np.memmap:
            file = ours or stack.enter_context(tempfile.TemporaryFile(dir=folder))
            mine = slice(n * part // parts, n * (part + 1) // parts)
            file.seek(mine.start * row)
            for some in made(mine):  # written, not mapped: a full disk is an error and no crash
                file.write(np.ascontiguousarray(some, dtype).data)
            file.flush()
            return np.memmap(file, dtype, "r+", shape=shape)

        return raise_on_any(write)  # nobody reads before all have written


@contextmanager
def _shared_file(size: int, folder: str | os.PathLike[str] | None) -> Iterator[IO[bytes] | None]:
    """An anonymous temporary file shared by this host's processes, or None.

    One of them makes it; its name is removed as soon as the others have opened it.
    """
    others, path = local_ranks(), None
    all_gather(None)
    if others[0] == rank():
        with (
            suppress(OSError),
            tempfile.NamedTemporaryFile(prefix="wgeo-", dir=folder, delete=False) as file,
        ):
            path = file.name
            file.truncate(size)
    with ExitStack() as stack:
        ours = None
        try:
            given = all_gather(path)[others[0]]
            if given is not None:
                with suppress(OSError):  # another machine of the same name, say
                    ours = stack.enter_context(open(given, "r+b"))
            opened = all_gather(ours is not None)
        finally:
            if path is not None:
                with suppress(OSError):
                    os.unlink(path)  # who has it open keeps it
        yield ours if all(opened[other] for other in others) else None
