"""A name or a path in, labelled images out, in a fixed order."""

from __future__ import annotations

import os
import warnings
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from .._deprecated import moved_names
from ..arrays.checks import as_count
from ..errors import ArgumentError, DataError, WgeoWarning
from ..storage.files import as_path, printable
from .folder import open_folder, open_table
from .images import Images, Normalization, normalization, suggestion
from .named import NAMES, is_svhn, open_named, open_svhn
from .npz import open_npz
from .source import Source, balanced
from .stored import open_stored, stored
from .tabular import open_tabular, tabular

__all__ = [
    "Images",
    "load_images",
]

if not TYPE_CHECKING:  # or every name would count as defined
    __getattr__ = moved_names(__name__)

_READERS = {"npz": open_npz, "folder": open_folder, "zip": open_folder}
_READERS |= {"csv": open_table, "tsv": open_table, "parquet": open_tabular}
_WAYS = {
    "npy": " It is one array without labels: np.savez('data.npz', x=images, y=labels) keeps both.",
    "pt": " Tensors are given in Python: x, y = torch.load(path, weights_only=True), then "
    "wgeo.trace(net, (x, y)).",
    **dict.fromkeys(
        ("tar", "tgz", "gz", "bz2", "xz", "7z", "rar"),
        " Unpack the archive and give its folder, or zip that.",
    ),
    **dict.fromkeys(
        ("h5", "hdf5", "mat", "arrow", "tfrecord", "pkl", "pickle", "lmdb"),
        " Read it in Python and give wgeo.trace or wgeo.analyze the pair (x, y), or a Dataset.",
    ),
}
_WAYS["pth"] = _WAYS["pt"]


_LARGEST = 2**15  # pixels of an image's side


def load_images(
    source: str | os.PathLike[str],
    split: str | None = "train",
    limit: int | None = None,
    *,
    seed: int = 0,
    normalize: str | Normalization | None = None,
    size: int | None = None,
    root: str | os.PathLike[str] | None = None,
    skip_broken: bool = False,
) -> Images:
    """Load labelled images by name or path.

    Parameters
    ----------
    source : str or path
        One of `NAMES` (``digits`` needs no download); ``npz:PATH``, a NumPy archive with keys
        ``x, y`` or ``x_train, y_train, x_test, y_test``; ``folder:PATH``, an image folder
        ``class/image`` or ``split/class/image``, or a zip of one. A path to an ``.npz``, a
        ``.zip`` or a folder needs no prefix. A folder may also hold images and a table of their
        names and labels (a ``.csv`` may be given itself), what torchvision downloads
        (``cifar-10-batches-py``, ``MNIST/raw``, ``stl10_binary``, SVHN's), or a Hugging Face data
        set (Parquet or ``save_to_disk``; needs ``wgeo[hf]``).
    split : str, optional
        Which part, as the source calls it; None or ``all`` takes all. A source without splits
        is taken whole, and the result's ``split`` is None.
    limit : int, optional
        Take a subset of so many images in all, balanced over the classes as far as they go; at
        least two a class. The same for a given seed, on any machine.
    seed : int
        Of the subset.
    normalize : str or Normalization, optional
        Ask for a normalisation, against the network's and the data set's own: see
        `normalization`.
    size : int, optional
        Scale the images to ``size`` x ``size``. Default: as they are, or 224 where a folder
        holds images of different sizes.
    root : path, optional
        Where torchvision keeps its data sets; default the environment's ``WGEO_DATA``, else
        ``./data``.
    skip_broken : bool
        Leave out images of a folder or zip that cannot be decoded: `Images.skipped` names them,
        and a `WgeoWarning` counts them. By default the first is an error.

    Raises
    ------
    ArgumentError
        A limit, size, seed or normalisation that makes no sense.
    DataError
        An unknown name, a path that is missing, broken, empty or of fewer than two classes,
        a split that is not there, a broken image.
    """
    asked = None if normalize is None else normalization(normalize)
    if limit is not None and as_count(limit, "limit") < 2:
        raise ArgumentError(
            f"At least two samples are needed, not {limit}; a few hundred is better."
        )
    seed = as_count(seed, "seed")
    if size is not None and as_count(size, "size", 1) > _LARGEST:
        raise ArgumentError(f"size must be at most {_LARGEST} pixels, not {size}.")
    found = _opened(source, split, root)
    present = _classes(found.labels, found.name)
    if limit is not None and limit < 2 * present:
        raise ArgumentError(
            f"{limit} samples are too few for the {present} classes of {found.name}: within-class "
            f"spread needs two a class, so at least {2 * present}."
        )
    for note in found.notes:
        warnings.warn(f"{found.name}: {note}.", WgeoWarning, stacklevel=2)
    rows = balanced(found.labels, limit, seed)
    skipped: tuple[str, ...] = ()
    if skip_broken and found.broken is not None:
        rows, skipped = _without_broken(rows, found.broken(rows), found.name)
        _classes(found.labels[rows], found.name)
    x = found.fetch(rows, size)
    return Images(
        x,
        found.labels[rows],
        found.class_names,
        found.name,
        found.split,
        asked,
        found.preset,
        skipped,
        found.notes,
    )


def _classes(labels: np.ndarray, name: str) -> int:
    """The number of classes that occur; one alone says nothing."""
    present = len(np.unique(labels))
    if present < 2:
        raise DataError(
            f"{name} has images of one class only; at least two classes are needed to speak of "
            "collapse or of a classifier."
        )
    return present


def _without_broken(
    rows: np.ndarray, broken: dict[int, str], name: str
) -> tuple[np.ndarray, tuple[str, ...]]:
    """The rows that can be read, and the names of the others, which are told."""
    if not broken:
        return rows, ()
    names = tuple(printable(path, 300) for path in broken.values())
    more = ", ..." if len(names) > 3 else ""
    warnings.warn(
        f"{len(names)} of {len(rows)} images of {name} cannot be decoded and are left out: "
        f"{', '.join(names[:3])}{more}",
        WgeoWarning,
        stacklevel=3,
    )
    return np.array([row for row in rows if int(row) not in broken], dtype=np.int64), names


def _opened(
    source: str | os.PathLike[str], split: str | None, root: str | os.PathLike[str] | None
) -> Source:
    name = os.fspath(as_path(source, "source"))
    if name in NAMES:
        return open_named(name, split, root)
    kind, colon, rest = name.partition(":")
    place = rest if colon and kind in _READERS else name
    path = Path(place)
    try:
        there = bool(place) and path.exists()
    except (OSError, ValueError) as error:  # a name too long, a null byte
        raise DataError(
            f"Cannot look for the data at {printable(path, 300)!r}: {printable(str(error), 300)}"
        ) from error
    if not there:
        raise DataError(
            f"No data set or file {printable(name, 300)!r}{suggestion(name, NAMES)}. Known by "
            f"name: {', '.join(NAMES)}; by path: npz:PATH, folder:PATH (or a zip of a folder)."
        )
    if path.is_dir():
        if stored(path):
            return open_stored(path, split)
        if is_svhn(path):
            return open_svhn(path, split)
        if tabular(path):
            return open_tabular(path, split)
        kind = "folder"
    elif not colon or kind not in _READERS:
        kind = path.suffix.lower().removeprefix(".")
    if kind not in _READERS:
        raise DataError(
            f"{path} is neither an .npz, nor a .zip, nor a folder of images, nor a .csv or "
            f".parquet.{_WAYS.get(kind, '')}"
        )
    return _READERS[kind](path, split)
