"""Data sets by name: scikit-learn's digits, and torchvision's, downloaded on first use."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ..errors import DataError
from .names import TORCHVISION
from .source import Source, balanced, chosen_splits, from_array, scaled

_TIMEOUT = 10.0  # seconds without an answer after which a download is aborted


def is_svhn(path: Path) -> bool:
    """Return whether a folder contains SVHN's files."""
    return any(path.glob("*_32x32.mat"))


def open_svhn(path: Path, split: str | None) -> Source:
    """Open a folder of SVHN's published files; torchvision verifies their checksums."""
    available = [each for each in TORCHVISION["svhn"][1] if (path / f"{each}_32x32.mat").is_file()]
    selected = chosen_splits(path, split, available)
    return _source("svhn", split, [_torchvision("svhn", part, path, False) for part in selected])


def open_named(name: str, split: str | None, root: str | os.PathLike[str] | None) -> Source:
    """Open one of `names.NAMES`; ``all`` (or None) joins the training set and the test set.

    Raises
    ------
    DataError
        The split does not exist, or the data set is not in `root` and cannot be downloaded.
    """
    splits = ("train", "test") if name == "digits" else TORCHVISION[name][1]
    if split not in (None, "all", *splits):
        raise DataError(f"{name} has no split {split!r}; choose from {', '.join(splits)} and all.")
    selected = ("train", "test") if split in (None, "all") else (str(split),)
    if name == "digits":
        parts = [_digits(part) for part in selected]
    else:
        folder = Path(root or os.environ.get("WGEO_DATA") or "data")
        parts = [_torchvision(name, part, folder) for part in selected]
    return _source(name, split, parts)


Part = tuple[torch.Tensor, np.ndarray, tuple[str, ...]]


def _source(name: str, split: str | None, parts: list[Part]) -> Source:
    x = torch.cat([part[0] for part in parts])
    labels = np.concatenate([part[1] for part in parts])
    return Source(
        name, labels, parts[0][2], split or "all", lambda rows, size: scaled(x[rows], size), name
    )


def _digits(split: str) -> Part:
    """Return handwritten digits, 8 x 8 in 17 gray levels; 360 of the 1,797 are the test set."""
    from sklearn.datasets import load_digits

    data = load_digits()
    test = balanced(data.target, 360, seed=0)
    rows = test if split == "test" else np.setdiff1d(np.arange(len(data.target)), test)
    x = from_array(data.images[rows] / 16, "digits")
    return x, data.target[rows].astype(np.int64), tuple(str(k) for k in range(10))


def _torchvision(name: str, split: str, root: Path, download: bool = True) -> Part:
    from torchvision import datasets

    kind, _, files = TORCHVISION[name]
    dataset = getattr(datasets, kind)
    part: dict[str, Any] = (
        {"split": split} if kind in ("SVHN", "STL10") else {"train": split == "train"}
    )
    try:
        try:
            data = dataset(root, download=False, **part)
        except (RuntimeError, FileNotFoundError):  # raised by torchvision if the files do not exist
            if not download:
                raise
            with _socket_timeout():
                data = dataset(root, download=True, **part)
    except Exception as error:  # URLError, timeouts, md5 mismatch, damaged files, full disks
        if not download:
            raise DataError(
                f"{root} does not contain the published files of {name} ({_short(error)}). Read "
                "your own files in Python and pass the pair (x, y) to wgeo.trace or wgeo.analyze."
            ) from error
        raise DataError(
            f"{name} is not in {root} and could not be downloaded ({_short(error)}). "
            "Put its files where torchvision expects them, "
            f"{root / files.format(split=split)}, or set WGEO_DATA to their folder; or pass "
            "your own images as npz:PATH or folder:PATH."
        ) from error
    labels = np.asarray(data.targets if hasattr(data, "targets") else data.labels)
    x = from_array(np.asarray(data.data), name)
    classes = getattr(data, "classes", None) or [str(k) for k in range(10)]
    return x, labels.astype(np.int64), tuple(classes)


def _short(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[-1] if lines else type(error).__name__


@contextmanager
def _socket_timeout() -> Iterator[None]:
    """Set a timeout, since torchvision sets none and a download could hang forever."""
    previous = socket.getdefaulttimeout()
    socket.setdefaulttimeout(_TIMEOUT)
    try:
        yield
    finally:
        socket.setdefaulttimeout(previous)
