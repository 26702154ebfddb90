"""How much memory blocks may take: a bound they derive from, and halves where a device runs out.

Nothing here changes a result beyond the rounding of sums in another order.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import ParamSpec, TypeVar

import torch

from ..errors import ArgumentError

P = ParamSpec("P")
R = TypeVar("R")

_UNITS = {"": 1, "k": 2**10, "m": 2**20, "g": 2**30, "t": 2**40}
_LIBRARIES = 2**29  # bytes that Python and its libraries take by themselves
_MOST_HALVINGS = 14
_state: dict[str, int | None] = {"bound": None, "halvings": 0}


def parse_bytes(memory: str | float | int) -> int:
    """Return a size in bytes: a number, or text such as ``"1GiB"``, ``"512 MB"`` (powers of 1024).

    Raises
    ------
    ArgumentError
        Anything else, or a size that is not positive.
    """
    found = re.fullmatch(r"\s*([\d.]+)\s*([kmgt]?)(i?b)?\s*", str(memory).lower())
    try:
        size = int(float(found[1]) * _UNITS[found[2]]) if found else 0
    except ValueError:
        size = 0
    if size <= 0:
        raise ArgumentError(f'memory must be a size such as "1GiB" or 500_000_000, not {memory!r}.')
    return size


@contextmanager
def bounded(memory: str | int | None) -> Iterator[None]:
    """Keep memory below a bound while the block lasts, a GPU's too; None for no bound.

    Blocks, features kept in memory and the number of problems solved at a time derive from it.
    Features on disk (memory maps) do not count: the system takes their pages back when it must.
    On the current GPU PyTorch's allocator keeps to it, and blocks are halved where it refuses.

    Raises
    ------
    ArgumentError
        No size, or one that Python and its libraries alone exceed.
    """
    size = None if memory is None else parse_bytes(memory)
    if size is not None and size < 2 * _LIBRARIES:
        raise ArgumentError(f"Python and its libraries take half a GiB; `memory={memory}` is less.")
    before = _state["bound"]
    try:
        _state["bound"] = size
        if size is not None:
            _bound_gpu(size)
        yield
    finally:
        _state["bound"] = before
        if size is not None:
            _bound_gpu(before)


def _bound_gpu(size: int | None) -> None:
    """Let this process's GPU give it so many bytes; None for all it has.

    The current one alone: to bound another makes that the current one.
    """
    if torch.cuda.is_available():
        has = torch.cuda.get_device_properties(torch.cuda.current_device()).total_memory
        torch.cuda.set_per_process_memory_fraction(1.0 if size is None else min(1.0, size / has))


def free() -> int | None:
    """Bytes that the bound leaves beside the libraries; None where there is no bound."""
    bound = _state["bound"]
    return None if bound is None else bound - _LIBRARIES


def share(usual: int, part: float) -> int:
    """`usual`, a number of bytes, or `part` of what is free where that is less."""
    left = free()
    return usual if left is None else max(1, min(usual, int(part * left)))


def entries(usual: int) -> int:
    """`usual`, the size of a block, halved as often as a device ran out of memory."""
    return max(1, usual >> (_state["halvings"] or 0))


def halving(work: Callable[P, R]) -> Callable[P, R]:
    """Call `work` again with blocks of half the size where a device's memory ends.

    `work` must be one that can begin anew, and take the size of its blocks from `entries`.
    """

    @functools.wraps(work)
    def again(*args: P.args, **kwargs: P.kwargs) -> R:
        while True:
            try:
                return work(*args, **kwargs)
            except torch.OutOfMemoryError:
                halvings = _state["halvings"] or 0
                if halvings >= _MOST_HALVINGS:
                    raise
                _state["halvings"] = halvings + 1

    return again
