"""Checks for zip bombs, before anything is unpacked."""

from __future__ import annotations

import zipfile

from ..errors import DataError

_MAX_RATIO = 200  # deflate can reach a thousand, but not for images or arrays of images
_SMALL = 2**24  # bytes to which a file may unpack at any ratio


def max_unpacked(packed: int) -> int:
    """Return the largest size of the contents of a file of `packed` bytes that is no zip bomb."""
    return max(_SMALL, _MAX_RATIO * packed)


def check_members(archive: zipfile.ZipFile, size: int) -> None:
    """Raise a `DataError` if the compressed members together are larger than the archive.

    Parameters
    ----------
    archive : ZipFile
    size : int
        Size of the archive in bytes.
    """
    total = sum(info.compress_size for info in archive.infolist())
    if total > size:
        raise DataError(
            f"its members take {total} bytes but it has only {size}: they overlap, as in a zip "
            "bomb. It was not unpacked."
        )


def check_member(info: zipfile.ZipInfo, unchecked: int) -> None:
    """Raise a `DataError` if a member is a zip bomb or declares a wrong size.

    Parameters
    ----------
    info : ZipInfo
    unchecked : int
        Bytes to which a member may unpack at any compression ratio.
    """
    stored = info.compress_type == zipfile.ZIP_STORED
    if stored and info.file_size != info.compress_size:
        raise DataError(f"it claims {info.file_size} bytes but takes {info.compress_size}")
    if info.file_size > max(unchecked, _MAX_RATIO * info.compress_size):
        raise DataError(
            f"it claims {info.file_size} bytes in {info.compress_size}, like a zip bomb"
        )
