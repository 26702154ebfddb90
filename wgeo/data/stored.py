"""Folders downloaded by torchvision: CIFAR batches, MNIST's IDX files, STL10's binary files.

CIFAR's batches are pickles, and a pickle is a program. `pickletools.genops` reads its instructions
without executing them. Only those that build plain values are followed: lists, dicts, text,
numbers, bytes. Imports are stored as a `Name`, and calls as a `Call`.
"""

from __future__ import annotations

import gzip
import itertools
import math
import os
import pickletools
import re
import struct
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import DataError
from ..storage.files import require_regular
from ..text import printable
from .members import max_unpacked
from .pixels import from_array, scaled
from .source import Source, checked_labels, chosen_splits, first_label, joined

_CIFAR = ("cifar-10-batches-py", "cifar-100-python")
_PRESETS = {"MNIST": "mnist", "FashionMNIST": "fashion_mnist", "stl10_binary": "stl10"}
_CLASSES = {"cifar10": 10, "cifar100": 100, "mnist": 10, "fashion_mnist": 10, "stl10": 10}
_FIRST = {"stl10": 1}  # the label of the first class, if it is not 0
_STL10_SIZE = 96  # pixels per side
_MAX_BYTES = 2**28  # of a file; STL10's test set has 221 million
_MAX_OPS = 2_000_000  # instructions of a pickle; the largest, CIFAR-100, has about 300,000
_VALUE_OPS = (
    *("BININT", "BININT1", "BININT2", "INT", "LONG", "LONG1", "LONG4", "BINFLOAT", "FLOAT"),
    *("STRING", "BINSTRING", "SHORT_BINSTRING", "BINBYTES", "SHORT_BINBYTES", "BINBYTES8"),
    *("UNICODE", "BINUNICODE", "SHORT_BINUNICODE", "BINUNICODE8", "BYTEARRAY8"),
)
_CONSTANTS = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False}
_EMPTY_CONTAINERS: dict[str, Callable[[], Any]] = {
    "EMPTY_LIST": list,
    "EMPTY_DICT": dict,
    "EMPTY_TUPLE": tuple,
}
_MARK = object()


def find_stored(path: Path) -> Path | None:
    """Return the folder with CIFAR batches, IDX files or STL10 files: `path` or one below it.

    Return None if there is no such folder; several are a `DataError`.
    """
    inside = ("", *_CIFAR, "stl10_binary", "raw", *(f"{name}/raw" for name in _PRESETS))
    folders = [each for name in inside if _batches(each := path / name) or _pairs(each)]
    if len(folders) > 1:
        names = ", ".join(str(each) for each in folders)
        raise DataError(f"{path} contains several data sets; pass the path of one: {names}.")
    return folders[0] if folders else None


def open_stored(folder: Path, split: str | None) -> Source:
    """Open a folder such as ``cifar-10-batches-py``, found by `find_stored`."""
    batches, pairs = _batches(folder), _pairs(folder)
    selected = chosen_splits(folder, split, list(batches or pairs))
    if batches:
        contents = {key: [_batch(file) for file in files] for key, files in batches.items()}
        all_labels = {key: np.concatenate([y for _, y in contents[key]]) for key in batches}
        parts = [part for key in selected for part in contents[key]]
        name = preset = "cifar100" if (folder / "meta").is_file() else "cifar10"
    else:
        all_labels = {key: _labels(file).astype(np.int64) for key, (_, file) in pairs.items()}
        parts = [(_images(pairs[key][0]), all_labels[key]) for key in selected]
        name = folder.parent.name if folder.name == "raw" else folder.name
        preset = _PRESETS.get(name, "")
    x, labels = joined(parts, str(folder))
    every_label = np.concatenate(list(all_labels.values()))
    last = int(checked_labels(every_label, folder.name).max())
    first, notes = (_FIRST.get(preset, 0), ()) if preset else first_label(every_label)
    numbers = map(str, range(first, 1 + max(last, _CLASSES.get(preset, 0) - 1)))
    classes = _class_names(folder) or tuple(numbers)
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


def _names_in(folder: Path) -> list[str]:
    try:
        return sorted(os.listdir(folder))
    except OSError:  # the folder does not exist
        return []


def _batches(folder: Path) -> dict[str, list[Path]]:
    """Return the batch files of each split, in order."""
    names = _names_in(folder)
    train = [name for name in names if re.fullmatch(r"data_batch_\d+", name)]
    splits = {"train": train, "test": ["test_batch"]}
    if "meta" in names and not train:  # CIFAR-100, whose batches are named after the splits
        splits = {"train": ["train"], "test": ["test"]}
    files = {key: [folder / name for name in each if name in names] for key, each in splits.items()}
    return {key: each for key, each in files.items() if each}


def _pairs(folder: Path) -> dict[str, tuple[Path, Path]]:
    """Return the image file and the label file of each split; uncompressed ones are preferred."""
    names = _names_in(folder)
    pairs: dict[str, tuple[Path, Path]] = {}
    for split, start in (("train", "train"), ("test", "t10k"), ("test", "test")):
        candidates = [(f"{split}_X.bin", f"{split}_y.bin")]
        for ends in itertools.product(("", ".gz"), repeat=2):
            images, labels = f"{start}-images-idx3-ubyte", f"{start}-labels-idx1-ubyte"
            candidates.append((images + ends[0], labels + ends[1]))
        for images, labels in candidates:
            if images in names and labels in names:
                pairs.setdefault(split, (folder / images, folder / labels))
    return pairs


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
    body = _bytes(file)
    try:
        value = plain_values(body)
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


def _class_names(folder: Path) -> tuple[str, ...]:
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


@dataclass(frozen=True)
class Name:
    """A name that a pickle would import, such as ``numpy.dtype``."""

    path: str


@dataclass(eq=False)
class Call:
    """A call that a pickle would make, and the state it would set on the result."""

    function: Any
    arguments: Any
    state: Any = None


def plain_values(body: bytes) -> Any:
    """Return the value of a pickle; a `Name` or `Call` replaces whatever is not a plain value.

    Instructions that plain values do not need are a `DataError`.
    """
    try:
        return _Machine().run(body)
    except DataError:
        raise
    except Exception as error:  # a truncated instruction, an empty stack
        raise DataError(f"it is not a pickle of plain values ({type(error).__name__})") from error


class _Machine:
    """A stack machine with the instructions that plain values need."""

    def __init__(self) -> None:
        self.stack: list[Any] = []
        self.memo: dict[int, Any] = {}

    def run(self, body: bytes) -> Any:
        for count, (op, argument, _) in enumerate(pickletools.genops(body)):
            if count > _MAX_OPS:
                raise DataError(f"it has more than {_MAX_OPS} instructions")
            if op.name == "STOP":
                return self.stack.pop()
            self._step(op.name, argument)
        raise DataError("it is truncated")

    def _step(self, op: str, argument: Any) -> None:
        stack = self.stack
        if op in _VALUE_OPS:
            stack.append(argument)
        elif op in _CONSTANTS:
            stack.append(_CONSTANTS[op])
        elif op in _EMPTY_CONTAINERS:
            stack.append(_EMPTY_CONTAINERS[op]())
        elif op in ("PROTO", "FRAME"):
            pass
        elif op == "MARK":
            stack.append(_MARK)
        elif op == "POP":
            stack.pop()
        elif op in ("PUT", "BINPUT", "LONG_BINPUT", "MEMOIZE"):
            self.memo[len(self.memo) if op == "MEMOIZE" else argument] = stack[-1]
        elif op in ("GET", "BINGET", "LONG_BINGET"):
            stack.append(self.memo[argument])
        elif op in ("TUPLE1", "TUPLE2", "TUPLE3", "TUPLE", "LIST", "DICT"):
            self._build(op)
        elif op in ("APPEND", "APPENDS", "SETITEM", "SETITEMS"):
            self._fill(op)
        elif op == "GLOBAL":
            stack.append(Name(str(argument).replace(" ", ".", 1)))
        elif op == "STACK_GLOBAL":
            name, module = stack.pop(), stack.pop()
            if not (isinstance(module, str) and isinstance(name, str)):
                raise DataError("it imports an object whose name is not text")
            stack.append(Name(f"{module}.{name}"))
        elif op in ("REDUCE", "NEWOBJ"):
            arguments, function = stack.pop(), stack.pop()
            stack.append(_bytes_of(function, arguments))
        elif op == "BUILD":
            state, target = stack.pop(), stack[-1]
            if not isinstance(target, Call):
                raise DataError("it sets the state of a plain value")
            target.state = state
        else:
            raise DataError(f"its instruction {op} does not build a plain value")

    def _pop_to_mark(self) -> list[Any]:
        """Pop the values above the last mark, and the mark."""
        values = []
        while (value := self.stack.pop()) is not _MARK:
            values.append(value)
        return values[::-1]

    def _build(self, op: str) -> None:
        if op[-1].isdigit():
            values = [self.stack.pop() for _ in range(int(op[-1]))][::-1]
        else:
            values = self._pop_to_mark()
        if op == "DICT":
            self.stack.append({})
            self._set(values)
        else:
            self.stack.append(values if op == "LIST" else tuple(values))

    def _fill(self, op: str) -> None:
        several = op.endswith("S")
        count = 1 if op.startswith("APPEND") else 2
        values = self._pop_to_mark() if several else [self.stack.pop() for _ in range(count)][::-1]
        if count == 2:
            self._set(values)
        elif isinstance(self.stack[-1], list):
            self.stack[-1].extend(values)
        else:
            raise DataError("it appends to something other than a list")

    def _set(self, values: list[Any]) -> None:
        target = self.stack[-1]
        if not isinstance(target, dict):
            raise DataError("it sets entries of something other than a dict")
        for key, value in zip(values[::2], values[1::2], strict=True):
            if not isinstance(key, str | bytes):  # hashing nested tuples can take forever
                raise DataError("it has keys that are not text")
            target[key] = value


def pixels_of(value: Any) -> np.ndarray:
    """Return the uint8 array (n, d) that NumPy's pickle describes."""
    function = value.function if isinstance(value, Call) else None
    path = function.path if isinstance(function, Name) else ""
    name = path.rpartition(".")[2] if path.startswith("numpy") else ""
    match name, value:
        case "_reconstruct", Call(state=tuple((_, shape, dtype, fortran, body))):
            pass
        case "_frombuffer", Call(arguments=tuple((body, dtype, shape, order))):
            fortran = order == "F"
        case _:
            raise DataError("its images are not an array")
    match dtype:
        case Call(arguments=tuple(("u1" | b"u1", *_))):
            pass
        case _:
            raise DataError("its images are not of type uint8")
    body = body.encode("latin-1", "replace") if isinstance(body, str) else body  # Python 2
    if not isinstance(body, bytes | bytearray):
        raise DataError("its images are not bytes")
    valid = isinstance(shape, tuple) and all(type(n) is int and 0 < n < 2**40 for n in shape)
    if not valid or len(shape) != 2 or shape[0] * shape[1] != len(body):
        raise DataError("the shape of its images does not match their number of bytes")
    return np.frombuffer(body, np.uint8).reshape(shape, order="F" if fortran else "C")


def _bytes_of(function: Any, arguments: Any) -> Any:
    """Return a call, or the bytes that it builds; protocols before 3 store bytes as calls."""
    match function, arguments:
        case Name("_codecs.encode"), tuple((str() as text, "latin1")):
            return text.encode("latin-1")
        case Name("__builtin__.bytes"), tuple(()):
            return b""
    return Call(function, arguments)
