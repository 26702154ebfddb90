"""Load labeled images by name or path, in a fixed order."""

from __future__ import annotations

import os
import warnings

import numpy as np

from ..arrays.checks import as_count
from ..errors import ArgumentError, DataError, WgeoWarning
from ..text import printable
from .folder import open_folder, open_table
from .images import Images, Normalization, normalization
from .named import is_svhn, open_named, open_svhn
from .names import advice_on, locate
from .npz import open_npz
from .source import Source, balanced
from .stored import find_stored, open_stored
from .tabular import is_tabular, open_tabular

_READERS = {"npz": open_npz, "folder": open_folder, "zip": open_folder}
_READERS |= {"csv": open_table, "tsv": open_table, "parquet": open_tabular}
_MAX_SIZE = 2**15  # pixels per side of an image


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
    """Load labeled images by name or path.

    Parameters
    ----------
    source : str or path
        One of the following. The prefix of a path may be omitted if it leads to a folder, or to a
        file with a usual extension.

        - A name; ``wgeo list datasets`` lists them. ``digits`` needs no download.
        - ``npz:PATH``: a NumPy archive with keys ``x, y``, or ``x_train, y_train, x_test, y_test``.
        - ``folder:PATH``: an image folder ``class/image`` or ``split/class/image``, or a zip of
          one. It may instead contain images and a table of their names and labels, files downloaded
          by torchvision (``cifar-10-batches-py``, ``MNIST/raw``, ``stl10_binary``, SVHN), or a
          Hugging Face data set (Parquet or ``save_to_disk``; needs ``wgeo[hf]``).
        - The path of a table, ``.csv`` or ``.tsv``, of images in the same folder.
    split : str, optional
        Name of the split in the source; None or ``all`` selects all. If the source has no splits,
        all of it is used and the result's ``split`` is None.
    limit : int, optional
        Total number of images in a subset, balanced over the classes as far as possible; at least
        twice the number of classes. By default, all images.
    seed : int
        Random seed of the subset, which is the same on any machine.
    normalize : str or Normalization, optional
        Overrides the normalization of the network and the data set; see `normalization`.
    size : int, optional
        Scale and crop the images to ``size`` x ``size`` pixels. By default, images of one size keep
        it, and 224 is used if sizes differ.
    root : path, optional
        Folder of torchvision's data sets; by default that in the environment variable
        ``WGEO_DATA``, else ``./data``.
    skip_broken : bool
        Skip images that cannot be decoded: `Images.skipped` names them, and a `WgeoWarning` reports
        their number. By default the first such image raises an error.

    Raises
    ------
    ArgumentError
        The limit, size, seed or normalization is invalid.
    DataError
        The name is unknown; the path does not exist; the data is damaged, empty or has fewer than
        two classes; the split does not exist; or an image is damaged.

    Examples
    --------
    >>> import wgeo
    >>> digits = wgeo.load_images("digits", split="train", limit=100)
    >>> digits.num_classes, digits.shape, digits.x.dtype
    (10, (1, 8, 8), torch.float32)
    """
    explicit = None if normalize is None else normalization(normalize)
    if limit is not None and as_count(limit, "limit") < 2:
        raise ArgumentError(
            f"At least two samples are needed, not {limit}; a few hundred are better."
        )
    seed = as_count(seed, "seed")
    if size is not None and as_count(size, "size", 1) > _MAX_SIZE:
        raise ArgumentError(f"size must be at most {_MAX_SIZE} pixels, not {size}.")
    data = _open(source, split, root)
    present = _count_classes(data.labels, data.name)
    if limit is not None and limit < 2 * present:
        raise ArgumentError(
            f"{limit} samples are too few for the {present} classes of {data.name}: within-class "
            f"covariance needs two per class, that is, at least {2 * present} samples."
        )
    for note in data.notes:
        warnings.warn(f"{data.name}: {note}.", WgeoWarning, stacklevel=2)
    rows = balanced(data.labels, limit, seed)
    skipped: tuple[str, ...] = ()
    if skip_broken and data.broken is not None:
        rows, skipped = _without_broken(rows, data.broken(rows), data.name)
        _count_classes(data.labels[rows], data.name)
    return Images(
        data.fetch(rows, size),
        data.labels[rows],
        data.class_names,
        data.name,
        data.split,
        explicit,
        data.preset,
        skipped,
        data.notes,
    )


def _count_classes(labels: np.ndarray, name: str) -> int:
    """Return the number of classes that occur, which must be at least two."""
    present = len(np.unique(labels))
    if present < 2:
        raise DataError(
            f"{name} has images of one class only; neural collapse and classifiers need at "
            "least two classes."
        )
    return present


def _without_broken(
    rows: np.ndarray, broken: dict[int, str], name: str
) -> tuple[np.ndarray, tuple[str, ...]]:
    """Return the rows that can be read, and the names of the others; warn about these."""
    if not broken:
        return rows, ()
    names = tuple(printable(path, 300) for path in broken.values())
    more = ", ..." if len(names) > 3 else ""
    warnings.warn(
        f"{len(names)} of {len(rows)} images of {name} cannot be decoded and are skipped: "
        f"{', '.join(names[:3])}{more}",
        WgeoWarning,
        stacklevel=3,
    )
    return np.array([row for row in rows if int(row) not in broken], dtype=np.int64), names


def _open(
    source: str | os.PathLike[str], split: str | None, root: str | os.PathLike[str] | None
) -> Source:
    kind, path = locate(source)
    if path is None:
        return open_named(kind, split, root)
    if path.is_dir():
        if find_stored(path):
            return open_stored(path, split)
        if is_svhn(path):
            return open_svhn(path, split)
        if is_tabular(path):
            return open_tabular(path, split)
        kind = "folder"
    elif not kind:
        kind = path.suffix.lower().removeprefix(".")
    if kind not in _READERS:
        raise DataError(
            f"{path} is not an .npz, a .zip, a folder of images, a .csv, a .tsv or a "
            f".parquet. {advice_on(kind)}"
        )
    return _READERS[kind](path, split)
