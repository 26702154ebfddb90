"""Where the files of a checkpoint lie: one file, or the shards of a folder."""

from __future__ import annotations

import json
import os
import re
import stat
from pathlib import Path
from typing import Any

from ..errors import CheckpointError
from ..storage.files import printable

_ENDINGS = (".pt", ".pth", ".th", ".ckpt", ".bin", ".safetensors")
_SHARD = re.compile(r"(.+)-(\d{5})-of-(\d{5})(\.safetensors|\.bin)")
_INDEX = (".safetensors.index.json", ".bin.index.json")
_USUAL = (  # in a folder of save_pretrained, the first of these that is there
    "model.safetensors.index.json",
    "model.safetensors",
    "pytorch_model.bin.index.json",
    "pytorch_model.bin",
)
_LARGEST = 10_000_000  # bytes of an index or config
_MOST_SHARDS = 1_000


def shown(path: str | os.PathLike[str]) -> str:
    """Return a path as it may be printed, whatever bytes its name has."""
    return printable(os.fsdecode(path), limit=1000)


def files_of(path: str | os.PathLike[str], name: str) -> list[str]:
    """Return the files that a path means: itself, or the shards of a folder, index or shard.

    Raises
    ------
    CheckpointError
        There is nothing, a shard is missing, or a folder holds no checkpoint or several.
    """
    status = checked_path(path, name)
    given = os.fsdecode(path)
    if stat.S_ISDIR(status.st_mode):
        return files_of(_in_folder(given, name), name)
    if given.endswith(_INDEX):
        return _indexed(given, name)
    shard = _SHARD.fullmatch(os.path.basename(given))
    if shard is None:
        return [given]
    start, _, count, ending = shard.groups()
    names = [f"{start}-{i:05d}-of-{count}{ending}" for i in range(1, int(count) + 1)]
    return _beside(given, names[: _MOST_SHARDS + 1], name)


def is_saved_model(folder: str | os.PathLike[str]) -> bool:
    """Whether a folder holds a network, as ``save_pretrained`` leaves it."""
    return any(os.path.isfile(os.path.join(os.fsdecode(folder), each)) for each in _USUAL)


def checked_path(path: str | os.PathLike[str], name: str) -> os.stat_result:
    """Return what kind of thing lies at a path; refuse what can be neither file nor folder."""
    try:
        status = os.stat(path)
    except FileNotFoundError:
        if os.path.islink(path):
            target = shown(os.readlink(path))
            raise CheckpointError(
                f"{name} is a link to {target}, which does not exist. Name the file itself."
            ) from None
        raise CheckpointError(f"There is no checkpoint {name}. Check the path.") from None
    except ValueError as error:  # a null byte
        raise CheckpointError(f"{name} is no path: {error}.") from error
    if stat.S_ISDIR(status.st_mode):
        return status
    if not stat.S_ISREG(status.st_mode):
        raise CheckpointError(f"{name} is no regular file (a pipe or a device); copy it to one.")
    if status.st_size == 0:
        raise CheckpointError(f"{name} is empty (0 bytes). Save or download it again.")
    return status


def _in_folder(folder: str, name: str) -> str:
    names = {entry.name for entry in os.scandir(folder)}
    usual = next((each for each in _USUAL if each in names), None)
    if usual is not None:
        return os.path.join(folder, usual)
    inside = sorted(shown(each) for each in names if each.endswith(_ENDINGS))
    hint = f" It holds {', '.join(inside[:5])}." if inside else " It holds no checkpoint."
    raise CheckpointError(f"{name} is a folder; name a file in it.{hint}")


def _indexed(path: str, name: str) -> list[str]:
    mapping = _json(path).get("weight_map")
    names = mapping.values() if isinstance(mapping, dict) else ()
    plain = [each for each in names if isinstance(each, str) and os.path.basename(each) == each]
    if not plain or len(plain) != len(names):
        raise CheckpointError(
            f"{name} is no index of shards: its weight_map does not name files beside it. "
            "Download it again."
        )
    return _beside(path, sorted(set(plain))[: _MOST_SHARDS + 1], name)


def _beside(path: str, names: list[str], name: str) -> list[str]:
    """Files in the same folder; all must be there."""
    if not 1 <= len(names) <= _MOST_SHARDS:
        raise CheckpointError(f"{name} claims more than {_MOST_SHARDS} shards, or none.")
    folder = os.path.dirname(path)
    files = [os.path.join(folder, each) for each in names]
    missing = [shown(names[i]) for i, file in enumerate(files) if not os.path.exists(file)]
    if missing:
        raise CheckpointError(
            f"{name} is one of {len(names)} shards, and {len(missing)} are missing beside it: "
            f"{', '.join(missing[:3])}. Download them too."
        )
    return files


def read_config(file: str) -> dict[str, Any]:
    """Return what the ``config.json`` beside a file of save_pretrained says; empty without one."""
    if not file.endswith((".safetensors", ".bin")):
        return {}
    return _json(os.path.join(os.path.dirname(file), "config.json"))


def _json(path: str) -> dict[str, Any]:
    try:
        status = os.stat(path)
        if not stat.S_ISREG(status.st_mode) or status.st_size > _LARGEST:
            return {}
        found = json.loads(Path(path).read_bytes())
    except (OSError, ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}
