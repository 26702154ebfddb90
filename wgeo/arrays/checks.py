"""Checks of input: points and labels from NumPy or from torch on any device, numbers, devices."""

from __future__ import annotations

import math
import mmap
import numbers
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int

from ..errors import ArgumentError, FeatureError

OF_NETWORK = " Check the checkpoint's weights and the images' normalization."
"""Advice to append to an error about features that a network computed."""

_PLAIN = (*(torch.float16, torch.bfloat16, torch.float32, torch.float64),
          *(torch.complex64, torch.complex128, torch.bool, torch.uint8, torch.uint16, torch.uint32),
          *(torch.uint64, torch.int8, torch.int16, torch.int32, torch.int64))  # fmt: skip

CHUNK_ENTRIES = 2**18
"""Entries of a chunk (2 MiB in float64): few enough for a CPU's cache."""

_MIN_ROWS = 8  # smallest number of rows of a chunk


def as_points(
    x: Any, *, name: str = "x", dtype: torch.dtype | None = None, start: int = 0
) -> Float[torch.Tensor, "n d"]:
    """Return a point cloud as a finite 2-D floating tensor on the device where it is.

    Parameters
    ----------
    x : array_like, (n, d) or (n,)
        NumPy or torch; rows are samples. One-dimensional input is n points on a line. Half
        precision becomes float32; integers, booleans and extended precision become float64.
    name : str
        Name of the array in error messages.
    dtype : torch.dtype, optional
        Dtype of the result.
    start : int
        Sample number of the first row, if `x` is one batch of many.

    Raises
    ------
    FeatureError
        The array is not real, not dense, or neither 1-D nor 2-D; or it is empty, has masked
        entries, or contains NaN or infinity.
    """
    if isinstance(x, torch.Tensor):
        check_plain(x, name)
    else:
        x = as_array(x, name)
        if x.dtype == np.longdouble and x.dtype.itemsize > 8:
            x = x.astype(np.float64)
        # torch rejects negative strides, which ascontiguousarray leaves in an array of one row.
        needs_copy = not x.flags.writeable or min(x.strides, default=0) < 0
        x = torch.from_numpy(np.array(x, order="C") if needs_copy else np.ascontiguousarray(x))
    if x.is_complex():
        raise FeatureError(f"{name} is complex; wgeo works on real features.")
    if not x.is_floating_point():
        x = x.double()
    elif x.dtype in (torch.float16, torch.bfloat16):
        x = x.float()
    if x.ndim == 1:
        x = x[:, None]
    if x.ndim != 2:
        raise FeatureError(f"{name} must be (samples, features); it has shape {tuple(x.shape)}.")
    if 0 in x.shape:
        raise FeatureError(f"{name} is empty: shape {tuple(x.shape)}.")
    check_finite(x, name, start)
    return x if dtype is None else x.to(dtype)


def tensor_chunks(
    features: Any, name: str, start: int = 0, samples: int | None = None
) -> Iterator[tuple[slice, Float[torch.Tensor, "b d"]]]:
    """Yield slices of rows, and these rows of the features of the layer `name`.

    Chunks are checked by `as_points`. They stay on the features' device if it supports float64.
    `start` is the number of samples before these, for error messages. `samples` is the number of
    labels, if it is known: `FeatureError` is raised if the features have another number of samples.
    """
    layer = f"layer {name!r}"
    if isinstance(features, torch.Tensor):
        check_plain(features, layer)
    x = features.detach() if isinstance(features, torch.Tensor) else as_array(features, layer)
    if samples is not None and len(x) != samples:
        raise FeatureError(f"{layer} has {len(x)} samples for {samples} labels.")
    if samples == 0:
        return
    if x.ndim not in (1, 2) or 0 in x.shape:
        raise FeatureError(
            f"{layer} must be (samples, features); it has shape {tuple(x.shape)}. "
            "Pool or flatten it first."
        )
    step = max(_MIN_ROWS, CHUNK_ENTRIES // (x.shape[1] if x.ndim == 2 else 1))
    for first in range(0, len(x), step):
        rows = slice(first, min(first + step, len(x)))
        chunk = x[rows]
        if isinstance(chunk, torch.Tensor) and chunk.device.type == "mps":  # without float64
            chunk = chunk.cpu()
        yield rows, as_points(chunk, name=layer, start=start + first)


def check_plain(x: torch.Tensor, name: str) -> None:
    """Raise `FeatureError` for a meta, sparse, nested or quantized tensor, or an unusual dtype."""
    kind = "nested" if x.is_nested else str(x.layout).removeprefix("torch.")
    if x.device.type == "meta":
        raise FeatureError(f"{name} is a meta tensor: it has a shape but no data.")
    if kind != "strided":
        raise FeatureError(
            f"{name} is a {kind} tensor. Make it dense, with x.to_dense() or by padding."
        )
    if x.dtype not in _PLAIN:
        to = "x.dequantize()" if x.is_quantized else "x.float()"
        raise FeatureError(f"{name} has dtype {x.dtype}; convert it to float32 or wider: {to}.")


def as_count(value: Any, name: str, minimum: int = 0) -> int:
    """Return `value` as an int; raise `ArgumentError` if it is not an integer, or too small."""
    if isinstance(value, bool) or not isinstance(value, numbers.Integral) or value < minimum:
        raise ArgumentError(f"{name} must be a whole number of at least {minimum}, not {value!r}.")
    return int(value)


def as_float(value: Any, name: str) -> float:
    """Return `value` as a float, infinite if too large; raise `ArgumentError` if not a number."""
    number: Any = value
    if isinstance(value, bool) or not isinstance(value, numbers.Real):
        raise ArgumentError(f"{name} must be a number, not {value!r}.")
    try:
        return float(value)
    except OverflowError:
        return math.inf if number > 0 else -math.inf


def check_finite(x: torch.Tensor, name: str, start: int = 0, advice: str = "") -> None:
    """Raise `FeatureError` if a row contains NaN or infinity; rows are counted from `start`."""
    if bool(torch.isfinite(x.detach().sum())):  # one pass: a finite sum has finite entries
        return
    bad = ~torch.isfinite(x.detach()).flatten(1).all(1)
    if bool(bad.any()):
        first, count = start + int(bad.nonzero()[0, 0]), int(bad.sum())
        raise FeatureError(
            f"{name} holds NaN or infinity in {count} of the samples {start} to "
            f"{start + len(x) - 1}, first in sample {first}.{advice}"
        )


def as_numpy(x: Any) -> np.ndarray:
    """Return an array as a NumPy array in CPU memory, without a copy if possible."""
    if isinstance(x, torch.Tensor):
        check_plain(x, "the tensor")
        x = x.detach().resolve_conj().resolve_neg()
        if x.dtype is torch.bfloat16:
            x = x.float()
        return x.cpu().numpy()
    return np.asarray(x)


def as_array(x: Any, name: str) -> np.ndarray:
    """Return real numbers as a NumPy array; raise `FeatureError` if `x` is anything else.

    Arrays with masked entries, and memory maps of truncated files, are rejected as well.
    """
    if np.ma.is_masked(x):
        raise FeatureError(f"{name} has masked entries, which would count as numbers; fill them.")
    try:
        array = np.asarray(x)
    except (ValueError, TypeError) as error:
        raise FeatureError(f"{name} cannot be read as an array: {error}") from error
    if array.dtype.kind not in "fiub":
        raise FeatureError(f"{name} is not numeric (dtype {array.dtype}).")
    require_whole(x)
    return array


def require_whole(array: Any) -> None:
    """Raise `FeatureError` if the file of a memory map was truncated after it was opened.

    Reading beyond the end of the file would end the process. A file that was deleted or replaced
    can still be read.
    """
    if not isinstance(array, np.memmap) or array.filename is None:
        return
    mapped = getattr(array, "_mmap", None)  # of the whole file, also for a view of some rows
    start = array.offset - array.offset % mmap.ALLOCATIONGRANULARITY
    if mapped is not None and mapped.size() < start + len(mapped):
        raise FeatureError(
            f"{array.filename} was truncated after it was opened. Restore the file, or trace again."
        )


def as_labels(labels: Any, n: int | None = None) -> Int[np.ndarray, " n"]:
    """Return class labels as int64.

    Raise `FeatureError` if they are not numbers, and `ArgumentError` if they are not a list of `n`
    whole numbers >= 0.
    """
    if isinstance(labels, torch.Tensor):
        check_plain(labels, "labels")
        y = as_numpy(labels)
    else:
        y = as_array(labels, "labels")
    if y.ndim != 1 or y.size == 0:
        several = y.ndim == 2 and y.shape[1] > 1
        advice = " For one column per class, pass labels.argmax(1)." if several else ""
        raise ArgumentError(
            f"labels must be a list of class indices; they have shape {y.shape}.{advice}"
        )
    whole = y.dtype.kind in "iub"
    if y.dtype.kind == "f":
        whole = bool((np.isfinite(y) & (y == np.trunc(y))).all())
    if not whole:
        raise ArgumentError(f"labels must be whole numbers (class indices), not {y.dtype}.")
    y = y.astype(np.int64)
    if n is not None and len(y) != n:
        raise ArgumentError(f"{len(y)} labels for {n} samples.")
    if y.min() < 0:
        raise ArgumentError(f"label {y.min()} of sample {int(y.argmin())} is negative.")
    return y


def pick_device(device: str | torch.device) -> torch.device:
    """Return a torch device; ``auto`` is CUDA if available, else the CPU.

    A device that cannot be used raises `ArgumentError`; it is never replaced by another.
    """
    if str(device) == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        torch_device = torch.device(device)
        torch.empty(0, device=torch_device).cpu()  # fails for "meta"
    except (RuntimeError, AssertionError) as error:
        raise ArgumentError(f"Device {str(device)!r} cannot be used here: {error}") from error
    return torch_device
