"""Image folders, and zips of them: ``class/image`` or ``split/class/image``.

A zip is read in memory, member by member; nothing is ever extracted, so a path in it cannot
point anywhere.
"""

from __future__ import annotations

import io
import os
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
from ..storage.files import printable, require_regular
from .layout import Read, arrange, by_table, folder_names, sorted_out
from .members import check_member, check_members
from .pixels import kept
from .source import Source

_FORMATS = ("PNG", "JPEG", "BMP", "GIF", "TIFF", "WEBP", "PPM")  # none runs another program
_GREY = ("1", "L", "LA")
_DEEP = ("I", "F", "I;16", "I;16B", "I;16L", "I;16N")
_LARGEST_FILE = 2**28  # bytes of one image file: a zip member that claims more is not read
_PLAIN = 2**24  # and one that unpacks to so many need not look like a picture
_EVALUATION = 256 / 224  # the ImageNet evaluation crop: scale to 256, cut out 224
_MIXED_SIZE = 224

T = TypeVar("T")


def open_folder(path: str | os.PathLike[str], split: str | None) -> Source:
    """Open an image folder, or a zip of one.

    The classes are the folders, empty ones included, of all splits together, in alphabetical order
    as torchvision's ImageFolder has it: a class has one number in all splits. Images are in
    alphabetical order within their class, whatever order the file system lists them in. A folder
    that wraps everything is looked through. Without a split level ``split`` does not matter.

    Images that lie in one folder without classes take their labels from a table beside them: a
    CSV with a header such as ``file,label``, ImageNet's ``LOC_val_solution.csv`` or ``val.txt``,
    Tiny ImageNet's ``val_annotations.txt``.

    Images that share one size keep it, unless `size` is given: then the shorter side is scaled to
    it and the middle square kept. Images of different sizes are scaled to size * 256/224 (shorter
    side) and the middle size x size is kept, as in ImageNet's evaluation; size is 224 if not
    given. Images are grey, (1, h, w), if all that were chosen are; else RGB; transparency is
    dropped.

    Raises
    ------
    DataError
        No images, the split missing (what is there is listed), a broken image (named).
    """
    return _source(Path(path), split)


def open_table(path: str | os.PathLike[str], split: str | None) -> Source:
    """Open a CSV (or tab-separated table) of the names and labels of images beside it.

    Images are looked for below the table's folder, by path, by name, or by name without ending.

    Raises
    ------
    DataError
        It names no images that are there, or gives one two labels.
    """
    path = Path(path)
    return _source(path.parent, split, path.name)


def _source(path: Path, split: str | None, table: str | None = None) -> Source:
    listing = sorted_out(folder_names(path) if path.is_dir() else _in_zip(path))
    with _reader(path) as read:
        if table is None:
            found = arrange(listing, split, path, read)
        else:
            found = by_table(listing, table, split, path, read)
    names = found.names

    def fetch(rows: np.ndarray, size: int | None) -> torch.Tensor:
        return decoded(path, [names[row] for row in rows], size)

    def broken(rows: np.ndarray) -> dict[int, str]:
        return _broken(path, {int(row): names[row] for row in rows})

    return Source(
        path.stem if table is None else Path(table).stem,
        found.labels,
        found.class_names,
        found.split,
        fetch,
        broken=broken,
        notes=found.notes,
    )


def _in_zip(path: Path) -> list[str]:
    with _opened(path) as archive:
        try:
            check_members(archive, path.stat().st_size)
        except DataError as error:
            raise DataError(f"{path} is no archive of images: {error}") from None
        names = {info.filename for info in archive.infolist()}
        ordered = sorted(names)
        after = (*ordered[1:], "")  # what lies in a folder comes right after it
        pairs = zip(ordered, after, strict=True)
        return [name for name, then in pairs if name[-1:] != "/" or not then.startswith(name)]


@contextmanager
def _opened(path: Path) -> Iterator[zipfile.ZipFile]:
    try:
        require_regular(path)
        archive = zipfile.ZipFile(path)
    except Exception as error:  # zipfile raises a dozen kinds on damaged archives
        why = printable(str(error), 300)
        raise DataError(f"{path} is not a readable zip archive ({why}). Is it whole?") from error
    with archive:
        yield archive


@contextmanager
def _reader(path: Path) -> Iterator[Read]:
    """How to get a file's bytes, from a folder or a zip."""
    if path.is_dir():

        def from_disk(name: str) -> bytes:
            require_regular(
                path / name
            )  # a pipe or a device, which a link may lead to, may never end
            _check_size((path / name).stat().st_size)
            return (path / name).read_bytes()

        yield from_disk
        return
    with _opened(path) as archive:

        def from_zip(name: str) -> bytes:
            info = archive.getinfo(name)
            _check_size(info.file_size)
            check_member(info, plain=_PLAIN)
            return archive.read(name)

        yield from_zip


def _check_size(size: int) -> None:
    if size > _LARGEST_FILE:
        raise DataError(f"it claims {size} bytes")


def decoded(
    path: Path, names: list[str], size: int | None, read: Read | None = None
) -> torch.Tensor:
    """Return pixels of named files, uint8 (n, c, h, w). Headers first: they decide size and mode.

    `read` says how to get the bytes of a name; by default of a file in the folder or zip `path`.
    """
    with nullcontext(read) if read else _reader(path) as read, _strict():
        mine = track(names[shard(len(names))], "looking at images")
        seen = raise_on_any(lambda: {_image(path, read, name, _header) for name in mine})
        kinds = set().union(*all_gather(seen))
        mode = "L" if all(kind in _GREY for _, kind in kinds) else "RGB"
        if len({shape for shape, _ in kinds}) == 1:
            shape, scale = next(iter(kinds))[0], 1.0
        else:
            shape, scale, size = (0, 0), _EVALUATION, size or _MIXED_SIZE
        w, h = (size, size) if size else shape
        pixels = partial(_pixels, mode=mode, size=size, scale=scale)

        def some(rows: slice) -> Iterator[np.ndarray]:
            for name in track(names[rows], "decoding images"):
                yield _image(path, read, name, pixels)

        return kept(some, (len(names), len(mode), h, w))


def _broken(path: Path, names: dict[int, str]) -> dict[int, str]:
    """Which of the named files cannot be decoded, by their keys."""
    mine = list(names.items())[shard(len(names))]

    def look() -> dict[int, str]:
        found = {}
        with _reader(path) as read, _strict():
            for key, name in track(mine, "looking for broken images"):
                try:
                    _image(path, read, name, _whole)
                except DataError:
                    found[key] = name
        return found

    return {key: name for part in all_gather(raise_on_any(look)) for key, name in part.items()}


def _whole(image: Image.Image) -> None:
    _header(image)
    image.load()


@contextmanager
def _strict() -> Iterator[None]:
    """Pillow only warns of a bomb up to twice its limit."""
    with warnings.catch_warnings():
        warnings.simplefilter("error", Image.DecompressionBombWarning)
        warnings.filterwarnings("ignore", "Palette images with Transparency")
        yield


def _image(path: Path, read: Read, name: str, use: Callable[[Image.Image], T]) -> T:
    """What `use` makes of an image file; one that is broken is named."""
    try:
        with Image.open(io.BytesIO(read(name)), formats=_FORMATS) as image:
            return use(image)
    except Exception as error:  # Pillow's decoders raise nearly anything on a broken file
        unknown = isinstance(error, UnidentifiedImageError)  # its text names a Python object
        why = "no image that Pillow knows" if unknown else str(error) or type(error).__name__
        raise DataError(
            f"The image {printable(name, 300)!r} in {path} cannot be decoded "
            f"({printable(why, 300)}). Repair or remove it, or skip such images "
            "(`skip_broken=True`)."
        ) from error


def _header(image: Image.Image) -> tuple[tuple[int, int], str]:
    if image.mode in _DEEP:
        raise DataError("16-bit or float pixels; save it with 8 bits a channel")
    return image.size, image.mode


def _pixels(image: Image.Image, mode: str, size: int | None, scale: float) -> np.ndarray:
    image = image.convert(mode)
    if size is not None and (image.size != (size, size) or scale != 1):
        short, edge = min(image.size), int(size * scale)
        w, h = (edge if side == short else int(edge * side / short) for side in image.size)
        left, top = round((w - size) / 2), round((h - size) / 2)
        image = image.resize((w, h), Image.Resampling.BILINEAR)
        image = image.crop((left, top, left + size, top + size))
    return np.moveaxis(np.asarray(image).reshape(image.height, image.width, len(mode)), 2, 0)
