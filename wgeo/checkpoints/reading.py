"""Read plain objects and tensors from untrusted files. Only `read_trusted` runs code in a file.

A torch checkpoint is a pickle, which is a program. Its instructions are first analyzed without
being executed (`pickles`). Then torch's ``weights_only`` reader loads it, with inert stand-ins for
all classes other than tensors and plain containers (`standins`).
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import warnings
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

import torch

from ..errors import CheckpointError
from ..storage.files import sha256_of
from .locating import SUFFIXES, checked_path, display_path, files_of, read_config
from .pickles import File, damaged, inspect_pickles
from .standins import load_inert

_MAX_HEADER = 100_000_000  # bytes, safetensors' own limit
_LEGACY_PICKLES = 5  # magic number, version, system, the object, storage keys
_LEGACY_MAGIC = b"\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19."
_UNCHECKED = "saved without checksums: damage to the file would go unnoticed"
_OTHER_FORMATS = {
    b"version https://git-lfs": "is a Git LFS pointer; fetch the file itself (git lfs pull)",
    b"<": "is a web page or XML, perhaps a failed download; download it again",
    **dict.fromkeys(
        (b"\x1f\x8b", b"\xfd7zXZ", b"BZh", b"\x28\xb5\x2f\xfd", b"7z\xbc\xaf", b"Rar!"),
        "is compressed (gzip, xz, bzip2, zstd, 7z or rar); unpack it first",
    ),
    b"\x89HDF": "is an HDF5 file (Keras?); wgeo reads torch checkpoints and safetensors",
    b"\x93NUMPY": "is a NumPy array; wgeo reads torch checkpoints and safetensors",
    b"GGUF": "is a GGUF file; wgeo reads torch checkpoints and safetensors",
}


@dataclass(frozen=True, eq=False)
class Contents:
    """The contents of a checkpoint."""

    value: Any  # usually a dict
    kind: str  # torch, torch (before 1.6) or safetensors, with the number of shards
    size: int  # bytes of the file, or of all shards
    sha256: str  # of the file; for shards, the hash of their hashes in order
    stand_ins: tuple[str, ...] = ()  # classes whose objects were read as stand-ins
    config: dict[str, Any] = field(default_factory=dict)  # of a config.json in the same folder
    notes: tuple[str, ...] = ()


def read(path: str | os.PathLike[str]) -> Contents:
    """Read a checkpoint: a file, or all of its shards."""
    name = display_path(path)
    with _accessing(name):
        files = files_of(path, name)
        parts = [_read_one(file, name if len(files) == 1 else display_path(file)) for file in files]
        config = read_config(files[0])
    if len(parts) == 1:
        return replace(parts[0], config=config)
    return Contents(
        value={"state_dict": _all_tensors([part.value for part in parts], name)},
        kind=f"{parts[0].kind}, {len(parts)} shards",
        size=sum(part.size for part in parts),
        sha256=_combined([part.sha256 for part in parts]),
        stand_ins=tuple(dict.fromkeys(each for part in parts for each in part.stand_ins)),
        config=config,
        notes=tuple(dict.fromkeys(each for part in parts for each in part.notes)),
    )


@contextmanager
def _accessing(name: str) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        reason = error.strerror or str(error)
        raise CheckpointError(f"Cannot read the checkpoint {name}: {reason}.") from error


def fingerprint(path: str | os.PathLike[str]) -> str:
    """Return the SHA-256 that `read` reports, without reading the tensors."""
    name = display_path(path)
    with _accessing(name):
        return _combined([sha256_of(file) for file in files_of(path, name)])


def _combined(hashes: list[str]) -> str:
    return hashes[0] if len(hashes) == 1 else hashlib.sha256("".join(hashes).encode()).hexdigest()


def _all_tensors(values: list[Any], name: str) -> dict[Any, Any]:
    """Return the tensors of all shards."""
    joined: dict[Any, Any] = {}
    for value in values:
        shard = dict.get(value, "state_dict", value) if isinstance(value, dict) else None
        if not isinstance(shard, dict) or joined.keys() & dict.keys(shard):
            raise CheckpointError(
                f"{name} is damaged: its shards contain the same tensors, or no tensors. "
                "Download it again."
            )
        joined.update(dict.items(shard))
    return joined


def _read_one(path: str, name: str) -> Contents:
    checked_path(path, name)
    with open(path, "rb") as file:
        sha256 = hashlib.file_digest(file, "sha256").hexdigest()
        size = file.tell()
        file.seek(0)
        return _load(file, size, name, sha256)


def read_trusted(path: str | os.PathLike[str]) -> Any:
    """Unpickle a file, **which runs whatever code the file names**."""
    name = display_path(path)
    try:
        with open(path, "rb") as file, warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return torch.load(file, map_location="cpu", weights_only=False)
    except (ImportError, AttributeError) as error:
        raise CheckpointError(
            f"{name} needs code that cannot be imported: {error}. "
            "Install it, or run in a folder from which it can be imported."
        ) from error
    except Exception as error:
        raise CheckpointError(damaged(name, error)) from error


def _load(file: File, size: int, name: str, sha256: str) -> Contents:
    head = file.read(512)
    file.seek(0)
    if head[257:262] == b"ustar":
        raise CheckpointError(f"{name} is a tar archive; unpack it, and pass a file in it.")
    length = int.from_bytes(head[:8], "little")
    suffix_matches = name.endswith(".safetensors")
    if head[8:9] == b"{" and (suffix_matches or 0 < length <= size - 8):
        return Contents(_safetensors(file, size, name), "safetensors", size, sha256)
    for magic, problem in _OTHER_FORMATS.items():
        if head.lstrip(b"\r\n\t ").startswith(magic):
            raise CheckpointError(f"{name} {problem}.")
    notes: tuple[str, ...] = ()
    if head.startswith(b"PK"):
        program, notes = _checked_zip(file, size, name)
        names = inspect_pickles(io.BytesIO(program), 1, name)
        kind = "torch"
    elif head.startswith(b"\x80"):
        legacy = head[2:].startswith(_LEGACY_MAGIC)
        names = inspect_pickles(file, _LEGACY_PICKLES if legacy else 1, name)
        if not legacy:
            raise CheckpointError(
                f"{name} is damaged, or a pickle written by a program other than torch. Load it "
                "with that program and save its tensors: torch.save(state_dict, path)."
            )
        kind = "torch (before 1.6)"
    else:
        raise CheckpointError(
            f"{name} is not a checkpoint: it is in neither the format of torch.save nor that of "
            "safetensors. Download it again if it is a failed download; if another program wrote "
            "it (such as JAX, TensorFlow or ONNX), convert it, and save a state dict: "
            "torch.save(model.state_dict(), path)."
        )
    file.seek(0)
    try:
        value = load_inert(file, names)
    except Exception as error:
        raise CheckpointError(damaged(name, error)) from error
    return Contents(value, kind, size, sha256, tuple(names), notes=notes)


def _checked_zip(file: File, size: int, name: str) -> tuple[bytes, tuple[str, ...]]:
    """Return the pickle in an archive of torch.save, and notes; check the archive first."""
    try:
        with zipfile.ZipFile(file) as archive:
            entries = archive.infolist()
            pickles = [e for e in entries if e.filename.rpartition("/")[2] == "data.pkl"]
            if len(pickles) != 1:
                raise CheckpointError(_other_archive(entries, name))
            if any(e.filename.rpartition("/")[2] == "constants.pkl" for e in entries):
                raise CheckpointError(
                    f"{name} is a TorchScript program, not a state dict. Save its weights: "
                    "torch.save(torch.jit.load(path).state_dict(), 'weights.pt')."
                )
            packed = any(e.compress_type != zipfile.ZIP_STORED for e in entries)
            if packed or sum(e.file_size for e in entries) > size:
                raise CheckpointError(
                    f"{name} is compressed, which torch never does, or declares more data than its "
                    f"{size} bytes can contain, like a zip bomb. It was not unpacked."
                )
            checked = any(e.CRC for e in entries)
            if not checked:  # switched off by torch.serialization.set_crc32_options
                for entry in entries:
                    del entry.CRC
            broken = archive.testzip()
            if broken is not None:
                raise CheckpointError(
                    f"{name} is damaged: the checksum of its entry {display_path(broken)} is "
                    "wrong. Save or download it again."
                )
            return archive.read(pickles[0]), () if checked else (_UNCHECKED,)
    except CheckpointError:
        raise
    except Exception as error:  # zipfile raises errors of many types on damaged archives
        raise CheckpointError(damaged(name, error)) from error


def _other_archive(entries: list[zipfile.ZipInfo], name: str) -> str:
    if any(entry.filename.endswith(".npy") for entry in entries):
        return (
            f"{name} is a NumPy archive without torch's data.pkl, so not a checkpoint. Save its "
            "arrays as tensors: torch.save({k: torch.from_numpy(v) for k, v in "
            "np.load(path).items()}, 'weights.pt')."
        )
    if any("/data/weights/" in entry.filename for entry in entries):
        return (
            f"{name} is a program of torch.export, not a state dict. Save its weights: "
            "torch.save(torch.export.load(path).state_dict, 'weights.pt')."
        )
    inside = [display_path(e.filename) for e in entries if e.filename.lower().endswith(SUFFIXES)]
    advice = f" Unpack it, and pass a file in it: {', '.join(inside[:5])}." if inside else ""
    return f"{name} is a zip archive without torch's data.pkl, so not a checkpoint.{advice}"


def _safetensors(file: File, size: int, name: str) -> dict[str, Any]:
    import safetensors.torch

    length = int.from_bytes(file.read(8), "little")
    file.seek(0)
    if not 0 < length <= min(size - 8, _MAX_HEADER):
        raise CheckpointError(
            f"{name} is damaged: its safetensors header claims {length} bytes and the file has "
            f"{size}. Save or download it again."
        )
    try:
        body = file.read()
        # The library validates the header, so the metadata in it need no check here.
        tensors: dict[str, Any] = dict(sorted(safetensors.torch.load(body).items()))
        meta = json.loads(body[8 : 8 + length]).get("__metadata__", {}).get("wgeo")
        return {"state_dict": tensors, **({"wgeo": json.loads(meta)} if meta else {})}
    except Exception as error:  # safetensors' own errors, and JSON's
        raise CheckpointError(damaged(name, error)) from error
