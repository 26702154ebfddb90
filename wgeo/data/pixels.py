"""Where the pixels of many images lie: in memory, or in a file without a name."""

from __future__ import annotations

import errno
import math
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import suppress

import numpy as np
import torch

from ..arrays.mapped import anonymous_array
from ..errors import DataError
from ..runtime.memory import free
from ..runtime.processes import all_gather, local_ranks, raise_on_any
from ..storage.files import memory_limit


def kept(
    decoded: Callable[[slice], Iterator[np.ndarray]],
    shape: tuple[int, ...],
    dtype: type[np.generic] | np.dtype = np.uint8,
) -> torch.Tensor:
    """All pixels, (n, c, h, w), of which `decoded` makes some rows, an image at a time.

    In memory, or, where they take half of it, in a file where temporary files lie. Where several
    processes of this machine work together they share such a file, and decode a part of it each.

    Raises
    ------
    DataError
        Neither memory nor the disk has room for them.
    """
    size, left = math.prod(shape) * np.dtype(dtype).itemsize, free()
    fits = size <= (memory_limit() if left is None else left) / 2
    room = False
    with suppress(OSError):  # no folder for temporary files
        room = size <= shutil.disk_usage(tempfile.gettempdir()).free / 2  # strangers fill no disk
    fits, room, shared = (
        all(each) for each in zip(*all_gather((fits, room, len(local_ranks()) > 1)), strict=True)
    )
    if fits and not (shared and room):
        with suppress(MemoryError):  # this process's own limit may be lower
            return raise_on_any(lambda: _held(decoded, shape, dtype))
    try:
        if not room:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return torch.from_numpy(anonymous_array(decoded, shape, dtype))
    except OSError as error:
        raise DataError(
            f"The images take {size / 2**30:.1f} GiB, more than memory has to spare, and "
            f"{tempfile.gettempdir()} cannot hold them ({error.strerror}). Take fewer (`limit=`) "
            "or smaller ones (`size=`), or set TMPDIR to a larger disk."
        ) from error


def _held(
    decoded: Callable[[slice], Iterator[np.ndarray]],
    shape: tuple[int, ...],
    dtype: type[np.generic] | np.dtype,
) -> torch.Tensor:
    x = np.empty(shape, dtype)
    for i, image in enumerate(decoded(slice(0, len(x)))):
        x[i] = image
    return torch.from_numpy(x)
