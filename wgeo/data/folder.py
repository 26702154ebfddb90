"""Image folders, and zips of them: ``class/image`` or ``split/class/image``.

A zip is read in memory, member by member; nothing is extracted to disk.
"""

from __future__ import annotations

import io
import warnings
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from functools import partial
from pathlib import Path
from typing import TypeVar

import numpy as np
import torch
from PIL import Image, UnidentifiedImageError

from ..errors import DataError
from ..runtime.processes import all_gather, raise_on_any, shard
from ..runtime.progress import track
from ..storage.files import require_regular
from ..text import printable
from .layout import Read, arrange, by_table, classify_files, folder_names
from .members import check_member, check_members
from .pixels import pixel_tensor, refuse_black, scaling
from .source import Source

# None of these formats runs another program.
_FORMATS = ("PNG", "JPEG", "BMP", "GIF", "TIFF", "WEBP", "PPM")
_GRAY = ("1", "L", "LA")
_HIGH_DEPTH = ("I", "F", "I;16", "I;16B", "I;16L", "I;16N")
_MAX_FILE = 2**28  # bytes of one file; larger ones are not read
_RATIO_CHECK_ABOVE = 2**24  # bytes; smaller zip members are exempt from the zip-bomb check
_EVALUATION = 256 / 224  # the ImageNet evaluation crop: scale to 256, crop to 224
_MIXED_SIZE = 224

T = TypeVar("T")


def open_folder(path: Path, split: str | None, table: str | None = None) -> Source:
    """Open an image folder, or a zip of one; `table` is the only table of labels to use.

    Classes are numbered in the alphabetical order of their folders, as in torchvision's
    ImageFolder, and images are in alphabetical order within their class. The class folders of all
    splits are numbered together, empty ones included, so a class has the same number in each.
    Splits without a common class are numbered separately. Folders that are alone in their folder
    are skipped: reading begins at the first folder that contains more than one thing.

    If folders are not classes, the labels of their images are read from a table: a CSV with a
    header such as ``file,label``, ImageNet's ``LOC_val_solution.csv`` or ``val.txt``, or Tiny
    ImageNet's ``val_annotations.txt``.

    Images of one size keep it by default. With a `size`, the shorter side is scaled to it and the
    central square is cropped. If sizes differ, the shorter side is scaled to size * 256/224, then
    the central size x size is cropped, as in ImageNet's evaluation; the default size is 224. Images
    are gray, (1, h, w), if all selected ones are, else RGB. Transparency is dropped.
    """
    listing = classify_files(folder_names(path) if path.is_dir() else _in_zip(path))
    with _reader(path) as read:
        if table is None:
            files = arrange(listing, split, path, read)
        else:
            files = by_table(listing, table, split, path, read)
    names = files.names
    return Source(
        path.stem if table is None else Path(table).stem,
        files.labels,
        files.class_names,
        files.split,
        lambda rows, size: decode_images(path, [names[row] for row in rows], size),
        broken=lambda rows: broken_images(path, {int(row): names[row] for row in rows}),
        notes=files.notes,
    )


def open_table(path: Path, split: str | None) -> Source:
    """Open a CSV or tab-separated table of the names and labels of images below its folder.

    An image is found by its path, its name, or its name without the extension.
    """
    return open_folder(path.parent, split, path.name)


def _in_zip(path: Path) -> list[str]:
    with _open_zip(path) as archive:
        try:
            check_members(archive, path.stat().st_size)
        except DataError as error:
            raise DataError(f"{path} is not an archive of images: {error}") from None
        ordered = sorted({info.filename for info in archive.infolist()})
        following = (*ordered[1:], "")  # the contents of a folder come right after it
        pairs = zip(ordered, following, strict=True)
        return [name for name, after in pairs if name[-1:] != "/" or not after.startswith(name)]


@contextmanager
def _open_zip(path: Path) -> Iterator[zipfile.ZipFile]:
    try:
        require_regular(path)
        archive = zipfile.ZipFile(path)
    except Exception as error:  # zipfile raises errors of many types on damaged archives
        reason = printable(str(error), 300)
        raise DataError(
            f"{path} is not a readable zip archive ({reason}). Is it complete?"
        ) from error
    with archive:
        yield archive


@contextmanager
def _reader(path: Path) -> Iterator[Read]:
    """Yield a function that reads a file of a folder or zip by name."""
    if path.is_dir():

        def from_disk(name: str) -> bytes:
            require_regular(path / name)  # a link may lead to a pipe or device, which may never end
            _check_size((path / name).stat().st_size)
            return (path / name).read_bytes()

        yield from_disk
        return
    with _open_zip(path) as archive:

        def from_zip(name: str) -> bytes:
            info = archive.getinfo(name)
            _check_size(info.file_size)
            check_member(info, unchecked_bytes=_RATIO_CHECK_ABOVE)
            return archive.read(name)

        yield from_zip


def _check_size(size: int) -> None:
    if size > _MAX_FILE:
        raise DataError(f"it claims {size} bytes; at most {_MAX_FILE} are read")


def decode_images(
    path: Path, names: list[str], size: int | None, read: Read | None = None
) -> torch.Tensor:
    """Return the pixels of files, uint8 (n, c, h, w).

    The headers are read first, since they determine the common size and mode. `read` returns the
    bytes for a name; by default it reads the folder or zip `path`.
    """
    with _decoding(path, read) as read:
        local_names = track(names[shard(len(names))], "reading image headers")
        headers = raise_on_any(lambda: {_image(path, read, name, _header) for name in local_names})
        kinds = set().union(*all_gather(headers))
        mode = "L" if all(kind in _GRAY for _, kind in kinds) else "RGB"
        if len({shape for shape, _ in kinds}) == 1:
            shape, scale = next(iter(kinds))[0], 1.0
        else:
            shape, scale, size = (0, 0), _EVALUATION, size or _MIXED_SIZE
        w, h = (size, size) if size else shape
        pixels = partial(_pixels, mode=mode, size=size, scale=scale)

        def decode(rows: slice) -> Iterator[np.ndarray]:
            for name in track(names[rows], "decoding images"):
                yield _image(path, read, name, pixels)

        x = pixel_tensor(decode, (len(names), len(mode), h, w))
        refuse_black(int(x.max()), path.name)
        return x


def broken_images(path: Path, names: dict[int, str], read: Read | None = None) -> dict[int, str]:
    """Return the entries of `names` whose files cannot be decoded; see `decode_images`."""
    local_names = list(names.items())[shard(len(names))]

    def check() -> dict[int, str]:
        failures = {}
        with _decoding(path, read) as read_file:
            for key, name in track(local_names, "looking for broken images"):
                try:
                    _image(path, read_file, name, _decode_fully)
                except DataError:
                    failures[key] = name
        return failures

    return {key: name for part in all_gather(raise_on_any(check)) for key, name in part.items()}


def _decode_fully(image: Image.Image) -> None:
    _header(image)
    image.load()


@contextmanager
def _decoding(path: Path, read: Read | None) -> Iterator[Read]:
    """Yield `read`, or a reader of `path`; inside the block, Pillow refuses decompression bombs."""
    with nullcontext(read) if read else _reader(path) as read, warnings.catch_warnings():
        # By default, Pillow only warns of images that exceed its limit by a factor of at most two.
        warnings.simplefilter("error", Image.DecompressionBombWarning)
        warnings.filterwarnings("ignore", "Palette images with Transparency")
        yield read


def _image(path: Path, read: Read, name: str, use: Callable[[Image.Image], T]) -> T:
    """Return ``use(image)`` of an image file; an error names the file."""
    try:
        with Image.open(io.BytesIO(read(name)), formats=_FORMATS) as image:
            return use(image)
    except Exception as error:  # Pillow's decoders raise nearly anything on a broken file
        reason = str(error) or type(error).__name__
        if isinstance(error, UnidentifiedImageError):  # its message contains a Python object
            reason = "not an image format that Pillow knows"
        raise DataError(
            f"The image {printable(name, 300)!r} in {path} cannot be decoded "
            f"({printable(reason, 300)}). Repair or remove it, or skip such images "
            "(`skip_broken=True`)."
        ) from error


def _header(image: Image.Image) -> tuple[tuple[int, int], str]:
    if image.mode in _HIGH_DEPTH:
        raise DataError("16-bit or float pixels; save it with 8 bits per channel")
    return image.size, image.mode


def _pixels(image: Image.Image, mode: str, size: int | None, scale: float) -> np.ndarray:
    image = image.convert(mode)
    if size is not None and (image.size != (size, size) or scale != 1):
        first, sides, square = scaling(image.size, size, int(size * scale))
        image = (
            (image if first == (0, 0, *image.size) else image.crop(first))
            .resize(sides, Image.Resampling.BILINEAR)
            .crop(square)
        )
    return np.moveaxis(np.asarray(image).reshape(image.height, image.width, len(mode)), 2, 0)
