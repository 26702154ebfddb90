"""Files written whole or not at all, folders written by one run at a time, names of both."""

from __future__ import annotations

import errno
import os
import re
import secrets
import stat
import sys
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import ArgumentError, RecordError
from ..runtime.processes import (
    local_world_size,
)
from ..text import printable as printable

if TYPE_CHECKING:  # the command line locks folders before it needs libraries
    pass

try:
    import fcntl
except ImportError:  # not of this family of systems
    fcntl = None  # type: ignore[assignment]


def as_path(value: Any, name: str) -> Path:
    """Return a path; raise an ArgumentError for what is none."""
    try:
        return Path(os.fsdecode(value))
    except TypeError:
        raise ArgumentError(f"{name} must be a path, not {type(value).__name__}.") from None


_NAME_BYTES = 200  # of the 255 that file systems take: some are left for numbers and endings


def folder_name(text: str) -> str:
    """Return what a text becomes as the name of one folder, inside of whichever it is made in.

    Separators and what cannot be printed become ``-``; dots and blanks at the ends, which would
    hide the folder or lead out of it, go; so does what is too long for a file system. It may be
    empty.
    """
    plain = "".join(c if c.isprintable() and c not in "/\\" else "-" for c in text)
    short = plain.encode()[:_NAME_BYTES].decode(errors="ignore")
    return short.strip(". ")


def regular(path: str | os.PathLike[str]) -> None:
    """Raise an OSError where a path is no regular file: a pipe or a device may never end."""
    if not stat.S_ISREG(os.stat(path).st_mode):
        said = "it is a folder, a pipe or a device, not a regular file"
        raise OSError(errno.EINVAL, said, os.fspath(path))


def open_regular(path: str | os.PathLike[str], flags: int) -> int:
    """Open a regular file that has no other name; for a link, a pipe or a device, an OSError.

    Returns
    -------
    int
        A file descriptor, as `os.open` returns it.
    """
    said = "it is a link, a pipe or a device, or has a second name"
    try:
        handle = os.open(path, flags | os.O_NOFOLLOW | os.O_NONBLOCK, 0o666)
    except OSError as error:
        if error.errno != errno.ELOOP:
            raise
        raise OSError(errno.ELOOP, said, os.fspath(path)) from error
    about = os.fstat(handle)
    if not stat.S_ISREG(about.st_mode) or about.st_nlink > 1:
        os.close(handle)
        raise OSError(errno.EINVAL, said, os.fspath(path))
    return handle


def memory() -> int:
    """Bytes of memory that this process may take; endless where the system does not say.

    Of what the machine has, or a container or a batch system allows, its share.
    """
    try:
        has = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, OSError, ValueError):  # not of this family of systems
        has = sys.maxsize
    return min(has, _allowed()) // local_world_size()


def _allowed(proc: Path = Path("/proc"), groups: Path = Path("/sys/fs/cgroup")) -> int:
    """What the control groups of this process allow it and those in them (Linux, both versions)."""
    least = sys.maxsize
    with suppress(OSError, ValueError):
        for line in (proc / "self" / "cgroup").read_text().splitlines():
            _, kinds, path = line.split(":", 2)
            if kinds and "memory" not in kinds.split(","):
                continue
            root, name = (
                (groups / "memory", "memory.limit_in_bytes") if kinds else (groups, "memory.max")
            )
            here = Path(os.path.normpath(root / path.lstrip("/")))
            for folder in (here, *here.parents):
                if folder == root.parent:
                    break
                with suppress(OSError, ValueError):  # "max", or not to be seen from inside
                    least = min(least, int((folder / name).read_text()))
    return least


def writable(folder: str | os.PathLike[str]) -> Path:
    """Return a folder that can be written, made if need be; fail before the work, not after.

    Raises
    ------
    RecordError
        It cannot be made or written.
    """
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


ASIDE = re.compile(r"\.(.+)\.\d+-[0-9a-f]{8}\.part", re.DOTALL)
"""The names of files that `write_aside` has not finished; a killed process leaves one."""


def aside_of(path: Path) -> Path:
    """A hidden name beside a file, which nothing else has: what is renamed once it is whole."""
    return path.with_name(f".{path.name}.{os.getpid()}-{secrets.token_hex(4)}.part")


def write_aside(path: str | os.PathLike[str], content: str | bytes) -> None:
    """Write a file aside, then rename it, so that nobody reads half of it.

    It is on the disk before it takes its name: not even a loss of power leaves half of it.

    Raises
    ------
    RecordError
        The disk is full or the folder cannot be written; what was there before still is.
    """
    path = Path(path)
    data = content.encode() if isinstance(content, str) else content
    # A name of its own: neither another process nor a link that lies there is written through.
    aside = aside_of(path)
    try:
        with open(aside, "xb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        aside.replace(path)
    except OSError as error:
        raise RecordError(f"Cannot write {path}: {error.strerror}.") from error
    finally:
        aside.unlink(missing_ok=True)


@contextmanager
def locked(folder: str | os.PathLike[str]) -> Iterator[Path]:
    """Keep a folder to this run while the block lasts; make it if need be, as `writable` does.

    The system lets go of the lock when the process ends, however it ends, so a crash leaves none.
    A run may lock again what it has locked. File systems without locks have none here, either.

    Raises
    ------
    RecordError
        Another run writes into the folder, or it cannot be written.
    """
    path = writable(folder)
    status = path.stat()
    key, me = (status.st_dev, status.st_ino), threading.get_ident()
    with _guard:
        holder, depth = _held.get(key, (me, 0))
        if holder != me:
            raise RecordError(_taken(path, os.getpid()))
        handle = _handle(path) if depth == 0 else None
        _held[key] = (me, depth + 1)
    try:
        yield path
    finally:
        with _guard:
            _held[key] = (me, depth)
            if depth == 0:
                del _held[key]
                _let_go(path, handle)


_LOCK = ".wgeo.lock"
_guard = threading.Lock()
_held: dict[tuple[int, int], tuple[int, int]] = {}  # folder -> the thread that has it, how often


def _handle(path: Path) -> int | None:
    """The open, locked file of a folder; None where there are no locks."""
    if fcntl is None:
        return None
    while True:
        try:
            handle = os.open(path / _LOCK, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o666)
        except OSError as error:
            require_lock(path)  # a link or a folder in its place
            raise RecordError(f"Cannot lock {path}: {error.strerror}.") from error
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            said = os.read(handle, 20).decode(errors="replace").strip()
            os.close(handle)
            raise RecordError(_taken(path, int(said) if said.isdecimal() else None)) from None
        except OSError:  # a file system without locks
            os.close(handle)
            return None
        if os.fstat(handle).st_nlink:
            try:
                require_lock(path)
            except RecordError:
                os.close(handle)
                raise
            os.ftruncate(handle, 0)
            os.write(handle, str(os.getpid()).encode())
            return handle
        os.close(handle)  # who held it took the file away between our opening and our locking it


def require_lock(folder: Path) -> None:
    """Refuse a folder that holds a file of the lock's name which is no lock of wgeo's.

    Raises
    ------
    RecordError
        The message names it.
    """
    path = folder / _LOCK
    try:
        if path.is_symlink():
            raise ValueError
        regular(path)
        with path.open("rb") as file:
            if not re.fullmatch(rb"[0-9]{0,20}", file.read(21)):
                raise ValueError
    except FileNotFoundError:
        pass
    except (OSError, ValueError) as error:
        raise RecordError(
            f"{path} is in the way: it is not the lock of a run of wgeo. Move it, or choose "
            "another folder."
        ) from error


def _let_go(path: Path, handle: int | None) -> None:
    if handle is None:
        return
    with suppress(OSError):
        os.unlink(path / _LOCK)  # while it is ours
    os.close(handle)


def _taken(path: Path, process: int | None) -> str:
    by = f" (process {process})" if process is not None else ""
    return f"Another run{by} writes into {path}. Wait until it has ended, or choose another folder."
