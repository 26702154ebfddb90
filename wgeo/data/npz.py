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
from ..storage.files import printable, require_regular
from .members import check_member, check_members
from .source import Source, checked_labels, first_label, from_array, scaled

# How people call images and labels, in any case of letters; the first pair that is there counts.
_IMAGES = ("x", "images", "image", "data", "inputs", "arr_0")
_LABELS = ("y", "labels", "label", "targets", "target", "arr_1")
K = TypeVar("K")
_CLASS_KEYS = ("class_names", "classes")
_PLAIN = 2**26  # bytes that an array may take however well it packs: sorted labels pack very well


def open_npz(path: str | os.PathLike[str], split: str | None) -> Source:
    """Open an ``.npz`` with keys ``x, y``, or ``x_train, y_train, x_test, y_test``.

    ``X, Y``, ``images, labels``, ``data, labels``, ``data, target`` and their like are read, too,
    with the split before or behind (``train_images``), and two arrays without names.

    Images (n, h, w), (n, h, w, c) or (n, c, h, w), see `from_array`; labels (n,) whole numbers,
    words, or (n, K) one-hot. Labels that run from 1 to K in all splits together count as 0 to
    K - 1, which is said. ``class_names``, if there, names the classes. Python objects (pickle) are
    never loaded.

    Raises
    ------
    DataError
        Not a readable archive, keys or split missing, labels that do not fit.
    """
    path = Path(path)
    where = path.name
    with _reading(path) as arrays:
        pairs = _pairs(arrays.files, path)
        if None not in pairs and split not in (None, "all", *pairs):
            there = ", ".join(map(str, pairs))
            raise DataError(f"{path} has no split {split!r}; it has {there}.")
        wanted = [key for key in pairs if key is None or split in (None, "all", key)]
        x = _joined([_get(arrays, pairs[key][0], path) for key in wanted], path)
        labels = {key: _get(arrays, y, path) for key, (_, y) in pairs.items()}
        names = [key for key in arrays.files if key.lower() in _CLASS_KEYS]
        classes = [str(name) for name in _get(arrays, names[0], path).ravel()] if names else None
    numbers, classes, notes = numbered(labels, where, classes)
    y = np.concatenate([numbers[key] for key in wanted])
    if x.ndim == 0 or len(x) != len(y):
        raise DataError(f"{where} has {len(x) if x.ndim else 0} images and {len(y)} labels.")
    return Source(
        path.stem,
        y,
        tuple(classes),
        None if None in pairs else split or "all",
        lambda rows, size: scaled(from_array(x[rows], where), size),
        notes=notes,
    )


def numbered(
    labels: Mapping[K, np.ndarray], where: str, classes: list[str] | None
) -> tuple[dict[K, np.ndarray], list[str], tuple[str, ...]]:
    """Return class indices of every split, numbered over all of them; the classes; notes."""
    if all(y.dtype.kind in "US" and y.ndim == 1 and y.size for y in labels.values()):
        words = np.concatenate([y.astype(str) for y in labels.values()])
        names = sorted(set(words.tolist()) if classes is None else classes)
        index = {name: k for k, name in enumerate(classes or names)}
        unknown = sorted(set(words.tolist()) - index.keys())
        if unknown:
            raise DataError(f"The label {printable(unknown[0])!r} of {where} is not a class of it.")
        found = {key: np.array([index[str(w)] for w in y]) for key, y in labels.items()}
        return found, list(index), ()
    found = {key: checked_labels(_indices(y), where, None) for key, y in labels.items()}
    first, notes = first_label(np.concatenate(list(found.values())))
    most = max(int(y.max()) for y in found.values())
    if classes is not None and len(classes) > most:  # they name class 0, too
        first, notes = 0, ()
    found = {key: y - first for key, y in found.items()}
    if classes is not None:
        for y in found.values():
            checked_labels(y, where, len(classes))
    return found, classes or [str(k) for k in range(first, most + 1)], notes


def _indices(y: np.ndarray) -> np.ndarray:
    """Class indices of one-hot labels (n, K); others as they are."""
    if y.ndim == 2 and y.shape[1] > 1 and y.dtype.kind in "iufb":
        ones = y == 1
        if np.all(ones.sum(1) == 1) and np.all(ones | (y == 0)):
            return ones.argmax(1)
    return y


def _pairs(keys: list[str], path: Path) -> dict[str | None, tuple[str, str]]:
    """Which keys hold the images and labels of each split; of None if there are no splits."""
    known = {key.lower(): key for key in reversed(keys)}
    for x, y in itertools.product(_IMAGES, _LABELS):
        unnamed = x == "arr_0" or y == "arr_1"
        if unnamed and (set(keys) != {x, y} or len(keys) > 2):
            continue
        if x in known and y in known:
            return {None: (known[x], known[y])}
    for x, y in itertools.product(_IMAGES[:-1], _LABELS[:-1]):
        for before, after in ((f"{x}_", ""), ("", f"_{x}")):
            other = (f"{y}_", "") if before else ("", f"_{y}")
            there = [k[len(before) : len(k) - len(after)] for k in known if _has(k, before, after)]
            pairs: dict[str | None, tuple[str, str]] = {
                name: (known[before + name + after], known[name.join(other)])
                for name in reversed(there)
                if name.join(other) in known
            }
            if pairs:
                return pairs
    raise DataError(
        f"{path} has the keys {', '.join(map(repr, keys[:8])) or 'of no array'}; wanted are x and "
        "y, or x_train, y_train, x_test and y_test."
    )


def _has(key: str, before: str, after: str) -> bool:
    middle = len(key) - len(before) - len(after)
    return middle > 0 and key.startswith(before) and key.endswith(after)


def _joined(parts: list[np.ndarray], path: Path) -> np.ndarray:
    if len(parts) == 1:
        return parts[0]
    if len({part.shape[1:] for part in parts}) > 1:
        raise DataError(f"The splits of {path} have different shapes; take one (`split=`).")
    return np.concatenate(parts)


@contextmanager
def _reading(path: Path) -> Iterator[np.lib.npyio.NpzFile]:
    with ExitStack() as opened:
        try:
            require_regular(path)
            # NumPy closes no file that it opened itself and then finds to be broken.
            file = opened.enter_context(path.open("rb"))
            if zipfile.is_zipfile(file):
                with zipfile.ZipFile(file) as archive:
                    check_members(archive, path.stat().st_size)
                    for info in archive.infolist():
                        check_member(info, plain=_PLAIN)
            file.seek(0)
            found = np.load(file, allow_pickle=False)
        except DataError as error:
            raise DataError(f"{path} is not a readable .npz archive: {error}") from None
        except Exception as error:  # zipfile and numpy raise a dozen kinds on damaged archives
            raise DataError(f"{path} is not a readable .npz archive: {_why(error)}") from error
        if not isinstance(found, np.lib.npyio.NpzFile):
            raise DataError(
                f"{path} holds one array without labels: "
                f"np.savez({path.stem + '.npz'!r}, x=images, y=labels) keeps both."
            )
        yield opened.enter_context(found)


def _get(arrays: np.lib.npyio.NpzFile, key: str, path: Path) -> np.ndarray:
    try:
        array = arrays[key]
    except Exception as error:
        raise DataError(f"{key!r} in {path} cannot be read: {_why(error)}") from error
    if not isinstance(array, np.ndarray):  # numpy hands out whatever does not start like one
        raise DataError(f"{key!r} in {path} cannot be read: it is no array of NumPy's.")
    return array


def _why(error: Exception) -> str:
    if "allow_pickle" in str(error) or "pickled" in str(error):
        return "it holds Python objects (pickle), which wgeo never loads. Save plain numbers."
    if isinstance(error, MemoryError):
        return "it declares more data than memory holds."
    return f"{printable(str(error)) or type(error).__name__} Is the file whole?"
