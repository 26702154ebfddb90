"""A memory limit that determines block sizes, which are halved when a GPU runs out of memory.

The order of sums depends on block sizes, so results depend on them, but only by rounding.
"""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import torch

from ..errors import ArgumentError
from .processes import local_world_size

_UNITS = {"": 1, "k": 2**10, "m": 2**20, "g": 2**30, "t": 2**40}
_LIBRARY_BYTES = 2**29  # memory that Python and its libraries occupy
_MAX_HALVINGS = 14
OUT_OF_MEMORY = torch.OutOfMemoryError
"""Raised by torch if a GPU has too little memory."""

_state: dict[str, Any] = {"limit": None, "halvings": 0}


def parse_bytes(memory: str | float | int) -> int:
    """Return a number of bytes, from a number or text such as ``"1GiB"``, ``"512 MB"``.

    Units are powers of 1024. `ArgumentError` is raised for other text, and if the size is 0.
    """
    match = re.fullmatch(r"\s*([\d.]+)\s*([kmgt]?)(i?b)?\s*", str(memory).lower())
    try:
        size = int(float(match[1]) * _UNITS[match[2]]) if match else 0
    except (ValueError, OverflowError):
        size = 0
    if size <= 0:
        raise ArgumentError(
            f'memory must be a size such as "1GiB" or 2_000_000_000, not {memory!r}.'
        )
    return size


@contextmanager
def memory_limit(memory: str | int | None) -> Iterator[None]:
    """Limit memory inside the ``with`` block, also that of the current GPU; None for no limit.

    The limit determines block sizes, whether features are kept in memory, and how many problems are
    solved concurrently. Features on disk (memory maps) do not count, because the system reclaims
    their pages when needed. On the GPU, PyTorch's allocator enforces the limit. `ArgumentError` is
    raised if `memory` is not a size of at least 1 GiB.
    """
    size = None if memory is None else parse_bytes(memory)
    if size is not None and size < 2 * _LIBRARY_BYTES:
        raise ArgumentError(
            f"`memory={memory}` is too little: Python and its libraries alone need half a GiB. "
            "Allow at least 1GiB."
        )
    before, halvings = _state["limit"], _state["halvings"]
    try:
        _state["limit"] = size
        if size is not None or before is not None:
            _limit_gpu(size)
        yield
    finally:
        _state["limit"] = before
        if size is not None or before is not None:
            _limit_gpu(before)
            _state["halvings"] = halvings  # memory ran out under the limit that ends here


def _limit_gpu(size: int | None) -> None:
    """Limit this process to `size` bytes of the current GPU's memory; None for all of it.

    Other GPUs have no limit, because setting one would make that GPU the current one.
    """
    if torch.cuda.is_available():
        total = torch.cuda.get_device_properties(torch.cuda.current_device()).total_memory
        torch.cuda.set_per_process_memory_fraction(1.0 if size is None else min(1.0, size / total))


def available_bytes() -> int | None:
    """Return the limit minus the libraries' own memory, in bytes; None without a limit."""
    return None if _state["limit"] is None else _state["limit"] - _LIBRARY_BYTES


def limited_size(default: int, fraction: float) -> int:
    """Return `default` bytes, or the given fraction of the available bytes if that is less."""
    available = available_bytes()
    return default if available is None else max(1, min(default, int(fraction * available)))


def block_entries(default: int) -> int:
    """Return the block size `default`, halved once for each time that a GPU ran out of memory."""
    return max(1, default >> _state["halvings"])


def halve_blocks() -> bool:
    """Halve block sizes, because a GPU ran out of memory; return False if they cannot be smaller.

    If True, the caller repeats the work on its last block, with the new size of `block_entries`.
    """
    if _state["halvings"] == _MAX_HALVINGS:
        return False
    _state["halvings"] += 1
    return True


def total_memory() -> int:
    """Return the bytes of memory that this process may use; a huge number if this is unknown.

    The processes of a job on one machine divide its memory, or the limit of its container or batch
    job, evenly.
    """
    try:
        physical = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, OSError, ValueError):  # not a POSIX system
        physical = sys.maxsize
    return min(physical, _cgroup_limit()) // local_world_size()


def _cgroup_limit(proc: Path = Path("/proc"), groups: Path = Path("/sys/fs/cgroup")) -> int:
    """Return the smallest memory limit of this process's Linux control groups, or a huge number."""
    limit = sys.maxsize
    with suppress(OSError, ValueError):
        for line in (proc / "self" / "cgroup").read_text().splitlines():
            _, kinds, path = line.split(":", 2)
            if kinds and "memory" not in kinds.split(","):
                continue
            root, name = (
                (groups / "memory", "memory.limit_in_bytes") if kinds else (groups, "memory.max")
            )
            group = Path(os.path.normpath(root / path.lstrip("/")))
            for folder in (group, *group.parents):
                if folder == root.parent:
                    break
                with suppress(OSError, ValueError):  # "max", or not visible in the container
                    limit = min(limit, int((folder / name).read_text()))
    return limit
