"""Files written whole or not at all."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

from .errors import RecordError


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
            f"Cannot write into {path}: {error.strerror}. Choose another folder with --out."
        ) from error
    return path


def write_aside(path: str | os.PathLike[str], content: str | bytes) -> None:
    """Write a file aside, then rename it, so that nobody reads half of it.

    Raises
    ------
    RecordError
        The disk is full or the folder cannot be written; what was there before still is.
    """
    path = Path(path)
    aside = path.with_name(path.name + ".part")
    try:
        aside.write_bytes(content.encode() if isinstance(content, str) else content)
        aside.replace(path)
    except OSError as error:
        raise RecordError(f"Cannot write {path}: {error.strerror}.") from error
    finally:
        aside.unlink(missing_ok=True)
