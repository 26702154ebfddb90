"""Storage for the pixels of many images: memory, or an anonymous temporary file."""

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

from ..arrays.rows import anonymous_array
from ..errors import DataError
from ..runtime.memory import available_bytes, total_memory
from ..runtime.processes import all_gather, local_ranks, raise_on_any


def pixel_tensor(
    decode: Callable[[slice], Iterator[np.ndarray]],
    shape: tuple[int, ...],
    dtype: type[np.generic] | np.dtype = np.uint8,
) -> torch.Tensor:
    """Return all pixels, (n, c, h, w); `decode` yields the images of some rows.

    Pixels that need more than half of the memory that this process may use are stored in an
    anonymous temporary file. Several processes on one host share such a file whenever the disk has
    enough space, and each decodes a part of it.

    Raises
    ------
    DataError
        Neither the memory nor the disk has enough space.
    """
    size, available = math.prod(shape) * np.dtype(dtype).itemsize, available_bytes()
    fits = size <= (total_memory() if available is None else available) / 2
    disk_fits = False
    with suppress(OSError):  # no folder for temporary files
        # At most half of the free space: an untrusted file must not fill the disk.
        disk_fits = size <= shutil.disk_usage(tempfile.gettempdir()).free / 2
    fits, disk_fits, shared = (
        all(each)
        for each in zip(*all_gather((fits, disk_fits, len(local_ranks()) > 1)), strict=True)
    )
    if fits and not (shared and disk_fits):
        with suppress(MemoryError):  # this process's own limit may be lower
            return raise_on_any(lambda: _in_memory(decode, shape, dtype))
    try:
        if not disk_fits:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return torch.from_numpy(anonymous_array(decode, shape, dtype))
    except OSError as error:
        raise DataError(
            f"The images take {size / 2**30:.1f} GiB, too much for the memory and for "
            f"{tempfile.gettempdir()} ({error.strerror}); at most half of each is used. Use fewer "
            "(`limit=`) or smaller ones (`size=`), or set TMPDIR to a folder on a larger disk."
        ) from error


def _in_memory(
    decode: Callable[[slice], Iterator[np.ndarray]],
    shape: tuple[int, ...],
    dtype: type[np.generic] | np.dtype,
) -> torch.Tensor:
    x = np.empty(shape, dtype)
    for i, image in enumerate(decode(slice(0, len(x)))):
        x[i] = image
    return torch.from_numpy(x)
