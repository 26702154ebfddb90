"""Images and labels in a NumPy archive."""

from __future__ import annotations

import itertools
import os
import zipfile
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TypeVar

import numpy as np

from ..errors import DataError
from ..storage.files import require_regular
from ..text import printable
from .layout import number_texts
from .members import check_member, check_members
from .source import Source, checked_labels, chosen_splits, first_label, from_array, joined, scaled

# Usual names of images and labels, in any letter case; the first pair that exists is used.
_IMAGES = ("x", "images", "image", "data", "inputs", "arr_0")
_LABELS = ("y", "labels", "label", "targets", "target", "arr_1")
K = TypeVar("K")
_CLASS_KEYS = ("class_names", "classes")
# Arrays of at most this size in bytes are exempt from the zip-bomb check, since sorted labels
# compress extremely well.
_RATIO_CHECK_ABOVE = 2**26


def open_npz(path: str | os.PathLike[str], split: str | None) -> Source:
    """Open an ``.npz`` with keys ``x, y``, or ``x_train, y_train, x_test, y_test``.

    Other usual keys, such as ``images, labels`` or ``data, target``, and two unnamed arrays are
    accepted too. The split may be a suffix or a prefix (``train_images``).

    Images are those of `from_array`. Labels are integers or text, (n,), or one-hot, (n, K). An
    array ``class_names`` is optional. If the labels of all splits run from 1 to K, they are shifted
    to 0 to K - 1, with a note. Python objects (pickle) are never loaded.

    Raises
    ------
    DataError
        The archive is unreadable, keys or the split are missing, or images or labels are invalid.
    """
    path = Path(path)
    name = path.name
    with _open(path) as arrays:
        pairs = _keys_by_split(arrays.files, path)
        selected = [None] if None in pairs else chosen_splits(path, split, list(map(str, pairs)))
        images = {key: _get(arrays, pairs[key][0], path) for key in selected}
        labels = {key: _get(arrays, y, path) for key, (_, y) in pairs.items()}
        names = [key for key in arrays.files if key.lower() in _CLASS_KEYS]
        classes = [str(each) for each in _get(arrays, names[0], path).ravel()] if names else None
    numbers, classes, notes = index_labels(labels, name, classes)
    x, y = joined([(images[key], numbers[key]) for key in selected], name)
    return Source(
        path.stem,
        y,
        tuple(classes),
        None if None in pairs else split or "all",
        lambda rows, size: scaled(from_array(x[rows], name), size),
        notes=notes,
    )


def index_labels(
    labels: Mapping[K, np.ndarray], source: str, classes: list[str] | None
) -> tuple[dict[K, np.ndarray], list[str], tuple[str, ...]]:
    """Return the class indices of each split, the class names common to all splits, and notes.

    Raises
    ------
    DataError
        The labels are not text, class indices or one-hot, or are not among `classes`.
    """
    if all(y.dtype.kind in "US" and y.ndim == 1 and y.size for y in labels.values()):
        texts = {key: _as_text(y).tolist() for key, y in labels.items()}
        present = set(itertools.chain.from_iterable(texts.values()))
        if classes is None:
            index, names, notes = number_texts(present, [], source)
        else:
            index, names, notes = {name: k for k, name in enumerate(classes)}, tuple(classes), ()
        unknown = sorted(present - index.keys())
        if unknown:
            raise DataError(
                f"The label {printable(unknown[0])!r} of {source} is not one of its classes."
            )
        indices = {key: np.array([index[text] for text in values]) for key, values in texts.items()}
        return indices, list(names), notes
    indices = {key: checked_labels(_class_indices(y), source, None) for key, y in labels.items()}
    first, notes = first_label(np.concatenate(list(indices.values())))
    last = max(int(y.max()) for y in indices.values())
    if classes is not None and len(classes) > last:  # class 0 has a name as well
        first, notes = 0, ()
    indices = {key: y - first for key, y in indices.items()}
    if classes is not None:
        for y in indices.values():
            checked_labels(y, source, len(classes))
    return indices, classes or [str(k) for k in range(first, last + 1)], notes


def _as_text(y: np.ndarray) -> np.ndarray:
    return np.char.decode(y, "utf-8", "replace") if y.dtype.kind == "S" else y


def _class_indices(y: np.ndarray) -> np.ndarray:
    """Convert one-hot labels (n, K) to class indices; return other labels unchanged."""
    if y.ndim == 2 and y.shape[1] > 1 and y.dtype.kind in "iufb":
        ones = y == 1
        if np.all(ones.sum(1) == 1) and np.all(ones | (y == 0)):
            return ones.argmax(1)
    return y


def _keys_by_split(keys: list[str], path: Path) -> dict[str | None, tuple[str, str]]:
    """Return the keys of images and labels by split; the split is None if there are no splits."""
    by_name = {key.lower(): key for key in reversed(keys)}
    for x, y in itertools.product(_IMAGES, _LABELS):
        unnamed = x == "arr_0" or y == "arr_1"
        if unnamed and (set(keys) != {x, y} or len(keys) > 2):
            continue
        if x in by_name and y in by_name:
            return {None: (by_name[x], by_name[y])}
    for x, y in itertools.product(_IMAGES[:-1], _LABELS[:-1]):
        for start, end in ((f"{x}_", ""), ("", f"_{x}")):
            other = (f"{y}_", "") if start else ("", f"_{y}")
            keys_of_x = [key for key in by_name if _has_affixes(key, start, end)]
            splits = [key[len(start) : len(key) - len(end)] for key in keys_of_x]
            pairs: dict[str | None, tuple[str, str]] = {
                name: (by_name[start + name + end], by_name[name.join(other)])
                for name in reversed(splits)
                if name.join(other) in by_name
            }
            if pairs:
                return pairs
    raise DataError(
        f"{path} has the keys {', '.join(map(repr, keys[:8])) or '(none)'}; it needs x and y, or "
        "x_train, y_train, x_test and y_test."
    )


def _has_affixes(key: str, start: str, end: str) -> bool:
    middle = len(key) - len(start) - len(end)
    return middle > 0 and key.startswith(start) and key.endswith(end)


@contextmanager
def _open(path: Path) -> Iterator[np.lib.npyio.NpzFile]:
    with ExitStack() as stack:
        try:
            require_regular(path)
            # NumPy does not close a file that it opened itself and found to be damaged.
            file = stack.enter_context(path.open("rb"))
            if zipfile.is_zipfile(file):
                with zipfile.ZipFile(file) as members:
                    check_members(members, path.stat().st_size)
                    for info in members.infolist():
                        check_member(info, unchecked_bytes=_RATIO_CHECK_ABOVE)
            file.seek(0)
            archive = np.load(file, allow_pickle=False)
        except DataError as error:
            raise DataError(f"{path} is not a readable .npz archive: {error}") from None
        except Exception as error:  # zipfile and numpy raise errors of many types on damaged files
            raise DataError(f"{path} is not a readable .npz archive: {_reason(error)}") from error
        if not isinstance(archive, np.lib.npyio.NpzFile):
            raise DataError(
                f"{path} contains one array without labels: save both with "
                f"np.savez({path.stem + '.npz'!r}, x=images, y=labels)."
            )
        yield stack.enter_context(archive)


def _get(arrays: np.lib.npyio.NpzFile, key: str, path: Path) -> np.ndarray:
    try:
        array = arrays[key]
    except Exception as error:
        raise DataError(f"{key!r} in {path} cannot be read: {_reason(error)}") from error
    if not isinstance(array, np.ndarray):  # numpy returns members of other formats as bytes
        raise DataError(f"{key!r} in {path} cannot be read: it is not a NumPy array.")
    return array


def _reason(error: Exception) -> str:
    if "allow_pickle" in str(error) or "pickled" in str(error):
        return "it contains Python objects (pickle), which wgeo never loads. Save plain numbers."
    if isinstance(error, MemoryError):
        return "it declares more data than fits in memory."
    reason = printable(str(error)) or type(error).__name__
    return f"{reason.rstrip('.')}. Is the file complete?"
