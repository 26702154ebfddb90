"""Images and labels in a NumPy archive."""

from __future__ import annotations

import itertools
import re
import zipfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import numpy as np

from ..errors import DataError
from ..storage.files import require_regular
from ..text import printable
from .members import check_member, check_members
from .pixels import from_array, scaled
from .source import Source, chosen_splits, index_labels, joined

# Usual names of images and labels, in any letter case; the first pair that exists is used.
_IMAGES = ("x", "images", "image", "data", "inputs", "arr_0")
_LABELS = ("y", "labels", "label", "targets", "target", "arr_1")
_CLASS_KEYS = ("class_names", "classes")
_RATIO_CHECK_ABOVE = 2**26  # bytes; smaller arrays are exempt, since sorted labels compress well


def open_npz(path: Path, split: str | None) -> Source:
    """Open an ``.npz`` with keys ``x, y``, or ``x_train, y_train, x_test, y_test``.

    Other usual keys, such as ``images, labels`` or ``data, target``, are accepted, and so are two
    unnamed arrays. The split may be a suffix or a prefix (``train_images``).

    Images are those of `from_array`. Labels are integers or text, (n,), or one-hot, (n, K). An
    array ``class_names`` is optional. If the labels of all splits run from 1 to K, they are shifted
    to 0 to K - 1, with a note. Python objects (pickle) are never loaded.
    """
    name = path.name
    with _open(path) as arrays:
        pairs = _keys_by_split(arrays.files, path)
        selected = [None] if None in pairs else chosen_splits(path, split, list(map(str, pairs)))
        images = {key: _get(arrays, pairs[key][0], path) for key in selected}
        labels = {key: _get(arrays, y, path) for key, (_, y) in pairs.items()}
        names = [key for key in arrays.files if key.lower() in _CLASS_KEYS]
        stored = tuple(map(str, _get(arrays, names[0], path).ravel())) if names else None
    numbers, classes, notes = index_labels(labels, name, stored)
    x, y = joined([(images[key], numbers[key]) for key in selected], name)
    return Source(
        path.stem,
        y,
        classes,
        None if None in pairs else split or "all",
        lambda rows, size: scaled(from_array(x[rows], name), size),
        notes=notes,
    )


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
        for form in ("{0}_{1}", "{1}_{0}"):  # x_train, train_x
            matches = (re.fullmatch(form.format(x, "(.+)"), key, re.DOTALL) for key in by_name)
            splits = [match[1] for match in matches if match]
            pairs: dict[str | None, tuple[str, str]] = {
                split: (by_name[form.format(x, split)], by_name[form.format(y, split)])
                for split in reversed(splits)
                if form.format(y, split) in by_name
            }
            if pairs:
                return pairs
    raise DataError(
        f"{path} has the keys {', '.join(map(repr, keys[:8])) or '(none)'}; it needs x and y, or "
        "x_train, y_train, x_test and y_test."
    )


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
