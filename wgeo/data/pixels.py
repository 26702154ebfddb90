"""Pixels of many images: checked, scaled, and stored in memory or in a temporary file."""

from __future__ import annotations

import errno
import math
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress

import numpy as np
import torch

from ..arrays.rows import anonymous_array
from ..errors import DataError
from ..runtime.memory import available_bytes, total_memory
from ..runtime.processes import all_gather, local_ranks, raise_on_any

Box = tuple[int, int, int, int]  # first row, first column, end of the rows, end of the columns
_MAX_ASPECT = 32  # the longer side over the shorter one


def pixel_tensor(
    decode: Callable[[slice], Iterator[np.ndarray]],
    shape: tuple[int, ...],
    dtype: type[np.generic] | np.dtype = np.uint8,
) -> torch.Tensor:
    """Return all pixels, (n, c, h, w); `decode` yields the images of some rows.

    Pixels that need more than half of the memory that this process may use are stored in an
    anonymous temporary file. Several processes on one host share such a file whenever the disk has
    enough space, and each decodes a part of it.
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

    def in_memory() -> torch.Tensor:
        x = np.empty(shape, dtype)
        for i, image in enumerate(decode(slice(0, len(x)))):
            x[i] = image
        return torch.from_numpy(x)

    if fits and not (shared and disk_fits):
        with suppress(MemoryError):  # this process's own limit may be lower
            return raise_on_any(in_memory)
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


def scaling(sides: tuple[int, int], size: int, edge: int) -> tuple[Box, tuple[int, int], Box]:
    """Return the steps that scale an image's shorter side to `edge` and crop a square of `size`.

    The steps are those of torchvision's ``Resize`` and ``CenterCrop``: the box that is cropped
    first, the sides to which it is scaled, and the box that is cropped last. The first box is the
    whole image, unless the image is so long that scaling it would use up the memory.
    """
    short = min(sides)
    h, w = (min(side, _MAX_ASPECT * short) for side in sides)
    whole = int(edge * h / short), int(edge * w / short)
    return _central(sides, (h, w)), whole, _central(whole, (size, size))


def _central(sides: tuple[int, int], inside: tuple[int, int]) -> Box:
    top, left = (round((a - b) / 2) for a, b in zip(sides, inside, strict=True))
    return top, left, top + inside[0], left + inside[1]


def _cropped(x: torch.Tensor, box: Box) -> torch.Tensor:
    return x[..., box[0] : box[2], box[1] : box[3]]


def scaled(x: torch.Tensor, size: int | None) -> torch.Tensor:
    """Scale images (n, c, h, w) to a shorter side of `size`, and crop the central square.

    Interpolation is bilinear with antialiasing; the dtype is unchanged.
    """
    if size is None or x.shape[2:] == (size, size):
        return x
    first, shape, square = scaling((x.shape[2], x.shape[3]), size, size)
    x = _cropped(x, first)
    out = x.new_empty((*x.shape[:2], size, size))
    for start in range(0, len(x), 1024):  # limits the size of the float copy
        part = slice(start, start + 1024)
        y = torch.nn.functional.interpolate(x[part].float(), shape, mode="bilinear", antialias=True)
        y = _cropped(y, square)
        out[part] = y.round_().clamp_(0, 255).to(x.dtype) if x.dtype == torch.uint8 else y
    return out


def from_array(x: np.ndarray, source: str) -> torch.Tensor:
    """Return pixels as a tensor (n, c, h, w), uint8 or float32 in [0, 1].

    The shape of `x` must be (n, h, w), (n, h, w, c) or (n, c, h, w), where c is 1 or 3. Its values
    must be integers in [0, 255], floats in [0, 1], or booleans.
    """
    if x.ndim == 3:
        x = x[:, None]
    elif x.ndim == 4 and (x.shape[1] in (1, 3)) != (x.shape[3] in (1, 3)):
        x = x if x.shape[1] in (1, 3) else x.transpose(0, 3, 1, 2)
    else:
        raise DataError(
            f"The images of {source} have shape {x.shape}; pass (n, h, w), or (n, h, w, c) or "
            f"(n, c, h, w) with 1 or 3 channels c.{_reshape_advice(x)}"
        )
    refuse_empty(x.shape, source)
    if x.dtype.kind == "f":
        _check_range(x, source, 1.0, "Floats must be in [0, 1]: divide by the largest value.")
        return torch.from_numpy(np.ascontiguousarray(x, dtype=np.float32))
    if x.dtype.kind not in "iub":
        raise DataError(f"The images of {source} are not numbers (type {x.dtype}).")
    if x.dtype.kind == "b":
        x = x * np.uint8(255)
    elif x.dtype != np.uint8:
        _check_range(x, source, 255.0, "Integers must be in [0, 255].")
    refuse_black(int(x.max()), source)
    return torch.from_numpy(np.ascontiguousarray(x, dtype=np.uint8))


def refuse_empty(shape: Sequence[int], source: str) -> None:
    """Raise `DataError` if there are no images, or no pixels in them."""
    if 0 in shape:
        raise DataError(f"The images of {source} are empty: shape {tuple(shape)}.")


def refuse_black(largest: int, source: str) -> None:
    """Raise `DataError` if the largest integer pixel is 1, as in masks that were never scaled."""
    if largest == 1:
        raise DataError(
            f"The pixels of {source} are integers from 0 to 1, which is black in the range "
            "[0, 255]. Multiply them by 255, or make them booleans."
        )


def _reshape_advice(x: np.ndarray) -> str:
    """Return advice for reshaping flat rows of pixels to images, if their length allows it."""
    if x.ndim != 2:
        return ""
    for channels in (1, 3):
        e = math.isqrt(x.shape[1] // channels)
        if e > 1 and channels * e**2 == x.shape[1]:
            shapes = f"(n, {e}, {e})" if channels == 1 else f"(n, 3, {e}, {e}) or (n, {e}, {e}, 3)"
            return f" These rows are flat: reshape them to {shapes}."
    return ""


def _check_range(x: np.ndarray, source: str, top: float, advice: str) -> None:
    low, high = x.min(), x.max()  # NaN propagates to both
    if low >= 0 and high <= top:
        return
    if not (np.isfinite(low) and np.isfinite(high)):
        invalid = ~np.isfinite(x).reshape(len(x), -1).all(1)
        raise DataError(
            f"{int(invalid.sum())} images of {source} contain NaN or infinity; the first is image "
            f"{invalid.argmax()} of those selected. Remove or repair them."
        )
    if low < 0 and x.dtype.kind == "f":
        advice = (
            "Floats must be in [0, 1]. If these are already normalized, undo it (x * std + mean), "
            "or pass the pair (x, y) to wgeo.trace or wgeo.analyze, which use it as it is."
        )
    raise DataError(f"The pixels of {source} run from {low:g} to {high:g}. {advice}")
