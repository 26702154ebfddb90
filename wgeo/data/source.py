"""What every reader returns: labels at once, pixels only of the images that were chosen."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Int

from ..errors import DataError

Fetch = Callable[[np.ndarray, int | None], torch.Tensor]
_MOST_CLASSES = 100_000


@dataclass(frozen=True, eq=False)
class Source:
    """Labelled images that are yet to be read.

    ``fetch(rows, size)`` reads the pixels of some of them, (k, c, h, w), scaled to `size`.
    ``broken(rows)`` says which of them cannot be read, and their names; None where images do not
    break one by one. ``notes`` are sentences without a full stop about how classes were numbered,
    for whoever may have expected another numbering.
    """

    name: str
    labels: Int[np.ndarray, " n"]
    class_names: tuple[str, ...]
    split: str | None
    fetch: Fetch
    preset: str | None = None
    broken: Callable[[np.ndarray], dict[int, str]] | None = None
    notes: tuple[str, ...] = ()


def balanced(labels: Int[np.ndarray, " n"], limit: int | None, seed: int) -> Int[np.ndarray, " m"]:
    """Return the rows of a seeded subset that is as balanced over the classes as it can be.

    Every class is shuffled by itself, then the classes are dealt from in turn until `limit` rows
    are found; a class that has run out is passed over, so the others fill its place. The rows come
    in their original order, and a smaller subset of one seed is part of every larger one.

    Parameters
    ----------
    labels : ndarray of int, (n,)
    limit : int or None
        How many rows in all; None, or more than there are, takes every row.
    seed : int
    """
    if limit is None or limit >= len(labels):
        return np.arange(len(labels))
    turn = np.empty(len(labels), dtype=np.int64)
    for label in np.unique(labels):
        rows = np.flatnonzero(labels == label)
        turn[rows] = np.random.default_rng((seed, int(label))).permutation(len(rows))
    return np.sort(np.lexsort((labels, turn))[:limit])


def checked_labels(labels: np.ndarray, where: str, classes: int | None) -> Int[np.ndarray, " n"]:
    """Return class indices as int64.

    Raises
    ------
    DataError
        Not whole numbers, not one an image, negative, or beyond the number of classes.
    """
    y = labels[:, 0] if labels.ndim == 2 and labels.shape[1] == 1 else labels
    if y.ndim != 1 or y.size == 0:
        raise DataError(f"The labels of {where} must be a list; they have shape {labels.shape}.")
    if y.dtype.kind not in "iub" and not (y.dtype.kind == "f" and np.all(y == np.floor(y))):
        raise DataError(f"The labels of {where} must be whole numbers (class indices).")
    most = _MOST_CLASSES if classes is None else classes
    bad = np.flatnonzero((y < 0) | (y >= most))
    if bad.size:
        raise DataError(
            f"Label {y[bad[0]]} of sample {bad[0]} in {where} is out of range: class indices run "
            f"from 0 to {most - 1}."
        )
    return y.astype(np.int64)


def first_label(labels: Int[np.ndarray, " n"]) -> tuple[int, tuple[str, ...]]:
    """Return the number that counts as class 0, and what is to be said of it.

    It is 1 if the labels of all splits are exactly 1, 2, ..., K, and 0 otherwise.
    """
    present = np.unique(labels)
    if len(present) < 2 or present[0] != 1 or present[-1] != len(present):
        return 0, ()
    return 1, (
        f"the labels run from 1 to {present[-1]} and are taken as classes 0 to {present[-1] - 1}; "
        "if class 0 merely has no images, name all classes (class_names)",
    )


def scaled(x: torch.Tensor, size: int | None) -> torch.Tensor:
    """Scale images (n, c, h, w) so that the shorter side is `size`, and cut out the middle square.

    Bilinear with antialiasing; the type is kept. Nothing is cut off square images.
    """
    if size is None or x.shape[2:] == (size, size):
        return x
    h, w = x.shape[2:]
    shape = (int(size * h / min(h, w)), int(size * w / min(h, w)))
    top, left = (shape[0] - size) // 2, (shape[1] - size) // 2
    out = x.new_empty((*x.shape[:2], size, size))
    for start in range(0, len(x), 1024):  # the float copy stays small
        part = slice(start, start + 1024)
        y = torch.nn.functional.interpolate(x[part].float(), shape, mode="bilinear", antialias=True)
        y = y[:, :, top : top + size, left : left + size]
        out[part] = y.round_().clamp_(0, 255).to(x.dtype) if x.dtype == torch.uint8 else y
    return out


def from_array(x: np.ndarray, where: str) -> torch.Tensor:
    """Return pixels as a tensor (n, c, h, w), uint8 or float32 in [0, 1].

    Parameters
    ----------
    x : ndarray, (n, h, w), (n, h, w, c) or (n, c, h, w), c = 1 or 3
        Integers in [0, 255], or floats in [0, 1].

    Raises
    ------
    DataError
        Another shape or type, NaN (the first sample is named), or values out of range.
    """
    if x.ndim == 3:
        x = x[:, None]
    elif x.ndim == 4 and (x.shape[1] in (1, 3)) != (x.shape[3] in (1, 3)):
        x = x if x.shape[1] in (1, 3) else x.transpose(0, 3, 1, 2)
    else:
        raise DataError(
            f"The images of {where} have shape {x.shape}; give (n, h, w), or (n, h, w, c) or "
            f"(n, c, h, w) with 1 or 3 channels c.{_unflattened(x)}"
        )
    if 0 in x.shape:
        raise DataError(f"The images of {where} are empty: shape {x.shape}.")
    if x.dtype.kind == "f":
        _check_range(x, where, 1.0, "Floats must lie in [0, 1]: divide by the largest value.")
        return torch.from_numpy(np.ascontiguousarray(x, dtype=np.float32))
    if x.dtype.kind not in "iub":
        raise DataError(f"The images of {where} are not numbers (type {x.dtype}).")
    if x.dtype != np.uint8:
        if x.dtype.kind == "b":
            x = x * np.uint8(255)
        _check_range(x, where, 255.0, "Integers must lie in [0, 255].")
    return torch.from_numpy(np.ascontiguousarray(x, dtype=np.uint8))


def _unflattened(x: np.ndarray) -> str:
    """How rows of pixels become images again, if their number allows it."""
    if x.ndim != 2:
        return ""
    for channels in (1, 3):
        edge = math.isqrt(x.shape[1] // channels)
        if edge > 1 and channels * edge**2 == x.shape[1]:
            square = f"{edge}, {edge}"
            ways = f"({square})" if channels == 1 else f"(3, {square}) or ({square}, 3)"
            return f" These rows are flat: x.reshape(n, ...) with {ways} in place of the dots."
    return ""


def _check_range(x: np.ndarray, where: str, top: float, advice: str) -> None:
    low, high = x.min(), x.max()  # NaN goes through both
    if low >= 0 and high <= top:
        return
    if not (np.isfinite(low) and np.isfinite(high)):
        bad = ~np.isfinite(x).reshape(len(x), -1).all(1)
        raise DataError(
            f"{int(bad.sum())} images of {where} hold NaN or infinity, first image {bad.argmax()} "
            "of those chosen. Remove or repair them."
        )
    if low < 0 and x.dtype.kind == "f":
        advice = (
            "Floats must lie in [0, 1]. If these are normalized already, undo it (x * std + mean), "
            "or give wgeo.trace and wgeo.analyze the pair (x, y), which is taken as it is."
        )
    raise DataError(f"The pixels of {where} run from {low:g} to {high:g}. {advice}")
