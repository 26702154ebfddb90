"""Members of a zip archive that say more than is true, found before anything is unpacked."""

from __future__ import annotations

import zipfile

from ..errors import DataError

_PACKS = 200  # times; deflate can do a thousand, pictures and arrays of pictures never do this
_SMALL = 2**24  # bytes that a file may unpack to, however small it is


def most_unpacked(packed: int) -> int:
    """Bytes that a file of `packed` bytes may unpack to; one that asks for more is a bomb."""
    return max(_SMALL, _PACKS * packed)


def check_members(archive: zipfile.ZipFile, size: int) -> None:
    """Raise a `DataError` where the members together take more than the archive has.

    Parameters
    ----------
    archive : ZipFile
    size : int
        Bytes of the archive's file.
    """
    taken = sum(info.compress_size for info in archive.infolist())
    if taken > size:
        raise DataError(
            f"its members take {taken} bytes and it has {size}: they overlap, as in a zip bomb. It "
            "was not unpacked."
        )


def check_member(info: zipfile.ZipInfo, plain: int) -> None:
    """Raise a `DataError` where a member is a bomb or its size a lie.

    Parameters
    ----------
    info : ZipInfo
    plain : int
        Bytes that a member may unpack to, however few it takes.
    """
    stored = info.compress_type == zipfile.ZIP_STORED
    if stored and info.file_size != info.compress_size:
        raise DataError(f"it claims {info.file_size} bytes and takes {info.compress_size}")
    if info.file_size > max(plain, _PACKS * info.compress_size):
        raise DataError(
            f"it claims {info.file_size} bytes in {info.compress_size}, as a zip bomb does"
        )
