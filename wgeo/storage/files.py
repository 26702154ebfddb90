"""Atomic file writes, folder locks, and safe names for files and folders."""

from __future__ import annotations

import errno
import hashlib
import os
import re
import secrets
import stat
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from ..errors import ArgumentError, RecordError

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]


def as_path(value: Any, name: str) -> Path:
    """Return a path; raise an ArgumentError if `value` is not one."""
    try:
        return Path(os.fsdecode(value))
    except TypeError:
        raise ArgumentError(f"{name} must be a path, not {type(value).__name__}.") from None


_NAME_BYTES = 200  # file systems allow 255; the difference is for numbers and suffixes


def folder_name(text: str) -> str:
    """Convert text to a safe name for a single folder; the result may be empty.

    Separators and unprintable characters become ``-``. Dots and spaces at the ends are removed, as
    they could hide the folder or refer to its parent. Long names are truncated.
    """
    plain = "".join(c if c.isprintable() and c not in "/\\" else "-" for c in text)
    short = plain.encode()[:_NAME_BYTES].decode(errors="ignore")
    return short.strip(". ")


def sha256_of(path: str | os.PathLike[str]) -> str:
    """Return the SHA-256 of a file, in hexadecimal."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def require_regular(path: str | os.PathLike[str]) -> os.stat_result:
    """Return a regular file's status, or raise an OSError; reading a pipe may never end."""
    status = os.stat(path)
    if not stat.S_ISREG(status.st_mode):
        reason = "it is a folder, a pipe or a device, not a regular file"
        raise OSError(errno.EINVAL, reason, os.fspath(path))
    return status


def read_regular(path: str | os.PathLike[str], limit: int) -> str:
    """Return the text of a regular file; raise a ValueError if it has more than `limit` bytes."""
    if (size := require_regular(path).st_size) > limit:
        raise ValueError(f"it has {size} bytes, far more than wgeo writes")
    return Path(path).read_text("utf-8")


def writable(folder: str | os.PathLike[str]) -> Path:
    """Create a folder if needed; raise RecordError if it is not writable."""
    path = Path(folder)
    try:
        path.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=path) as probe:
            probe.write(b"wgeo")
    except OSError as error:
        raise RecordError(
            f"Cannot write into {path}: {error.strerror}. Choose another folder."
        ) from error
    return path


TEMPORARY = re.compile(r"\.(.+)\.\d+-[0-9a-f]{8}\.part", re.DOTALL)
"""Names of temporary files of `write_atomic`, which a killed process may leave behind."""


def temporary_path(path: Path) -> Path:
    """Return a unique hidden path next to a file."""
    return path.with_name(f".{path.name}.{os.getpid()}-{secrets.token_hex(4)}.part")


def write_atomic(path: str | os.PathLike[str], content: str | bytes) -> None:
    """Write a file atomically: to a temporary file, which is then renamed.

    The data is on the disk before the rename, so not even a power loss leaves a partial file.
    RecordError is raised if the file cannot be written; an existing file is then unchanged.
    """
    path = Path(path)
    data = content.encode() if isinstance(content, str) else content
    # A unique name and mode x keep this from writing to another process's file, or through a link.
    temporary = temporary_path(path)
    try:
        with open(temporary, "xb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except OSError as error:
        raise RecordError(f"Cannot write {path}: {error.strerror}.") from error
    finally:
        temporary.unlink(missing_ok=True)


@contextmanager
def locked(folder: str | os.PathLike[str]) -> Iterator[Path]:
    """Lock a folder inside the ``with`` block; create the folder if needed (`writable`).

    The same thread may lock the folder again. The lock ends with the process, even after a crash.
    If the file system does not support locks, only other threads are excluded.

    Raises
    ------
    RecordError
        Another run or thread has locked the folder, or the folder cannot be written.
    """
    path = writable(folder)
    status = path.stat()
    key, thread = (status.st_dev, status.st_ino), threading.get_ident()
    with _guard:
        holder, depth = _holders.get(key, (thread, 0))
        if holder != thread:
            raise RecordError(_locked_by(path, os.getpid()))
        handle = _open_lock(path) if depth == 0 else None
        _holders[key] = (thread, depth + 1)
    try:
        yield path
    finally:
        with _guard:
            _holders[key] = (thread, depth)
            if depth == 0:
                del _holders[key]
                _release(path, handle)


LOCK = ".wgeo.lock"
_guard = threading.Lock()
_holders: dict[tuple[int, int], tuple[int, int]] = {}  # folder -> thread, number of locks


def _open_lock(path: Path) -> int | None:
    """Lock a folder's lock file, and return its descriptor; None if locks are not supported."""
    if fcntl is None:
        return None
    while True:
        try:
            handle = os.open(path / LOCK, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o666)
        except OSError as error:
            require_own_lock(path)  # raises for a link or a folder in its place
            raise RecordError(f"Cannot lock {path}: {error.strerror}.") from error
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            owner = os.read(handle, 20).decode(errors="replace").strip()
            os.close(handle)
            raise RecordError(_locked_by(path, int(owner) if owner.isdecimal() else None)) from None
        except OSError:  # the file system does not support locks
            os.close(handle)
            return None
        if os.fstat(handle).st_nlink:
            try:
                require_own_lock(path)
            except RecordError:
                os.close(handle)
                raise
            os.ftruncate(handle, 0)
            os.write(handle, str(os.getpid()).encode())
            return handle
        os.close(handle)  # the previous owner removed the file before this process locked it


def require_own_lock(folder: Path) -> None:
    """Raise RecordError if a file in the folder has the lock's name but is not a lock of wgeo."""
    path = folder / LOCK
    try:
        if path.is_symlink():
            raise ValueError
        require_regular(path)
        with path.open("rb") as file:
            if not re.fullmatch(rb"[0-9]{0,20}", file.read(21)):
                raise ValueError
    except FileNotFoundError:
        pass
    except (OSError, ValueError) as error:
        raise RecordError(
            f"{path} is in the way: it is not a lock file of wgeo. Move it, or choose another "
            "folder."
        ) from error


def _release(path: Path, handle: int | None) -> None:
    if handle is None:
        return
    with suppress(OSError):
        os.unlink(path / LOCK)  # while still locked
    os.close(handle)


def _locked_by(path: Path, process: int | None) -> str:
    owner = f" (process {process})" if process is not None else ""
    return f"Another run{owner} is writing to {path}. Wait until it ends, or choose another folder."
