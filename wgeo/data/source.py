"""What readers share: the `Source` that they return, the choice of splits, and class indices."""

from __future__ import annotations

import itertools
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import numpy as np
import torch
from jaxtyping import Int

from ..errors import DataError
from ..text import printable

_MAX_CLASSES = 100_000
_NUMBER = re.compile(r"-?\d{1,9}(\.\d{0,9})?", re.ASCII)
K = TypeVar("K")


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
    fetch: Callable[[np.ndarray, int | None], torch.Tensor]
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

    Each part must have as many labels as images, and all images the same shape and type.
    """
    for x, y in parts:
        count = len(x) if x.ndim else 0
        if count != len(y):
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


def checked_labels(
    labels: np.ndarray, source: str, classes: int = _MAX_CLASSES
) -> Int[np.ndarray, " n"]:
    """Return labels, (n,) or (n, 1), as int64; they must be whole numbers in [0, `classes`)."""
    y = labels[:, 0] if labels.ndim == 2 and labels.shape[1] == 1 else labels
    if y.ndim != 1 or y.size == 0:
        several = y.ndim == 2 and y.shape[1] > 1
        advice = " For one column per class, save labels.argmax(1)." if several else ""
        raise DataError(
            f"The labels of {source} must be a list; they have shape {labels.shape}.{advice}"
        )
    if y.dtype.kind not in "iub" and not (y.dtype.kind == "f" and np.all(y == np.floor(y))):
        raise DataError(f"The labels of {source} must be whole numbers (class indices).")
    invalid = np.flatnonzero((y < 0) | (y >= classes))
    if invalid.size:
        raise DataError(
            f"Label {y[invalid[0]]:g} of sample {invalid[0]} in {source} is out of range: class "
            f"indices run from 0 to {classes - 1}."
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


def number_texts(
    labels: set[str], classes: list[str], source: str
) -> tuple[dict[str, int], tuple[str, ...], tuple[str, ...]]:
    """Return the class index of each text label, the class names, and notes.

    If all labels are numbers, they are class indices. They index `classes` if all are below its
    length; otherwise labels from 1 to K are shifted to 0 to K - 1. If not all labels are numbers,
    labels and `classes` are sorted together.
    """
    numbers = {label: float(label) for label in labels if _NUMBER.fullmatch(label)}
    if len(numbers) < len(labels):
        names = sorted(labels.union(classes))
        return {name: k for k, name in enumerate(names)}, tuple(names), ()
    values = checked_labels(np.array(list(numbers.values())), source)
    if int(values.max()) < len(classes):  # indices of the class folders
        return {label: int(value) for label, value in numbers.items()}, tuple(classes), ()
    first, notes = first_label(values)
    index = {label: int(value) - first for label, value in numbers.items()}
    return index, tuple(str(k) for k in range(first, int(values.max()) + 1)), notes


def index_labels(
    labels: Mapping[K, np.ndarray], source: str, classes: tuple[str, ...] | None
) -> tuple[dict[K, np.ndarray], tuple[str, ...], tuple[str, ...]]:
    """Return the class indices of each split, the class names common to all splits, and notes.

    The labels are text, class indices or one-hot. If there are `classes`, they must be among them.
    """
    if all(y.dtype.kind in "US" and y.ndim == 1 and y.size for y in labels.values()):
        return _index_texts(labels, source, classes)
    indices = {key: checked_labels(_class_indices(y), source) for key, y in labels.items()}
    first, notes = first_label(np.concatenate(list(indices.values())))
    last = max(int(y.max()) for y in indices.values())
    if classes is not None and len(classes) > last:  # class 0 has a name as well
        first, notes = 0, ()
    indices = {key: y - first for key, y in indices.items()}
    if classes is not None:
        for y in indices.values():
            checked_labels(y, source, len(classes))
    return indices, classes or tuple(str(k) for k in range(first, last + 1)), notes


def _index_texts(
    labels: Mapping[K, np.ndarray], source: str, classes: tuple[str, ...] | None
) -> tuple[dict[K, np.ndarray], tuple[str, ...], tuple[str, ...]]:
    texts = {
        key: (np.char.decode(y, "utf-8", "replace") if y.dtype.kind == "S" else y).tolist()
        for key, y in labels.items()
    }
    present = set(itertools.chain.from_iterable(texts.values()))
    if classes is None:
        index, classes, notes = number_texts(present, [], source)
    else:
        index, notes = {name: k for k, name in enumerate(classes)}, ()
    unknown = sorted(present - index.keys())
    if unknown:
        raise DataError(
            f"The label {printable(unknown[0])!r} of {source} is not one of its classes."
        )
    indices = {key: np.array([index[text] for text in values]) for key, values in texts.items()}
    return indices, classes, notes


def _class_indices(y: np.ndarray) -> np.ndarray:
    """Convert one-hot labels (n, K) to class indices; return other labels unchanged."""
    if y.ndim == 2 and y.shape[1] > 1 and y.dtype.kind in "iufb":
        ones = y == 1
        if np.all(ones.sum(1) == 1) and np.all(ones | (y == 0)):
            return ones.argmax(1)
    return y
