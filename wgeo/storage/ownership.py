"""Folders that list what wgeo wrote into them: nothing else in them is replaced or removed.

``.wgeo.json`` in a folder holds the SHA-256 of every file that wgeo wrote there. A file is listed
before it is written, with what it was and what it will be, so a run that is killed at any moment
leaves nothing that the next one does not recognise. A file that is not listed, or was changed
since, belongs to somebody else.
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
from .files import ASIDE, locked, require_lock, write_aside

MANIFEST = ".wgeo.json"
_LARGEST = 2**26  # bytes of a manifest; a report of a hundred layers takes 20 thousand
_SCRATCH = re.compile(r"\.[a-z]+-\d+-[0-9a-f]{8}")
_LITTER = {".DS_Store", "Thumbs.db", "desktop.ini"}  # what file managers leave where they look

Sums = dict[str, list[str]]


def claim(folder: str | os.PathLike[str], *names: str) -> None:
    """Refuse a folder if files that wgeo did not write lie under names that it would write.

    Nothing is made, locked or written.

    Parameters
    ----------
    folder : path
        It need not exist.
    names : str
        Relative to the folder; ``*`` stands for anything but a separator.

    Raises
    ------
    RecordError
        The message names the file and says what to do.
    """
    home = Path(folder)
    if (place := _no_folder(home)) is not None:
        raise _refused(place, home)
    require_lock(home)
    _read(home)
    for name in names:
        for path in sorted(home.glob(name)) if "*" in name else [home / name]:
            _require_own(path, home)


def claim_all(folder: str | os.PathLike[str]) -> None:
    """Refuse a folder that holds anything but what `list_all` listed, unchanged.

    Raises
    ------
    RecordError
        The message names the file and says what to do.
    """
    home = Path(folder)
    if home.is_symlink() or _no_folder(home) is not None:
        raise _refused(home, home.parent)
    _read(home)
    for path in _files_in(home):
        if path.name not in _LITTER and path != home / MANIFEST:
            _require_own(path, home)


def list_all(folder: Path) -> None:
    """List every file of a folder that was made from nothing as wgeo's."""
    sums = {path.relative_to(folder).as_posix(): [_sha256(path)] for path in _files_in(folder)}
    write_aside(folder / MANIFEST, _text(sums, []))


def leftovers(folder: str | os.PathLike[str]) -> bool:
    """Whether a killed run left something in a folder that opening it (`owned`) clears."""
    home = Path(folder)
    return any(ASIDE.fullmatch(path.name) or path.name == ".wgeo.lock" for path in home.glob(".*"))


@contextmanager
def owned(folder: str | os.PathLike[str]) -> Iterator[Owned]:
    """Lock a folder (`files.locked`) to write into it; clear what killed runs left half-written.

    Raises
    ------
    RecordError
        Another run writes into the folder, or it cannot be written.
    """
    with locked(folder) as path:
        home = Owned(path)
        home.sweep()
        try:
            yield home
        finally:
            with suppress(RecordError):  # a full disk; the longer list is as good
                home.settle()


class Owned:
    """A folder that is written, while it is locked: made by `owned`."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._known: dict[str, tuple[tuple[int, ...], str]] = {}  # state of a file, and its sum

    def claim(self, *names: str) -> None:
        """Refuse files that wgeo did not write, as the function `claim` does."""
        listed, _ = _read(self.path)
        for name in names:
            if "*" in name:
                claim(self.path, name)
            else:
                self._current(name, listed)

    def write(self, files: Mapping[str, str | bytes]) -> list[Path]:
        """Write files of these names and contents, each whole or not at all, in this order.

        Raises
        ------
        RecordError
            A file that wgeo did not write lies there (then none is written), or the disk is full.
        """
        contents = {n: c.encode() if isinstance(c, str) else c for n, c in files.items()}
        after = {name: hashlib.sha256(content).hexdigest() for name, content in contents.items()}
        listed, scratch = _read(self.path)
        before = {name: self._current(name, listed) for name in contents}
        for name, new in after.items():
            old = before[name]
            listed[name] = [new] if old in (None, new) else [str(old), new]
        self._list(listed, scratch)
        for name, content in contents.items():
            path = self.path / name
            try:
                path.parent.mkdir(parents=True, exist_ok=True)
            except OSError as error:
                raise RecordError(f"Cannot make {path.parent}: {error.strerror}.") from error
            write_aside(path, content)
            self._known[name] = (_state(path), after[name])
        return [self.path / name for name in contents]

    def adopt(self, *names: str) -> None:
        """List files that are there as wgeo's: the caller has recognised them by their content."""
        listed, scratch = _read(self.path)
        for name in names:
            if (found := _sum_of(self.path / name)) is not None:
                listed[name] = [found]
                self._known[name] = (_state(self.path / name), found)
        self._list(listed, scratch)

    def remove(self, *names: str) -> None:
        """Remove files that wgeo wrote; leave those of others, and those changed since."""
        listed, scratch = _read(self.path)
        for name in {name for name in names if name in listed}:
            path = self.path / name
            if os.path.lexists(path) and _sum_of(path) in listed[name]:
                path.unlink(missing_ok=True)
            listed.pop(name)
            self._known.pop(name, None)
        self._list(listed, scratch)

    def listed(self) -> list[str]:
        """Names of all files that wgeo wrote here; some may be gone, or changed since."""
        return list(_read(self.path)[0])

    @contextmanager
    def scratch(self, name: str) -> Iterator[Path]:
        """Make a hidden folder for the block's use; if this process is killed, the next removes it.

        `name` is of small letters.
        """
        own = f".{name}-{os.getpid()}-{secrets.token_hex(4)}"
        listed, scratch = _read(self.path)
        self._list(listed, [*scratch, own])
        try:
            (self.path / own).mkdir()
            yield self.path / own
        finally:
            shutil.rmtree(self.path / own, ignore_errors=True)
            with suppress(RecordError):  # a full disk; the next run finds nothing to remove
                listed, scratch = _read(self.path)
                self._list(listed, [other for other in scratch if other != own])

    def sweep(self) -> None:
        """Remove what killed runs left: half-written files under hidden names, scratch folders."""
        listed, scratch = _read(self.path)
        for folder in {self.path, *((self.path / name).parent for name in listed)}:
            for aside in folder.glob(".*.part"):
                found = ASIDE.fullmatch(aside.name)
                if found is None:
                    continue
                name = (folder / found[1]).relative_to(self.path).as_posix()
                if name == MANIFEST or name in listed:
                    with suppress(OSError):
                        aside.unlink()
        self._list(listed, self._cleared(scratch))

    def settle(self) -> None:
        """Forget what files written here were before: a list does not tell how often it changed."""
        listed, scratch = _read(self.path)
        now = {name: [known[1]] for name, known in self._known.items() if name in listed}
        self._list({**listed, **now}, self._cleared(scratch))

    def _cleared(self, scratch: list[str]) -> list[str]:
        """Remove scratch folders; return those into which a killed run's programs still write."""
        for own in scratch:
            shutil.rmtree(self.path / own, ignore_errors=True)
        return [own for own in scratch if os.path.lexists(self.path / own)]

    def _current(self, name: str, listed: Sums) -> str | None:
        """The sum of a file that is there, which must be wgeo's; read only if it may be changed."""
        path = self.path / name
        _require_path(path, self.path)
        if not os.path.lexists(path):
            return None
        known = self._known.get(name)
        if known is not None and known[0] == _state(path):
            return known[1]
        found = _sum_of(path)
        if found is None or found not in listed.get(name, ()):
            raise _refused(path, self.path)
        self._known[name] = (_state(path), found)
        return found

    def _list(self, listed: Sums, scratch: list[str]) -> None:
        if (listed, scratch) != _read(self.path):
            write_aside(self.path / MANIFEST, _text(listed, scratch))


def _require_own(path: Path, home: Path) -> None:
    _require_path(path, home)
    if not os.path.lexists(path):
        return
    found, name = _sum_of(path), path.relative_to(home).as_posix()
    # The list is read after the file: another process may replace both, the list first.
    if found is None or found not in _read(home)[0].get(name, ()):
        raise _refused(path, home)


def _require_path(path: Path, home: Path) -> None:
    """Refuse a file in the place of a folder."""
    if (place := _no_folder(path.parent, home)) is not None:
        raise _refused(place, home)


def _no_folder(path: Path, home: Path | None = None) -> Path | None:
    """What stands in the way of a folder (up to `home`), and is none."""
    while True:
        if os.path.lexists(path):
            return None if path.is_dir() else path
        if path in (home, path.parent):
            return None
        path = path.parent


def _refused(path: Path, home: Path) -> RecordError:
    unlisted = "" if (home / MANIFEST).exists() else " (wgeo 0.1 kept no list of what it wrote)"
    return RecordError(
        f"{path} is in the way: wgeo did not write it, or it was changed since{unlisted}. Nothing "
        "was done. Move it, or choose another folder."
    )


def _read(home: Path) -> tuple[Sums, list[str]]:
    """What a folder's manifest lists: sums of files by name, and scratch folders."""
    path = home / MANIFEST
    try:
        about = os.lstat(path)
        if not stat.S_ISREG(about.st_mode) or about.st_size > _LARGEST:
            raise ValueError("it is no regular file, or far too large")
        found = json.loads(path.read_text("utf-8"))
        files, scratch = found["files"], found["scratch"]
        listed = {_inside(name): [str(one) for one in sums] for name, sums in files.items()}
        if not all(_SCRATCH.fullmatch(own) for own in scratch):
            raise ValueError("it names other folders than wgeo makes")
        return listed, list(scratch)
    except (FileNotFoundError, NotADirectoryError):
        return {}, []
    except (OSError, ValueError, LookupError, TypeError, AttributeError, RecursionError) as error:
        raise RecordError(
            f"{path} is in the way: it does not list what wgeo wrote, as a file of this name must "
            "do. Nothing was done. Move it, or choose another folder."
        ) from error


def _inside(name: str) -> str:
    path = PurePosixPath(name)
    if path.is_absolute() or ".." in path.parts or not path.parts:
        raise ValueError("it names files outside of its folder")
    return name


def _text(listed: Sums, scratch: list[str]) -> str:
    about: dict[str, Any] = {
        "about": "The files that wgeo wrote here, with their SHA-256; it replaces no others.",
        "files": dict(sorted(listed.items())),
        "scratch": scratch,
    }
    return json.dumps(about, indent=1) + "\n"


def _files_in(folder: Path) -> Iterable[Path]:
    """All files below a folder; a link is one, wherever it leads."""
    for parent, folders, names in os.walk(folder):
        links = [name for name in folders if os.path.islink(os.path.join(parent, name))]
        yield from (Path(parent, name) for name in [*names, *links])


def _state(path: Path) -> tuple[int, ...]:
    """What changes when a file is replaced or written."""
    about = os.lstat(path)
    return (about.st_mode, about.st_ino, about.st_size, about.st_mtime_ns, about.st_ctime_ns)


def _sum_of(path: Path) -> str | None:
    """The SHA-256 of a regular file; None of what is missing, something else, or unreadable."""
    try:
        return _sha256(path) if stat.S_ISREG(os.lstat(path).st_mode) else None
    except OSError:
        return None


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
