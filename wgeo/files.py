"""Files written whole or not at all, folders written by one run at a time, names of both."""

from __future__ import annotations

import errno
import math
import os
import re
import secrets
import stat
import sys
import tempfile
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from .distributed import agreed, beside, everyone, neighbours, rank, ranks
from .errors import ArgumentError, RecordError
from .names import printable as printable

if TYPE_CHECKING:  # the command line locks folders before it needs libraries
    import numpy as np

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


def memory() -> int:
    """Bytes of memory that this process may take; endless where the system does not say.

    Of what the machine has, or a container or a batch system allows, its share.
    """
    try:
        has = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, OSError, ValueError):  # not of this family of systems
        has = sys.maxsize
    return min(has, _allowed()) // neighbours()


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


def nameless(
    made: Callable[[slice], Iterable[np.ndarray]],
    shape: tuple[int, ...],
    dtype: Any,
    folder: str | os.PathLike[str] | None = None,
) -> np.memmap:
    """An array in a file without a name, which goes with the process.

    `made` gives a range of its rows, one part after the other. Processes that work together
    (`wgeo.distributed`) must all come here; those of one machine make a share each, of one file.
    The file lies in `folder`, or where temporary files do. A full disk is an OSError.
    """
    import numpy as np

    n, row = shape[0], math.prod(shape[1:]) * np.dtype(dtype).itemsize
    with ExitStack() as stack:
        ours = stack.enter_context(_file_between(n * row, folder)) if ranks() > 1 else None
        others = [rank()] if ours is None else beside()
        part, parts = others.index(rank()), len(others)

        def write() -> np.memmap:
            file = ours or stack.enter_context(tempfile.TemporaryFile(dir=folder))
            mine = slice(n * part // parts, n * (part + 1) // parts)
            file.seek(mine.start * row)
            for some in made(mine):  # written, not mapped: a full disk is an error and no crash
                file.write(np.ascontiguousarray(some, dtype).data)
            file.flush()
            return np.memmap(file, dtype, "r+", shape=shape)

        return agreed(write)  # nobody reads before all have written


@contextmanager
def _file_between(size: int, folder: str | os.PathLike[str] | None) -> Iterator[IO[bytes] | None]:
    """An anonymous temporary file shared by this host's processes, or None.

    One of them makes it, with a name for as long as the others take to open it: they are all there.
    """
    others, path = beside(), None
    everyone(None)
    if others[0] == rank():
        with (
            suppress(OSError),
            tempfile.NamedTemporaryFile(prefix="wgeo-", dir=folder, delete=False) as file,
        ):
            path = file.name
            file.truncate(size)
    with ExitStack() as stack:
        ours = None
        try:
            given = everyone(path)[others[0]]
            if given is not None:
                with suppress(OSError):  # another machine of the same name, say
                    ours = stack.enter_context(open(given, "r+b"))
            opened = everyone(ours is not None)
        finally:
            if path is not None:
                with suppress(OSError):
                    os.unlink(path)  # who has it open keeps it
        yield ours if all(opened[other] for other in others) else None


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
