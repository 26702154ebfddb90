"""Load labeled images by name or path, in a fixed order."""

from __future__ import annotations

import os
import socket
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ..arrays.checks import as_count
from ..errors import ArgumentError, DataError, WgeoWarning
from ..text import printable
from .folder import open_folder, open_table
from .images import Images, Normalization, normalization
from .names import TORCHVISION, advice_on, locate
from .npz import open_npz
from .pixels import from_array, scaled
from .source import Source, balanced, checked_labels, chosen_splits
from .stored import find_stored, open_stored
from .tabular import is_tabular, open_tabular

_READERS: dict[str, Callable[[Path, str | None], Source]] = {
    **dict.fromkeys(("folder", "zip"), open_folder),
    **dict.fromkeys(("csv", "tsv"), open_table),
    "npz": open_npz,
    "parquet": open_tabular,
}
_MAX_SIZE = 2**15  # pixels per side of an image
_TIMEOUT = 10.0  # seconds without an answer after which a download is aborted

_Split = tuple[torch.Tensor, np.ndarray, tuple[str, ...]]  # pixels, labels, names of the classes


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
        Scale and crop the images to ``size`` x ``size`` pixels. By default, images of equal size
        are unchanged, and images of different sizes get 224.
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
    if skip_broken and data.broken is not None and (broken := data.broken(rows)):
        skipped = tuple(printable(path, 300) for path in broken.values())
        more = ", ..." if len(skipped) > 3 else ""
        warnings.warn(
            f"{len(skipped)} of {len(rows)} images of {data.name} cannot be decoded and are "
            f"skipped: {', '.join(skipped[:3])}{more}",
            WgeoWarning,
            stacklevel=2,
        )
        rows = np.setdiff1d(rows, list(broken))
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
        problem = "images of one class only" if present else "no image that can be decoded"
        raise DataError(
            f"{name} has {problem}; neural collapse and classifiers need at least two classes."
        )
    return present


def _open(
    source: str | os.PathLike[str], split: str | None, root: str | os.PathLike[str] | None
) -> Source:
    kind, path = locate(source)
    if path is None:
        return _open_named(kind, split, root)
    if path.is_dir():
        if folder := find_stored(path):
            return open_stored(folder, split)
        if any(path.glob("*_32x32.mat")):
            return _open_svhn(path, split)
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


def _open_svhn(path: Path, split: str | None) -> Source:
    """Open a folder of SVHN's published files; torchvision verifies their checksums."""
    available = [each for each in TORCHVISION["svhn"][1] if (path / f"{each}_32x32.mat").is_file()]
    selected = chosen_splits(path, split, available)
    return _joined_splits("svhn", split, [_torchvision("svhn", each, path) for each in selected])


def _open_named(name: str, split: str | None, root: str | os.PathLike[str] | None) -> Source:
    """Open one of `names.NAMES`; ``all`` (or None) joins the training set and the test set."""
    splits = ("train", "test") if name == "digits" else TORCHVISION[name][1]
    if split not in (None, "all", *splits):
        raise DataError(f"{name} has no split {split!r}; choose from {', '.join(splits)} and all.")
    selected = ("train", "test") if split in (None, "all") else (str(split),)
    if name == "digits":
        return _joined_splits(name, split, [_digits(each) for each in selected])
    folder = Path(root or os.environ.get("WGEO_DATA") or "data")
    parts = [_torchvision(name, each, folder, download=True) for each in selected]
    return _joined_splits(name, split, parts)


def _joined_splits(name: str, split: str | None, parts: list[_Split]) -> Source:
    x = torch.cat([part[0] for part in parts])
    labels = np.concatenate([part[1] for part in parts])
    return Source(
        name, labels, parts[0][2], split or "all", lambda rows, size: scaled(x[rows], size), name
    )


def _digits(split: str) -> _Split:
    """Return handwritten digits, 8 x 8 in 17 gray levels; 360 of the 1,797 are the test set."""
    from sklearn.datasets import load_digits

    data = load_digits()
    test = balanced(data.target, 360, seed=0)
    rows = test if split == "test" else np.setdiff1d(np.arange(len(data.target)), test)
    x = from_array(data.images[rows] / 16, "digits")
    return x, data.target[rows].astype(np.int64), tuple(str(k) for k in range(10))


def _torchvision(name: str, split: str, root: Path, download: bool = False) -> _Split:
    from torchvision import datasets

    kind, _, files = TORCHVISION[name]
    dataset = getattr(datasets, kind)
    options: dict[str, Any] = (
        {"split": split} if kind in ("SVHN", "STL10") else {"train": split == "train"}
    )
    timeout = socket.getdefaulttimeout()
    try:
        try:
            data = dataset(root, **options)
        except (RuntimeError, FileNotFoundError):  # raised by torchvision if the files do not exist
            if not download:
                raise
            socket.setdefaulttimeout(_TIMEOUT)  # torchvision sets none, and could wait forever
            data = dataset(root, download=True, **options)
    except Exception as error:  # URLError, timeouts, md5 mismatch, damaged files, full disks
        lines = [line.strip() for line in str(error).splitlines() if line.strip()]
        reason = lines[-1] if lines else type(error).__name__
        if not download:
            raise DataError(
                f"{root} does not contain the published files of {name} ({reason}). Read your own "
                "files in Python and pass the pair (x, y) to wgeo.trace or wgeo.analyze."
            ) from error
        raise DataError(
            f"{name} is not in {root} and could not be downloaded ({reason}). "
            "Put its files where torchvision expects them, "
            f"{root / files.format(split=split)}, or set WGEO_DATA to their folder; or pass "
            "your own images as npz:PATH or folder:PATH."
        ) from error
    finally:
        socket.setdefaulttimeout(timeout)
    labels = np.asarray(data.targets if hasattr(data, "targets") else data.labels)
    x = from_array(np.asarray(data.data), name)
    classes = getattr(data, "classes", None) or [str(k) for k in range(10)]
    return x, checked_labels(labels.astype(np.int64), name, len(classes)), tuple(classes)
