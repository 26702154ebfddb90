"""Untrusted bytes -> plain objects and tensors. Nothing that a file holds is ever run.

A checkpoint by torch is a pickle, which is a program. Before torch sees it, its instructions are
read without being carried out, and every name it would import is held against a short list; then
torch's own ``weights_only`` reader loads it, which keeps a list too. Sizes that a file declares are
held against the size it has.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import pickletools
import re
import stat
import warnings
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch

from ..errors import CheckpointError
from ..files import printable

File = io.BufferedReader | io.BytesIO

_MAX_OPS = 750_000  # pickle instructions; a state dict of a thousand tensors has some 40,000
_MAX_LEAVES = 1_000_000  # of nested tuples, written out
_MAX_HEADER = 100_000_000  # bytes, safetensors' own limit
_LEGACY_PICKLES = 5  # magic number, version, system, the object, storage keys
_PLAIN = re.compile(
    r"collections\.(OrderedDict|Counter)"
    r"|torch\._utils\._rebuild_(tensor|tensor_v2|tensor_v3|parameter|parameter_with_state"
    r"|sparse_tensor|meta_tensor_no_storage)"
    r"|torch\._tensor\._rebuild_from_type_v2"
    r"|torch\.nn\.parameter\.Parameter"
    r"|torch\.serialization\._get_layout"
    r"|torch\.(Size|Tensor|device|\w+Storage|storage\.(TypedStorage|UntypedStorage))"
    r"|torch\.(bool|u?int\d+|float\d+(_\w+)?|bfloat16|complex\d+)"
    r"|(__builtin__|builtins)\.(set|complex)"
)
_NOT_OURS = {
    b"version https://git-lfs": "is a Git LFS pointer; fetch the file itself (git lfs pull)",
    b"<": "is a web page or XML, perhaps a failed download; download it again",
    b"\x1f\x8b": "is gzip-compressed; unpack it first",
    b"\x89HDF": "is an HDF5 file (Keras?); wgeo reads torch checkpoints and safetensors",
    b"\x93NUMPY": "is a NumPy array; wgeo reads torch checkpoints and safetensors",
    b"GGUF": "is a GGUF file; wgeo reads torch checkpoints and safetensors",
}


@dataclass(frozen=True, eq=False)
class Contents:
    """What a file holds.

    Attributes
    ----------
    value : object
        Usually a dict; a whole network only where the file was trusted.
    kind : str
        ``torch``, ``torch (before 1.6)`` or ``safetensors``.
    size : int
        Bytes of the file.
    sha256 : str
    """

    value: Any
    kind: str
    size: int
    sha256: str


def shown(path: str | os.PathLike[str]) -> str:
    """Return a path as it may be printed, whatever bytes its name has."""
    return printable(os.fsdecode(path), limit=1000)


def read(path: str | os.PathLike[str], *, trust: bool = False) -> Contents:
    """Read a checkpoint file.

    Parameters
    ----------
    path : path
    trust : bool
        Let torch unpickle anything, which runs code that the file names.

    Raises
    ------
    CheckpointError
        No such file, not a file, unreadable, empty, damaged, of another kind, or one that needs
        `trust`.
    """
    name = shown(path)
    try:
        _check_path(path, name)
        with open(path, "rb") as file:
            sha256 = hashlib.file_digest(file, "sha256").hexdigest()
            size = file.tell()
            file.seek(0)
            value, kind = _load(file, size, name, trust)
    except OSError as error:
        reason = error.strerror or str(error)
        raise CheckpointError(f"Cannot read the checkpoint {name}: {reason}.") from error
    return Contents(value, kind, size, sha256)


def _check_path(path: str | os.PathLike[str], name: str) -> None:
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
        inside = sorted(
            shown(entry.name)
            for entry in os.scandir(path)
            if entry.name.endswith((".pt", ".pth", ".th", ".ckpt", ".bin", ".safetensors"))
        )
        hint = f" It holds {', '.join(inside[:5])}." if inside else " It holds no checkpoint."
        raise CheckpointError(f"{name} is a folder; name a file in it.{hint}")
    if not stat.S_ISREG(status.st_mode):
        raise CheckpointError(f"{name} is no regular file (a pipe or a device); copy it to one.")
    if status.st_size == 0:
        raise CheckpointError(f"{name} is empty (0 bytes). Save or download it again.")


def _load(file: File, size: int, name: str, trust: bool) -> tuple[Any, str]:
    head = file.read(64)
    file.seek(0)
    length = int.from_bytes(head[:8], "little")
    named = name.endswith(".safetensors")
    if head[8:9] == b"{" and (named or 0 < length <= size - 8):
        return _safetensors(file, size, name), "safetensors"
    for magic, what in _NOT_OURS.items():
        if head.lstrip(b"\r\n\t ").startswith(magic):
            raise CheckpointError(f"{name} {what}.")
    if head.startswith(b"PK"):
        program = _checked_zip(file, size, name, trust)
        if not trust:
            _check_pickles(io.BytesIO(program), 1, name)
        kind = "torch"
    elif head.startswith(b"\x80"):
        if not trust:
            _check_pickles(file, _LEGACY_PICKLES, name)
        kind = "torch (before 1.6)"
    else:
        raise CheckpointError(
            f"{name} is not a checkpoint: it starts like neither a file of torch.save nor "
            "safetensors. It may be damaged or of another program."
        )
    file.seek(0)
    return _torch_load(file, name, trust), kind


def _torch_load(file: File, name: str, trust: bool) -> Any:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch's deprecations: of no use to who reads a file
            return torch.load(file, map_location="cpu", weights_only=not trust)
    except Exception as error:
        if trust and isinstance(error, ImportError | AttributeError):
            raise CheckpointError(
                f"{name} needs code that is not here to be unpickled: {error}. "
                "Install it, or run where it can be imported."
            ) from error
        raise CheckpointError(_damaged(name, error)) from error


def _damaged(name: str, error: Exception) -> str:
    lines = str(error).strip().splitlines() or [type(error).__name__]
    # torch's reader says first how to switch it off, and later what it met.
    told = [line.partition("WeightsUnpickler error:")[2].strip() for line in lines]
    reason = printable(next(filter(None, told), lines[0]), 200)
    return f"{name} is damaged or not a checkpoint ({reason}). Save or download it again."


def _checked_zip(file: File, size: int, name: str, trust: bool) -> bytes:
    """Return the pickle in an archive of torch.save, which must be stored plainly and whole."""
    try:
        with zipfile.ZipFile(file) as archive:
            entries = archive.infolist()
            pickles = [e for e in entries if e.filename.rpartition("/")[2] == "data.pkl"]
            if len(pickles) != 1:
                what = "NumPy archive" if any(e.filename.endswith(".npy") for e in entries) else ""
                raise CheckpointError(
                    f"{name} is a {what or 'zip archive'} without torch's data.pkl, "
                    "so not a checkpoint."
                )
            if any(e.filename.rpartition("/")[2] == "constants.pkl" for e in entries):
                raise CheckpointError(
                    f"{name} is a TorchScript program, not a state dict. Save its weights there: "
                    "torch.save(torch.jit.load(path).state_dict(), 'weights.pt')."
                )
            packed = any(e.compress_type != zipfile.ZIP_STORED for e in entries)
            if packed or sum(e.file_size for e in entries) > size:
                raise CheckpointError(
                    f"{name} declares more than its {size} bytes hold (torch never compresses), "
                    "as a zip bomb does. It was not unpacked."
                )
            broken = archive.testzip()
            if broken is not None and not trust:
                raise CheckpointError(
                    f"{name} is damaged: the checksum of its part {shown(broken)} is wrong. Save "
                    "or download it again (if it was saved with checksums switched off, pass "
                    "trust=True, --trust-checkpoint)."
                )
            return archive.read(pickles[0])
    except CheckpointError:
        raise
    except Exception as error:  # zipfile raises a dozen kinds on damaged archives
        raise CheckpointError(_damaged(name, error)) from error


def _check_pickles(file: File, number: int, name: str) -> None:
    """Read pickles' instructions without carrying them out; refuse any import but tensors'."""
    refused: dict[str, None] = {}  # a set that keeps its order
    try:
        for found in _imports(file, number, name):
            if not _PLAIN.fullmatch(found):
                refused[found] = None
    except CheckpointError:
        raise
    except Exception as error:  # an instruction cut short, or bytes that are none
        if not refused:
            raise CheckpointError(_damaged(name, error)) from error
    if refused:
        named = ", ".join(printable(found, 80) for found in list(refused)[:5])
        raise CheckpointError(
            f"{name} holds more than tensors: reading it would import and may run {named}"
            f"{', ...' if len(refused) > 5 else ''}. Nothing of it was run. Save only the state "
            "dict (torch.save(model.state_dict(), path)); or, if you trust whoever made the file, "
            "pass trust=True (--trust-checkpoint), which runs what it says."
        )


def _imports(file: File, number: int, name: str) -> Iterator[str]:
    """Yield ``module.name`` of everything that so many pickles in a row would import."""
    strings = ["", ""]
    steps = 0
    for _ in range(number):
        leaves = _Leaves()
        for op, argument, _ in pickletools.genops(file):
            steps += 1
            if steps > _MAX_OPS:
                raise CheckpointError(
                    f"{name} holds more than {_MAX_OPS} pickle instructions, far more than a "
                    "state dict needs. Save only the state dict."
                )
            if leaves.after(op, argument) > _MAX_LEAVES:
                raise CheckpointError(
                    f"{name} holds a tuple of tuples with more than {_MAX_LEAVES} entries, made "
                    "to exhaust whoever hashes it. It was not read."
                )
            if op.name in ("GLOBAL", "INST"):
                yield str(argument).replace(" ", ".", 1)
            elif op.name == "STACK_GLOBAL":  # never torch's: its names can come from anywhere
                yield " ".join(strings)
            elif isinstance(argument, str):
                strings = [strings[1], argument]


class _Leaves:
    """How many entries the newest tuple of a pickle has when all tuples inside are written out.

    A tuple of twice the tuple before, and so on, takes a few bytes a level, and a hash of it twice
    as long with each; torch's reader hashes whatever is a key. Only tuples count: lists and dicts
    cannot be hashed, and numbers and words cost what they take in the file.
    """

    def __init__(self) -> None:
        self.stack: list[int | None] = []  # None stands for a mark
        self.memo: dict[int, int] = {}

    def after(self, op: pickletools.OpcodeInfo, argument: Any) -> int:
        """Follow one instruction; return the entries of what it leaves on top."""
        if op.name in ("PUT", "BINPUT", "LONG_BINPUT", "MEMOIZE"):
            at = len(self.memo) if argument is None else argument
            self.memo[at] = (self.stack[-1] if self.stack else None) or 1
            return 1
        if op.name in ("GET", "BINGET", "LONG_BINGET"):
            self.stack.append(self.memo.get(argument, 1))
            return 1
        taken = self._taken(op)
        for made in op.stack_after:
            if made is pickletools.markobject:
                self.stack.append(None)
            else:
                kept = op.name.startswith(("TUPLE", "REDUCE", "NEWOBJ", "BUILD", "DUP"))
                self.stack.append(1 + sum(taken) if kept else 1)
        return (self.stack[-1] if self.stack else None) or 1

    def _taken(self, op: pickletools.OpcodeInfo) -> list[int]:
        taken: list[int] = []
        for wanted in reversed(op.stack_before):
            if wanted is pickletools.stackslice:
                while self.stack and self.stack[-1] is not None:
                    taken.append(self.stack.pop() or 1)
            elif self.stack:
                taken.append(self.stack.pop() or 1)
        return taken


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
        # Its own reader first: it takes no header but one of tensors, so that ours stays small.
        tensors: dict[str, Any] = dict(safetensors.torch.load(body))
        meta = json.loads(body[8 : 8 + length]).get("__metadata__", {}).get("wgeo")
        return {"state_dict": tensors, **({"wgeo": json.loads(meta)} if meta else {})}
    except Exception as error:  # safetensors' own errors, and JSON's
        raise CheckpointError(_damaged(name, error)) from error
