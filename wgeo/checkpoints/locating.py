"""Find the files of a checkpoint: one file, or the shards in a folder."""

from __future__ import annotations

import json
import os
import re
import stat
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from ..errors import CheckpointError
from ..text import printable

SUFFIXES = (".pt", ".pth", ".th", ".ckpt", ".bin", ".safetensors", ".pth.tar", ".pt.tar")
_NOT_NETWORK = re.compile(r"optim|sched|rng|random", re.IGNORECASE)  # not a network's file
_SHARD = re.compile(r"(.+)-(\d{5})-of-(\d{5})(\.safetensors|\.bin)")
_INDEX = (".safetensors.index.json", ".bin.index.json")
_USUAL = (  # names in a folder written by save_pretrained, in order of preference
    "model.safetensors.index.json",
    "model.safetensors",
    "pytorch_model.bin.index.json",
    "pytorch_model.bin",
)
_DISTRIBUTED = ".distcp"  # a part of a checkpoint of torch.distributed.checkpoint
_MAX_BYTES = 10_000_000  # of an index or config
_MAX_SHARDS = 1_000


def display_path(path: str | os.PathLike[str]) -> str:
    """Return a path as printable text, whatever bytes it contains."""
    return printable(os.fsdecode(path), limit=1000)


def files_of(path: str | os.PathLike[str], name: str) -> list[str]:
    """Return the files of the checkpoint at a path: the file itself, or all shards.

    The path of shards is their folder, their index, or one of them.
    """
    status = checked_path(path, name)
    text = os.fsdecode(path)
    if stat.S_ISDIR(status.st_mode):
        return files_of(_in_folder(text, name), name)
    if text.endswith(_INDEX):
        return _indexed(text, name)
    if text.endswith(_DISTRIBUTED):
        raise CheckpointError(_distributed(name))
    shard = _SHARD.fullmatch(os.path.basename(text))
    if shard is None:
        return [text]
    start, _, count, suffix = shard.groups()
    names = [f"{start}-{i:05d}-of-{count}{suffix}" for i in range(1, int(count) + 1)]
    return _siblings(text, names[: _MAX_SHARDS + 1], name)


def is_saved_model(folder: str | os.PathLike[str]) -> bool:
    """Return whether a folder contains a network saved by ``save_pretrained``."""
    return any(os.path.isfile(os.path.join(os.fsdecode(folder), each)) for each in _USUAL)


def checked_path(path: str | os.PathLike[str], name: str) -> os.stat_result:
    """Return the status of a regular file or folder; any other path is a `CheckpointError`."""
    try:
        status = os.stat(path)
    except FileNotFoundError:
        if os.path.islink(path):
            target = display_path(os.readlink(path))
            raise CheckpointError(
                f"{name} is a link to {target}, which does not exist. Pass the file itself."
            ) from None
        raise CheckpointError(f"There is no checkpoint {name}. Check the path.") from None
    except ValueError as error:  # a null byte
        raise CheckpointError(f"{name} is not a valid path: {error}.") from error
    if stat.S_ISDIR(status.st_mode):
        return status
    if not stat.S_ISREG(status.st_mode):
        raise CheckpointError(
            f"{name} is not a regular file but a pipe or device; copy it to a file."
        )
    if status.st_size == 0:
        raise CheckpointError(f"{name} is empty (0 bytes). Save or download it again.")
    return status


def _in_folder(folder: str, name: str) -> str:
    names = {entry.name for entry in os.scandir(folder)}
    if any(each.endswith(_DISTRIBUTED) for each in names):
        raise CheckpointError(_distributed(name))
    usual = next((each for each in _USUAL if each in names), None)
    if usual is not None:
        return os.path.join(folder, usual)
    inside = _checkpoints(names) or [
        f"{each.name}/{file}"
        for each in sorted(os.scandir(folder), key=lambda each: each.name)
        if each.is_dir()
        for file in _checkpoints(os.listdir(each))
    ]
    if not inside:
        raise CheckpointError(f"{name} is a folder that contains no checkpoint. Check the path.")
    shown = ", ".join(map(display_path, inside[:5]))
    more = f" and {len(inside) - 5} more" if len(inside) > 5 else ""
    raise CheckpointError(f"{name} is a folder; pass a file in it. It contains {shown}{more}.")


def _checkpoints(names: Iterable[str]) -> list[str]:
    """Return the names of files that may contain a network, sorted."""
    return sorted(n for n in names if n.endswith(SUFFIXES) and not _NOT_NETWORK.search(n))


def _distributed(name: str) -> str:
    return (
        f"{name} belongs to a checkpoint that torch.distributed saved as several files. Convert "
        "its folder to one file: python -m torch.distributed.checkpoint.format_utils dcp_to_torch "
        "FOLDER FILE."
    )


def _indexed(path: str, name: str) -> list[str]:
    mapping = _json(path).get("weight_map")
    names = mapping.values() if isinstance(mapping, dict) else ()
    plain = [each for each in names if isinstance(each, str) and os.path.basename(each) == each]
    if not plain or len(plain) != len(names):
        raise CheckpointError(
            f"{name} is not an index of shards: its weight_map does not name files in its folder. "
            "Download it again."
        )
    return _siblings(path, sorted(set(plain))[: _MAX_SHARDS + 1], name)


def _siblings(path: str, names: list[str], name: str) -> list[str]:
    """Return the paths of files in the same folder; all must exist."""
    if not 1 <= len(names) <= _MAX_SHARDS:
        raise CheckpointError(f"{name} claims more than {_MAX_SHARDS} shards, or none.")
    folder = os.path.dirname(path)
    files = [os.path.join(folder, each) for each in names]
    missing = [display_path(names[i]) for i, file in enumerate(files) if not os.path.exists(file)]
    if missing:
        more = f" and {len(missing) - 3} more" if len(missing) > 3 else ""
        raise CheckpointError(
            f"{name} belongs to a checkpoint of {len(names)} shards; missing from its folder: "
            f"{', '.join(missing[:3])}{more}. Download them too."
        )
    return files


def read_config(file: str) -> dict[str, Any]:
    """Return the ``config.json`` next to a ``.safetensors`` or ``.bin`` file; empty if missing."""
    if not file.endswith((".safetensors", ".bin")):
        return {}
    return _json(os.path.join(os.path.dirname(file), "config.json"))


def _json(path: str) -> dict[str, Any]:
    try:
        status = os.stat(path)
        if not stat.S_ISREG(status.st_mode) or status.st_size > _MAX_BYTES:
            return {}
        config = json.loads(Path(path).read_bytes())
    except (OSError, ValueError, RecursionError):
        return {}
    return config if isinstance(config, dict) else {}
