"""Folders as torchvision downloads them: CIFAR's batches, MNIST's IDX files, STL10's binaries."""

from __future__ import annotations

import gzip
import os
import re
import struct
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ..errors import DataError
from ..storage.files import printable, require_regular
from .members import most_unpacked
from .pickles import pixels_of, plain_values
from .source import Source, checked_labels, first_label, from_array, scaled

_CIFAR = ("cifar-10-batches-py", "cifar-100-python")
_IDX = re.compile(r"(train|test|t10k)-(images)-idx3-ubyte(\.gz)?")
_PRESETS = {"MNIST": "mnist", "FashionMNIST": "fashion_mnist", "stl10_binary": "stl10"}
_CLASSES = {"cifar10": 10, "cifar100": 100, "mnist": 10, "fashion_mnist": 10, "stl10": 10}
_FIRST = {"stl10": 1}  # the label of the first class, if it is not 0
_STL10 = 96  # pixels of an image's side
_LARGEST = 2**28  # bytes of a file: STL10's test set has 221 million


@dataclass(frozen=True)
class _Part:
    images: Path
    labels: Path
    split: str


def stored(path: Path) -> Path | None:
    """Return the folder, this one or one right below, that holds batches, IDX files or STL10."""
    inside = ("", *_CIFAR, "stl10_binary", "raw", *(f"{name}/raw" for name in _PRESETS))
    found = [path / name for name in inside if _batches(path / name) or _pairs(path / name)]
    if len(found) > 1:
        names = ", ".join(str(each) for each in found)
        raise DataError(f"{path} holds several data sets; give the path of one: {names}.")
    return found[0] if found else None


def open_stored(path: str | os.PathLike[str], split: str | None) -> Source:
    """Open ``cifar-10-batches-py``, ``MNIST/raw``, ``stl10_binary``, ..., or a folder around one.

    Batches are pickles; nothing in them is run (`plain_values`).

    Raises
    ------
    DataError
        A split that is not there, a damaged file.
    """
    home = stored(Path(path))
    if home is None:
        raise DataError(f"{path} holds neither CIFAR batches nor IDX files nor STL10.")
    batches = _batches(home)
    there: list[str] = list(batches) or [part.split for part in _pairs(home)]
    if split not in (None, "all", *there):
        raise DataError(f"{home} has no split {split!r}; it has {', '.join(map(repr, there))}.")
    wanted = there if split in (None, "all") else [str(split)]
    if batches:
        read = {key: [_batch(file) for file in files] for key, files in batches.items()}
        every = {key: np.concatenate([y for _, y in read[key]]) for key in there}
        x = np.concatenate([pixels for key in wanted for pixels, _ in read[key]])
        name = preset = "cifar100" if (home / "meta").is_file() else "cifar10"
    else:
        pairs = {part.split: part for part in _pairs(home)}
        every = {key: _labels(part.labels).astype(np.int64) for key, part in pairs.items()}
        x = np.concatenate([_images(pairs[key].images) for key in wanted])
        name = home.parent.name if home.name == "raw" else home.name
        preset = _PRESETS.get(name, "")
    labels = np.concatenate([every[key] for key in wanted])
    if len(x) != len(labels):
        raise DataError(f"{home} has {len(x)} images and {len(labels)} labels.")
    together = np.concatenate(list(every.values()))
    most = int(checked_labels(together, home.name, None).max())
    first, notes = (_FIRST.get(preset, 0), ()) if preset else first_label(together)
    numbers = map(str, range(first, 1 + max(most, _CLASSES.get(preset, 0) - 1)))
    classes = _names(home) or tuple(numbers)
    labels = checked_labels(labels - first, home.name, len(classes))
    return Source(
        name,
        labels,
        classes,
        split or "all",
        lambda rows, size: scaled(from_array(x[rows], home.name), size),
        preset or None,
        notes=notes,
    )


def _files(home: Path) -> list[str]:
    try:
        return sorted(os.listdir(home))
    except OSError:  # there is no such folder
        return []


def _batches(home: Path) -> dict[str, list[Path]]:
    """The batches of each split, in order."""
    names = _files(home)
    train = [name for name in names if re.fullmatch(r"data_batch_\d+", name)]
    test = [name for name in names if name == "test_batch"]
    if "meta" in names and not train:  # CIFAR-100, whose batches have the splits' names
        train, test = ([n for n in names if n == key] for key in ("train", "test"))
    found: dict[str, list[str]] = {"train": train, "test": test}
    return {key: [home / name for name in files] for key, files in found.items() if files}


def _pairs(home: Path) -> list[_Part]:
    """The files of images that have labels beside them, plain rather than packed."""
    found: dict[str, _Part] = {}
    names = _files(home)  # sorted: the plain file comes before the packed one
    for split in ("train", "test"):
        images, labels = f"{split}_X.bin", f"{split}_y.bin"
        if images in names and labels in names:
            found[split] = _Part(home / images, home / labels, split)
    for name in names:
        match = _IDX.fullmatch(name)
        if match is None:
            continue
        split = "train" if match[1] == "train" else "test"
        labels = f"{match[1]}-labels-idx1-ubyte"
        packed = [each for each in (labels, f"{labels}.gz") if each in names]
        if packed and split not in found:
            found[split] = _Part(home / name, home / packed[0], split)
    return sorted(found.values(), key=lambda part: part.split, reverse=True)


def _bytes(file: Path) -> bytes:
    try:
        require_regular(file)
        if file.stat().st_size > _LARGEST:
            raise DataError(f"{file} is larger than {_LARGEST} bytes.")
        if file.suffix != ".gz":
            return file.read_bytes()
        most = min(_LARGEST, most_unpacked(file.stat().st_size))
        with gzip.open(file) as packed:
            body = packed.read(most + 1)
    except (OSError, EOFError) as error:
        raise DataError(f"Cannot read {file}: {printable(str(error), 200)}") from error
    except Exception as error:  # zlib's own
        raise DataError(f"{file} is damaged: {printable(str(error), 200)}") from error
    if len(body) > most:
        raise DataError(f"{file} unpacks to more than {most} bytes, as a bomb does.")
    return body


def _images(file: Path) -> np.ndarray:
    """Images (n, h, w) of an IDX file, or (n, 3, 96, 96) of STL10, whose columns come first."""
    if file.suffix != ".bin":
        return _array(file, 3)
    pixels = np.frombuffer(_bytes(file), np.uint8)
    if pixels.size == 0 or pixels.size % (3 * _STL10**2):
        raise DataError(f"{file} is not whole: {pixels.size} bytes are no images of STL10.")
    return pixels.reshape(-1, 3, _STL10, _STL10).transpose(0, 1, 3, 2)


def _labels(file: Path) -> np.ndarray:
    return np.frombuffer(_bytes(file), np.uint8) if file.suffix == ".bin" else _array(file, 1)


def _array(file: Path, dimensions: int) -> np.ndarray:
    """The uint8 array of an IDX file."""
    body, head = _bytes(file), 4 + 4 * dimensions
    magic, *shape = struct.unpack(f">{1 + dimensions}I", body[:head].ljust(head, b"\0"))
    size = 1
    for n in shape:
        size *= n
    if magic != 0x800 + dimensions or size != len(body) - head or size == 0:
        raise DataError(f"{file} is not a whole IDX file of bytes in {dimensions} dimensions.")
    return np.frombuffer(body, np.uint8, offset=head).reshape(shape)


def _dict(file: Path) -> dict[str, object]:
    try:
        value = plain_values(_bytes(file))
        if not isinstance(value, dict):
            raise DataError("it is no dict")
    except DataError as error:
        raise DataError(f"{file} cannot be read as a batch of CIFAR: {error}.") from None
    return {k.decode("latin-1") if isinstance(k, bytes) else k: v for k, v in value.items()}


def _batch(file: Path) -> tuple[np.ndarray, np.ndarray]:
    """Images (n, 3, h, h) and labels of a batch."""
    held = _dict(file)
    labels = held.get("labels", held.get("fine_labels"))
    try:
        pixels = pixels_of(held.get("data"))
        edge = int((pixels.shape[1] // 3) ** 0.5)
        if 3 * edge**2 != pixels.shape[1]:
            raise DataError(f"its images have {pixels.shape[1]} pixels")
        if not isinstance(labels, list) or not all(type(k) is int and k < 2**31 for k in labels):
            raise DataError("its labels are no list of whole numbers")
        if len(labels) != len(pixels):
            raise DataError(f"it has {len(pixels)} images and {len(labels)} labels")
    except DataError as error:
        raise DataError(f"{file} cannot be read as a batch of CIFAR: {error}.") from None
    return pixels.reshape(-1, 3, edge, edge), np.array(labels, dtype=np.int64)


def _names(home: Path) -> tuple[str, ...]:
    """The classes that a folder of CIFAR or STL10 names; empty if it names none."""
    if (home / "class_names.txt").is_file():
        return tuple(_bytes(home / "class_names.txt").decode("utf-8", "replace").split())
    for file, key in (("batches.meta", "label_names"), ("meta", "fine_label_names")):
        if (home / file).is_file():
            names = _dict(home / file).get(key)
            if isinstance(names, list) and all(isinstance(each, str | bytes) for each in names):
                return tuple(
                    n.decode("utf-8", "replace") if isinstance(n, bytes) else n for n in names
                )
    return ()
