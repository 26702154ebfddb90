"""Where the pixels of many images lie: in memory, or in a file without a name.

Processes that work together on one machine decode a part each, into one such file.
"""

from __future__ import annotations

import errno
import math
import os
import shutil
import socket
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import BinaryIO

import numpy as np
import torch

from .. import distributed
from ..errors import DataError
from ..files import memory, nameless
from ..memory import free

Decode = Callable[[slice], Iterator[np.ndarray]]


def kept(decoded: Decode, shape: tuple[int, ...]) -> torch.Tensor:
    """All pixels, uint8 (n, c, h, w), of which `decoded` makes some rows, an image at a time.

    In memory, or, where they take half of it, in a file. The file has no name, lies where temporary
    files do, and goes with the process. Of several processes on one machine each decodes a part.

    Raises
    ------
    DataError
        Neither has room for them.
    """
    with _between_processes(math.prod(shape)) as (file, part, parts):
        n = shape[0]
        mine = slice(n * part // parts, n * (part + 1) // parts)

        def work() -> torch.Tensor:
            if file is None:
                return _kept_here(decoded, shape)
            with _told(shape):
                file.seek(mine.start * math.prod(shape[1:]))
                for image in decoded(mine):
                    file.write(np.ascontiguousarray(image).data)
                file.flush()
                return torch.from_numpy(np.memmap(file, np.uint8, "r+", shape=shape))

        return distributed.agreed(work)  # nobody reads before all have written


def _kept_here(decoded: Decode, shape: tuple[int, ...]) -> torch.Tensor:
    """All pixels, decoded by this process alone."""
    n, size, left = shape[0], math.prod(shape), free()
    if size <= (memory() if left is None else left) / 2:
        with suppress(MemoryError):  # a limit of this process's own may be lower
            x = np.empty(shape, np.uint8)
            for i, image in enumerate(decoded(slice(0, n))):
                x[i] = image
            return torch.from_numpy(x)
    with _told(shape):
        if size > _room() / distributed.neighbours():
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return torch.from_numpy(nameless(decoded(slice(0, n)), shape, np.dtype(np.uint8)))


@contextmanager
def _between_processes(size: int) -> Iterator[tuple[BinaryIO | None, int, int]]:
    """A file of so many bytes that this machine's processes write together; my part, of how many.

    None where there is but one of them, or the disk has no room: then each is on its own.
    """
    if distributed.ranks() == 1:
        yield None, 0, 1
        return
    hosts = distributed.everyone(socket.gethostname())
    me = distributed.rank()
    first = hosts.index(hosts[me]) == me and hosts.count(hosts[me]) > 1
    path = _made(size) if first else None
    file = None
    try:
        for host, other in zip(hosts, distributed.everyone(path), strict=True):
            if other is not None and host == hosts[me]:
                with suppress(OSError):  # of another machine that goes by the same name
                    file = open(other, "r+b")  # noqa: SIM115
        opened = distributed.everyone(None if file is None else os.fstat(file.fileno()).st_ino)
    finally:
        if path is not None:
            with suppress(OSError):
                os.unlink(path)  # whoever has it open keeps it
    if file is None:
        yield None, 0, 1
        return
    with file:
        others = [
            r for r, inode in enumerate(opened) if (hosts[r], inode) == (hosts[me], opened[me])
        ]
        yield file, others.index(me), len(others)


def _made(size: int) -> str | None:
    """The path of a new file of so many bytes; None where the disk has no room to spare."""
    try:
        if size > _room():
            return None
        with tempfile.NamedTemporaryFile(prefix="wgeo-", delete=False) as file:
            file.truncate(size)
        return file.name
    except OSError:
        return None


def _room() -> float:
    """Bytes of the disk of temporary files that strangers' images may take: half."""
    return shutil.disk_usage(tempfile.gettempdir()).free / 2


@contextmanager
def _told(shape: tuple[int, ...]) -> Iterator[None]:
    """Say in words that neither memory nor the disk has room."""
    try:
        yield
    except OSError as error:
        raise DataError(
            f"The images take {math.prod(shape) / 2**30:.1f} GiB, more than memory has to spare, "
            f"and {tempfile.gettempdir()} cannot hold them ({error.strerror}). Take fewer "
            "(--samples) or smaller ones (size), or set TMPDIR to a larger disk."
        ) from error
