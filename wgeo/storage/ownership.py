"""Manifests of the files that wgeo wrote to a folder, so that no other file is replaced or removed.

The manifest ``.wgeo.json`` contains the SHA-256 of every file that wgeo wrote to its folder. Before
a file is written, its old and its new checksum are recorded. So the next run recognizes the file,
even if this run is killed. Any other file, or a file that was changed, belongs to the user.
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
from .files import LOCK, TEMPORARY, locked, read_regular, require_own_lock, sha256_of, write_atomic

MANIFEST = ".wgeo.json"
_MAX_BYTES = 2**26  # largest manifest that is read; a report on 100 layers needs 20,000
_SCRATCH = re.compile(r"\.[a-z]+-\d+-[0-9a-f]{8}")
_IGNORED = {".DS_Store", "Thumbs.db", "desktop.ini"}  # files that file managers create

Checksums = dict[str, list[str]]


def require_writable(folder: str | os.PathLike[str], *names: str) -> None:
    """Raise RecordError if one of these names belongs to a file that wgeo did not write.

    Nothing is created, locked or written. The folder need not exist. Names are relative to the
    folder; ``*`` in a name matches anything except a separator.

    Raises
    ------
    RecordError
        A file is in the way, or the manifest is damaged.
    """
    folder = Path(folder)
    if (obstacle := _obstacle(folder)) is not None:
        raise _in_the_way(obstacle, folder)
    require_own_lock(folder)
    _read(folder)
    for name in names:
        for path in sorted(folder.glob(name)) if "*" in name else [folder / name]:
            _require_own(path, folder)


def require_unchanged(folder: str | os.PathLike[str]) -> None:
    """Raise RecordError unless wgeo wrote every file in the folder, and none has changed since.

    The manifest itself and files of file managers are not checked.
    """
    folder = Path(folder)
    if folder.is_symlink() or _obstacle(folder) is not None:
        raise _in_the_way(folder, folder.parent)
    _read(folder)
    for path in _files_in(folder):
        if path.name not in _IGNORED and path != folder / MANIFEST:
            _require_own(path, folder)


def record_all(folder: Path) -> None:
    """Record every file of a newly created folder in its manifest."""
    sums = {path.relative_to(folder).as_posix(): [sha256_of(path)] for path in _files_in(folder)}
    write_atomic(folder / MANIFEST, _text(sums, []))


def has_leftovers(folder: str | os.PathLike[str]) -> bool:
    """Return whether a folder contains temporary files or a lock, as left by a killed run."""
    folder = Path(folder)
    return any(TEMPORARY.fullmatch(path.name) or path.name == LOCK for path in folder.glob(".*"))


@contextmanager
def owned(folder: str | os.PathLike[str]) -> Iterator[Owned]:
    """Lock a folder for writing, as `files.locked` does, and remove partial files of killed runs.

    RecordError is also raised if the manifest is damaged.
    """
    with locked(folder) as path:
        owner = Owned(path)
        owner.remove_temporary()
        try:
            yield owner
        finally:
            with suppress(RecordError):  # a full disk; a manifest with old checksums is valid too
                owner.drop_old_checksums()


class Owned:
    """A locked folder to which wgeo writes files; created by `owned`."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._checksums: dict[str, tuple[tuple[int, ...], str]] = {}  # file state, checksum

    def require_writable(self, *names: str) -> None:
        """Raise RecordError if one of these files exists but is not as wgeo wrote it."""
        for name in names:
            if "*" in name:
                require_writable(self.path, name)
            else:
                self._require_unchanged(name)

    def write(self, files: Mapping[str, str | bytes]) -> list[Path]:
        """Write files, given as names and contents, each atomically and in this order.

        Raise RecordError if the disk is full, or (before any file is written) if a file that wgeo
        did not write is in the way.
        """
        contents = {n: c.encode() if isinstance(c, str) else c for n, c in files.items()}
        after = {name: hashlib.sha256(content).hexdigest() for name, content in contents.items()}
        checksums, scratch = _read(self.path)
        before = {name: self._require_unchanged(name) for name in contents}
        for name, new in after.items():
            old = before[name]
            checksums[name] = [new] if old in (None, new) else [str(old), new]
        self._write_manifest(checksums, scratch)
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
        """Record existing files in the manifest; the caller knows that wgeo wrote them."""
        checksums, scratch = _read(self.path)
        for name in names:
            if (checksum := _checksum(self.path / name)) is not None:
                checksums[name] = [checksum]
                self._checksums[name] = (_state(self.path / name), checksum)
        self._write_manifest(checksums, scratch)

    def remove(self, *names: str) -> None:
        """Remove files from the manifest, and from the folder unless the user changed them."""
        checksums, scratch = _read(self.path)
        for name in {name for name in names if name in checksums}:
            path = self.path / name
            if os.path.lexists(path) and _checksum(path) in checksums[name]:
                path.unlink(missing_ok=True)
            checksums.pop(name)
            self._checksums.pop(name, None)
        self._write_manifest(checksums, scratch)

    def listed(self) -> list[str]:
        """Return the names in the manifest, of which some files may be gone or changed."""
        return list(_read(self.path)[0])

    @contextmanager
    def scratch(self, name: str) -> Iterator[Path]:
        """Create a hidden folder that is removed after the ``with`` block.

        If this process is killed, the next run removes it. `name` consists of lowercase letters.
        """
        own = f".{name}-{os.getpid()}-{secrets.token_hex(4)}"
        checksums, scratch = _read(self.path)
        self._write_manifest(checksums, [*scratch, own])
        try:
            (self.path / own).mkdir()
            yield self.path / own
        finally:
            shutil.rmtree(self.path / own, ignore_errors=True)
            with suppress(RecordError):  # a full disk; the next run will find nothing to remove
                checksums, scratch = _read(self.path)
                self._write_manifest(checksums, [other for other in scratch if other != own])

    def remove_temporary(self) -> None:
        """Remove temporary files and scratch folders of killed runs."""
        checksums, scratch = _read(self.path)
        for folder in {self.path, *((self.path / name).parent for name in checksums)}:
            for temporary in folder.glob(".*.part"):
                match = TEMPORARY.fullmatch(temporary.name)
                if match is None:
                    continue
                name = (folder / match[1]).relative_to(self.path).as_posix()
                if name == MANIFEST or name in checksums:
                    with suppress(OSError):
                        temporary.unlink()
        self._write_manifest(checksums, self._cleared(scratch))

    def drop_old_checksums(self) -> None:
        """Keep only the newest checksum of each file that this process wrote or read."""
        checksums, scratch = _read(self.path)
        now = {
            name: [checksum] for name, (_, checksum) in self._checksums.items() if name in checksums
        }
        self._write_manifest({**checksums, **now}, self._cleared(scratch))

    def _cleared(self, scratch: list[str]) -> list[str]:
        """Remove scratch folders; return those that could not be removed.

        A program started by a killed run may still be writing to them.
        """
        for own in scratch:
            shutil.rmtree(self.path / own, ignore_errors=True)
        return [own for own in scratch if os.path.lexists(self.path / own)]

    def _require_unchanged(self, name: str) -> str | None:
        """Check a file like `_require_own`, but read it again only if its metadata has changed."""
        path = self.path / name
        state, checksum = self._checksums.get(name, (None, None))
        if state is not None and os.path.lexists(path) and state == _state(path):
            return checksum
        checksum = _require_own(path, self.path)
        if checksum is not None:
            self._checksums[name] = (_state(path), checksum)
        return checksum

    def _write_manifest(self, checksums: Checksums, scratch: list[str]) -> None:
        if (checksums, scratch) != _read(self.path):
            write_atomic(self.path / MANIFEST, _text(checksums, scratch))


def _require_own(path: Path, folder: Path) -> str | None:
    """Return the checksum of a file, or None if it does not exist.

    Raise RecordError if the file is not as wgeo wrote it, or one of its parents is a file.
    """
    if (obstacle := _obstacle(path.parent, folder)) is not None:
        raise _in_the_way(obstacle, folder)
    if not os.path.lexists(path):
        return None
    checksum, name = _checksum(path), path.relative_to(folder).as_posix()
    # The manifest is read after the file, because other processes update it before the file.
    if checksum is None or checksum not in _read(folder)[0].get(name, ()):
        raise _in_the_way(path, folder)
    return checksum


def _obstacle(path: Path, folder: Path | None = None) -> Path | None:
    """Return the file that keeps `path` from being a folder: `path` or a parent, up to `folder`."""
    while True:
        if os.path.lexists(path):
            return None if path.is_dir() else path
        if path in (folder, path.parent):
            return None
        path = path.parent


def _in_the_way(path: Path, folder: Path) -> RecordError:
    has_manifest = (folder / MANIFEST).exists()
    unlisted = "" if has_manifest else " (wgeo 0.1 did not record the files that it wrote)"
    return RecordError(
        f"{path} is in the way: wgeo did not write it, or it was changed since{unlisted}. Nothing "
        "was written. Move it, or choose another folder."
    )


def _read(folder: Path) -> tuple[Checksums, list[str]]:
    """Return the checksums of files by name, and the scratch folders, from a manifest."""
    path = folder / MANIFEST
    try:
        if path.is_symlink():
            raise ValueError("it is a link")
        manifest = json.loads(read_regular(path, _MAX_BYTES))
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
    """Yield all files and links below a folder."""
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
        return sha256_of(path) if stat.S_ISREG(os.lstat(path).st_mode) else None
    except OSError:
        return None
