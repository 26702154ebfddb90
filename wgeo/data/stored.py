"""Folders downloaded by torchvision: CIFAR batches, MNIST's IDX files, STL10's binary files."""

from __future__ import annotations

import gzip
import math
import os
import re
import struct
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ..errors import DataError
from ..storage.files import require_regular
from ..text import printable
from .members import max_unpacked
from .pickles import pixels_of, plain_values
from .source import Source, checked_labels, chosen_splits, first_label, from_array, joined, scaled

_CIFAR = ("cifar-10-batches-py", "cifar-100-python")
_IDX = re.compile(r"(train|test|t10k)-(images)-idx3-ubyte(\.gz)?")
_PRESETS = {"MNIST": "mnist", "FashionMNIST": "fashion_mnist", "stl10_binary": "stl10"}
_CLASSES = {"cifar10": 10, "cifar100": 100, "mnist": 10, "fashion_mnist": 10, "stl10": 10}
_FIRST = {"stl10": 1}  # the label of the first class, if it is not 0
_STL10_SIZE = 96  # pixels per side
_MAX_BYTES = 2**28  # of a file; STL10's test set has 221 million


@dataclass(frozen=True)
class _Part:
    images: Path
    labels: Path
    split: str


def find_stored(path: Path) -> Path | None:
    """Return the folder with CIFAR batches, IDX files or STL10 files: `path` or one below it.

    Return None if there is no such folder; several are a `DataError`.
    """
    inside = ("", *_CIFAR, "stl10_binary", "raw", *(f"{name}/raw" for name in _PRESETS))
    folders = [each for name in inside if _batches(each := path / name) or _parts(each)]
    if len(folders) > 1:
        names = ", ".join(str(each) for each in folders)
        raise DataError(f"{path} contains several data sets; pass the path of one: {names}.")
    return folders[0] if folders else None


def open_stored(path: str | os.PathLike[str], split: str | None) -> Source:
    """Open ``cifar-10-batches-py``, ``MNIST/raw``, ``stl10_binary``, ..., or the folder around one.

    CIFAR's batches are pickles; nothing in them is run (`plain_values`).
    """
    folder = find_stored(Path(path))
    if folder is None:
        raise DataError(f"{path} contains neither CIFAR batches nor IDX files nor STL10.")
    batches = _batches(folder)
    available: list[str] = list(batches) or [part.split for part in _parts(folder)]
    selected = chosen_splits(folder, split, available)
    if batches:
        contents = {key: [_batch(file) for file in files] for key, files in batches.items()}
        all_labels = {key: np.concatenate([y for _, y in contents[key]]) for key in available}
        parts = [part for key in selected for part in contents[key]]
        name = preset = "cifar100" if (folder / "meta").is_file() else "cifar10"
    else:
        pairs = {part.split: part for part in _parts(folder)}
        all_labels = {key: _labels(part.labels).astype(np.int64) for key, part in pairs.items()}
        parts = [(_images(pairs[key].images), all_labels[key]) for key in selected]
        name = folder.parent.name if folder.name == "raw" else folder.name
        preset = _PRESETS.get(name, "")
    x, labels = joined(parts, str(folder))
    every_label = np.concatenate(list(all_labels.values()))
    last = int(checked_labels(every_label, folder.name, None).max())
    first, notes = (_FIRST.get(preset, 0), ()) if preset else first_label(every_label)
    numbers = map(str, range(first, 1 + max(last, _CLASSES.get(preset, 0) - 1)))
    classes = _names(folder) or tuple(numbers)
    labels = checked_labels(labels - first, folder.name, len(classes))
    return Source(
        name,
        labels,
        classes,
        split or "all",
        lambda rows, size: scaled(from_array(x[rows], folder.name), size),
        preset or None,
        notes=notes,
    )


def _files(folder: Path) -> list[str]:
    try:
        return sorted(os.listdir(folder))
    except OSError:  # the folder does not exist
        return []


def _batches(folder: Path) -> dict[str, list[Path]]:
    """Return the batch files of each split, in order."""
    names = _files(folder)
    train = [name for name in names if re.fullmatch(r"data_batch_\d+", name)]
    test = [name for name in names if name == "test_batch"]
    if "meta" in names and not train:  # CIFAR-100, whose batches are named after the splits
        train, test = ([n for n in names if n == key] for key in ("train", "test"))
    splits: dict[str, list[str]] = {"train": train, "test": test}
    return {key: [folder / name for name in files] for key, files in splits.items() if files}


def _parts(folder: Path) -> list[_Part]:
    """Return the image files and label files of each split; uncompressed ones are preferred."""
    parts: dict[str, _Part] = {}
    names = _files(folder)  # sorted: the uncompressed file comes before the compressed one
    for split in ("train", "test"):
        images, labels = f"{split}_X.bin", f"{split}_y.bin"
        if images in names and labels in names:
            parts[split] = _Part(folder / images, folder / labels, split)
    for name in names:
        match = _IDX.fullmatch(name)
        if match is None:
            continue
        split = "train" if match[1] == "train" else "test"
        labels = f"{match[1]}-labels-idx1-ubyte"
        files = [each for each in (labels, f"{labels}.gz") if each in names]
        if files and split not in parts:
            parts[split] = _Part(folder / name, folder / files[0], split)
    return sorted(parts.values(), key=lambda part: part.split, reverse=True)


def _bytes(file: Path) -> bytes:
    try:
        require_regular(file)
        if file.stat().st_size > _MAX_BYTES:
            raise DataError(f"{file} is larger than {_MAX_BYTES} bytes.")
        if file.suffix != ".gz":
            return file.read_bytes()
        limit = min(_MAX_BYTES, max_unpacked(file.stat().st_size))
        with gzip.open(file) as packed:
            body = packed.read(limit + 1)
    except (OSError, EOFError) as error:
        raise DataError(f"Cannot read {file}: {printable(str(error), 200)}") from error
    except Exception as error:  # zlib's
        raise DataError(f"{file} is damaged: {printable(str(error), 200)}") from error
    if len(body) > limit:
        raise DataError(f"{file} unpacks to more than {limit} bytes, like a zip bomb.")
    return body


def _images(file: Path) -> np.ndarray:
    """Return images (n, h, w) of an IDX file, or (n, 3, 96, 96) of STL10's column-major file."""
    if file.suffix != ".bin":
        return _array(file, 3)
    pixels = np.frombuffer(_bytes(file), np.uint8)
    if pixels.size == 0 or pixels.size % (3 * _STL10_SIZE**2):
        raise DataError(
            f"{file} is incomplete: {pixels.size} bytes are not a whole number of STL10 images."
        )
    return pixels.reshape(-1, 3, _STL10_SIZE, _STL10_SIZE).transpose(0, 1, 3, 2)


def _labels(file: Path) -> np.ndarray:
    return np.frombuffer(_bytes(file), np.uint8) if file.suffix == ".bin" else _array(file, 1)


def _array(file: Path, dimensions: int) -> np.ndarray:
    """Return the uint8 array of an IDX file."""
    body, head = _bytes(file), 4 + 4 * dimensions
    magic, *shape = struct.unpack(f">{1 + dimensions}I", body[:head].ljust(head, b"\0"))
    size = math.prod(shape)
    if magic != 0x800 + dimensions or size != len(body) - head or size == 0:
        raise DataError(f"{file} is not a complete IDX file of bytes in {dimensions} dimensions.")
    return np.frombuffer(body, np.uint8, offset=head).reshape(shape)


def _dict(file: Path) -> dict[str, object]:
    try:
        value = plain_values(_bytes(file))
        if not isinstance(value, dict):
            raise DataError("it is not a dict")
    except DataError as error:
        raise DataError(f"{file} cannot be read as a CIFAR batch: {error}.") from None
    return {k.decode("latin-1") if isinstance(k, bytes) else k: v for k, v in value.items()}


def _batch(file: Path) -> tuple[np.ndarray, np.ndarray]:
    """Return images (n, 3, h, h) and labels of a batch."""
    batch = _dict(file)
    labels = batch.get("labels", batch.get("fine_labels"))
    try:
        pixels = pixels_of(batch.get("data"))
        edge = int((pixels.shape[1] // 3) ** 0.5)
        if 3 * edge**2 != pixels.shape[1]:
            raise DataError(f"its images have {pixels.shape[1]} pixels")
        if not isinstance(labels, list) or not all(
            type(k) is int and 0 <= k < 2**31 for k in labels
        ):
            raise DataError("its labels are not a list of class indices")
        if len(labels) != len(pixels):
            raise DataError(f"it has {len(pixels)} images but {len(labels)} labels")
    except DataError as error:
        raise DataError(f"{file} cannot be read as a CIFAR batch: {error}.") from None
    return pixels.reshape(-1, 3, edge, edge), np.array(labels, dtype=np.int64)


def _names(folder: Path) -> tuple[str, ...]:
    """Return the class names stored in a folder of CIFAR or STL10; empty if unknown."""
    if (folder / "class_names.txt").is_file():
        return tuple(_bytes(folder / "class_names.txt").decode("utf-8", "replace").split())
    for file, key in (("batches.meta", "label_names"), ("meta", "fine_label_names")):
        if (folder / file).is_file():
            names = _dict(folder / file).get(key)
            if isinstance(names, list) and all(isinstance(each, str | bytes) for each in names):
                return tuple(
                    n.decode("utf-8", "replace") if isinstance(n, bytes) else n for n in names
                )
    return ()
