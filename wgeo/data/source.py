"""The result of every reader: all labels, and pixels of selected images on demand."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Int

from ..errors import DataError

Fetch = Callable[[np.ndarray, int | None], torch.Tensor]
Box = tuple[int, int, int, int]  # the first row and column of a part, and those after its end
_MAX_CLASSES = 100_000
_MAX_ASPECT = 32  # the longer side over the shorter one


@dataclass(frozen=True, eq=False)
class Source:
    """Labeled images whose pixels are read later.

    ``fetch(rows, size)`` reads the pixels of some images, (k, c, h, w), scaled to `size` unless it
    is None. ``broken(rows)`` maps the rows that cannot be read to their names; it is None if images
    cannot be damaged individually. ``notes`` have no period at the end.
    """

    name: str
    labels: Int[np.ndarray, " n"]
    class_names: tuple[str, ...]
    split: str | None
    fetch: Fetch
    preset: str | None = None
    broken: Callable[[np.ndarray], dict[int, str]] | None = None
    notes: tuple[str, ...] = ()


def chosen_splits(path: Path, split: str | None, available: Sequence[str]) -> list[str]:
    """Return the splits to read, all for None or ``all``; check that `split` exists."""
    if split in (None, "all"):
        return list(available)
    if split not in available:
        names = ", ".join(map(repr, available))
        raise DataError(f"{path} has no split {split!r}; it has {names}.")
    return [split]


def joined(
    parts: list[tuple[np.ndarray, Int[np.ndarray, " _"]]], source: str
) -> tuple[np.ndarray, Int[np.ndarray, " n"]]:
    """Return all images and all labels of several parts, such as splits.

    Raises
    ------
    DataError
        A part has different numbers of images and labels, or image shapes or types differ.
    """
    for x, y in parts:
        if x.ndim == 0 or len(x) != len(y):
            count = len(x) if x.ndim else 0
            raise DataError(f"{source} has {count} images and {len(y)} labels.")
    images = [x for x, _ in parts]
    # Joined, values of different kinds would change their meaning: booleans would be nearly black.
    types = [x.dtype.kind.replace("u", "i") if x.dtype.kind in "iufb" else x.dtype for x in images]
    if len({(x.shape[1:], each) for x, each in zip(images, types, strict=True)}) > 1:
        raise DataError(
            f"{source} has images of different shapes or types; if each split has only one, "
            "choose a split (`split=`)."
        )
    x = images[0] if len(images) == 1 else np.concatenate(images)
    return x, np.concatenate([y for _, y in parts])


def balanced(labels: Int[np.ndarray, " n"], limit: int | None, seed: int) -> Int[np.ndarray, " m"]:
    """Return the rows of a seeded subset, balanced over the classes as far as possible.

    Every class is shuffled, then rows are drawn from the classes in turn until there are `limit`.
    Rows keep their original order. With one seed, larger subsets contain all smaller ones. If
    `limit` is None, every row is selected.
    """
    if limit is None or limit >= len(labels):
        return np.arange(len(labels))
    order = np.empty(len(labels), dtype=np.int64)
    for label in np.unique(labels):
        rows = np.flatnonzero(labels == label)
        order[rows] = np.random.default_rng((seed, int(label))).permutation(len(rows))
    return np.sort(np.lexsort((labels, order))[:limit])


def checked_labels(labels: np.ndarray, source: str, classes: int | None) -> Int[np.ndarray, " n"]:
    """Return labels, (n,) or (n, 1), as int64.

    Raises
    ------
    DataError
        They have another shape or are not whole numbers, or one is negative or not below `classes`
        (100,000 if None).
    """
    y = labels[:, 0] if labels.ndim == 2 and labels.shape[1] == 1 else labels
    if y.ndim != 1 or y.size == 0:
        several = y.ndim == 2 and y.shape[1] > 1
        advice = " For one column per class, save labels.argmax(1)." if several else ""
        raise DataError(
            f"The labels of {source} must be a list; they have shape {labels.shape}.{advice}"
        )
    if y.dtype.kind not in "iub" and not (y.dtype.kind == "f" and np.all(y == np.floor(y))):
        raise DataError(f"The labels of {source} must be whole numbers (class indices).")
    count = _MAX_CLASSES if classes is None else classes
    invalid = np.flatnonzero((y < 0) | (y >= count))
    if invalid.size:
        raise DataError(
            f"Label {y[invalid[0]]:g} of sample {invalid[0]} in {source} is out of range: class "
            f"indices run from 0 to {count - 1}."
        )
    return y.astype(np.int64)


def first_label(labels: Int[np.ndarray, " n"]) -> tuple[int, tuple[str, ...]]:
    """Return the label of the first class, given the labels of all splits, and notes about it.

    It is 1 if the distinct labels are exactly 1, 2, ..., K, with K > 1, and 0 otherwise.
    """
    present = np.unique(labels)
    if len(present) < 2 or present[0] != 1 or present[-1] != len(present):
        return 0, ()
    return 1, (
        f"the labels run from 1 to {present[-1]} and are shifted to 0 to {present[-1] - 1}; if "
        "class 0 merely has no images, name all classes (class_names)",
    )


def scaling(sides: tuple[int, int], size: int, edge: int) -> tuple[Box, tuple[int, int], Box]:
    """Return how an image gets a shorter side of `edge` and the central square of `size`.

    The steps are those of torchvision's ``Resize`` and ``CenterCrop``: the box that is cropped
    first, the sides to which it is scaled, and the box that is cropped last. The first box is the
    whole image unless that is so long that scaling it would use up the memory.
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

    Parameters
    ----------
    x : ndarray, (n, h, w), (n, h, w, c) or (n, c, h, w), c = 1 or 3
        Integers in [0, 255], floats in [0, 1], or booleans.
    source : str
        Origin of the pixels, for errors.

    Raises
    ------
    DataError
        The shape or type is not supported, values are NaN, infinite or out of range, or the largest
        integer is 1.
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
    if 0 in x.shape:
        raise DataError(f"The images of {source} are empty: shape {x.shape}.")
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
        edge = math.isqrt(x.shape[1] // channels)
        if edge > 1 and channels * edge**2 == x.shape[1]:
            square = f"{edge}, {edge}"
            shapes = f"({square})" if channels == 1 else f"(3, {square}) or ({square}, 3)"
            return f" These rows are flat: x.reshape(n, ...) with {shapes} in place of the dots."
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
