"""Images and labels in a NumPy archive."""

from __future__ import annotations

import os
import zipfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import numpy as np

from ..errors import DataError
from ..files import printable, regular
from .members import check_member, check_members
from .source import Source, checked_labels, from_array, scaled

# How images and labels are called: with a split in the name (as here and in MedMNIST), or without.
_SPLIT_KEYS = (("x_{}", "y_{}"), ("{}_images", "{}_labels"))
_KEYS = (("x", "y"), ("images", "labels"))
_CLASS_KEYS = ("class_names", "classes")
_PLAIN = 2**26  # bytes that an array may take however well it packs: sorted labels pack very well


def open_npz(path: str | os.PathLike[str], split: str | None) -> Source:
    """Open an ``.npz`` with keys ``x, y``, or ``x_train, y_train, x_test, y_test``.

    Images (n, h, w), (n, h, w, c) or (n, c, h, w), see `from_array`; labels (n,) whole numbers.
    ``class_names``, if there, names the classes. Python objects (pickle) are never loaded.

    Raises
    ------
    DataError
        Not a readable archive, keys or split missing, labels that do not fit.
    """
    path = Path(path)
    with _reading(path) as arrays:
        pairs, used = _pairs(arrays.files, split, path)
        x = _joined(arrays, [pair[0] for pair in pairs], path)
        labels = _joined(arrays, [pair[1] for pair in pairs], path)
        names = [key for key in _CLASS_KEYS if key in arrays.files]
        classes = [str(name) for name in _get(arrays, names[0], path).ravel()] if names else None
    where = path.name
    y = checked_labels(labels, where, len(classes) if classes else None)
    if x.ndim == 0 or len(x) != len(y):
        raise DataError(f"{where} has {len(x) if x.ndim else 0} images and {len(y)} labels.")
    classes = classes or [str(k) for k in range(int(y.max()) + 1)]
    return Source(
        path.stem,
        y,
        tuple(classes),
        used,
        lambda rows, size: scaled(from_array(x[rows], where), size),
    )


def _pairs(
    keys: list[str], split: str | None, path: Path
) -> tuple[list[tuple[str, str]], str | None]:
    """Which keys hold the images and labels asked for, and the split's name (None: no splits)."""
    for x, y in _KEYS:
        if x in keys and y in keys:
            return [(x, y)], None
    for x, y in _SPLIT_KEYS:
        before, after = x.split("{}")
        found = [
            key[len(before) : len(key) - len(after)] for key in keys if _has(key, before, after)
        ]
        there = [name for name in found if y.format(name) in keys]
        if not there:
            continue
        if split not in (None, "all", *there):
            raise DataError(f"{path} has no split {split!r}; it has {', '.join(there)}.")
        wanted = there if split in (None, "all") else [split]
        return [(x.format(name), y.format(name)) for name in wanted], split or "all"
    raise DataError(
        f"{path} has the keys {', '.join(map(repr, keys[:8])) or 'of no array'}; wanted are x and "
        "y, or x_train, y_train, x_test and y_test."
    )


def _has(key: str, before: str, after: str) -> bool:
    middle = len(key) - len(before) - len(after)
    return middle > 0 and key.startswith(before) and key.endswith(after)


def _joined(arrays: np.lib.npyio.NpzFile, keys: list[str], path: Path) -> np.ndarray:
    parts = [_get(arrays, key, path) for key in keys]
    if len(parts) == 1:
        return parts[0]
    if len({part.shape[1:] for part in parts}) > 1:
        raise DataError(f"The splits of {path} have different shapes; take one with --split.")
    return np.concatenate(parts)


@contextmanager
def _reading(path: Path) -> Iterator[np.lib.npyio.NpzFile]:
    with ExitStack() as opened:
        try:
            regular(path)
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
            raise DataError(f"{path} holds one array; give an .npz with keys x and y.")
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
