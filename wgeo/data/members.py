"""Checks for zip bombs, before anything is unpacked."""

from __future__ import annotations

import zipfile

from ..errors import DataError

_MAX_RATIO = 200  # deflate can reach a thousand, but not for images or arrays of images
_SMALL = 2**24  # bytes to which a file may unpack at any ratio


def max_unpacked(packed: int) -> int:
    """Return the number of bytes to which a file of `packed` bytes may unpack."""
    return max(_SMALL, _MAX_RATIO * packed)


def check_members(archive: zipfile.ZipFile, size: int) -> None:
    """Raise a `DataError` if the compressed members exceed the archive's `size` in bytes."""
    total = sum(info.compress_size for info in archive.infolist())
    if total > size:
        raise DataError(
            f"its members take {total} bytes but it has only {size}: they overlap, as in a zip "
            "bomb. It was not unpacked."
        )


def check_member(info: zipfile.ZipInfo, unchecked_bytes: int) -> None:
    """Raise a `DataError` if a member is a zip bomb or declares a wrong size.

    A member may unpack to `unchecked_bytes` at any compression ratio.
    """
    stored = info.compress_type == zipfile.ZIP_STORED
    if stored and info.file_size != info.compress_size:
        raise DataError(f"it claims {info.file_size} bytes but takes {info.compress_size}")
    if info.file_size > max(unchecked_bytes, _MAX_RATIO * info.compress_size):
        raise DataError(
            f"it claims {info.file_size} bytes in {info.compress_size}, like a zip bomb"
        )
