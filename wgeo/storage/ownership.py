"""Folders that list the files wgeo wrote to them: nothing else is replaced or removed.

``.wgeo.json`` in a folder holds the SHA-256 of every file that wgeo wrote there. A file is listed
before it is written, with its old and its new checksum, so the next run recognizes every file of a
run that was killed, at whatever moment. A file that is not listed, or has changed since, belongs to
the user.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import secrets
import shutil
import stat
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path, PurePosixPath
from typing import Any

from ..errors import RecordError
from .files import TEMPORARY, locked, refuse_other_lock, write_atomic

MANIFEST = ".wgeo.json"
_LARGEST = 2**26  # bytes of a manifest; that of a report of a hundred layers has 20,000
_SCRATCH = re.compile(r"\.[a-z]+-\d+-[0-9a-f]{8}")
_LITTER = {".DS_Store", "Thumbs.db", "desktop.ini"}  # left by file managers

Checksums = dict[str, list[str]]


def claim(folder: str | os.PathLike[str], *names: str) -> None:
    """Refuse a folder if files that wgeo did not write have names that it would write.

    Nothing is created, locked or written.

    Parameters
    ----------
    folder : path
        It need not exist.
    names : str
        Relative to the folder; ``*`` matches anything except a separator.

    Raises
    ------
    RecordError
        The message names the file and says what to do.
    """
    home = Path(folder)
    if (place := _obstacle(home)) is not None:
        raise _in_the_way(place, home)
    refuse_other_lock(home)
    _read(home)
    for name in names:
        for path in sorted(home.glob(name)) if "*" in name else [home / name]:
            _require_own(path, home)


def claim_all(folder: str | os.PathLike[str]) -> None:
    """Refuse a folder unless it holds only files that `list_all` listed, unchanged.

    Raises
    ------
    RecordError
        The message names the file and says what to do.
    """
    home = Path(folder)
    if home.is_symlink() or _obstacle(home) is not None:
        raise _in_the_way(home, home.parent)
    _read(home)
    for path in _files_in(home):
        if path.name not in _LITTER and path != home / MANIFEST:
            _require_own(path, home)


def list_all(folder: Path) -> None:
    """List every file of a newly created folder as written by wgeo."""
    sums = {path.relative_to(folder).as_posix(): [_sha256(path)] for path in _files_in(folder)}
    write_atomic(folder / MANIFEST, _text(sums, []))


def leftovers(folder: str | os.PathLike[str]) -> bool:
    """Whether a killed run left files in a folder that `owned` would remove."""
    home = Path(folder)
    return any(
        TEMPORARY.fullmatch(path.name) or path.name == ".wgeo.lock" for path in home.glob(".*")
    )


@contextmanager
def owned(folder: str | os.PathLike[str]) -> Iterator[Owned]:
    """Lock a folder (`files.locked`) for writing; remove partial files of killed runs.

    Raises
    ------
    RecordError
        Another run is writing to the folder, or the folder cannot be written.
    """
    with locked(folder) as path:
        home = Owned(path)
        home.sweep()
        try:
            yield home
        finally:
            with suppress(RecordError):  # a full disk; the longer list serves as well
                home.settle()


class Owned:
    """A locked folder, open for writing; created by `owned`."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._checksums: dict[str, tuple[tuple[int, ...], str]] = {}  # file state, checksum

    def claim(self, *names: str) -> None:
        """Refuse files that wgeo did not write, like the function `claim`."""
        checksums, _ = _read(self.path)
        for name in names:
            if "*" in name:
                claim(self.path, name)
            else:
                self._current(name, checksums)

    def write(self, files: Mapping[str, str | bytes]) -> list[Path]:
        """Write files, given as names and contents, each atomically and in this order.

        Raises
        ------
        RecordError
            A file that wgeo did not write is in the way (then none is written), or the disk is
            full.
        """
        contents = {n: c.encode() if isinstance(c, str) else c for n, c in files.items()}
        after = {name: hashlib.sha256(content).hexdigest() for name, content in contents.items()}
        checksums, scratch = _read(self.path)
        before = {name: self._current(name, checksums) for name in contents}
        for name, new in after.items():
            old = before[name]
            checksums[name] = [new] if old in (None, new) else [str(old), new]
        self._list(checksums, scratch)
        for name, content in contents.items():
            path = self.path / name
            try:
                path.parent.mkdir(parents=True, exist_ok=True)
            except OSError as error:
                raise RecordError(f"Cannot create {path.parent}: {error.strerror}.") from error
            write_atomic(path, content)
            self._checksums[name] = (_state(path), after[name])
        return [self.path / name for name in contents]

    def adopt(self, *names: str) -> None:
        """List existing files as written by wgeo; the caller has recognized their content."""
        checksums, scratch = _read(self.path)
        for name in names:
            if (checksum := _checksum(self.path / name)) is not None:
                checksums[name] = [checksum]
                self._checksums[name] = (_state(self.path / name), checksum)
        self._list(checksums, scratch)

    def remove(self, *names: str) -> None:
        """Remove files that wgeo wrote and nobody has changed; leave all others."""
        checksums, scratch = _read(self.path)
        for name in {name for name in names if name in checksums}:
            path = self.path / name
            if os.path.lexists(path) and _checksum(path) in checksums[name]:
                path.unlink(missing_ok=True)
            checksums.pop(name)
            self._checksums.pop(name, None)
        self._list(checksums, scratch)

    def listed(self) -> list[str]:
        """Return the names of all files that wgeo wrote; some may be gone or changed since."""
        return list(_read(self.path)[0])

    @contextmanager
    def scratch(self, name: str) -> Iterator[Path]:
        """Create a hidden folder for the block; if this process is killed, the next removes it.

        `name` consists of lowercase letters.
        """
        own = f".{name}-{os.getpid()}-{secrets.token_hex(4)}"
        checksums, scratch = _read(self.path)
        self._list(checksums, [*scratch, own])
        try:
            (self.path / own).mkdir()
            yield self.path / own
        finally:
            shutil.rmtree(self.path / own, ignore_errors=True)
            with suppress(RecordError):  # a full disk; the next run will find nothing to remove
                checksums, scratch = _read(self.path)
                self._list(checksums, [other for other in scratch if other != own])

    def sweep(self) -> None:
        """Remove temporary files and scratch folders of killed runs."""
        checksums, scratch = _read(self.path)
        for folder in {self.path, *((self.path / name).parent for name in checksums)}:
            for aside in folder.glob(".*.part"):
                match = TEMPORARY.fullmatch(aside.name)
                if match is None:
                    continue
                name = (folder / match[1]).relative_to(self.path).as_posix()
                if name == MANIFEST or name in checksums:
                    with suppress(OSError):
                        aside.unlink()
        self._list(checksums, self._cleared(scratch))

    def settle(self) -> None:
        """Drop the old checksums of written files: the list does not depend on its history."""
        checksums, scratch = _read(self.path)
        now = {
            name: [checksum] for name, (_, checksum) in self._checksums.items() if name in checksums
        }
        self._list({**checksums, **now}, self._cleared(scratch))

    def _cleared(self, scratch: list[str]) -> list[str]:
        """Remove scratch folders; return those that programs of a killed run still write to."""
        for own in scratch:
            shutil.rmtree(self.path / own, ignore_errors=True)
        return [own for own in scratch if os.path.lexists(self.path / own)]

    def _current(self, name: str, checksums: Checksums) -> str | None:
        """Return the checksum of a file of wgeo; read the file only if it may have changed."""
        path = self.path / name
        _require_path(path, self.path)
        if not os.path.lexists(path):
            return None
        state, checksum = self._checksums.get(name, (None, None))
        if state == _state(path):
            return checksum
        checksum = _checksum(path)
        if checksum is None or checksum not in checksums.get(name, ()):
            raise _in_the_way(path, self.path)
        self._checksums[name] = (_state(path), checksum)
        return checksum

    def _list(self, checksums: Checksums, scratch: list[str]) -> None:
        if (checksums, scratch) != _read(self.path):
            write_atomic(self.path / MANIFEST, _text(checksums, scratch))


def _require_own(path: Path, home: Path) -> None:
    _require_path(path, home)
    if not os.path.lexists(path):
        return
    checksum, name = _checksum(path), path.relative_to(home).as_posix()
    # The list is read after the file: another process may replace both, the list first.
    if checksum is None or checksum not in _read(home)[0].get(name, ()):
        raise _in_the_way(path, home)


def _require_path(path: Path, home: Path) -> None:
    """Refuse a path if one of its folders is a file."""
    if (place := _obstacle(path.parent, home)) is not None:
        raise _in_the_way(place, home)


def _obstacle(path: Path, home: Path | None = None) -> Path | None:
    """Return the file that takes the place of a folder or its parents (up to `home`), or None."""
    while True:
        if os.path.lexists(path):
            return None if path.is_dir() else path
        if path in (home, path.parent):
            return None
        path = path.parent


def _in_the_way(path: Path, home: Path) -> RecordError:
    unlisted = "" if (home / MANIFEST).exists() else " (wgeo 0.1 kept no list of what it wrote)"
    return RecordError(
        f"{path} is in the way: wgeo did not write it, or it was changed since{unlisted}. Nothing "
        "was written. Move it, or choose another folder."
    )


def _read(home: Path) -> tuple[Checksums, list[str]]:
    """Read a folder's manifest: the checksums of files by name, and the scratch folders."""
    path = home / MANIFEST
    try:
        status = os.lstat(path)
        if not stat.S_ISREG(status.st_mode) or status.st_size > _LARGEST:
            raise ValueError("it is not a regular file, or far too large")
        manifest = json.loads(path.read_text("utf-8"))
        files, scratch = manifest["files"], manifest["scratch"]
        checksums = {_inside(name): [str(each) for each in sums] for name, sums in files.items()}
        if not all(_SCRATCH.fullmatch(own) for own in scratch):
            raise ValueError("it names folders that wgeo does not create")
        return checksums, list(scratch)
    except (FileNotFoundError, NotADirectoryError):
        return {}, []
    except (OSError, ValueError, LookupError, TypeError, AttributeError, RecursionError) as error:
        raise RecordError(
            f"{path} is in the way: it is not a list of files written by wgeo. Nothing was "
            "written. Move it, or choose another folder."
        ) from error


def _inside(name: str) -> str:
    path = PurePosixPath(name)
    if path.is_absolute() or ".." in path.parts or not path.parts:
        raise ValueError("it names files outside its folder")
    return name


def _text(checksums: Checksums, scratch: list[str]) -> str:
    manifest: dict[str, Any] = {
        "about": "The files that wgeo wrote here, with their SHA-256; it replaces no others.",
        "files": dict(sorted(checksums.items())),
        "scratch": scratch,
    }
    return json.dumps(manifest, indent=1) + "\n"


def _files_in(folder: Path) -> Iterable[Path]:
    """Yield all files below a folder; links count as files."""
    for parent, folders, names in os.walk(folder):
        links = [name for name in folders if os.path.islink(os.path.join(parent, name))]
        yield from (Path(parent, name) for name in [*names, *links])


def _state(path: Path) -> tuple[int, ...]:
    """Return metadata that changes when a file is replaced or written."""
    status = os.lstat(path)
    return (status.st_mode, status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns)


def _checksum(path: Path) -> str | None:
    """Return the SHA-256 of a regular file; None if it is missing, unreadable or not regular."""
    try:
        return _sha256(path) if stat.S_ISREG(os.lstat(path).st_mode) else None
    except OSError:
        return None


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
